//! What each component may do: enough, and no more.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use aquifer_objects::{Kind, ObjectKey, Selection, Source, WriteError};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::harness::{ApiServer, rand_suffix, ready_pod};
use crate::samples;
use crate::source::{Seen, source_of};

const SOON: Duration = Duration::from_secs(5);

/// The documents of a component's file.
fn manifests(component: &str) -> Vec<Value> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("../../deploy/rbac/{component}.yaml"));
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_norway::Deserializer::from_str(&text).map(|document| Value::deserialize(document).expect("YAML")).collect()
}

/// All rights of a component: API group, resource, verb, and whether by certain names only.
fn rights(component: &str) -> Vec<(String, String, String, bool)> {
    let mut rights = Vec::new();
    let texts = |value: &Value| -> Vec<String> {
        value.as_array().into_iter().flatten().map(|text| text.as_str().expect("text").to_owned()).collect()
    };
    for manifest in manifests(component) {
        for rule in manifest["rules"].as_array().into_iter().flatten() {
            for group in texts(&rule["apiGroups"]) {
                for resource in texts(&rule["resources"]) {
                    for verb in texts(&rule["verbs"]) {
                        rights.push((group.clone(), resource.clone(), verb, rule.get("resourceNames").is_some()));
                    }
                }
            }
        }
    }
    rights
}

/// Installs a component's rights; its own view of the API server.
async fn component(server: &ApiServer, name: &str, account: &str) -> Source {
    let system = json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": "istio-system" } });
    server.apply_object(system).await;
    for manifest in manifests(name) {
        server.apply_object(manifest).await;
    }
    source_of(&server.kubeconfig_of("istio-system", account).await).await
}

/// Asks whether the account may; `resource` may name a subresource.
pub(crate) async fn may(
    server: &ApiServer,
    account: &str,
    verb: &str,
    group: &str,
    resource: &str,
    namespace: &str,
) -> bool {
    let (resource, subresource) = resource.split_once('/').unwrap_or((resource, ""));
    let review = json!({
        "apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview", "metadata": {},
        "spec": {
            "user": format!("system:serviceaccount:istio-system:{account}"),
            "groups": ["system:serviceaccounts", "system:serviceaccounts:istio-system", "system:authenticated"],
            "resourceAttributes": {
                "verb": verb, "group": group, "resource": resource, "subresource": subresource, "namespace": namespace,
            },
        },
    });
    let ask = http::Request::post("/apis/authorization.k8s.io/v1/subjectaccessreviews")
        .header("content-type", "application/json")
        .body(review.to_string().into_bytes())
        .expect("a request");
    let answer: Value = server.client().await.request(ask).await.expect("a review");
    answer["status"]["allowed"] == true
}

async fn denied(server: &ApiServer, account: &str, table: &[(&str, &str, &str, &str)]) {
    for (verb, group, resource, namespace) in table {
        assert!(
            !may(server, account, verb, group, resource, namespace).await,
            "{account} may {verb} {resource}.{group} in {namespace:?}"
        );
    }
}

/// What nobody of ours needs, and what would make one of us everybody.
const NEVER: &[(&str, &str, &str, &str)] = &[
    ("get", "", "secrets", "default"),
    ("list", "", "secrets", "istio-system"),
    ("watch", "", "secrets", ""),
    ("create", "", "pods", "default"),
    ("create", "", "pods/exec", "default"),
    ("delete", "", "pods", "default"),
    ("patch", "", "pods", "default"),
    ("update", "", "pods", "default"),
    ("get", "", "nodes/proxy", ""),
    ("patch", "", "nodes", ""),
    ("patch", "", "namespaces", ""),
    ("create", "", "serviceaccounts/token", "istio-system"),
    ("impersonate", "", "serviceaccounts", "istio-system"),
    ("create", "rbac.authorization.k8s.io", "clusterrolebindings", ""),
    ("patch", "rbac.authorization.k8s.io", "clusterroles", ""),
    ("create", "admissionregistration.k8s.io", "validatingwebhookconfigurations", ""),
    ("patch", "apiextensions.k8s.io", "customresourcedefinitions", ""),
    ("patch", "security.istio.io", "authorizationpolicies", "default"),
    ("delete", "networking.istio.io", "serviceentries", "default"),
    ("update", "coordination.k8s.io", "leases", "kube-system"),
];

#[test]
fn no_right_is_a_pattern_or_a_way_to_more() {
    for component in ["istiod-lite", "istio-cni", "ztunnel"] {
        for (group, resource, verb, _) in rights(component) {
            assert!(![&group, &resource, &verb].iter().any(|part| part.contains('*')), "{component}: a pattern");
            assert!(
                !["bind", "escalate", "impersonate", "deletecollection"].contains(&verb.as_str()),
                "{component}: {verb}"
            );
            assert!(!resource.ends_with("/exec") && !resource.ends_with("/token"), "{component}: {resource}");
        }
    }
}

#[test]
fn what_the_control_plane_lists_is_what_it_reads() {
    let granted: BTreeSet<(String, String)> = rights("istiod-lite")
        .into_iter()
        .filter(|(_, _, verb, _)| verb == "watch")
        .map(|(group, resource, ..)| (group, resource))
        .collect();
    let wanted: BTreeSet<(String, String)> = reads()
        .into_iter()
        .map(|kind| (kind.group().to_owned(), kind.plural().to_owned()))
        .chain([("apiextensions.k8s.io".to_owned(), "customresourcedefinitions".to_owned())])
        .collect();
    assert_eq!(granted, wanted);
    let statuses: BTreeSet<(String, String)> = rights("istiod-lite")
        .into_iter()
        .filter(|(_, resource, ..)| resource.ends_with("/status"))
        .map(|(group, resource, verb, named)| {
            assert_eq!((verb.as_str(), named), ("patch", false));
            (group, resource)
        })
        .collect();
    let wanted: BTreeSet<(String, String)> = reads()
        .into_iter()
        .filter(|kind| samples::status(*kind).is_some())
        .map(|kind| (kind.group().to_owned(), format!("{}/status", kind.plural())))
        .collect();
    assert_eq!(statuses, wanted);
}

/// What istiod-lite watches: to translate, and what it makes for waypoints.
fn reads() -> Vec<Kind> {
    let made = [Kind::ServiceAccount, Kind::Deployment, Kind::HorizontalPodAutoscaler, Kind::PodDisruptionBudget];
    aquifer_istiod_lite::index::KINDS.iter().copied().chain(made).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_control_plane() {
    let server = ApiServer::shared().await;
    let source = component(server, "istiod-lite", "istiod").await;
    let namespace = server.namespace("rbac").await;

    // Enough: it reads all it reads,
    let mut seen = Seen::start(&source, &reads());
    seen.until("istiod-lite's own view is complete", SOON, |seen| seen.synced).await;
    // writes every status,
    let admin = source_of(&server.kubeconfig()).await.writer("aquifer-test");
    let name = format!("probe-{}", rand_suffix());
    let writer = source.writer("istiod-lite");
    for kind in reads() {
        let Some(status) = samples::status(kind) else { continue };
        let key = admin.apply(samples::of(kind, &namespace, &name)).await.unwrap_or_else(|error| panic!("{error}"));
        writer.apply_status(&key, status).await.unwrap_or_else(|error| panic!("{error}"));
        admin.delete(&key, None).await.expect("a deletion");
    }
    // makes waypoints and takes them away,
    let made = [
        Kind::ServiceAccount,
        Kind::Deployment,
        Kind::Service,
        Kind::HorizontalPodAutoscaler,
        Kind::PodDisruptionBudget,
    ];
    for kind in made {
        let key = writer.apply(samples::of(kind, &namespace, &name)).await.unwrap_or_else(|error| panic!("{error}"));
        let patched = writer.patch(&key, json!({ "metadata": { "labels": { "turn": "2" } } })).await;
        patched.unwrap_or_else(|error| panic!("{error}"));
        writer.delete(&key, None).await.unwrap_or_else(|error| panic!("{error}"));
    }
    let gateway = admin.apply(samples::of(Kind::Gateway, &namespace, &name)).await.expect("a Gateway");
    writer
        .patch_annotations(&gateway, None, &[("gateway.istio.io/controller-version", Some("5"))])
        .await
        .expect("a claim");
    let class = samples::of(Kind::GatewayClass, "", &name);
    let class = writer.create(class).await.unwrap_or_else(|error| panic!("{error}"));
    admin.delete(&class, None).await.expect("a deletion");
    // and gives every namespace the roots.
    let mut roots = samples::of(Kind::ConfigMap, &namespace, "istio-ca-root-cert");
    for turn in ["1", "2"] {
        roots["data"] = json!({ "root-cert.pem": turn });
        writer.apply(roots.clone()).await.unwrap_or_else(|error| panic!("{error}"));
    }

    // No more.
    denied(server, "istiod", NEVER).await;
    let more = [
        ("patch", "", "pods/status", "default"),
        ("delete", "", "configmaps", "default"),
        ("delete", "gateway.networking.k8s.io", "gateways", "default"),
        ("delete", "gateway.networking.k8s.io", "gatewayclasses", ""),
    ];
    denied(server, "istiod", &more).await;
    let other = writer.patch(&ObjectKey::new(Kind::ConfigMap, &namespace, "other"), json!({})).await;
    let Err(error @ WriteError::Forbidden { .. }) = other else { panic!("{other:?}") };
    let told = error.to_string();
    assert!(told.contains("resources: [\"configmaps\"], verbs: [\"patch\"] is missing in namespace"), "{told}");
    // Its own namespace's secrets by name only.
    assert!(!may(server, "istiod", "get", "", "secrets", "istio-system").await);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_node_agent() {
    let server = ApiServer::shared().await;
    let source = component(server, "istio-cni", "istio-cni").await;
    let namespace = server.namespace("rbac").await;
    server
        .apply(&format!("apiVersion: v1\nkind: ServiceAccount\nmetadata: {{name: web, namespace: {namespace}}}\n"))
        .await;
    let node = format!("node-{}", rand_suffix());
    for (name, node) in [("here", node.as_str()), ("there", "elsewhere")] {
        server.apply_object(ready_pod(&namespace, name, "web", node, "10.244.8.8", &json!({}))).await;
    }
    let watched = vec![Kind::Namespace.into(), Selection::from(Kind::Pod).on_node(&node)];
    let mut seen = Seen::of(source.watch_selected(watched).expect("a watch"));
    seen.until("the agent's own view is complete", SOON, |seen| seen.synced).await;
    let key = ObjectKey::new(Kind::Pod, &namespace, "here");
    let pods: Vec<&ObjectKey> = seen.objects.keys().filter(|key| key.kind == Kind::Pod).collect();
    assert_eq!(pods, [&key]);
    let uid = seen.objects[&key].meta().uid.clone();
    let writer = source.writer("istio-cni");
    let marks = [("ambient.istio.io/redirection", Some("enabled"))];
    writer.patch_annotations(&key, uid.as_deref(), &marks).await.unwrap_or_else(|error| panic!("{error}"));
    seen.until("its annotation", SOON, |seen| seen.objects[&key].annotation("ambient.istio.io/redirection").is_some())
        .await;
    let another = writer.patch_annotations(&key, Some("00000000-0000-0000-0000-000000000000"), &marks).await;
    assert!(matches!(another, Err(WriteError::Conflict { .. } | WriteError::Invalid(_))), "{another:?}");

    denied(server, "istio-cni", NEVER).await;
    let more = [
        ("get", "", "pods", "default"),
        ("list", "", "nodes", ""),
        ("list", "", "services", ""),
        ("patch", "", "services/status", "default"),
        ("create", "authentication.k8s.io", "tokenreviews", ""),
        ("list", "security.istio.io", "authorizationpolicies", ""),
    ];
    denied(server, "istio-cni", &more).await;
    let refused = writer.patch(&key, json!({ "metadata": { "labels": { "a": "b" } } })).await;
    let Err(WriteError::Forbidden { message, .. }) = refused else { panic!("{refused:?}") };
    assert!(message.contains("resources: [\"pods\"], verbs: [\"patch\"]"), "{message}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_proxy() {
    let server = ApiServer::shared().await;
    assert!(rights("ztunnel").is_empty(), "it asks the API server nothing");
    let source = component(server, "ztunnel", "ztunnel").await;
    let refused = source.get(&ObjectKey::new(Kind::Pod, "default", "web")).await.expect_err("no right").to_string();
    assert!(refused.contains("forbidden"), "{refused}");
    denied(server, "ztunnel", NEVER).await;
    denied(server, "ztunnel", &[("list", "", "pods", "default"), ("list", "", "namespaces", "")]).await;
}
