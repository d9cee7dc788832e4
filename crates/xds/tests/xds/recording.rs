//! Recordings of the real peers: streams of requests and responses, in order.

use std::path::Path;

use aquifer_proto::xds::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};
use prost::Message;
use serde_json::Value;

pub(crate) struct Entry {
    pub(crate) at: u64,
    pub(crate) connection: u64,
    pub(crate) what: What,
}

pub(crate) enum What {
    /// Something was done to the cluster, or is about to happen.
    Note(String),
    Opened,
    Ended(String),
    Request(DeltaDiscoveryRequest),
    Response(DeltaDiscoveryResponse),
}

/// Reads `tests/recordings/xds/session-<name>.json`.
pub(crate) fn read(name: &str) -> Vec<Entry> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/recordings/xds");
    let text = std::fs::read_to_string(folder.join(format!("session-{name}.json"))).unwrap();
    let json: Value = serde_json::from_str(&text).unwrap();
    json["entries"].as_array().unwrap().iter().filter_map(entry).collect()
}

fn entry(json: &Value) -> Option<Entry> {
    let note = json["note"].as_str().unwrap_or_default();
    let raw = || base64(json["raw_base64"].as_str().unwrap());
    let what = match (json["direction"].as_str().unwrap(), json["message"].as_str()) {
        ("cluster", _) => What::Note(note.to_owned()),
        (_, Some("DeltaDiscoveryRequest")) => What::Request(DeltaDiscoveryRequest::decode(&raw()[..]).unwrap()),
        (_, Some("DeltaDiscoveryResponse")) => What::Response(DeltaDiscoveryResponse::decode(&raw()[..]).unwrap()),
        (_, Some(other)) => panic!("unknown message {other}"),
        (_, None) if note == "stream opened" => What::Opened,
        (_, None) if note == "stream ended" => What::Ended(json["error"].as_str().unwrap_or_default().to_owned()),
        _ => return None,
    };
    let connection = json["connection"].as_u64().unwrap_or_default();
    Some(Entry { at: json["t_ms"].as_u64().unwrap(), connection, what })
}

fn base64(text: &str) -> Vec<u8> {
    let digit = |c: u8| match c {
        b'A'..=b'Z' => u32::from(c - b'A'),
        b'a'..=b'z' => u32::from(c - b'a') + 26,
        b'0'..=b'9' => u32::from(c - b'0') + 52,
        b'+' => 62,
        b'/' => 63,
        other => panic!("{other} is not base64"),
    };
    let digits: Vec<u32> = text.bytes().filter(|c| *c != b'=').map(digit).collect();
    let mut out = Vec::with_capacity(digits.len() * 3 / 4);
    for group in digits.chunks(4) {
        let bits = group.iter().enumerate().fold(0, |bits, (i, d)| bits | d << (18 - 6 * i));
        out.extend(&bits.to_be_bytes()[1..group.len()]);
    }
    out
}

#[test]
fn the_decoder_decodes() {
    assert_eq!(base64("AAEC/w=="), [0, 1, 2, 255]);
    assert_eq!(base64("aGk="), b"hi");
    assert_eq!(base64("YWJj"), b"abc");
}
