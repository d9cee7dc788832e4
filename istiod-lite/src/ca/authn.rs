//! Who calls? One list of authenticators for xDS and the CA alike, and no way around it.

use std::net::IpAddr;

use rustls_pki_types::CertificateDer;
use time::OffsetDateTime;
use tonic::metadata::MetadataMap;

use super::client_cert;
use super::jwt::{JwtAuthenticator, JwtError, TokenSubject};
use super::pods::Pods;
use super::token_review::{ReviewError, TokenReviewer};
use super::trust_domain::TrustDomains;

/// An authenticated caller.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    /// Namespace of its service account.
    pub namespace: String,
    /// Its service account.
    pub service_account: String,
    /// The pod that it runs in, when its credential is bound to one.
    pub pod: Option<CallerPod>,
    /// The `clusterid` that it sent; always our own when present.
    pub cluster: Option<String>,
}

/// The pod of a caller. It existed, with this uid, when the caller was authenticated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CallerPod {
    /// Its name, in the caller's namespace.
    pub name: String,
    /// Its uid.
    pub uid: String,
}

/// Why a caller is not known. For our log only: callers learn nothing but the refusal.
#[derive(Debug, thiserror::Error)]
pub enum AuthnError {
    /// No `authorization: Bearer` header.
    #[error("no bearer token")]
    NoToken,
    /// The `clusterid` header names a cluster that we do not serve.
    #[error("unknown clusterid {0:?}")]
    UnknownCluster(String),
    /// The token is not good.
    #[error(transparent)]
    Jwt(#[from] JwtError),
    /// The API server does not say that the token is good.
    #[error(transparent)]
    Review(#[from] ReviewError),
    /// A certificate of ours, but no workload's of this mesh.
    #[error("the client certificate is of {0:?}, which is no identity of this mesh")]
    Certificate(Vec<String>),
    /// The token's pod is gone: so is its right to speak.
    #[error("the token belongs to pod {namespace}/{name} (uid {uid}), which does not exist")]
    PodGone {
        /// The pod's namespace.
        namespace: String,
        /// The pod's name.
        name: String,
        /// The uid that the token names.
        uid: String,
    },
    /// Nobody here can tell who the caller is.
    #[error("no authenticator is configured")]
    NoAuthenticator,
}

impl AuthnError {
    /// Nobody could tell: the caller shall try again, and is not refused.
    pub fn is_unavailable(&self) -> bool {
        matches!(self, Self::Review(ReviewError::Unavailable(_)))
    }

    /// What the caller is told.
    pub fn status(&self) -> tonic::Status {
        match self {
            Self::Review(ReviewError::Unavailable(_)) => {
                tonic::Status::unavailable("the token cannot be reviewed now: try again")
            }
            Self::Review(ReviewError::TooMany(_)) => tonic::Status::resource_exhausted("too many bad tokens"),
            _ => tonic::Status::unauthenticated("request authenticate failure"),
        }
    }
}

/// A way to tell who a caller is, by its token.
#[derive(Debug)]
#[non_exhaustive]
pub enum Authenticator {
    /// Offline check against a key file.
    Jwt(JwtAuthenticator),
    /// The API server's word.
    TokenReview(TokenReviewer),
}

impl Authenticator {
    async fn subject(
        &self,
        token: &str,
        peer: Option<IpAddr>,
        now: OffsetDateTime,
    ) -> Result<TokenSubject, AuthnError> {
        match self {
            Self::Jwt(jwt) => Ok(jwt.verify(token, now)?),
            Self::TokenReview(reviewer) => Ok(reviewer.subject(token, peer, now).await?),
        }
    }

    /// Whether it has seen the token's pod itself, rather than believed the token.
    fn sees_pods(&self) -> bool {
        match self {
            Self::Jwt(_) => false,
            // The API server ends a bound token with its pod, and knows of a new pod before we do.
            Self::TokenReview(_) => true,
        }
    }
}

/// What a caller shows.
#[derive(Debug, Clone, Copy)]
pub struct Credentials<'a> {
    /// The headers of its request.
    pub headers: &'a MetadataMap,
    /// The certificates with which it proved itself in the handshake, leaf first. Their chain was verified there.
    pub certificates: Option<&'a [CertificateDer<'static>]>,
    /// Where it calls from.
    pub peer: Option<IpAddr>,
}

impl<'a> Credentials<'a> {
    /// Only headers.
    pub fn of(headers: &'a MetadataMap) -> Self {
        Self { headers, certificates: None, peer: None }
    }
}

/// The list, tried in order, and what holds for all of them.
#[derive(Debug)]
pub struct Authenticators {
    list: Vec<Authenticator>,
    pods: Pods,
    cluster_id: String,
    trust_domains: TrustDomains,
}

impl Authenticators {
    /// Callers are known by a certificate of `trust_domains` or by one of `list`; their pods must be in `pods`.
    pub fn new(list: Vec<Authenticator>, pods: Pods, cluster_id: String, trust_domains: TrustDomains) -> Self {
        Self { list, pods, cluster_id, trust_domains }
    }

    /// Who shows these credentials? A certificate comes before a token, as in Istio.
    pub async fn authenticate(&self, shown: Credentials<'_>, now: OffsetDateTime) -> Result<Caller, AuthnError> {
        let Credentials { headers, certificates, peer } = shown;
        if let Some(leaf) = certificates.and_then(<[_]>::first) {
            return self.by_certificate(leaf);
        }
        let token = bearer_token(headers).ok_or(AuthnError::NoToken)?;
        let cluster = headers.get("clusterid").map(|v| v.to_str().unwrap_or("not text").to_owned());
        // Empty is as good as absent, as in Istio.
        let cluster = cluster.filter(|name| !name.is_empty());
        // The header chooses whose word counts on this token; only our own cluster's does.
        if let Some(other) = cluster.as_ref().filter(|c| **c != self.cluster_id) {
            return Err(AuthnError::UnknownCluster(other.clone()));
        }
        let mut refusal = AuthnError::NoAuthenticator;
        for authenticator in &self.list {
            match authenticator.subject(token, peer, now).await {
                Ok(subject) => return self.caller(subject, cluster, authenticator.sees_pods()),
                // One that could not tell may be the one that knows this token.
                Err(_) if refusal.is_unavailable() => {}
                Err(error) => refusal = error,
            }
        }
        Err(refusal)
    }

    /// A workload of the mesh that has a certificate already. It names no pod, so it can impersonate nobody.
    fn by_certificate(&self, leaf: &CertificateDer<'_>) -> Result<Caller, AuthnError> {
        let identity = client_cert::identity(leaf, &self.trust_domains).map_err(AuthnError::Certificate)?;
        Ok(Caller {
            namespace: identity.namespace.to_string(),
            service_account: identity.service_account.to_string(),
            pod: None,
            cluster: None,
        })
    }

    /// Kubernetes ends a bound token with its pod; offline checks must do so themselves.
    fn caller(&self, subject: TokenSubject, cluster: Option<String>, seen: bool) -> Result<Caller, AuthnError> {
        let TokenSubject { namespace, service_account, pod } = subject;
        if let Some((name, uid)) = pod.as_ref().filter(|_| !seen) {
            let alive =
                self.pods.get(&namespace, name).is_some_and(|p| p.uid == *uid && p.service_account == service_account);
            if !alive {
                let (name, uid) = (name.clone(), uid.clone());
                return Err(AuthnError::PodGone { namespace, name, uid });
            }
        }
        let pod = pod.map(|(name, uid)| CallerPod { name, uid });
        Ok(Caller { namespace, service_account, pod, cluster })
    }
}

fn bearer_token(headers: &MetadataMap) -> Option<&str> {
    let value = headers.get("authorization")?.to_str().ok()?;
    let (scheme, token) = value.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

#[cfg(test)]
mod tests;
