//! A control plane's two neighbours, so that it can be measured without a cluster: an API server that makes its objects
//! up, and proxies that ask for all of the mesh. One process has both, so that a change and its arrival are timed by one
//! clock.
//!
//! ```text
//!   stdin ──commands──▶ api (lists, watches) ──▶ the control plane ──▶ proxies (delta discovery over TLS)
//!   stdout ◀──JSON────────────── from a pod's change until every proxy has it ──────────┘
//! ```
//!
//! Commands, a line each, answered by a line each:
//!
//! | command | what |
//! |---|---|
//! | `connect ADDRESS N` | N proxies connect at once; answers when all are synced |
//! | `change N MILLIS` | N pods change, one after the other, so far apart |
//! | `churn N PER_SECOND` | N pods change at a rate; answers when the last has arrived |
//! | `disconnect` | all proxies go |

mod api;
mod http;
mod objects;
mod proto;
mod proxies;

use std::io::{BufRead, Write};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use self::api::Api;
pub use self::objects::Size;
use self::proxies::Proxies;

/// What a command may take.
const PATIENCE: Duration = Duration::from_secs(60);
/// A change that takes some proxy longer is told apart, milliseconds.
const SLOW_MS: f64 = 50.0;

/// Serves the objects, writes a kubeconfig that leads to them, says so, and follows the commands of standard input.
///
/// # Errors
/// When the port cannot be had, or a command goes wrong.
pub fn run(size: Size, kubeconfig: &Path) -> Result<()> {
    let api = Arc::new(Api::new(size));
    let address = http::serve(Arc::clone(&api))?;
    std::fs::write(kubeconfig, config(address)).with_context(|| format!("writing {}", kubeconfig.display()))?;
    say(&json!({ "api": address.to_string() }))?;
    let mut driver = Driver { api, proxies: None, changed: 0 };
    for line in std::io::stdin().lock().lines() {
        let line = line.context("reading standard input")?;
        let answer = driver.command(&line).with_context(|| format!("command {line:?}"))?;
        say(&answer)?;
    }
    Ok(())
}

fn say(answer: &Value) -> Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{answer}")?;
    Ok(out.flush()?)
}

struct Driver {
    api: Arc<Api>,
    proxies: Option<Proxies>,
    /// Pods that were changed so far.
    changed: u64,
}

impl Driver {
    fn command(&mut self, line: &str) -> Result<Value> {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words.as_slice() {
            ["connect", address, count] => {
                let address: SocketAddr = address.parse().context("no address")?;
                self.proxies = None;
                let begin = Instant::now();
                let mut proxies = Proxies::connect(address, count.parse()?)?;
                let synced = proxies.wait_synced(begin + PATIENCE)?;
                let times: Vec<f64> = synced.iter().map(|s| (s.at - begin).as_secs_f64() * 1e3).collect();
                let resources = synced.first().map_or(0, |s| s.resources);
                let bytes = synced.first().map_or(0, |s| s.bytes);
                self.proxies = Some(proxies);
                Ok(json!({
                    "proxies": times.len(), "resources": resources, "bytes": bytes,
                    "ms": { "first": percentile(&times, 0.0), "p50": percentile(&times, 0.5), "last": percentile(&times, 1.0) },
                }))
            }
            ["change", count, apart] => self.change(count.parse()?, Duration::from_millis(apart.parse()?)),
            ["churn", count, rate] => self.churn(count.parse()?, rate.parse()?),
            ["disconnect"] => {
                self.proxies = None;
                Ok(json!({}))
            }
            _ => bail!("is none of connect, change, churn, disconnect"),
        }
    }

    /// Every proxy's time for every change.
    fn change(&mut self, count: u32, apart: Duration) -> Result<Value> {
        let proxies = self.proxies.as_mut().context("connect first")?;
        let (mut times, mut last, mut slow) = (Vec::new(), Vec::new(), Vec::new());
        for number in 0..count {
            self.changed += 1;
            let begin = Instant::now();
            let marker = self.api.change_pod(self.changed);
            let arrived = proxies.wait_for(&marker, begin + PATIENCE)?;
            let of_this: Vec<f64> = arrived.iter().map(|at| (*at - begin).as_secs_f64() * 1e3).collect();
            let (soonest, latest) = (percentile(&of_this, 0.0), percentile(&of_this, 1.0));
            if latest > SLOW_MS {
                // Late from the first proxy on: held up before it was sent. Late for the last ones: sending took long.
                slow.push(json!({ "change": number, "first": soonest, "last": latest }));
            }
            last.push(latest);
            times.extend(of_this);
            std::thread::sleep(apart.saturating_sub(begin.elapsed()));
        }
        Ok(json!({
            "changes": count,
            "ms": { "p50": percentile(&times, 0.5), "p99": percentile(&times, 0.99), "max": percentile(&times, 1.0) },
            "last_ms": { "p50": percentile(&last, 0.5), "max": percentile(&last, 1.0) },
            "slow": slow,
        }))
    }

    fn churn(&mut self, count: u32, rate: f64) -> Result<Value> {
        let proxies = self.proxies.as_mut().context("connect first")?;
        let begin = Instant::now();
        let mut marker = String::new();
        for n in 0..count {
            let due = begin + Duration::from_secs_f64(f64::from(n) / rate);
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
            self.changed += 1;
            marker = self.api.change_pod(self.changed);
        }
        let sent = begin.elapsed();
        proxies.wait_for(&marker, Instant::now() + PATIENCE)?;
        Ok(json!({ "changes": count, "sent_s": sent.as_secs_f64(), "arrived_s": begin.elapsed().as_secs_f64() }))
    }
}

fn percentile(values: &[f64], share: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let at = (share * sorted.len().saturating_sub(1) as f64).round() as usize;
    (sorted.get(at).copied().unwrap_or_default() * 100.0).round() / 100.0
}

fn config(api: SocketAddr) -> String {
    format!(
        "apiVersion: v1
kind: Config
current-context: load
clusters:
- name: load
  cluster:
    server: http://{api}
contexts:
- name: load
  context:
    cluster: load
    user: load
users:
- name: load
  user: {{}}
"
    )
}

#[cfg(test)]
mod tests;
