//! Reads captures: pcap files of Ethernet or `any` (Linux cooked) with IPv4, IPv6 and TCP. Pure.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

#[cfg(test)]
mod tests;

const TCP: u8 = 6;
const UDP: u8 = 17;

/// A capture, in the order of its packets.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Pcap {
    /// Its IP packets; others (ARP) are left out.
    pub packets: Vec<Packet>,
}

/// One IP packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Packet {
    /// When it was seen, since the epoch.
    pub at: Duration,
    /// Sender; port 0 where the protocol has none.
    pub src: SocketAddr,
    /// Receiver.
    pub dst: SocketAddr,
    /// IP protocol number: 6 is TCP.
    pub protocol: u8,
    /// TCP flags; 0 for others.
    pub flags: u8,
    /// TCP sequence number; 0 for others.
    pub sequence: u32,
    /// What the transport carries.
    pub payload: Vec<u8>,
}

impl Packet {
    /// Whether it is TCP.
    pub fn is_tcp(&self) -> bool {
        self.protocol == TCP
    }

    /// Whether it opens a connection (SYN without ACK).
    pub fn is_syn(&self) -> bool {
        self.is_tcp() && self.flags & 0x12 == 0x02
    }

    /// Whether it resets one.
    pub fn is_rst(&self) -> bool {
        self.is_tcp() && self.flags & 0x04 != 0
    }

    /// Whether its sender or its receiver has the port.
    pub fn has_port(&self, port: u16) -> bool {
        self.src.port() == port || self.dst.port() == port
    }

    /// Whether its sender or its receiver has the address.
    pub fn has_ip(&self, ip: IpAddr) -> bool {
        self.src.ip() == ip || self.dst.ip() == ip
    }
}

/// What is wrong with a file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PcapError {
    /// It doesn't begin as a pcap file does.
    #[error("no pcap file")]
    Magic,
    /// Frames of a kind that we don't read.
    #[error("link type {0} is none of Ethernet (1), Linux cooked (113, 276)")]
    LinkType(u32),
}

impl Pcap {
    /// Reads a file. One that is cut short gives what is whole.
    pub fn parse(file: &[u8]) -> Result<Self, PcapError> {
        if file.is_empty() {
            return Ok(Self::default());
        }
        let mut reader = Reader(file);
        let (big_endian, nanoseconds) = match reader.take(4).ok_or(PcapError::Magic)? {
            [0xd4, 0xc3, 0xb2, 0xa1] => (false, false),
            [0x4d, 0x3c, 0xb2, 0xa1] => (false, true),
            [0xa1, 0xb2, 0xc3, 0xd4] => (true, false),
            [0xa1, 0xb2, 0x3c, 0x4d] => (true, true),
            _ => return Err(PcapError::Magic),
        };
        let word = |bytes: &[u8]| {
            let bytes = [bytes[0], bytes[1], bytes[2], bytes[3]];
            if big_endian { u32::from_be_bytes(bytes) } else { u32::from_le_bytes(bytes) }
        };
        let header = reader.take(20).ok_or(PcapError::Magic)?;
        let link = word(&header[16..]) & 0x0fff_ffff;
        if ![1, 113, 276].contains(&link) {
            return Err(PcapError::LinkType(link));
        }
        let mut packets = Vec::new();
        while let Some(record) = reader.take(16) {
            let fraction = word(&record[4..]) * if nanoseconds { 1 } else { 1000 };
            let at = Duration::new(word(record).into(), fraction);
            let Some(frame) = reader.take(word(&record[8..]) as usize) else { break };
            packets.extend(ip_of_frame(link, frame).and_then(|ip| packet(at, ip)));
        }
        Ok(Self { packets })
    }

    /// Whether the bytes stand in any packet's payload, or in a TCP flow across packets.
    pub fn contains(&self, needle: &[u8]) -> bool {
        let in_packet = self.packets.iter().any(|packet| contains(&packet.payload, needle));
        in_packet || self.flows().iter().any(|flow| contains(&flow.payload, needle))
    }

    /// The TCP packets with payload.
    pub fn tcp_payloads(&self) -> impl Iterator<Item = &Packet> {
        self.packets.iter().filter(|packet| packet.is_tcp() && !packet.payload.is_empty())
    }

    /// The captured part that `keep` says.
    #[must_use]
    pub fn filter(&self, keep: impl Fn(&Packet) -> bool) -> Self {
        Self { packets: self.packets.iter().filter(|packet| keep(packet)).cloned().collect() }
    }

    /// One direction each of every TCP connection, payload put together in the order of sequence numbers.
    pub fn flows(&self) -> Vec<Flow> {
        let mut order = Vec::new();
        let mut segments: BTreeMap<(SocketAddr, SocketAddr, usize), Segments<'_>> = BTreeMap::new();
        let mut incarnation: BTreeMap<(SocketAddr, SocketAddr), (usize, u32)> = BTreeMap::new();
        for packet in self.packets.iter().filter(|packet| packet.is_tcp()) {
            let count = incarnation.entry((packet.src, packet.dst)).or_insert((0, packet.sequence));
            if packet.flags & 0x02 != 0 && packet.sequence != count.1 {
                // The same pair of ports again: another connection.
                *count = (count.0 + 1, packet.sequence);
            }
            let key = (packet.src, packet.dst, count.0);
            let flow = segments.entry(key).or_insert_with(|| {
                order.push(key);
                Segments { first: packet.sequence, parts: BTreeMap::new() }
            });
            if !packet.payload.is_empty() {
                let offset = packet.sequence.wrapping_sub(flow.first);
                let part = flow.parts.entry(offset).or_insert(&packet.payload);
                if packet.payload.len() > part.len() {
                    *part = &packet.payload;
                }
            }
        }
        let flow =
            |key: (SocketAddr, SocketAddr, usize)| Flow { src: key.0, dst: key.1, payload: segments[&key].join() };
        order.into_iter().map(flow).collect()
    }

    /// The version that each TLS server chose, per flow: 0x0304 is TLS 1.3.
    pub fn tls_versions(&self) -> Vec<u16> {
        self.flows().iter().filter_map(|flow| server_hello_version(&flow.payload)).collect()
    }

    /// The TCP ports that were connected to.
    pub fn connected_ports(&self) -> Vec<u16> {
        let mut ports: Vec<u16> =
            self.packets.iter().filter(|packet| packet.is_syn()).map(|packet| packet.dst.port()).collect();
        ports.sort_unstable();
        ports.dedup();
        ports
    }
}

/// One direction of a TCP connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Flow {
    /// Sender.
    pub src: SocketAddr,
    /// Receiver.
    pub dst: SocketAddr,
    /// What it sent.
    pub payload: Vec<u8>,
}

struct Segments<'a> {
    first: u32,
    parts: BTreeMap<u32, &'a Vec<u8>>,
}

impl Segments<'_> {
    fn join(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut next: Option<u32> = None;
        for (offset, part) in &self.parts {
            // A resent piece may overlap what we have; a lost one leaves a gap that we close.
            let skip = next.map_or(0, |next| next.saturating_sub(*offset) as usize);
            if let Some(fresh) = part.get(skip..) {
                bytes.extend_from_slice(fresh);
                next = Some(offset.wrapping_add(part.len() as u32));
            }
        }
        bytes
    }
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }

    fn byte(&mut self) -> Option<u8> {
        self.take(1).map(|bytes| bytes[0])
    }

    fn short(&mut self) -> Option<u16> {
        self.take(2).map(|bytes| u16::from_be_bytes([bytes[0], bytes[1]]))
    }
}

/// The IP packet in a frame, by its ether type.
fn ip_of_frame(link: u32, frame: &[u8]) -> Option<&[u8]> {
    let (kind, rest) = match link {
        1 => (12, 14),
        113 => (14, 16),
        _ => (0, 20),
    };
    let ether_type = frame.get(kind..kind + 2)?;
    matches!(ether_type, [0x08, 0x00] | [0x86, 0xdd]).then_some(())?;
    frame.get(rest..)
}

fn packet(at: Duration, ip: &[u8]) -> Option<Packet> {
    let (src, dst, protocol, body) = match ip.first()? >> 4 {
        4 => {
            let header = usize::from(ip[0] & 0xf) * 4;
            let total = usize::from(u16::from_be_bytes([*ip.get(2)?, *ip.get(3)?]));
            // A length of 0 stands for a packet that segmentation offload made too long to say.
            let end = if total == 0 { ip.len() } else { total.min(ip.len()) };
            let address = |from: usize| Some(Ipv4Addr::from(<[u8; 4]>::try_from(ip.get(from..from + 4)?).ok()?));
            (IpAddr::V4(address(12)?), IpAddr::V4(address(16)?), *ip.get(9)?, ip.get(header..end)?)
        }
        6 => {
            let length = usize::from(u16::from_be_bytes([*ip.get(4)?, *ip.get(5)?]));
            let end = if length == 0 { ip.len() } else { (40 + length).min(ip.len()) };
            let address = |from: usize| Some(Ipv6Addr::from(<[u8; 16]>::try_from(ip.get(from..from + 16)?).ok()?));
            (IpAddr::V6(address(8)?), IpAddr::V6(address(24)?), *ip.get(6)?, ip.get(40..end)?)
        }
        _ => return None,
    };
    let mut packet = Packet {
        at,
        src: SocketAddr::new(src, 0),
        dst: SocketAddr::new(dst, 0),
        protocol,
        flags: 0,
        sequence: 0,
        payload: body.to_vec(),
    };
    if protocol == TCP || protocol == UDP {
        let mut reader = Reader(body);
        packet.src.set_port(reader.short()?);
        packet.dst.set_port(reader.short()?);
        let header = if protocol == TCP {
            packet.sequence = u32::from_be_bytes(reader.take(4)?.try_into().ok()?);
            packet.flags = *body.get(13)?;
            usize::from(body.get(12)? >> 4) * 4
        } else {
            8
        };
        packet.payload = body.get(header..)?.to_vec();
    }
    Some(packet)
}

/// The version in a ServerHello (RFC 8446, 4.1.3): its supported_versions extension, else its legacy field.
fn server_hello_version(stream: &[u8]) -> Option<u16> {
    let mut record = Reader(stream);
    (record.byte()? == 22).then_some(())?;
    record.take(4)?;
    (record.byte()? == 2).then_some(())?;
    record.take(3)?;
    let legacy = record.short()?;
    record.take(32)?;
    let session = record.byte()?;
    record.take(session.into())?;
    record.take(3)?;
    let Some(length) = record.short() else { return Some(legacy) };
    let mut extensions = Reader(record.take(length.into())?);
    while let (Some(kind), Some(length)) = (extensions.short(), extensions.short()) {
        let mut body = Reader(extensions.take(length.into())?);
        if kind == 43 {
            return body.short();
        }
    }
    Some(legacy)
}

/// Whether the needle stands in the haystack.
pub(crate) fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    let Some((first, rest)) = needle.split_first() else { return true };
    let mut from = 0;
    while let Some(at) = haystack[from..].iter().position(|byte| byte == first) {
        from += at + 1;
        if haystack[from..].starts_with(rest) {
            return true;
        }
    }
    false
}
