//! What is done in every mode.

use crate::bed::Place;
use crate::mode::Mode;
use crate::results::Metric;

/// A work.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Work {
    /// As options and results name it.
    pub(crate) id: &'static str,
    /// As the report names it.
    pub(crate) title: &'static str,
    pub(crate) kind: Kind,
    pub(crate) place: Place,
    /// Whether a target rests on it: more rounds, and part of a quick run.
    pub(crate) target: bool,
}

/// What the client does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Bytes as fast as they go, by iperf3.
    Bulk { streams: u32 },
    /// Requests over connections that are kept, each as soon as the one before is answered, by wrk.
    Http { connections: u32 },
    /// A new connection for each request, by wrk on so many connections at a time.
    Connect { at_once: u32 },
}

/// All works, in the order of the report.
pub(crate) const WORKS: &[Work] = &[
    work("bulk1", "bulk TCP, 1 stream", Kind::Bulk { streams: 1 }, Place::Across, true),
    work("bulk4", "bulk TCP, 4 streams", Kind::Bulk { streams: 4 }, Place::Across, true),
    work("bulk16", "bulk TCP, 16 streams", Kind::Bulk { streams: 16 }, Place::Across, false),
    work("http1", "HTTP/1.1 keep-alive, 1 connection", Kind::Http { connections: 1 }, Place::Across, false),
    work("http32", "HTTP/1.1 keep-alive, 32 connections", Kind::Http { connections: 32 }, Place::Across, true),
    work("http512", "HTTP/1.1 keep-alive, 512 connections", Kind::Http { connections: 512 }, Place::Across, true),
    work("connect", "new connections, a request each", Kind::Connect { at_once: 32 }, Place::Across, true),
    work("bulk1-near", "bulk TCP, 1 stream, same node", Kind::Bulk { streams: 1 }, Place::Near, false),
    work("http32-near", "HTTP/1.1, 32 connections, same node", Kind::Http { connections: 32 }, Place::Near, false),
    work("connect-near", "new connections, same node", Kind::Connect { at_once: 32 }, Place::Near, false),
];

const fn work(id: &'static str, title: &'static str, kind: Kind, place: Place, target: bool) -> Work {
    Work { id, title, kind, place, target }
}

impl Work {
    /// The figure that it is about.
    pub(crate) fn primary(&self) -> Metric {
        match self.kind {
            Kind::Bulk { .. } => Metric::Gbits,
            Kind::Http { .. } | Kind::Connect { .. } => Metric::Rate,
        }
    }

    /// Whether it says something of this mode: an HTTP proxy carries no bulk TCP.
    pub(crate) fn suits(&self, mode: Mode) -> bool {
        !(mode == Mode::SidecarHttp && matches!(self.kind, Kind::Bulk { .. }))
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
}
