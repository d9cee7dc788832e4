//! Sections 5.1-5.3, 5.5 and 9: how the proxy introduces itself to the control plane, and what it says on the stream.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::peer::grpc::Status;
use crate::peer::hpack;
use crate::peer::istiod::{Ads, Request};
use crate::peer::pki;
use crate::peer::until;
use crate::peer::wds::{ADDRESS, AUTHORIZATION, Policy, Resource, Service, Workload};
use crate::peer::world::{Stage, TOKEN, World};

fn workload(name: &str) -> Workload {
    Workload { name: name.into(), namespace: "app".into(), node: "node-b".into(), ..Workload::default() }
}

fn policy(name: &str) -> Resource {
    Policy { name: name.into(), namespace: "app".into(), ..Policy::default() }.resource()
}

/// The node of a request: id and metadata.
fn node(request: &Request) -> Result<(String, serde_json::Value)> {
    let node = request.fields.message(1)?;
    Ok((node.string(1), node.message(3)?.json()?))
}

/// 5.2, 5.3: two requests, Address then Authorization, each with the node, without names, without versions.
#[tokio::test(flavor = "multi_thread")]
async fn first_requests() -> Result<()> {
    let mut stage = Stage::set()?;
    let _ztunnel = stage.start()?;
    let mut ads = stage.istiod.ads().await?;
    for type_url in [ADDRESS, AUTHORIZATION] {
        let request = ads.request().await?;
        assert_eq!(request.type_url, type_url);
        assert_eq!(request.fields.numbers(), [1, 2], "node and type only");
        let (id, metadata) = node(&request)?;
        assert_eq!(id, "ztunnel~198.18.1.1~ztunnel-abc.istio-system~istio-system.svc.cluster.local");
        assert_eq!(metadata["NAME"], "ztunnel-abc");
        assert_eq!(metadata["NAMESPACE"], "istio-system");
        assert_eq!(metadata["INSTANCE_IPS"], "198.18.1.1");
        assert_eq!(metadata["NODE_NAME"], "node-a");
    }
    Ok(())
}

/// 5.2: without INSTANCE_IP the id has 1.1.1.1.
#[tokio::test(flavor = "multi_thread")]
async fn node_id_without_an_instance_ip() -> Result<()> {
    let mut stage = Stage::set()?;
    stage.unset("INSTANCE_IP");
    let _ztunnel = stage.start()?;
    let (id, _) = node(&stage.istiod.ads().await?.request().await?)?;
    assert_eq!(id, "ztunnel~1.1.1.1~ztunnel-abc.istio-system~istio-system.svc.cluster.local");
    Ok(())
}

/// 5.2, trap 36: ISTIO_META_X is metadata X as text, ISTIO_METAJSON_X is metadata X as decoded JSON.
#[tokio::test(flavor = "multi_thread")]
async fn node_metadata_from_the_environment() -> Result<()> {
    let mut stage = Stage::set()?;
    stage.var("ISTIO_META_ISTIO_VERSION", "1.99.0");
    stage.var("ISTIO_META_CLUSTER_ID", "west");
    stage.var("ISTIO_METAJSON_LABELS", r#"{"app":"ztunnel","list":[1,true,"x"]}"#);
    let _ztunnel = stage.start()?;
    let ads = &mut stage.istiod.ads().await?;
    let (_, metadata) = node(&ads.request().await?)?;
    assert_eq!(metadata["ISTIO_VERSION"], "1.99.0");
    assert_eq!(metadata["CLUSTER_ID"], "west");
    assert_eq!(metadata["LABELS"], serde_json::json!({"app": "ztunnel", "list": [1.0, true, "x"]}));
    // ISTIO_META_CLUSTER_ID goes before CLUSTER_ID for the header too.
    assert_eq!(hpack::value(&ads.headers, "clusterid"), Some("west"));
    Ok(())
}

/// 5.1: each RPC carries the token, the cluster and the extra headers.
#[tokio::test(flavor = "multi_thread")]
async fn stream_headers() -> Result<()> {
    let mut stage = Stage::set()?;
    stage.var("XDS_HEADER_x-extra", "of the xds");
    stage.var("CA_HEADER_x-other", "of the ca");
    let _ztunnel = stage.start()?;
    let ads = stage.istiod.ads().await?;
    let value = |name| hpack::value(&ads.headers, name);
    assert_eq!(value(":method"), Some("POST"));
    assert_eq!(value("content-type").map(|kind| kind.starts_with("application/grpc")), Some(true));
    assert_eq!(value("te"), Some("trailers"));
    assert_eq!(value("authorization"), Some(format!("Bearer {TOKEN}").as_str()));
    assert_eq!(value("clusterid"), Some("Kubernetes"));
    assert_eq!(value("x-extra"), Some("of the xds"));
    assert_eq!(value("x-other"), None);
    Ok(())
}

/// 5.1, 6.3: the token's file is read again for every request.
#[tokio::test(flavor = "multi_thread")]
async fn token_is_read_again() -> Result<()> {
    let mut stage = Stage::set()?;
    let _ztunnel = stage.start()?;
    let mut ads = stage.istiod.ads().await?;
    ads.first(&[], &[]).await?;
    fs::write(stage.path("var/run/secrets/tokens/istio-token"), "the-next-token\n")?;
    ads.finish(&Status { code: 14, message: "going away".into() });
    let ads = stage.istiod.ads().await?;
    assert_eq!(hpack::value(&ads.headers, "authorization"), Some("Bearer the-next-token"));
    Ok(())
}

/// 9: AUTH_TOKEN that is no path is the token itself.
#[tokio::test(flavor = "multi_thread")]
async fn token_as_a_literal() -> Result<()> {
    let mut stage = Stage::set()?;
    stage.var("AUTH_TOKEN", "a-literal-token");
    let _ztunnel = stage.start()?;
    let ads = stage.istiod.ads().await?;
    assert_eq!(hpack::value(&ads.headers, "authorization"), Some("Bearer a-literal-token"));
    Ok(())
}

/// 9: without AUTH_TOKEN and without the default file there is no authorization header.
#[tokio::test(flavor = "multi_thread")]
async fn no_token_at_all() -> Result<()> {
    let mut stage = Stage::set()?;
    fs::remove_file(stage.path("var/run/secrets/tokens/istio-token"))?;
    let _ztunnel = stage.start()?;
    let ads = stage.istiod.ads().await?;
    assert_eq!(hpack::value(&ads.headers, "authorization"), None);
    Ok(())
}

/// 9: without XDS_ADDRESS and outside Kubernetes the control plane is https://localhost:15012.
#[tokio::test(flavor = "multi_thread")]
async fn default_address() -> Result<()> {
    let mut stage = Stage::set()?;
    stage.unset("XDS_ADDRESS");
    stage.unset("CA_ADDRESS");
    let _ztunnel = stage.start()?;
    let ads = stage.istiod.ads().await?;
    assert_eq!(hpack::value(&ads.headers, ":authority"), Some("localhost:15012"));
    Ok(())
}

/// 9: PROXY_CONFIG's discoveryAddress and proxyMetadata are read.
#[tokio::test(flavor = "multi_thread")]
async fn proxy_config() -> Result<()> {
    let mut stage = Stage::set()?;
    stage.unset("XDS_ADDRESS");
    stage.var("KUBERNETES_SERVICE_HOST", "198.19.255.1");
    stage.var("PROXY_CONFIG", "discoveryAddress: localhost:15012\nproxyMetadata:\n  ISTIO_META_ROLE: tester\n");
    let _ztunnel = stage.start()?;
    let mut ads = stage.istiod.ads().await?;
    let (_, metadata) = node(&ads.request().await?)?;
    assert_eq!(metadata["ROLE"], "tester");
    Ok(())
}

/// 5.1: the control plane's name is verified; ALT_XDS_HOSTNAME is the name to verify instead.
#[tokio::test(flavor = "multi_thread")]
async fn server_name_is_verified() -> Result<()> {
    let mut stage = Stage::set()?;
    let certificate = stage.ca.certify(vec![pki::dns("another.example")?])?;
    stage.istiod.show(certificate)?;
    let wrong = stage.start()?;
    wrong.lines(&["xds"], 1).await?;
    // Another try comes only after the first was given up.
    stage.istiod.handshakes_failed(2).await?;
    ensure!(stage.istiod.ads_now().is_none(), "a control plane of another name was trusted");
    drop(wrong);
    stage.var("ALT_XDS_HOSTNAME", "another.example");
    let _right = stage.start()?;
    stage.istiod.ads().await?;
    Ok(())
}

/// 6.2, 9: a changed root file is taken up without a restart.
#[tokio::test(flavor = "multi_thread")]
async fn root_file_is_watched() -> Result<()> {
    let mut stage = Stage::set()?;
    let _ztunnel = stage.start()?;
    let mut ads = stage.istiod.ads().await?;
    ads.first(&[], &[]).await?;
    let next = pki::Ca::new()?;
    stage.istiod.show(next.certify(vec![pki::dns("localhost")?])?)?;
    // As Kubernetes does it: written aside, then moved.
    let root = stage.path("var/run/secrets/istio/root-cert.pem");
    fs::write(root.with_extension("next"), &next.pem)?;
    fs::rename(root.with_extension("next"), &root)?;
    stage.istiod.cut();
    stage.istiod.ads().await?;
    Ok(())
}

/// 9: XDS_ROOT_CA may hold the PEM itself.
#[tokio::test(flavor = "multi_thread")]
async fn root_as_inline_pem() -> Result<()> {
    let mut stage = Stage::set()?;
    fs::remove_file(stage.path("var/run/secrets/istio/root-cert.pem"))?;
    let pem = stage.ca.pem.clone();
    stage.var("XDS_ROOT_CA", &pem);
    stage.var("CA_ROOT_CA", &pem);
    let _ztunnel = stage.start()?;
    stage.istiod.ads().await?;
    Ok(())
}

/// 5.3: an ACK is type and nonce, nothing else; empty answers are answers.
#[tokio::test(flavor = "multi_thread")]
async fn ack_form() -> Result<()> {
    let mut stage = Stage::set()?;
    let _ztunnel = stage.start()?;
    let mut ads = stage.istiod.ads().await?;
    for _ in 0..2 {
        ads.request().await?;
    }
    for (type_url, resources) in [(ADDRESS, vec![workload("w").resource()]), (AUTHORIZATION, vec![])] {
        let nonce = ads.respond(type_url, &resources, &[]);
        let ack = ads.request().await?;
        assert_eq!(ack.fields.numbers(), [2, 6]);
        assert_eq!((ack.type_url.as_str(), ack.nonce), (type_url, nonce));
    }
    Ok(())
}

/// 5.3, trap 5: a NACK is type, nonce and an error with a message and code 0; what was good applies; what was
/// refused is not held at a reconnect.
#[tokio::test(flavor = "multi_thread")]
async fn nack_form_and_partial_application() -> Result<()> {
    let stage = Stage::set()?;
    let mut world = World::start(stage, &[], &[]).await?;
    let good = workload("good").resource();
    let bad = Workload { tunnel_protocol: 2, ..workload("bad") }.resource();
    let nonce = world.ads.respond(ADDRESS, &[bad, good], &[]);
    let nack = world.ads.request().await?;
    assert_eq!(nack.fields.numbers(), [2, 6, 7]);
    assert_eq!(nack.nonce, nonce);
    let (code, message) = nack.error.context("an error")?;
    assert_eq!(code, 0);
    ensure!(message.contains("app/bad") && !message.contains("app/good"), "the message names the culprit: {message}");
    let dump = world.config_dump().await?.to_string();
    ensure!(dump.contains("app/good") && !dump.contains("app/bad"), "{dump}");
    world.ads.finish(&Status { code: 14, message: String::new() });
    let again = world.stage.istiod.ads().await?.request().await?;
    assert_eq!(again.initial_versions, [("Kubernetes//Pod/app/good".to_owned(), "1".to_owned())]);
    Ok(())
}

/// 5.3: on a new stream each first request says what is held, by name and version, and carries the node again.
#[tokio::test(flavor = "multi_thread")]
async fn reconnect_with_versions() -> Result<()> {
    let mut stage = Stage::set()?;
    let _ztunnel = stage.start()?;
    let mut ads = stage.istiod.ads().await?;
    let service =
        Service { name: "s".into(), namespace: "app".into(), hostname: "s.example".into(), ..Service::default() };
    let versioned = |mut resource: Resource, version: &str| {
        resource.version = version.to_owned();
        resource
    };
    let addresses = [
        versioned(workload("a").resource(), "aaaa"),
        versioned(workload("b").resource(), "bbbb"),
        versioned(service.resource(), "cccc"),
    ];
    ads.first(&addresses, &[policy("p")]).await?;
    ads.accepted(ADDRESS, &[versioned(workload("b").resource(), "dddd")], &["Kubernetes//Pod/app/a".to_owned()])
        .await?;
    ads.finish(&Status { code: 14, message: String::new() });
    let mut ads = stage.istiod.ads().await?;
    let address = ads.request().await?;
    assert_eq!((address.type_url.as_str(), address.fields.numbers()), (ADDRESS, vec![1, 2, 5]));
    let held = [("Kubernetes//Pod/app/b", "dddd"), ("app/s.example", "cccc")];
    assert_eq!(address.initial_versions, held.map(|(name, version)| (name.to_owned(), version.to_owned())));
    let authorization = ads.request().await?;
    assert_eq!(authorization.type_url, AUTHORIZATION);
    assert_eq!(authorization.initial_versions, [("app/p".to_owned(), String::new())]);
    Ok(())
}

/// 5.1: a benign end is followed by a new stream at once, over and over.
#[tokio::test(flavor = "multi_thread")]
async fn benign_ends_do_not_slow_down() -> Result<()> {
    let mut stage = Stage::set()?;
    let _ztunnel = stage.start()?;
    stage.istiod.ads().await?.first(&[], &[]).await?;
    let begin = std::time::Instant::now();
    // Doubling from 10 ms without ever starting anew, twelve ends would take 40 s.
    for code in [2, 1, 4, 14].into_iter().cycle().take(12) {
        // The stream is dropped with its call ended by this status.
        let mut ads = end_and_next(&mut stage, code).await?;
        ads.first(&[], &[]).await?;
    }
    ensure!(begin.elapsed() < Duration::from_secs(35), "twelve benign ends took {:?}", begin.elapsed());
    Ok(())
}

async fn end_and_next(stage: &mut Stage, code: u32) -> Result<Ads> {
    // The first stream of all was answered by the caller; each later one is ended by the next round.
    stage.istiod.end_streams(&Status { code, message: String::new() });
    stage.istiod.ads().await
}

/// 5.4: a removal names a workload or a service by name only; both go.
#[tokio::test(flavor = "multi_thread")]
async fn removals_by_name() -> Result<()> {
    let stage = Stage::set()?;
    let service =
        Service { name: "s".into(), namespace: "app".into(), hostname: "s.example".into(), ..Service::default() };
    let mut world = World::start(stage, &[], &[workload("w").resource(), service.resource(), policy("p")]).await?;
    let dump = world.config_dump().await?.to_string();
    ensure!(dump.contains("Kubernetes//Pod/app/w") && dump.contains("s.example"), "{dump}");
    world.remove(ADDRESS, &["Kubernetes//Pod/app/w".into(), "app/s.example".into()]).await?;
    world.remove(AUTHORIZATION, &["app/p".into()]).await?;
    // Names that are not held are no fault.
    world.remove(ADDRESS, &["Kubernetes//Pod/app/never".into(), "app/never.example".into()]).await?;
    let dump = world.config_dump().await?;
    for list in ["workloads", "services", "policies"] {
        assert_eq!(
            dump[list].as_array().map(Vec::len).or(dump[list].as_object().map(serde_json::Map::len)),
            Some(0),
            "{list}"
        );
    }
    Ok(())
}

/// 5.3: a response far larger than gRPC's usual 4 MiB is taken.
#[tokio::test(flavor = "multi_thread")]
async fn large_response() -> Result<()> {
    let stage = Stage::set()?;
    let mut world = World::start(stage, &[], &[]).await?;
    let many: Vec<Resource> = (0..12_000)
        .map(|n| {
            let services = vec![(format!("app/{}{n}.example", "s".repeat(380)), vec![(80, 8080)])];
            Workload { services, ..workload(&format!("w{n}")) }.resource()
        })
        .collect();
    world.ads.accepted(ADDRESS, &many, &[]).await?;
    Ok(())
}

/// 5.5: on demand, the first Address request subscribes and unsubscribes `*`; Authorization stays wildcard.
#[tokio::test(flavor = "multi_thread")]
async fn on_demand_first_requests() -> Result<()> {
    let mut stage = Stage::set()?;
    stage.var("XDS_ON_DEMAND", "true");
    stage.var("ISTIO_META_DNS_CAPTURE", "false");
    let _ztunnel = stage.start()?;
    let mut ads = stage.istiod.ads().await?;
    let address = ads.request().await?;
    assert_eq!(address.type_url, ADDRESS);
    assert_eq!((address.subscribe, address.unsubscribe), (vec!["*".to_owned()], vec!["*".to_owned()]));
    let authorization = ads.request().await?;
    assert_eq!(authorization.type_url, AUTHORIZATION);
    assert_eq!(authorization.fields.numbers(), [1, 2]);
    Ok(())
}

/// 8.2: what came over the stream is counted by type.
#[tokio::test(flavor = "multi_thread")]
async fn stream_metrics() -> Result<()> {
    let stage = Stage::set()?;
    let mut world = World::start(stage, &[], &[workload("w").resource()]).await?;
    let label = format!("url=\"{ADDRESS}\"");
    until("a message and its bytes are counted", async || {
        let messages = world.metric("istio_xds_message_total", &[&label]).await?;
        Ok(messages >= 1.0 && world.metric("istio_xds_message_bytes_total", &[&label]).await? > 20.0)
    })
    .await?;
    let before = world.metric("istio_xds_connection_terminations_total", &[]).await?;
    world.ads.finish(&Status { code: 14, message: String::new() });
    world.ads = world.stage.istiod.ads().await?;
    until("a counted end", async || {
        Ok(world.metric("istio_xds_connection_terminations_total", &["reason="]).await? > before)
    })
    .await
}
