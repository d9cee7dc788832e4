//! The two shapes of a log line.

use std::fmt::{self, Debug, Write};

use serde_json::Value;
use time::OffsetDateTime;
use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber};
use tracing_subscriber::field::RecordFields;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields, FormattedFields};
use tracing_subscriber::registry::LookupSpan;

/// Text lines: `time<TAB>level<TAB>target<TAB>message<TAB>key=value ...`.
///
/// Strings are quoted, everything else is bare, as Istio's ztunnel writes them.
#[derive(Clone, Copy, Debug, Default)]
pub struct Text;

/// JSON lines: `level`, `time`, `scope`, `message`, then the fields.
#[derive(Clone, Copy, Debug, Default)]
pub struct Json;

impl<S, N> FormatEvent<S, N> for Text
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, ctx: &FmtContext<'_, S, N>, mut writer: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let (level, target) = (level(event), event.metadata().target());
        write!(writer, "{}\t{level}\t{target}{}\t", now(), spans(ctx))?;
        let mut fields = TextFields::default();
        event.record(&mut fields);
        write!(writer, "{}", fields.message)?;
        if !fields.rest.is_empty() {
            write!(writer, "\t{}", fields.rest)?;
        }
        writeln!(writer)
    }
}

impl<S, N> FormatEvent<S, N> for Json
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, ctx: &FmtContext<'_, S, N>, mut writer: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let mut fields = JsonFields::default();
        event.record(&mut fields);
        let mut line = format!("{{\"level\":\"{}\",\"time\":\"{}\"", level(event), now());
        push(&mut line, "scope", &event.metadata().target().into())?;
        push(&mut line, "message", &fields.message.into())?;
        let spans = spans(ctx);
        if let Some(spans) = spans.strip_prefix(':') {
            push(&mut line, "span", &spans.into())?;
        }
        for (key, value) in &fields.rest {
            push(&mut line, key, value)?;
        }
        writeln!(writer, "{line}}}")
    }
}

fn push(line: &mut String, key: &str, value: &Value) -> fmt::Result {
    write!(line, ",{}:{value}", Value::from(key))
}

/// Writes a span's own fields for both shapes: `key=value key=value`.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct SpanFields;

impl<'writer> FormatFields<'writer> for SpanFields {
    fn format_fields<R: RecordFields>(&self, mut writer: Writer<'writer>, fields: R) -> fmt::Result {
        let mut text = TextFields::default();
        fields.record(&mut text);
        write!(writer, "{}", text.rest)
    }
}

/// `:outer{key=value}:inner`, or nothing outside of spans.
fn spans<S, N>(ctx: &FmtContext<'_, S, N>) -> String
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    let mut out = String::new();
    for span in ctx.event_scope().into_iter().flat_map(|scope| scope.from_root()) {
        out.push(':');
        out.push_str(span.metadata().name());
        let extensions = span.extensions();
        let fields = extensions.get::<FormattedFields<N>>().filter(|f| !f.fields.is_empty());
        if let Some(fields) = fields {
            out.push('{');
            out.push_str(&fields.fields);
            out.push('}');
        }
    }
    out
}

fn level(event: &Event<'_>) -> &'static str {
    match *event.metadata().level() {
        tracing::Level::ERROR => "error",
        tracing::Level::WARN => "warn",
        tracing::Level::INFO => "info",
        tracing::Level::DEBUG => "debug",
        tracing::Level::TRACE => "trace",
    }
}

/// Now, in UTC with microseconds: `2026-01-01T00:00:00.000000Z`.
fn now() -> Timestamp {
    Timestamp(OffsetDateTime::now_utc())
}

pub(super) struct Timestamp(pub(super) OffsetDateTime);

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (date, time) = (self.0.date(), self.0.time());
        let (year, month, day) = (date.year(), u8::from(date.month()), date.day());
        let (h, m, s, us) = (time.hour(), time.minute(), time.second(), time.microsecond());
        write!(f, "{year:04}-{month:02}-{day:02}T{h:02}:{m:02}:{s:02}.{us:06}Z")
    }
}

/// Text of both kinds, as it will stand in the line.
struct TextFields {
    message: String,
    rest: String,
}

/// Room for an access line's fields, so that it is made once.
const FIELDS: usize = 768;

impl Default for TextFields {
    fn default() -> Self {
        Self { message: String::new(), rest: String::with_capacity(FIELDS) }
    }
}

impl TextFields {
    /// Where a field's value goes.
    fn value(&mut self, field: &Field) -> OneLine<'_> {
        if field.name() == "message" {
            self.message.clear();
            return OneLine(&mut self.message);
        }
        if !self.rest.is_empty() {
            self.rest.push(' ');
        }
        self.rest.push_str(field.name());
        self.rest.push('=');
        OneLine(&mut self.rest)
    }
}

/// A line is a record: what a peer sent must not start a new one.
struct OneLine<'a>(&'a mut String);

impl Write for OneLine<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        // As good as always.
        if text.bytes().all(is_plain) {
            self.0.push_str(text);
            return Ok(());
        }
        for c in text.chars() {
            match c {
                '\n' => self.0.push_str("\\n"),
                '\r' => self.0.push_str("\\r"),
                '\t' => self.0.push_str("\\t"),
                c if c.is_control() => self.0.extend(c.escape_default()),
                c => self.0.push(c),
            }
        }
        Ok(())
    }
}

/// ASCII that stands for itself.
fn is_plain(byte: u8) -> bool {
    matches!(byte, b' '..=b'~')
}

impl Visit for TextFields {
    // Writing to a string fails only if the value's own formatting does; the line then has what came before.

    fn record_str(&mut self, field: &Field, value: &str) {
        let mut out = self.value(field);
        if field.name() == "message" {
            let _ = out.write_str(value);
        } else if value.bytes().all(|b| is_plain(b) && b != b'"' && b != b'\\') {
            out.0.push('"');
            out.0.push_str(value);
            out.0.push('"');
        } else {
            let _ = write!(out, "{value:?}");
        }
    }

    fn record_error(&mut self, field: &Field, value: &(dyn std::error::Error + 'static)) {
        let _ = write!(self.value(field), "{:?}", value.to_string());
    }

    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        let _ = write!(self.value(field), "{value:?}");
    }
}

#[derive(Default)]
struct JsonFields {
    message: String,
    rest: Vec<(&'static str, Value)>,
}

impl JsonFields {
    fn field(&mut self, field: &Field, value: Value) {
        match value {
            Value::String(text) if field.name() == "message" => self.message = text,
            value => self.rest.push((field.name(), value)),
        }
    }
}

impl Visit for JsonFields {
    fn record_f64(&mut self, field: &Field, value: f64) {
        self.field(field, value.into());
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.field(field, value.into());
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.field(field, value.into());
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.field(field, value.into());
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.field(field, value.into());
    }

    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.field(field, format!("{value:?}").into());
    }
}
