//! What the figures were measured on.

use std::fs;
use std::process::Command;

use serde::Serialize;

/// The machine and the programs.
#[derive(Debug, Clone, Default, Serialize)]
pub(crate) struct Machine {
    pub(crate) cpu: String,
    pub(crate) cores: usize,
    pub(crate) memory_gib: f64,
    pub(crate) kernel: String,
    /// In UTC.
    pub(crate) date: String,
    /// The first line that each program says of its version.
    pub(crate) programs: Vec<String>,
}

impl Machine {
    /// This one.
    pub(crate) fn this() -> Self {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let programs = [&["wrk", "-v"][..], &["iperf3", "--version"], &["nginx", "-v"]];
        Self {
            cpu: field(&read("/proc/cpuinfo"), "model name").unwrap_or_else(|| "unknown CPU".into()),
            cores: std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
            memory_gib: field(&read("/proc/meminfo"), "MemTotal").and_then(|text| kib(&text)).unwrap_or(0.0)
                / 1048576.0,
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            date: said(&["date", "-u", "+%Y-%m-%d %H:%M"]).unwrap_or_default(),
            programs: programs.into_iter().filter_map(said).collect(),
        }
    }

    /// As one line.
    pub(crate) fn describe(&self) -> String {
        format!(
            "{}, {} cores, {:.0} GiB, Linux {}, {} UTC",
            self.cpu, self.cores, self.memory_gib, self.kernel, self.date
        )
    }
}

/// The first line that a program prints, wherever it prints it.
fn said(command: &[&str]) -> Option<String> {
    let output = Command::new(command[0]).args(&command[1..]).output().ok()?;
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text);
    text.lines().map(str::trim).find(|line| !line.is_empty()).map(str::to_owned)
}

/// The value of a `name : value` line.
fn field(text: &str, name: &str) -> Option<String> {
    let line = text.lines().find(|line| line.starts_with(name))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}

fn kib(text: &str) -> Option<f64> {
    text.strip_suffix("kB")?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_of_proc() {
        let text = "processor\t: 0\nmodel name\t: A CPU @ 2 GHz\n";
        assert_eq!(field(text, "model name").as_deref(), Some("A CPU @ 2 GHz"));
        assert_eq!(field(text, "flags"), None);
        assert_eq!(kib("1048576 kB"), Some(1_048_576.0));
    }
}
