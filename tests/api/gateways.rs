//! Waypoints, status and leadership: istiod-lite as a process against a real API server. No controller manager runs
//! here, so nothing is deployed, and nothing is collected but what istiod-lite deletes itself.

use std::time::Duration;

use serde_json::{Value, json};

use crate::harness::{ApiServer, Process, binary, eventually, free_ports, rand_suffix};

const IMAGE: &str = "registry.example.com/aquifer/waypoint:1";
const MANAGED: &str = "gateway.istio.io/managed";

/// A replica of the control plane.
struct Replica {
    process: Process,
    http: u16,
}

impl Replica {
    fn start(server: &ApiServer, name: &str, variables: &[(&str, &str)]) -> Self {
        let [grpc, secure, monitoring, http] = free_ports();
        let mut all = vec![
            ("KUBECONFIG".to_owned(), server.kubeconfig().display().to_string()),
            ("POD_NAME".to_owned(), name.to_owned()),
            ("GRPC_ADDR".to_owned(), format!("127.0.0.1:{grpc}")),
            ("SECURE_GRPC_ADDR".to_owned(), format!("127.0.0.1:{secure}")),
            ("MONITORING_ADDR".to_owned(), format!("127.0.0.1:{monitoring}")),
            ("HTTP_ADDR".to_owned(), format!("127.0.0.1:{http}")),
            ("RUST_LOG".to_owned(), "info,aquifer_objects=debug".to_owned()),
        ];
        all.extend(variables.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())));
        let log = server.folder().join(format!("{name}-{}.log", rand_suffix()));
        Self { process: Process::start(&binary("istiod-lite"), &[], &all, &log), http }
    }

    async fn wait_ready(&self) {
        eventually("istiod-lite is ready", Duration::from_secs(10), async || {
            let address = ("127.0.0.1", self.http);
            let mut stream = tokio::net::TcpStream::connect(address).await.map_err(|error| error.to_string())?;
            use tokio::io::{AsyncReadExt, AsyncWriteExt};
            let ask = b"GET /ready HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
            stream.write_all(ask).await.map_err(|error| error.to_string())?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await.map_err(|error| error.to_string())?;
            if answer.starts_with("HTTP/1.1 200") { Ok(()) } else { Err(format!("{answer}\n{}", self.process.said())) }
        })
        .await;
    }

    /// How often it says that it wrote something of the waypoint `of`, once it says that it wrote all of `last`.
    async fn applied_until(&self, namespace: &str, last: &str, of: &str) -> usize {
        let applied = |kind: &str, name: &str| format!("applied\tkey={kind}/{namespace}/{name}\n");
        // Lines are written by a thread of their own.
        eventually(&format!("the line about {last}'s Service"), Duration::from_secs(5), async || {
            let said = self.process.said();
            if said.contains(&applied("Service", last)) { Ok(()) } else { Err(said) }
        })
        .await;
        let said = self.process.said();
        said.lines().filter(|line| line.contains("applied\tkey=") && line.ends_with(&format!("/{of}"))).count()
    }
}

/// A pair of servers with the root namespace, and one replica.
async fn cluster(variables: &[(&str, &str)]) -> (ApiServer, Replica) {
    let server = ApiServer::start().await;
    server.install_crds().await;
    server.install_gateway_api().await;
    server.apply("apiVersion: v1\nkind: Namespace\nmetadata: {name: istio-system}\n").await;
    let replica = Replica::start(&server, "istiod-1", variables);
    replica.wait_ready().await;
    (server, replica)
}

fn gateway(namespace: &str, name: &str, extra: &Value) -> Value {
    let mut gateway = json!({
        "apiVersion": "gateway.networking.k8s.io/v1", "kind": "Gateway",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "gatewayClassName": "istio-waypoint",
            "listeners": [{"name": "mesh", "port": 15008, "protocol": "HBONE"}],
        },
    });
    for part in ["metadata", "spec"] {
        if let (Some(into), Some(from)) = (gateway[part].as_object_mut(), extra[part].as_object()) {
            into.extend(from.clone());
        }
    }
    gateway
}

async fn condition(server: &ApiServer, namespace: &str, name: &str, type_: &str) -> Option<Value> {
    let gateway = server.get("gateway.networking.k8s.io/v1", "Gateway", namespace, name).await?;
    let conditions = gateway["status"]["conditions"].as_array().cloned().unwrap_or_default();
    conditions.into_iter().find(|condition| condition["type"] == type_)
}

/// Until Programmed has this reason.
async fn programmed(server: &ApiServer, namespace: &str, name: &str, reason: &str) -> Value {
    eventually(&format!("Gateway {name} is {reason}"), Duration::from_secs(5), async || {
        match condition(server, namespace, name, "Programmed").await {
            Some(condition) if condition["reason"] == reason => Ok(condition),
            other => Err(format!("{other:?}")),
        }
    })
    .await
}

async fn there(server: &ApiServer, api_version: &str, kind: &str, namespace: &str, name: &str) -> Value {
    eventually(&format!("{kind} {name}"), Duration::from_secs(5), async || {
        server.get(api_version, kind, namespace, name).await.ok_or_else(|| "not there".to_owned())
    })
    .await
}

/// What the Deployment controller would say.
async fn report_ready(server: &ApiServer, namespace: &str, name: &str) {
    let patch = json!({"status": {"replicas": 1, "readyReplicas": 1, "availableReplicas": 1}});
    let path = format!("/apis/apps/v1/namespaces/{namespace}/deployments/{name}/status");
    let ask = http::Request::patch(path).header("content-type", "application/merge-patch+json");
    let body = serde_json::to_vec(&patch).expect("JSON");
    server.client().await.request::<Value>(ask.body(body).expect("a request")).await.expect("a status");
}

fn managers(object: &Value) -> Vec<String> {
    let fields = object["metadata"]["managedFields"].as_array().cloned().unwrap_or_default();
    fields.iter().map(|one| one["manager"].as_str().unwrap_or_default().to_owned()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_becomes_a_waypoint() {
    let (server, replica) = cluster(&[("WAYPOINT_IMAGE", IMAGE)]).await;
    let shop = server.namespace("shop").await;
    for class in ["istio-waypoint", "istio-remote"] {
        eventually(&format!("class {class} is accepted"), Duration::from_secs(5), async || {
            let class = server.get("gateway.networking.k8s.io/v1", "GatewayClass", "", class).await;
            let conditions = class.map(|class| class["status"]["conditions"].clone()).unwrap_or_default();
            let accepted = conditions[0]["status"] == "True" && conditions[0]["type"] == "Accepted";
            if accepted { Ok(()) } else { Err(conditions.to_string()) }
        })
        .await;
    }
    let options = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "options", "namespace": shop},
        "data": {"podDisruptionBudget": "spec: {minAvailable: 1}"}});
    server.apply_object(options.clone()).await;
    let reference =
        json!({"spec": {"infrastructure": {"parametersRef": {"group": "", "kind": "ConfigMap", "name": "options"}}}});
    let made = server.apply_object(gateway(&shop, "wp", &reference)).await;
    let kinds =
        [("v1", "ServiceAccount"), ("v1", "Service"), ("apps/v1", "Deployment"), ("policy/v1", "PodDisruptionBudget")];
    for (api_version, kind) in kinds {
        let object = there(&server, api_version, kind, &shop, "wp").await;
        let owner = &object["metadata"]["ownerReferences"][0];
        assert_eq!((&owner["kind"], &owner["uid"]), (&json!("Gateway"), &made["metadata"]["uid"]), "{object}");
        assert_eq!(object["metadata"]["labels"][MANAGED], "istio.io-mesh-controller");
        assert!(managers(&object).contains(&"istio.io/gateway-controller".to_owned()), "{:?}", managers(&object));
    }
    assert_eq!(server.get("autoscaling/v2", "HorizontalPodAutoscaler", &shop, "wp").await, None, "nobody asked for it");

    let pending = programmed(&server, &shop, "wp", "Pending").await;
    assert_eq!(pending["status"], "False", "no pod runs yet");
    report_ready(&server, &shop, "wp").await;
    let done = programmed(&server, &shop, "wp", "Programmed").await;
    assert_eq!(done["observedGeneration"], 1, "{done}");
    let object = there(&server, "gateway.networking.k8s.io/v1", "Gateway", &shop, "wp").await;
    assert_eq!(object["metadata"]["annotations"]["gateway.istio.io/controller-version"], "5");
    let service = there(&server, "v1", "Service", &shop, "wp").await;
    assert_eq!(object["status"]["addresses"][0]["value"], service["spec"]["clusterIP"]);
    assert_eq!(object["status"]["addresses"][1]["value"], format!("wp.{shop}.svc.cluster.local"));

    // Everything has been said: nothing is written any more, also not in answer to what others write elsewhere.
    let versions = async || {
        let mut versions = Vec::new();
        for (api_version, kind) in kinds.iter().chain(&[("gateway.networking.k8s.io/v1", "Gateway")]) {
            let object = there(&server, api_version, kind, &shop, "wp").await;
            versions.push(object["metadata"]["resourceVersion"].clone());
        }
        versions
    };
    // What was still to be written of the first is written, and said, before this one.
    server.apply_object(gateway(&shop, "second", &json!({}))).await;
    programmed(&server, &shop, "second", "Pending").await;
    let before = versions().await;
    let applied = replica.applied_until(&shop, "second", "wp").await;
    server.apply_object(gateway(&shop, "other", &json!({}))).await;
    programmed(&server, &shop, "other", "Pending").await;
    assert_eq!(versions().await, before);
    assert_eq!(replica.applied_until(&shop, "other", "wp").await, applied, "{}", replica.process.said());

    // Another manager's label stays, one of ours is put right, and what was deleted comes back.
    let meddle = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "wp", "namespace": shop,
        "labels": {"team": "x", "gateway.networking.k8s.io/gateway-class-name": "mine"}}});
    server.apply_object(meddle).await;
    eventually("the label of ours is put right", Duration::from_secs(5), async || {
        let labels = there(&server, "v1", "Service", &shop, "wp").await["metadata"]["labels"].clone();
        let right = labels["gateway.networking.k8s.io/gateway-class-name"] == "istio-waypoint" && labels["team"] == "x";
        if right { Ok(()) } else { Err(labels.to_string()) }
    })
    .await;
    server.delete(&format!("apiVersion: v1\nkind: ServiceAccount\nmetadata: {{name: wp, namespace: {shop}}}")).await;
    there(&server, "v1", "ServiceAccount", &shop, "wp").await;

    // An overlay that goes takes its object with it.
    let mut emptied = options;
    emptied["data"] = json!({});
    server.apply_object(emptied).await;
    eventually("the budget is gone", Duration::from_secs(5), async || {
        match server.get("policy/v1", "PodDisruptionBudget", &shop, "wp").await {
            None => Ok(()),
            Some(object) => Err(object.to_string()),
        }
    })
    .await;

    // Renamed: the old ones go when the new ones serve.
    let renamed = json!({"metadata": {"annotations": {"gateway.istio.io/name-override": "front"}}});
    server.apply_object(gateway(&shop, "wp", &renamed)).await;
    there(&server, "apps/v1", "Deployment", &shop, "front").await;
    there(&server, "v1", "Service", &shop, "front").await;
    assert!(server.get("apps/v1", "Deployment", &shop, "wp").await.is_some(), "it serves until the new one does");
    report_ready(&server, &shop, "front").await;
    eventually("what has the old name is gone", Duration::from_secs(5), async || {
        let left =
            [server.get("apps/v1", "Deployment", &shop, "wp").await, server.get("v1", "Service", &shop, "wp").await];
        if left.iter().all(Option::is_none) { Ok(()) } else { Err(format!("{left:?}")) }
    })
    .await;
    assert!(server.get("apps/v1", "Deployment", &shop, "other").await.is_some(), "another Gateway's");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_somebody_elses_is_not_overwritten() {
    let (server, _replica) = cluster(&[("WAYPOINT_IMAGE", IMAGE)]).await;
    let shop = server.namespace("shop").await;
    let theirs = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "wp", "namespace": shop},
        "spec": {"selector": {"matchLabels": {"app": "theirs"}}, "template": {"metadata": {"labels": {"app": "theirs"}},
            "spec": {"containers": [{"name": "c", "image": "theirs"}]}}}});
    let before = server.apply_object(theirs.clone()).await;
    server.apply_object(gateway(&shop, "wp", &json!({}))).await;
    let conflict = programmed(&server, &shop, "wp", "Conflict").await;
    assert!(
        conflict["message"].as_str().unwrap_or_default().contains(&format!("Deployment {shop}/wp exists")),
        "{conflict}"
    );
    let after = there(&server, "apps/v1", "Deployment", &shop, "wp").await;
    assert_eq!(after["metadata"]["resourceVersion"], before["metadata"]["resourceVersion"]);
    assert_eq!(server.get("v1", "Service", &shop, "wp").await, None, "half a waypoint helps nobody");
    // With another name it works, and nobody is asked to restart anything.
    let renamed = json!({"metadata": {"annotations": {"gateway.istio.io/name-override": "front"}}});
    server.apply_object(gateway(&shop, "wp", &renamed)).await;
    programmed(&server, &shop, "wp", "Pending").await;
    there(&server, "apps/v1", "Deployment", &shop, "front").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_an_image_it_is_said_and_nothing_is_made() {
    let (server, _replica) = cluster(&[]).await;
    let shop = server.namespace("shop").await;
    server.apply_object(gateway(&shop, "wp", &json!({}))).await;
    let condition = programmed(&server, &shop, "wp", "NoResources").await;
    assert!(condition["message"].as_str().unwrap_or_default().contains("WAYPOINT_IMAGE"), "{condition}");
    assert_eq!(server.get("v1", "Service", &shop, "wp").await, None);
    assert_eq!(server.get("apps/v1", "Deployment", &shop, "wp").await, None);
}

fn policy(namespace: &str, name: &str) -> Value {
    json!({"apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"rules": [{"from": [{"source": {"namespaces": ["x"]}}]}]}})
}

async fn accepted(server: &ApiServer, namespace: &str, name: &str) -> Value {
    eventually(&format!("policy {name} is accepted"), Duration::from_secs(10), async || {
        let policy = server.get("security.istio.io/v1", "AuthorizationPolicy", namespace, name).await;
        let policy = policy.ok_or("not there")?;
        let condition = &policy["status"]["conditions"][0];
        let is = condition["type"] == "ZtunnelAccepted" && condition["status"] == "True";
        if is { Ok(policy.clone()) } else { Err(policy["status"].to_string()) }
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_status_is_written_once_and_the_next_leader_goes_on() {
    let (server, first) = cluster(&[]).await;
    // Ready it is as well before it leads.
    eventually("the first leads", Duration::from_secs(5), async || {
        let lease = server.get("coordination.k8s.io/v1", "Lease", "istio-system", "istiod-lite-default").await;
        let holder = lease.map(|lease| lease["spec"]["holderIdentity"].clone()).unwrap_or_default();
        if holder.as_str().is_some_and(|who| who.starts_with("istiod-1_")) { Ok(()) } else { Err(holder.to_string()) }
    })
    .await;
    let second = Replica::start(&server, "istiod-2", &[]);
    second.wait_ready().await;
    let shop = server.namespace("shop").await;
    server.apply_object(policy(&shop, "one")).await;
    let one = accepted(&server, &shop, "one").await;
    assert!(managers(&one).contains(&"istio-ambient-ztunnel-policy".to_owned()), "{:?}", managers(&one));
    let lease = there(&server, "coordination.k8s.io/v1", "Lease", "istio-system", "istiod-lite-default").await;
    let holder = lease["spec"]["holderIdentity"].as_str().expect("a holder").to_owned();
    assert!(holder.starts_with("istiod-1_"), "{holder}");

    // Killed without a word: its lease runs out, and the other takes over. What both have said stands.
    drop(first);
    server.apply_object(policy(&shop, "two")).await;
    accepted(&server, &shop, "two").await;
    let third = Replica::start(&server, "istiod-3", &[]);
    third.wait_ready().await;
    drop(second);
    server.apply_object(policy(&shop, "three")).await;
    accepted(&server, &shop, "three").await;
    let again = accepted(&server, &shop, "one").await;
    assert_eq!(again["metadata"]["resourceVersion"], one["metadata"]["resourceVersion"], "{again}");

    // Who ends in good order gives it back: the next one need not wait.
    let fourth = Replica::start(&server, "istiod-4", &[]);
    fourth.wait_ready().await;
    third.process.terminate(Duration::from_secs(20));
    eventually("the lease changes hands at once", Duration::from_secs(4), async || {
        let lease = there(&server, "coordination.k8s.io/v1", "Lease", "istio-system", "istiod-lite-default").await;
        let holder = lease["spec"]["holderIdentity"].as_str().unwrap_or_default().to_owned();
        if holder.starts_with("istiod-4_") { Ok(()) } else { Err(holder) }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_revisions_side_by_side_do_not_meddle() {
    let (server, _stable) = cluster(&[("WAYPOINT_IMAGE", "example.com/stable:1")]).await;
    let canary = Replica::start(
        &server,
        "istiod-canary-1",
        &[("REVISION", "canary"), ("WAYPOINT_IMAGE", "example.com/canary:2")],
    );
    canary.wait_ready().await;
    let shop = server.namespace("shop").await;
    let labelled = json!({"metadata": {"labels": {"istio.io/rev": "canary"}}});
    server.apply_object(gateway(&shop, "new", &labelled)).await;
    server.apply_object(gateway(&shop, "old", &json!({}))).await;
    for (name, image, revision) in
        [("new", "example.com/canary:2", "canary"), ("old", "example.com/stable:1", "default")]
    {
        let deployment = there(&server, "apps/v1", "Deployment", &shop, name).await;
        let template = &deployment["spec"]["template"];
        assert_eq!(template["spec"]["containers"][0]["image"], image);
        assert_eq!(template["metadata"]["annotations"]["istio.io/rev"], revision);
        programmed(&server, &shop, name, "Pending").await;
    }
    // It changes hands with its label, and only then.
    server.apply_object(gateway(&shop, "old", &labelled)).await;
    eventually("the other revision has taken it over", Duration::from_secs(5), async || {
        let deployment = there(&server, "apps/v1", "Deployment", &shop, "old").await;
        let image = deployment["spec"]["template"]["spec"]["containers"][0]["image"].clone();
        if image == "example.com/canary:2" { Ok(()) } else { Err(image.to_string()) }
    })
    .await;
    let leases = server.list("coordination.k8s.io/v1", "Lease", "istio-system").await;
    let names: Vec<&str> = leases.iter().filter_map(|lease| lease["metadata"]["name"].as_str()).collect();
    assert!(names.contains(&"istiod-lite-default") && names.contains(&"istiod-lite-canary"), "{names:?}");
}
