//! What was found, and how a report says it. Pure.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::mode::Mode;
use crate::report::chart::{Bar, Chart, Group};
use crate::report::document::{Section, Table};
use crate::report::number;
use crate::stats::{Line, Summary};

/// The processes, in the order of the tables.
const KINDS: [&str; 3] = ["istiod-lite", "agents", "ztunnels"];

/// Everything of one build.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Found {
    mode: Mode,
    times: Vec<Time>,
    memory: Vec<Memory>,
    churn: Vec<Churn>,
}

/// How long something took to be in force.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Time {
    what: &'static str,
    /// Pods of the mesh, the server aside.
    pods: u32,
    /// Each round.
    milliseconds: Vec<f64>,
    summary: Option<Summary>,
}

/// Memory of the mesh's processes.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Memory {
    /// Pods of the mesh, the server aside.
    pub(super) pods: u32,
    /// MiB (PSS) of all processes of a kind.
    pub(super) mib: BTreeMap<&'static str, f64>,
}

/// What changes cost.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Churn {
    pub(super) what: String,
    /// How many there were.
    pub(super) changes: u32,
    pub(super) seconds: f64,
    /// CPU seconds of all processes of a kind meanwhile.
    pub(super) cpu: BTreeMap<&'static str, f64>,
}

impl Time {
    pub(super) fn new(what: &'static str, pods: u32, milliseconds: Vec<f64>) -> Self {
        let summary = Summary::of(milliseconds.iter().copied());
        Self { what, pods, milliseconds, summary }
    }
}

impl Found {
    pub(super) fn new(mode: Mode) -> Self {
        Self { mode, times: Vec::new(), memory: Vec::new(), churn: Vec::new() }
    }

    /// Adds a time and prints it.
    pub(super) fn tell(&mut self, time: Time) {
        if let Some(found) = &time.summary {
            let (median, spread) = (number(found.median), number(found.spread));
            println!("  {:<13} {:>3} pods: {}: {median} ± {spread} ms", self.mode, time.pods, time.what);
        }
        self.times.push(time);
    }

    /// Adds memory and prints it.
    pub(super) fn remember(&mut self, memory: Memory) {
        let told: Vec<String> = memory.mib.iter().map(|(kind, mib)| format!("{kind} {mib:.1} MiB")).collect();
        println!("  {:<13} {:>3} pods: {}", self.mode, memory.pods, told.join(", "));
        self.memory.push(memory);
    }

    /// Adds CPU and prints it.
    pub(super) fn burnt(&mut self, churn: Churn) {
        let told: Vec<String> = churn.cpu.iter().map(|(kind, cpu)| format!("{kind} {:.0} ms", cpu * 1e3)).collect();
        println!("  {:<13} {} ({:.1} s): CPU of {}", self.mode, churn.what, churn.seconds, told.join(", "));
        self.churn.push(churn);
    }

    fn times(&self) -> Table {
        let mut table = Table::new(["time, ms", "pods", "median", "fastest", "slowest", "rounds"]);
        for Time { what, pods, summary, .. } in &self.times {
            let Some(found) = summary else { continue };
            let median = format!("{} ± {}", number(found.median), number(found.spread));
            let count = found.count.to_string();
            table.row([(*what).to_owned(), pods.to_string(), median, number(found.min), number(found.max), count]);
        }
        table
    }

    fn memory(&self) -> Table {
        let mut table = Table::new(["memory (PSS), MiB"]);
        table.header.extend(self.memory.iter().map(|memory| format!("{} pods", memory.pods)));
        table.header.push("each pod".into());
        for kind in KINDS {
            let points: Vec<(f64, f64)> = self
                .memory
                .iter()
                .filter_map(|memory| Some((f64::from(memory.pods), *memory.mib.get(kind)?)))
                .collect();
            if points.len() != self.memory.len() {
                continue;
            }
            let cells = points.iter().map(|(_, mib)| number(*mib));
            let slope = Line::fit(&points).map_or_else(|| "–".into(), |line| format!("{:.3}", line.slope));
            table.row([name(kind)].into_iter().chain(cells).chain([slope]));
        }
        table
    }

    fn churn(&self) -> Table {
        let mut table = Table::new(["CPU", "changes", "seconds"]);
        for kind in KINDS {
            table.header.extend([format!("{}, cores", name(kind)), "ms a change".into()]);
        }
        for churn in &self.churn {
            let mut cells = vec![churn.what.clone(), churn.changes.to_string(), number(churn.seconds)];
            for kind in KINDS {
                let cpu = churn.cpu.get(kind).copied().unwrap_or(0.0);
                let each = match churn.changes {
                    0 => "–".to_owned(),
                    changes => number(cpu * 1e3 / f64::from(changes)),
                };
                cells.extend([format!("{:.3}", cpu / churn.seconds), each]);
            }
            table.row(cells);
        }
        table
    }

    fn chart(&self) -> Chart {
        let group = |time: &Time| {
            let found = time.summary?;
            let bar = Bar { mode: self.mode, value: found.median, min: found.min, max: found.max };
            Some(Group { label: format!("{}, {} pods", time.what, time.pods), bars: vec![bar] })
        };
        let groups = self.times.iter().filter_map(group).collect();
        Chart { title: "From an object to its effect".into(), unit: "ms", groups }
    }
}

/// What the kind is called where all processes of both nodes are meant.
fn name(kind: &str) -> String {
    match kind {
        "istiod-lite" => kind.to_owned(),
        both => format!("both {both}"),
    }
}

/// The part of the report.
pub(crate) fn section(found: &Found) -> Section {
    Section::new(format!("Control plane ({})", found.mode))
        .text(
            "Times run from before the object is written until a client in a pod sees the effect: a connection of its \
             own that is refused, an open one on which nothing is sent that is closed, or one that goes through HBONE. \
             Tries are 2 ms apart. Nothing has changed for 300 ms before, unless it is said: changes that follow each other \
             are held together. \"label to HBONE\" is the namespace's label on pods that run.",
        )
        .table(found.times())
        .chart(found.chart())
        .text("Pods are on node1, with a server on node2. What a pod adds is the slope through all sizes.")
        .table(found.memory())
        .table(found.churn())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::document::Block;

    fn of_all(figures: [f64; 3]) -> BTreeMap<&'static str, f64> {
        KINDS.into_iter().zip(figures).collect()
    }

    #[test]
    fn each_figure_stands_in_a_row() {
        let mut found = Found::new(Mode::Ambient);
        found.tell(Time::new("policy to a new connection refused", 2, vec![10.0, 14.0, 12.0]));
        found.remember(Memory { pods: 2, mib: of_all([8.0, 10.0, 12.0]) });
        found.remember(Memory { pods: 12, mib: of_all([9.0, 10.0, 13.0]) });
        found.burnt(Churn { what: "x".into(), changes: 100, seconds: 2.0, cpu: of_all([0.2, 0.02, 0.1]) });
        let tables: Vec<Table> = section(&found)
            .blocks
            .into_iter()
            .filter_map(|block| match block {
                Block::Table(table) => Some(table),
                _ => None,
            })
            .collect();
        let [times, memory, churn] = &tables[..] else { panic!("{tables:?}") };
        assert_eq!(times.rows[0][1..], ["2", "12.0 ± 2.00", "10.0", "14.0", "3"]);
        assert_eq!(memory.header, ["memory (PSS), MiB", "2 pods", "12 pods", "each pod"]);
        assert_eq!(memory.rows[0], ["istiod-lite", "8.00", "9.00", "0.100"]);
        assert_eq!(churn.rows[0], ["x", "100", "2.00", "0.100", "2.00", "0.010", "0.20", "0.050", "1.00"]);
        let json = serde_json::to_value(&found).unwrap();
        assert_eq!(json["times"][0]["summary"]["median"], 12.0);
        assert_eq!(json["memory"][1]["mib"]["istiod-lite"], 9.0);
    }
}
