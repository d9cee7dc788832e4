//! How the mesh's processes reach an API server: a kubeconfig each, with a token that is renewed before it ends; and
//! the root certificate that the control plane publishes there, for those who have no volume of it.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use aquifer_objects::{Kind, Object, ObjectKey};

use super::components::replace;
use super::shared::Shared;
use super::store::Remote;
use crate::error::{During, LabError, Result};

/// Where a pod sees its folder.
pub(super) const FOLDER: &str = "/run/aquifer/kube";

/// The control plane's account.
pub(super) const ISTIOD: &str = "istiod";
/// The node agents'.
pub(super) const AGENT: &str = "istio-cni";

const NAMESPACE: &str = "istio-system";

/// A token lives for an hour, as a pod's does; renewed at half of it.
const LIFE: Duration = Duration::from_secs(3600);

/// How often the root certificate is looked at.
const ROOT_PERIOD: Duration = Duration::from_millis(500);

/// Where an account's kubeconfig and token are.
pub(super) fn folder(shared: &Shared, account: &str) -> PathBuf {
    shared.paths.kube().join(account)
}

/// Writes both kubeconfigs and keeps their tokens good. Nothing without an API server.
pub(super) async fn start(shared: &Arc<Shared>) -> Result<()> {
    let (Some(remote), Some(server)) = (shared.store().remote(), shared.api_server.get()) else { return Ok(()) };
    for account in [ISTIOD, AGENT] {
        let folder = folder(shared, account);
        fs::create_dir_all(&folder).during(|| format!("making {}", folder.display()))?;
        write_token(shared, remote, account).await?;
        // Each where its process sees it: the control plane in its pod, an agent among the machine's files.
        let seen = if account == ISTIOD { PathBuf::from(FOLDER) } else { folder.clone() };
        server.token_file_kubeconfig(&format!("{account}/config"), &seen.join("token"))?;
    }
    let renewing = Arc::clone(shared);
    shared.tracker.spawn("account tokens", async move {
        loop {
            tokio::time::sleep(LIFE / 2).await;
            let Some(remote) = renewing.store().remote() else { return };
            for account in [ISTIOD, AGENT] {
                if let Err(error) = write_token(&renewing, remote, account).await {
                    tracing::warn!(account, %error, "no token");
                }
            }
        }
    });
    let following = Arc::clone(shared);
    shared.tracker.spawn("root certificate", async move {
        loop {
            if let Err(error) = copy_root(&following).await {
                tracing::debug!(%error, "no root certificate");
            }
            tokio::time::sleep(ROOT_PERIOD).await;
        }
    });
    Ok(())
}

async fn write_token(shared: &Shared, remote: &Remote, account: &str) -> Result<()> {
    let token = remote.token((NAMESPACE, account), None, None, LIFE.as_secs()).await?;
    let file = folder(shared, account).join("token");
    replace(&file, token.as_bytes(), 0o600).during(|| format!("writing {}", file.display()))
}

/// The root certificate as every namespace has it in a ConfigMap, where a pod's volume would show it.
async fn copy_root(shared: &Shared) -> Result<()> {
    let key = ObjectKey::new(Kind::ConfigMap, NAMESPACE, "istio-ca-root-cert");
    let Some(Object::ConfigMap(found)) = shared.store().get(&key).await? else { return Ok(()) };
    let root = found.data.as_ref().and_then(|data| data.get("root-cert.pem"));
    let root = root.ok_or_else(|| LabError::Refused(format!("{key} has no root-cert.pem")))?;
    let file = shared.paths.root_cert();
    if fs::read(&file).ok().as_deref() == Some(root.as_bytes()) {
        return Ok(());
    }
    replace(&file, root.as_bytes(), 0o644).during(|| format!("writing {}", file.display()))
}
