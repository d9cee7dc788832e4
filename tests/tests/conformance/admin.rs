//! Section 8.1: the ports that people and istioctl look at.

use std::net::{Ipv6Addr, SocketAddr};

use anyhow::{Context, Result, ensure};

use crate::peer::net;
use crate::peer::until;
use crate::peer::wds::{Match, Policy, Service, Text};
use crate::peer::world::{Pod, Stage, World};

const RECORDED_DUMP: &str = include_str!("../../recordings/ztunnel/config_dump.json");

async fn world() -> Result<(World, Pod)> {
    let stage = Stage::set()?;
    let pod = stage.local(2, "here")?;
    let world = World::start(stage, &[&pod], &[pod.workload.resource()]).await?;
    Ok((world, pod))
}

async fn post(world: &World, path: &str) -> Result<(u16, String)> {
    let (head, body) = world.stage.http(15000, &format!("POST {path} HTTP/1.1\r\nContent-Length: 0")).await?;
    Ok((head.split(' ').nth(1).context("a status")?.parse()?, String::from_utf8_lossy(&body).into_owned()))
}

/// 8.1: the dump's keys at the top, and those of its items, as recorded: istioctl reads them.
#[tokio::test(flavor = "multi_thread")]
async fn config_dump_keys() -> Result<()> {
    let (mut world, pod) = world().await?;
    let service = Service {
        name: "web".into(),
        namespace: "app".into(),
        hostname: "web.example".into(),
        addresses: vec![net::vip(1)],
        ports: vec![(80, 8080)],
        ip_families: 1,
        ..Service::default()
    };
    let mut named = pod.workload.clone();
    named.locality = ["eu", "eu-1", "rack-0"];
    named.services = vec![("app/web.example".into(), vec![(80, 8080)])];
    world.push(&[service.resource(), named.resource()]).await?;
    let found = Match { namespaces: vec![Text::Exact("nobody")], ..Match::default() };
    let policy = Policy {
        name: "p".into(),
        namespace: "app".into(),
        scope: 2,
        rules: vec![vec![vec![found]]],
        ..Policy::default()
    };
    world.push(&[policy.resource()]).await?;
    until("a certificate in the dump", async || {
        Ok(world.config_dump().await?["certificates"]
            .as_array()
            .is_some_and(|list| list.iter().any(|c| c["state"] == "Available")))
    })
    .await?;
    let (own, recorded) = (world.config_dump().await?, serde_json::from_str::<serde_json::Value>(RECORDED_DUMP)?);
    let keys = |value: &serde_json::Value| -> Vec<String> {
        value.as_object().map(|object| object.keys().cloned().collect()).unwrap_or_default()
    };
    for key in keys(&recorded) {
        ensure!(own.get(&key).is_some(), "no {key}");
        ensure!(own[&key].is_array() == recorded[&key].is_array(), "{key} is of another type");
    }
    for list in ["workloads", "services", "policies", "certificates"] {
        let wanted = keys(&recorded[list][0]);
        let items = own[list].as_array().with_context(|| list.to_owned())?;
        let fullest = items.iter().max_by_key(|item| keys(item).len()).context("an item")?;
        for key in wanted {
            ensure!(fullest.get(&key).is_some(), "no {key} in {list}: {fullest}");
        }
    }
    let workload = &own["workloads"][0];
    assert_eq!(workload["protocol"], "HBONE");
    assert_eq!(workload["workloadIps"][0], "198.18.1.2");
    assert_eq!(workload["status"], "Healthy");
    assert_eq!(own["policies"][0]["scope"], "WorkloadSelector");
    assert_eq!(own["policies"][0]["action"], "Allow");
    let state = &own["workloadState"][pod.uid()];
    assert_eq!(state["state"], "Up");
    assert_eq!(state["info"], serde_json::json!({"name": "here", "namespace": "app", "serviceAccount": "sa-here"}));
    ensure!(state["connections"]["inbound"].is_array() && state["connections"]["outbound"].is_array());
    let certificate = &own["certificates"][0];
    assert_eq!(certificate["identity"], pod.identity());
    for chain in ["certChain", "rootCerts"] {
        for key in keys(&recorded["certificates"][0][chain][0]) {
            ensure!(certificate[chain][0].get(&key).is_some(), "no {key} in {chain}");
        }
    }
    Ok(())
}

/// 8.1: levels are read and changed by POST, for all or for one target, and reset.
#[tokio::test(flavor = "multi_thread")]
async fn logging() -> Result<()> {
    let (world, _) = world().await?;
    let (status, text) = post(&world, "/logging").await?;
    ensure!(status == 200 && text.contains("info"), "{status} {text}");
    let (status, text) = post(&world, "/logging?level=debug").await?;
    ensure!(status == 200 && text.contains("debug"), "{status} {text}");
    let (status, _) = post(&world, "/logging?level=access:warn").await?;
    assert_eq!(status, 200);
    let (status, text) = post(&world, "/logging?reset").await?;
    ensure!(status == 200 && text.contains("info") && !text.contains("debug"), "{status} {text}");
    let (status, _) = post(&world, "/logging?level=nonsense:loud").await?;
    ensure!((400..500).contains(&status), "{status}");
    assert_eq!(world.stage.get(15000, "/logging").await?.0, 405);
    Ok(())
}

/// 8.1: /quitquitquit ends the process in good order, by POST alone.
#[tokio::test(flavor = "multi_thread")]
async fn quit() -> Result<()> {
    let (mut world, _) = world().await?;
    assert_eq!(world.stage.get(15000, "/quitquitquit").await?.0, 405);
    ensure!(world.ztunnel.try_wait().is_none());
    assert_eq!(post(&world, "/quitquitquit").await?.0, 200);
    let status = world.ztunnel.wait()?;
    ensure!(status.success(), "{status}");
    Ok(())
}

/// 8.1: 15000 is on loopback only; 15020 and 15021 are open to the network; unknown paths are 404.
#[tokio::test(flavor = "multi_thread")]
async fn addresses() -> Result<()> {
    let (world, _) = world().await?;
    let elsewhere = world.stage.wire.pod(50)?;
    for (port, open) in [(15000, false), (15020, true), (15021, true)] {
        let to = SocketAddr::new(net::ipv4(1), port);
        assert_eq!(elsewhere.connect(to).await.is_ok(), open, "{port}");
    }
    world.stage.host.connect(SocketAddr::from((Ipv6Addr::LOCALHOST, 15000))).await.context("loopback over IPv6")?;
    for port in [15000, 15020, 15021] {
        assert_eq!(world.stage.get(port, "/nothing-here").await?.0, 404, "{port}");
    }
    let (status, page) = world.stage.get(15000, "/").await?;
    ensure!(status == 200 && page.contains("config_dump") && page.contains("<html"), "{status} {page}");
    Ok(())
}

/// 8.1: both paths give the metrics: as text, as OpenMetrics when accepted, compressed when accepted.
#[tokio::test(flavor = "multi_thread")]
async fn metrics_formats() -> Result<()> {
    let (world, _) = world().await?;
    for path in ["/metrics", "/stats/prometheus"] {
        let (head, body) = world.stage.http(15020, &format!("GET {path} HTTP/1.1")).await?;
        ensure!(head.to_lowercase().contains("content-type: text/plain"), "{head}");
        ensure!(String::from_utf8(body)?.contains("istio_build"), "{path}");
        let accept = "Accept: application/openmetrics-text;version=1.0.0";
        let (head, body) = world.stage.http(15020, &format!("GET {path} HTTP/1.1\r\n{accept}")).await?;
        ensure!(head.to_lowercase().contains("content-type: application/openmetrics-text"), "{head}");
        ensure!(String::from_utf8(body)?.trim_end().ends_with("# EOF"), "{path}");
        let (head, body) = world.stage.http(15020, &format!("GET {path} HTTP/1.1\r\nAccept-Encoding: gzip")).await?;
        ensure!(head.to_lowercase().contains("content-encoding: gzip"), "{head}");
        ensure!(body.starts_with(&[0x1f, 0x8b]), "{path} is not gzip");
    }
    Ok(())
}

/// 9: proxyAdminPort and statsPort of PROXY_CONFIG; 15021 is fixed.
#[tokio::test(flavor = "multi_thread")]
async fn ports_from_proxy_config() -> Result<()> {
    let mut stage = Stage::set()?;
    stage.var("PROXY_CONFIG", "proxyAdminPort: 16000\nstatsPort: 16020\n");
    let world = World::start(stage, &[], &[]).await?;
    assert_eq!(world.stage.get(16000, "/config_dump").await?.0, 200);
    assert_eq!(world.stage.get(16020, "/metrics").await?.0, 200);
    ensure!(world.stage.get(15000, "/config_dump").await.is_err());
    Ok(())
}

/// 8.1: the profiles: a heap profile and a short CPU profile, as gzipped pprof.
#[tokio::test(flavor = "multi_thread")]
async fn pprof() -> Result<()> {
    let (world, _) = world().await?;
    let (head, body) = world.stage.http(15000, "GET /debug/pprof/profile?seconds=1&frequency=100 HTTP/1.1").await?;
    ensure!(head.contains(" 200 ") && body.starts_with(&[0x1f, 0x8b]), "{head}");
    let (head, _) = world.stage.http(15000, "GET /debug/pprof/heap/profiling?activate=true HTTP/1.1").await?;
    ensure!(head.contains(" 200 "), "{head}");
    let (head, body) = world.stage.http(15000, "GET /debug/pprof/heap HTTP/1.1").await?;
    ensure!(head.contains(" 200 ") && !body.is_empty(), "{head}");
    Ok(())
}
