//! The control plane away, back again, and wrong: what proxies hold stays whole.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use aquifer_lab::{Component, Lab, LabOptions, Load, PodInfo};
use aquifer_proto::xds::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use aquifer_proto::xds::{self as wire, DeltaDiscoveryRequest, Node};
use aquifer_proto::{security, type_url, workload};
use aquifer_runtime::{Cancel, Tracker};
use aquifer_xds::resource::{Resource, ResourceSet};
use aquifer_xds::server::driver::AllowAnonymous;
use aquifer_xds::server::{Clients, Publisher, Server, ServerMetrics};
use nix::sys::signal::Signal;
use serde_json::Value;
use tonic::transport::server::TcpIncoming;
use tonic::transport::{Identity, ServerTlsConfig};

use crate::harness::{eventually, get, in_pod, listen, meshed_shop};
use crate::mint::{Ca, leaf};

const ONLY_ORDERS: &str = include_str!("../../../examples/shop/policies/payments-only-from-orders.yaml");
const NODES: [&str; 2] = ["node1", "node2"];

/// The control plane itself runs here: its pods are less healthy while it is away.
const ITS_OWN: &str = "istio-system";

/// All that a proxy was told of the mesh, with names and contents, but for the control plane's own pods.
async fn told(lab: &Lab, node: &str) -> Result<BTreeMap<&'static str, Vec<Value>>> {
    let dump: Value = serde_json::from_str(&lab.ztunnel_admin(node, "/config_dump").await?)?;
    let of_others = |part: &str| {
        let all = dump[part].as_array().into_iter().flatten();
        all.filter(|entry| entry["namespace"] != ITS_OWN).cloned().collect()
    };
    Ok(["workloads", "services", "policies"].map(|part| (part, of_others(part))).into())
}

/// Responses, and bytes in them, of a type that a proxy has received.
async fn received(lab: &Lab, node: &str, type_url: &str) -> Result<(f64, f64)> {
    let label = format!("url=\"{type_url}\"");
    let text = lab.metrics(Component::ztunnel(node)).await?;
    let sum = |name| aquifer_lab::sum_metric(&text, name, &[&label]);
    Ok((sum("istio_xds_message_total"), sum("istio_xds_message_bytes_total")))
}

fn names(told: &BTreeMap<&str, Vec<Value>>, part: &str) -> Vec<String> {
    let list = told[part].iter();
    list.filter_map(|entry| entry["name"].as_str().map(str::to_owned)).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_control_plane_that_returns_finds_everything_in_place() -> Result<()> {
    let lab = meshed_shop(LabOptions::default()).await?;
    lab.apply(ONLY_ORDERS).await?;
    for node in NODES {
        eventually("the policy is known, and the workload names it", Duration::from_secs(2), async || {
            let told = told(&lab, node).await?;
            let known = names(&told, "policies").contains(&"payments-only-from-orders".to_owned());
            let named = |workload: &Value| workload.to_string().contains("payments-only-from-orders");
            Ok(known && told["workloads"].iter().any(named))
        })
        .await?;
    }
    let mut whole = BTreeMap::new();
    let mut first = BTreeMap::new();
    for node in NODES {
        whole.insert(node, told(&lab, node).await?);
        first.insert(node, received(&lab, node, type_url::ADDRESS).await?.1);
    }
    let load = Load::start(&lab, "shop", "orders", "http://payments/", 2)?;
    load.wait_answers(5, Duration::from_secs(60)).await?;
    for signal in [Signal::SIGKILL, Signal::SIGTERM] {
        let mut before = BTreeMap::new();
        for node in NODES {
            for url in [type_url::ADDRESS, type_url::AUTHORIZATION] {
                before.insert((node, url), received(&lab, node, url).await?);
            }
        }
        lab.kill(Component::Istiod, signal as i32).await?;
        lab.wait_status("istiod-lite is down", Duration::from_secs(10), |status| {
            status.components.iter().any(|c| c.component == Component::Istiod && c.pid.is_none()).then_some(())
        })
        .await?;
        load.wait_answers(load.report().total() + 10, Duration::from_secs(60)).await?;
        lab.start_component(Component::Istiod).await?;
        // Looked at over and over while it comes back: at no time is anything missing.
        let mut looks = 0;
        for (node, url) in before.keys() {
            eventually(&format!("{node} is answered again"), Duration::from_secs(5), async || {
                ensure!(told(&lab, node).await? == whole[node], "what {node} knows has changed");
                looks += 1;
                Ok(received(&lab, node, url).await?.0 > before[&(*node, *url)].0)
            })
            .await?;
        }
        for ((node, url), (responses, bytes)) in before {
            let now = received(&lab, node, url).await?;
            println!("{signal}: {node} {url}: {} responses of {} bytes", now.0 - responses, now.1 - bytes);
            // A response without resources: its type, a nonce, a version. Of the control plane there may be news.
            let news = if url == type_url::ADDRESS { first[node] / 2.0 } else { 0.0 };
            let sent = now.1 - bytes;
            assert!(sent < 200.0 * (now.0 - responses) + news, "{node} was sent again what it holds of {url}");
        }
        println!("{looks} looks at what the proxies hold");
    }
    // What changed while nobody was there to tell: something new, and something gone.
    lab.kill(Component::Istiod, Signal::SIGKILL as i32).await?;
    lab.delete("AuthorizationPolicy", "shop", "payments-only-from-orders").await?;
    lab.scale("shop", "cart", 0).await?;
    lab.apply(&ONLY_ORDERS.replace("payments-only-from-orders", "of-the-night").replace("app: payments", "app: web"))
        .await?;
    lab.wait_ready("shop", "cart", 0).await?;
    lab.start_component(Component::Istiod).await?;
    for node in NODES {
        eventually(&format!("{node} knows what changed meanwhile"), Duration::from_secs(3), async || {
            let told = told(&lab, node).await?;
            let carts = names(&told, "workloads").iter().filter(|name| name.starts_with("cart-")).count();
            Ok(names(&told, "policies") == ["of-the-night"] && carts == 0)
        })
        .await?;
    }
    load.wait_answers(load.report().total() + 5, Duration::from_secs(60)).await?;
    let report = load.stop().await?;
    println!("{} requests, {} failed", report.total(), report.failed());
    assert_eq!(report.failed(), 0, "of {}: {}", report.total(), report.first_failure());
    Ok(())
}

/// A discovery server whose resources the test writes.
struct Scripted {
    address: SocketAddr,
    publisher: Publisher,
    clients: Clients,
    cancel: Cancel,
}

impl Scripted {
    /// Serves TLS on a port of the pod, with a certificate of the mesh's CA.
    fn start(lab: &Lab, pod: &PodInfo, set: ResourceSet) -> Result<Self> {
        let address = SocketAddr::new(pod.ipv4(), 16012);
        let mut params = leaf(&[])?;
        params.subject_alt_names = vec![rcgen::SanType::IpAddress(pod.ipv4())];
        let (chain, key) = Ca::of(lab)?.sign(params)?.pem();
        let publisher = Publisher::new(set);
        let (tracker, cancel) = (Tracker::new(), Cancel::new());
        let server = Server::new(
            publisher.clone(),
            Arc::new(AllowAnonymous),
            ServerMetrics::default(),
            tracker.clone(),
            cancel.clone(),
        );
        let clients = server.clients();
        let incoming = TcpIncoming::from(listen(lab, pod, 16012)?);
        let router = tonic::transport::Server::builder()
            .tls_config(ServerTlsConfig::new().identity(Identity::from_pem(chain, key)))?
            .add_service(server.into_service());
        let ended = cancel.clone();
        tracker.spawn("scripted", async move {
            tokio::select! {
                () = ended.drained() => {}
                served = router.serve_with_incoming(incoming) => println!("the scripted server ended: {served:?}"),
            }
        });
        Ok(Self { address, publisher, clients, cancel })
    }

    /// Why the one client has refused its last response of a type; `None` if it took it, or has not answered yet.
    fn rejected(&self, type_url: &str) -> Option<String> {
        let all = self.clients.list();
        let info = all.first()?.types.get(type_url)?;
        info.last_nack.clone().filter(|_| info.is_rejected).map(|nack| nack.reason)
    }

    fn answered(&self, type_url: &str) -> bool {
        let all = self.clients.list();
        let of_type = all.first().and_then(|client| client.types.get(type_url));
        of_type.is_some_and(|info| info.sent > 0 && info.sent == info.answered)
    }
}

/// What the real control plane tells a proxy of node1.
fn real_resources(lab: &Lab, istiod: &PodInfo, from: &PodInfo, token: String) -> Result<ResourceSet> {
    let address = format!("http://{}:15010", istiod.ipv4());
    let node = Node {
        id: format!("ztunnel~{}~{}.istio-system~istio-system.svc.cluster.local", from.ipv4(), from.name),
        ..Node::default()
    };
    in_pod(lab, from, move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(fetch_all(address, node, &token))
    })?
}

async fn fetch_all(address: String, node: Node, token: &str) -> Result<ResourceSet> {
    let types = [type_url::ADDRESS, type_url::AUTHORIZATION];
    let mut client = AggregatedDiscoveryServiceClient::connect(address).await?;
    let ask =
        |url: &str| DeltaDiscoveryRequest { node: Some(node.clone()), type_url: url.to_owned(), ..Default::default() };
    let asked = futures_util::stream::iter(types.map(ask));
    // The stream stays open until we have heard everything.
    let asked = futures_util::StreamExt::chain(asked, futures_util::stream::pending());
    let mut request = tonic::Request::new(asked);
    request.metadata_mut().insert("authorization", format!("Bearer {token}").parse()?);
    request.metadata_mut().insert("clusterid", "Kubernetes".parse()?);
    let mut responses = client.delta_aggregated_resources(request).await?.into_inner();
    let mut set = ResourceSet::of_types(types);
    for _ in types {
        let response = responses.message().await?.context("an answer")?;
        for wire::Resource { name, aliases, resource, .. } in response.resources {
            let body = resource.context("a body")?;
            set.upsert(Resource::from_bytes(response.type_url.as_str(), name, body.value).with_aliases(aliases));
        }
    }
    Ok(set)
}

fn pod_of_nobody(name: &str, last: u8, tunnel: workload::TunnelProtocol) -> Resource {
    let message = workload::Workload {
        uid: format!("Kubernetes//Pod/shop/{name}"),
        name: name.into(),
        namespace: "shop".into(),
        addresses: vec![vec![198, 18, 200, last].into()],
        tunnel_protocol: tunnel.into(),
        ..Default::default()
    };
    let address = workload::Address { r#type: Some(workload::address::Type::Workload(message)) };
    Resource::new(type_url::ADDRESS, format!("Kubernetes//Pod/shop/{name}"), &address)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_resource_that_is_refused_is_named_and_the_rest_applies() -> Result<()> {
    let lab = meshed_shop(LabOptions::default()).await?;
    let status = lab.status().await?;
    let pod_of = |component: &Component| {
        let name = status.components.iter().find(|c| c.component == *component).map(|c| c.pod.clone());
        status.pods.iter().find(|pod| Some(&pod.name) == name.as_ref()).cloned().context("the component's pod")
    };
    let proxy = Component::ztunnel("node1");
    let (istiod, ztunnel) = (pod_of(&Component::Istiod)?, pod_of(&proxy)?);
    let token = lab.token("istio-system", &ztunnel.name, Duration::from_secs(600)).await?;
    let before = names(&told(&lab, "node1").await?, "workloads");
    let mut set = real_resources(&lab, &istiod, &ztunnel, token)?;

    // Good ones, a workload that no ztunnel can serve, one that is no message at all, and a policy that means nothing.
    set.upsert(pod_of_nobody("good", 1, workload::TunnelProtocol::None));
    set.upsert(pod_of_nobody("legacy", 2, workload::TunnelProtocol::LegacyIstioMtls));
    set.upsert(Resource::from_bytes(type_url::ADDRESS, "Kubernetes//Pod/shop/noise", vec![0xff; 40]));
    let policy = |name: &str, scope: i32| {
        let message =
            security::Authorization { name: name.into(), namespace: "shop".into(), scope, ..Default::default() };
        Resource::new(type_url::AUTHORIZATION, format!("shop/{name}"), &message)
    };
    let workload_only = security::Scope::WorkloadSelector.into();
    set.upsert(policy("harmless", workload_only));
    set.upsert(policy("boundless", 77));
    let host = lab.pod("outside", "client").await?;
    let scripted = Scripted::start(&lab, &host, set.clone())?;

    lab.kill(proxy.clone(), Signal::SIGKILL as i32).await?;
    lab.wait_status("the proxy is down", Duration::from_secs(10), |status| {
        status.components.iter().any(|c| c.component == proxy && c.pid.is_none()).then_some(())
    })
    .await?;
    let address = format!("https://{}", scripted.address);
    lab.start_component_with(proxy.clone(), &[("XDS_ADDRESS", &address)]).await?;
    eventually("both types are answered", Duration::from_secs(3), async || {
        Ok(scripted.answered(type_url::ADDRESS) && scripted.answered(type_url::AUTHORIZATION))
    })
    .await?;

    let said = scripted.rejected(type_url::ADDRESS).context("no NACK of addresses")?;
    println!("NACK: {said}");
    assert!(said.contains("Kubernetes//Pod/shop/legacy: ") && said.contains("LEGACY_ISTIO_MTLS"), "{said}");
    assert!(said.contains("Kubernetes//Pod/shop/noise: "), "{said}");
    assert!(!said.contains("shop/good") && !said.contains("shop/orders"), "{said}");
    let said = scripted.rejected(type_url::AUTHORIZATION).context("no NACK of policies")?;
    println!("NACK: {said}");
    assert!(said.contains("shop/boundless: ") && said.contains("scope") && !said.contains("harmless"), "{said}");

    // The rest applies, the proxy is ready, and traffic flows by it.
    lab.wait_component_ready(&proxy).await?;
    let now = told(&lab, "node1").await?;
    let workloads = names(&now, "workloads");
    assert!(before.iter().all(|name| workloads.contains(name)), "{before:?} → {workloads:?}");
    assert!(workloads.contains(&"good".into()) && !workloads.contains(&"legacy".into()), "{workloads:?}");
    assert_eq!(names(&now, "policies"), ["harmless"]);
    eventually("traffic flows", Duration::from_secs(3), async || {
        Ok(get(&lab, "shop", "orders", "http://payments/").await?.ok())
    })
    .await?;

    // A good one turns bad: the good version stays in force until there is another good one.
    let load = Load::start(&lab, "shop", "orders", "http://payments/", 1)?;
    set.upsert(pod_of_nobody("good", 1, workload::TunnelProtocol::LegacyIstioMtls));
    set.upsert(pod_of_nobody("legacy", 2, workload::TunnelProtocol::None));
    set.upsert(policy("boundless", workload_only));
    scripted.publisher.publish(set.clone());
    eventually("the next NACK names the one that turned bad", Duration::from_secs(2), async || {
        let said = scripted.rejected(type_url::ADDRESS).unwrap_or_default();
        Ok(scripted.answered(type_url::ADDRESS) && said.contains("shop/good: ") && !said.contains("shop/legacy"))
    })
    .await?;
    eventually("the policy that was mended is taken", Duration::from_secs(2), async || {
        Ok(names(&told(&lab, "node1").await?, "policies") == ["boundless", "harmless"])
    })
    .await?;
    let workloads = names(&told(&lab, "node1").await?, "workloads");
    assert!(workloads.contains(&"good".into()) && workloads.contains(&"legacy".into()), "{workloads:?}");
    set.remove(type_url::ADDRESS, "Kubernetes//Pod/shop/good");
    scripted.publisher.publish(set);
    eventually("what is gone is gone", Duration::from_secs(2), async || {
        Ok(!names(&told(&lab, "node1").await?, "workloads").contains(&"good".into()))
    })
    .await?;
    // The answer follows the deed.
    eventually("nothing is refused any more", Duration::from_secs(2), async || {
        Ok(scripted.rejected(type_url::ADDRESS).is_none())
    })
    .await?;
    load.wait_answers(5, Duration::from_secs(60)).await?;
    let report = load.stop().await?;
    assert_eq!(report.failed(), 0, "of {}: {}", report.total(), report.first_failure());
    scripted.cancel.drain();
    Ok(())
}
