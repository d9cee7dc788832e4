//! Frames that cost us more than their sender: counted as they come in, and answered by closing the connection.
//!
//! h2 itself limits CONTINUATION frames, empty and tiny DATA frames, resets of streams that nobody has accepted yet and
//! streams that it had to refuse. What it lets pass without end is counted here, each kind in a bucket of its own:
//! SETTINGS, PING, PRIORITY, frames of unknown kinds, WINDOW_UPDATE, RST_STREAM; and the streams that were given up
//! before their answer (CVE-2023-44487), which make us connect to the application for nothing.

use std::time::Instant;

#[cfg(test)]
mod tests;

/// What there was too much of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flood {
    /// SETTINGS.
    Settings,
    /// PING, answers to PINGs included.
    Ping,
    /// WINDOW_UPDATE, above what our own data accounts for.
    WindowUpdate,
    /// RST_STREAM, above what the streams account for.
    Reset,
    /// PRIORITY and kinds that we don't know.
    Other,
    /// Streams reset before they were answered.
    EarlyReset,
}

impl std::fmt::Display for Flood {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Settings => "SETTINGS frames",
            Self::Ping => "PING frames",
            Self::WindowUpdate => "WINDOW_UPDATE frames",
            Self::Reset => "RST_STREAM frames",
            Self::Other => "PRIORITY or unknown frames",
            Self::EarlyReset => "streams reset before their answer",
        })
    }
}

/// So many at once, and so many each second.
#[derive(Debug)]
struct Bucket {
    burst: f64,
    per_second: f64,
    left: f64,
    at: Instant,
}

impl Bucket {
    fn new(burst: u32, per_second: u32, now: Instant) -> Self {
        Self { burst: burst.into(), per_second: per_second.into(), left: burst.into(), at: now }
    }

    fn earn(&mut self, tokens: f64) {
        self.left = (self.left + tokens).min(self.burst);
    }

    fn spend(&mut self, now: Instant) -> bool {
        if self.left < 1.0 {
            let waited = now.saturating_duration_since(self.at).as_secs_f64();
            self.earn(waited * self.per_second);
            self.at = now;
        }
        self.left -= 1.0;
        self.left >= 0.0
    }
}

/// The frames of one peer.
///
/// The limits lie far above what proxies do: a PING in ten seconds, SETTINGS at the start and as windows grow, two
/// WINDOW_UPDATEs for every few kilobytes that they receive, a reset for a stream.
#[derive(Debug)]
pub(crate) struct Counts {
    settings: Bucket,
    ping: Bucket,
    window_update: Bucket,
    reset: Bucket,
    other: Bucket,
    early_reset: Bucket,
}

/// Bytes that we write for each WINDOW_UPDATE that they earn: less than the smallest DATA frame, for which a simple peer
/// returns two.
const WRITTEN_PER_UPDATE: f64 = 5.0;

impl Counts {
    pub(crate) fn new(now: Instant) -> Self {
        Self {
            settings: Bucket::new(200, 50, now),
            ping: Bucket::new(200, 20, now),
            window_update: Bucket::new(10_000, 100, now),
            reset: Bucket::new(10_000, 100, now),
            other: Bucket::new(200, 20, now),
            early_reset: Bucket::new(1_000, 100, now),
        }
    }

    /// A frame has come.
    pub(crate) fn frame(&mut self, kind: u8, now: Instant) -> Result<(), Flood> {
        let (bucket, flood) = match kind {
            // DATA and CONTINUATION: h2 limits what is empty or endless; flow control limits the rest.
            0x0 | 0x9 => return Ok(()),
            // HEADERS; the streams themselves are limited, and each may be reset.
            0x1 => {
                self.reset.earn(2.0);
                return Ok(());
            }
            0x3 => (&mut self.reset, Flood::Reset),
            0x4 => (&mut self.settings, Flood::Settings),
            0x6 => (&mut self.ping, Flood::Ping),
            0x8 => (&mut self.window_update, Flood::WindowUpdate),
            _ => (&mut self.other, Flood::Other),
        };
        if bucket.spend(now) { Ok(()) } else { Err(flood) }
    }

    /// We have written so many bytes.
    pub(crate) fn written(&mut self, bytes: usize) {
        #[allow(clippy::cast_precision_loss)] // a write is far below 2^53
        self.window_update.earn(bytes as f64 / WRITTEN_PER_UPDATE);
    }

    /// A stream was reset before its answer.
    pub(crate) fn early_reset(&mut self, now: Instant) -> Result<(), Flood> {
        if self.early_reset.spend(now) { Ok(()) } else { Err(Flood::EarlyReset) }
    }
}

/// Finds the frames in a stream of bytes, however it is cut.
#[derive(Debug)]
pub(crate) struct Scanner {
    /// Bytes until the next frame: of a payload, or of the preface.
    skip: usize,
    head: [u8; 9],
    have: usize,
}

impl Scanner {
    /// `preface`: bytes before the first frame.
    pub(crate) fn new(preface: usize) -> Self {
        Self { skip: preface, head: [0; 9], have: 0 }
    }

    /// Calls `frame` with kind and flags of each frame whose head is complete.
    pub(crate) fn feed<E>(
        &mut self,
        mut bytes: &[u8],
        mut frame: impl FnMut(u8, u8) -> Result<(), E>,
    ) -> Result<(), E> {
        while !bytes.is_empty() {
            let skipped = self.skip.min(bytes.len());
            self.skip -= skipped;
            bytes = &bytes[skipped..];
            let taken = (self.head.len() - self.have).min(bytes.len());
            self.head[self.have..self.have + taken].copy_from_slice(&bytes[..taken]);
            self.have += taken;
            bytes = &bytes[taken..];
            if self.have == self.head.len() {
                self.have = 0;
                self.skip = u32::from_be_bytes([0, self.head[0], self.head[1], self.head[2]]) as usize;
                frame(self.head[3], self.head[4])?;
            }
        }
        Ok(())
    }
}
