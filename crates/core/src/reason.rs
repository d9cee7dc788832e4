//! Why a connection was refused, failed or was cut: the one list behind status codes, metric labels and access lines.

use std::fmt;

macro_rules! reasons {
    ($($(#[$doc:meta])* $name:ident = $code:literal, $status:literal, $flag:literal;)*) => {
        /// Every reason there is.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum Reason {
            $($(#[$doc])* $name,)*
        }

        impl Reason {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$name),*];

            /// Its stable name, for logs and labels.
            pub const fn code(self) -> &'static str {
                match self { $(Self::$name => $code),* }
            }

            /// What a CONNECT is answered with.
            pub const fn http_status(self) -> u16 {
                match self { $(Self::$name => $status),* }
            }

            /// The `response_flags` label of Istio's TCP metrics.
            pub const fn response_flag(self) -> &'static str {
                match self { $(Self::$name => $flag),* }
            }
        }
    };
}

reasons! {
    // Authorization.
    /// A DENY policy matched.
    PolicyDenied = "policy_denied", 401, "DENY";
    /// There are ALLOW policies and none matched.
    PolicyNotAllowed = "policy_not_allowed", 401, "DENY";
    /// The workload names a policy that is not known here. A control plane that never sends it is lived with by
    /// AUTHZ_UNKNOWN_POLICY=skip.
    PolicyUnknown = "policy_unknown", 401, "DENY";
    /// The connection was open when a policy, or what it judges, changed.
    PolicyChanged = "policy_changed", 401, "DENY";

    // What a CONNECT asked for.
    /// Not a CONNECT.
    MethodNotAllowed = "method_not_allowed", 400, "CONNECT";
    /// No authority, or not one that can be read.
    InvalidAuthority = "invalid_authority", 400, "CONNECT";
    /// A request, or a header of it, that breaks a limit or cannot be read.
    InvalidRequest = "invalid_request", 400, "CONNECT";
    /// The authority is not this workload's.
    DestinationMismatch = "destination_mismatch", 400, "CONNECT";
    /// The port is the proxy's own.
    IllegalPort = "illegal_port", 503, "CONNECT";
    /// This pod's workload is not known (yet).
    WorkloadUnknown = "workload_unknown", 503, "CONNECT";
    /// The authority's hostname is no service known here.
    ServiceUnknown = "service_unknown", 503, "CONNECT";
    /// The service, or the endpoint, has no such port.
    PortUnknown = "port_unknown", 503, "CONNECT";
    /// More at once than a limit allows.
    Overloaded = "overloaded", 503, "CONNECT";

    // Where a connection should go.
    /// The kernel does not say where the connection was going.
    OriginalDestinationUnknown = "original_destination_unknown", 503, "CONNECT";
    /// The service is known and none of its endpoints can take the connection.
    NoHealthyUpstream = "no_healthy_upstream", 503, "CONNECT";
    /// The waypoint that is asked for is not known, or none of its endpoints can be used.
    WaypointUnavailable = "waypoint_unavailable", 503, "CONNECT";
    /// The destination lies on another network.
    RemoteNetwork = "remote_network", 503, "CONNECT";
    /// The destination has neither address nor hostname.
    NoAddress = "no_address", 503, "CONNECT";
    /// The destination's hostname does not resolve.
    DnsFailed = "dns_failed", 503, "CONNECT";
    /// The control plane did not say in time who has the destination's address (on-demand discovery).
    DiscoveryTimeout = "discovery_timeout", 503, "CONNECT";

    // Connecting.
    /// The application's, or a plain peer's, port is closed.
    ConnectRefused = "connect_refused", 503, "CONNECT";
    /// Nobody answered in time.
    ConnectTimeout = "connect_timeout", 503, "CONNECT";
    /// Connecting failed otherwise.
    ConnectFailed = "connect_failed", 503, "CONNECT";
    /// No free port to connect from under the source address.
    SourcePortExhausted = "source_port_exhausted", 503, "CONNECT";
    /// Nobody answered on port 15008: maybe a NetworkPolicy blocks it.
    HboneTimeout = "hbone_timeout", 503, "NETWORK_POLICY";
    /// Port 15008 of the peer is closed.
    HboneRefused = "hbone_refused", 503, "CONNECT";

    // The tunnel.
    /// No certificate for the identity could be had.
    IdentityUnavailable = "identity_unavailable", 503, "IDENTITY_ERROR";
    /// The TLS handshake failed.
    TlsFailed = "tls_failed", 503, "TLS_FAILURE";
    /// The peer did not finish the TLS handshake in time.
    TlsTimeout = "tls_timeout", 503, "TLS_FAILURE";
    /// The peer showed no certificate.
    PeerCertificateMissing = "peer_certificate_missing", 401, "TLS_FAILURE";
    /// The peer's certificate is not valid here.
    PeerCertificateInvalid = "peer_certificate_invalid", 401, "TLS_FAILURE";
    /// The peer is somebody else than expected.
    PeerIdentityMismatch = "peer_identity_mismatch", 503, "TLS_FAILURE";
    /// The peer's certificate is revoked.
    CertificateRevoked = "certificate_revoked", 401, "CERT_REVOKED";
    /// The HTTP/2 handshake failed.
    H2Failed = "h2_failed", 503, "H2_HANDSHAKE_FAILURE";
    /// The peer answered 401: its policy denies us.
    PeerDenied = "peer_denied", 503, "CONNECT";
    /// The peer answered our CONNECT with another status than 200 and 401.
    PeerRefused = "peer_refused", 503, "CONNECT";
    /// The tunnel ended before the peer answered.
    TunnelClosed = "tunnel_closed", 503, "CONNECT";

    /// The client left while it waited for its connection.
    ClientGone = "client_gone", 503, "-";

    // While bytes flow.
    /// The connection was reset, or broke.
    ConnectionReset = "connection_reset", 503, "-";
    /// The drain deadline passed.
    Shutdown = "shutdown", 503, "-";
    /// The pod left the mesh, or was deleted.
    PodRemoved = "pod_removed", 503, "-";
    /// A fault of our own.
    Internal = "internal", 503, "-";
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.code())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_stable_text_of_low_cardinality() {
        let mut codes: Vec<_> = Reason::ALL.iter().map(|reason| reason.code()).collect();
        assert!(
            codes.iter().all(|code| code.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_'))
        );
        codes.sort_unstable();
        codes.dedup();
        assert_eq!(codes.len(), Reason::ALL.len(), "codes are unique");
        let flags = [
            "-",
            "DENY",
            "CONNECT",
            "TLS_FAILURE",
            "H2_HANDSHAKE_FAILURE",
            "NETWORK_POLICY",
            "IDENTITY_ERROR",
            "CERT_REVOKED",
        ];
        for reason in Reason::ALL {
            assert!(flags.contains(&reason.response_flag()), "{reason}: Istio's flags only");
            assert!([400, 401, 503].contains(&reason.http_status()), "{reason}");
        }
    }
}
