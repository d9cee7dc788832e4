//! HTTP/2 frame by frame (RFC 9113), for what no library would send.

use std::time::Duration;

use anyhow::Result;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
pub(super) const HEADERS: u8 = 1;
pub(super) const RST_STREAM: u8 = 3;
pub(super) const SETTINGS: u8 = 4;
pub(super) const PING: u8 = 6;
pub(super) const GOAWAY: u8 = 7;
pub(super) const CONTINUATION: u8 = 9;
pub(super) const END_HEADERS: u8 = 4;

pub(super) struct Frame {
    pub(super) kind: u8,
    payload: Vec<u8>,
}

impl Frame {
    /// The error code of RST_STREAM or GOAWAY.
    pub(super) fn error(&self) -> u32 {
        let at = if self.kind == GOAWAY { 4 } else { 0 };
        self.payload.get(at..at + 4).map_or(0, |code| u32::from_be_bytes(code.try_into().expect("four bytes")))
    }
}

/// One frame's bytes.
pub(super) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut out = u32::try_from(payload.len()).expect("short").to_be_bytes()[1..].to_vec();
    out.extend([kind, flags]);
    out.extend(stream.to_be_bytes());
    out.extend(payload);
    out
}

/// HPACK (RFC 7541): literals, not indexed, not Huffman-coded.
pub(super) fn block(fields: &[(&str, &str)]) -> Vec<u8> {
    let mut out = Vec::new();
    for (name, value) in fields {
        literal(0, name, value, &mut out);
    }
    out
}

/// One literal; with `0x40` it goes into the peer's dynamic table, as the newest entry there.
pub(super) fn literal(kind: u8, name: &str, value: &str, out: &mut Vec<u8>) {
    out.push(kind);
    for text in [name, value] {
        integer(text.len(), out);
        out.extend(text.as_bytes());
    }
}

fn integer(mut n: usize, out: &mut Vec<u8>) {
    if n < 127 {
        return out.push(n as u8);
    }
    out.push(127);
    n -= 127;
    while n >= 128 {
        out.push((n % 128) as u8 | 128);
        n /= 128;
    }
    out.push(n as u8);
}

/// Says hello as a client does.
pub(super) async fn hello(tls: &mut TlsStream<TcpStream>) -> Result<()> {
    tls.write_all(PREFACE).await?;
    tls.write_all(&frame(SETTINGS, 0, 0, &[])).await?;
    Ok(tls.flush().await?)
}

/// The next frame; `None` at the end, however the peer ends it.
pub(super) async fn next(io: &mut (impl AsyncRead + Unpin)) -> Option<Frame> {
    let mut head = [0; 9];
    io.read_exact(&mut head).await.ok()?;
    let mut payload = vec![0; u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize];
    io.read_exact(&mut payload).await.ok()?;
    Some(Frame { kind: head[3], payload })
}

/// What came of sending: how much went out before the peer ended it, and its GOAWAY's error.
#[derive(Debug)]
pub(super) struct Sent {
    pub(super) bytes: usize,
    pub(super) goaway: Option<u32>,
    pub(super) closed: bool,
}

impl Sent {
    /// Closed by the peer; if it could still say why, for an excess (ENHANCE_YOUR_CALM, RFC 9113, 7).
    pub(super) fn dismissed(&self) -> bool {
        self.closed && self.goaway.is_none_or(|code| code == 11)
    }
}

/// Sends chunks and reads meanwhile, until the peer ends the connection or all is sent and `patience` has passed.
pub(super) async fn flood(
    tls: TlsStream<TcpStream>,
    chunks: impl Iterator<Item = Vec<u8>>,
    patience: Duration,
) -> Sent {
    let (mut from, mut to) = tokio::io::split(tls);
    let (mut goaway, mut bytes) = (None, 0);
    let read = async {
        while let Some(frame) = next(&mut from).await {
            if frame.kind == GOAWAY {
                goaway = Some(frame.error());
            }
        }
    };
    let write = async {
        for chunk in chunks {
            if to.write_all(&chunk).await.is_err() {
                break;
            }
            bytes += chunk.len();
        }
        let _ = to.flush().await;
        // What the peer said last is still to be read.
        std::future::pending::<()>().await;
    };
    let closed = tokio::select! {
        () = read => true,
        () = write => false,
        () = tokio::time::sleep(patience) => false,
    };
    Sent { bytes, goaway, closed }
}
