use super::*;
use proptest::prelude::*;
use std::collections::BTreeMap;

type A = Admission<&'static str>;

fn admission(max: usize) -> (A, Instant) {
    (Admission::new(max, 2, Duration::from_secs(300)), Instant::now())
}

fn open(a: &mut A, key: &'static str, now: Instant) -> Ticket {
    match a.request(&key, now) {
        Decision::Open(ticket) => ticket,
        other => panic!("expected Open, got {other:?}"),
    }
}

fn wait(a: &mut A, key: &'static str, now: Instant) -> Ticket {
    match a.request(&key, now) {
        Decision::Wait(ticket) => ticket,
        other => panic!("expected Wait, got {other:?}"),
    }
}

fn reuse(a: &mut A, key: &'static str, now: Instant) -> StreamPermit {
    match a.request(&key, now) {
        Decision::Reuse(conn, permit) if conn == permit.conn() => permit,
        other => panic!("expected Reuse, got {other:?}"),
    }
}

fn grants(actions: Vec<Action<&'static str>>) -> (Vec<Ticket>, Vec<StreamPermit>, usize) {
    let (mut tickets, mut permits, mut dials) = (vec![], vec![], 0);
    for action in actions {
        match action {
            Action::Grant(t, p) => {
                tickets.push(t);
                permits.push(p);
            }
            Action::Dial(_) => dials += 1,
        }
    }
    (tickets, permits, dials)
}

#[test]
fn one_dial_a_key_and_waiters_in_order() {
    let (mut a, now) = admission(2);
    let (first, second, third) = (open(&mut a, "k", now), wait(&mut a, "k", now), wait(&mut a, "k", now));
    open(&mut a, "other", now);
    let (_, actions) = a.opened(&"k", 100, now);
    let (tickets, mut permits, dials) = grants(actions);
    assert_eq!(tickets, [first, second]);
    assert_eq!(dials, 1, "the third needs a second connection");
    // A stream ends before that dial is done: the waiter takes its place.
    let (tickets, more, dials) = grants(a.release(permits.pop().unwrap(), now));
    assert_eq!((tickets, dials), (vec![third], 0));
    permits.extend(more);
    assert_eq!(permits.len(), 2);
}

#[test]
fn the_older_connection_is_filled_first() {
    let (mut a, now) = admission(1);
    open(&mut a, "k", now);
    let (old, actions) = a.opened(&"k", 100, now);
    let (_, permits, _) = grants(actions);
    open(&mut a, "k", now);
    let (young, actions) = a.opened(&"k", 100, now);
    let (_, young_permits, _) = grants(actions);
    for p in permits.into_iter().chain(young_permits) {
        assert!(a.release(p, now).is_empty());
    }
    let permit = reuse(&mut a, "k", now);
    assert_eq!(permit.conn(), old);
    let idle = a.next_sweep().unwrap();
    assert_eq!(a.sweep(idle), [young]);
    let _ = a.release(permit, now);
}

#[test]
fn the_peers_limit_counts_and_may_change() {
    let (mut a, now) = admission(100);
    open(&mut a, "k", now);
    let waiting = wait(&mut a, "k", now);
    let (conn, actions) = a.opened(&"k", 1, now);
    let (_, permits, dials) = grants(actions);
    assert_eq!((permits.len(), dials), (1, 1));
    let (tickets, more, _) = grants(a.set_limit(conn, 2, now));
    assert_eq!(tickets, [waiting]);
    assert!(a.set_limit(conn, 1, now).is_empty());
    // Two run, one is allowed: one must end before... two must end before a third is let in.
    assert!(a.release(permits.into_iter().next().unwrap(), now).is_empty());
    assert!(matches!(a.request(&"k", now), Decision::Wait(_)), "the second dial is still on its way");
    let (tickets, _, _) = grants(a.release(more.into_iter().next().unwrap(), now));
    assert_eq!(tickets.len(), 1);
}

#[test]
fn a_failed_dial_fails_all_who_waited_and_the_next_request_dials_again() {
    let (mut a, now) = admission(100);
    let tickets = [open(&mut a, "k", now), wait(&mut a, "k", now)];
    assert_eq!(a.dial_failed(&"k", now), (tickets.to_vec(), vec![]));
    open(&mut a, "k", now);
}

#[test]
fn a_retired_connection_takes_no_more_and_a_closed_one_is_forgotten() {
    let (mut a, now) = admission(2);
    open(&mut a, "k", now);
    let (conn, actions) = a.opened(&"k", 100, now);
    let (_, permits, _) = grants(actions);
    a.retire(conn);
    let ticket = open(&mut a, "k", now);
    assert!(a.closed(conn, now).is_empty(), "a dial is on its way already");
    for p in permits {
        assert!(a.release(p, now).is_empty());
    }
    let (_, actions) = a.opened(&"k", 100, now);
    let (tickets, _, _) = grants(actions);
    assert_eq!(tickets, [ticket]);
}

#[test]
fn closing_the_connection_that_waiters_counted_on_dials() {
    let (mut a, now) = admission(1);
    open(&mut a, "k", now);
    let (conn, actions) = a.opened(&"k", 100, now);
    let (_, permits, _) = grants(actions);
    let ticket = open(&mut a, "k", now);
    assert_eq!(a.dial_failed(&"k", now).0, [ticket]);
    let waiting = open(&mut a, "k", now);
    assert!(a.closed(conn, now).is_empty());
    assert_eq!(a.dial_failed(&"k", now).0, [waiting]);
    drop(permits);
    assert!(a.lanes.is_empty() && a.conns.is_empty());
}

#[test]
fn only_idle_connections_are_swept() {
    let (mut a, now) = admission(100);
    open(&mut a, "k", now);
    let (conn, actions) = a.opened(&"k", 100, now);
    let (_, permits, _) = grants(actions);
    assert_eq!(a.next_sweep(), None);
    let later = now + Duration::from_secs(1000);
    assert!(a.sweep(later).is_empty());
    for p in permits {
        assert!(a.release(p, later).is_empty());
    }
    let due = later + Duration::from_secs(300);
    assert_eq!(a.next_sweep(), Some(due));
    assert!(a.sweep(due - Duration::from_millis(1)).is_empty());
    assert_eq!(a.sweep(due), [conn]);
    assert!(a.closed(conn, due).is_empty());
    assert!(a.lanes.is_empty() && a.conns.is_empty());
}

/// A connection with one stream that carries bulk.
fn elephant(a: &mut A, now: Instant) -> (ConnId, StreamPermit) {
    open(a, "k", now);
    let (conn, actions) = a.opened(&"k", 100, now);
    let (_, mut permits, _) = grants(actions);
    a.bulk(conn, now);
    (conn, permits.pop().unwrap())
}

#[test]
fn beside_bulk_new_streams_get_a_connection_of_their_own_until_it_ends() {
    let (mut a, now) = admission(100);
    let (large, _bulk) = elephant(&mut a, now);
    let tickets = [open(&mut a, "k", now), wait(&mut a, "k", now)];
    let (small, actions) = a.opened(&"k", 100, now);
    let (served, permits, dials) = grants(actions);
    assert_eq!((served.as_slice(), dials), (tickets.as_slice(), 0));
    assert!(permits.iter().all(|p| p.conn() == small));
    assert_eq!(reuse(&mut a, "k", now).conn(), small, "no third");
    // Over two seconds after it was last seen; then the older is filled again.
    let before = now + Duration::from_millis(1999);
    assert_eq!(reuse(&mut a, "k", before).conn(), small);
    assert_eq!(reuse(&mut a, "k", now + Duration::from_secs(2)).conn(), large);
}

#[test]
fn connections_for_the_sake_of_bulk_are_few() {
    let (mut a, now) = admission(100);
    let (first, _kept) = elephant(&mut a, now);
    let mut kept = vec![];
    for _ in 0..2 {
        let (_, permit) = elephant(&mut a, now);
        kept.push(permit);
    }
    // Two to spare, and all three carry bulk: the least busy.
    let more = reuse(&mut a, "k", now);
    assert_eq!(more.conn(), first);
    assert_ne!(reuse(&mut a, "k", now).conn(), first);
    assert_eq!(a.conns.len(), 3);
    let mut none: A = Admission::new(100, 0, Duration::from_secs(300));
    let (conn, _bulk) = elephant(&mut none, now);
    assert_eq!(reuse(&mut none, "k", now).conn(), conn, "switched off");
}

#[test]
fn who_waits_to_be_spared_bulk_loses_nothing_by_it() {
    let (mut a, now) = admission(100);
    let (large, _bulk) = elephant(&mut a, now);
    let (first, second, third) = (open(&mut a, "k", now), wait(&mut a, "k", now), wait(&mut a, "k", now));
    // The dial takes its time.
    let (served, permits, dials) = grants(a.hurry(&"k", second, now));
    assert_eq!((served, dials), (vec![first, second], 0));
    assert!(permits.iter().all(|p| p.conn() == large));
    assert!(a.hurry(&"k", second, now).is_empty());
    // And then it fails.
    let (failed, actions) = a.dial_failed(&"k", now);
    let (served, permits, dials) = grants(actions);
    assert_eq!((failed, served, dials), (vec![], vec![third], 0));
    assert_eq!(permits[0].conn(), large);
    // For a while no other is tried.
    assert_eq!(reuse(&mut a, "k", now + Duration::from_millis(999)).conn(), large);
    a.bulk(large, now + Duration::from_secs(1));
    open(&mut a, "k", now + Duration::from_secs(1));
}

/// What happens to a pool, with indices into what is there.
#[derive(Clone, Debug)]
enum Event {
    Request(u8),
    Cancel(usize),
    DialDone(u8, usize),
    DialFails(u8),
    Release(usize),
    Limit(usize, usize),
    Retire(usize),
    Close(usize),
    Bulk(usize),
    Hurry(usize),
    Sweep(u64),
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let event = prop_oneof![
        6 => (0..3_u8).prop_map(Event::Request),
        1 => any::<usize>().prop_map(Event::Cancel),
        3 => (0..3_u8, 0..6_usize).prop_map(|(k, l)| Event::DialDone(k, l)),
        1 => (0..3_u8).prop_map(Event::DialFails),
        4 => any::<usize>().prop_map(Event::Release),
        1 => (any::<usize>(), 0..6_usize).prop_map(|(c, l)| Event::Limit(c, l)),
        1 => any::<usize>().prop_map(Event::Retire),
        1 => any::<usize>().prop_map(Event::Close),
        3 => any::<usize>().prop_map(Event::Bulk),
        2 => any::<usize>().prop_map(Event::Hurry),
        2 => prop_oneof![0..4_u64, 0..400_u64].prop_map(Event::Sweep),
    ];
    prop::collection::vec(event, 0..120)
}

/// The oracle: the world around the admission, which knows every permit, ticket, dial and connection by itself.
struct World {
    a: Admission<u8>,
    now: Instant,
    max: usize,
    spare: usize,
    permits: Vec<StreamPermit>,
    /// In order of arrival, by key.
    waiting: Vec<(u8, Ticket)>,
    dialing: BTreeMap<u8, usize>,
    /// Key, limit, whether new streams may be let in.
    conns: BTreeMap<ConnId, (u8, usize, bool)>,
    /// When bulk was last seen.
    bulk: BTreeMap<ConnId, Instant>,
}

impl World {
    fn active(&self, conn: ConnId) -> usize {
        self.permits.iter().filter(|p| p.conn() == conn).count()
    }

    fn take(&mut self, permit: StreamPermit, key: u8) {
        let conn = permit.conn();
        let (k, limit, open) = self.conns[&conn];
        assert!(open, "a stream on a connection that takes none");
        assert_eq!(k, key, "a stream on another key's connection");
        self.permits.push(permit);
        assert!(self.active(conn) <= limit.min(self.max), "above the limit");
    }

    fn act(&mut self, actions: Vec<Action<u8>>) {
        for action in actions {
            match action {
                Action::Grant(ticket, permit) => {
                    let at =
                        self.waiting.iter().position(|(_, t)| *t == ticket).expect("served once, and not after cancel");
                    let (key, _) = self.waiting.remove(at);
                    let earlier = self.waiting[..at].iter().any(|(k, _)| *k == key);
                    assert!(!earlier, "served out of order");
                    self.take(permit, key);
                }
                Action::Dial(key) => self.dial(key),
            }
        }
    }

    /// The open connections of a key that have room.
    fn roomy(&self, key: u8) -> Vec<ConnId> {
        let open = self.conns.iter().filter(|(_, (k, _, open))| *k == key && *open);
        open.filter(|(id, (_, limit, _))| self.active(**id) < (*limit).min(self.max)).map(|(id, _)| *id).collect()
    }

    fn dial(&mut self, key: u8) {
        *self.dialing.entry(key).or_default() += 1;
        let roomy = self.roomy(key);
        assert!(roomy.len() <= self.spare, "a dial although {} have room", roomy.len());
        for id in roomy {
            let bulk = self.bulk.get(&id).is_some_and(|at| self.now < *at + BULK_LASTS);
            assert!(bulk, "a dial although there is room without bulk");
        }
    }

    fn step(&mut self, event: Event) {
        match event {
            Event::Request(key) => match self.a.request(&key, self.now) {
                Decision::Reuse(_, permit) => self.take(permit, key),
                Decision::Open(t) => {
                    self.dial(key);
                    self.waiting.push((key, t));
                }
                Decision::Wait(t) => self.waiting.push((key, t)),
            },
            Event::Cancel(i) if !self.waiting.is_empty() => {
                let (key, ticket) = self.waiting.remove(i % self.waiting.len());
                self.a.cancel(&key, ticket);
            }
            Event::DialDone(key, limit) if self.dialing.remove(&key).is_some() => {
                let before: Vec<_> = self.a.conns.keys().copied().collect();
                let (id, actions) = self.a.opened(&key, limit, self.now);
                assert!(!before.contains(&id));
                self.conns.insert(id, (key, limit, true));
                self.act(actions);
            }
            Event::DialFails(key) if self.dialing.remove(&key).is_some() => {
                let (failed, actions) = self.a.dial_failed(&key, self.now);
                self.act(actions);
                let expected: Vec<_> = self.waiting.iter().filter(|(k, _)| *k == key).map(|(_, t)| *t).collect();
                assert_eq!(failed, expected, "all who still waited, in order");
                assert!(failed.is_empty() || self.roomy(key).is_empty(), "failed although there is room");
                self.waiting.retain(|(k, _)| *k != key);
            }
            Event::Bulk(i) => {
                if let Some(id) = self.nth(i) {
                    self.a.bulk(id, self.now);
                    self.bulk.insert(id, self.now);
                }
            }
            Event::Hurry(i) if !self.waiting.is_empty() => {
                let (key, ticket) = self.waiting[i % self.waiting.len()];
                let actions = self.a.hurry(&key, ticket, self.now);
                self.act(actions);
                let waits = self.waiting.iter().any(|(_, t)| *t == ticket);
                assert!(!waits || self.roomy(key).is_empty(), "in a hurry, and left waiting although there is room");
            }
            Event::Release(i) if !self.permits.is_empty() => {
                let permit = self.permits.swap_remove(i % self.permits.len());
                let actions = self.a.release(permit, self.now);
                self.act(actions);
            }
            Event::Limit(i, limit) => {
                if let Some(id) = self.nth(i) {
                    self.conns.get_mut(&id).unwrap().1 = limit;
                    let actions = self.a.set_limit(id, limit, self.now);
                    self.act(actions);
                }
            }
            Event::Retire(i) => {
                if let Some(id) = self.nth(i) {
                    self.a.retire(id);
                    self.conns.get_mut(&id).unwrap().2 = false;
                }
            }
            Event::Close(i) => {
                if let Some(id) = self.nth(i) {
                    self.conns.remove(&id);
                    let actions = self.a.closed(id, self.now);
                    self.act(actions);
                }
            }
            Event::Sweep(secs) => {
                self.now += Duration::from_secs(secs);
                for id in self.a.sweep(self.now) {
                    assert_eq!(self.active(id), 0, "a busy connection was swept");
                    self.conns.get_mut(&id).unwrap().2 = false;
                }
            }
            _ => {}
        }
        self.check();
    }

    fn nth(&self, i: usize) -> Option<ConnId> {
        let ids: Vec<_> = self.conns.keys().copied().collect();
        (!ids.is_empty()).then(|| ids[i % ids.len()])
    }

    fn check(&self) {
        for (key, dials) in &self.dialing {
            assert_eq!(*dials, 1, "more than one dial for {key}");
        }
        for (key, _) in &self.waiting {
            assert!(self.dialing.contains_key(key), "a waiter of {key} whom nothing will wake");
            // When bulk ends nobody is told; the dial that is on its way serves him, or his hurry.
            let room = self.roomy(*key).iter().any(|id| !self.bulk.contains_key(id));
            assert!(!room, "a waiter of {key} although there is room without bulk");
        }
        // Nothing leaks: what the admission holds is what the world knows.
        assert_eq!(self.a.conns.len(), self.conns.len());
        for (id, conn) in &self.a.conns {
            assert_eq!(conn.active, self.active(*id));
        }
        let queued: usize = self.a.lanes.values().map(|l| l.waiting.len()).sum();
        assert_eq!(queued, self.waiting.len());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]
    #[test]
    fn never_above_the_limit_no_lost_waiter_no_leak(max in 1..4_usize, spare in 0..3_usize, events in events()) {
        let mut world = World {
            a: Admission::new(max, spare, Duration::from_secs(300)),
            now: Instant::now(),
            max,
            spare,
            permits: vec![],
            waiting: vec![],
            dialing: BTreeMap::new(),
            conns: BTreeMap::new(),
            bulk: BTreeMap::new(),
        };
        for event in events {
            world.step(event);
        }
        // The end: all dials fail, streams end, connections close. Nothing may stay.
        for key in 0..3 {
            world.step(Event::DialFails(key));
        }
        while !world.permits.is_empty() {
            world.step(Event::Release(0));
        }
        while let Some(_id) = world.nth(0) {
            world.step(Event::Close(0));
        }
        for key in 0..3 {
            world.step(Event::DialFails(key));
        }
        prop_assert!(world.a.lanes.is_empty() && world.a.conns.is_empty() && world.waiting.is_empty());
    }
}
