//! What a run costs, read from /proc: CPU of the machine and of the proxies, memory, and counters that spoil a run.

pub(crate) mod counters;
pub(crate) mod cpu;
pub(crate) mod memory;
