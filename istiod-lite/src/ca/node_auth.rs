//! May this node proxy ask for that identity? Only for those that run on its own node.

use std::collections::HashSet;
use std::time::Duration;

use aquifer_core::identity::Identity;

use tokio::sync::Semaphore;

use super::authn::Caller;
use super::pods::Pods;
use super::trust_domain::TrustDomains;

/// How long a request waits for a pod that is not known here yet. The node agent and the node proxy hear of a pod from
/// its own kubelet, we from the API server, some ten milliseconds later; a busy API server may take longer. A proxy gives
/// a call ten seconds, and asks again 100 ms after a refusal: so an honest one succeeds the first time, and a wrong one
/// costs little.
pub const POD_WAIT: Duration = Duration::from_secs(1);
/// Requests that wait at once; more are refused right away.
const MAX_WAITING: usize = 512;

/// Why an impersonation is refused. For our log only.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The caller's account may not impersonate at all.
    #[error("{0}/{1} is not a trusted node account")]
    NotTrusted(String, String),
    /// Without the header we cannot tell in which cluster the caller's pod is.
    #[error("no clusterid header")]
    NoCluster,
    /// The caller's token is not bound to a pod, so its node is unknown.
    #[error("the caller's token is not bound to a pod")]
    NoPod,
    /// The caller's pod is gone, another, or not on a node.
    #[error("the caller's pod {0}/{1} does not exist with the token's uid and account on a node")]
    CallerPodGone(String, String),
    /// Not a SPIFFE identity of the form that Istio uses.
    #[error("{0:?} is not a SPIFFE identity")]
    Malformed(String),
    /// An identity that is not ours to vouch for.
    #[error("{0} is of a foreign trust domain")]
    ForeignTrustDomain(Identity),
    /// No pod of that identity is there.
    #[error("no pod of {identity} runs on node {node}")]
    NotOnNode {
        /// What was asked for.
        identity: Identity,
        /// The caller's node.
        node: String,
    },
}

impl Refusal {
    /// Whether a pod that comes can change it.
    fn is_passing(&self) -> bool {
        matches!(self, Self::CallerPodGone(..) | Self::NotOnNode { .. })
    }
}

/// The rule, and what it looks at.
#[derive(Debug)]
pub struct NodeAuthorizer {
    waiting: Semaphore,
    trusted: HashSet<(String, String)>,
    trust_domains: TrustDomains,
    pods: Pods,
}

impl NodeAuthorizer {
    /// `trusted`: namespace and name of the accounts of node proxies.
    pub fn new(trusted: impl IntoIterator<Item = (String, String)>, trust_domains: TrustDomains, pods: Pods) -> Self {
        Self { waiting: Semaphore::new(MAX_WAITING), trusted: trusted.into_iter().collect(), trust_domains, pods }
    }

    /// The identity that `caller` may be given when it asks for `requested`; waits for pods for at most [`POD_WAIT`].
    pub async fn authorize_soon(&self, caller: &Caller, requested: &str) -> Result<Identity, Refusal> {
        // Before the first look, so that no change is missed.
        let mut changes = self.pods.changes();
        let mut answer = self.authorize(caller, requested);
        if !answer.as_ref().is_err_and(Refusal::is_passing) {
            return answer;
        }
        let Ok(_waiting) = self.waiting.try_acquire() else { return answer };
        let change = async {
            while answer.as_ref().is_err_and(Refusal::is_passing) && changes.changed().await.is_ok() {
                answer = self.authorize(caller, requested);
            }
        };
        let _late = tokio::time::timeout(POD_WAIT, change).await;
        answer
    }

    /// The identity that `caller` may be given when it asks for `requested`, by what is known now.
    pub fn authorize(&self, caller: &Caller, requested: &str) -> Result<Identity, Refusal> {
        let Caller { namespace, service_account, .. } = caller;
        if !self.trusted.contains(&(namespace.clone(), service_account.clone())) {
            return Err(Refusal::NotTrusted(namespace.clone(), service_account.clone()));
        }
        if caller.cluster.is_none() {
            return Err(Refusal::NoCluster);
        }
        let pod = caller.pod.as_ref().ok_or(Refusal::NoPod)?;
        let node = self
            .pods
            .get(namespace, &pod.name)
            .filter(|p| p.uid == pod.uid && p.service_account == *service_account)
            .map(|p| p.node)
            .filter(|node| !node.is_empty())
            .ok_or_else(|| Refusal::CallerPodGone(namespace.clone(), pod.name.clone()))?;
        // Kubernetes names are plain ASCII; anything else would only serve to forge a line of our log.
        let identity: Identity = Some(requested)
            .filter(|text| text.bytes().all(|b| b.is_ascii_graphic()))
            .and_then(|text| text.parse().ok())
            .ok_or_else(|| Refusal::Malformed(requested.to_owned()))?;
        // An alias makes a caller known; what is issued is of the mesh's own domain alone.
        if identity.trust_domain != self.trust_domains.own() {
            return Err(Refusal::ForeignTrustDomain(identity));
        }
        if !self.pods.runs_on(&node, &identity.namespace, &identity.service_account) {
            return Err(Refusal::NotOnNode { identity, node });
        }
        Ok(identity)
    }
}
