//! `istio.v1.auth.IstioCertificateService`: the CA's one call.

use std::sync::Arc;

use aquifer_core::identity::Identity;
use aquifer_proto::ca::istio_certificate_service_server::IstioCertificateService;
use aquifer_proto::ca::{IstioCertificateRequest, IstioCertificateResponse};
use prost_types::value::Kind;
use time::OffsetDateTime;
use tonic::{Request, Response, Status};

use super::authn::Authenticators;
use super::issuer::{IssueError, Issuer};
use super::node_auth::{NodeAuthorizer, Refusal};
use crate::metrics::CaMetrics;

/// The metadata field by which a node proxy asks for a pod's identity.
const IMPERSONATED_IDENTITY: &str = "ImpersonatedIdentity";

/// The service: authenticates, authorizes, signs.
#[derive(Clone)]
pub struct CertificateService(Arc<Inner>);

struct Inner {
    issuer: Issuer,
    authenticators: Arc<Authenticators>,
    nodes: NodeAuthorizer,
    trust_domain: Arc<str>,
    metrics: CaMetrics,
}

impl CertificateService {
    /// A service that signs with `issuer` for callers whom `authenticators` know.
    pub fn new(
        issuer: Issuer,
        authenticators: Arc<Authenticators>,
        nodes: NodeAuthorizer,
        trust_domain: &str,
        metrics: CaMetrics,
    ) -> Self {
        let trust_domain = trust_domain.into();
        Self(Arc::new(Inner { issuer, authenticators, nodes, trust_domain, metrics }))
    }
}

#[tonic::async_trait]
impl IstioCertificateService for CertificateService {
    async fn create_certificate(
        &self,
        request: Request<IstioCertificateRequest>,
    ) -> Result<Response<IstioCertificateResponse>, Status> {
        let this = &*self.0;
        let now = OffsetDateTime::now_utc();
        this.metrics.csr_count.inc();

        // 1. Who calls?
        let caller = this.authenticators.authenticate(request.metadata(), now).await.map_err(|error| {
            this.metrics.authentication_failures.inc();
            tracing::warn!(%error, peer = ?request.remote_addr(), "CA: caller refused");
            Status::unauthenticated("request authenticate failure")
        })?;
        // 2. Which identity may it have?
        let request = request.into_inner();
        let identity = match impersonated(&request) {
            Ok(None) => Ok(Identity {
                trust_domain: Arc::clone(&this.trust_domain),
                namespace: caller.namespace.as_str().into(),
                service_account: caller.service_account.as_str().into(),
            }),
            Ok(Some(requested)) => this.nodes.authorize(&caller, requested),
            Err(refusal) => Err(refusal),
        }
        .map_err(|refusal| {
            this.metrics.authentication_failures.inc();
            tracing::warn!(
                caller = %format_args!("{}/{}", caller.namespace, caller.service_account),
                error = %refusal,
                "CA: impersonation refused"
            );
            Status::unauthenticated("request impersonation authentication failure")
        })?;
        // 3. Sign.
        match this.issuer.issue(&request.csr, &identity, request.validity_duration, now) {
            Ok(cert_chain) => {
                this.metrics.issued.inc();
                tracing::debug!(%identity, "CA: certificate issued");
                Ok(Response::new(IstioCertificateResponse { cert_chain }))
            }
            Err(error) => Err(this.refuse(&identity, &error)),
        }
    }
}

impl Inner {
    fn refuse(&self, identity: &Identity, error: &IssueError) -> Status {
        self.metrics.sign_error(error);
        tracing::warn!(%identity, %error, "CA: certificate not issued");
        match error {
            IssueError::Csr(_) | IssueError::Ttl { .. } => Status::invalid_argument(error.to_string()),
            IssueError::RootExpired | IssueError::Signing(_) => Status::internal(error.to_string()),
        }
    }
}

/// The identity asked for; `None` when the caller wants its own.
fn impersonated(request: &IstioCertificateRequest) -> Result<Option<&str>, Refusal> {
    let value = request.metadata.as_ref().and_then(|m| m.fields.get(IMPERSONATED_IDENTITY));
    match value.map(|v| v.kind.as_ref()) {
        None => Ok(None),
        Some(Some(Kind::StringValue(identity))) if identity.is_empty() => Ok(None),
        Some(Some(Kind::StringValue(identity))) => Ok(Some(identity)),
        // Anything but text is no identity; taking it for absent would sign another one than asked.
        Some(other) => Err(Refusal::Malformed(format!("{other:?}"))),
    }
}

#[cfg(test)]
mod tests;
