//! What is done in every mode.

use crate::bed::Place;
use crate::mode::Mode;
use crate::results::Metric;
use crate::sidecar::Keys;

/// A work.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Work {
    /// As options and results name it.
    pub(crate) id: &'static str,
    /// As the report names it.
    pub(crate) title: &'static str,
    pub(crate) kind: Kind,
    pub(crate) place: Place,
    /// Whether a target rests on it: part of a quick run.
    pub(crate) target: bool,
}

/// What the client does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Bytes as fast as they go, by iperf3.
    Bulk { streams: u32 },
    /// Requests over connections that are kept, each as soon as the one before is answered, by wrk.
    Http { connections: u32 },
    /// A new connection for each request, so many at a time.
    Connect { at_once: u32 },
    /// The same, with sidecars whose keys are RSA.
    ConnectRsa { at_once: u32 },
    /// Streams that send a message as soon as the one before came back.
    Grpc { streams: u32 },
    /// Requests at times that do not depend on the answers.
    OpenLoop { rate: u32 },
    /// Such requests beside a bulk transfer of the same pod.
    Mice { rate: u32 },
    /// Such requests, alone and then beside a busy pod of the same node.
    Neighbour { busy: Busy, rate: u32 },
    /// Connections that do nothing, in proxies that did nothing before.
    Idle { connections: u32 },
    /// Memory of proxies that have just started, then under and after load.
    Memory { connections: u32 },
    /// Memory of proxies that come to know so many pods of other nodes.
    Workloads { count: u32 },
}

/// What the neighbour does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Busy {
    /// One bulk transfer.
    Bulk,
    /// So many connections, opened as fast as it goes, and again.
    Connect { connections: u32 },
}

/// An Envoy has two descriptors for each connection, and no more than 20 000 where no process may have more.
const SIDECAR_IDLE: u32 = 8000;

/// All works, in the order of the report.
pub(crate) const WORKS: &[Work] = &[
    target("memory", "memory, idle and after 512 connections", Kind::Memory { connections: 512 }),
    target("bulk1", "bulk TCP, 1 stream", Kind::Bulk { streams: 1 }),
    target("bulk4", "bulk TCP, 4 streams", Kind::Bulk { streams: 4 }),
    work("bulk16", "bulk TCP, 16 streams", Kind::Bulk { streams: 16 }),
    work("http1", "HTTP/1.1 keep-alive, 1 connection", Kind::Http { connections: 1 }),
    target("http32", "HTTP/1.1 keep-alive, 32 connections", Kind::Http { connections: 32 }),
    target("http512", "HTTP/1.1 keep-alive, 512 connections", Kind::Http { connections: 512 }),
    target("connect", "new connections, a request each", Kind::Connect { at_once: 32 }),
    work("connect-rsa", "new connections, sidecars with Istio's default RSA keys", Kind::ConnectRsa { at_once: 32 }),
    work("grpc", "gRPC, 100 streams", Kind::Grpc { streams: 100 }),
    work("open100", "open loop, 100 requests/s", Kind::OpenLoop { rate: 100 }),
    work("open1000", "open loop, 1 000 requests/s", Kind::OpenLoop { rate: 1000 }),
    work("open5000", "open loop, 5 000 requests/s", Kind::OpenLoop { rate: 5000 }),
    work("mice", "1 000 requests/s beside a bulk transfer of the same pod", Kind::Mice { rate: 1000 }),
    work("neighbour-bulk", "a neighbour's bulk transfer", Kind::Neighbour { busy: Busy::Bulk, rate: 1000 }),
    work(
        "neighbour-connect",
        "a neighbour's 8 000 connections",
        Kind::Neighbour { busy: Busy::Connect { connections: 8000 }, rate: 1000 },
    ),
    work("idle1k", "1 000 idle connections", Kind::Idle { connections: 1000 }),
    work("idle10k", "10 000 idle connections", Kind::Idle { connections: 10_000 }),
    work("workloads10k", "10 000 workloads in the mesh", Kind::Workloads { count: 10_000 }),
    work("workloads50k", "50 000 workloads in the mesh", Kind::Workloads { count: 50_000 }),
    near("bulk1-near", "bulk TCP, 1 stream, same node", Kind::Bulk { streams: 1 }),
    near("http32-near", "HTTP/1.1, 32 connections, same node", Kind::Http { connections: 32 }),
    near("connect-near", "new connections, same node", Kind::Connect { at_once: 32 }),
];

const fn work(id: &'static str, title: &'static str, kind: Kind) -> Work {
    Work { id, title, kind, place: Place::Across, target: false }
}

const fn target(id: &'static str, title: &'static str, kind: Kind) -> Work {
    Work { target: true, ..work(id, title, kind) }
}

const fn near(id: &'static str, title: &'static str, kind: Kind) -> Work {
    Work { place: Place::Near, ..work(id, title, kind) }
}

/// Figures that only some works have.
pub(crate) mod extra {
    use crate::results::Metric;

    /// Memory of both sides' proxies before any load, MiB.
    pub(crate) const IDLE: Metric = Metric::Extra("idle_pss_mib");
    /// The same right after the load, MiB.
    pub(crate) const AFTER: Metric = Metric::Extra("after_pss_mib");
    /// The most that was seen during the load, MiB.
    pub(crate) const PEAK: Metric = Metric::Extra("peak_pss_mib");
    /// Growth of both sides' proxies for each idle connection, KiB.
    pub(crate) const PER_CONNECTION: Metric = Metric::Extra("pss_per_connection_kib");
    /// Growth of the kernel's TCP memory on the whole machine for each idle connection, KiB.
    pub(crate) const SOCKETS_PER_CONNECTION: Metric = Metric::Extra("tcp_memory_per_connection_kib");
    /// Growth of a node's proxy for each 10 000 workloads, MiB.
    pub(crate) const PER_WORKLOADS: Metric = Metric::Extra("pss_per_10k_workloads_mib");
    /// p99 without the neighbour, µs.
    pub(crate) const ALONE: Metric = Metric::Extra("alone_p99_us");
    /// p99 beside the neighbour relative to p99 without it.
    pub(crate) const MOVED: Metric = Metric::Extra("p99_moved_times");
}

impl Work {
    /// The figure that it is about.
    pub(crate) fn primary(&self) -> Metric {
        match self.kind {
            Kind::Bulk { .. } => Metric::Gbits,
            Kind::Http { .. } | Kind::Connect { .. } | Kind::ConnectRsa { .. } | Kind::Grpc { .. } => Metric::Rate,
            Kind::OpenLoop { .. } | Kind::Mice { .. } => Metric::P99,
            Kind::Neighbour { .. } => extra::MOVED,
            Kind::Idle { .. } => extra::PER_CONNECTION,
            Kind::Memory { .. } => extra::AFTER,
            Kind::Workloads { .. } => extra::PER_WORKLOADS,
        }
    }

    /// Whether it says something of this mode.
    pub(crate) fn suits(&self, mode: Mode) -> bool {
        match self.kind {
            // An HTTP proxy carries no other bytes.
            Kind::Bulk { .. } | Kind::Mice { .. } => mode != Mode::SidecarHttp,
            // A note beside the row with elliptic keys.
            Kind::ConnectRsa { .. } => mode == Mode::SidecarTcp,
            // Of no mesh there is no memory.
            Kind::Memory { .. } => mode != Mode::None,
            Kind::Idle { connections } => match mode {
                Mode::SidecarTcp => connections <= SIDECAR_IDLE,
                _ => mode != Mode::SidecarHttp,
            },
            // Sidecars are configured statically here, with what they need.
            Kind::Workloads { .. } => mode.is_mesh(),
            // What a neighbour does with a mesh is compared with what it does without.
            Kind::Neighbour { .. } => mode.sidecars().is_none(),
            _ => true,
        }
    }

    /// Whether it needs proxies of its own: such as have done nothing yet, or have other keys.
    pub(crate) fn is_fresh(&self) -> bool {
        matches!(self.kind, Kind::Idle { .. } | Kind::Memory { .. } | Kind::ConnectRsa { .. } | Kind::Workloads { .. })
    }

    /// The keys of its sidecars.
    pub(crate) fn keys(&self) -> Keys {
        match self.kind {
            Kind::ConnectRsa { .. } => Keys::Rsa2048,
            _ => Keys::default(),
        }
    }

    /// How many rounds it gets.
    pub(crate) fn rounds(&self, quick: bool) -> u32 {
        match (self.target && !self.is_fresh(), quick) {
            (true, false) => 5,
            _ => 3,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn names_are_unique() {
        let names: BTreeSet<_> = WORKS.iter().map(|work| work.id).collect();
        assert_eq!(names.len(), WORKS.len());
    }

    #[test]
    fn every_work_suits_ambient() {
        let note = |work: &Work| work.id == "connect-rsa";
        assert!(WORKS.iter().all(|work| work.suits(Mode::Ambient) || note(work)));
        assert!(!WORKS.iter().any(|work| work.suits(Mode::SidecarHttp) && work.id.starts_with("bulk")));
    }
}
