//! The PROXY protocol, version 2, as sent to a proxy in front of which HBONE was terminated
//! (<https://www.haproxy.org/download/2.9/doc/proxy-protocol.txt>, 2.2).

#[cfg(test)]
mod tests;

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use crate::identity::Identity;

/// Whom the client's certificate names, as text. The number is Istio's, from outside the range that the protocol leaves to
/// applications (0xE0 to 0xEF).
pub const PEER_IDENTITY: u8 = 0xd0;

const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";
/// Version 2, command PROXY.
const PROXY: u8 = 0x21;
const TCP_OVER_IPV4: u8 = 0x11;
const TCP_OVER_IPV6: u8 = 0x21;

/// The header that comes before the client's bytes.
pub fn header(source: SocketAddr, destination: SocketAddr, identity: Option<&Identity>) -> Vec<u8> {
    let (family, addresses) = match (source.ip().to_canonical(), destination.ip().to_canonical()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => (TCP_OVER_IPV4, [from.octets(), to.octets()].concat()),
        // A header has one family: what is IPv4 is said as IPv6.
        (from, to) => (TCP_OVER_IPV6, [as_ipv6(from).octets(), as_ipv6(to).octets()].concat()),
    };
    let ports = [source.port().to_be_bytes(), destination.port().to_be_bytes()].concat();
    let mut rest = [addresses, ports].concat();
    // An identity that doesn't fit is left out: a part of it would be somebody else's.
    let text = identity.map(Identity::to_string).filter(|text| text.len() < usize::from(u16::MAX) - 64);
    if let Some(text) = text {
        rest.push(PEER_IDENTITY);
        rest.extend((text.len() as u16).to_be_bytes());
        rest.extend(text.bytes());
    }
    let mut header = Vec::with_capacity(SIGNATURE.len() + 4 + rest.len());
    header.extend(SIGNATURE);
    header.extend([PROXY, family]);
    header.extend((rest.len() as u16).to_be_bytes());
    header.extend(rest);
    header
}

fn as_ipv6(ip: IpAddr) -> Ipv6Addr {
    match ip {
        IpAddr::V4(ip) => ip.to_ipv6_mapped(),
        IpAddr::V6(ip) => ip,
    }
}
