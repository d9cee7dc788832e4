use std::net::TcpListener;

use super::*;
use crate::serve::Kind;
use crate::serve::tests::start;

fn options(target: SocketAddr) -> Options {
    Options {
        target,
        sources: Vec::new(),
        path: "/".into(),
        connections: 8,
        threads: 2,
        seconds: 60.0,
        warmup: 0.0,
        count: Some(101),
        timeout: Duration::from_secs(20),
        hold: None,
    }
}

#[test]
fn as_many_connections_as_asked_for_each_with_a_whole_answer() {
    for kind in [Kind::Http, Kind::Auto] {
        let report = run(&options(start(&[kind])[0])).unwrap();
        assert_eq!((report.requests, report.errors), (101, 0), "{report:?}");
        let json = serde_json::to_value(&report).unwrap();
        for key in ["work", "requests", "errors", "errors_by_kind", "seconds", "rate", "spread", "connections"] {
            assert!(!json[key].is_null(), "{key} is missing in {json}");
        }
        for key in ["p50", "p90", "p99", "p99.9", "max"] {
            assert!(json["latency_us"][key].as_f64().unwrap() > 0.0, "{key} is missing in {json}");
        }
    }
}

#[test]
fn the_time_ends_it_too() {
    let report = run(&Options { seconds: 0.2, count: None, ..options(start(&[Kind::Http])[0]) }).unwrap();
    assert!(report.requests > 0 && report.errors == 0, "{report:?}");
}

#[test]
fn connections_come_from_the_sources_by_turns() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let target = listener.local_addr().unwrap();
    let seen = std::thread::spawn(move || -> Vec<IpAddr> {
        (0..4)
            .map(|_| {
                let (mut stream, from) = listener.accept().unwrap();
                let _ = stream.read(&mut [0; 256]).unwrap();
                stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").unwrap();
                from.ip()
            })
            .collect()
    });
    let sources: Vec<IpAddr> = vec!["127.0.0.2".parse().unwrap(), "127.0.0.3".parse().unwrap()];
    let few = Options { connections: 1, threads: 1, count: Some(4), sources: sources.clone(), ..options(target) };
    assert_eq!(run(&few).unwrap().requests, 4);
    assert_eq!(seen.join().unwrap(), [sources.clone(), sources].concat());
}

#[test]
fn failures_are_counted_by_kind() {
    let (_held, closed) = crate::serve::tests::closed();
    let report = run(&Options { seconds: 0.2, ..options(closed) }).unwrap();
    assert_eq!(report.requests, 0);
    assert!(report.errors > 0 && report.errors_by_kind[&Failure::Refused] == report.errors, "{report:?}");

    // Accepts in the kernel, and never answers.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let short = Options { timeout: Duration::from_millis(1), count: Some(8), ..options(silent.local_addr().unwrap()) };
    assert_eq!(run(&short).unwrap().errors_by_kind[&Failure::TimedOut], 8);
}

#[test]
fn held_connections_are_all_open_at_once_and_then_opened_anew() {
    let target = start(&[Kind::Http])[0];
    let held = Options { connections: 50, count: Some(150), hold: Some(4), ..options(target) };
    let report = run(&held).unwrap();
    assert_eq!((report.requests, report.errors), (150, 0), "{report:?}");
    assert_eq!(report.more["rounds"], 3);
}
