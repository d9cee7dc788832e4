//! `perf script`'s samples, as stacks with counts by component.

use std::collections::{BTreeMap, BTreeSet};

/// Frames from the outermost to the innermost.
pub(super) type Stack = Vec<String>;
/// How often each stack was seen.
pub(super) type Stacks = BTreeMap<Stack, u64>;

/// Marks a frame of the kernel.
pub(super) const KERNEL: &str = " [k]";
/// Kernel threads and interrupts that came while a core was idle.
const NOBODY: &str = "kernel";
/// What else ran: each less than a graph is worth.
const OTHERS: &str = "others";
/// The part of all samples from which on a component stands for itself.
const WORTH: f64 = 0.005;
/// Begins what perf prints of an event that is no sample.
const EVENT: &str = "PERF_RECORD_";
/// The kernel's half of the addresses.
const KERNEL_ADDRESSES: u64 = 1 << 63;

/// Samples by component.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Folded(BTreeMap<String, Stacks>);

/// Folds what `perf script -F comm,pid,tid,ip,sym --show-task-events` printed. `program` names the file that a process
/// runs, where it still does; else it has the name that it began with, which its threads may not share.
pub(super) fn fold(text: &str, mut program: impl FnMut(u32) -> Option<String>) -> Folded {
    let began = text.lines().filter_map(began).collect::<BTreeMap<_, _>>();
    let mut folded = Folded::default();
    for sample in text.split("\n\n") {
        let mut lines = sample.lines().filter(|line| !line.trim().is_empty() && !line.contains(EVENT));
        let Some((comm, pid)) = lines.next().and_then(head) else { continue };
        let mut stack: Stack = lines.filter_map(frame).collect();
        stack.reverse();
        let idle = pid == 0;
        if idle && !stack.iter().any(|frame| frame.contains("softirq") || frame.contains("sysvec")) {
            continue;
        }
        let component = match program(pid).or_else(|| began.get(&pid).map(|name| (*name).to_owned())) {
            Some(name) => name,
            None if idle || stack.iter().all(|frame| frame.ends_with(KERNEL)) => NOBODY.to_owned(),
            None => comm,
        };
        *folded.0.entry(component).or_default().entry(stack).or_default() += 1;
    }
    folded.with_others()
}

/// The name that a process got as it began to run a program: `… PERF_RECORD_COMM exec: name:pid/tid`.
fn began(line: &str) -> Option<(u32, &str)> {
    let (name, ids) = line.split_once("PERF_RECORD_COMM exec: ")?.1.rsplit_once(':')?;
    Some((ids.split('/').next()?.parse().ok()?, name))
}

/// `comm pid/tid`; the name may hold blanks.
fn head(line: &str) -> Option<(String, u32)> {
    let (comm, ids) = line.trim().rsplit_once(char::is_whitespace)?;
    Some((comm.trim().to_owned(), ids.split('/').next()?.parse().ok()?))
}

/// `address symbol`, with blanks in the symbol.
fn frame(line: &str) -> Option<String> {
    let (address, symbol) = line.trim().split_once(' ')?;
    let kernel = u64::from_str_radix(address, 16).ok()? >= KERNEL_ADDRESSES;
    let symbol = if symbol.is_empty() { "[unknown]" } else { symbol };
    Some(format!("{}{}", short(symbol), if kernel { KERNEL } else { "" }))
}

/// Without the hash of Rust's mangling, which says nothing, and without what separates frames in folded stacks.
fn short(symbol: &str) -> String {
    let plain = match symbol.rsplit_once("::h") {
        Some((name, hash)) if hash.len() == 16 && hash.bytes().all(|byte| byte.is_ascii_hexdigit()) => name,
        _ => symbol,
    };
    plain.replace(';', ":")
}

impl Folded {
    /// The same, where what ran hardly at all is one component.
    fn with_others(self) -> Self {
        let all = self.0.values().map(total).sum::<u64>() as f64;
        let mut merged = Self::default();
        for (component, stacks) in self.0 {
            let name = if total(&stacks) as f64 >= WORTH * all { component } else { OTHERS.to_owned() };
            let into = merged.0.entry(name).or_default();
            for (stack, count) in stacks {
                *into.entry(stack).or_default() += count;
            }
        }
        merged
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn components(&self) -> impl Iterator<Item = (&str, &Stacks)> {
        self.0.iter().map(|(name, stacks)| (&**name, stacks))
    }

    /// The part of all samples that each component has, the largest first.
    pub(super) fn shares(&self) -> Vec<(&str, f64)> {
        let all = self.0.values().map(total).sum::<u64>().max(1) as f64;
        let mut shares: Vec<_> = self.components().map(|(name, stacks)| (name, total(stacks) as f64 / all)).collect();
        shares.sort_by(|(_, a), (_, b)| b.total_cmp(a));
        shares
    }

    /// The part of a component's samples that were taken in the kernel.
    pub(super) fn in_kernel(&self, component: &str) -> f64 {
        let Some(stacks) = self.0.get(component) else { return 0.0 };
        let kernel = stacks.iter().filter(|(stack, _)| stack.last().is_some_and(|frame| frame.ends_with(KERNEL)));
        kernel.map(|(_, count)| count).sum::<u64>() as f64 / total(stacks).max(1) as f64
    }

    /// A component's functions: the part of its samples in which each was the innermost, and in which it was anywhere.
    /// The largest of the first come first.
    pub(super) fn functions(&self, component: &str) -> Vec<(String, f64, f64)> {
        let Some(stacks) = self.0.get(component) else { return Vec::new() };
        let mut counts: BTreeMap<&str, (u64, u64)> = BTreeMap::new();
        for (stack, count) in stacks {
            for frame in stack.iter().map(String::as_str).collect::<BTreeSet<_>>() {
                counts.entry(frame).or_default().1 += count;
            }
            if let Some(innermost) = stack.last() {
                counts.entry(innermost).or_default().0 += count;
            }
        }
        let all = total(stacks).max(1) as f64;
        let share =
            |(name, (alone, whole)): (&str, (u64, u64))| (name.to_owned(), alone as f64 / all, whole as f64 / all);
        let mut functions: Vec<_> = counts.into_iter().map(share).collect();
        functions.sort_by(|(_, a, _), (_, b, _)| b.total_cmp(a));
        functions
    }
}

/// Samples of all stacks.
pub(super) fn total(stacks: &Stacks) -> u64 {
    stacks.values().sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "\
worker-0   12/13   
\tffffffff81a00000 tcp_sendmsg
\t    55d0c0de0010 h2::proto::Connection<T>::poll::h0123456789abcdef
\t    55d0c0de0000 main

worker-1   12/14   
\t    55d0c0de0010 h2::proto::Connection<T>::poll::h0123456789abcdef
\t    55d0c0de0000 main

swapper     0/0   
\tffffffff81b00000 pv_native_safe_halt

swapper     0/0   
\tffffffff81c00000 net_rx_action
\tffffffff81c00010 __do_softirq

as it began  99/99   PERF_RECORD_COMM exec: gone by now:99/99
a thread  99/100  
\t          401000 [unknown]

nobody knows  98/98   
\t          401000 [unknown]
";

    fn folded() -> Folded {
        fold(TEXT, |pid| (pid == 12).then(|| "ztunnel".to_owned()))
    }

    #[test]
    fn threads_of_a_program_are_one_component_and_idling_is_none() {
        let folded = folded();
        assert_eq!(
            folded.components().map(|(name, _)| name).collect::<Vec<_>>(),
            ["gone by now", "kernel", "nobody knows", "ztunnel"]
        );
        let (_, stacks) = folded.components().last().unwrap();
        let send = ["main", "h2::proto::Connection<T>::poll", "tcp_sendmsg [k]"].map(str::to_owned).to_vec();
        assert_eq!((stacks.len(), stacks[&send]), (2, 1));
        assert_eq!(folded.shares()[0], ("ztunnel", 0.4));
        assert_eq!(folded.in_kernel("ztunnel"), 0.5);
    }

    #[test]
    fn functions_count_alone_and_with_what_they_call() {
        let functions = folded().functions("ztunnel");
        let of = |name: &str| functions.iter().find(|(function, ..)| function == name).map(|(_, a, w)| (*a, *w));
        assert_eq!(of("main"), Some((0.0, 1.0)));
        assert_eq!(of("h2::proto::Connection<T>::poll"), Some((0.5, 1.0)));
        assert_eq!(of("tcp_sendmsg [k]"), Some((0.5, 0.5)));
        assert!(folded().functions("envoy").is_empty());
    }

    #[test]
    fn what_hardly_ran_is_one_component() {
        let sample = |name: &str| format!("{name}  1/1  \n\t 401000 main\n\n");
        let folded = fold(&(sample("much").repeat(500) + &sample("little") + &sample("less")), |_| None);
        let count = |(name, stacks)| (name, total(stacks));
        assert_eq!(folded.components().map(count).collect::<Vec<_>>(), [("much", 500), ("others", 2)]);
    }

    #[test]
    fn what_is_no_sample_is_passed_over() {
        assert!(fold("", |_| None).is_empty());
        assert!(fold("nonsense\n\nmore of it\n", |_| None).is_empty());
    }
}
