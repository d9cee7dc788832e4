//! What the whole of discovery holds for each workload, as the machine sees it: the heap's pages, not bytes asked for.
//!
//! One test, so that nothing else of this process is counted.

#![cfg(feature = "jemalloc")]
#![allow(unsafe_code)]

use std::time::{Duration, Instant};

use aquifer_core::store;
use aquifer_proto::xds::{DeltaDiscoveryResponse, Node, Resource};
use aquifer_proto::{type_url, workload as wire};
use aquifer_tls::CertManager;
use aquifer_xds::client::session::{Session, Watch};
use prost::Message;
use prost::encoding::{WireType, encode_key, encode_varint};
use tokio::sync::{mpsc, watch};
use ztunnel::certs::Identities;
use ztunnel::mesh::MeshSink;

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// As the proxy's, see `main.rs`.
#[allow(non_upper_case_globals)]
// SAFETY: jemalloc looks for a symbol of this name and type (jemalloc(3), TUNING), which nothing else defines.
#[unsafe(export_name = "_rjem_malloc_conf")]
pub static malloc_conf: &[u8; 108] =
    b"prof:true,prof_active:false,lg_prof_sample:19,dirty_decay_ms:1000,muzzy_decay_ms:0,max_background_threads:1\0";

const WORKLOADS: u32 = 10_000;
const REPLICAS: u32 = 10;
/// So many come at once.
const RESPONSE: u32 = 1000;
/// Of 10 000 workloads, with all that discovery keeps for them.
const LIMIT: usize = 5 << 20;
/// What is free goes back after a second or so.
const SETTLED: Duration = Duration::from_secs(3);

/// The n-th pod of a cluster of a hundred nodes: ten replicas a deployment, ten deployments a namespace.
fn pod(n: u32) -> wire::Workload {
    let app = n / REPLICAS;
    let namespace = format!("many-{}", app / 10);
    let name = format!("application-{app}-5d8f7c9b6-{n:05x}");
    let [_, a, b, c] = n.to_be_bytes();
    wire::Workload {
        uid: format!("Kubernetes//Pod/{namespace}/{name}"),
        name,
        addresses: vec![vec![10, a, b, c].into()],
        tunnel_protocol: wire::TunnelProtocol::Hbone as i32,
        service_account: format!("application-{app}"),
        node: format!("other-{}", n % 100),
        canonical_name: format!("application-{app}"),
        canonical_revision: "latest".into(),
        workload_name: format!("application-{app}"),
        namespace,
        ..Default::default()
    }
}

/// A response that names these workloads, made without leaving holes in the heap.
fn response(range: std::ops::Range<u32>) -> Vec<u8> {
    const RESOURCES: u32 = 2;
    let mut bytes = Vec::with_capacity(range.len() * 600);
    DeltaDiscoveryResponse { type_url: type_url::ADDRESS.into(), nonce: "n".into(), ..Default::default() }
        .encode(&mut bytes)
        .expect("a vector grows");
    for n in range {
        let workload = pod(n);
        let (name, address) = (workload.uid.clone(), workload.addresses[0].clone());
        let body = wire::Address { r#type: Some(wire::address::Type::Workload(workload)) }.encode_to_vec();
        let resource = Resource {
            name,
            version: format!("{:016x}", u64::from(n + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15)),
            aliases: vec![format!("/{}.{}.{}.{}", address[0], address[1], address[2], address[3])],
            resource: Some(prost_types::Any { type_url: type_url::ADDRESS.into(), value: body }),
        };
        encode_key(RESOURCES, WireType::LengthDelimited, &mut bytes);
        encode_varint(resource.encoded_len() as u64, &mut bytes);
        resource.encode(&mut bytes).expect("a vector grows");
    }
    bytes
}

/// Bytes of this process's memory that no file backs.
fn anonymous() -> usize {
    let rollup = std::fs::read_to_string("/proc/self/smaps_rollup").expect("smaps_rollup");
    let line = rollup.lines().find_map(|line| line.strip_prefix("Pss_Anon:")).expect("Pss_Anon");
    line.trim().trim_end_matches(" kB").parse::<usize>().expect("a number") << 10
}

#[test]
fn ten_thousand_workloads_cost_five_mebibytes_at_most() {
    let (writer, state) = store::store();
    let (changes, _changes) = mpsc::unbounded_channel();
    let identities = Identities::new("node1", CertManager::new());
    let mut sink = MeshSink::new(writer, identities, watch::channel(0).0, changes);
    let mut session = Session::new([Watch::wildcard(type_url::ADDRESS)], Node::default());
    let mut receive = |range| {
        let bytes = response(range);
        let response = DeltaDiscoveryResponse::decode(bytes::Bytes::from(bytes)).unwrap();
        assert_eq!(session.handle(response, &mut sink).error_detail, None);
    };
    // All that is made at the first use of something.
    receive(0..10);
    std::thread::sleep(SETTLED);
    let before = anonymous();
    for first in (0..WORKLOADS).step_by(RESPONSE as usize) {
        receive(first..first + RESPONSE);
    }
    let begin = Instant::now();
    let grown = loop {
        let grown = anonymous().saturating_sub(before);
        if grown <= LIMIT || begin.elapsed() > 5 * SETTLED {
            break grown;
        }
        std::thread::sleep(Duration::from_millis(100));
    };
    println!("{} bytes a workload, {} KiB, before {} KiB", grown / WORKLOADS as usize, grown >> 10, before >> 10);
    assert_eq!(state.load().workloads().count(), WORKLOADS as usize);
    assert!(grown <= LIMIT, "{grown} bytes");
}
