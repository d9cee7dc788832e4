//! Section 7: the DNS proxy in the pod.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tokio::task::JoinSet;

use crate::peer::dns::{self, A, AAAA, CNAME, MX, Response, TXT};
use crate::peer::net::OUTSIDE;
use crate::peer::until;
use crate::peer::wds::{Resource, Service};
use crate::peer::world::{Pod, Stage, World};
use crate::zds::listening;

/// A pod in the namespace `app`, services of it and of others, and an upstream resolver outside that knows everything.
struct Case {
    world: World,
    here: Pod,
    _upstream: JoinSet<()>,
    asked: tokio::sync::mpsc::UnboundedReceiver<SocketAddr>,
}

fn service(name: &str, namespace: &str, hostname: &str, addresses: &[&str]) -> Service {
    Service {
        name: name.into(),
        namespace: namespace.into(),
        hostname: hostname.into(),
        addresses: addresses.iter().map(|ip| ip.parse().expect("an address")).collect(),
        ports: vec![(80, 8080)],
        ..Service::default()
    }
}

impl Case {
    async fn start() -> Result<Self> {
        let stage = Stage::set()?;
        let here = stage.local(2, "here")?;
        let mut there = stage.remote(3, "there")?;
        there.workload.services = vec![("app/headless.app.svc.cluster.local".into(), vec![(80, 8080)])];
        let resources: Vec<Resource> = [
            service("web", "app", "web.app.svc.cluster.local", &["198.19.0.1"]),
            service("far", "other", "far.other.svc.cluster.local", &["198.19.0.2", "fd00:19::2"]),
            service("headless", "app", "headless.app.svc.cluster.local", &[]),
            service("outer", "app", "outer.example", &["198.19.0.4"]),
            service("empty", "app", "empty.example", &[]),
            service("wild", "app", "*.wild.example", &["198.19.0.5"]),
            service("twice", "app", "twice.example", &["198.19.0.6"]),
            service("twice", "other", "twice.example", &["198.19.0.7"]),
            Service { ip_families: 1, ..service("four", "app", "four.example", &["198.19.0.8", "fd00:19::8"]) },
        ]
        .iter()
        .map(Service::resource)
        .chain([here.workload.resource(), there.workload.resource()])
        .collect();
        let socket = stage.wire.netns.udp((OUTSIDE, 53).into())?;
        let (tell, asked) = tokio::sync::mpsc::unbounded_channel();
        let mut _upstream = JoinSet::new();
        _upstream.spawn(async move {
            let mut buffer = vec![0; 4096];
            while let Ok((length, from)) = socket.recv_from(&mut buffer).await {
                let _ = tell.send(from);
                let kind =
                    buffer[..length].windows(4).rev().find(|b| b[2..] == [0, 1] && b[0] == 0).map_or(1, |b| b[1]);
                let data: &[u8] = if kind == 1 { &[192, 0, 2, 1] } else { &[3, b'a', b'n', b'y'] };
                let _ = socket.send_to(&dns::reply(&buffer[..length], kind.into(), data), from).await;
            }
        });
        let world = World::start(stage, &[&here], &resources).await?;
        Ok(Self { world, here, _upstream, asked })
    }

    async fn ask(&self, name: &str, kind: u16) -> Result<Response> {
        dns::ask(&self.here.netns, ([127, 0, 0, 1], 15053).into(), &dns::query(7, name, kind, None)).await
    }
}

/// 7: A and AAAA of service names: TTL 30, authoritative, recursion available; the wrong family is known and empty.
#[tokio::test(flavor = "multi_thread")]
async fn service_addresses() -> Result<()> {
    let case = Case::start().await?;
    let response = case.ask("web.app.svc.cluster.local", A).await?;
    assert_eq!((response.code(), response.data()), (0, vec!["198.19.0.1".to_owned()]));
    ensure!(response.authoritative() && response.recursion_available(), "{response:?}");
    let record = &response.answers[0];
    assert_eq!((record.kind, record.ttl, record.name.as_str()), (A, 30, "web.app.svc.cluster.local"));
    let response = case.ask("web.app.svc.cluster.local", AAAA).await?;
    assert_eq!((response.code(), response.answers.len()), (0, 0), "known, and empty: trap 35");
    assert_eq!(case.ask("far.other.svc.cluster.local", AAAA).await?.data(), ["fd00:19::2"]);
    assert_eq!(case.ask("OUTER.Example", A).await?.data(), ["198.19.0.4"], "names have no case");
    assert_eq!(case.ask("four.example", A).await?.data(), ["198.19.0.8"]);
    let response = case.ask("four.example", AAAA).await?;
    assert_eq!((response.code(), response.answers.len()), (0, 0), "ip_families");
    Ok(())
}

/// 7: short forms of a cluster name, from a pod of `app`.
#[tokio::test(flavor = "multi_thread")]
async fn short_names() -> Result<()> {
    let case = Case::start().await?;
    for (name, expected) in [
        ("web", "198.19.0.1"),
        ("web.app", "198.19.0.1"),
        ("web.app.svc", "198.19.0.1"),
        ("far.other", "198.19.0.2"),
        ("far.other.svc", "198.19.0.2"),
        ("twice.example", "198.19.0.6"),
    ] {
        assert_eq!(case.ask(name, A).await?.data(), [expected], "{name}");
    }
    Ok(())
}

/// 7: a search domain is taken off to find an external name, which a CNAME tells; not so for wildcards.
#[tokio::test(flavor = "multi_thread")]
async fn search_domains() -> Result<()> {
    let case = Case::start().await?;
    for domain in ["app.svc.cluster.local", "svc.cluster.local", "cluster.local"] {
        let name = format!("outer.example.{domain}");
        let response = case.ask(&name, A).await?;
        let first = response.answers.first().with_context(|| name.clone())?;
        assert_eq!((first.kind, first.name.as_str(), first.data.as_str()), (CNAME, name.as_str(), "outer.example"));
        assert_eq!((response.answers[1].kind, response.answers[1].data.as_str()), (A, "198.19.0.4"));
    }
    let response = case.ask("x.y.wild.example", A).await?;
    assert_eq!((response.answers.len(), response.data()), (1, vec!["198.19.0.5".to_owned()]));
    Ok(())
}

/// 7: headless: one address per endpoint of the family, for cluster names alone.
#[tokio::test(flavor = "multi_thread")]
async fn headless() -> Result<()> {
    let case = Case::start().await?;
    assert_eq!(case.ask("headless", A).await?.data(), ["198.18.1.3"]);
    assert_eq!(case.ask("headless.app.svc.cluster.local", AAAA).await?.data(), ["fd00:18:1::3"]);
    assert_eq!(case.ask("empty.example", A).await?.data(), ["192.0.2.1"], "goes upstream");
    Ok(())
}

/// 7, trap 35: what is not known, and every other type, goes to the resolver of ztunnel's resolv.conf, from the pod; the
/// names of pods are not known.
#[tokio::test(flavor = "multi_thread")]
async fn upstream() -> Result<()> {
    let mut case = Case::start().await?;
    for (name, kind) in [("unknown.example", A), ("there", A), ("web.app.svc.cluster.local", MX), ("web", TXT)] {
        let response = case.ask(name, kind).await?;
        let ttls: Vec<u32> = response.answers.iter().map(|answer| answer.ttl).collect();
        assert_eq!((response.code(), ttls.as_slice()), (0, [77].as_slice()), "{name}: {response:?}");
        let from = case.asked.recv().await.context("a query")?;
        assert_eq!(from.ip(), case.here.ip(), "{name}");
    }
    ensure!(case.asked.try_recv().is_err(), "asked more than once");
    Ok(())
}

/// 7: by UDP and by TCP, on both loopback addresses; EDNS comes back to whom it came from.
#[tokio::test(flavor = "multi_thread")]
async fn transports() -> Result<()> {
    let case = Case::start().await?;
    for ip in ["127.0.0.1", "::1"] {
        let server = SocketAddr::new(ip.parse()?, 15053);
        for edns in [None, Some(1232)] {
            let query = dns::query(9, "web", A, edns);
            for response in [
                dns::ask(&case.here.netns, server, &query).await?,
                dns::ask_tcp(&case.here.netns, server, &query).await?,
            ] {
                assert_eq!(
                    (response.id, response.data(), response.edns),
                    (9, vec!["198.19.0.1".into()], edns.is_some())
                );
            }
        }
    }
    Ok(())
}

/// 7: a client whose workload is not known gets SERVFAIL.
#[tokio::test(flavor = "multi_thread")]
async fn unknown_workload() -> Result<()> {
    let stage = Stage::set()?;
    let here = stage.local(2, "here")?;
    let web = service("web", "app", "web.app.svc.cluster.local", &["198.19.0.1"]);
    let _world = World::start(stage, &[&here], &[web.resource()]).await?;
    let response = dns::ask(&here.netns, ([127, 0, 0, 1], 15053).into(), &dns::query(1, "web", A, None)).await?;
    assert_eq!(response.code(), 2);
    Ok(())
}

/// 7: ISTIO_META_DNS_CAPTURE=false: no listener.
#[tokio::test(flavor = "multi_thread")]
async fn off_when_told_so() -> Result<()> {
    let mut stage = Stage::set()?;
    stage.var("ISTIO_META_DNS_CAPTURE", "false");
    let here = stage.local(2, "here")?;
    let _world = World::start(stage, &[&here], &[here.workload.resource()]).await?;
    ensure!(!listening(&here.netns)?.contains(&15053));
    Ok(())
}

/// 8.2: requests and forwarded ones are counted, by type and protocol and by who asked.
#[tokio::test(flavor = "multi_thread")]
async fn metrics() -> Result<()> {
    let case = Case::start().await?;
    case.ask("web", A).await?;
    case.ask("unknown.example", A).await?;
    let labels = [
        "request_query_type=\"a\"",
        "request_protocol=\"udp\"",
        "source_canonical_service=\"here-app\"",
        "source_canonical_revision=\"v7\"",
    ];
    for (name, expected) in [("istio_dns_requests_total", 2.0), ("istio_dns_upstream_requests_total", 1.0)] {
        let counted = until(name, async || Ok(case.world.metric(name, &labels).await? == expected)).await;
        let text = case.world.metrics().await?;
        let samples: Vec<&str> = text.lines().filter(|line| line.starts_with(name)).collect();
        counted.with_context(|| format!("{samples:#?}"))?;
    }
    for bucket in ["0.0005", "0.001", "0.01", "0.1", "1.0", "5.0", "+Inf"] {
        let le = format!("le=\"{bucket}\"");
        let found =
            |line: &str| line.starts_with("istio_dns_upstream_request_duration_seconds_bucket") && line.contains(&le);
        until(&format!("a bucket {bucket}"), async || Ok(case.world.metrics().await?.lines().any(found))).await?;
    }
    Ok(())
}

/// 7, 2.4: the DNS listeners go with the pod.
#[tokio::test(flavor = "multi_thread")]
async fn gone_with_the_pod() -> Result<()> {
    let case = Case::start().await?;
    ensure!(listening(&case.here.netns)?.contains(&15053));
    case.world.link.accepted(&crate::peer::zds::del(&case.here.uid()), &[])?;
    until("15053 closed", async || Ok(!listening(&case.here.netns)?.contains(&15053))).await?;
    // A pause that is the thing measured: an answer may not come any more.
    let socket = case.here.netns.udp((IpAddr::from([127, 0, 0, 1]), 0).into())?;
    socket.send_to(&dns::query(3, "web", A, None), ("127.0.0.1", 15053)).await?;
    let mut buffer = [0; 64];
    let answered = tokio::time::timeout(Duration::from_millis(300), socket.recv_from(&mut buffer)).await;
    ensure!(!matches!(answered, Ok(Ok(_))), "answered after the pod went");

    Ok(())
}
