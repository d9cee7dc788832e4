//! iperf3: bulk TCP.

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::Outcome;

/// iperf3's arguments.
pub(crate) fn args(host: &str, port: u16, streams: u32, seconds: u32) -> Vec<String> {
    ["iperf3", "-c", host, "-p", &port.to_string(), "-P", &streams.to_string(), "-t", &seconds.to_string(), "-J"]
        .map(str::to_owned)
        .to_vec()
}

/// What `iperf3 -J` printed: what the receiver got, in its own time.
pub(crate) fn parse(text: &str) -> Result<Outcome> {
    let json: Value = serde_json::from_str(text).with_context(|| format!("iperf3 printed no JSON: {text}"))?;
    if let Some(error) = json.get("error").and_then(Value::as_str) {
        bail!("iperf3: {error}");
    }
    let received = json.pointer("/end/sum_received").context("iperf3 printed no end.sum_received")?;
    let bytes = received["bytes"].as_u64().context("iperf3 printed no end.sum_received.bytes")?;
    let seconds = received["seconds"].as_f64().context("iperf3 printed no end.sum_received.seconds")?;
    Ok(Outcome { requests: 0, bytes, errors: 0, seconds, latency: None })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_iperf3_prints() {
        let text = r#"{"start": {}, "intervals": [], "end": {
            "sum_sent": {"seconds": 3.0, "bytes": 6000, "bits_per_second": 16000.0, "retransmits": 1},
            "sum_received": {"seconds": 3.01, "bytes": 5900, "bits_per_second": 15681.06}}}"#;
        let outcome = parse(text).unwrap();
        assert_eq!((outcome.bytes, outcome.seconds, outcome.latency.is_none()), (5900, 3.01, true));
    }

    #[test]
    fn its_error_is_told() {
        let text = r#"{"start": {}, "end": {}, "error": "unable to connect to server: Connection refused"}"#;
        assert!(parse(text).unwrap_err().to_string().contains("Connection refused"));
        assert!(parse("").is_err() && parse("{}").is_err());
    }
}
