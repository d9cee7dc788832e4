//! What Envoys' counters prove about the traffic that they carried. Pure.

use std::collections::HashMap;

use super::error::{Result, SidecarError};

/// Sums over all sidecars. Every connection counted in `handshakes` was TLS 1.3 with both certificates.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Proof {
    /// TLS handshakes completed by the servers' side.
    pub handshakes: u64,
    /// How many of them resumed an earlier session.
    pub resumed: u64,
    /// Bytes that the clients' side wrote to the wire's connections.
    pub sent: u64,
    /// Bytes that the servers' side passed on to applications.
    pub delivered: u64,
    /// Whatever a pod without a sidecar was sent, or sent.
    plain: u64,
    client_handshakes: u64,
}

impl Proof {
    /// Adds one Envoy's `/stats`; fails if any of its TLS was not as it should be.
    pub(super) fn add(&mut self, pod: &str, stats: &str) -> Result<()> {
        let counters = counters(stats);
        let value = |name: &str| counters.get(name).copied().unwrap_or(0);
        for side in ["listener.inbound", "cluster.outbound"] {
            let (all, modern) =
                (value(&format!("{side}.ssl.handshake")), value(&format!("{side}.ssl.versions.TLSv1.3")));
            if all != modern {
                return fail(format!("pod {pod}: {modern} of {all} handshakes of {side} were TLS 1.3"));
            }
        }
        let nameless = value("listener.inbound.ssl.no_certificate");
        if nameless > 0 {
            return fail(format!("pod {pod}: {nameless} clients showed no certificate"));
        }
        self.handshakes += value("listener.inbound.ssl.handshake");
        self.client_handshakes += value("cluster.outbound.ssl.handshake");
        self.resumed += value("listener.inbound.ssl.session_reused");
        self.sent += value("cluster.outbound.upstream_cx_tx_bytes_total");
        self.delivered += value("cluster.inbound.upstream_cx_tx_bytes_total");
        self.plain += value("cluster.passthrough.upstream_cx_total") + value("listener.inbound.no_filter_chain_match");
        Ok(())
    }

    /// The sums, if they stand for traffic that went through sidecars at both ends and nowhere else.
    pub(super) fn complete(self) -> Result<Self> {
        if self.plain > 0 {
            return fail(format!("{} connections were not between two sidecars", self.plain));
        }
        if self.handshakes == 0 || self.client_handshakes == 0 {
            return fail("no connection went from one sidecar to another".to_owned());
        }
        if self.sent == 0 || self.delivered == 0 {
            return fail(format!("{} bytes were sent, {} delivered", self.sent, self.delivered));
        }
        Ok(self)
    }
}

fn fail<T>(why: String) -> Result<T> {
    Err(SidecarError::NotProven(why))
}

/// `name: number` lines; histograms and text are none.
fn counters(stats: &str) -> HashMap<&str, u64> {
    stats
        .lines()
        .filter_map(|line| {
            let (name, value) = line.rsplit_once(": ")?;
            Some((name, value.parse().ok()?))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLIENT: &str = "cluster.outbound.ssl.handshake: 3\ncluster.outbound.ssl.versions.TLSv1.3: 3\n\
                          cluster.outbound.upstream_cx_tx_bytes_total: 900\ncluster.passthrough.upstream_cx_total: 0\n";
    const SERVER: &str = "listener.inbound.ssl.handshake: 3\nlistener.inbound.ssl.versions.TLSv1.3: 3\n\
                          listener.inbound.ssl.session_reused: 2\nlistener.inbound.ssl.no_certificate: 0\n\
                          cluster.inbound.upstream_cx_tx_bytes_total: 900\nserver.version: abc\n";

    fn check(stats: &[&str]) -> std::result::Result<Proof, String> {
        let mut proof = Proof::default();
        for stats in stats {
            proof.add("web", stats).map_err(|error| error.to_string())?;
        }
        proof.complete().map_err(|error| error.to_string())
    }

    #[test]
    fn mutual_tls_between_two_sidecars_is_proven() {
        let proof = check(&[CLIENT, SERVER]).unwrap();
        assert_eq!((proof.handshakes, proof.resumed, proof.sent, proof.delivered), (3, 2, 900, 900));
    }

    #[test]
    fn anything_else_is_not() {
        let cases = [
            (vec![CLIENT], "no connection went"),
            (vec![SERVER], "no connection went"),
            (vec![CLIENT, "listener.inbound.ssl.handshake: 3\nlistener.inbound.ssl.versions.TLSv1.3: 2"], "2 of 3"),
            (vec![CLIENT, SERVER, "listener.inbound.ssl.no_certificate: 1"], "1 clients showed no certificate"),
            (vec![CLIENT, SERVER, "cluster.passthrough.upstream_cx_total: 4"], "4 connections were not"),
            (vec![CLIENT, SERVER, "listener.inbound.no_filter_chain_match: 5"], "5 connections were not"),
        ];
        for (stats, expect) in cases {
            let error = check(&stats).unwrap_err();
            assert!(error.contains(expect), "{error} for {stats:?}");
        }
    }
}
