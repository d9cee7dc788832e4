//! `aquifer analyze` and `aquifer status` as a person types them, against a real API server and a real istiod-lite; and
//! what `istioctl proxy-status` asks it.

use std::path::Path;
use std::time::Duration;

use aquifer_proto::type_url::{ADDRESS, AUTHORIZATION};
use aquifer_proto::xds::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use aquifer_proto::xds::{ClientConfig, ConfigStatus, DiscoveryRequest, DiscoveryResponse};
use prost::Message as _;
use serde_json::{Value, json};
use tonic::transport::{Certificate, ClientTlsConfig, Endpoint};
use tonic::{Code, Request, Status};

use crate::harness::{ApiServer, binary, eventually};
use crate::whole::{Mesh, Replica};

/// What a command said and how it ended.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Ran {
    /// What stands behind `name: ` on a line of its own.
    pub(crate) fn line(&self, name: &str) -> &str {
        let found = self.stdout.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
        found.unwrap_or_else(|| panic!("no line of {name}: {self:?}"))
    }
}

/// Runs our command with this kubeconfig, as `KUBECONFIG`.
pub(crate) async fn aquifer(arguments: &[&str], kubeconfig: &Path) -> Ran {
    let mut command = std::process::Command::new(binary("aquifer"));
    command.args(arguments).env("KUBECONFIG", kubeconfig).env_remove("AQUIFER_MANIFESTS").env_remove("RUST_LOG");
    let output = tokio::task::spawn_blocking(move || command.output()).await.expect("a thread").expect("aquifer runs");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("text");
    Ran { code: output.status.code().expect("an exit code"), stdout: text(output.stdout), stderr: text(output.stderr) }
}

#[tokio::test(flavor = "multi_thread")]
async fn analyze_says_what_is_wrong_in_one_namespace() {
    let server = ApiServer::start().await;
    server.install_crds().await;
    for namespace in ["bad", "other", "good"] {
        let labels = json!({"istio.io/dataplane-mode": "ambient"});
        let object =
            json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace, "labels": labels}});
        server.apply_object(object).await;
    }
    // All that it denies is about HTTP, and no waypoint is there.
    for namespace in ["bad", "other"] {
        server.apply_object(denies_http(namespace)).await;
    }

    let bad = aquifer(&["analyze", "--namespace", "bad", "-o", "json"], &server.kubeconfig()).await;
    assert_eq!(bad.code, 2, "{bad:?}");
    let findings: Vec<Value> = serde_json::from_str(&bad.stdout).expect("a list");
    let of = |finding: &Value| ["code", "level", "kind", "namespace", "object"].map(|key| finding[key].clone());
    let found: Vec<[Value; 5]> = findings.iter().map(of).collect();
    let expected = ["AQ0010", "error", "AuthorizationPolicy", "bad", "no-delete"].map(Value::from);
    assert_eq!(found, [expected], "{}", bad.stdout);

    let text = aquifer(&["analyze", "--namespace", "other"], &server.kubeconfig()).await;
    assert_eq!(text.code, 2, "{text:?}");
    assert!(text.stdout.contains("AQ0010") && text.stdout.contains("other/no-delete"), "{text:?}");
    assert!(!text.stdout.contains("bad"), "only the namespace's: {text:?}");

    let good = aquifer(&["analyze", "--namespace", "good"], &server.kubeconfig()).await;
    assert_eq!(good.code, 0, "{good:?}");
    assert!(!good.stdout.contains("AQ"), "{good:?}");
    let all = aquifer(&["analyze", "-o", "json"], &server.kubeconfig()).await;
    assert!(all.stdout.contains("bad") && all.stdout.contains("other"), "{all:?}");
}

fn denies_http(namespace: &str) -> Value {
    json!({
        "apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy",
        "metadata": {"name": "no-delete", "namespace": namespace},
        "spec": {"action": "DENY", "rules": [{"to": [{"operation": {"methods": ["DELETE"]}}]}]},
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn status_shows_who_is_connected_and_how_far() {
    let mesh = Mesh::start().await;
    let (first, second) = (mesh.replica("istiod-1").await, mesh.replica("istiod-2").await);
    let (proxy, kubeconfig) = (mesh.proxy(&first).await, mesh.server.kubeconfig());
    mesh.shop().await;
    proxy.holds("Kubernetes//Pod/shop/web-1", Duration::from_secs(2)).await;

    let (one, other) = (first.debug_address(), second.debug_address());
    let text = eventually("all that was sent is acknowledged", Duration::from_secs(2), async || {
        let ran = aquifer(&["status", "--address", &one, "--address", &other], &kubeconfig).await;
        let synced = ran.stdout.matches("SYNCED").count() == 2;
        if synced && ran.code == 0 { Ok(ran.stdout) } else { Err(format!("{ran:?}")) }
    })
    .await;
    let rows: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(rows.len(), 3, "a head, and a row for each type: {text}");
    assert_eq!(rows[1][..2], ["ztunnel-1.istio-system", "node1"], "{text}");
    assert!(rows[1].contains(&&*one) && !text.contains(&other), "by the replica that it is connected to: {text}");

    eventually("the same as JSON", Duration::from_secs(2), async || {
        let json = aquifer(&["status", "--address", &one, "-o", "json"], &kubeconfig).await;
        let page: Value = serde_json::from_str(&json.stdout).expect("JSON");
        let proxies = page[&one]["proxies"].as_array().expect("proxies");
        assert_eq!(proxies.len(), 1, "{page}");
        let types = proxies[0]["types"].as_object().expect("types");
        let acked = types.values().all(|progress| progress["sent"] == progress["acked"]);
        if acked { Ok(()) } else { Err(page.to_string()) }
    })
    .await;

    let elsewhere = aquifer(&["status", "--address", &one, "--namespace", "shop"], &kubeconfig).await;
    assert_eq!((elsewhere.code, &*elsewhere.stdout), (0, "no proxy is connected\n"), "{elsewhere:?}");
    drop(proxy);
    eventually("who has gone is not shown", Duration::from_secs(2), async || {
        let ran = aquifer(&["status", "--address", &one], &kubeconfig).await;
        if ran.stdout == "no proxy is connected\n" { Ok(()) } else { Err(format!("{ran:?}")) }
    })
    .await;
    let debug = first.debug_address();
    first.terminate();
    let away = aquifer(&["status", "--address", &debug], &kubeconfig).await;
    assert!(away.code == 1 && away.stderr.contains(&format!("asking istiod-lite at {debug}")), "{away:?}");
}

/// The one answer to what `istioctl proxy-status` asks of a replica, with the token of an account.
async fn proxy_status(mesh: &Mesh, replica: &Replica, token: &str) -> Result<DiscoveryResponse, Status> {
    let root = Certificate::from_pem(mesh.root().await);
    let tls = ClientTlsConfig::new().ca_certificate(root).domain_name("istiod.istio-system.svc");
    let endpoint = Endpoint::from_shared(replica.secure_address()).expect("an address");
    let channel = endpoint.tls_config(tls).expect("a root").connect().await.expect("a connection");
    let question = DiscoveryRequest { type_url: "istio.io/debug/syncz".to_owned(), ..Default::default() };
    let mut call = Request::new(tokio_stream::iter([question]));
    call.metadata_mut().insert("authorization", format!("Bearer {token}").parse().expect("a header"));
    let stream = AggregatedDiscoveryServiceClient::new(channel).stream_aggregated_resources(call).await?;
    stream.into_inner().message().await?.ok_or_else(|| Status::unavailable("no answer"))
}

#[tokio::test(flavor = "multi_thread")]
async fn istioctl_asks_with_a_token_of_the_control_planes_namespace() {
    let mesh = Mesh::start().await;
    let replica = mesh.replica("istiod-1").await;
    let proxy = mesh.proxy(&replica).await;
    mesh.shop().await;
    proxy.holds("Kubernetes//Pod/shop/web-1", Duration::from_secs(2)).await;
    let token = async |namespace: &str| {
        let metadata = json!({"name": "default", "namespace": namespace});
        mesh.server.apply_object(json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata})).await;
        mesh.server.token(namespace, "default", &["istio-ca"], None, 3600).await
    };
    let (own, foreign) = (token("istio-system").await, token("shop").await);

    let expect = [(AUTHORIZATION, ConfigStatus::Synced), (ADDRESS, ConfigStatus::Synced)];
    eventually("the proxy is shown as synced", Duration::from_secs(5), async || {
        let answer = proxy_status(&mesh, &replica, &own).await.map_err(|status| status.to_string())?;
        let identifier = answer.control_plane.expect("who answers").identifier;
        assert_eq!(serde_json::from_str::<Value>(&identifier).expect("JSON")["ID"], "istiod-1");
        let [resource] = answer.resources.as_slice() else { return Err(format!("{:?}", answer.resources)) };
        let config = ClientConfig::decode(resource.value.as_slice()).expect("a ClientConfig");
        assert_eq!(config.node.expect("a node").id, "ztunnel-1.istio-system");
        let types = &config.generic_xds_configs;
        let found: Vec<_> = types.iter().map(|one| (one.type_url.as_str(), one.config_status())).collect();
        if found == expect { Ok(()) } else { Err(format!("{found:?}")) }
    })
    .await;
    let refused = proxy_status(&mesh, &replica, &foreign).await.expect_err("not its namespace");
    assert_eq!(refused.code(), Code::PermissionDenied);
    assert!(refused.message().contains("\"istio-system\""), "{refused}");
}
