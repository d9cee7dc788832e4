//! Long streams whose bytes are known: one that is lost, doubled or swapped shows, and where.

use anyhow::{Result, ensure};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// What the streams consist of: long enough, and of a length odd enough, that a lost or doubled piece shows.
const PATTERN: usize = (1 << 20) + 7;

/// At most this many bytes of the stream with this number, from this place on.
fn piece(pattern: &[u8], stream: usize, at: usize, most: usize) -> &[u8] {
    let start = (at + stream * 77_777) % PATTERN;
    &pattern[start..PATTERN.min(start + most)]
}

fn pattern() -> Vec<u8> {
    let mixed = |i: u64| i.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes()[0];
    (0..PATTERN as u64).map(mixed).collect()
}

/// Sends the stream with this number; it stays open.
pub(crate) async fn send(to: &mut (impl AsyncWrite + Unpin), stream: usize, total: usize) -> Result<()> {
    let (pattern, mut at) = (pattern(), 0);
    while at < total {
        let part = piece(&pattern, stream, at, (total - at).min(64 << 10));
        to.write_all(part).await?;
        at += part.len();
    }
    Ok(())
}

/// Reads this part of the stream, and that it is the right one.
pub(crate) async fn receive(
    from: &mut (impl AsyncRead + Unpin),
    stream: usize,
    start: usize,
    total: usize,
) -> Result<()> {
    let (pattern, mut at, mut buffer) = (pattern(), start, vec![0; 256 << 10]);
    while at < total {
        let expected = piece(&pattern, stream, at, buffer.len().min(total - at));
        let wanted = expected.len();
        let n = from.read(&mut buffer[..wanted]).await?;
        ensure!(n > 0, "the end after {at} bytes");
        ensure!(buffer[..n] == expected[..n], "other bytes than sent near {at}");
        at += n;
    }
    Ok(())
}
