//! Objects from YAML.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use kube::api::{DeleteParams, DynamicObject, ListParams, Patch, PatchParams};
use kube::core::{ApiResource, GroupVersionKind};
use kube::discovery::{ApiCapabilities, Scope, pinned_kind};
use kube::{Api, Client};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{ApiServer, eventually, rand_suffix};

/// Who the tests write as.
const MANAGER: &str = "test";

impl ApiServer {
    /// Applies every document of the YAML, whose fields become ours. A `status` goes where status goes.
    pub(crate) async fn apply(&self, yaml: &str) {
        for document in documents(yaml) {
            self.apply_object(document).await;
        }
    }

    /// Applies one object; returns it as the server has it.
    pub(crate) async fn apply_object(&self, object: Value) -> Value {
        let name = describe(&object);
        self.try_apply(object).await.unwrap_or_else(|error| panic!("applying {name}: {error}"))
    }

    /// The same, where the server may refuse.
    pub(crate) async fn try_apply(&self, mut object: Value) -> kube::Result<Value> {
        let (api, capabilities) = self.api_of(&object).await;
        let name = object["metadata"]["name"].as_str().expect("a name").to_owned();
        let status = object.as_object_mut().and_then(|object| object.remove("status"));
        let params = PatchParams::apply(MANAGER).force();
        let mut made = api.patch(&name, &params, &Patch::Apply(&object)).await?;
        if let Some(status) = status {
            let patch = json!({"status": status});
            let apart = capabilities.subresources.iter().any(|(resource, _)| resource.plural.ends_with("status"));
            made = match apart {
                true => api.patch_status(&name, &PatchParams::default(), &Patch::Merge(&patch)).await?,
                false => api.patch(&name, &PatchParams::default(), &Patch::Merge(&patch)).await?,
            };
        }
        Ok(serde_json::to_value(made).expect("JSON"))
    }

    /// Deletes every object that the YAML names, at once and without its dependents' leave.
    pub(crate) async fn delete(&self, yaml: &str) {
        for document in documents(yaml) {
            let (api, _) = self.api_of(&document).await;
            let params = DeleteParams::background().grace_period(0);
            let deleted = api.delete(document["metadata"]["name"].as_str().expect("a name"), &params).await;
            deleted.unwrap_or_else(|error| panic!("deleting {}: {error}", describe(&document)));
        }
    }

    /// One object, if it is there: `get("v1", "Pod", "shop", "web")`; no namespace is "".
    pub(crate) async fn get(&self, api_version: &str, kind: &str, namespace: &str, name: &str) -> Option<Value> {
        let object = json!({"apiVersion": api_version, "kind": kind, "metadata": {"namespace": namespace}});
        let (api, _) = self.api_of(&object).await;
        let found = api.get_opt(name).await.unwrap_or_else(|error| panic!("getting {kind} {name}: {error}"));
        found.map(|found| serde_json::to_value(found).expect("JSON"))
    }

    /// All objects of a kind in a namespace, or in all ("").
    pub(crate) async fn list(&self, api_version: &str, kind: &str, namespace: &str) -> Vec<Value> {
        let client = self.client().await;
        let (resource, _) = resource(&client, api_version, kind).await;
        let api: Api<DynamicObject> = match namespace {
            "" => Api::all_with(client, &resource),
            namespace => Api::namespaced_with(client, namespace, &resource),
        };
        let list = api.list(&ListParams::default()).await.unwrap_or_else(|error| panic!("listing {kind}: {error}"));
        list.items.into_iter().map(|item| serde_json::to_value(item).expect("JSON")).collect()
    }

    /// A new namespace, whose name begins with this.
    pub(crate) async fn namespace(&self, begin: &str) -> String {
        let name = format!("{begin}-{}", rand_suffix());
        self.apply_object(json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})).await;
        name
    }

    /// Our CRDs, as they lie in `deploy/crds`.
    pub(crate) async fn install_crds(&self) {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy/crds");
        let entries = std::fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
        let mut files: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
        files.retain(|file| file.extension().is_some_and(|extension| extension == "yaml"));
        files.sort();
        self.install(&files).await;
    }

    /// The Gateway API's CRDs, which come as a Go module.
    pub(crate) async fn install_gateway_api(&self) {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../cluster/gateway-api");
        let run = Command::new(&script).output().unwrap_or_else(|error| panic!("{}: {error}", script.display()));
        assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
        let files: Vec<PathBuf> = String::from_utf8_lossy(&run.stdout).lines().map(PathBuf::from).collect();
        self.install(&files).await;
    }

    async fn install(&self, files: &[PathBuf]) {
        let mut crds = Vec::new();
        for file in files {
            let yaml = std::fs::read_to_string(file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
            for document in documents(&yaml) {
                if document["kind"] == "CustomResourceDefinition" {
                    crds.push(document["metadata"]["name"].as_str().expect("a name").to_owned());
                }
                self.apply_object(document).await;
            }
        }
        for name in crds {
            self.wait_crd(&name).await;
        }
    }

    /// Returns when the server serves the CRD.
    pub(crate) async fn wait_crd(&self, name: &str) {
        eventually(&format!("CRD {name} is served"), Duration::from_secs(10), async || {
            let crd = self.get("apiextensions.k8s.io/v1", "CustomResourceDefinition", "", name).await;
            let conditions = crd.map(|crd| crd["status"]["conditions"].clone()).unwrap_or_default();
            let served = conditions
                .as_array()
                .into_iter()
                .flatten()
                .any(|condition| condition["type"] == "Established" && condition["status"] == "True");
            if served { Ok(()) } else { Err(conditions.to_string()) }
        })
        .await;
    }

    async fn api_of(&self, object: &Value) -> (Api<DynamicObject>, ApiCapabilities) {
        let client = self.client().await;
        let text = |field: &Value| field.as_str().unwrap_or_default().to_owned();
        let (resource, capabilities) = resource(&client, &text(&object["apiVersion"]), &text(&object["kind"])).await;
        let namespace = text(&object["metadata"]["namespace"]);
        let api = match (&capabilities.scope, namespace.as_str()) {
            (Scope::Cluster, _) => Api::all_with(client, &resource),
            (Scope::Namespaced, "") => Api::namespaced_with(client, "default", &resource),
            (Scope::Namespaced, namespace) => Api::namespaced_with(client, namespace, &resource),
        };
        (api, capabilities)
    }
}

/// A kind as the server has it: one that has just been installed takes a moment.
async fn resource(client: &Client, api_version: &str, kind: &str) -> (ApiResource, ApiCapabilities) {
    let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
    let wanted = GroupVersionKind::gvk(group, version, kind);
    let begin = std::time::Instant::now();
    loop {
        match pinned_kind(client, &wanted).await {
            Ok(found) => return found,
            Err(error) if begin.elapsed() > Duration::from_secs(30) => panic!("{kind} in {api_version}: {error}"),
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
}

fn documents(yaml: &str) -> Vec<Value> {
    let document = |document| Value::deserialize(document).unwrap_or_else(|error| panic!("{error} in:\n{yaml}"));
    serde_norway::Deserializer::from_str(yaml).map(document).filter(|document| !document.is_null()).collect()
}

fn describe(object: &Value) -> String {
    let metadata = &object["metadata"];
    format!("{} {}/{}", object["kind"], metadata["namespace"], metadata["name"])
}

/// A pod that a node's kubelet would call ready, for [`ApiServer::apply`].
pub(crate) fn ready_pod(namespace: &str, name: &str, account: &str, node: &str, ip: &str, labels: &Value) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "namespace": namespace, "labels": labels},
        "spec": {
            "serviceAccountName": account, "nodeName": node,
            "containers": [{"name": "app", "image": "app"}],
        },
        "status": {
            "phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}], "hostIP": "10.0.0.1",
            "conditions": [{"type": "Ready", "status": "True"}],
        },
    })
}
