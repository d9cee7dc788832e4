//! DNS messages (RFC 1035) by hand.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use anyhow::{Context, Result, ensure};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::net::Netns;
use super::within;

pub(crate) const A: u16 = 1;
pub(crate) const CNAME: u16 = 5;
pub(crate) const MX: u16 = 15;
pub(crate) const TXT: u16 = 16;
pub(crate) const AAAA: u16 = 28;
const OPT: u16 = 41;

/// A query with the recursion-desired flag; with EDNS if a payload size is given.
pub(crate) fn query(id: u16, name: &str, kind: u16, edns: Option<u16>) -> Vec<u8> {
    let mut out = Vec::new();
    for number in [id, 0x0100, 1, 0, 0, u16::from(edns.is_some())] {
        out.extend_from_slice(&number.to_be_bytes());
    }
    write_name(&mut out, name);
    out.extend_from_slice(&kind.to_be_bytes());
    out.extend_from_slice(&1u16.to_be_bytes());
    if let Some(size) = edns {
        out.push(0);
        out.extend_from_slice(&OPT.to_be_bytes());
        out.extend_from_slice(&size.to_be_bytes());
        out.extend_from_slice(&[0; 6]);
    }
    out
}

fn write_name(out: &mut Vec<u8>, name: &str) {
    for label in name.split('.').filter(|label| !label.is_empty()) {
        out.push(label.len() as u8);
        out.extend_from_slice(label.as_bytes());
    }
    out.push(0);
}

/// An answer to a query as received, with one record.
pub(crate) fn reply(query: &[u8], kind: u16, data: &[u8]) -> Vec<u8> {
    let mut end = 12;
    while query[end] != 0 {
        end += 1 + usize::from(query[end]);
    }
    let mut out = query[..end + 5].to_vec();
    out[2..12].copy_from_slice(&[0x81, 0x80, 0, 1, 0, 1, 0, 0, 0, 0]);
    out.extend_from_slice(&[0xc0, 12]);
    for number in [kind, 1, 0, 77] {
        out.extend_from_slice(&number.to_be_bytes());
    }
    out.extend_from_slice(&(data.len() as u16).to_be_bytes());
    out.extend_from_slice(data);
    out
}

/// A record of an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Record {
    pub(crate) name: String,
    pub(crate) kind: u16,
    pub(crate) ttl: u32,
    pub(crate) data: String,
}

/// A response.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Response {
    pub(crate) id: u16,
    pub(crate) flags: u16,
    pub(crate) answers: Vec<Record>,
    pub(crate) edns: bool,
}

impl Response {
    pub(crate) fn code(&self) -> u16 {
        self.flags & 0xf
    }

    pub(crate) fn authoritative(&self) -> bool {
        self.flags & 0x0400 != 0
    }

    pub(crate) fn recursion_available(&self) -> bool {
        self.flags & 0x0080 != 0
    }

    /// The data of the answers, sorted.
    pub(crate) fn data(&self) -> Vec<String> {
        let mut data: Vec<String> = self.answers.iter().map(|record| record.data.clone()).collect();
        data.sort();
        data
    }
}

pub(crate) fn parse(message: &[u8]) -> Result<Response> {
    let number = |at: usize| message.get(at..at + 2).map(|b| u16::from_be_bytes([b[0], b[1]])).context("a number");
    let counts = [number(4)?, number(6)?, number(8)?, number(10)?];
    let mut at = 12;
    for _ in 0..counts[0] {
        at = read_name(message, at)?.1 + 4;
    }
    let mut response = Response { id: number(0)?, flags: number(2)?, answers: Vec::new(), edns: false };
    for index in 0..counts[1] + counts[2] + counts[3] {
        let (name, after) = read_name(message, at)?;
        let (kind, length) = (number(after)?, usize::from(number(after + 8)?));
        let ttl = u32::from(number(after + 4)?) << 16 | u32::from(number(after + 6)?);
        let data = message.get(after + 10..after + 10 + length).context("record data")?;
        at = after + 10 + length;
        if kind == OPT {
            response.edns = true;
        } else if index < counts[1] {
            let data = match (kind, data.len()) {
                (A, 4) => IpAddr::from(<[u8; 4]>::try_from(data)?).to_string(),
                (AAAA, 16) => IpAddr::from(<[u8; 16]>::try_from(data)?).to_string(),
                (CNAME, _) => read_name(message, after + 10)?.0,
                _ => format!("{data:02x?}"),
            };
            response.answers.push(Record { name, kind, ttl, data });
        }
    }
    Ok(response)
}

fn read_name(message: &[u8], mut at: usize) -> Result<(String, usize)> {
    let mut labels = Vec::new();
    let mut after = None;
    for _ in 0..128 {
        let length = usize::from(*message.get(at).context("a name")?);
        if length == 0 {
            return Ok((labels.join("."), after.unwrap_or(at + 1)));
        }
        if length & 0xc0 == 0xc0 {
            after.get_or_insert(at + 2);
            at = (length & 0x3f) << 8 | usize::from(*message.get(at + 1).context("a pointer")?);
        } else {
            let label = message.get(at + 1..at + 1 + length).context("a label")?;
            labels.push(String::from_utf8_lossy(label).into_owned());
            at += 1 + length;
        }
    }
    anyhow::bail!("a name without an end")
}

/// Asks by UDP.
pub(crate) async fn ask(from: &Netns, server: SocketAddr, query: &[u8]) -> Result<Response> {
    let any: IpAddr = if server.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = from.udp((any, 0).into())?;
    socket.send_to(query, server).await?;
    let mut buffer = vec![0; 4096];
    let (length, _) = within("a DNS answer", socket.recv_from(&mut buffer)).await??;
    checked(query, &buffer[..length])
}

/// Asks by TCP.
pub(crate) async fn ask_tcp(from: &Netns, server: SocketAddr, query: &[u8]) -> Result<Response> {
    let mut stream = from.connect(server).await?;
    stream.write_all(&[&(query.len() as u16).to_be_bytes(), query].concat()).await?;
    let length = within("a length", stream.read_u16()).await??;
    let mut answer = vec![0; usize::from(length)];
    within("an answer", stream.read_exact(&mut answer)).await??;
    checked(query, &answer)
}

fn checked(query: &[u8], answer: &[u8]) -> Result<Response> {
    let response = parse(answer)?;
    ensure!(query[..2] == answer[..2] && response.flags & 0x8000 != 0, "an answer to the query: {response:?}");
    Ok(response)
}
