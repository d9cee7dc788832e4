use super::*;
use proptest::prelude::*;
use std::time::Duration;

const KINDS: [(u8, Flood, u32, u32); 7] = [
    (0x4, Flood::Settings, 200, 50),
    (0x6, Flood::Ping, 200, 20),
    (0x8, Flood::WindowUpdate, 10_000, 100),
    (0x3, Flood::Reset, 10_000, 100),
    (0x2, Flood::Other, 200, 20),
    (0x7, Flood::Other, 200, 20),
    (0xbe, Flood::Other, 200, 20),
];

fn head(kind: u8) -> Head {
    Head { kind, flags: 0, code: None }
}

fn reset(code: u32) -> Head {
    Head { kind: 3, flags: 0, code: Some(code) }
}

#[test]
fn each_kind_has_its_burst_and_its_pace() {
    for (kind, flood, burst, per_second) in KINDS {
        let mut now = Instant::now();
        let mut counts = Counts::new(now);
        for i in 0..burst {
            assert_eq!(counts.received(head(kind), now), Ok(()), "{flood}: {i}");
        }
        assert_eq!(counts.received(head(kind), now), Err(flood));
        now += Duration::from_secs(1);
        // One of the second's went to the one that was too many.
        for i in 1..per_second {
            assert_eq!(counts.received(head(kind), now), Ok(()), "{flood}: {i} of the next second");
        }
        assert_eq!(counts.received(head(kind), now), Err(flood), "{flood}: no more than {per_second} in a second");
    }
}

#[test]
fn a_steady_pace_below_the_limit_goes_on_for_ever() {
    for (kind, flood, _, per_second) in KINDS {
        let mut now = Instant::now();
        let mut counts = Counts::new(now);
        for _ in 0..100_000 {
            now += Duration::from_secs(1) / (per_second - 1);
            assert_eq!(counts.received(head(kind), now), Ok(()), "{flood}");
        }
    }
}

#[test]
fn one_kind_s_flood_is_not_another_s() {
    let now = Instant::now();
    let mut counts = Counts::new(now);
    while counts.received(head(0x6), now).is_ok() {}
    for (kind, flood, ..) in KINDS.iter().filter(|k| k.0 != 0x6) {
        assert_eq!(counts.received(head(*kind), now), Ok(()), "{flood}");
    }
    for kind in [0x0, 0x1, 0x9] {
        assert!((0..100_000).all(|_| counts.received(head(kind), now).is_ok()), "data and headers have other limits");
    }
}

#[test]
fn what_we_send_pays_for_window_updates() {
    let now = Instant::now();
    let mut counts = Counts::new(now);
    // A chatty application: frames of one byte, and a peer that answers each by two updates, for stream and connection.
    for _ in 0..100_000 {
        counts.written(10);
        assert_eq!((counts.received(head(0x8), now), counts.received(head(0x8), now)), (Ok(()), Ok(())));
    }
    // A whole connection's window, taken by 64 bytes after we have ended: two updates for each.
    counts.written(16 << 20);
    let updates = 2 * (16 << 20) / 64;
    assert!((0..updates).all(|_| counts.received(head(0x8), now).is_ok()), "{updates} are due");
    counts.written(1 << 30);
    let most = (0..2_000_000).take_while(|_| counts.received(head(0x8), now).is_ok()).count();
    assert!(most <= 1_000_000, "what was earned has a limit: {most}");
}

#[test]
fn streams_pay_for_their_resets_and_priorities() {
    let now = Instant::now();
    let mut counts = Counts::new(now);
    for _ in 0..100_000 {
        let frames = [0x1, 0x2, 0x3].map(|kind| counts.received(head(kind), now));
        assert_eq!(frames, [Ok(()); 3]);
    }
    // A server that answers our streams by nothing else.
    let mut counts = Counts::new(now);
    for _ in 0..100_000 {
        assert_eq!(counts.sent(head(0x1), || now), Ok(()));
        assert_eq!(counts.received(reset(7), now), Ok(()));
    }
}

#[test]
fn one_that_measures_its_path_may_ping_for_each_data() {
    let now = Instant::now();
    let mut counts = Counts::new(now);
    for _ in 0..100_000 {
        assert_eq!((counts.received(head(0x0), now), counts.received(head(0x6), now)), (Ok(()), Ok(())));
    }
    // And it answers ours.
    for _ in 0..100_000 {
        for kind in [0x4, 0x6] {
            assert_eq!((counts.sent(head(kind), || now), counts.received(head(kind), now)), (Ok(()), Ok(())));
        }
    }
    let left = (0..100_000).take_while(|_| counts.received(head(0x6), now).is_ok()).count();
    assert!(left <= 10_000, "{left}");
}

#[test]
fn streams_given_up_at_once_count_in_full_and_work_pays_for_them() {
    let start = Instant::now();
    let (hasty, patient) = (Duration::from_millis(1), Duration::from_millis(60));
    let mut counts = Counts::new(start);
    assert!((0..1000).all(|_| counts.early_reset(hasty, start).is_ok()));
    assert_eq!(counts.early_reset(hasty, start), Err(Flood::EarlyReset));
    // An application that does not answer, and 200 clients that each ask again every tenth of a second.
    let (mut counts, mut now) = (Counts::new(start), start);
    for i in 0..200_000 {
        now += Duration::from_micros(500);
        assert_eq!(counts.early_reset(patient, now), Ok(()), "{i}");
    }
    let most = (0..100_000).take_while(|_| counts.early_reset(patient, now).is_ok()).count();
    assert!(most <= 20_000, "held long or not, there is a limit: {most}");
    // Of those that ask twice and keep the faster.
    let mut counts = Counts::new(start);
    for _ in 0..100_000 {
        counts.served();
        assert_eq!(counts.early_reset(hasty, start), Ok(()));
    }
}

#[test]
fn resets_of_http2_itself_are_limited_and_wear_a_connection_out() {
    let now = Instant::now();
    let mut counts = Counts::new(now);
    for code in [0, 2, 8, 10] {
        assert!((0..100_000).all(|_| counts.sent(reset(code), || now).is_ok()), "{code} is ours");
    }
    let most = (0..100_000).take_while(|_| counts.sent(reset(5), || now).is_ok()).count();
    assert_eq!(most, 1000);
    assert!(!counts.worn());
    // Cut again and again, each time with frames under way.
    let (mut counts, mut total) = (Counts::new(now), 0);
    while !counts.worn() {
        counts.served();
        for code in [5; 8] {
            assert_eq!(counts.sent(reset(code), || now), Ok(()), "after {total}");
            total += 1;
        }
        assert!(total < FAULTS, "replaced before HTTP/2 breaks it");
    }
}

fn encode(frames: &[(u8, u8, Vec<u8>)]) -> Vec<u8> {
    let mut out = vec![0xff; 24];
    for (kind, flags, payload) in frames {
        out.extend_from_slice(&u32::try_from(payload.len()).unwrap().to_be_bytes()[1..]);
        out.extend([*kind, *flags, 0, 0, 0, 1]);
        out.extend_from_slice(payload);
    }
    out
}

proptest! {
    #[test]
    fn finds_the_frames_however_the_bytes_are_cut(
        frames in proptest::collection::vec((prop_oneof![any::<u8>(), Just(3)], any::<u8>(), prop_oneof![
            proptest::collection::vec(any::<u8>(), 0..40), proptest::collection::vec(any::<u8>(), 4)]), 0..20),
        cuts in proptest::collection::vec(1..30_usize, 1..20),
    ) {
        let bytes = encode(&frames);
        let (mut scanner, mut seen, mut rest) = (Scanner::new(24), vec![], &bytes[..]);
        for cut in cuts.iter().cycle() {
            let (part, later) = rest.split_at((*cut).min(rest.len()));
            scanner.feed(part, |head| { seen.push(head); Ok::<_, ()>(()) }).unwrap();
            rest = later;
            if rest.is_empty() { break }
        }
        let expected = frames.iter().map(|(kind, flags, payload)| {
            let code = payload.clone().try_into().ok().filter(|_| *kind == 3).map(u32::from_be_bytes);
            Head { kind: *kind, flags: *flags, code }
        });
        prop_assert_eq!(seen, expected.collect::<Vec<_>>());
    }

    #[test]
    fn no_bytes_make_the_scanner_panic(bytes in proptest::collection::vec(any::<u8>(), 0..500), preface in 0..30_usize) {
        let now = Instant::now();
        let mut counts = Counts::new(now);
        let _ = Scanner::new(preface).feed(&bytes, |head| counts.received(head, now));
    }
}
