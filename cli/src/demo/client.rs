//! The demo's clients: curl and wrk in the pods, and what they report.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use aquifer_lab::{Lab, Process};

/// One request with a connection of its own.
#[derive(Debug)]
pub(super) struct Answer {
    /// curl's exit code: 0 is success, 7 refused, 28 timed out, 52 empty reply, 56 reset.
    pub(super) exit: i32,
    /// HTTP status, 0 if there was none.
    pub(super) status: u16,
    /// The body, trimmed.
    pub(super) body: String,
    /// From the first byte out to the last byte in.
    pub(super) took: Duration,
}

impl Answer {
    pub(super) fn ok(&self) -> bool {
        self.exit == 0 && self.status == 200
    }
}

/// GET with curl in a pod.
pub(super) async fn get(lab: &Lab, namespace: &str, pod: &str, url: &str) -> Result<Answer> {
    let args = ["curl", "-s", "-m", "5", "-w", "\n%{http_code} %{time_total}", url];
    let output = lab.exec(namespace, pod, &args).await?;
    let (body, report) = output.stdout.rsplit_once('\n').unwrap_or(("", &output.stdout));
    let (status, took) =
        report.split_once(' ').with_context(|| format!("curl reported {report:?}: {}", output.stderr))?;
    Ok(Answer {
        exit: output.code,
        status: status.parse().unwrap_or(0),
        body: body.trim().to_owned(),
        took: Duration::from_secs_f64(took.trim().parse().unwrap_or(0.0)),
    })
}

/// A connection that stays open: a shell's own, written to and read from. It ends when the connection does.
pub(super) struct Open {
    process: Process,
    stdin: std::io::PipeWriter,
    seen: usize,
}

impl Open {
    pub(super) fn connect(lab: &Lab, namespace: &str, pod: &str, host: &str, port: u16) -> Result<Self> {
        let script = format!("exec 3<>/dev/tcp/{host}/{port} 4<&0; cat <&4 >&3 & exec cat <&3");
        let mut process = lab.spawn(namespace, pod, &["bash", "-c", &script])?;
        let stdin = process.take_stdin().context("the client's input")?;
        Ok(Self { process, stdin, seen: 0 })
    }

    /// Writes, and waits until new output holds `expect`.
    pub(super) async fn ask(&mut self, line: &str, expect: &str) -> Result<()> {
        use std::io::Write;
        self.stdin.write_all(line.as_bytes()).context("writing to an open connection")?;
        for _ in 0..6000 {
            let output = self.process.stdout_so_far();
            if output.get(self.seen..).is_some_and(|new| new.contains(expect)) {
                self.seen = output.len();
                return Ok(());
            }
            if !self.process.is_running() {
                bail!("the connection was closed instead of answering {line:?}");
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        bail!("no answer to {line:?} within 30 s")
    }

    pub(super) fn is_open(&self) -> bool {
        self.process.is_running()
    }
}

/// What wrk measured.
#[derive(Debug, Clone, Copy)]
pub(super) struct Latency {
    pub(super) p50: Duration,
    pub(super) p99: Duration,
    pub(super) per_second: f64,
}

/// A few seconds of wrk over kept connections.
pub(super) async fn latency(lab: &Lab, namespace: &str, pod: &str, url: &str) -> Result<Latency> {
    let output = lab.exec(namespace, pod, &["wrk", "-t1", "-c4", "-d3s", "--latency", url]).await?;
    let text = &output.stdout;
    let quantile = |name: &str| -> Result<Duration> {
        let line = text.lines().find(|line| line.trim_start().starts_with(name));
        let value = line.and_then(|line| line.split_whitespace().nth(1));
        value.and_then(duration).with_context(|| format!("wrk reported no {name}: {text}{}", output.stderr))
    };
    let rate = text.lines().find_map(|line| line.strip_prefix("Requests/sec:"));
    Ok(Latency {
        p50: quantile("50%")?,
        p99: quantile("99%")?,
        per_second: rate.and_then(|rate| rate.trim().parse().ok()).unwrap_or(0.0),
    })
}

/// wrk's `1.23ms`, `456.00us`, `1.00s`.
fn duration(text: &str) -> Option<Duration> {
    let split = text.find(|c: char| c.is_ascii_alphabetic())?;
    let value: f64 = text[..split].parse().ok()?;
    let seconds = match &text[split..] {
        "us" => value / 1e6,
        "ms" => value / 1e3,
        "s" => value,
        "m" => value * 60.0,
        _ => return None,
    };
    Some(Duration::from_secs_f64(seconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_of_wrk() {
        for (text, expect) in [
            ("456.00us", Some(Duration::from_micros(456))),
            ("1.25ms", Some(Duration::from_micros(1250))),
            ("2.00s", Some(Duration::from_secs(2))),
            ("7", None),
            ("7x", None),
        ] {
            assert_eq!(duration(text), expect, "{text}");
        }
    }
}
