//! gRPC's framing over streams of HTTP/2 framed by hand.

use anyhow::{Context, Result, bail};

use super::h2::{Event, Stream};
use super::hpack::{self, Headers};
use super::protobuf::{Fields, Message};
use super::within;

/// One call, seen from either end.
#[derive(Debug)]
pub(crate) struct Call {
    stream: Stream,
    buffer: Vec<u8>,
    ended: bool,
}

/// Ends a call by trailers.
#[derive(Debug)]
pub(crate) struct Ender(super::h2::Sender);

impl Ender {
    pub(crate) fn finish(&self, code: u32, message: &str) {
        self.0.headers(&[("grpc-status", &code.to_string()), ("grpc-message", message)], true);
    }
}

/// How the other end ended a call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Status {
    pub(crate) code: u32,
    pub(crate) message: String,
}

impl Call {
    pub(crate) fn new(stream: Stream) -> Self {
        Self { stream, buffer: Vec::new(), ended: false }
    }

    /// The answer's headers; nothing has been refused so far.
    pub(crate) fn accept(&self) {
        self.stream.headers(&[(":status", "200"), ("content-type", "application/grpc")], false);
    }

    pub(crate) fn send(&self, message: &Message) {
        let mut bytes = vec![0];
        bytes.extend_from_slice(&(message.0.len() as u32).to_be_bytes());
        bytes.extend_from_slice(&message.0);
        self.stream.data(&bytes, false);
    }

    /// Ends the call by trailers.
    pub(crate) fn finish(&self, code: u32, message: &str) {
        self.stream.headers(&[("grpc-status", &code.to_string()), ("grpc-message", message)], true);
    }

    /// Ends the call before anything else was answered.
    pub(crate) fn refuse(&self, code: u32, message: &str) {
        let code = code.to_string();
        let headers = [
            (":status", "200"),
            ("content-type", "application/grpc"),
            ("grpc-status", &code),
            ("grpc-message", message),
        ];
        self.stream.headers(&headers, true);
    }

    /// A hand that can end the call from elsewhere.
    pub(crate) fn ender(&self) -> Ender {
        Ender(self.stream.sender())
    }

    /// The caller has said all.
    pub(crate) fn half_close(&self) {
        self.stream.data(&[], true);
    }

    /// The next message, or how the call ended.
    pub(crate) async fn receive(&mut self) -> Result<Result<Fields, Status>> {
        within("a gRPC message", self.receive_any()).await?
    }

    /// The same without a deadline.
    pub(crate) async fn receive_any(&mut self) -> Result<Result<Fields, Status>> {
        loop {
            if let Some(message) = self.whole()? {
                return Ok(Ok(message));
            }
            if self.ended {
                return Ok(Err(Status { code: 0, message: "half-closed".to_owned() }));
            }
            match self.stream.next_any().await {
                Some(Event::Data { bytes, end }) => {
                    self.buffer.extend(bytes);
                    self.ended |= end;
                }
                Some(Event::Headers { headers, end: true }) => return Ok(Err(status(&headers)?)),
                Some(Event::Headers { headers, .. }) => {
                    if hpack::value(&headers, ":status") != Some("200") {
                        bail!("answered {headers:?}");
                    }
                }
                Some(Event::Reset(code)) => bail!("the call was reset with code {code}"),
                None => bail!("the connection ended"),
            }
        }
    }

    fn whole(&mut self) -> Result<Option<Fields>> {
        let Some(head) = self.buffer.first_chunk::<5>() else { return Ok(None) };
        if head[0] != 0 {
            bail!("a compressed message, which was not offered");
        }
        let length = u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize;
        if self.buffer.len() < 5 + length {
            return Ok(None);
        }
        let message = self.buffer[5..5 + length].to_vec();
        self.buffer.drain(..5 + length);
        Fields::read(&message).map(Some)
    }
}

fn status(headers: &Headers) -> Result<Status> {
    let code = hpack::value(headers, "grpc-status").context("a grpc-status")?.parse()?;
    Ok(Status { code, message: hpack::value(headers, "grpc-message").unwrap_or_default().to_owned() })
}
