//! What a handshake between two identities of this process would find out, without one.

use crate::config::IdentityConfigs;
use crate::peer::PeerCertificate;
use crate::verify::{ClientVerifier, ServerVerifier};
use rustls::client::danger::ServerCertVerifier;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::ClientCertVerifier;
use rustls::{CertificateError, Error, RootCertStore};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

/// What two peers know of each other after their handshake.
#[derive(Clone, Debug)]
pub struct Met {
    /// What the client has shown.
    pub client: Arc<PeerCertificate>,
    /// What the server has shown.
    pub server: Arc<PeerCertificate>,
}

/// Verifies the certificates of both as each does in a handshake with the other: chains, revocation lists, trust domain,
/// and that the server is who it says. Both keys are held by this process, so there is nothing to sign.
pub fn meet(client: &IdentityConfigs, server: &IdentityConfigs, now: UnixTime) -> Result<Met, Error> {
    let trust_domain = server.identity().trust_domain.clone();
    let (theirs, ours) = (client.certificates(), server.certificates());
    let (Some((client_leaf, client_rest)), Some((server_leaf, server_rest))) =
        (theirs.split_first(), ours.split_first())
    else {
        return Err(Error::NoCertificatesPresented);
    };
    ClientVerifier::new(server.root_store().clone(), trust_domain, server.options())
        .map_err(|_| Error::InvalidCertificate(CertificateError::UnknownIssuer))?
        .verify_client_cert(client_leaf, client_rest, now)?;
    let expected = vec![server.identity().clone()];
    // Names play no part.
    let name = ServerName::IpAddress(IpAddr::V4(Ipv4Addr::UNSPECIFIED).into());
    ServerVerifier::new(client.root_store().clone(), expected, client.options()).verify_server_cert(
        server_leaf,
        server_rest,
        &name,
        &[],
        now,
    )?;
    let seen = |chain: &[CertificateDer<'static>], roots: &Arc<RootCertStore>| {
        Arc::new(PeerCertificate::new(chain.to_vec(), roots.clone()))
    };
    Ok(Met { client: seen(theirs, server.root_store()), server: seen(ours, client.root_store()) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::TlsOptions;
    use crate::testing::*;

    #[test]
    fn who_would_shake_hands_meets_and_nobody_else() {
        let (ca, other) = (TestCa::new(), TestCa::named("other"));
        let now = UnixTime::now();
        let (client, server) = (ca.configs(&client_id(), 3600), ca.configs(&server_id(), 3600));
        let met = meet(&client, &server, now).unwrap();
        let revocations = TlsOptions::default().revocations;
        assert!(!revocations.is_revoked(&met.client) && !revocations.is_revoked(&met.server));
        // Of an intermediate, which both show.
        let below = ca.intermediate();
        meet(&below.configs(&client_id(), 3600), &server, now).unwrap();

        // Another authority, on either side.
        assert!(meet(&other.configs(&client_id(), 3600), &server, now).is_err());
        assert!(meet(&client, &other.configs(&server_id(), 3600), now).is_err());
        // Another trust domain: the server's opinion counts.
        let stranger = id("spiffe://elsewhere/ns/shop/sa/orders");
        assert!(meet(&ca.configs(&stranger, 3600), &server, now).is_err());
        // Expired.
        let later = UnixTime::since_unix_epoch(std::time::Duration::from_secs(now.as_secs() + 7200));
        assert!(meet(&client, &server, later).is_err());
    }
}
