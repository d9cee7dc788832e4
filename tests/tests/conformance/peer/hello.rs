//! A TLS ClientHello (RFC 8446, 4.1.2) read off the wire before anybody answers it.

use anyhow::{Context, Result, ensure};
use tokio::net::TcpStream;

use super::until;

/// What a client offers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Hello {
    pub(crate) suites: Vec<u16>,
    /// Extension types in order.
    pub(crate) extensions: Vec<u16>,
    /// supported_versions (43).
    pub(crate) versions: Vec<u16>,
    /// supported_groups (10).
    pub(crate) groups: Vec<u16>,
    /// The groups that key_share (51) carries keys for.
    pub(crate) shares: Vec<u16>,
    /// application_layer_protocol_negotiation (16).
    pub(crate) alpn: Vec<String>,
}

pub(crate) const SERVER_NAME: u16 = 0;
pub(crate) const PRE_SHARED_KEY: u16 = 41;
pub(crate) const X25519MLKEM768: u16 = 0x11ec;

/// Looks at the hello without taking it from the socket.
pub(crate) async fn peek(stream: &TcpStream) -> Result<Hello> {
    let mut buffer = vec![0; 8192];
    let mut record = Vec::new();
    until("a whole ClientHello", async || {
        let length = stream.peek(&mut buffer).await?;
        ensure!(length > 0, "the client closed without a word");
        if length < 5 {
            return Ok(false);
        }
        let whole = 5 + usize::from(buffer[3]) * 256 + usize::from(buffer[4]);
        if length >= whole {
            record = buffer[5..whole].to_vec();
        }
        Ok(length >= whole)
    })
    .await?;
    parse(&record)
}

fn parse(record: &[u8]) -> Result<Hello> {
    let mut rest = record;
    ensure!(take(&mut rest, 1)? == [1], "not a ClientHello");
    take(&mut rest, 3)?;
    take(&mut rest, 2 + 32)?;
    let session = usize::from(take(&mut rest, 1)?[0]);
    take(&mut rest, session)?;
    let suites = numbers(block16(&mut rest)?);
    let compression = usize::from(take(&mut rest, 1)?[0]);
    take(&mut rest, compression)?;
    let mut hello = Hello { suites, ..Hello::default() };
    let mut extensions = block16(&mut rest)?;
    while !extensions.is_empty() {
        let kind = number(take(&mut extensions, 2)?);
        let mut body = block16(&mut extensions)?;
        hello.extensions.push(kind);
        match kind {
            10 => hello.groups = numbers(block16(&mut body)?),
            16 => {
                let mut list = block16(&mut body)?;
                while !list.is_empty() {
                    let length = usize::from(take(&mut list, 1)?[0]);
                    hello.alpn.push(String::from_utf8(take(&mut list, length)?.to_vec())?);
                }
            }
            43 => hello.versions = numbers(&body[1..]),
            51 => {
                let mut list = block16(&mut body)?;
                while !list.is_empty() {
                    hello.shares.push(number(take(&mut list, 2)?));
                    block16(&mut list)?;
                }
            }
            _ => {}
        }
    }
    Ok(hello)
}

fn take<'a>(rest: &mut &'a [u8], length: usize) -> Result<&'a [u8]> {
    let (taken, after) = rest.split_at_checked(length).context("a ClientHello that ends too early")?;
    *rest = after;
    Ok(taken)
}

fn number(bytes: &[u8]) -> u16 {
    u16::from_be_bytes([bytes[0], bytes[1]])
}

fn numbers(bytes: &[u8]) -> Vec<u16> {
    bytes.chunks_exact(2).map(number).collect()
}

fn block16<'a>(rest: &mut &'a [u8]) -> Result<&'a [u8]> {
    let length = usize::from(number(take(rest, 2)?));
    take(rest, length)
}
