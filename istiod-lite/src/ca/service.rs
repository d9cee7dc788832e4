//! `istio.v1.auth.IstioCertificateService`: the CA's one call.

use std::sync::Arc;
use std::time::Instant;

use aquifer_core::identity::Identity;
use aquifer_proto::ca::istio_certificate_service_server::IstioCertificateService;
use aquifer_proto::ca::{IstioCertificateRequest, IstioCertificateResponse};
use aquifer_xds::server::PeerCerts;
use prost_types::value::Kind;
use time::OffsetDateTime;
use tonic::{Request, Response, Status};

use super::authn::{Authenticators, AuthnError, Caller, Credentials};
use super::authority::Authority;
use super::issuer::IssueError;
use super::ledger::{self, Ledger};
use super::limits::RateLimit;
use super::node_auth::{NodeAuthorizer, Refusal};
use super::trust_domain::TrustDomains;
use crate::debug::Expiries;
use crate::metrics::CaMetrics;

/// The metadata field by which a node proxy asks for a pod's identity.
const IMPERSONATED_IDENTITY: &str = "ImpersonatedIdentity";

/// Certificates of one caller, at once and per second. A node that starts asks for as many as it has identities (250
/// pods at most, as a rule), a rotation for all of them again; more than that is a fault, and signing costs processor time.
const PER_CALLER: (f64, f64) = (1000.0, 20.0);

/// The service: authenticates, authorizes, signs.
#[derive(Clone)]
pub struct CertificateService(Arc<Inner>);

struct Inner {
    authority: Authority,
    ledger: Ledger,
    authenticators: Arc<Authenticators>,
    nodes: NodeAuthorizer,
    trust_domains: TrustDomains,
    rate: RateLimit<String>,
    metrics: CaMetrics,
    expiries: Expiries,
}

impl CertificateService {
    /// A service that signs by `authority` for callers whom `authenticators` know, and notes it in `ledger`.
    pub fn new(
        authority: Authority,
        ledger: Ledger,
        authenticators: Arc<Authenticators>,
        nodes: NodeAuthorizer,
        trust_domains: TrustDomains,
        metrics: CaMetrics,
    ) -> Self {
        let rate = RateLimit::new(PER_CALLER.0, PER_CALLER.1);
        Self(Arc::new(Inner {
            authority,
            ledger,
            authenticators,
            nodes,
            trust_domains,
            rate,
            metrics,
            expiries: Expiries::default(),
        }))
    }

    /// Until when what it issued lasts, by proxy.
    pub fn expiries(&self) -> Expiries {
        self.0.expiries.clone()
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
        let certificates = request.extensions().get::<PeerCerts>().map(|certs| Arc::clone(&certs.0));
        let peer = request.remote_addr().map(|address| address.ip());
        let certificates = certificates.as_ref().map(|certs| certs.as_slice());
        let shown = Credentials { headers: request.metadata(), certificates, peer };
        let caller = this.authenticators.authenticate(shown, now).await.map_err(|error| {
            this.metrics.authentication_failures.inc();
            if matches!(error, AuthnError::Certificate(_)) {
                this.metrics.id_extraction_errors.inc();
            }
            tracing::warn!(%error, ?peer, "CA: caller refused");
            error.status()
        })?;
        if !this.rate.take(&ledger::caller_name(&caller), Instant::now()) {
            tracing::warn!(caller = %name(&caller), "CA: too many requests of one caller");
            return Err(Status::resource_exhausted("too many signing requests: slow down"));
        }
        // 2. Which identity may it have?
        let request = request.into_inner();
        let identity = match impersonated(&request) {
            Ok(None) => Ok(Identity {
                trust_domain: this.trust_domains.own(),
                namespace: caller.namespace.as_str().into(),
                service_account: caller.service_account.as_str().into(),
            }),
            Ok(Some(requested)) => this.nodes.authorize_soon(&caller, requested).await,
            Err(refusal) => Err(refusal),
        }
        .map_err(|refusal| {
            this.metrics.authentication_failures.inc();
            tracing::warn!(
                caller = %name(&caller),
                error = %refusal,
                "CA: impersonation refused"
            );
            Status::unauthenticated("request impersonation authentication failure")
        })?;
        // 3. Sign.
        let active = this.authority.load();
        match active.issuer.issue(&request.csr, &identity, request.validity_duration, now) {
            Ok(cert_chain) => {
                this.metrics.issued.inc();
                let holder = ledger::holder(&ledger::caller_name(&caller), &identity.to_string());
                let until = cert_chain.first().and_then(|leaf| end_of(leaf));
                let ttl = until.map_or(i64::MAX, |until| (until - now).whole_seconds() + 1);
                this.ledger.record(active.step.as_ref(), holder, ttl, now.unix_timestamp());
                if let (Some(pod), Some(until)) = (&caller.pod, until) {
                    this.expiries.issued(&pod.name, &caller.namespace, &identity.to_string(), until);
                }
                tracing::debug!(%identity, "CA: certificate issued");
                Ok(Response::new(IstioCertificateResponse { cert_chain }))
            }
            Err(error) => Err(this.refuse(&identity, &error)),
        }
    }
}

/// Until when a certificate of ours lasts.
fn end_of(pem: &str) -> Option<OffsetDateTime> {
    let (_, pem) = x509_parser::pem::parse_x509_pem(pem.as_bytes()).ok()?;
    Some(pem.parse_x509().ok()?.validity().not_after.to_datetime())
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

fn name(caller: &Caller) -> String {
    format!("{}/{}", caller.namespace, caller.service_account)
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
