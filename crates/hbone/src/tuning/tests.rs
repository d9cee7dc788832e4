use super::*;

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
