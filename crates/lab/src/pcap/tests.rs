use super::*;

fn tcp(src: u16, dst: u16, sequence: u32, flags: u8, payload: &[u8]) -> Vec<u8> {
    let mut segment = Vec::new();
    segment.extend(src.to_be_bytes());
    segment.extend(dst.to_be_bytes());
    segment.extend(sequence.to_be_bytes());
    segment.extend([0; 4]);
    segment.extend([5 << 4, flags]);
    segment.extend([0; 6]);
    segment.extend(payload);
    segment
}

fn v4(segment: &[u8]) -> Vec<u8> {
    let mut packet = vec![0x45, 0];
    packet.extend((20 + segment.len() as u16).to_be_bytes());
    packet.extend([0, 0, 0, 0, 64, TCP, 0, 0, 198, 18, 17, 2, 198, 18, 18, 3]);
    packet.extend(segment);
    packet
}

fn v6(segment: &[u8]) -> Vec<u8> {
    let mut packet = vec![0x60, 0, 0, 0];
    packet.extend((segment.len() as u16).to_be_bytes());
    packet.extend([TCP, 64]);
    packet.extend("fd00:18:0:1::2".parse::<Ipv6Addr>().unwrap().octets());
    packet.extend("fd00:18:0:2::3".parse::<Ipv6Addr>().unwrap().octets());
    packet.extend(segment);
    packet
}

fn file(link: u32, packets: &[Vec<u8>]) -> Vec<u8> {
    let mut file = vec![0xd4, 0xc3, 0xb2, 0xa1, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 4, 0];
    file.extend(link.to_le_bytes());
    for packet in packets {
        let kind: [u8; 2] = if packet[0] >> 4 == 4 { [8, 0] } else { [0x86, 0xdd] };
        let mut frame = match link {
            1 => vec![0; 12],
            113 => vec![0; 14],
            _ => Vec::new(),
        };
        frame.extend(kind);
        if link == 276 {
            frame.extend([0; 18]);
        }
        frame.extend(packet);
        file.extend([7, 0, 0, 0, 5, 0, 0, 0]);
        file.extend((frame.len() as u32).to_le_bytes());
        file.extend((frame.len() as u32).to_le_bytes());
        file.extend(frame);
    }
    file
}

#[test]
fn reads_both_families_over_each_link_type() {
    let segment = tcp(40000, 80, 1, 0x18, b"GET / HTTP/1.1");
    for link in [1, 113, 276] {
        let pcap = Pcap::parse(&file(link, &[v4(&segment), v6(&segment)])).unwrap();
        assert_eq!(pcap.packets.len(), 2, "link type {link}");
        assert_eq!(pcap.packets[0].src.to_string(), "198.18.17.2:40000");
        assert_eq!(pcap.packets[1].dst.to_string(), "[fd00:18:0:2::3]:80");
        assert_eq!(pcap.packets[0].at, Duration::new(7, 5000));
        assert!(pcap.packets.iter().all(|packet| packet.payload == b"GET / HTTP/1.1" && !packet.is_syn()));
    }
}

#[test]
fn a_cut_file_gives_what_is_whole() {
    let segment = tcp(40000, 80, 1, 0x18, b"hello");
    let whole = file(1, &[v4(&segment), v4(&segment)]);
    for end in 0..whole.len() {
        match Pcap::parse(&whole[..end]) {
            Ok(pcap) => assert!(pcap.packets.len() < 2),
            Err(error) => assert_eq!(error, PcapError::Magic),
        }
    }
    assert_eq!(Pcap::parse(&whole).unwrap().packets.len(), 2);
    assert_eq!(Pcap::parse(&file(228, &[])), Err(PcapError::LinkType(228)));
}

#[test]
fn a_word_across_packets_is_found_resent_and_out_of_order() {
    let packets = [
        v4(&tcp(40000, 80, 100, 0x02, b"")),
        v4(&tcp(40000, 80, 105, 0x18, b"et")),
        v4(&tcp(40000, 80, 101, 0x18, b"secr")),
        v4(&tcp(40000, 80, 101, 0x18, b"secr")),
        v4(&tcp(40001, 80, 900, 0x18, b"other")),
        // The same ports again.
        v4(&tcp(40000, 80, 5000, 0x02, b"")),
        v4(&tcp(40000, 80, 5001, 0x18, b"again")),
    ];
    let pcap = Pcap::parse(&file(1, &packets)).unwrap();
    let payloads: Vec<_> = pcap.flows().into_iter().map(|flow| String::from_utf8(flow.payload).unwrap()).collect();
    assert_eq!(payloads, ["secret", "other", "again"]);
    assert!(pcap.contains(b"secret") && !pcap.contains(b"secretagain"));
    assert_eq!(pcap.connected_ports(), [80]);
}

#[test]
fn tells_tls_versions() {
    let hello = |extensions: &[u8]| {
        let mut body = vec![3, 3];
        body.extend([9; 32]);
        body.push(0);
        body.extend([0x13, 0x02, 0]);
        body.extend((extensions.len() as u16).to_be_bytes());
        body.extend(extensions);
        let mut record = vec![22, 3, 3, 0, 0, 2, 0, 0, body.len() as u8];
        record.extend(body);
        record
    };
    let cases: [(&[u8], Option<u16>); 4] = [
        (&hello(&[0, 51, 0, 1, 7, 0, 43, 0, 2, 3, 4]), Some(0x0304)),
        (&hello(&[]), Some(0x0303)),
        (b"HTTP/1.1 200 OK", None),
        (&[22, 3, 1, 0, 5, 1], None),
    ];
    for (stream, expect) in cases {
        assert_eq!(server_hello_version(stream), expect);
        let pcap = Pcap::parse(&file(1, &[v4(&tcp(15008, 40000, 1, 0x18, stream))])).unwrap();
        assert_eq!(pcap.tls_versions(), Vec::from_iter(expect));
    }
}
