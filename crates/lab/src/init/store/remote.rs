//! The API server as kubelets, controllers and kubectl write to it.

use std::collections::BTreeMap;

use aquifer_objects::{Kind, ObjectKey, Source};
use aquifer_runtime::Tracker;
use http::{Method, Request};
use kube::Client;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::USER;
use crate::error::{LabError, Result};

const JSON: &str = "application/json";
const MERGE: &str = "application/merge-patch+json";
const APPLY: &str = "application/apply-patch+yaml";

/// Statuses written at the same time.
const AT_ONCE: usize = 16;

/// The shortest life of a token that an API server gives.
const SHORTEST_TOKEN: u64 = 600;

/// A client with all rights.
#[derive(Debug)]
pub(in crate::init) struct Remote {
    source: Source,
    rest: Rest,
    statuses: mpsc::UnboundedSender<(ObjectKey, Value)>,
}

impl Remote {
    pub(super) fn new(source: Source, client: Client, tracker: &Tracker) -> Self {
        let rest = Rest(client);
        let (statuses, received) = mpsc::unbounded_channel();
        tracker.spawn("statuses", write_statuses(rest.clone(), received));
        Self { source, rest, statuses }
    }

    pub(super) fn source(&self) -> &Source {
        &self.source
    }

    /// Applies an object as a field manager, its status where status goes. Returns it as the server has it.
    pub(in crate::init) async fn apply(&self, mut object: Value, manager: &str) -> Result<Value> {
        let api_version = object["apiVersion"].as_str().unwrap_or_default().to_owned();
        let manifest_kind = object["kind"].as_str().unwrap_or_default().to_owned();
        let kind = Kind::from_manifest(&api_version, &manifest_kind);
        let status = object.as_object_mut().and_then(|object| object.remove("status"));
        if let Some(metadata) = object["metadata"].as_object_mut() {
            // These are the server's.
            metadata.retain(|field, _| !matches!(field.as_str(), "uid" | "creationTimestamp" | "resourceVersion"));
        }
        let collection = match kind {
            Some(kind) if kind.namespaced() => {
                let namespace = object["metadata"]["namespace"].as_str().unwrap_or("default").to_owned();
                object["metadata"]["namespace"] = json!(namespace);
                collection(&api_version, Some(&namespace), kind.plural())
            }
            Some(kind) => collection(&api_version, None, kind.plural()),
            None => self.rest.find(&api_version, &manifest_kind, &object["metadata"]["namespace"]).await?,
        };
        let path = format!("{collection}/{}", object["metadata"]["name"].as_str().unwrap_or_default());
        let query = format!("?fieldManager={manager}&force=true");
        let applied = self.rest.send(Method::PATCH, &format!("{path}{query}"), APPLY, &object).await?;
        match status {
            None => Ok(applied),
            Some(status) => {
                self.rest.send(Method::PATCH, &format!("{path}/status"), MERGE, &json!({"status": status})).await
            }
        }
    }

    /// Applies what a person wrote.
    pub(in crate::init) async fn apply_users(&self, object: Value) -> Result<Value> {
        self.apply(object, USER).await
    }

    pub(super) async fn create_pod(&self, pod: Value) -> Result<Value> {
        let namespace = pod["metadata"]["namespace"].as_str().unwrap_or("default");
        self.rest.send(Method::POST, &collection("v1", Some(namespace), "pods"), JSON, &pod).await
    }

    pub(super) async fn bind_pod(&self, key: &ObjectKey, node: &str) -> Result<()> {
        let binding = json!({
            "apiVersion": "v1", "kind": "Binding", "metadata": {"name": *key.name, "namespace": *key.namespace},
            "target": {"apiVersion": "v1", "kind": "Node", "name": node},
        });
        self.rest.send(Method::POST, &format!("{}/binding", path(key)), JSON, &binding).await.map(drop)
    }

    pub(in crate::init) async fn patch(&self, key: &ObjectKey, patch: &Value) -> Result<()> {
        self.rest.send(Method::PATCH, &path(key), MERGE, patch).await.map(drop)
    }

    pub(super) async fn patch_status(&self, key: &ObjectKey, status: &Value) -> Result<()> {
        self.rest.patch_status(key, status).await
    }

    /// Will write the status.
    pub(super) fn publish(&self, key: ObjectKey, status: Value) {
        // Its reader ends with the process.
        let _ = self.statuses.send((key, status));
    }

    /// Deletes an object, a pod with a grace period, and only the one that is meant.
    pub(in crate::init) async fn delete(&self, key: &ObjectKey, uid: Option<&str>, grace: Option<u64>) -> Result<()> {
        let mut options = json!({"apiVersion": "v1", "kind": "DeleteOptions", "propagationPolicy": "Background"});
        if let Some(uid) = uid {
            options["preconditions"] = json!({"uid": uid});
        }
        if let Some(grace) = grace {
            options["gracePeriodSeconds"] = json!(grace);
        }
        self.rest.send(Method::DELETE, &path(key), JSON, &options).await.map(drop)
    }

    /// A token of a service account, for an audience or the API server itself, bound to a pod (name and uid) or to
    /// nothing.
    pub(in crate::init) async fn token(
        &self,
        (namespace, account): (&str, &str),
        audience: Option<&str>,
        pod: Option<(&str, &str)>,
        seconds: u64,
    ) -> Result<String> {
        let bound = pod.map(|(name, uid)| json!({"apiVersion": "v1", "kind": "Pod", "name": name, "uid": uid}));
        let audiences: Vec<&str> = audience.into_iter().collect();
        let request = json!({
            "apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest",
            "spec": {"audiences": audiences, "boundObjectRef": bound, "expirationSeconds": seconds.max(SHORTEST_TOKEN)},
        });
        let path = format!("{}/{account}/token", collection("v1", Some(namespace), "serviceaccounts"));
        let answer = self.rest.send(Method::POST, &path, JSON, &request).await?;
        let token = answer["status"]["token"].as_str();
        token.map(str::to_owned).ok_or_else(|| LabError::Refused("the API server answered without a token".into()))
    }

    /// What a namespace that is deleted has in it goes, but for its pods, which go gracefully.
    pub(in crate::init) async fn empty_namespace(&self, namespace: &str) {
        for kind in Kind::ALL.iter().filter(|kind| kind.namespaced() && **kind != Kind::Pod) {
            let path = collection(kind.api_version(), Some(namespace), kind.plural());
            let deleted = self.rest.send(Method::DELETE, &path, JSON, &json!({})).await;
            if let Err(error) = deleted {
                // Kinds that the server does not have, or that cannot be deleted together.
                tracing::debug!(%kind, namespace, %error, "emptying a namespace");
            }
        }
    }

    /// Lets a namespace that is deleted go.
    pub(in crate::init) async fn finalize_namespace(&self, name: &str) -> Result<()> {
        let object = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}, "spec": {}});
        self.rest.send(Method::PUT, &format!("/api/v1/namespaces/{name}/finalize"), JSON, &object).await.map(drop)
    }

    /// Whether the server calls itself ready.
    pub(super) async fn is_ready(&self) -> bool {
        let ask = Request::get("/readyz").body(Vec::new());
        let Ok(ask) = ask else { return false };
        self.rest.0.request_text(ask).await.is_ok_and(|text| text == "ok")
    }
}

/// A client that speaks of objects as JSON.
#[derive(Clone)]
struct Rest(Client);

impl std::fmt::Debug for Rest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Rest").finish_non_exhaustive()
    }
}

impl Rest {
    async fn send(&self, method: Method, uri: &str, content: &str, body: &Value) -> Result<Value> {
        let request = Request::builder()
            .method(method)
            .uri(uri)
            .header(http::header::CONTENT_TYPE, content)
            .body(body.to_string().into_bytes())
            .map_err(|error| LabError::Manifest(format!("{uri}: {error}")))?;
        self.0.request(request).await.map_err(|error| match error {
            kube::Error::Api(status) => LabError::Manifest(status.message.clone()),
            error => LabError::Refused(format!("the API server: {error}")),
        })
    }

    async fn patch_status(&self, key: &ObjectKey, status: &Value) -> Result<()> {
        let uri = format!("{}/status", path(key));
        self.send(Method::PATCH, &uri, MERGE, &json!({"status": status})).await.map(drop)
    }

    /// The collection of a kind that we do not know.
    async fn find(&self, api_version: &str, kind: &str, namespace: &Value) -> Result<String> {
        let root = if api_version.contains('/') { "apis" } else { "api" };
        let ask = Request::get(format!("/{root}/{api_version}")).body(Vec::new());
        let ask = ask.map_err(|error| LabError::Manifest(format!("{api_version}: {error}")))?;
        let unknown = || LabError::Manifest(format!("the API server has no kind {kind} in {api_version}"));
        let found: Value = self.0.request(ask).await.map_err(|_| unknown())?;
        let resources = found["resources"].as_array().into_iter().flatten();
        let plain = |resource: &&Value| {
            resource["kind"] == kind && resource["name"].as_str().is_some_and(|name| !name.contains('/'))
        };
        let resource = resources.into_iter().find(plain).ok_or_else(unknown)?;
        let namespace = (resource["namespaced"] == true).then(|| namespace.as_str().unwrap_or("default"));
        Ok(collection(api_version, namespace, resource["name"].as_str().unwrap_or_default()))
    }
}

fn path(key: &ObjectKey) -> String {
    let namespace = key.kind.namespaced().then_some(&*key.namespace);
    format!("{}/{}", collection(key.kind.api_version(), namespace, key.kind.plural()), key.name)
}

fn collection(api_version: &str, namespace: Option<&str>, plural: &str) -> String {
    let root = if api_version.contains('/') { "apis" } else { "api" };
    match namespace {
        Some(namespace) => format!("/{root}/{api_version}/namespaces/{namespace}/{plural}"),
        None => format!("/{root}/{api_version}/{plural}"),
    }
}

/// Writes statuses in their order, the last of those that wait for the same object.
async fn write_statuses(rest: Rest, mut statuses: mpsc::UnboundedReceiver<(ObjectKey, Value)>) {
    while let Some(first) = statuses.recv().await {
        let mut waiting = BTreeMap::from([first]);
        while let Ok((key, status)) = statuses.try_recv() {
            waiting.insert(key, status);
        }
        let mut writes = JoinSet::new();
        for (key, status) in waiting {
            if writes.len() >= AT_ONCE {
                writes.join_next().await;
            }
            let rest = rest.clone();
            writes.spawn(async move {
                if let Err(error) = rest.patch_status(&key, &status).await {
                    // Somebody removed the object under us: its deletion is on the way.
                    tracing::debug!(object = %key, %error, "writing a status");
                }
            });
        }
        while writes.join_next().await.is_some() {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_as_the_api_has_them() {
        let pod = ObjectKey::new(Kind::Pod, "shop", "web");
        assert_eq!(path(&pod), "/api/v1/namespaces/shop/pods/web");
        assert_eq!(path(&ObjectKey::new(Kind::Node, "", "node1")), "/api/v1/nodes/node1");
        assert_eq!(
            path(&ObjectKey::new(Kind::Deployment, "shop", "web")),
            "/apis/apps/v1/namespaces/shop/deployments/web"
        );
    }
}
