use super::*;
use crate::env::MapEnv;
use parking_lot::Mutex;
use std::net::SocketAddr;

#[derive(Clone, Default)]
struct Buffer(Arc<Mutex<Vec<u8>>>);

impl Buffer {
    fn take(&self) -> String {
        String::from_utf8(std::mem::take(&mut *self.0.lock())).unwrap()
    }
}

impl io::Write for Buffer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Buffer {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

/// What `log` writes in `format`, with the time cut off after checking its shape.
fn check(format: Format, log: impl FnOnce(), expect: &[&str]) {
    let buffer = Buffer::default();
    let (filter, _level) = LogLevel::layer("info").unwrap();
    let subscriber = tracing_subscriber::registry().with(filter).with(lines(format, buffer.clone()));
    tracing::subscriber::with_default(subscriber, log);
    let text = buffer.take();
    let lines: Vec<String> = text.lines().map(|line| cut_time(format, line)).collect();
    assert_eq!(lines, expect);
}

fn cut_time(format: Format, line: &str) -> String {
    let start = match format {
        Format::Text => 0,
        Format::Json => line.find("\"time\":\"").unwrap() + 8,
    };
    let time = &line[start..start + 27];
    let shape: String = time.chars().map(|c| if c.is_ascii_digit() { '0' } else { c }).collect();
    assert_eq!(shape, "0000-00-00T00:00:00.000000Z");
    line.replacen(time, "T", 1)
}

fn access_line() {
    let address: SocketAddr = "10.0.0.1:4242".parse().unwrap();
    tracing::event!(
        target: "access",
        tracing::Level::INFO,
        src.addr = %address,
        src.workload = "a-1",
        src.namespace = None::<&str>,
        direction = "outbound",
        bytes_sent = 10,
        duration = "3ms",
        "connection complete"
    );
}

#[test]
fn text_lines_have_istios_shape() {
    check(
        Format::Text,
        || {
            access_line();
            tracing::warn!(target: "x", "plain");
            tracing::debug!(target: "x", "below the level");
        },
        &[
            "T\tinfo\taccess\tconnection complete\tsrc.addr=10.0.0.1:4242 src.workload=\"a-1\" \
             direction=\"outbound\" bytes_sent=10 duration=\"3ms\"",
            "T\twarn\tx\tplain",
        ],
    );
}

#[test]
fn json_lines_have_istios_shape() {
    check(
        Format::Json,
        || {
            access_line();
            tracing::error!(target: "x", on = true, ratio = 0.5, "a \"quoted\" text");
        },
        &[
            "{\"level\":\"info\",\"time\":\"T\",\"scope\":\"access\",\"message\":\"connection complete\",\
             \"src.addr\":\"10.0.0.1:4242\",\"src.workload\":\"a-1\",\"direction\":\"outbound\",\
             \"bytes_sent\":10,\"duration\":\"3ms\"}",
            "{\"level\":\"error\",\"time\":\"T\",\"scope\":\"x\",\"message\":\"a \\\"quoted\\\" text\",\
             \"on\":true,\"ratio\":0.5}",
        ],
    );
}

#[test]
fn a_peer_cannot_forge_a_line() {
    let sent = "x\n2026-01-01T00:00:00.000000Z\tinfo\taccess\tforged";
    check(
        Format::Text,
        || tracing::info!(target: "x", authority = %sent, quoted = sent, "got {sent}"),
        &["T\tinfo\tx\tgot x\\n2026-01-01T00:00:00.000000Z\\tinfo\\taccess\\tforged\t\
           authority=x\\n2026-01-01T00:00:00.000000Z\\tinfo\\taccess\\tforged \
           quoted=\"x\\n2026-01-01T00:00:00.000000Z\\tinfo\\taccess\\tforged\""],
    );
}

#[test]
fn what_is_not_plain_reads_as_debug_has_it() {
    let odd = ["a\"b", "a\\b", "é", "\u{7f}", "\u{85}", "", "a b=c"];
    for text in odd {
        let expect = format!("T\tinfo\tx\tgot\tstr={text:?}").replace('\u{85}', "\\u{85}");
        check(Format::Text, || tracing::info!(target: "x", str = text, "got"), &[&expect]);
    }
    check(
        Format::Text,
        || tracing::info!(target: "x", a = %"é\u{7f}\u{85}", "é"),
        &["T\tinfo\tx\té\ta=é\\u{7f}\\u{85}"],
    );
}

#[test]
fn spans_stand_behind_the_target() {
    check(
        Format::Text,
        || {
            let _outer = tracing::info_span!("pod", name = "a-1").entered();
            let _inner = tracing::info_span!("inbound").entered();
            tracing::info!(target: "x", "hello");
        },
        &["T\tinfo\tx:pod{name=\"a-1\"}:inbound\thello"],
    );
}

#[test]
fn the_level_changes_while_running() {
    let buffer = Buffer::default();
    let (filter, level) = LogLevel::layer("info").unwrap();
    let subscriber = tracing_subscriber::registry().with(filter).with(lines(Format::Text, buffer.clone()));
    tracing::subscriber::with_default(subscriber, || {
        tracing::debug!(target: "a::b", "no");
        level.change("a::b:debug", false).unwrap();
        tracing::debug!(target: "a::b", "yes");
        tracing::debug!(target: "c", "no");
        assert!(level.change("verbose", false).is_err());
        level.change("", true).unwrap();
        tracing::debug!(target: "a::b", "no");
    });
    assert_eq!(buffer.take().lines().count(), 1);
    assert_eq!(level.current(), "info");
}

#[test]
fn settings_come_from_the_environment() {
    let env = MapEnv::from([("RUST_LOG", "aquifer_xds=debug,info"), ("LOG_FORMAT", "json")]);
    let mut vars = Vars::new(&env);
    let got = Settings::from_vars(&mut vars);
    assert_eq!(got.filter, "aquifer_xds=debug,info");
    assert_eq!(got.format, Format::Json);
    assert!(vars.finish().is_ok());

    let env = MapEnv::from([("RUST_LOG", "a=b=c=d"), ("LOG_FORMAT", "xml")]);
    let mut vars = Vars::new(&env);
    assert_eq!(Settings::from_vars(&mut vars), Settings::default());
    assert_eq!(vars.finish().unwrap_err().0.len(), 2);
}
