use proptest::prelude::*;

use super::*;

fn uid(n: u8) -> PodUid {
    PodUid::new(&format!("uid-{n}"))
}

fn pod(n: u8, netns: u32) -> Pod<u32> {
    Pod {
        uid: uid(n),
        info: WorkloadInfo { name: format!("pod-{n}").into(), namespace: "ns".into(), service_account: "sa".into() },
        netns,
    }
}

fn add(n: u8, netns: u32) -> Request<u32> {
    let Pod { uid, info, netns } = pod(n, netns);
    Request::Add { uid, info, netns }
}

/// A step of a table: the request, whether a start it asks for succeeds, and what is expected, in words.
struct Step(Request<u32>, bool, &'static str);

/// Plays requests and writes down what the state machine wants done, then who is running and pending.
fn play(state: &mut State<u32>, request: Request<u32>, start_ok: bool) -> String {
    let work = match state.handle(request) {
        Ok(work) => work,
        Err(e) => return format!("error: {e}"),
    };
    let mut said: Vec<String> = work.stop.iter().map(|uid| format!("stop {uid}")).collect();
    if let Some(pod) = work.start {
        said.push(format!("start {}@{}", pod.uid, pod.netns));
        state.started(pod, start_ok);
    }
    said.join(", ")
}

#[test]
fn table() {
    let del = |n| Request::Del(uid(n));
    let cases: Vec<(&str, Vec<Step>, &str)> = vec![
        (
            "add, snapshot, del",
            vec![
                Step(add(1, 10), true, "start uid-1@10"),
                Step(Request::SnapshotSent, true, ""),
                Step(del(1), true, "stop uid-1"),
            ],
            "running [] pending [] ready true",
        ),
        (
            "an add of a known pod is idempotent",
            vec![
                Step(add(1, 10), true, "start uid-1@10"),
                Step(add(1, 10), true, ""),
                Step(Request::SnapshotSent, true, ""),
                Step(add(1, 10), true, ""),
            ],
            "running [uid-1@10] pending [] ready true",
        ),
        (
            "another namespace under a known uid replaces",
            vec![
                Step(Request::SnapshotSent, true, ""),
                Step(add(1, 10), true, "start uid-1@10"),
                Step(add(1, 11), true, "stop uid-1, start uid-1@11"),
            ],
            "running [uid-1@11] pending [] ready true",
        ),
        (
            "a start that fails is pending, and not ready",
            vec![Step(Request::SnapshotSent, true, ""), Step(add(1, 10), false, "start uid-1@10")],
            "running [] pending [uid-1@10] ready false",
        ),
        (
            "the agent's own second try clears pending",
            vec![
                Step(Request::SnapshotSent, true, ""),
                Step(add(1, 10), false, "start uid-1@10"),
                Step(add(1, 10), true, "start uid-1@10"),
            ],
            "running [uid-1@10] pending [] ready true",
        ),
        (
            "del of a pending pod",
            vec![
                Step(Request::SnapshotSent, true, ""),
                Step(add(1, 10), false, "start uid-1@10"),
                Step(del(1), true, ""),
            ],
            "running [] pending [] ready true",
        ),
        (
            "another namespace that cannot be served: the old one is given up, the new one pending",
            vec![
                Step(Request::SnapshotSent, true, ""),
                Step(add(1, 10), true, "start uid-1@10"),
                Step(add(1, 11), false, "stop uid-1, start uid-1@11"),
            ],
            "running [] pending [uid-1@11] ready false",
        ),
        (
            "a pending pod that is named anew by another namespace is tried there",
            vec![
                Step(Request::SnapshotSent, true, ""),
                Step(add(1, 10), false, "start uid-1@10"),
                Step(add(1, 11), false, "start uid-1@11"),
            ],
            "running [] pending [uid-1@11] ready false",
        ),
        (
            "one pending pod keeps no other from being served",
            vec![
                Step(add(1, 10), false, "start uid-1@10"),
                Step(add(2, 11), true, "start uid-2@11"),
                Step(Request::SnapshotSent, true, ""),
                Step(add(3, 12), true, "start uid-3@12"),
            ],
            "running [uid-2@11 uid-3@12] pending [uid-1@10] ready false",
        ),
        (
            "del within the snapshot of a pending pod ends its tries",
            vec![
                Step(add(1, 10), false, "start uid-1@10"),
                Step(del(1), true, ""),
                Step(Request::SnapshotSent, true, ""),
            ],
            "running [] pending [] ready true",
        ),
        (
            "del within the snapshot of a running pod leaves it to the snapshot's end",
            vec![
                Step(add(1, 10), true, "start uid-1@10"),
                Step(del(1), true, ""),
                Step(Request::SnapshotSent, true, "stop uid-1"),
            ],
            "running [] pending [] ready true",
        ),
        (
            "del and keep of a pod that nobody runs",
            vec![
                Step(Request::Keep(uid(1)), true, ""),
                Step(Request::SnapshotSent, true, ""),
                Step(del(1), true, ""),
                Step(del(2), true, ""),
            ],
            "running [] pending [] ready true",
        ),
        (
            "keep after the snapshot is out of turn",
            vec![
                Step(Request::Keep(uid(1)), true, ""),
                Step(Request::SnapshotSent, true, ""),
                Step(Request::Keep(uid(1)), true, "error: keep after the snapshot"),
            ],
            "running [] pending [] ready true",
        ),
        (
            "two snapshots are out of turn",
            vec![
                Step(Request::SnapshotSent, true, ""),
                Step(Request::SnapshotSent, true, "error: second snapshot_sent"),
            ],
            "running [] pending [] ready true",
        ),
        (
            "before the first snapshot nothing is ready",
            vec![Step(add(1, 10), true, "start uid-1@10")],
            "running [uid-1@10] pending [] ready false",
        ),
        (
            "two pods may share a namespace",
            vec![
                Step(add(1, 10), true, "start uid-1@10"),
                Step(add(2, 10), true, "start uid-2@10"),
                Step(Request::SnapshotSent, true, ""),
            ],
            "running [uid-1@10 uid-2@10] pending [] ready true",
        ),
    ];
    for (name, steps, end) in cases {
        let mut state = State::default();
        state.connected();
        for (i, Step(request, ok, expect)) in steps.into_iter().enumerate() {
            assert_eq!(play(&mut state, request, ok), expect, "{name}, step {i}");
        }
        assert_eq!(summary(&state), end, "{name}");
    }
}

#[test]
fn a_lost_connection_stops_nothing_and_the_next_snapshot_decides() {
    let mut state = State::default();
    state.connected();
    for (n, ok) in [(1, true), (2, true), (3, true), (4, false)] {
        play(&mut state, add(n, 10 + u32::from(n)), ok);
    }
    play(&mut state, Request::SnapshotSent, true);
    assert_eq!(summary(&state), "running [uid-1@11 uid-2@12 uid-3@13] pending [uid-4@14] ready false");

    state.connected();
    assert_eq!(summary(&state), "running [uid-1@11 uid-2@12 uid-3@13] pending [] ready true");
    // Named by Add, named by Keep, not named at all; a Del before the end is left to the snapshot.
    assert_eq!(play(&mut state, add(1, 11), true), "");
    assert_eq!(play(&mut state, Request::Keep(uid(2)), true), "");
    assert_eq!(play(&mut state, Request::Keep(uid(3)), true), "");
    assert_eq!(play(&mut state, Request::Del(uid(3)), true), "");
    assert_eq!(play(&mut state, Request::SnapshotSent, true), "stop uid-3");
    assert_eq!(summary(&state), "running [uid-1@11 uid-2@12] pending [] ready true");
}

fn summary(state: &State<u32>) -> String {
    let list = |pods: Vec<String>| pods.join(" ");
    format!(
        "running [{}] pending [{}] ready {}",
        list(state.running().map(|p| format!("{}@{}", p.uid, p.netns)).collect()),
        list(state.pending().map(|p| format!("{}@{}", p.uid, p.netns)).collect()),
        state.ready()
    )
}

#[derive(Clone, Debug)]
enum Event {
    Request(Request<u32>, bool),
    Reconnect,
    Retry(bool),
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let request = prop_oneof![
        (0u8..4, 0u32..3).prop_map(|(n, netns)| add(n, netns)),
        (0u8..4).prop_map(|n| Request::Del(uid(n))),
        (0u8..4).prop_map(|n| Request::Keep(uid(n))),
        Just(Request::SnapshotSent),
    ];
    let event = prop_oneof![
        8 => (request, any::<bool>()).prop_map(|(r, ok)| Event::Request(r, ok)),
        1 => Just(Event::Reconnect),
        1 => any::<bool>().prop_map(Event::Retry),
    ];
    proptest::collection::vec(event, 0..60)
}

proptest! {
    /// A second, naive account of the outside world: whatever was asked for was done, so the set of proxies that a
    /// driver would have is the machine's `running`, nothing is started twice and nothing unknown is stopped.
    #[test]
    fn what_the_driver_has_is_what_the_machine_believes(events in events()) {
        let mut state: State<u32> = State::default();
        state.connected();
        let mut world: BTreeMap<PodUid, u32> = BTreeMap::new();
        for event in events {
            match event {
                Event::Reconnect => state.connected(),
                Event::Retry(ok) => for pod in state.retry() {
                    if ok {
                        prop_assert!(world.insert(pod.uid.clone(), pod.netns).is_none());
                    }
                    state.started(pod, ok);
                },
                Event::Request(request, ok) => {
                    let Ok(work) = state.handle(request) else { continue };
                    for uid in work.stop {
                        prop_assert!(world.remove(&uid).is_some());
                    }
                    if let Some(pod) = work.start {
                        if ok {
                            prop_assert!(world.insert(pod.uid.clone(), pod.netns).is_none());
                        }
                        state.started(pod, ok);
                    }
                }
            }
            let believed: BTreeMap<PodUid, u32> =
                state.running().map(|p| (p.uid.clone(), p.netns)).collect();
            prop_assert_eq!(&believed, &world);
            prop_assert!(state.pending().all(|p| !world.contains_key(&p.uid)));
        }
    }

    /// A complete snapshot from an empty connection leaves exactly what it named, whatever was before.
    #[test]
    fn a_snapshot_decides(before in events(), named in proptest::collection::btree_map(0u8..4, 0u32..3, 0..4)) {
        let mut state: State<u32> = State::default();
        state.connected();
        for event in before {
            match event {
                Event::Reconnect => state.connected(),
                Event::Retry(ok) => for pod in state.retry() { state.started(pod, ok) },
                Event::Request(request, ok) => { play(&mut state, request, ok); }
            }
        }
        state.connected();
        for (n, netns) in &named {
            play(&mut state, add(*n, *netns), true);
        }
        play(&mut state, Request::SnapshotSent, true);
        let expect: BTreeMap<PodUid, u32> = named.iter().map(|(n, netns)| (uid(*n), *netns)).collect();
        let running: BTreeMap<PodUid, u32> = state.running().map(|p| (p.uid.clone(), p.netns)).collect();
        prop_assert_eq!(running, expect);
        prop_assert!(state.ready());
    }
}
