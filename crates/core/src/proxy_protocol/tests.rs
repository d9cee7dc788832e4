//! Byte for byte against the specification, and read back by a reader written from it.

use proptest::prelude::*;

use super::*;

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn the_bytes_are_those_of_the_specification() {
    let signature = "0d0a0d0a000d0a515549540a";
    let spiffe = Identity::new("td", "ns", "sa");
    let text = "spiffe://td/ns/ns/sa/sa";
    let tlv = format!("d0{:04x}{}", text.len(), hex(text.as_bytes()));
    let v4 = "0a000001 0a090001 1f90 0050".replace(' ', "");
    let v6 = "fd000000000000000000000000000001 fd090000000000000000000000000002 1f90 0050".replace(' ', "");
    let mixed = "00000000000000000000ffff0a000001 fd090000000000000000000000000002 1f90 0050".replace(' ', "");
    for (source, destination, identity, expected) in [
        ("10.0.0.1:8080", "10.9.0.1:80", None, format!("{signature}2111000c{v4}")),
        ("10.0.0.1:8080", "10.9.0.1:80", Some(&spiffe), format!("{signature}2111{:04x}{v4}{tlv}", 12 + 26)),
        ("[::ffff:10.0.0.1]:8080", "10.9.0.1:80", None, format!("{signature}2111000c{v4}")),
        ("[fd00::1]:8080", "[fd09::2]:80", Some(&spiffe), format!("{signature}2121{:04x}{v6}{tlv}", 36 + 26)),
        ("10.0.0.1:8080", "[fd09::2]:80", None, format!("{signature}21210024{mixed}")),
    ] {
        let header = header(source.parse().unwrap(), destination.parse().unwrap(), identity);
        assert_eq!(hex(&header), expected, "{source} {destination}");
    }
}

/// Source, destination, and all type-length-values.
type Read<'a> = (SocketAddr, SocketAddr, Vec<(u8, &'a [u8])>);

/// Reads a header and gives what follows it, too.
fn read(bytes: &[u8]) -> (Read<'_>, &[u8]) {
    let (signature, bytes) = bytes.split_at(12);
    assert_eq!(signature, [0x0d, 0x0a, 0x0d, 0x0a, 0x00, 0x0d, 0x0a, 0x51, 0x55, 0x49, 0x54, 0x0a]);
    assert_eq!(bytes[0], 0x21, "version and command");
    let length = usize::from(u16::from_be_bytes([bytes[2], bytes[3]]));
    let (header, payload) = bytes[4..].split_at(length);
    let port = |at: usize| u16::from_be_bytes([header[at], header[at + 1]]);
    let ip = |at: usize, length: usize| -> IpAddr {
        match length {
            4 => <[u8; 4]>::try_from(&header[at..at + 4]).unwrap().into(),
            _ => <[u8; 16]>::try_from(&header[at..at + 16]).unwrap().into(),
        }
    };
    let size = match bytes[1] {
        0x11 => 4,
        0x21 => 16,
        other => panic!("family {other:#x}"),
    };
    let source = SocketAddr::new(ip(0, size), port(2 * size));
    let destination = SocketAddr::new(ip(size, size), port(2 * size + 2));
    let mut tlvs = Vec::new();
    let mut rest = &header[2 * size + 4..];
    while let [kind, high, low, more @ ..] = rest {
        let (value, more) = more.split_at(usize::from(u16::from_be_bytes([*high, *low])));
        tlvs.push((*kind, value));
        rest = more;
    }
    assert!(rest.is_empty());
    ((source, destination, tlvs), payload)
}

proptest! {
    #[test]
    fn what_is_written_is_read(source: SocketAddr, destination: SocketAddr, account in "[a-z0-9.-]{1,80}", known: bool) {
        // Scopes and flows of IPv6 have no place in a header.
        let plain = |addr: SocketAddr| SocketAddr::new(addr.ip().to_canonical(), addr.port());
        let (source, destination) = (plain(source), plain(destination));
        let identity = Identity::new("cluster.local", "ns", &*account);
        let mut bytes = header(source, destination, known.then_some(&identity));
        bytes.extend(b"payload");
        let ((from, to, tlvs), payload) = read(&bytes);
        prop_assert_eq!((plain(from), plain(to), payload), (source, destination, &b"payload"[..]));
        let text = identity.to_string();
        let expected = if known { vec![(0xd0, text.as_bytes())] } else { vec![] };
        prop_assert_eq!(tlvs, expected);
    }
}

#[test]
fn an_identity_that_is_too_long_is_left_out() {
    let long = Identity::new("td", "ns", &*"a".repeat(70_000));
    let header = header("10.0.0.1:1".parse().unwrap(), "10.0.0.2:2".parse().unwrap(), Some(&long));
    assert_eq!(header.len(), 28);
}
