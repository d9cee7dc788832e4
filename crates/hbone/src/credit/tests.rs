use super::*;
use proptest::prelude::*;

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;

fn windows() -> Windows {
    Windows::default().legal()
}

fn ledger(budget: &Budget) -> (Ledger, Instant) {
    let now = Instant::now();
    (Ledger::new(windows(), budget.clone(), now), now)
}

/// What a connection does with its ledger at each step, with a peer that acknowledges at once.
fn settle(ledger: &mut Ledger, now: Instant) {
    if let Some(window) = ledger.window_due(now) {
        ledger.window_told(window, now);
        ledger.window_heard();
    }
    ledger.target_due();
}

/// A stream moves so much that its window grows, if it may.
fn bulk(ledger: &mut Ledger, stream: u32, now: Instant) {
    let bytes = ledger.window() as usize * 4;
    ledger.consumed(stream, bytes, || 0, || now);
    settle(ledger, now);
}

#[test]
fn starts_at_a_quarter_mib_and_twice_that_for_the_connection() {
    let budget = Budget::default();
    let (ledger, _) = ledger(&budget);
    assert_eq!((ledger.window(), ledger.target()), (256 << 10, 512 << 10));
    assert_eq!(budget.used(), 512 * KIB);
    drop(ledger);
    assert_eq!(budget.used(), 0);
}

#[test]
fn a_bulk_stream_widens_the_window_step_by_step() {
    let (mut ledger, mut now) = ledger(&Budget::default());
    ledger.opened(1, now);
    let mut seen = vec![];
    for _ in 0..8 {
        now += Duration::from_millis(150);
        bulk(&mut ledger, 1, now);
        seen.push(u64::from(ledger.window()) / KIB);
    }
    assert_eq!(seen, [512, 1024, 2048, 4096, 4096, 4096, 4096, 4096]);
    assert_eq!(u64::from(ledger.target()), 8 * MIB, "for the stream and for one more");
    // Idle again: the next starts small.
    ledger.closed(1);
    now += Duration::from_secs(2);
    settle(&mut ledger, now);
    assert_eq!((u64::from(ledger.window()), u64::from(ledger.target())), (256 * KIB, 512 * KIB));
}

#[test]
fn only_use_that_a_wider_window_would_help_counts() {
    for (what, held, every, grows) in [
        ("fast, and the reader keeps up", 0, 100, true),
        ("a reader that lags behind", 200 << 10, 100, false),
        ("a trickle", 0, 2000, false),
        ("too soon after the last step", 0, 10, false),
    ] {
        let (mut ledger, mut now) = ledger(&Budget::default());
        ledger.opened(1, now);
        now += Duration::from_millis(every);
        ledger.consumed(1, 1 << 20, || held, || now);
        settle(&mut ledger, now);
        assert_eq!(ledger.window() > 256 << 10, grows, "{what}");
    }
}

#[test]
fn many_streams_share() {
    let (mut ledger, now) = ledger(&Budget::default());
    let mut seen = vec![];
    for i in 0..200 {
        ledger.opened(i, now);
        settle(&mut ledger, now);
        if [1, 8, 9, 17, 33, 65, 129, 200].contains(&(i + 1)) {
            seen.push((i + 1, u64::from(ledger.window()) / KIB));
        }
    }
    assert_eq!(seen, [(1, 256), (8, 256), (9, 128), (17, 64), (33, 32), (65, 16), (129, 8), (200, 8)]);
    // All of them stalled: there is room for one more still.
    assert!(ledger.allowed() + u64::from(ledger.window()) <= u64::from(ledger.target()));
    assert!(u64::from(ledger.target()) <= 16 * MIB);
}

#[test]
fn those_who_come_while_windows_are_wide_do_not_take_it_all() {
    let (mut ledger, mut now) = ledger(&Budget::default());
    ledger.opened(0, now);
    for i in 1..200 {
        now += Duration::from_millis(150);
        bulk(&mut ledger, 0, now);
        ledger.opened(i, now);
        settle(&mut ledger, now);
        assert!(ledger.allowed() + u64::from(ledger.window()) <= u64::from(ledger.target()), "{i} stalled");
        assert!(u64::from(ledger.target()) <= 16 * MIB);
    }
}

#[test]
fn the_peer_goes_by_the_old_window_until_it_has_heard() {
    let (mut ledger, mut now) = ledger(&Budget::default());
    (0..8).for_each(|i| ledger.opened(i, now));
    settle(&mut ledger, now);
    let before = ledger.allowed();
    ledger.opened(8, now);
    ledger.window_told(ledger.window_due(now).unwrap(), now);
    ledger.opened(9, now);
    assert_eq!(ledger.allowed() - before, 512 * KIB, "both may send the old width");
    ledger.window_heard();
    now += Duration::from_millis(1);
    ledger.opened(10, now);
    assert_eq!(ledger.allowed() - before, 640 * KIB);
}

#[test]
fn a_pod_short_of_budget_gives_less_and_never_more_than_it_has() {
    let budget = Budget::new(4 * MIB);
    let now = Instant::now();
    let mut all: Vec<Ledger> = vec![];
    for i in 0..100 {
        let mut ledger = Ledger::new(windows(), budget.clone(), now);
        ledger.opened(1, now);
        settle(&mut ledger, now);
        all.push(ledger);
        assert!(budget.used() <= 4 * MIB + (i + 1) * u64::from(FLOOR), "{}", budget.used());
    }
    assert_eq!(all[99].target(), FLOOR);
    assert_eq!(all[99].window(), 64 << 10);
    let mut later = now;
    for ledger in &mut all {
        later += Duration::from_secs(1);
        bulk(ledger, 1, later);
    }
    assert!(all.iter().all(|l| u64::from(l.window()) <= 256 * KIB), "no growth while others have little");
    drop(all);
    assert_eq!(budget.used(), 0);
}

#[test]
fn credit_that_the_peer_still_has_stays_counted() {
    let budget = Budget::default();
    let (mut ledger, mut now) = ledger(&budget);
    ledger.opened(1, now);
    for _ in 0..5 {
        now += Duration::from_millis(150);
        bulk(&mut ledger, 1, now);
    }
    assert_eq!(budget.used(), 8 * MIB);
    ledger.closed(1);
    now += Duration::from_secs(2);
    settle(&mut ledger, now);
    assert_eq!((u64::from(ledger.target()), budget.used()), (512 * KIB, 8 * MIB), "it may still send all that");
    ledger.opened(3, now);
    ledger.consumed(3, 1 << 20, || 0, || now);
    assert_eq!(budget.used(), 7 * MIB, "what it has sent is not given again");
}

#[derive(Clone, Debug)]
enum Op {
    Open,
    Close(usize),
    Consume(usize, u32, bool),
    Hear,
    Wait(u16),
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        4 => Just(Op::Open),
        2 => any::<usize>().prop_map(Op::Close),
        4 => (any::<usize>(), 0..9_000_000_u32, any::<bool>()).prop_map(|(s, n, held)| Op::Consume(s, n, held)),
        3 => Just(Op::Hear),
        2 => any::<u16>().prop_map(Op::Wait),
    ]
}

proptest! {
    /// In whatever order streams come, go, move bytes, and however late the peer hears of new windows: the limits of
    /// connection and pod hold, the books balance, and with a peer that answers at once nobody's stall is another's.
    #[test]
    fn limits_hold(
        ops in proptest::collection::vec(op(), 1..400),
        prompt: bool,
        stream in 10_u32..5_000_000,
        connection in 10_u32..50_000_000,
        budget in prop_oneof![Just(u64::MAX / 2), 0..50_000_000_u64],
    ) {
        let windows = Windows { stream, connection, ..Windows::default() }.legal();
        let (purse, mut now) = (Budget::new(budget), Instant::now());
        let mut ledger = Ledger::new(windows, purse.clone(), now);
        let (mut open, mut next, mut told): (Vec<u32>, u32, bool) = (vec![], 0, false);
        for op in ops {
            match op {
                Op::Open if open.len() < 200 => {
                    next += 1;
                    ledger.opened(next, now);
                    open.push(next);
                }
                Op::Close(i) if !open.is_empty() => ledger.closed(open.swap_remove(i % open.len())),
                Op::Consume(i, n, held) if !open.is_empty() => {
                    let stream = open[i % open.len()];
                    ledger.consumed(stream, n as usize, || if held { usize::MAX } else { 0 }, || now);
                }
                Op::Wait(ms) => now += Duration::from_millis(ms.into()),
                _ => {}
            }
            if told && (prompt || matches!(op, Op::Hear)) {
                ledger.window_heard();
                told = false;
            }
            if !told && let Some(window) = ledger.window_due(now) {
                prop_assert!(window >= NARROWEST && window <= windows.stream_max.max(NARROWEST));
                ledger.window_told(window, now);
                told = true;
                if prompt {
                    ledger.window_heard();
                    told = false;
                }
            }
            ledger.target_due();
            prop_assert!(ledger.target() >= FLOOR && ledger.target() <= windows.connection);
            prop_assert!(u64::from(ledger.target()) <= ledger.granted);
            prop_assert!(ledger.granted <= u64::from(windows.connection).max(u64::from(FLOOR)));
            prop_assert_eq!(purse.used(), ledger.granted);
            prop_assert!(purse.used() <= budget + u64::from(FLOOR));
            let roomy = budget > u64::MAX / 4 && connection >= 1 << 20;
            if prompt && roomy {
                prop_assert!(
                    ledger.allowed() + u64::from(ledger.window()) <= u64::from(ledger.target()),
                    "{} streams of up to {} in {}", open.len(), ledger.allowed(), ledger.target(),
                );
            }
        }
        drop(ledger);
        prop_assert_eq!(purse.used(), 0);
    }
}
