//! Settings of both ends. Callers fill them from their own configuration.

use std::time::Duration;

/// Flow control and framing of a connection.
///
/// The reference proxy gives each stream 4 MiB and the connection 16 MiB, so that four stalled readers stall all
/// others. Ours start at 256 KiB a stream and widen with use, but never so far that stalled streams could take all of
/// the connection's credit; credit comes back when bytes have left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Windows {
    /// Receive window that a stream starts with (HTTP2_STREAM_WINDOW_SIZE), as long as they are few.
    pub stream: u32,
    /// The widest that use makes it.
    pub stream_max: u32,
    /// Bytes that a connection may hold received and not yet passed on, at most (HTTP2_CONNECTION_WINDOW_SIZE).
    pub connection: u32,
    /// Largest DATA frame we take (HTTP2_FRAME_SIZE).
    pub frame: u32,
    /// Bytes that a stream may hold unsent inside HTTP/2.
    pub send_buffer: usize,
}

impl Default for Windows {
    fn default() -> Self {
        Self {
            stream: 256 << 10,
            stream_max: 4 << 20,
            connection: 16 << 20,
            frame: 1 << 20,
            // With half of it bulk transfers are a tenth slower. 200 streams whose peer grants credit and does not read
            // hold 25 MiB.
            send_buffer: 128 << 10,
        }
    }
}

impl Windows {
    /// HTTP/2 forbids windows above 2^31-1 and frames outside 2^14 ..= 2^24-1 (RFC 9113, 6.5.2); the rest of the
    /// program need not know.
    pub(crate) fn legal(self) -> Self {
        let max = (1 << 31) - 1;
        Self {
            stream: self.stream.min(max),
            stream_max: self.stream_max.clamp(self.stream.min(max), max),
            connection: self.connection.clamp(65_535, max),
            frame: self.frame.clamp(1 << 14, (1 << 24) - 1),
            send_buffer: self.send_buffer.clamp(1, u32::MAX as usize),
        }
    }
}

/// Streams that we have reset and still know, so that what their peer had under way is passed over in silence: all that
/// can be open at once, twice (they are cut, opened anew and cut again). Of a stream that is forgotten each frame costs
/// another reset.
pub(crate) const RESETS_KEPT: usize = 1024;
/// And for how long: the peer may have seconds of data under way.
pub(crate) const RESET_KEPT: Duration = Duration::from_secs(10);

/// PINGs that notice a dead peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Keepalive {
    /// Quiet time before each PING.
    pub interval: Duration,
    /// Time for its answer; then the connection is closed.
    pub timeout: Duration,
}

impl Default for Keepalive {
    fn default() -> Self {
        Self { interval: Duration::from_secs(10), timeout: Duration::from_secs(20) }
    }
}

/// The connecting end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientConfig {
    /// Flow control.
    pub windows: Windows,
    /// Largest header list of a response.
    pub max_header_list: u32,
    /// Dead peer detection.
    pub keepalive: Keepalive,
    /// From sending a CONNECT to its response; the peer connects to the application meanwhile.
    pub response_timeout: Duration,
}

impl Default for ClientConfig {
    fn default() -> Self {
        Self {
            windows: Windows::default(),
            max_header_list: 16 << 10,
            keepalive: Keepalive::default(),
            response_timeout: Duration::from_secs(30),
        }
    }
}

/// The accepting end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerConfig {
    /// Flow control.
    pub windows: Windows,
    /// Streams a client may have open at once.
    pub max_concurrent_streams: u32,
    /// Largest header list of a request; above it the answer is 431.
    pub max_header_list: u32,
    /// Dead peer detection.
    pub keepalive: Keepalive,
    /// Time for the client's HTTP/2 preface.
    pub handshake_timeout: Duration,
    /// Time from there to the first request.
    pub request_timeout: Duration,
}

/// Bytes that all connections of a pod may hold received and not yet passed on, unless told otherwise.
pub const POD_BUDGET: u64 = 128 << 20;

impl Default for ServerConfig {
    fn default() -> Self {
        Self {
            windows: Windows::default(),
            max_concurrent_streams: 200,
            max_header_list: 64 << 10,
            keepalive: Keepalive::default(),
            handshake_timeout: Duration::from_secs(10),
            request_timeout: Duration::from_secs(30),
        }
    }
}
