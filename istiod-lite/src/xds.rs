//! Discovery's caller check: the same list of authenticators as the CA's, on every port.

use std::sync::Arc;

use aquifer_xds::server::{Authenticate, Caller};
use time::OffsetDateTime;
use tonic::Status;
use tonic::metadata::MetadataMap;
use tonic::transport::CertificateDer;

use crate::ca::authn::Authenticators;

/// Lets in whom the authenticators know.
#[derive(Clone, Debug)]
pub struct XdsAuthenticator(pub Arc<Authenticators>);

#[tonic::async_trait]
impl Authenticate for XdsAuthenticator {
    async fn authenticate(
        &self,
        metadata: &MetadataMap,
        _peer_certs: Option<Arc<Vec<CertificateDer<'static>>>>,
    ) -> Result<Caller, Status> {
        match self.0.authenticate(metadata, OffsetDateTime::now_utc()).await {
            Ok(caller) => Ok(Caller::workload(&caller.namespace, &caller.service_account)),
            Err(error) => {
                tracing::warn!(%error, "xDS: caller refused");
                Err(Status::unauthenticated("request authenticate failure"))
            }
        }
    }
}
