use crate::ca_client::CaError;
use crate::verify::VerifyError;
use aquifer_core::identity::Identity;
use aquifer_core::reason::Reason;
use rustls::CertificateError;
use std::io;
use std::sync::Arc;
use std::time::Duration;

/// Why there is no certificate for an identity.
#[derive(Clone, Debug, thiserror::Error)]
pub enum CertError {
    /// Nobody asked for it: it is no identity of this node's pods.
    #[error("identity {0} is not in use on this node")]
    NotWanted(Identity),
    /// The last attempt failed; the next is scheduled.
    #[error("no certificate for {identity}: {source}")]
    Fetch {
        /// Of whom.
        identity: Identity,
        /// Why.
        source: Arc<CaError>,
    },
    /// The authority has said nothing yet, and the caller had no more time.
    #[error("no certificate for {identity}: the certificate authority has not answered for {waited:?}")]
    Late {
        /// Of whom.
        identity: Identity,
        /// How long was waited.
        waited: Duration,
    },
    /// There is nobody to issue one.
    #[error("no certificate for {0}: CA_ADDRESS is empty, so there is no certificate authority")]
    NoAuthority(Identity),
    /// It expired and has not been replaced yet.
    #[error("the certificate of {0} has expired")]
    Expired(Identity),
    /// The manager has been shut down.
    #[error("the certificate manager is closed")]
    Closed,
}

impl CertError {
    /// Its place in the mesh's list of reasons.
    pub fn reason(&self) -> Reason {
        match self {
            Self::NotWanted(_) | Self::Fetch { .. } | Self::Late { .. } | Self::NoAuthority(_) | Self::Expired(_) => {
                Reason::IdentityUnavailable
            }
            Self::Closed => Reason::Shutdown,
        }
    }
}

/// The reason behind an error of a TLS handshake, on either side.
pub fn reason_of(error: &io::Error) -> Reason {
    match error.get_ref().and_then(|e| e.downcast_ref::<rustls::Error>()) {
        Some(e) => tls_reason(e),
        None if error.kind() == io::ErrorKind::TimedOut => Reason::TlsTimeout,
        None => Reason::TlsFailed,
    }
}

/// An error of a TLS handshake in words that say what to do about it, where rustls's own don't.
pub fn explain(error: &io::Error) -> String {
    use rustls::{AlertDescription, Error, PeerIncompatible};
    let Some(error) = error.get_ref().and_then(|e| e.downcast_ref::<Error>()) else {
        return error.to_string();
    };
    if let Error::InvalidCertificate(invalid) = error
        && let Some(ours) = VerifyError::of(invalid)
    {
        // rustls would show the value that it carries, as a debugger does.
        return format!("invalid peer certificate: {ours}");
    }
    let what = match error {
        Error::PeerIncompatible(PeerIncompatible::NoKxGroupsInCommon) => {
            "the peer offers no key exchange that is allowed here (is COMPLIANCE_POLICY=pqc set on one side only?)"
        }
        Error::PeerIncompatible(PeerIncompatible::NoCipherSuitesInCommon) => {
            "the peer offers none of our cipher suites"
        }
        Error::PeerIncompatible(
            PeerIncompatible::SupportedVersionsExtensionRequired | PeerIncompatible::Tls12NotOfferedOrEnabled,
        ) => "the peer speaks TLS 1.2 at most (TLS12_ENABLED would allow it)",
        Error::InvalidCertificate(CertificateError::Revoked) => "the peer's certificate is revoked",
        Error::AlertReceived(AlertDescription::HandshakeFailure) => {
            "the peer takes none of the key exchanges and cipher suites that are allowed here (is \
             COMPLIANCE_POLICY=pqc set on one side only?)"
        }
        Error::AlertReceived(AlertDescription::CertificateRevoked) => "the peer says that our certificate is revoked",
        other => return other.to_string(),
    };
    format!("{what}: {error}")
}

fn tls_reason(error: &rustls::Error) -> Reason {
    match error {
        rustls::Error::NoCertificatesPresented => Reason::PeerCertificateMissing,
        rustls::Error::InvalidCertificate(CertificateError::Revoked) => Reason::CertificateRevoked,
        rustls::Error::InvalidCertificate(e) => match VerifyError::of(e) {
            Some(VerifyError::UnexpectedIdentity { .. }) => Reason::PeerIdentityMismatch,
            Some(VerifyError::NoIdentity | VerifyError::ForeignTrustDomain { .. }) | None => {
                Reason::PeerCertificateInvalid
            }
        },
        _ => Reason::TlsFailed,
    }
}
