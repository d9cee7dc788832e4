//! A client under which things are changed: curl loops in a pod that open a connection per request.

use std::time::{Duration, Instant};

use crate::error::{LabError, Result};
use crate::lab::Lab;
use crate::process::Process;

/// No load runs longer, whoever forgets it.
const MAX_SECONDS: u32 = 300;
/// A request that takes longer has failed.
const PATIENCE: Duration = Duration::from_secs(10);

/// Load that runs. Dropping it ends it.
#[derive(Debug)]
pub struct Load {
    loops: Vec<Process>,
}

/// What came of a load's requests.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LoadReport {
    answered: usize,
    failures: Vec<String>,
}

impl Load {
    /// Starts `clients` loops of curl in the pod (by its name or its Deployment's).
    pub fn start(lab: &Lab, namespace: &str, pod: &str, url: &str, clients: usize) -> Result<Self> {
        Self::patient(lab, namespace, pod, url, clients, PATIENCE)
    }

    /// The same, with whole seconds that a request may take: for when something in its way is held up on purpose.
    pub fn patient(
        lab: &Lab,
        namespace: &str,
        pod: &str,
        url: &str,
        clients: usize,
        patience: Duration,
    ) -> Result<Self> {
        let patience = patience.as_secs();
        // One line a request: HTTP status, curl's exit code, its words. A status other than 200 is a failure too.
        let script = format!(
            "end=$(( $(date +%s) + {MAX_SECONDS} )); while [ $(date +%s) -lt $end ]; do \
             curl -s -m {patience} -o /dev/null -w '%{{http_code}} %{{exitcode}} %{{errormsg}}\\n' '{url}'; done"
        );
        let loops = (0..clients).map(|_| lab.spawn(namespace, pod, &["sh", "-c", &script])).collect::<Result<_>>()?;
        Ok(Self { loops })
    }

    /// What came of the requests so far.
    pub fn report(&self) -> LoadReport {
        let mut report = LoadReport::default();
        for client in &self.loops {
            report.read(&client.stdout_so_far());
        }
        report
    }

    /// Waits until so many requests have ended, one way or the other.
    pub async fn wait_answers(&self, count: usize, within: Duration) -> Result<()> {
        let begin = Instant::now();
        while self.report().total() < count {
            if begin.elapsed() > within {
                let what = format!("{count} requests of the load ({} ended)", self.report().total());
                return Err(LabError::Timeout { what, after: within });
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Ok(())
    }

    /// Ends the load. A request that is cut by this counts neither way.
    pub async fn stop(self) -> Result<LoadReport> {
        let mut report = LoadReport::default();
        for client in self.loops {
            report.read(&client.kill().await?.stdout);
        }
        Ok(report)
    }
}

impl LoadReport {
    /// Requests that were answered with 200.
    pub fn answered(&self) -> usize {
        self.answered
    }

    /// Requests that were not.
    pub fn failed(&self) -> usize {
        self.failures.len()
    }

    /// All requests that ended.
    pub fn total(&self) -> usize {
        self.answered + self.failures.len()
    }

    /// Status, curl's exit code and words of the first that failed; empty if none did.
    pub fn first_failure(&self) -> &str {
        self.failures.first().map_or("", String::as_str)
    }

    /// Adds the lines of one loop. A last line without its end is of a request that was cut by us.
    fn read(&mut self, text: &str) {
        for line in text.split_inclusive('\n').filter_map(|line| line.strip_suffix('\n')) {
            match line.starts_with("200 0") {
                true => self.answered += 1,
                false => self.failures.push(format!("({})", line.trim())),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_and_failures_are_told_apart() {
        let mut report = LoadReport::default();
        report.read("200 0 \n503 0 \n000 56 Recv failure: Connection reset by peer\n200 0 \n20");
        assert_eq!((report.answered(), report.failed(), report.total()), (2, 2, 4));
        assert_eq!(report.first_failure(), "(503 0)");
    }
}
