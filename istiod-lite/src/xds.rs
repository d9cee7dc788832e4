//! Discovery's caller check: the same list of authenticators as the CA's, on every port.

use std::net::SocketAddr;
use std::sync::Arc;

use aquifer_xds::server::{Authenticate, Caller};
use time::OffsetDateTime;
use tonic::Status;
use tonic::metadata::MetadataMap;
use tonic::transport::CertificateDer;

use crate::ca::authn::{Authenticators, Credentials};

/// Lets in whom the authenticators know.
#[derive(Clone, Debug)]
pub struct XdsAuthenticator(pub Arc<Authenticators>);

#[tonic::async_trait]
impl Authenticate for XdsAuthenticator {
    async fn authenticate(
        &self,
        metadata: &MetadataMap,
        peer_certs: Option<Arc<Vec<CertificateDer<'static>>>>,
        peer: Option<SocketAddr>,
    ) -> Result<Caller, Status> {
        let certificates = peer_certs.as_ref().map(|certs| certs.as_slice());
        let shown = Credentials { headers: metadata, certificates, peer: peer.map(|peer| peer.ip()) };
        match self.0.authenticate(shown, OffsetDateTime::now_utc()).await {
            Ok(caller) => Ok(Caller::workload(&caller.namespace, &caller.service_account)),
            Err(error) => {
                tracing::warn!(%error, ?peer, "xDS: caller refused");
                Err(error.status())
            }
        }
    }
}
