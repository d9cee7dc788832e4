//! Against what the real agent and the real node proxy sent, packet by packet, over a real `SOCK_SEQPACKET` pair.

use std::fs::File;
use std::io::IoSlice;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::sys::socket::{AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, sendmsg, socketpair};

use super::*;
use crate::inpod::packet::{MAX_PACKET, PacketError, PacketSocket};
use crate::inpod::state::State;

fn pair() -> (OwnedFd, PacketSocket) {
    let (agent, ours) =
        socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC)
            .unwrap();
    (agent, PacketSocket::new(ours).unwrap())
}

fn send(agent: &OwnedFd, data: &[u8], fds: &[File]) {
    let fds: Vec<_> = fds.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&fds)];
    let control = if fds.is_empty() { &[][..] } else { &rights[..] };
    let sent = sendmsg::<()>(agent.as_raw_fd(), &[IoSlice::new(data)], control, MsgFlags::empty(), None);
    assert_eq!(sent, Ok(data.len()));
}

fn null() -> File {
    File::open("/dev/null").unwrap()
}

fn hex(text: &str) -> Vec<u8> {
    (0..text.len()).step_by(2).map(|i| u8::from_str_radix(&text[i..i + 2], 16).unwrap()).collect()
}

/// The recorded packets of one connection: those of the agent (with their descriptors), and those of the proxy.
struct Recording {
    entries: Vec<serde_json::Value>,
}

impl Recording {
    fn load(name: &str) -> Self {
        let path = format!("{}/../tests/recordings/zds/{name}.json", env!("CARGO_MANIFEST_DIR"));
        let file: serde_json::Value = serde_json::from_reader(File::open(path).unwrap()).unwrap();
        Self { entries: file["entries"].as_array().unwrap().clone() }
    }

    fn packets(&self) -> impl Iterator<Item = (&str, Vec<u8>, u64, &serde_json::Value)> {
        self.entries.iter().filter_map(|e| {
            Some((e["direction"].as_str()?, hex(e["hex"].as_str()?), e["fds"].as_u64()?, &e["decoded"]))
        })
    }
}

#[tokio::test]
async fn recorded_requests_parse_and_answers_are_byte_equal() {
    for name in ["snapshot", "add", "del", "reconnect", "enrol-unenrol-running-pod"] {
        let (agent, ours) = pair();
        let mut answered = 0;
        for (direction, bytes, fds, decoded) in Recording::load(name).packets() {
            if direction == "ztunnel->cni" {
                let expect = if decoded.get("ZdsHello").is_some() { hello() } else { ack(Ok(())) };
                assert_eq!(bytes, expect, "{name}: {decoded}");
                answered += 1;
                continue;
            }
            let files: Vec<File> = (0..fds).map(|_| null()).collect();
            send(&agent, &bytes, &files);
            let request = parse(ours.recv().await.unwrap()).unwrap();
            let decoded = &decoded["WorkloadRequest"];
            match request {
                Request::Add { uid, info, .. } => {
                    let add = &decoded["add"];
                    assert_eq!(uid.as_str(), add["uid"]);
                    let expect = &add["workload_info"];
                    assert_eq!(*info.name, expect["name"]);
                    assert_eq!(*info.namespace, expect["namespace"]);
                    assert_eq!(*info.service_account, expect["service_account"]);
                }
                Request::Del(uid) => assert_eq!(uid.as_str(), decoded["del"]["uid"]),
                Request::Keep(uid) => assert_eq!(uid.as_str(), decoded["keep"]["uid"]),
                Request::SnapshotSent => assert!(decoded.get("snapshot_sent").is_some()),
            }
        }
        assert!(answered > 0, "{name}");
    }
}

#[tokio::test]
async fn a_recorded_reconnect_keeps_what_runs_and_starts_nothing_twice() {
    let (agent, ours) = pair();
    let mut state = State::default();
    let mut starts = 0;
    for (name, expect_starts) in [("snapshot", 2), ("reconnect", 0)] {
        state.connected();
        for (direction, bytes, fds, _) in Recording::load(name).packets() {
            if direction == "ztunnel->cni" {
                continue;
            }
            send(&agent, &bytes, &(0..fds).map(|_| null()).collect::<Vec<_>>());
            let request = match parse(ours.recv().await.unwrap()).unwrap() {
                Request::Add { uid, info, .. } => Request::Add { uid, info, netns: 1 },
                Request::Del(uid) => Request::Del(uid),
                Request::Keep(uid) => Request::Keep(uid),
                Request::SnapshotSent => Request::SnapshotSent,
            };
            let work = state.handle(request).unwrap();
            assert_eq!(work.stop, []);
            if let Some(pod) = work.start {
                starts += 1;
                state.started(pod, true);
            }
        }
        assert_eq!(starts, expect_starts, "{name}");
        assert_eq!(state.running().len(), 2);
        assert!(state.ready());
        starts = 0;
    }
}

#[tokio::test]
async fn packets_that_break_the_rules_are_errors_and_leak_no_descriptor() {
    let recording = Recording::load("add");
    let (_, add, _, _) = recording.packets().next().unwrap();
    let (agent, ours) = pair();
    let passed = tempfile::NamedTempFile::new().unwrap().into_temp_path();
    let open = |n| (0..n).map(|_| File::open(&passed).unwrap()).collect::<Vec<_>>();

    let cases: Vec<(&str, Vec<u8>, usize)> = vec![
        ("add without a network namespace descriptor", add.clone(), 0),
        ("2 descriptors in one packet", add.clone(), 2),
        ("30 descriptors in one packet", add.clone(), 30),
        ("253 descriptors in one packet", add.clone(), 253),
        ("unexpected descriptor with snapshot_sent", hex("1a00"), 1),
        ("request without a known payload", hex("2200"), 0),
        ("failed to decode", hex("ffffff"), 1),
        ("truncated packet", vec![0; MAX_PACKET + 1], 0),
        ("add without workload_info", hex("0a030a0161"), 1),
        ("del without uid", hex("1200"), 0),
        ("keep without uid", hex("2a00"), 0),
    ];
    for (expect, bytes, fds) in cases {
        send(&agent, &bytes, &open(fds));
        let error = match ours.recv().await {
            Ok(packet) => parse(packet).map(drop).unwrap_err().to_string(),
            Err(e) => e.to_string(),
        };
        assert!(error.starts_with(expect), "{expect}: {error}");
        let nack = ack(Err(&error));
        assert!(nack.len() < MAX_PACKET && nack != ack(Ok(())));
    }
    assert_eq!(open_descriptors(&passed), 0);

    drop(agent);
    assert!(matches!(ours.recv().await, Err(PacketError::Closed)));
}

#[test]
fn a_nack_fits_a_packet_whatever_the_error() {
    assert!(ack(Err(&"ü".repeat(5000))).len() <= MAX_PACKET);
}

fn open_descriptors(of: &std::path::Path) -> usize {
    let links = std::fs::read_dir("/proc/self/fd").unwrap();
    links.filter_map(|e| std::fs::read_link(e.ok()?.path()).ok()).filter(|target| target == of).count()
}

proptest::proptest! {
    #[test]
    fn no_packet_makes_the_parser_panic(data in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..200)) {
        let _ = parse(Packet { data, fd: None });
    }
}

mod any_request {
    use super::*;
    use aquifer_proto::zds::workload_request::Payload;
    use aquifer_proto::zds::{AddWorkload, DelWorkload, KeepWorkload, SnapshotSent, WorkloadInfo, WorkloadRequest};
    use proptest::prelude::*;
    use prost::Message;

    fn payload() -> impl Strategy<Value = Option<Payload>> {
        let info = (".{0,80}", ".{0,80}", ".{0,80}").prop_map(|(name, namespace, service_account)| WorkloadInfo {
            name,
            namespace,
            service_account,
        });
        prop_oneof![
            4 => (".{0,400}", proptest::option::of(info))
                .prop_map(|(uid, workload_info)| Some(Payload::Add(AddWorkload { uid, workload_info }))),
            1 => ".{0,9}".prop_map(|uid| Some(Payload::Del(DelWorkload { uid }))),
            1 => ".{0,9}".prop_map(|uid| Some(Payload::Keep(KeepWorkload { uid }))),
            1 => Just(Some(Payload::SnapshotSent(SnapshotSent {}))),
            1 => Just(None),
        ]
    }

    /// What should come of a request, by the letter of the protocol.
    fn valid(payload: Option<&Payload>, fds: usize) -> bool {
        match payload {
            Some(Payload::Add(add)) => !add.uid.is_empty() && add.workload_info.is_some() && fds == 1,
            Some(Payload::Del(del)) => !del.uid.is_empty() && fds == 0,
            Some(Payload::Keep(keep)) => !keep.uid.is_empty() && fds == 0,
            Some(Payload::SnapshotSent(_)) => fds == 0,
            None => false,
        }
    }

    proptest! {
        #[test]
        fn comes_through_as_it_was_sent_or_is_refused(
            payload in payload(),
            fds in 0..4_usize,
            cut in proptest::option::of((0..1000_usize, any::<u8>())),
        ) {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let mut bytes = WorkloadRequest { payload: payload.clone() }.encode_to_vec();
            let changed = cut.is_some_and(|(at, byte)| bytes.get_mut(at).map(|b| *b = byte).is_some());
            prop_assume!(!bytes.is_empty());
            runtime.block_on(async {
                let (agent, ours) = pair();
                send(&agent, &bytes, &(0..fds).map(|_| null()).collect::<Vec<_>>());
                let packet = match ours.recv().await {
                    Ok(packet) => packet,
                    Err(error) => {
                        let why = matches!(error, PacketError::Truncated) && bytes.len() > MAX_PACKET
                            || matches!(error, PacketError::TooManyDescriptors(_)) && fds > 1;
                        prop_assert!(why, "{}: {} bytes, {} descriptors", error, bytes.len(), fds);
                        return Ok(());
                    }
                };
                prop_assert!(bytes.len() <= MAX_PACKET && fds <= 1);
                let parsed = parse(packet);
                if let Err(error) = &parsed {
                    prop_assert!(ack(Err(&error.to_string())).len() <= MAX_PACKET);
                }
                if changed {
                    return Ok(());
                }
                prop_assert_eq!(parsed.is_ok(), valid(payload.as_ref(), fds), "{:?}", parsed);
                match (parsed, payload) {
                    (Ok(Request::Add { uid, info, .. }), Some(Payload::Add(add))) => {
                        let sent = add.workload_info.unwrap();
                        prop_assert_eq!(uid.as_str(), add.uid);
                        prop_assert_eq!((&*info.name, &*info.namespace), (&*sent.name, &*sent.namespace));
                        prop_assert_eq!(&*info.service_account, &*sent.service_account);
                    }
                    (Ok(Request::Del(uid)), Some(Payload::Del(del))) => prop_assert_eq!(uid.as_str(), del.uid),
                    (Ok(Request::Keep(uid)), Some(Payload::Keep(keep))) => prop_assert_eq!(uid.as_str(), keep.uid),
                    (Ok(Request::SnapshotSent), Some(Payload::SnapshotSent(_))) | (Err(_), _) => {}
                    (parsed, sent) => prop_assert!(false, "{:?} became {:?}", sent, parsed),
                }
                Ok(())
            })?;
        }
    }
}
