//! What a run costs, read from /proc: CPU of the machine and of the proxies, memory, and counters that spoil a run.

pub(crate) mod counters;
pub(crate) mod cpu;
pub(crate) mod memory;

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::Result;

use self::cpu::{Cpu, Machine};

/// How often memory is looked at while load runs: seldom enough to cost nothing.
const LOOK: Duration = Duration::from_millis(500);

/// Watches proxies from one moment to another.
#[derive(Debug)]
pub(crate) struct Watch {
    processes: Vec<PathBuf>,
    machine: Machine,
    proxies: Cpu,
    peak_pss: AtomicU64,
}

/// What was seen.
#[derive(Debug)]
pub(crate) struct Cost {
    pub(crate) machine: Cpu,
    pub(crate) proxies: Cpu,
    pub(crate) pss: u64,
    pub(crate) peak_pss: u64,
}

impl Watch {
    /// Begins to watch the processes (their folders below /proc).
    pub(crate) fn start(processes: Vec<PathBuf>) -> Result<Self> {
        let (machine, proxies) = (Machine::now()?, Cpu::of_processes(&processes));
        Ok(Self { processes, machine, proxies, peak_pss: AtomicU64::new(0) })
    }

    /// Memory of the processes now, in bytes.
    pub(crate) fn pss(&self) -> u64 {
        let pss = memory::pss(&self.processes);
        self.peak_pss.fetch_max(pss, Ordering::Relaxed);
        pss
    }

    /// Looks at the memory now and then until the work is done.
    pub(crate) async fn during<T>(&self, work: impl Future<Output = T>) -> T {
        let mut work = std::pin::pin!(work);
        loop {
            match tokio::time::timeout(LOOK, work.as_mut()).await {
                Ok(done) => return done,
                Err(_) => _ = self.pss(),
            }
        }
    }

    /// What it was until now.
    pub(crate) fn stop(self) -> Result<Cost> {
        let machine = Machine::now()?.since(&self.machine);
        let proxies = Cpu::of_processes(&self.processes) - self.proxies;
        let pss = self.pss();
        Ok(Cost { machine, proxies, pss, peak_pss: self.peak_pss.into_inner() })
    }
}
