//! `aquifer crds apply`: ours are made and upgraded, Istio's own stay as they are.

use std::path::Path;

use serde_json::{Value, json};

use crate::commands::{Ran, aquifer};
use crate::harness::ApiServer;

const FOREIGN: &str = "virtualservices.networking.istio.io";
const OLDER: &str = "peerauthentications.security.istio.io";
const ABSENT: &str = "authorizationpolicies.security.istio.io";

#[tokio::test(flavor = "multi_thread")]
async fn ours_are_made_and_upgraded_and_istios_are_left_alone() {
    let server = ApiServer::start().await;
    // Istio's own, of the same name.
    let mut foreign = ours("networking.istio.io_virtualservices.yaml");
    foreign["metadata"]["labels"] = json!({"app": "istio-pilot", "release": "istio"});
    columns(&mut foreign, "Istios");
    let foreign = server.apply_object(foreign).await;
    // One of an older release, as kubectl applied it, with an object.
    let mut older = ours("security.istio.io_peerauthentications.yaml");
    columns(&mut older, "Old");
    for version in older["spec"]["versions"].as_array_mut().expect("versions") {
        let spec = &mut version["schema"]["openAPIV3Schema"]["properties"]["spec"];
        // The rules are about the field.
        spec.as_object_mut().expect("a schema").remove("x-kubernetes-validations").expect("rules");
        let fields = spec["properties"].as_object_mut().expect("fields");
        fields.remove("portLevelMtls").expect("a field that came later");
    }
    server.apply_object(older).await;
    server.wait_crd(OLDER).await;
    server
        .apply(
            "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\n\
             metadata: {name: strict, namespace: default}\nspec: {mtls: {mode: STRICT}}\n",
        )
        .await;

    let first = apply(&server).await;
    assert_eq!(first.code, 0, "{first:?}");
    assert_eq!(first.line(FOREIGN), "Istio's own, left as it is");
    assert_eq!(first.line(OLDER), "upgraded");
    assert_eq!(first.line(ABSENT), "created");
    assert_eq!(first.stdout.lines().count(), 15, "a line each: {}", first.stdout);

    let left = definition(&server, FOREIGN).await;
    assert_eq!(left["spec"], foreign["spec"]);
    assert_eq!(left["metadata"]["labels"], foreign["metadata"]["labels"]);
    assert!(!managers(&left).contains(&"aquifer"), "nobody of us wrote: {left}");
    server.wait_crd(ABSENT).await;
    let upgraded = definition(&server, OLDER).await;
    assert!(managers(&upgraded).contains(&"aquifer"), "{upgraded}");
    let text = upgraded["spec"].to_string();
    assert!(text.contains("portLevelMtls") && !text.contains("Old"), "{text}");
    let object = server.get("security.istio.io/v1", "PeerAuthentication", "default", "strict").await;
    assert_eq!(object.expect("the object stays")["spec"]["mtls"]["mode"], "STRICT");

    for name in [FOREIGN, OLDER, ABSENT] {
        server.wait_crd(name).await;
    }
    let before = written(&server).await;
    let second = apply(&server).await;
    assert_eq!(second.line(FOREIGN), "Istio's own, left as it is");
    assert!([OLDER, ABSENT].iter().all(|name| second.line(name) == "up to date"), "{}", second.stdout);
    assert_eq!(before, written(&server).await, "nothing is written twice");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_may_not_is_told_what_is_missing() {
    let server = ApiServer::shared().await;
    let namespace = server.namespace("crds").await;
    server
        .apply(&format!("apiVersion: v1\nkind: ServiceAccount\nmetadata: {{name: x, namespace: {namespace}}}\n"))
        .await;
    let ran = aquifer(&["crds", "apply"], &server.kubeconfig_of(&namespace, "x").await).await;
    assert_eq!(ran.code, 1, "{ran:?}");
    let missing = r#"resources: ["customresourcedefinitions"], verbs: ["get"] is missing"#;
    assert!(ran.stdout.is_empty() && ran.stderr.contains(missing), "{ran:?}");
}

async fn apply(server: &ApiServer) -> Ran {
    aquifer(&["crds", "apply"], &server.kubeconfig()).await
}

async fn definition(server: &ApiServer, name: &str) -> Value {
    let found = server.get("apiextensions.k8s.io/v1", "CustomResourceDefinition", "", name).await;
    found.unwrap_or_else(|| panic!("{name} is missing"))
}

/// All of them but what the server itself says of them, which it does when it likes.
async fn written(server: &ApiServer) -> Vec<Value> {
    let mut written = Vec::new();
    for name in [FOREIGN, OLDER, ABSENT] {
        let definition = definition(server, name).await;
        let metadata = &definition["metadata"];
        let ours = |fields: &&Value| fields["manager"] == "aquifer";
        let ours: Vec<&Value> = metadata["managedFields"].as_array().into_iter().flatten().filter(ours).collect();
        written.push(json!([metadata["generation"], metadata["labels"], metadata["annotations"], ours]));
    }
    written
}

fn managers(object: &Value) -> Vec<&str> {
    let fields = object["metadata"]["managedFields"].as_array().into_iter().flatten();
    fields.filter_map(|fields| fields["manager"].as_str()).collect()
}

/// The definition of this release.
fn ours(file: &str) -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy/crds").join(file);
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_norway::from_str(&text).expect("YAML")
}

/// Makes a definition another: one column of this name.
fn columns(definition: &mut Value, name: &str) {
    for version in definition["spec"]["versions"].as_array_mut().expect("versions") {
        version["additionalPrinterColumns"] = json!([{"name": name, "type": "string", "jsonPath": ".spec.x"}]);
    }
}
