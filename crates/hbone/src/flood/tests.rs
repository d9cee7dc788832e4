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

#[test]
fn each_kind_has_its_burst_and_its_pace() {
    for (kind, flood, burst, per_second) in KINDS {
        let mut now = Instant::now();
        let mut counts = Counts::new(now);
        for i in 0..burst {
            assert_eq!(counts.frame(kind, now), Ok(()), "{flood}: {i}");
        }
        assert_eq!(counts.frame(kind, now), Err(flood));
        now += Duration::from_secs(1);
        // One of the second's went to the one that was too many.
        for i in 1..per_second {
            assert_eq!(counts.frame(kind, now), Ok(()), "{flood}: {i} of the next second");
        }
        assert_eq!(counts.frame(kind, now), Err(flood), "{flood}: no more than {per_second} in a second");
    }
}

#[test]
fn a_steady_pace_below_the_limit_goes_on_for_ever() {
    for (kind, flood, _, per_second) in KINDS {
        let mut now = Instant::now();
        let mut counts = Counts::new(now);
        for _ in 0..100_000 {
            now += Duration::from_secs(1) / (per_second - 1);
            assert_eq!(counts.frame(kind, now), Ok(()), "{flood}");
        }
    }
}

#[test]
fn one_kind_s_flood_is_not_another_s() {
    let now = Instant::now();
    let mut counts = Counts::new(now);
    while counts.frame(0x6, now).is_ok() {}
    for (kind, flood, ..) in KINDS.iter().filter(|k| k.0 != 0x6) {
        assert_eq!(counts.frame(*kind, now), Ok(()), "{flood}");
    }
    for kind in [0x0, 0x1, 0x9] {
        assert!((0..100_000).all(|_| counts.frame(kind, now).is_ok()), "data and headers have other limits");
    }
}

#[test]
fn what_we_send_pays_for_window_updates() {
    let now = Instant::now();
    let mut counts = Counts::new(now);
    // A chatty application: frames of one byte, and a peer that answers each by two updates, for stream and connection.
    for _ in 0..100_000 {
        counts.written(10);
        assert_eq!((counts.frame(0x8, now), counts.frame(0x8, now)), (Ok(()), Ok(())));
    }
    assert!((0..20_000).any(|_| counts.frame(0x8, now).is_err()), "what was earned has a limit");
}

#[test]
fn streams_pay_for_their_resets() {
    let now = Instant::now();
    let mut counts = Counts::new(now);
    for _ in 0..100_000 {
        assert_eq!((counts.frame(0x1, now), counts.frame(0x3, now)), (Ok(()), Ok(())));
    }
    let mut early = Counts::new(now);
    assert!((0..1000).all(|_| early.early_reset(now).is_ok()));
    assert_eq!(early.early_reset(now), Err(Flood::EarlyReset));
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
        frames in proptest::collection::vec((any::<u8>(), any::<u8>(), proptest::collection::vec(any::<u8>(), 0..40)), 0..20),
        cuts in proptest::collection::vec(1..30_usize, 1..20),
    ) {
        let bytes = encode(&frames);
        let (mut scanner, mut seen, mut rest) = (Scanner::new(24), vec![], &bytes[..]);
        for cut in cuts.iter().cycle() {
            let (part, later) = rest.split_at((*cut).min(rest.len()));
            scanner.feed(part, |kind, flags| { seen.push((kind, flags)); Ok::<_, ()>(()) }).unwrap();
            rest = later;
            if rest.is_empty() { break }
        }
        prop_assert_eq!(seen, frames.iter().map(|f| (f.0, f.1)).collect::<Vec<_>>());
    }

    #[test]
    fn no_bytes_make_the_scanner_panic(bytes in proptest::collection::vec(any::<u8>(), 0..500), preface in 0..30_usize) {
        let now = Instant::now();
        let mut counts = Counts::new(now);
        let _ = Scanner::new(preface).feed(&bytes, |kind, _| counts.frame(kind, now));
    }
}
