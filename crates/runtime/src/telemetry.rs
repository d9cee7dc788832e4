//! Log lines in Istio's shape, on standard output, through a writer that never blocks a task.

mod format;
mod writer;

use std::fmt::Debug;
use std::io;
use std::sync::Arc;

use tracing::Subscriber;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, Registry, reload};

use crate::env::Vars;

pub use format::{Json, Text};

/// How a log line looks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    /// `time<TAB>level<TAB>target<TAB>message<TAB>key=value ...`
    #[default]
    Text,
    /// One object a line: `level`, `time`, `scope`, `message`, then the fields.
    Json,
}

/// What is logged, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Directives as in RUST_LOG: `info`, `aquifer_xds=debug,info`.
    pub filter: String,
    /// The shape of the lines.
    pub format: Format,
}

impl Settings {
    /// Reads RUST_LOG (`info`) and LOG_FORMAT (`text`).
    pub fn from_vars(vars: &mut Vars<'_>) -> Self {
        let check = |text: &str| match text.parse::<EnvFilter>() {
            Ok(_) => Ok(text.to_owned()),
            Err(error) => Err(format!("{text:?}: {error}")),
        };
        let format = |text: &str| match text {
            "text" | "plain" => Ok(Format::Text),
            "json" => Ok(Format::Json),
            other => Err(format!("{other:?} is neither text nor json")),
        };
        Self {
            filter: vars.with("RUST_LOG", check).unwrap_or_else(|| "info".to_owned()),
            format: vars.with("LOG_FORMAT", format).unwrap_or_default(),
        }
    }
}

impl Default for Settings {
    fn default() -> Self {
        Self { filter: "info".to_owned(), format: Format::Text }
    }
}

/// Why logging could not be set up or changed.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The directives cannot be read.
    #[error(transparent)]
    Filter(#[from] tracing_subscriber::filter::ParseError),
    /// A level that does not exist.
    #[error("{0:?} is not a level")]
    Level(String),
    /// Something else in this process took the global subscriber first.
    #[error("logging is already set up")]
    AlreadySet,
    /// No thread for the writer.
    #[error("cannot start the log's thread: {0}")]
    Thread(#[source] io::Error),
    /// The subscriber is gone.
    #[error("logging has ended")]
    Gone,
}

/// Logging that is set up. Keep it for the life of the process: dropping it writes out what is buffered.
pub struct Telemetry {
    /// Tells and changes the level, for `/logging`.
    pub level: LogLevel,
    _flush: writer::Flush,
}

/// Sets up logging for the process, on standard output.
pub fn init(settings: &Settings) -> Result<Telemetry, LogError> {
    let (writer, flush) = writer::gather(io::stdout()).map_err(LogError::Thread)?;
    let level = install(settings, writer)?;
    Ok(Telemetry { level, _flush: flush })
}

fn install(settings: &Settings, writer: writer::Gathered) -> Result<LogLevel, LogError> {
    let (filter, level) = LogLevel::layer(&settings.filter)?;
    tracing_subscriber::registry()
        .with(filter)
        .with(lines(settings.format, writer))
        .try_init()
        .map_err(|_| LogError::AlreadySet)?;
    Ok(level)
}

/// The layer that writes lines of `format` to `writer`.
pub fn lines<S, W>(format: Format, writer: W) -> Box<dyn Layer<S> + Send + Sync>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    let layer = tracing_subscriber::fmt::layer().with_writer(writer);
    match format {
        Format::Text => Box::new(layer.fmt_fields(format::SpanFields).event_format(Text)),
        Format::Json => Box::new(layer.fmt_fields(format::SpanFields).event_format(Json)),
    }
}

/// Tells and changes what is logged while the process runs.
#[derive(Clone, Debug)]
pub struct LogLevel {
    handle: reload::Handle<EnvFilter, Registry>,
    initial: Arc<str>,
    // The handle only weakly holds the filter; tests that never install it still want answers.
    current: Arc<parking_lot::Mutex<String>>,
}

impl LogLevel {
    /// A filter layer and its handle.
    pub fn layer(filter: &str) -> Result<(reload::Layer<EnvFilter, Registry>, Self), LogError> {
        let (layer, handle) = reload::Layer::new(filter.parse::<EnvFilter>()?);
        let current = Arc::new(parking_lot::Mutex::new(filter.to_owned()));
        Ok((layer, Self { handle, initial: filter.into(), current }))
    }

    /// The directives in force.
    pub fn current(&self) -> String {
        self.current.lock().clone()
    }

    /// Adds directives to those in force, or with `reset` to those of the start.
    ///
    /// `module:level` is taken for `module=level`, as Istio's tools write it.
    pub fn change(&self, directives: &str, reset: bool) -> Result<(), LogError> {
        let mut current = self.current.lock();
        let base = if reset { &*self.initial } else { current.as_str() };
        let mut parts = vec![base.to_owned()];
        for directive in directives.split(',').filter(|d| !d.is_empty()) {
            parts.push(normalise(directive)?);
        }
        // A later directive replaces an earlier one for the same target.
        let filter: EnvFilter = parts.join(",").parse()?;
        let text = filter.to_string();
        match self.handle.reload(filter) {
            Ok(()) => {}
            Err(error) if error.is_dropped() => return Err(LogError::Gone),
            Err(_) => return Err(LogError::Gone),
        }
        *current = text;
        Ok(())
    }
}

fn normalise(directive: &str) -> Result<String, LogError> {
    let colon = directive.rfind(':').filter(|at| !directive[..*at].ends_with(':'));
    let (target, level) = match (directive.rsplit_once('='), colon) {
        (Some((target, level)), _) => (Some(target), level),
        (None, Some(at)) => (Some(&directive[..at]), &directive[at + 1..]),
        (None, None) => (None, directive),
    };
    let known = ["off", "error", "warn", "info", "debug", "trace"];
    let lower = level.to_ascii_lowercase();
    if !known.contains(&lower.as_str()) {
        return Err(LogError::Level(level.to_owned()));
    }
    Ok(target.map_or(lower.clone(), |target| format!("{target}={lower}")))
}

#[cfg(test)]
mod tests;
