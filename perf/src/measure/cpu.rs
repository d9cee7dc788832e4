//! CPU time: the whole machine's, since kernel time hides from per-process counters, and that of single processes.

use std::fs;
use std::ops::Sub;
use std::path::PathBuf;
use std::time::Instant;

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

/// The machine's CPU time at a moment, all in seconds since it was started.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Machine {
    counted: Cpu,
    /// Idle, waiting for disks, or taken by the hypervisor.
    not_ours: f64,
    cores: f64,
    at: Instant,
}

impl Machine {
    /// As it stands.
    pub(crate) fn now() -> Result<Self> {
        let text = fs::read_to_string("/proc/stat").context("reading /proc/stat")?;
        Self::parse(&text, ticks(), Instant::now()).context("/proc/stat begins oddly")
    }

    /// What was used since `before`. The kernel counts work by what a timer finds running, which misses short bursts,
    /// but idle time to the nanosecond: so the sum is what was not idle, shared out as the timer saw it.
    pub(crate) fn since(&self, before: &Self) -> Cpu {
        let counted = self.counted - before.counted;
        let all = (self.at - before.at).as_secs_f64() * self.cores;
        let busy = (all - (self.not_ours - before.not_ours)).max(0.0);
        let total = counted.total();
        if total <= 0.0 {
            return Cpu { user: 0.0, system: busy, softirq: 0.0 };
        }
        let scale = busy / total;
        Cpu { user: counted.user * scale, system: counted.system * scale, softirq: counted.softirq * scale }
    }

    /// The lines of /proc/stat (proc_stat(5)): user nice system idle iowait irq softirq steal.
    fn parse(text: &str, ticks: f64, at: Instant) -> Option<Self> {
        let cores = text.lines().skip(1).take_while(|line| line.starts_with("cpu")).count() as f64;
        let all = text.lines().next()?.strip_prefix("cpu ")?;
        let fields: Vec<f64> = all.split_whitespace().map_while(number).collect();
        let [user, nice, system, idle, iowait, irq, softirq, steal, ..] = fields[..] else { return None };
        let counted = Cpu { user: (user + nice) / ticks, system: system / ticks, softirq: (irq + softirq) / ticks };
        Some(Self { counted, not_ours: (idle + iowait + steal) / ticks, cores, at })
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

    fn machine(line: &str, at: Instant) -> Machine {
        Machine::parse(&format!("cpu  {line}\ncpu0 1 1\ncpu1 1 1\nintr 5\n"), 100.0, at).unwrap()
    }

    #[test]
    fn bursts_that_the_timer_missed_are_counted() {
        let begin = Instant::now();
        let before = machine("1000 0 300 9000 40 0 500 7 0 0", begin);
        assert_eq!((before.counted.user, before.counted.softirq, before.cores), (10.0, 5.0, 2.0));
        // Two seconds of two cores, three of which were idle: one was used. The timer saw half of it.
        let after = machine("1020 0 320 9300 40 0 510 7 0 0", begin + std::time::Duration::from_secs(2));
        let used = after.since(&before);
        assert!((used.total() - 1.0).abs() < 1e-9, "{used:?}");
        assert!((used.user - 0.4).abs() < 1e-9 && (used.softirq - 0.2).abs() < 1e-9, "{used:?}");
        assert!(Machine::parse("intr 1", 100.0, begin).is_none());
    }

    #[test]
    fn a_process_with_an_odd_name() {
        let stat = "12 (a b) c) S 1 12 12 0 -1 4194304 100 0 0 0 310 110 0 0 20 0 3 0 5 6 7";
        assert_eq!(process(stat, 100.0), Some(Cpu { user: 3.1, system: 1.1, softirq: 0.0 }));
    }

    #[test]
    fn those_of_this_machine_are_read() {
        assert!(Machine::now().unwrap().counted.total() > 0.0);
        assert!(Cpu::of_processes(&["/proc/self".into(), "/proc/gone".into()]).total() >= 0.0);
    }
}
