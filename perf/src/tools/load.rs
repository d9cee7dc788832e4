//! `aquifer-load`: what the usual programs cannot do. Each run prints one JSON object.

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use super::{Latency, Outcome};

/// What the report of each subcommand has at least.
#[derive(Debug, Deserialize)]
struct Report {
    requests: u64,
    errors: u64,
    seconds: f64,
    latency_us: Option<Latency>,
    #[serde(default)]
    errors_by_kind: serde_json::Map<String, serde_json::Value>,
}

/// The last line of what it printed is its report.
pub(crate) fn parse(text: &str) -> Result<Outcome> {
    let Some(line) = text.lines().rev().find(|line| !line.trim().is_empty()) else {
        bail!("aquifer-load printed nothing");
    };
    let report: Report =
        serde_json::from_str(line).with_context(|| format!("aquifer-load printed no report: {line}"))?;
    let Report { requests, errors, seconds, latency_us, errors_by_kind } = report;
    if requests == 0 && errors > 0 {
        bail!("all {errors} requests failed: {}", serde_json::Value::Object(errors_by_kind));
    }
    Ok(Outcome { requests, bytes: 0, errors, seconds, latency: latency_us })
}

/// Arguments from words of one line.
pub(crate) fn words(line: &str) -> Vec<String> {
    line.split_whitespace().map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_last_line() {
        let text = r#"{"work":"idle","up":2}
{"work":"idle","requests":2,"errors":1,"errors_by_kind":{"reset":1},"seconds":0.5,"rate":4,"latency_us":{"mean":3,"p50":1,"p90":2,"p99":3,"p99.9":3,"max":4},"seed":1}
"#;
        let outcome = parse(text).unwrap();
        assert_eq!((outcome.requests, outcome.errors, outcome.seconds), (2, 1, 0.5));
        assert_eq!(outcome.latency.unwrap().p99, 3.0);
    }

    #[test]
    fn a_run_without_a_single_answer_is_an_error() {
        let text = r#"{"requests":0,"errors":5,"errors_by_kind":{"refused":5},"seconds":1,"latency_us":null}"#;
        assert!(parse(text).unwrap_err().to_string().contains("refused"));
        assert!(parse("").is_err());
        assert!(parse("error: no").unwrap_err().to_string().contains("error: no"));
    }
}
