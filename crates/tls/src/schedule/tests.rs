use super::*;
use proptest::prelude::*;
use std::collections::BTreeMap;

fn id(n: usize) -> Identity {
    Identity::new("td", "ns", format!("s{n}"))
}

const DAY: Duration = Duration::from_secs(24 * 3600);

fn secs(s: f64) -> Duration {
    Duration::from_secs_f64(s)
}

#[test]
fn fetches_renews_at_half_life_and_forgets() {
    let (mut s, t0) = (Schedule::new(), Instant::now());
    assert_eq!(s.poll(t0), Step::Idle);
    assert!(s.want(&id(1), t0));
    assert!(!s.want(&id(1), t0), "the second user");
    assert_eq!(s.poll(t0), Step::Fetch(id(1)));
    assert_eq!(s.poll(t0), Step::Idle, "one fetch at a time");
    assert!(s.fetched(&id(1), DAY, t0, 0.0));
    assert_eq!(s.poll(t0), Step::SleepUntil(t0 + DAY / 2));
    assert_eq!(s.poll(t0 + DAY / 2), Step::Fetch(id(1)));
    assert!(s.fetched(&id(1), DAY, t0 + DAY / 2, 1.0));
    assert_eq!(s.poll(t0 + DAY / 2), Step::SleepUntil(t0 + DAY / 2 + DAY.mul_f64(0.55)));
    assert!(!s.forget(&id(1)), "the first user remains");
    assert!(s.forget(&id(1)));
    assert_eq!(s.poll(t0 + 2 * DAY), Step::Idle);
    assert!(!s.forget(&id(1)));
}

#[test]
fn all_are_renewed_soon_and_what_is_on_its_way_once_more() {
    let (mut s, t0) = (Schedule::new(), Instant::now());
    for n in 1..=4 {
        s.want(&id(n), t0);
        assert!(matches!(s.poll(t0), Step::Fetch(_)));
    }
    for n in 1..=2 {
        s.fetched(&id(n), DAY, t0, 0.0);
    }
    // Due already, before any delay: stays so.
    s.want(&id(5), t0);
    let mut delay = secs(0.0);
    s.renew_all(t0, || {
        delay += secs(10.0);
        delay
    });
    assert_eq!(s.poll(t0), Step::Fetch(id(5)));
    // On their way since before: one comes, one fails.
    s.fetched(&id(3), DAY, t0, 0.0);
    assert_eq!(s.poll(t0), Step::Fetch(id(3)));
    s.fetched(&id(3), DAY, t0, 0.0);
    s.failed(&id(4), t0, 0.0);
    let retry = t0 + QUICK_RETRY;
    assert_eq!(s.poll(retry), Step::Fetch(id(4)));
    s.fetched(&id(4), DAY, retry, 0.0);
    // The others within their delays, and each once.
    let late = t0 + secs(60.0);
    let mut renewed = Vec::new();
    while let Step::Fetch(identity) = s.poll(late) {
        renewed.push(identity);
    }
    renewed.sort();
    assert_eq!(renewed, [id(1), id(2)]);
}

#[test]
fn retries_quickly_once_then_backs_off() {
    let (mut s, mut now) = (Schedule::new(), Instant::now());
    s.want(&id(1), now);
    for expected in [0.1, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 150.0, 150.0] {
        assert_eq!(s.poll(now), Step::Fetch(id(1)));
        assert!(s.failed(&id(1), now, 0.0));
        let Step::SleepUntil(due) = s.poll(now) else { panic!("must wait") };
        assert_eq!(due - now, secs(expected));
        s.urge(&id(1));
        assert_eq!(s.poll(now), Step::SleepUntil(due), "impatience does not help");
        now = due;
    }
    // A success starts the count over, and the spread is a fifth at most.
    assert_eq!(s.poll(now), Step::Fetch(id(1)));
    s.fetched(&id(1), secs(20.0), now, 0.0);
    now += secs(10.0);
    assert_eq!(s.poll(now), Step::Fetch(id(1)));
    s.failed(&id(1), now, -1.0);
    assert_eq!(s.poll(now), Step::SleepUntil(now + secs(0.08)));
    for _ in 0..100_000 {
        s.failed(&id(1), now, 1.0);
    }
    assert_eq!(s.poll(now), Step::SleepUntil(now + secs(180.0)));
}

#[test]
fn who_waits_goes_first_and_eight_at_once() {
    let (mut s, now) = (Schedule::new(), Instant::now());
    for n in 0..20 {
        s.want(&id(n), now + Duration::from_millis(n as u64));
    }
    s.urge(&id(13));
    let later = now + secs(1.0);
    let mut started = vec![];
    while let Step::Fetch(id) = s.poll(later) {
        started.push(id);
    }
    let expected: Vec<_> = [13, 0, 1, 2, 3, 4, 5, 6].map(id).into();
    assert_eq!(started, expected);
    assert_eq!(s.poll(later), Step::Idle, "a report wakes the driver");
    s.fetched(&id(13), DAY, later, 0.0);
    assert_eq!(s.poll(later), Step::Fetch(id(7)));
}

#[test]
fn a_renewal_waits_for_the_new_pods() {
    let (mut s, now) = (Schedule::new(), Instant::now());
    s.want(&id(1), now);
    s.poll(now);
    s.fetched(&id(1), DAY, now, 0.0);
    let half = now + DAY / 2;
    s.want(&id(2), half + secs(1.0));
    assert_eq!(s.poll(half + secs(1.0)), Step::Fetch(id(2)), "although the renewal is overdue longer");
    assert_eq!(s.poll(half + secs(1.0)), Step::Fetch(id(1)));
}

#[test]
fn forgotten_and_wanted_again_while_on_its_way() {
    let (mut s, now) = (Schedule::new(), Instant::now());
    s.want(&id(1), now);
    assert_eq!(s.poll(now), Step::Fetch(id(1)));
    s.forget(&id(1));
    s.want(&id(1), now);
    assert_eq!(s.poll(now), Step::Idle, "no second fetch beside the first");
    assert!(s.fetched(&id(1), DAY, now, 0.0), "its result is welcome");
    s.forget(&id(1));
    assert!(!s.fetched(&id(1), DAY, now, 0.0), "this one is not");
}

#[derive(Clone, Debug)]
enum Event {
    Want(usize),
    Forget(usize),
    Urge(usize),
    Poll,
    Fetched(usize, u64, f64),
    Failed(usize, f64),
    Pass(u64),
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let event = prop_oneof![
        4 => (0..14_usize).prop_map(Event::Want),
        2 => (0..14_usize).prop_map(Event::Forget),
        1 => (0..14_usize).prop_map(Event::Urge),
        6 => Just(Event::Poll),
        3 => (any::<usize>(), 1..100_000_u64, -1.0..1.0).prop_map(|(i, r, j)| Event::Fetched(i, r, j)),
        3 => (any::<usize>(), -1.0..1.0).prop_map(|(i, j)| Event::Failed(i, j)),
        2 => (0..50_000_u64).prop_map(Event::Pass),
    ];
    prop::collection::vec(event, 0..200)
}

/// What a driver knows by itself.
#[derive(Default)]
struct World {
    wants: BTreeMap<Identity, usize>,
    in_flight: Vec<Identity>,
    /// No fetch before then.
    not_before: BTreeMap<Identity, Instant>,
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]
    #[test]
    fn bounded_never_doubled_never_early_and_none_left_out(events in events()) {
        let (mut s, mut now) = (Schedule::new(), Instant::now());
        let mut w = World::default();
        for event in events {
            match event {
                Event::Want(n) => {
                    let count = w.wants.entry(id(n)).or_default();
                    *count += 1;
                    prop_assert_eq!(s.want(&id(n), now), *count == 1);
                }
                Event::Forget(n) => {
                    let last = match w.wants.get_mut(&id(n)) {
                        Some(1) => { w.wants.remove(&id(n)); w.not_before.remove(&id(n)); true }
                        Some(count) => { *count -= 1; false }
                        None => false,
                    };
                    prop_assert_eq!(s.forget(&id(n)), last);
                }
                Event::Urge(n) => s.urge(&id(n)),
                Event::Poll => match s.poll(now) {
                    Step::Fetch(id) => {
                        prop_assert!(w.wants.contains_key(&id), "nobody wants it");
                        prop_assert!(!w.in_flight.contains(&id), "it is on its way");
                        prop_assert!(w.not_before.get(&id).is_none_or(|t| *t <= now), "too early");
                        w.in_flight.push(id);
                        prop_assert!(w.in_flight.len() <= CONCURRENT);
                    }
                    Step::SleepUntil(due) => prop_assert!(due > now),
                    Step::Idle => {
                        let idle = w.wants.keys().all(|id| w.in_flight.contains(id));
                        prop_assert!(idle || w.in_flight.len() == CONCURRENT);
                    }
                },
                Event::Fetched(i, remaining, jitter) if !w.in_flight.is_empty() => {
                    let id = w.in_flight.swap_remove(i % w.in_flight.len());
                    let wanted = s.fetched(&id, Duration::from_secs(remaining), now, jitter);
                    prop_assert_eq!(wanted, w.wants.contains_key(&id));
                    if wanted {
                        w.not_before.insert(id, now + Duration::from_secs(remaining).mul_f64(0.449));
                    }
                }
                Event::Failed(i, jitter) if !w.in_flight.is_empty() => {
                    let id = w.in_flight.swap_remove(i % w.in_flight.len());
                    let wanted = s.failed(&id, now, jitter);
                    prop_assert_eq!(wanted, w.wants.contains_key(&id));
                    if wanted {
                        w.not_before.insert(id, now + QUICK_RETRY.mul_f64(0.79));
                    }
                }
                Event::Pass(seconds) => now += Duration::from_secs(seconds),
                _ => {}
            }
        }
        // From here on every fetch works: within any backoff or validity each wanted one is fetched.
        for id in w.in_flight.drain(..) {
            s.fetched(&id, Duration::from_secs(1), now, 0.0);
        }
        now += Duration::from_secs(200_000);
        let mut fetched = vec![];
        while let Step::Fetch(id) = s.poll(now) {
            s.fetched(&id, DAY, now, 0.0);
            fetched.push(id);
        }
        fetched.sort();
        let wanted: Vec<_> = w.wants.keys().cloned().collect();
        prop_assert_eq!(fetched, wanted);
    }
}
