//! Section 3.7: where a captured connection goes.

use std::net::SocketAddr;

use anyhow::{Context, Result, ensure};
use tokio::net::TcpStream;

use crate::peer::hpack::{self, Headers};
use crate::peer::net::{self, OUTSIDE, OUTSIDE6};
use crate::peer::tunnel::Server;
use crate::peer::wds::{Gateway, Resource, Service, Workload};
use crate::peer::world::{App, Pod, Seen, Stage, World, exchange, first, greeted};

/// A world in which `here` (198.18.1.2) calls, and `there` (198.18.1.3, with `web.example` on 198.19.0.1) takes HBONE.
pub(crate) struct Case {
    pub(crate) world: World,
    pub(crate) here: Pod,
    pub(crate) there: Pod,
    pub(crate) server: Server,
}

pub(crate) fn service(name: &str, number: u8) -> Service {
    Service {
        name: name.into(),
        namespace: "app".into(),
        hostname: format!("{name}.example"),
        addresses: vec![net::vip(number)],
        ports: vec![(80, 8080)],
        ..Service::default()
    }
}

pub(crate) fn endpoint_of(workload: &mut Workload, service: &str, ports: &[(u16, u16)]) {
    workload.services.push((format!("app/{service}.example"), ports.to_vec()));
}

impl Case {
    pub(crate) async fn start() -> Result<Self> {
        Self::vary(|_, _, _| Ok(Vec::new())).await
    }

    /// Changes stage, `there` and its service, and adds resources.
    pub(crate) async fn vary(
        change: impl FnOnce(&mut Stage, &mut Workload, &mut Service) -> Result<Vec<Resource>>,
    ) -> Result<Self> {
        let mut stage = Stage::set()?;
        let (here, mut there) = (stage.local(2, "here")?, stage.remote(3, "there")?);
        endpoint_of(&mut there.workload, "web", &[(80, 8080)]);
        let mut web = service("web", 1);
        let mut resources = change(&mut stage, &mut there.workload, &mut web)?;
        resources.extend([here.workload.resource(), there.workload.resource(), web.resource()]);
        let world = World::start(stage, &[&here], &resources).await?;
        let server = world.serve(&there)?;
        Ok(Self { world, here, there, server })
    }

    pub(crate) async fn call(&self, to: impl Into<SocketAddr>) -> Result<TcpStream> {
        self.here.netns.connect(to.into()).await
    }

    /// Calls, and takes the first CONNECT of a new connection: its headers, and bytes that came back.
    async fn tunnelled(&self, to: impl Into<SocketAddr>) -> Result<Headers> {
        let mut call = self.call(to).await?;
        let mut accepted = self.server.accept().await?;
        let (stream, headers) = accepted.take().await?;
        stream.data(b"through", true);
        assert_eq!(first(&mut call).await?, Seen::Bytes(b"through".to_vec()));
        Ok(headers)
    }

    /// The call ends without a byte, and nobody was dialled.
    pub(crate) async fn refused(&self, to: impl Into<SocketAddr>) -> Result<()> {
        let answer = greeted(&self.here.netns, to.into()).await?;
        ensure!(answer.is_none(), "answered {answer:?}");
        Ok(())
    }
}

pub(crate) fn authority(headers: &Headers) -> &str {
    hpack::value(headers, ":authority").unwrap_or_default()
}

/// 3.7.5: a pod's address: authority as called, no service.
#[tokio::test(flavor = "multi_thread")]
async fn pod_address() -> Result<()> {
    let case = Case::start().await?;
    assert_eq!(authority(&case.tunnelled((net::ipv4(3), 9999)).await?), "198.18.1.3:9999");
    Ok(())
}

/// 3.7: over IPv6, `[v6]:port`.
#[tokio::test(flavor = "multi_thread")]
async fn pod_address_ipv6() -> Result<()> {
    let case = Case::start().await?;
    let headers = case.tunnelled((net::ipv6(3), 9999)).await?;
    assert_eq!(authority(&headers), "[fd00:18:1::3]:9999");
    ensure!(hpack::value(&headers, "forwarded").context("forwarded")?.starts_with("for=\"[fd00:18:1::2]:"));
    Ok(())
}

/// 3.7.5: a workload outside the mesh: plain TCP, from the pod's own address.
#[tokio::test(flavor = "multi_thread")]
async fn plain_workload() -> Result<()> {
    let case = Case::vary(|_, there, _| {
        there.tunnel_protocol = 0;
        Ok(Vec::new())
    })
    .await?;
    let _app = App::start(&case.there.netns, case.there.at(8080))?;
    for to in [(net::ipv4(3), 8080), (net::vip(1), 80)] {
        let mut call = case.call(to).await?;
        assert_eq!(exchange(&mut call, b"abc").await?, b"hello 198.18.1.2\nabc", "{to:?}");
    }
    Ok(())
}

/// 3.7.2: what nobody knows is passed through to where it was sent.
#[tokio::test(flavor = "multi_thread")]
async fn unknown_destination() -> Result<()> {
    let case = Case::start().await?;
    let _app = App::start(&case.world.stage.wire.netns, (OUTSIDE, 4444).into())?;
    let _six = App::start(&case.world.stage.wire.netns, (OUTSIDE6, 4444).into())?;
    let mut call = case.call((OUTSIDE, 4444)).await?;
    assert_eq!(exchange(&mut call, b"abc").await?, b"hello 198.18.1.2\nabc");
    let mut call = case.call((OUTSIDE6, 4444)).await?;
    assert_eq!(exchange(&mut call, b"abc").await?, b"hello fd00:18:1::2\nabc");
    Ok(())
}

/// 3.7.2: a service without endpoints, or without that port, fails; it is never passed through.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_behind_a_service() -> Result<()> {
    let case = Case::vary(|_, _, _| Ok(vec![service("empty", 2).resource()])).await?;
    case.refused((net::vip(2), 80)).await?;
    case.refused((net::vip(1), 81)).await?;
    case.world.ztunnel.lines(&["warn\taccess\tconnection failed", "no healthy upstream"], 1).await?;
    Ok(())
}

/// 3.7.2, trap 32: load balancing PASSTHROUGH goes to the address as called, and telemetry names the service.
#[tokio::test(flavor = "multi_thread")]
async fn passthrough() -> Result<()> {
    let case = Case::vary(|_, _, _| {
        let addresses = vec![OUTSIDE];
        Ok(vec![Service { mode: 3, addresses, ..service("pass", 2) }.resource()])
    })
    .await?;
    let _app = App::start(&case.world.stage.wire.netns, (OUTSIDE, 80).into())?;
    let mut call = case.call((OUTSIDE, 80)).await?;
    assert_eq!(exchange(&mut call, b"abc").await?, b"hello 198.18.1.2\nabc");
    drop(call);
    case.world.ztunnel.lines(&["\taccess\t", "dst.service=\"pass.example\"", "dst.addr=198.18.9.9:80"], 1).await?;
    Ok(())
}

/// 3.7: target ports: of the workload's list first, which also resolves named ports (0).
#[tokio::test(flavor = "multi_thread")]
async fn target_ports() -> Result<()> {
    let case = Case::vary(|_, there, web| {
        web.ports = vec![(80, 0), (81, 0)];
        there.services = vec![("app/web.example".into(), vec![(80, 7777)])];
        Ok(Vec::new())
    })
    .await?;
    assert_eq!(authority(&case.tunnelled((net::vip(1), 80)).await?), "198.18.1.3:7777");
    case.refused((net::vip(1), 81)).await
}

/// Trap 16: an address that is both a pod's and a service's: the upstream is the service's.
#[tokio::test(flavor = "multi_thread")]
async fn service_before_workload() -> Result<()> {
    let case = Case::vary(|_, _, web| {
        web.addresses.push(net::ipv4(77));
        let both = Workload {
            name: "both".into(),
            namespace: "app".into(),
            addresses: vec![net::ipv4(77)],
            ..Workload::default()
        };
        Ok(vec![both.resource()])
    })
    .await?;
    assert_eq!(authority(&case.tunnelled((net::ipv4(77), 80)).await?), "198.18.1.3:8080");
    Ok(())
}

/// 3.7: a service address may be a range: the exact one first, then the longest prefix.
#[tokio::test(flavor = "multi_thread")]
async fn ranges() -> Result<()> {
    let case = Case::vary(|_, there, _| {
        let ranged = |name: &str, number, length, port: u16| Service {
            lengths: vec![length],
            ports: vec![(80, port)],
            ..service(name, number)
        };
        for (name, port) in [("wide", 1001), ("narrow", 1002), ("exact", 1003)] {
            endpoint_of(there, name, &[(80, port)]);
        }
        Ok(vec![
            ranged("wide", 64, 26, 1001).resource(),
            ranged("narrow", 96, 28, 1002).resource(),
            Service { ports: vec![(80, 1003)], ..service("exact", 97) }.resource(),
        ])
    })
    .await?;
    let mut accepted = None;
    for (to, port) in [(70, 1001), (98, 1002), (97, 1003), (127, 1001)] {
        let _call = case.call((net::vip(to), 80)).await?;
        if accepted.is_none() {
            accepted = Some(case.server.accept().await?);
        }
        let (_stream, headers) = accepted.as_mut().context("a connection")?.take().await?;
        assert_eq!(authority(&headers), format!("198.18.1.3:{port}"), "198.19.0.{to}");
    }
    Ok(())
}

/// 3.7: of services with one address, the caller's namespace first, then the canonical, and what is visible only to its
/// namespace is hidden from others.
#[tokio::test(flavor = "multi_thread")]
async fn service_choice() -> Result<()> {
    let case = Case::vary(|_, there, _| {
        let mut resources = Vec::new();
        let mut add = |namespace: &str, number: u8, port: u16, not_canonical: bool, visibility: u64| {
            let hostname = format!("choice{number}.example");
            there.services.push((format!("{namespace}/{hostname}"), vec![(80, port)]));
            let chosen = Service {
                namespace: namespace.into(),
                hostname,
                ports: vec![(80, port)],
                not_canonical,
                visibility,
                ..service("choice", number)
            };
            resources.push(chosen.resource());
        };
        // The caller's own namespace goes before a canonical one.
        add("other", 20, 2001, false, 0);
        add("app", 20, 2002, true, 0);
        // Canonical goes before the rest.
        add("b", 21, 2003, true, 0);
        add("c", 21, 2004, false, 0);
        // Hidden ones do not count.
        add("c", 22, 2005, false, 1);
        add("d", 22, 2006, true, 0);
        Ok(resources)
    })
    .await?;
    let mut accepted = None;
    for (to, port) in [(20, 2002), (21, 2004), (22, 2006)] {
        let _call = case.call((net::vip(to), 80)).await?;
        if accepted.is_none() {
            accepted = Some(case.server.accept().await?);
        }
        let (_stream, headers) = accepted.as_mut().context("a connection")?.take().await?;
        assert_eq!(authority(&headers), format!("198.18.1.3:{port}"), "198.19.0.{to}");
    }
    Ok(())
}

/// 3.7: no short cut between pods of one node: 15008 of the destination, with its identity and policy.
#[tokio::test(flavor = "multi_thread")]
async fn same_node() -> Result<()> {
    let stage = Stage::set()?;
    let (here, near) = (stage.local(2, "here")?, stage.local(3, "near")?);
    let world = World::start(stage, &[&here, &near], &[here.workload.resource(), near.workload.resource()]).await?;
    let _app = App::start(&near.netns, near.at(8080))?;
    let mut call = here.netns.connect(near.at(8080)).await?;
    assert_eq!(exchange(&mut call, b"abc").await?, b"hello 198.18.1.2\nabc");
    let mutual = |reporter| [reporter, "connection_security_policy=\"mutual_tls\""];
    for reporter in ["reporter=\"source\"", "reporter=\"destination\""] {
        crate::peer::until(reporter, async || {
            Ok(world.metric("istio_tcp_connections_closed_total", &mutual(reporter)).await? == 1.0)
        })
        .await?;
    }
    world.ztunnel.lines(&["\taccess\t", "dst.addr=198.18.1.3:15008", "dst.hbone_addr=198.18.1.3:8080"], 2).await?;
    Ok(())
}

/// 1.5: calling ztunnel's own ports on loopback is refused, and does not go round in circles.
#[tokio::test(flavor = "multi_thread")]
async fn illegal_targets() -> Result<()> {
    let case = Case::start().await?;
    for ip in ["127.0.0.1", "::1"] {
        case.refused((ip.parse::<std::net::IpAddr>()?, 15001)).await?;
    }
    let opened = case.world.metric("istio_tcp_connections_opened_total", &[]).await?;
    ensure!(opened <= 2.0, "{opened} connections opened");
    Ok(())
}

/// 3.7: a workload of another network is not reached by its address; one of host network is not known by its address.
#[tokio::test(flavor = "multi_thread")]
async fn other_networks_and_host_network() -> Result<()> {
    let case = Case::vary(|_, _, _| {
        let far = Workload {
            name: "far".into(),
            namespace: "app".into(),
            network: "far-away".into(),
            addresses: vec![net::ipv4(40)],
            tunnel_protocol: 1,
            ..Workload::default()
        };
        let host = Workload {
            name: "host".into(),
            network: String::new(),
            addresses: vec![net::ipv4(41)],
            host_network: true,
            ..far.clone()
        };
        Ok(vec![far.resource(), host.resource()])
    })
    .await?;
    for number in [40, 41] {
        let plain = case.world.stage.wire.pod(number)?;
        let _app = App::start(&plain, (net::ipv4(number), 5000).into())?;
        let mut call = case.call((net::ipv4(number), 5000)).await?;
        assert_eq!(exchange(&mut call, b"").await?, b"hello 198.18.1.2\n", "198.18.1.{number}");
    }
    Ok(())
}

/// 3.7.3: an endpoint of another network without double HBONE: refused with a reason of its own.
#[tokio::test(flavor = "multi_thread")]
async fn remote_network_is_refused() -> Result<()> {
    let case = Case::vary(|_, there, _| {
        there.services.clear();
        let mut far = Workload {
            name: "far".into(),
            namespace: "app".into(),
            network: "far-away".into(),
            tunnel_protocol: 1,
            network_gateway: Some(Gateway::Ip(net::ipv4(3), 15008)),
            ..Workload::default()
        };
        endpoint_of(&mut far, "web", &[(80, 8080)]);
        Ok(vec![far.resource()])
    })
    .await?;
    case.refused((net::vip(1), 80)).await?;
    case.world.ztunnel.lines(&["\taccess\t", "remote", "reason="], 1).await?;
    Ok(())
}

/// 3.7: dual stack: the address family of the call where the endpoint has it; else the other.
#[tokio::test(flavor = "multi_thread")]
async fn dual_stack() -> Result<()> {
    let vip6: std::net::IpAddr = "fd00:19::1".parse()?;
    let case = Case::vary(|_, there, web| {
        web.addresses.push(vip6);
        web.ip_families = 3;
        let mut only4 = there.clone();
        only4.services.clear();
        Ok(Vec::new())
    })
    .await?;
    assert_eq!(authority(&case.tunnelled((vip6, 80)).await?), "[fd00:18:1::3]:8080");
    assert_eq!(authority(&case.tunnelled((net::vip(1), 80)).await?), "198.18.1.3:8080");
    Ok(())
}

/// 3.7: ip_families leaves out the addresses of the other family.
#[tokio::test(flavor = "multi_thread")]
async fn ip_families() -> Result<()> {
    let vip6: std::net::IpAddr = "fd00:19::1".parse()?;
    let case = Case::vary(|_, _, web| {
        web.addresses.push(vip6);
        web.ip_families = 2;
        Ok(Vec::new())
    })
    .await?;
    assert_eq!(authority(&case.tunnelled((net::vip(1), 80)).await?), "[fd00:18:1::3]:8080");
    Ok(())
}
