use super::*;
use futures_util::FutureExt;
use tokio::task::LocalSet;

/// Moves `pieces` of `size` bytes over `time`, and tells whether any of it was bulk.
fn is_bulk(pieces: u32, size: usize, time: Duration) -> bool {
    let start = Instant::now();
    let load = Load::new(start);
    (1..=pieces).any(|i| load.moved(size, || start + time * i / pieces).is_some())
}

#[test]
fn bulk_is_large_pieces_in_a_hurry() {
    let second = Duration::from_secs(1);
    assert!(is_bulk(64, 64 << 10, second), "4 MiB");
    assert!(is_bulk(1024, 4 << 10, second), "the same in pages");
    assert!(!is_bulk(64, 64 << 10, 10 * second), "3 Mbit/s");
    assert!(!is_bulk(100_000, 1 << 10, second), "a hundred thousand messages");
    assert!(!is_bulk(1, 1 << 20, second), "a picture");
}

#[test]
fn bulk_that_comes_late_is_noticed_and_told_again() {
    let start = Instant::now();
    let load = Load::new(start);
    let hour = start + Duration::from_secs(3600);
    assert_eq!(load.moved(BULK, || hour), None, "who knows since when");
    let soon = hour + Duration::from_millis(100);
    assert_eq!(load.moved(BULK, || soon), Some(soon));
    assert_eq!(load.moved(BULK, || soon + BULK_TIME), Some(soon + BULK_TIME));
    assert_eq!(load.moved(BULK, || soon + 3 * BULK_TIME), None);
}

struct Untold;

impl Tunable for Untold {
    fn set_target(&mut self, _: u32) {}

    fn set_window(&mut self, _: u32) -> bool {
        false
    }
}

#[tokio::test]
async fn streams_that_begin_at_once_wait_for_their_connection() {
    let tuning = Tuning::new(Windows::default(), &Budget::default(), Watch::new());
    let begin = |stream: usize| tuning.open(2 * stream as u32 + 1);
    let begun: Vec<_> = (0..AT_ONCE - 1).map(begin).collect();
    assert!(tuning.turn().now_or_never().is_some(), "room for one more");
    let last = begin(AT_ONCE);
    let mut waiting = Box::pin(tuning.turn());
    assert!(waiting.as_mut().now_or_never().is_none());
    tuning.before_poll(&mut Untold);
    assert!(waiting.now_or_never().is_some());
    drop((begun, last));
}

#[tokio::test]
async fn nobody_waits_for_a_connection_that_is_never_polled() {
    let tuning = Tuning::new(Windows::default(), &Budget::default(), Watch::new());
    let begun: Vec<_> = (0..AT_ONCE).map(|stream| tuning.open(2 * stream as u32 + 1)).collect();
    LocalSet::new().run_until(tuning.turn()).await;
    drop(begun);
}
