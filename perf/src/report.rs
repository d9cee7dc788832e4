//! Results as a person reads them. Pure: results in, text out.

pub(crate) mod chart;
pub(crate) mod document;
mod html;
mod text;

pub(crate) use self::html::escape;

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use serde_json::json;

use self::chart::{Bar, Chart, Group};
use self::document::{Section, Table};
use crate::bed;
use crate::control_plane;
use crate::mode::Mode;
use crate::pods::{NAME, SIZES, Series};
use crate::results::{Metric, Results, WorkResult};
use crate::stats::Summary;
use crate::targets::{self, Row};
use crate::work::{WORKS, extra};

const TITLE: &str = "What Aquifer costs";

/// The names that options take.
pub(crate) fn list() -> String {
    let line = |name: &str, title: &str| format!("  {name:<20} {title}\n");
    let works: String = WORKS.iter().map(|work| line(work.id, work.title)).collect();
    let modes: String = Mode::ALL.iter().map(|mode| line(mode.name(), mode.title())).collect();
    let others = line(NAME, "memory by number of pods on a node")
        + &line(control_plane::NAME, control_plane::TITLE)
        + &line(control_plane::scale::NAME, control_plane::scale::TITLE);
    format!("works:\n{works}{others}modes:\n{modes}")
}

/// For the terminal: the targets, and what each work came to.
pub(crate) fn terminal(results: &Results) -> String {
    text::terminal(&sections(results))
}

/// Writes results.json, report.md and report.html.
pub(crate) fn write(results: &Results, folder: &Path) -> Result<()> {
    let sections = sections(results);
    let json = json!({ "results": results, "targets": targets::rows(results), "summaries": summaries(results) });
    fs::create_dir_all(folder).with_context(|| format!("making {}", folder.display()))?;
    for (name, text) in [
        ("results.json", format!("{json:#}\n")),
        ("report.md", text::markdown(TITLE, &sections)),
        ("report.html", html::page(TITLE, &results.modes, &sections)),
    ] {
        let path = folder.join(name);
        fs::write(&path, text).with_context(|| format!("writing {}", path.display()))?;
    }
    Ok(())
}

fn sections(results: &Results) -> Vec<Section> {
    let mut all = vec![target_section(results), mode_section(results)];
    all.push(work_section(results));
    all.push(latency_section(results));
    all.push(cpu_section(results));
    all.push(memory_section(results));
    all.extend(results.sections.iter().cloned());
    all.push(failure_section(results));
    all.retain(|section| !section.blocks.is_empty());
    all.push(about(results));
    all
}

fn target_section(results: &Results) -> Section {
    let rows: Vec<Row> = targets::rows(results).into_iter().filter(|row| row.measured.is_some()).collect();
    let mut table = Table::new(["target"]);
    table.header.extend(results.modes.iter().map(|mode| mode.name().to_owned()));
    table.header.extend(["ours", "target", "verdict"].map(str::to_owned));
    for row in &rows {
        let mut cells = vec![format!("{}, {}", row.title, row.unit)];
        cells.extend(results.modes.iter().map(|mode| {
            let found = row.medians.iter().find(|(of, _)| of == mode);
            found.map_or_else(dash, |(_, summary)| with_spread(summary))
        }));
        let measured = row.measured.as_ref();
        cells.push(measured.map_or_else(dash, |measured| {
            let tie = if measured.tie { " (tie)" } else { "" };
            match row.relative {
                true => format!("{:.2} ± {:.2}{tie}", measured.value, measured.noise),
                false => format!("{} {}", number(measured.value), row.unit),
            }
        }));
        cells.extend([row.target.clone(), row.verdict.text().to_owned()]);
        table.row(cells);
    }
    let section = Section::new("Targets").table(table);
    match rsa(results) {
        Some(note) => section.text(note),
        None => section,
    }
}

/// How the row of new connections looks with the keys that Istio gives its sidecars by default.
fn rsa(results: &Results) -> Option<String> {
    let sidecars = results.work("connect-rsa")?.summary(Mode::SidecarTcp, Metric::Rate)?;
    let ours = results.work("connect")?.summary(Mode::Ambient, Metric::Rate)?.relative_to(&sidecars)?;
    Some(format!(
        "Note: the sidecars' keys are ECDSA P-256. With RSA 2048, Istio's default, they open {} new connections a \
         second, and ours is {:.2} ± {:.2} times that.",
        with_spread(&sidecars),
        ours.value,
        ours.noise
    ))
}

/// What was measured, and what could not be: a waypoint's figures belong here too.
fn mode_section(results: &Results) -> Section {
    let mut table = Table::new(["mode", "what it is", "figures"]);
    for mode in Mode::ALL {
        let figures = match results.not_available.get(&mode) {
            Some(why) => why.clone(),
            None if results.modes.contains(&mode) => "in all tables".into(),
            None if mode == Mode::Waypoint => bed::NO_WAYPOINT.into(),
            None => continue,
        };
        table.row([mode.name().to_owned(), mode.title().to_owned(), figures]);
    }
    Section::new("Modes").table(table)
}

fn work_section(results: &Results) -> Section {
    let table = by_mode(results, "work", |work| vec![(work.title.to_owned(), work.primary)]);
    let mut section = Section::new("Works: median ± spread of the rounds").table(table);
    let charts = [
        ("Throughput", Metric::Gbits),
        ("Requests", Metric::Rate),
        ("p99", Metric::P99),
        ("Memory per idle connection", extra::PER_CONNECTION),
    ];
    for (title, metric) in charts {
        let works = results.works.iter().filter(|work| work.primary == metric);
        section = section.chart(chart(results, title, works, metric));
    }
    section
}

fn latency_section(results: &Results) -> Section {
    let with_latency = |work: &WorkResult| matches!(work.primary, Metric::Rate | Metric::P99);
    let mut table = by_mode(results, "latency", |work| match with_latency(work) {
        true => [("p50", Metric::P50), ("p90", Metric::P90), ("p99", Metric::P99)]
            .map(|(name, metric)| (format!("{}, {name}", work.title), metric))
            .to_vec(),
        false => Vec::new(),
    });
    // What a mesh adds is what a person asks for.
    for work in results.works.iter().filter(|work| work.id.starts_with("open")) {
        for (name, metric) in [("p50", Metric::P50), ("p99", Metric::P99)] {
            let Some(plain) = work.summary(Mode::None, metric) else { continue };
            let mut cells = vec![format!("{}, {name} added, µs", work.title)];
            cells.extend(results.modes.iter().map(|mode| match work.summary(*mode, metric) {
                Some(found) if *mode != Mode::None => {
                    let tie = if found.ties_with(&plain) { " (tie)" } else { "" };
                    format!("{}{tie}", number(found.median - plain.median))
                }
                _ => dash(),
            }));
            table.row(cells);
        }
    }
    let works = results.works.iter().filter(|work| with_latency(work));
    Section::new("Latency").table(table).chart(chart(results, "p99 of requests", works, Metric::P99))
}

fn cpu_section(results: &Results) -> Section {
    let table = by_mode(results, "CPU", |work| {
        let (machine, proxies, per) = match work.primary {
            Metric::Gbits => (Metric::MachinePerGib, Metric::ProxiesPerGib, "GiB"),
            Metric::Rate => (Metric::MachinePerRequest, Metric::ProxiesPerRequest, "request"),
            _ if work.id.starts_with("open") => (Metric::MachinePerRequest, Metric::ProxiesPerRequest, "request"),
            _ => return Vec::new(),
        };
        let mut rows = vec![
            (format!("{}, machine per {per}", work.title), machine),
            (format!("{}, proxies per {per}", work.title), proxies),
        ];
        if per == "request" {
            rows.extend([
                (format!("{}, machine: user", work.title), Metric::UserPerRequest),
                (format!("{}, machine: system", work.title), Metric::SystemPerRequest),
                (format!("{}, machine: softirq", work.title), Metric::SoftirqPerRequest),
            ]);
        }
        rows
    });
    let section = Section::new("CPU")
        .text(format!(
            "The machine's figure is all that was not idle: client, server, proxies and the kernel's network stack, \
             whose work hides from per-process counters. {:.2} cores were in use with all labs up and nothing to do, \
             which counts most where requests are few.",
            results.background_cores
        ))
        .table(table);
    let rates = results.works.iter().filter(|work| work.primary == Metric::Rate);
    let section = section.chart(chart(results, "Machine per request", rates, Metric::MachinePerRequest));
    let bulk = results.works.iter().filter(|work| work.primary == Metric::Gbits);
    let section = section.chart(chart(results, "Machine per GiB", bulk, Metric::MachinePerGib));
    if section.blocks.len() > 1 { section } else { Section::default() }
}

fn memory_section(results: &Results) -> Section {
    let table = by_mode(results, "memory", |work| {
        let rows: &[(&str, Metric)] = match work.id {
            "memory" => &[
                ("proxies of client and server, idle", extra::IDLE),
                ("most during 512 connections", extra::PEAK),
                ("right after them", extra::AFTER),
            ],
            "idle1k" | "idle10k" => &[
                ("proxies, both ends, per connection", extra::PER_CONNECTION),
                ("kernel's TCP memory, whole machine, per connection", extra::SOCKETS_PER_CONNECTION),
            ],
            "workloads10k" | "workloads50k" => &[("a node's proxy, per 10 000", extra::PER_WORKLOADS)],
            _ => return Vec::new(),
        };
        let prefix = if work.id == "memory" { String::new() } else { format!("{}: ", work.title) };
        rows.iter().map(|(title, metric)| (format!("{prefix}{title}"), *metric)).collect()
    });
    let mut section = Section::new("Memory (PSS)").table(table);
    if !results.pods.is_empty() {
        section = section
            .text("By the number of pods on a node: measured, and the straight line through it at other sizes.")
            .table(extrapolated(&results.pods))
            .chart(extrapolated_chart(&results.pods));
    }
    section
}

/// The table that articles print: a node's memory by its pods.
fn extrapolated(series: &[Series]) -> Table {
    let mut table = Table::new(["proxies of a node, MiB", "measured", "at no pod", "each pod"]);
    table.header.extend(SIZES.map(|size| format!("{size} pods")));
    for series in series {
        let Some(line) = series.line() else { continue };
        let measured: Vec<String> =
            series.points.iter().map(|(pods, mib)| format!("{pods:.0}: {}", number(*mib))).collect();
        let mut cells = vec![format!("{}: {}", series.mode, series.what), measured.join(", ")];
        cells.extend([number(line.base), format!("{:.3}", line.slope)]);
        cells.extend(SIZES.map(|size| number(line.at(f64::from(size)))));
        table.row(cells);
    }
    table
}

fn extrapolated_chart(series: &[Series]) -> Chart {
    let group = |size: u32| {
        let bar = |series: &Series| {
            let value = series.line()?.at(f64::from(size)).max(0.0);
            Some(Bar { mode: series.mode, value, min: value, max: value })
        };
        Group { label: format!("{size} pods"), bars: series.iter().filter_map(bar).collect() }
    };
    Chart { title: "Proxies of a node by its pods".into(), unit: "MiB", groups: SIZES.map(group).to_vec() }
}

fn failure_section(results: &Results) -> Section {
    let lines: Vec<&String> = results.failures.iter().collect();
    lines.into_iter().fold(Section::new("Failed runs"), |section, line| section.text(line.clone()))
}

fn about(results: &Results) -> Section {
    let section = Section::new("How it was measured")
        .text(format!("Command: {}", results.command))
        .text(format!("Machine: {}", results.machine.describe()))
        .text(format!("Programs: {}", results.machine.programs.join("; ")))
        .text(format!("Alike in every mode: {}.", results.settings.join("; ")));
    section
        .text(
            "Spread is the median absolute deviation (scaled by 1.48) of five and more rounds, half the range of fewer. \
             A difference within the sum of both spreads is called a tie.",
        )
        .text(format!("{:.0} s in all.", results.seconds))
}

/// A row for each work and metric that `rows` names, a column for each mode. Rows without figures are left out.
fn by_mode(results: &Results, what: &str, rows: impl Fn(&WorkResult) -> Vec<(String, Metric)>) -> Table {
    let mut table = Table::new([what]);
    table.header.extend(results.modes.iter().map(|mode| mode.name().to_owned()));
    for work in &results.works {
        for (title, metric) in rows(work) {
            let found: Vec<Option<Summary>> = results.modes.iter().map(|mode| work.summary(*mode, metric)).collect();
            if found.iter().any(Option::is_some) {
                let cells = found.iter().map(|summary| summary.as_ref().map_or_else(dash, with_spread));
                table.row([format!("{title}, {}", metric.unit())].into_iter().chain(cells));
            }
        }
    }
    table
}

fn chart<'a>(results: &Results, title: &str, works: impl Iterator<Item = &'a WorkResult>, metric: Metric) -> Chart {
    let group = |work: &WorkResult| {
        let bar = |mode: &Mode| {
            let found = work.summary(*mode, metric)?;
            Some(Bar { mode: *mode, value: found.median, min: found.min, max: found.max })
        };
        let bars: Vec<Bar> = results.modes.iter().filter_map(bar).collect();
        (!bars.is_empty()).then(|| Group { label: work.title.to_owned(), bars })
    };
    Chart { title: title.to_owned(), unit: metric.unit(), groups: works.filter_map(group).collect() }
}

/// Every summary that a report may want, for other programs.
fn summaries(results: &Results) -> serde_json::Value {
    let of_work = |work: &WorkResult| {
        let modes: serde_json::Map<String, serde_json::Value> = work
            .samples
            .keys()
            .map(|mode| {
                let metrics: serde_json::Map<String, serde_json::Value> = Metric::ALL
                    .iter()
                    .filter_map(|metric| Some((metric.name(), json!(work.summary(*mode, *metric)?))))
                    .collect();
                (mode.to_string(), metrics.into())
            })
            .collect();
        (work.id.to_owned(), modes.into())
    };
    results.works.iter().map(of_work).collect::<serde_json::Map<_, _>>().into()
}

fn with_spread(summary: &Summary) -> String {
    format!("{} ± {}", number(summary.median), number(summary.spread))
}

fn dash() -> String {
    "–".to_owned()
}

/// Three figures that mean something, thousands apart.
pub(crate) fn number(value: f64) -> String {
    let digits = match value.abs() {
        value if value >= 100.0 => 0,
        value if value >= 10.0 => 1,
        _ => 2,
    };
    let text = format!("{value:.digits$}");
    let (whole, rest) = text.split_at(text.find('.').unwrap_or(text.len()));
    let (sign, whole) = whole.split_at(usize::from(whole.starts_with('-')));
    let mut grouped = String::new();
    for (index, digit) in whole.chars().enumerate() {
        if index > 0 && (whole.len() - index).is_multiple_of(3) {
            grouped.push(' ');
        }
        grouped.push(digit);
    }
    format!("{sign}{grouped}{rest}")
}

#[cfg(test)]
mod tests;
