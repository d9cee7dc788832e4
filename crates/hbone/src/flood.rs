//! Frames that cost us more than their sender: counted as they come in, and answered by closing the connection.
//!
//! h2 itself limits CONTINUATION frames, empty and tiny DATA frames, and resets of streams that nobody has accepted yet.
//! What it lets pass without end is counted here, each kind in a bucket of its own: SETTINGS, PING, PRIORITY, frames of
//! unknown kinds, WINDOW_UPDATE, RST_STREAM; the streams that were given up before their answer (CVE-2023-44487), which
//! make us connect to the application for nothing; and the resets that HTTP/2 itself had to send, for streams above the
//! limit, frames that break the protocol, and frames of streams that are over. h2 counts the last kind for as long as
//! the connection lives, which in the end closes honest ones: see [`FAULTS`].
//!
//! Work earns its share of each kind: a busy peer may send more of everything than an idle one.

use std::time::{Duration, Instant};

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
    /// Frames that had to be answered by RST_STREAM.
    Fault,
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
            Self::Fault => "frames that had to be answered by RST_STREAM",
        })
    }
}

/// Resets that h2 may send on its own account, over a connection's life: it holds each until the peer has taken it, so this
/// bounds what a peer that does not read can have us hold.
pub(crate) const FAULTS: usize = 1 << 14;
/// From here on the connection is replaced, long before h2 would break it.
const WORN: usize = FAULTS / 2;

/// So many at once, and so many each second.
#[derive(Debug)]
struct Bucket {
    burst: f64,
    per_second: f64,
    /// What work may add up to.
    most: f64,
    left: f64,
    at: Instant,
}

impl Bucket {
    fn new(burst: u32, per_second: u32, now: Instant) -> Self {
        let (burst, per_second) = (f64::from(burst), f64::from(per_second));
        Self { burst, per_second, most: burst, left: burst, at: now }
    }

    fn earning(self, most: u32) -> Self {
        Self { most: most.into(), ..self }
    }

    fn earn(&mut self, tokens: f64) {
        self.left = (self.left + tokens).min(self.most);
    }

    fn spend(&mut self, tokens: f64, now: Instant) -> bool {
        if self.left < tokens {
            let waited = now.saturating_duration_since(self.at).as_secs_f64();
            self.left = (self.left + waited * self.per_second).min(self.burst);
            self.at = now;
        }
        self.left -= tokens;
        self.left >= 0.0
    }
}

/// The frames of one peer.
///
/// The limits lie far above what proxies do: a PING in ten seconds or for each round trip of data, SETTINGS at the start
/// and as windows grow, two WINDOW_UPDATEs for each read of what they received, a reset for a stream.
#[derive(Debug)]
pub(crate) struct Counts {
    settings: Bucket,
    ping: Bucket,
    window_update: Bucket,
    reset: Bucket,
    other: Bucket,
    early_reset: Bucket,
    fault: Bucket,
    faults: usize,
}

const DATA: u8 = 0x0;
const HEADERS: u8 = 0x1;
const RST_STREAM: u8 = 0x3;
const SETTINGS: u8 = 0x4;
const PING: u8 = 0x6;
const WINDOW_UPDATE: u8 = 0x8;
const CONTINUATION: u8 = 0x9;
/// Of SETTINGS and PING.
const ACK: u8 = 0x1;

/// Bytes that we write for each WINDOW_UPDATE that they earn: less than the smallest DATA frame, for which a simple peer
/// returns two.
const WRITTEN_PER_UPDATE: f64 = 5.0;
/// WINDOW_UPDATEs that may be due: all that is in flight (16 MiB), read by 32 bytes.
const UPDATES_DUE: u32 = 1_000_000;
/// A stream that was given up after this long held its place among the streams, which are limited, for as long; and to
/// connect takes no longer where one connects for nothing.
const PATIENT: Duration = Duration::from_millis(50);
/// What such a stream counts.
const PATIENT_COST: f64 = 0.05;
/// Resets on our side that a stream which was served accounts for: frames that were under way when it was cut.
const FAULTS_PER_STREAM: f64 = 8.0;

impl Counts {
    pub(crate) fn new(now: Instant) -> Self {
        Self {
            settings: Bucket::new(200, 50, now),
            ping: Bucket::new(200, 20, now).earning(10_000),
            window_update: Bucket::new(10_000, 100, now).earning(UPDATES_DUE),
            reset: Bucket::new(10_000, 100, now),
            other: Bucket::new(200, 20, now).earning(1_000),
            early_reset: Bucket::new(1_000, 100, now),
            fault: Bucket::new(1_000, 100, now).earning(10_000),
            faults: 0,
        }
    }

    /// A frame has come.
    pub(crate) fn received(&mut self, frame: Head, now: Instant) -> Result<(), Flood> {
        let (bucket, flood) = match frame.kind {
            // h2 limits what is empty; flow control limits the rest. A peer that measures its path asks for each.
            DATA => {
                self.ping.earn(1.0);
                return Ok(());
            }
            // h2 limits what is endless.
            CONTINUATION => return Ok(()),
            // The streams themselves are limited; each may be reset, and be given a priority.
            HEADERS => {
                self.reset.earn(2.0);
                self.other.earn(1.0);
                return Ok(());
            }
            RST_STREAM => (&mut self.reset, Flood::Reset),
            SETTINGS => (&mut self.settings, Flood::Settings),
            PING => (&mut self.ping, Flood::Ping),
            WINDOW_UPDATE => (&mut self.window_update, Flood::WindowUpdate),
            _ => (&mut self.other, Flood::Other),
        };
        if bucket.spend(1.0, now) { Ok(()) } else { Err(flood) }
    }

    /// We have written a frame.
    pub(crate) fn sent(&mut self, frame: Head, now: impl FnOnce() -> Instant) -> Result<(), Flood> {
        match frame.kind {
            // A stream of ours may be reset without an answer.
            HEADERS => self.reset.earn(2.0),
            // They are acknowledged.
            SETTINGS if frame.flags & ACK == 0 => self.settings.earn(1.0),
            PING if frame.flags & ACK == 0 => self.ping.earn(1.0),
            RST_STREAM if frame.is_fault() => {
                self.faults += 1;
                if !self.fault.spend(1.0, now()) {
                    return Err(Flood::Fault);
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// We have written so many bytes.
    pub(crate) fn written(&mut self, bytes: usize) {
        #[allow(clippy::cast_precision_loss)] // a write is far below 2^53
        self.window_update.earn(bytes as f64 / WRITTEN_PER_UPDATE);
    }

    /// A stream was reset before its answer, so long after it was asked for.
    pub(crate) fn early_reset(&mut self, waited: Duration, now: Instant) -> Result<(), Flood> {
        let cost = if waited < PATIENT { 1.0 } else { PATIENT_COST };
        if self.early_reset.spend(cost, now) { Ok(()) } else { Err(Flood::EarlyReset) }
    }

    /// A stream was opened for good.
    pub(crate) fn served(&mut self) {
        self.early_reset.earn(1.0);
        self.fault.earn(FAULTS_PER_STREAM);
    }

    /// Whether another connection should take its place.
    pub(crate) fn worn(&self) -> bool {
        self.faults >= WORN
    }
}

/// What is looked at of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Head {
    pub(crate) kind: u8,
    pub(crate) flags: u8,
    /// The error code of RST_STREAM.
    pub(crate) code: Option<u32>,
}

impl Head {
    /// Whether it is one of the resets that HTTP/2 sends by itself: PROTOCOL_ERROR, FLOW_CONTROL_ERROR, STREAM_CLOSED,
    /// REFUSED_STREAM. Ours, for streams that have ended, have other codes.
    fn is_fault(self) -> bool {
        matches!(self.code, Some(1 | 3 | 5 | 7))
    }
}

/// Length of a frame's head, and with the error code of RST_STREAM.
const HEAD: usize = 9;
const HEAD_AND_CODE: usize = HEAD + 4;

/// Finds the frames in a stream of bytes, however it is cut.
#[derive(Debug)]
pub(crate) struct Scanner {
    /// Bytes until the next frame: of a payload, or of the preface.
    skip: usize,
    head: [u8; HEAD_AND_CODE],
    have: usize,
    want: usize,
}

impl Scanner {
    /// `preface`: bytes before the first frame.
    pub(crate) fn new(preface: usize) -> Self {
        Self { skip: preface, head: [0; HEAD_AND_CODE], have: 0, want: HEAD }
    }

    /// Calls `frame` with each frame whose head, and error code, is complete.
    pub(crate) fn feed<E>(&mut self, mut bytes: &[u8], mut frame: impl FnMut(Head) -> Result<(), E>) -> Result<(), E> {
        while !bytes.is_empty() {
            let skipped = self.skip.min(bytes.len());
            self.skip -= skipped;
            bytes = &bytes[skipped..];
            let taken = (self.want - self.have).min(bytes.len());
            self.head[self.have..self.have + taken].copy_from_slice(&bytes[..taken]);
            self.have += taken;
            bytes = &bytes[taken..];
            if self.have < self.want {
                continue;
            }
            let [_, _, _, kind, flags, ..] = self.head;
            let length = u32::from_be_bytes([0, self.head[0], self.head[1], self.head[2]]) as usize;
            if self.want == HEAD && kind == RST_STREAM && length == HEAD_AND_CODE - HEAD {
                self.want = HEAD_AND_CODE;
                continue;
            }
            let code = (self.want == HEAD_AND_CODE)
                .then(|| u32::from_be_bytes([self.head[9], self.head[10], self.head[11], self.head[12]]));
            self.skip = if code.is_some() { 0 } else { length };
            (self.have, self.want) = (0, HEAD);
            frame(Head { kind, flags, code })?;
        }
        Ok(())
    }
}
