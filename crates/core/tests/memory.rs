//! How much the mesh state holds for each workload, counted by the allocator.
//!
//! One test, so that nothing else of this process is counted.

#![allow(unsafe_code)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use aquifer_core::from_proto;
use aquifer_core::state::{MeshState, Update};
use aquifer_proto::workload as wire;

/// Counts what is held, as jemalloc would: in its size classes.
struct Counting;

static HELD: AtomicUsize = AtomicUsize::new(0);

fn class(size: usize) -> usize {
    let step = (size.next_power_of_two() / 8).max(16);
    size.next_multiple_of(step)
}

// SAFETY: all is passed on to the system's allocator as it is.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        HELD.fetch_add(class(layout.size()), Relaxed);
        // SAFETY: the caller's promises are the same.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        HELD.fetch_sub(class(layout.size()), Relaxed);
        // SAFETY: the caller's promises are the same.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const WORKLOADS: u32 = 10_000;
const REPLICAS: u32 = 10;

/// The n-th pod of a cluster of a hundred nodes: ten replicas a deployment, a service each, ten deployments a namespace.
fn pod(n: u32) -> wire::Address {
    let app = n / REPLICAS;
    let namespace = format!("namespace-{}", app / 10);
    let name = format!("application-{app}-5d8f7c9b6-{n:05x}");
    let [_, a, b, c] = n.to_be_bytes();
    let ports = wire::PortList { ports: vec![wire::Port { service_port: 80, target_port: 8080, app_protocol: 0 }] };
    let workload = wire::Workload {
        uid: format!("Kubernetes//Pod/{namespace}/{name}"),
        name,
        addresses: vec![vec![10, a, b, c].into()],
        tunnel_protocol: wire::TunnelProtocol::Hbone as i32,
        trust_domain: "cluster.local".into(),
        service_account: format!("application-{app}"),
        node: format!("node-{}", n % 100),
        canonical_name: format!("application-{app}"),
        canonical_revision: "v1".into(),
        workload_name: format!("application-{app}"),
        cluster_id: "Kubernetes".into(),
        services: [(format!("{namespace}/application-{app}.{namespace}.svc.cluster.local"), ports)].into(),
        namespace,
        ..Default::default()
    };
    wire::Address { r#type: Some(wire::address::Type::Workload(workload)) }
}

/// Bytes a workload, with all that points to it. Half a kibibyte is what one may cost in the whole proxy; the session
/// with the control plane takes some 30 of it, and the heap has gaps.
const LIMIT: usize = 300;

#[test]
fn a_workload_costs_few_bytes() {
    let mut state = MeshState::default();
    let before = HELD.load(Relaxed);
    for n in 0..WORKLOADS {
        state.apply(Update::from(from_proto::address(&pod(n)).unwrap()));
    }
    let each = (HELD.load(Relaxed) - before) / WORKLOADS as usize;
    println!("{each} bytes a workload");
    assert!(each <= LIMIT, "{each} bytes a workload");

    // Changing all of them, one after the other, leaves nothing behind.
    let full = HELD.load(Relaxed);
    for n in 0..WORKLOADS {
        let mut changed = pod(n);
        if let Some(wire::address::Type::Workload(workload)) = &mut changed.r#type {
            workload.status = wire::WorkloadStatus::Unhealthy as i32;
        }
        state.apply(Update::from(from_proto::address(&changed).unwrap()));
    }
    let after = HELD.load(Relaxed);
    assert!(after <= full + full / 20, "{full} bytes before, {after} after");
}
