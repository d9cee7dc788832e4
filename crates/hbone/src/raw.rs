//! HTTP/2 frame by frame, for tests: what a well-behaved library would not send, and what exactly we sent.

use serde_json::Value;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt, DuplexStream};

pub(crate) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
pub(crate) const DATA: u8 = 0;
pub(crate) const HEADERS: u8 = 1;
pub(crate) const RST_STREAM: u8 = 3;
pub(crate) const SETTINGS: u8 = 4;
pub(crate) const PING: u8 = 6;
pub(crate) const GOAWAY: u8 = 7;
pub(crate) const CONTINUATION: u8 = 9;
pub(crate) const END_STREAM: u8 = 1;
pub(crate) const END_HEADERS: u8 = 4;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Frame {
    pub(crate) kind: u8,
    pub(crate) flags: u8,
    pub(crate) stream: u32,
    pub(crate) payload: Vec<u8>,
}

impl Frame {
    pub(crate) fn new(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Self {
        Self { kind, flags, stream, payload: payload.to_vec() }
    }

    pub(crate) fn headers(stream: u32, flags: u8, fields: &[(&str, &str)]) -> Self {
        Self::new(HEADERS, flags | END_HEADERS, stream, &block(fields))
    }

    /// The error code of RST_STREAM or GOAWAY.
    pub(crate) fn error(&self) -> u32 {
        let at = if self.kind == GOAWAY { 4 } else { 0 };
        u32::from_be_bytes(self.payload[at..at + 4].try_into().unwrap())
    }

    pub(crate) fn settings(&self) -> Vec<(u16, u32)> {
        let entry = |e: &[u8]| (u16::from_be_bytes([e[0], e[1]]), u32::from_be_bytes([e[2], e[3], e[4], e[5]]));
        self.payload.chunks(6).map(entry).collect()
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = (self.payload.len() as u32).to_be_bytes()[1..].to_vec();
        out.extend([self.kind, self.flags]);
        out.extend(self.stream.to_be_bytes());
        out.extend(&self.payload);
        out
    }
}

/// HPACK literals without indexing and without Huffman.
pub(crate) fn block(fields: &[(&str, &str)]) -> Vec<u8> {
    let mut out = vec![];
    for (name, value) in fields {
        out.push(0);
        for text in [name, value] {
            integer(text.len(), &mut out);
            out.extend(text.as_bytes());
        }
    }
    out
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

pub(crate) async fn read_frame(io: &mut (impl AsyncRead + Unpin)) -> Option<Frame> {
    let mut head = [0; 9];
    io.read_exact(&mut head).await.ok()?;
    let mut payload = vec![0; u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize];
    io.read_exact(&mut payload).await.ok()?;
    let stream = u32::from_be_bytes(head[5..9].try_into().unwrap());
    Some(Frame { kind: head[3], flags: head[4], stream, payload })
}

/// One end of a connection, by hand.
pub(crate) struct Raw(pub(crate) DuplexStream);

impl Raw {
    /// A client that has sent its preface and empty settings.
    pub(crate) async fn client(io: DuplexStream) -> Self {
        let mut raw = Self(io);
        raw.0.write_all(PREFACE).await.unwrap();
        raw.send(Frame::new(SETTINGS, 0, 0, &[])).await;
        raw
    }

    pub(crate) async fn send(&mut self, frame: Frame) {
        self.0.write_all(&frame.encode()).await.unwrap();
    }

    /// Like [`send`](Self::send), to a peer that may have hung up.
    pub(crate) async fn try_send(&mut self, frame: Frame) -> bool {
        self.0.write_all(&frame.encode()).await.is_ok()
    }

    pub(crate) async fn next(&mut self) -> Option<Frame> {
        read_frame(&mut self.0).await
    }

    /// The next frame of a stream, or a GOAWAY; `None` when the peer hung up.
    pub(crate) async fn answer(&mut self) -> Option<Frame> {
        loop {
            let frame = self.next().await?;
            if frame.stream != 0 || frame.kind == GOAWAY {
                return Some(frame);
            }
        }
    }
}

/// A recording of the reference implementation.
pub(crate) fn recording(name: &str) -> Vec<Value> {
    let path = format!("{}/../../tests/recordings/ztunnel/{name}", env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{path}: {e}"));
    let recording: Value = serde_json::from_str(&text).unwrap();
    recording["entries"].as_array().unwrap().clone()
}

pub(crate) fn hex(text: &str) -> Vec<u8> {
    (0..text.len()).step_by(2).map(|i| u8::from_str_radix(&text[i..i + 2], 16).unwrap()).collect()
}

pub(crate) fn fields(entry: &Value) -> Vec<(&str, &str)> {
    let list = entry["json"]["headers"].as_array().unwrap();
    list.iter().map(|f| (f[0].as_str().unwrap(), f[1].as_str().unwrap())).collect()
}
