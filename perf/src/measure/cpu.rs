//! CPU time: the whole machine's, since kernel time hides from per-process counters, and that of single processes.

use std::fs;
use std::ops::Sub;
use std::path::PathBuf;

use anyhow::{Context, Result};
use nix::unistd::{SysconfVar, sysconf};
use serde::Serialize;

/// CPU time in seconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub(crate) struct Cpu {
    /// User mode.
    pub(crate) user: f64,
    /// System calls and kernel threads.
    pub(crate) system: f64,
    /// Interrupts, mostly what the network stack does with packets.
    pub(crate) softirq: f64,
}

impl Cpu {
    /// All of it.
    pub(crate) fn total(&self) -> f64 {
        self.user + self.system + self.softirq
    }

    /// The machine's since it was started.
    pub(crate) fn of_machine() -> Result<Self> {
        let text = fs::read_to_string("/proc/stat").context("reading /proc/stat")?;
        machine(&text, ticks()).context("/proc/stat begins oddly")
    }

    /// The processes' (their folders below /proc), all threads, since their start. One that has ended counts no more.
    pub(crate) fn of_processes(processes: &[PathBuf]) -> Self {
        let stats = processes.iter().filter_map(|process| fs::read_to_string(process.join("stat")).ok());
        stats.filter_map(|stat| process(&stat, ticks())).fold(Self::default(), |sum, cpu| Self {
            user: sum.user + cpu.user,
            system: sum.system + cpu.system,
            softirq: 0.0,
        })
    }
}

impl Sub for Cpu {
    type Output = Self;

    fn sub(self, before: Self) -> Self {
        Self {
            user: self.user - before.user,
            system: self.system - before.system,
            softirq: self.softirq - before.softirq,
        }
    }
}

/// Clock ticks a second.
fn ticks() -> f64 {
    sysconf(SysconfVar::CLK_TCK).ok().flatten().unwrap_or(100) as f64
}

/// The first line of /proc/stat (proc_stat(5)): user nice system idle iowait irq softirq steal.
fn machine(text: &str, ticks: f64) -> Option<Cpu> {
    let fields: Vec<f64> = text.lines().next()?.strip_prefix("cpu ")?.split_whitespace().map_while(number).collect();
    let [user, nice, system, _idle, _iowait, irq, softirq, ..] = fields[..] else { return None };
    Some(Cpu { user: (user + nice) / ticks, system: system / ticks, softirq: (irq + softirq) / ticks })
}

/// Fields 14 and 15 of proc_pid_stat(5); the name before them may hold blanks.
fn process(stat: &str, ticks: f64) -> Option<Cpu> {
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(11).map_while(number);
    Some(Cpu { user: fields.next()? / ticks, system: fields.next()? / ticks, softirq: 0.0 })
}

fn number(text: &str) -> Option<f64> {
    text.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_machine_s_line() {
        let text = "cpu  1000 20 300 9000 40 10 500 7 0 0\ncpu0 1 1 1 1 1 1 1 1 0 0\n";
        let cpu = machine(text, 100.0).unwrap();
        assert_eq!((cpu.user, cpu.system, cpu.softirq), (10.2, 3.0, 5.1));
        assert!((cpu.total() - 18.3).abs() < 1e-9);
        assert_eq!(machine("intr 1", 100.0), None);
    }

    #[test]
    fn a_process_with_an_odd_name() {
        let stat = "12 (a b) c) S 1 12 12 0 -1 4194304 100 0 0 0 310 110 0 0 20 0 3 0 5 6 7";
        assert_eq!(process(stat, 100.0), Some(Cpu { user: 3.1, system: 1.1, softirq: 0.0 }));
    }

    #[test]
    fn those_of_this_machine_are_read() {
        assert!(Cpu::of_machine().unwrap().total() > 0.0);
        assert!(Cpu::of_processes(&["/proc/self".into(), "/proc/gone".into()]).total() >= 0.0);
    }
}
