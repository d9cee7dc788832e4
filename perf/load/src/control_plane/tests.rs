use super::objects::Kind;
use super::proto::Reader;
use super::*;

const SIZE: Size = Size { services: 45, pods: 1200, nodes: 7 };

#[test]
fn objects_are_json_and_every_one_has_a_name() {
    for kind in [Kind::Namespace, Kind::Node, Kind::Service, Kind::EndpointSlice, Kind::Pod] {
        let mut names = std::collections::BTreeSet::new();
        for number in 0..SIZE.count(kind) {
            let object: Value = serde_json::from_str(&SIZE.object(kind, number, 3)).unwrap();
            assert_eq!(object["kind"], format!("{kind:?}"));
            let meta = &object["metadata"];
            assert!(names.insert((meta["namespace"].to_string(), meta["name"].to_string())), "{meta}");
        }
    }
}

#[test]
fn lists_come_in_pages_and_watches_tell_what_changed_since() {
    let api = Api::new(SIZE);
    let (mut from, mut items) = (0, 0);
    loop {
        let page: Value = serde_json::from_str(&api.list("/api/v1/pods", from, 500)).unwrap();
        items += page["items"].as_array().unwrap().len();
        match page["metadata"]["continue"].as_str() {
            Some(next) => from = next.parse().unwrap(),
            None => break,
        }
    }
    assert_eq!(items, 1207);
    let marker = api.change_pod(1);
    let (lines, seen) = api.watch("/api/v1/pods", Api::seen_at(1));
    let event: Value = serde_json::from_str(&lines).unwrap();
    assert_eq!((event["type"].as_str(), seen), (Some("MODIFIED"), 1));
    assert_eq!(event["object"]["metadata"]["labels"]["version"], marker);
    let (status, found) = api.other("GET", "/api/v1/namespaces/a/secrets/x", "");
    assert_eq!(status, 404, "{found}");
    api.other("POST", "/api/v1/namespaces/a/secrets", "{\"metadata\":{\"name\":\"x\"}}");
    assert_eq!(api.other("GET", "/api/v1/namespaces/a/secrets/x", "").0, 200);
}

#[test]
fn responses_are_read_however_they_are_cut() {
    // Two resources, a type, a nonce; then one with a resource that is passed over.
    let field = |tag: u8, bytes: &[u8]| {
        let mut out = vec![tag << 3 | 2];
        let mut length = bytes.len();
        while length >= 0x80 {
            out.push(length as u8 | 0x80);
            length >>= 7;
        }
        out.push(length as u8);
        out.extend_from_slice(bytes);
        out
    };
    let message = |resources: &[&[u8]]| {
        let mut body: Vec<u8> = resources.iter().flat_map(|r| field(2, r)).collect();
        body.extend(field(4, b"type"));
        body.extend(field(5, b"nonce"));
        let mut out = vec![0];
        out.extend((body.len() as u32).to_be_bytes());
        out.extend(body);
        out
    };
    let large = vec![7; 100_000];
    let mut bytes = message(&[b"a", b"bc"]);
    bytes.extend(message(&[&large, b"x"]));
    bytes.extend(message(&[]));
    for piece in [1, 2, 3, 1000, 16_384, 1 << 20] {
        let mut reader = Reader::default();
        let all: Vec<_> = bytes.chunks(piece).flat_map(|chunk| reader.feed(chunk)).collect();
        let counts: Vec<u32> = all.iter().map(|r| r.resources).collect();
        assert_eq!(counts, [2, 2, 0], "in pieces of {piece}");
        assert!(all.iter().all(|r| r.type_url == "type" && r.nonce == "nonce"));
        assert_eq!((&all[0].text[..], &all[1].text[..]), (&b"abc"[..], &b"x"[..]));
    }
}
