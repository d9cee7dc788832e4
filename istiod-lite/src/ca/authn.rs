//! Who calls? One list of authenticators for xDS and the CA alike, and no way around it.

use tonic::metadata::MetadataMap;

use super::jwt::{JwtAuthenticator, JwtError};
use super::pods::Pods;
use time::OffsetDateTime;

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

/// A way to tell who a caller is. (TokenReview by an API server will be another.)
#[derive(Debug)]
#[non_exhaustive]
pub enum Authenticator {
    /// Offline check against a key file.
    Jwt(JwtAuthenticator),
}

impl Authenticator {
    async fn subject(&self, token: &str, now: OffsetDateTime) -> Result<super::jwt::TokenSubject, AuthnError> {
        match self {
            Self::Jwt(jwt) => Ok(jwt.verify(token, now)?),
        }
    }
}

/// The list, tried in order, and what holds for all of them.
#[derive(Debug)]
pub struct Authenticators {
    list: Vec<Authenticator>,
    pods: Pods,
    cluster_id: String,
}

impl Authenticators {
    /// Callers are known by one of `list`; their pods must be in `pods`.
    pub fn new(list: Vec<Authenticator>, pods: Pods, cluster_id: String) -> Self {
        Self { list, pods, cluster_id }
    }

    /// Who sent these headers?
    pub async fn authenticate(&self, headers: &MetadataMap, now: OffsetDateTime) -> Result<Caller, AuthnError> {
        let token = bearer_token(headers).ok_or(AuthnError::NoToken)?;
        let cluster = headers.get("clusterid").map(|v| v.to_str().unwrap_or_default().to_owned());
        // The header chooses whose word counts on this token; only our own cluster's does.
        if let Some(other) = cluster.as_ref().filter(|c| **c != self.cluster_id) {
            return Err(AuthnError::UnknownCluster(other.clone()));
        }
        let mut refusal = AuthnError::NoAuthenticator;
        for authenticator in &self.list {
            match authenticator.subject(token, now).await {
                Ok(subject) => return self.caller(subject, cluster),
                Err(error) => refusal = error,
            }
        }
        Err(refusal)
    }

    /// Kubernetes ends a bound token with its pod; offline checks must do so themselves.
    fn caller(&self, subject: super::jwt::TokenSubject, cluster: Option<String>) -> Result<Caller, AuthnError> {
        let super::jwt::TokenSubject { namespace, service_account, pod } = subject;
        if let Some((name, uid)) = &pod {
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
