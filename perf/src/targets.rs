//! What ours must reach, each row relative to the sidecars of the same run or as an absolute figure.

use serde::Serialize;

use crate::mode::Mode;
use crate::results::{Metric, Results};
use crate::stats::{Ratio, Summary};
use crate::work::extra;

/// A row of the table.
#[derive(Debug, Clone, Copy)]
struct Target {
    title: &'static str,
    work: &'static str,
    metric: Metric,
    /// What ours is divided by.
    relative_to: Option<Mode>,
    bound: Bound,
}

#[derive(Debug, Clone, Copy)]
enum Bound {
    AtLeast(f64),
    AtMost(f64),
}

/// Whether a row is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Verdict {
    Met,
    /// By less than the noise.
    MissedWithinNoise,
    Missed,
    /// The work or a mode was left out.
    NotMeasured,
}

impl Verdict {
    pub(crate) fn text(self) -> &'static str {
        match self {
            Self::Met => "met",
            Self::MissedWithinNoise => "missed, within noise",
            Self::Missed => "MISSED",
            Self::NotMeasured => "not measured",
        }
    }
}

/// A row with what was measured.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Row {
    pub(crate) title: &'static str,
    pub(crate) unit: &'static str,
    /// Medians of each mode.
    pub(crate) medians: Vec<(Mode, Summary)>,
    /// `≥ 1.20`, `≤ 12 MiB`.
    pub(crate) target: String,
    /// Ours, relative to what the target names or absolute.
    pub(crate) measured: Option<Ratio>,
    /// Whether the measured figure is a ratio.
    pub(crate) relative: bool,
    pub(crate) verdict: Verdict,
}

const fn sidecar(title: &'static str, work: &'static str, metric: Metric, bound: Bound) -> Target {
    Target { title, work, metric, relative_to: Some(Mode::SidecarTcp), bound }
}

const fn absolute(title: &'static str, work: &'static str, metric: Metric, at_most: f64) -> Target {
    Target { title, work, metric, relative_to: None, bound: Bound::AtMost(at_most) }
}

const fn plain(title: &'static str, work: &'static str, at_most: f64) -> Target {
    let relative_to = Some(Mode::None);
    Target { title, work, metric: extra::MOVED, relative_to, bound: Bound::AtMost(at_most) }
}

const TARGETS: [Target; 14] = [
    sidecar("bulk TCP, 1 stream", "bulk1", Metric::Gbits, Bound::AtLeast(1.20)),
    sidecar("bulk TCP, 4 streams", "bulk4", Metric::Gbits, Bound::AtLeast(1.25)),
    sidecar("HTTP/1.1 keep-alive, 32 connections", "http32", Metric::Rate, Bound::AtLeast(1.45)),
    sidecar("HTTP/1.1 keep-alive, 512 connections", "http512", Metric::Rate, Bound::AtLeast(2.0)),
    sidecar("proxies' CPU per request, 32 connections", "http32", Metric::ProxiesPerRequest, Bound::AtMost(0.60)),
    sidecar("p99 at 512 connections", "http512", Metric::P99, Bound::AtMost(0.15)),
    sidecar("new connections, a request each", "connect", Metric::Rate, Bound::AtLeast(6.0)),
    absolute("memory idle, both sides", "memory", extra::IDLE, 12.0),
    absolute("memory after 512 connections, both sides", "memory", extra::AFTER, 24.0),
    absolute("memory per idle connection (10 000), both ends", "idle10k", extra::PER_CONNECTION, 8.0),
    absolute("ztunnel's memory per 10 000 workloads, of 10 000", "workloads10k", extra::PER_WORKLOADS, 5.0),
    absolute("ztunnel's memory per 10 000 workloads, of 50 000", "workloads50k", extra::PER_WORKLOADS, 5.0),
    plain("p99 moved by a neighbour's bulk, against no mesh", "neighbour-bulk", 1.2),
    plain("p99 moved by a neighbour's 8 000 connections, against no mesh", "neighbour-connect", 1.2),
];

/// All rows.
pub(crate) fn rows(results: &Results) -> Vec<Row> {
    TARGETS.iter().map(|target| target.row(results)).collect()
}

impl Target {
    fn row(&self, results: &Results) -> Row {
        let work = results.work(self.work);
        let of = |mode: Mode| work.and_then(|work| work.summary(mode, self.metric));
        let medians: Vec<(Mode, Summary)> = results.modes.iter().filter_map(|mode| Some((*mode, of(*mode)?))).collect();
        let ours = of(Mode::Ambient);
        let measured = match self.relative_to {
            Some(other) => ours.and_then(|ours| ours.relative_to(&of(other)?)),
            None => ours.map(|ours| Ratio { value: ours.median, noise: ours.spread, tie: false }),
        };
        let unit = self.metric.unit();
        let target = match (self.bound, self.relative_to) {
            (Bound::AtLeast(bound), _) => format!("≥ {bound:.2}"),
            (Bound::AtMost(bound), Some(_)) => format!("≤ {bound:.2}"),
            (Bound::AtMost(bound), None) => format!("≤ {bound:.0} {unit}"),
        };
        let verdict = measured.map_or(Verdict::NotMeasured, |measured| self.bound.verdict(measured));
        Row { title: self.title, unit, medians, target, measured, relative: self.relative_to.is_some(), verdict }
    }
}

impl Bound {
    fn verdict(self, measured: Ratio) -> Verdict {
        let short_by = match self {
            Self::AtLeast(bound) => bound - measured.value,
            Self::AtMost(bound) => measured.value - bound,
        };
        match short_by {
            by if by <= 0.0 => Verdict::Met,
            by if by <= measured.noise => Verdict::MissedWithinNoise,
            _ => Verdict::Missed,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures;

    #[test]
    fn each_row_is_ours_against_the_sidecars_of_the_run() {
        let rows = rows(&fixtures::results());
        let row = |title: &str| rows.iter().find(|row| row.title == title).unwrap();
        let http = row("HTTP/1.1 keep-alive, 32 connections");
        assert!((http.measured.unwrap().value - 1.5).abs() < 1e-9 && http.verdict == Verdict::Met, "{http:?}");
        assert_eq!(http.target, "≥ 1.45");
        let cpu = row("proxies' CPU per request, 32 connections");
        assert!((cpu.measured.unwrap().value - 0.75).abs() < 1e-9 && cpu.verdict == Verdict::Missed, "{cpu:?}");
        assert_eq!(row("bulk TCP, 1 stream").verdict, Verdict::NotMeasured);
    }

    #[test]
    fn what_is_missed_by_less_than_the_noise_is_said_so() {
        let measured = |value, noise| Ratio { value, noise, tie: false };
        assert_eq!(Bound::AtLeast(2.0).verdict(measured(1.95, 0.1)), Verdict::MissedWithinNoise);
        assert_eq!(Bound::AtLeast(2.0).verdict(measured(1.8, 0.1)), Verdict::Missed);
        assert_eq!(Bound::AtMost(0.6).verdict(measured(0.6, 0.0)), Verdict::Met);
        assert_eq!(Bound::AtMost(0.6).verdict(measured(0.65, 0.01)), Verdict::Missed);
    }
}
