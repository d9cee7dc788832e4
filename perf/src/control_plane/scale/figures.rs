//! What was found at scale, against what is asked of it. Pure.

use serde::Serialize;

use crate::report::document::{Section, Table};
use crate::report::number;

/// Everything.
#[derive(Debug, Clone, Default, Serialize)]
pub(crate) struct Found {
    pub(super) empty_mib: Option<f64>,
    pub(super) ready_s: Option<f64>,
    pub(super) objects_mib: Option<f64>,
    pub(super) proxies_mib: Option<f64>,
    pub(super) proxies: Option<u64>,
    pub(super) resources: Option<u64>,
    pub(super) sync_bytes: Option<u64>,
    pub(super) one_sync_ms: Option<f64>,
    pub(super) all_sync_ms: Option<f64>,
    pub(super) reached: Option<Reached>,
    pub(super) costs: Vec<Cost>,
}

/// Milliseconds from a pod's change until proxies have it, over all changes and proxies.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Reached {
    pub(super) p50: f64,
    pub(super) p99: f64,
    pub(super) max: f64,
    /// Changes that took some proxy longer than 50 ms.
    pub(super) slow: usize,
    pub(super) changes: u32,
}

/// CPU of a pod's change in a mesh of that size.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Cost {
    pub(super) pods: u32,
    pub(super) micros: f64,
    pub(super) mib: f64,
    pub(super) ready_s: f64,
}

/// A figure and its bound.
struct Row {
    what: &'static str,
    measured: Option<f64>,
    at_most: f64,
    unit: &'static str,
}

/// A change may cost so many times as much in the largest mesh as in the smallest.
const FLAT: f64 = 1.5;

impl Found {
    fn rows(&self) -> Vec<Row> {
        let row = |what, measured, at_most, unit| Row { what, measured, at_most, unit };
        let each = self.proxies.and_then(|proxies| {
            Some((self.proxies_mib? - self.objects_mib?).max(0.0) * 1024.0 / proxies.max(1) as f64)
        });
        let growth = match (self.costs.first(), self.costs.last()) {
            (Some(small), Some(large)) if small.micros > 0.0 => Some(large.micros / small.micros),
            _ => None,
        };
        vec![
            row("memory (PSS), 1 000 services and 20 000 pods", self.objects_mib, 150.0, "MiB"),
            row("the same with 200 proxies", self.proxies_mib, 200.0, "MiB"),
            row("each proxy", each, 256.0, "KiB"),
            row("a pod's change at 200 proxies, p99", self.reached.as_ref().map(|r| r.p99), 50.0, "ms"),
            row("200 proxies connect at once, all synced", self.all_sync_ms, 5000.0, "ms"),
            row("cost of a change, 50 000 pods against 1 000", growth, FLAT, "times"),
        ]
    }

    /// Prints it.
    pub(super) fn tell(&self) {
        for Row { what, measured, at_most, unit } in self.rows() {
            let measured = measured.map_or_else(|| "–".to_owned(), number);
            println!("  {what}: {measured} {unit} (at most {at_most} {unit})");
        }
        for cost in &self.costs {
            println!("  {:>6} pods: {:.0} µs of CPU a change, {:.0} MiB", cost.pods, cost.micros, cost.mib);
        }
    }

    fn table(&self) -> Table {
        let mut table = Table::new(["figure", "measured", "target", "verdict"]);
        for Row { what, measured, at_most, unit } in self.rows() {
            let verdict = match measured {
                None => "not measured",
                Some(measured) if measured <= at_most => "met",
                Some(_) => "MISSED",
            };
            let measured = measured.map_or_else(|| "–".to_owned(), |m| format!("{} {unit}", number(m)));
            table.row([what.to_owned(), measured, format!("≤ {at_most} {unit}"), verdict.to_owned()]);
        }
        table
    }

    fn costs(&self) -> Table {
        let mut table = Table::new(["pods", "CPU of a change, µs", "memory, MiB", "ready after, s"]);
        for cost in &self.costs {
            table.row([cost.pods.to_string(), number(cost.micros), number(cost.mib), number(cost.ready_s)]);
        }
        table
    }
}

/// The part of the report.
pub(crate) fn section(found: &Found) -> Section {
    let figure = |value: Option<f64>| value.map_or_else(|| "–".to_owned(), number);
    let reached = found.reached.as_ref();
    Section::new("Control plane at scale")
        .text(format!(
            "Made-up objects from an API server's stand-in, proxies over TLS on the same machine. Empty: {} MiB. A full \
             sync of {} resources ({} bytes) takes one proxy {} ms. {} lone changes of one pod reach the proxies within \
             {} ms in the median, {} ms at most; {} of them reach some proxy after more than 50 ms.",
            figure(found.empty_mib),
            found.resources.unwrap_or_default(),
            found.sync_bytes.unwrap_or_default(),
            figure(found.one_sync_ms),
            reached.map_or(0, |r| r.changes),
            figure(reached.map(|r| r.p50)),
            figure(reached.map(|r| r.max)),
            reached.map_or(0, |r| r.slow),
        ))
        .table(found.table())
        .text("CPU of istiod-lite for a pod's change, 1 000 changes at 200 a second with one proxy connected:")
        .table(found.costs())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_figure_is_held_against_its_bound() {
        let cost = |pods, micros| Cost { pods, micros, mib: 1.0, ready_s: 1.0 };
        let found = Found {
            objects_mib: Some(100.0),
            proxies_mib: Some(300.0),
            proxies: Some(200),
            costs: vec![cost(1000, 100.0), cost(50_000, 120.0)],
            ..Found::default()
        };
        let table = found.table();
        let verdicts: Vec<&str> = table.rows.iter().map(|row| row[3].as_str()).collect();
        assert_eq!(verdicts, ["met", "MISSED", "MISSED", "not measured", "not measured", "met"]);
        assert_eq!(table.rows[2][1], format!("{} KiB", number(1024.0)));
        assert_eq!(section(&found).blocks.len(), 4);
    }
}
