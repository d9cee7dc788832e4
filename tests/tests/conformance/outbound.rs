//! Sections 3.1-3.3, 3.7 and 3.10 from the caller's side: where a captured connection goes, and how.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustls::NamedGroup;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::peer::h2::{self, Frame};
use crate::peer::hello;
use crate::peer::hpack::{self, Headers};
use crate::peer::net::{self, OUTSIDE, OUTSIDE6};
use crate::peer::tunnel::Server;
use crate::peer::wds::{Gateway, Resource, Service, Workload};
use crate::peer::world::{App, Pod, Seen, Stage, World, exchange, first, greeted};
use crate::peer::{pki, within};

/// A world in which `here` (198.18.1.2) calls, and `there` (198.18.1.3, with `web.example` on 198.19.0.1) takes HBONE.
struct Case {
    world: World,
    here: Pod,
    there: Pod,
    server: Server,
}

fn service(name: &str, number: u8) -> Service {
    Service {
        name: name.into(),
        namespace: "app".into(),
        hostname: format!("{name}.example"),
        addresses: vec![net::vip(number)],
        ports: vec![(80, 8080)],
        ..Service::default()
    }
}

fn endpoint_of(workload: &mut Workload, service: &str, ports: &[(u16, u16)]) {
    workload.services.push((format!("app/{service}.example"), ports.to_vec()));
}

impl Case {
    async fn start() -> Result<Self> {
        Self::vary(|_, _, _| Ok(Vec::new())).await
    }

    /// Changes stage, `there` and its service, and adds resources.
    async fn vary(
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

    async fn call(&self, to: impl Into<SocketAddr>) -> Result<TcpStream> {
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
    async fn refused(&self, to: impl Into<SocketAddr>) -> Result<()> {
        let answer = greeted(&self.here.netns, to.into()).await?;
        ensure!(answer.is_none(), "answered {answer:?}");
        Ok(())
    }
}

fn authority(headers: &Headers) -> &str {
    hpack::value(headers, ":authority").unwrap_or_default()
}

/// 3.1: the ClientHello: no server name, `h2`, TLS 1.3 alone, the two AES suites, X25519MLKEM768 first with a key.
#[tokio::test(flavor = "multi_thread")]
async fn client_hello() -> Result<()> {
    let case = Case::start().await?;
    let _call = case.call((net::vip(1), 80)).await?;
    let accepted = case.server.accept().await?;
    let hello = &accepted.hello;
    ensure!(!hello.extensions.contains(&hello::SERVER_NAME), "a server name");
    assert_eq!(hello.alpn, ["h2"]);
    assert_eq!(hello.versions, [0x0304]);
    let mut suites = hello.suites.clone();
    suites.sort_unstable();
    assert_eq!(suites, [0x1301, 0x1302]);
    assert_eq!(hello.groups.first(), Some(&hello::X25519MLKEM768), "{:x?}", hello.groups);
    ensure!(hello.shares.contains(&hello::X25519MLKEM768));
    assert_eq!(accepted.group, NamedGroup::X25519MLKEM768);
    assert_eq!(accepted.identity()?, case.here.identity());
    Ok(())
}

/// 3.1: no resumption: a second connection to the same server offers no ticket.
#[tokio::test(flavor = "multi_thread")]
async fn no_resumption() -> Result<()> {
    let case = Case::vary(|stage, _, _| {
        stage.var("POOL_MAX_STREAMS_PER_CONNECTION", "1");
        Ok(Vec::new())
    })
    .await?;
    for _ in 0..2 {
        let mut call = case.call((net::vip(1), 80)).await?;
        let mut accepted = case.server.accept().await?;
        ensure!(!accepted.hello.extensions.contains(&hello::PRE_SHARED_KEY), "a ticket was offered");
        let (stream, _) = accepted.take().await?;
        stream.data(b"x", true);
        first(&mut call).await?;
    }
    Ok(())
}

/// 3.1: COMPLIANCE_POLICY=pqc offers X25519MLKEM768 alone.
#[tokio::test(flavor = "multi_thread")]
async fn pqc_policy() -> Result<()> {
    let case = Case::vary(|stage, _, _| {
        stage.var("COMPLIANCE_POLICY", "pqc");
        Ok(Vec::new())
    })
    .await?;
    let _call = case.call((net::vip(1), 80)).await?;
    assert_eq!(case.server.accept().await?.hello.groups, [hello::X25519MLKEM768]);
    Ok(())
}

/// 3.2: the client's SETTINGS as recorded, but for the window.
#[tokio::test(flavor = "multi_thread")]
async fn settings() -> Result<()> {
    let case = Case::start().await?;
    let _call = case.call((net::vip(1), 80)).await?;
    let accepted = case.server.accept().await?;
    let mut settings =
        accepted.connection.frame("SETTINGS", |f| f.kind == h2::SETTINGS && !f.is_ack()).await?.settings();
    settings.sort_unstable();
    assert_eq!(settings, [(2, 0), (4, 256 * 1024), (5, 1024 * 1024), (6, 16 * 1024)]);
    Ok(())
}

/// 3.2: the client's first PING comes after ten seconds.
#[tokio::test(flavor = "multi_thread")]
async fn ping() -> Result<()> {
    let case = Case::start().await?;
    let _call = case.call((net::vip(1), 80)).await?;
    let mut accepted = case.server.accept().await?;
    let begin = Instant::now();
    let _stream = accepted.take().await?;
    accepted.connection.frame("a PING", |f| f.kind == h2::PING && !f.is_ack()).await?;
    let took = begin.elapsed();
    ensure!((Duration::from_secs(8)..Duration::from_secs(16)).contains(&took), "after {took:?}");
    Ok(())
}

/// 3.3: the CONNECT's headers: these and no others, in what they say as recorded.
#[tokio::test(flavor = "multi_thread")]
async fn connect_headers() -> Result<()> {
    let case = Case::start().await?;
    let mut call = case.call((net::vip(1), 80)).await?;
    let caller = call.local_addr()?;
    let mut accepted = case.server.accept().await?;
    let (stream, headers) = accepted.take().await?;
    let mut names: Vec<&str> = headers.iter().map(|(name, _)| name.as_str()).collect();
    names.sort_unstable();
    assert_eq!(names, [":authority", ":method", "baggage", "forwarded", "traceparent"]);
    assert_eq!(hpack::value(&headers, ":method"), Some("CONNECT"));
    assert_eq!(authority(&headers), "198.18.1.3:8080");
    let baggage =
        "k8s.cluster.name=Kubernetes,k8s.namespace.name=app,k8s.pod.name=here,service.name=here-app,service.version=v7";
    assert_eq!(hpack::value(&headers, "baggage"), Some(baggage));
    assert_eq!(hpack::value(&headers, "forwarded"), Some(format!("for=\"{caller}\";host=web.example").as_str()));
    let trace = hpack::value(&headers, "traceparent").context("a traceparent")?.to_owned();
    ensure!(trace.len() == 55 && trace.starts_with("00-"), "{trace}");
    let parts: Vec<usize> = trace.split('-').map(str::len).collect();
    assert_eq!(parts, [2, 32, 16, 2]);
    ensure!(trace.bytes().all(|b| b == b'-' || b.is_ascii_digit() || (b'a'..=b'f').contains(&b)), "{trace}");
    stream.data(b"x", true);
    first(&mut call).await?;
    // Fresh for each connection; no host where no service was addressed.
    let _second = case.call((net::ipv4(3), 8080)).await?;
    let (_stream, headers) = accepted.take().await?;
    ensure!(hpack::value(&headers, "traceparent") != Some(trace.as_str()), "the same traceparent");
    let forwarded = hpack::value(&headers, "forwarded").context("forwarded")?;
    ensure!(forwarded.starts_with("for=\"198.18.1.2:") && !forwarded.contains("host"), "{forwarded}");
    Ok(())
}

/// 3.1, 3.7: the server must be who the workload is; a service's names are accepted beside it.
#[tokio::test(flavor = "multi_thread")]
async fn server_identity() -> Result<()> {
    let other = "spiffe://cluster.local/ns/app/sa/other";
    let stage = Stage::set()?;
    let (here, mut there) = (stage.local(2, "here")?, stage.remote(3, "there")?);
    endpoint_of(&mut there.workload, "web", &[(80, 8080)]);
    endpoint_of(&mut there.workload, "named", &[(80, 8080)]);
    let named = Service { subject_alt_names: vec![other.into()], ..service("named", 2) };
    let resources =
        [here.workload.resource(), there.workload.resource(), service("web", 1).resource(), named.resource()];
    let world = World::start(stage, &[&here], &resources).await?;
    let own = world.stage.ca.workload(other)?;
    let server = Server::bind(&there.netns, there.at(15008), own)?;
    let mut call = here.netns.connect((net::vip(1), 80).into()).await?;
    // The handshake fails at the client; whether the server's half still succeeds is a matter of timing.
    let refused = server.accept().await;
    if let Ok(accepted) = refused {
        accepted.connection.closed().await?;
        ensure!(!accepted.connection.frames().iter().any(|f| f.kind == h2::HEADERS), "a CONNECT to a stranger");
    }
    ensure!(!matches!(first(&mut call).await?, Seen::Bytes(_)));
    let mut call = here.netns.connect((net::vip(2), 80).into()).await?;
    let mut accepted = server.accept().await?;
    let (stream, _) = accepted.take().await?;
    stream.data(b"x", true);
    assert_eq!(first(&mut call).await?, Seen::Bytes(b"x".to_vec()));
    Ok(())
}

/// 3.1: the server's certificate must come from the CA.
#[tokio::test(flavor = "multi_thread")]
async fn server_of_another_ca() -> Result<()> {
    let stage = Stage::set()?;
    let (here, there) = (stage.local(2, "here")?, stage.remote(3, "there")?);
    let world = World::start(stage, &[&here], &[here.workload.resource(), there.workload.resource()]).await?;
    let own = pki::Ca::new()?.workload(&there.identity())?;
    let server = Server::bind(&there.netns, there.at(15008), own)?;
    let mut call = here.netns.connect(there.at(8080)).await?;
    if let Ok(accepted) = server.accept().await {
        accepted.connection.closed().await?;
        ensure!(!accepted.connection.frames().iter().any(|f| f.kind == h2::HEADERS), "a CONNECT to a stranger");
    }
    ensure!(!matches!(first(&mut call).await?, Seen::Bytes(_)));
    world.ztunnel.lines(&["\taccess\t", "direction=\"outbound\"", "error="], 1).await?;
    Ok(())
}

/// 3.3: anything but 200 is a failure.
#[tokio::test(flavor = "multi_thread")]
async fn other_statuses_fail() -> Result<()> {
    let case = Case::start().await?;
    let mut accepted = None;
    for status in ["401", "503", "400", "204", "302"] {
        let mut call = case.call((net::vip(1), 80)).await?;
        if accepted.is_none() {
            accepted = Some(case.server.accept().await?);
        }
        let (stream, _) = accepted.as_mut().context("a connection")?.connection.accept().await?;
        stream.headers(&[(":status", status)], true);
        ensure!(!matches!(first(&mut call).await?, Seen::Bytes(_)), "{status}");
    }
    Ok(())
}

/// 3.10: calls of one key share a connection; only two streams at a time where the peer allows no more.
#[tokio::test(flavor = "multi_thread")]
async fn pooling() -> Result<()> {
    let mut case = Case::start().await?;
    case.server.settings = vec![(3, 2)];
    let mut calls = Vec::new();
    let mut accepted = Vec::new();
    let mut streams = Vec::new();
    for n in 0..4 {
        calls.push(case.call((net::vip(1), 80)).await?);
        if n % 2 == 0 {
            accepted.push(case.server.accept().await?);
        }
        let last = accepted.last_mut().context("a connection")?;
        streams.push(last.take().await.with_context(|| format!("stream {n}"))?.0);
    }
    for (call, stream) in calls.iter_mut().zip(&streams) {
        stream.data(b"x", true);
        assert_eq!(first(call).await?, Seen::Bytes(b"x".to_vec()));
    }
    Ok(())
}

/// 3.10: POOL_MAX_STREAMS_PER_CONNECTION.
#[tokio::test(flavor = "multi_thread")]
async fn pool_limit() -> Result<()> {
    let case = Case::vary(|stage, _, _| {
        stage.var("POOL_MAX_STREAMS_PER_CONNECTION", "1");
        Ok(Vec::new())
    })
    .await?;
    let _first = case.call((net::vip(1), 80)).await?;
    let mut one = case.server.accept().await?;
    let _stream = one.take().await?;
    let _second = case.call((net::vip(1), 80)).await?;
    let mut two = case.server.accept().await?;
    let _stream = two.take().await?;
    Ok(())
}

/// 3.10, 9: an idle connection is released after POOL_UNUSED_RELEASE_TIMEOUT.
#[tokio::test(flavor = "multi_thread")]
async fn pool_release() -> Result<()> {
    let case = Case::vary(|stage, _, _| {
        stage.var("POOL_UNUSED_RELEASE_TIMEOUT", "2s");
        Ok(Vec::new())
    })
    .await?;
    let mut call = case.call((net::vip(1), 80)).await?;
    let mut accepted = case.server.accept().await?;
    let (stream, _) = accepted.take().await?;
    stream.data(b"x", true);
    let begin = Instant::now();
    let mut all = Vec::new();
    call.shutdown().await?;
    within("the end", call.read_to_end(&mut all)).await??;
    accepted.connection.closed().await?;
    let took = begin.elapsed();
    ensure!(took >= Duration::from_millis(1500), "released after {took:?}");
    Ok(())
}

/// 3.2: after GOAWAY open streams go on, and the next call dials anew.
#[tokio::test(flavor = "multi_thread")]
async fn goaway() -> Result<()> {
    let case = Case::start().await?;
    let mut old = case.call((net::vip(1), 80)).await?;
    let mut accepted = case.server.accept().await?;
    let (stream, _) = accepted.take().await?;
    let payload = [stream.id().to_be_bytes(), 0u32.to_be_bytes()].concat();
    accepted.connection.send(&Frame { kind: h2::GOAWAY, flags: 0, stream: 0, payload });
    stream.data(b"a", false);
    assert_eq!(first(&mut old).await?, Seen::Bytes(b"a".to_vec()));
    let _new = case.call((net::vip(1), 80)).await?;
    let mut next = case.server.accept().await?;
    next.take().await?;
    old.write_all(b"b").await?;
    let mut stream = stream;
    assert_eq!(stream.read(1).await?, b"b");
    Ok(())
}

/// 3.2: half-close in each direction, from the caller's side.
#[tokio::test(flavor = "multi_thread")]
async fn half_close() -> Result<()> {
    let case = Case::start().await?;
    let mut call = case.call((net::vip(1), 80)).await?;
    let mut accepted = case.server.accept().await?;
    let (mut stream, _) = accepted.take().await?;
    call.write_all(b"question").await?;
    call.shutdown().await?;
    assert_eq!(stream.read_to_end().await?, (b"question".to_vec(), None));
    stream.data(b"answer", true);
    let mut answer = Vec::new();
    within("the answer", call.read_to_end(&mut answer)).await??;
    assert_eq!(answer, b"answer");
    Ok(())
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

/// 3.7.1, 4.1, trap 15: a service's waypoint is dialled by HBONE whatever its workload says, the authority is the
/// address as called, and the waypoint must be who it is.
async fn through_a_waypoint(gateway: Gateway) -> Result<()> {
    let stage = Stage::set()?;
    let (here, mut there, mut waypoint) =
        (stage.local(2, "here")?, stage.remote(3, "there")?, stage.remote(4, "waypoint")?);
    endpoint_of(&mut there.workload, "web", &[(80, 8080)]);
    endpoint_of(&mut waypoint.workload, "wp", &[(15008, 15008)]);
    waypoint.workload.tunnel_protocol = 0;
    let web = Service { waypoint: Some(gateway), ..service("web", 1) };
    let wp = Service { ports: vec![(15008, 15008)], ..service("wp", 9) };
    let resources = [
        here.workload.resource(),
        there.workload.resource(),
        waypoint.workload.resource(),
        web.resource(),
        wp.resource(),
    ];
    let world = World::start(stage, &[&here], &resources).await?;
    let server = world.serve(&waypoint)?;
    let mut call = here.netns.connect((net::vip(1), 80).into()).await?;
    let mut accepted = server.accept().await?;
    assert_eq!(accepted.identity()?, here.identity());
    let (stream, headers) = accepted.take().await?;
    assert_eq!(authority(&headers), "198.19.0.1:80");
    stream.data(b"x", true);
    assert_eq!(first(&mut call).await?, Seen::Bytes(b"x".to_vec()));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn waypoint_by_hostname() -> Result<()> {
    through_a_waypoint(Gateway::Hostname("app", "wp.example", 15008)).await
}

#[tokio::test(flavor = "multi_thread")]
async fn waypoint_by_service_address() -> Result<()> {
    through_a_waypoint(Gateway::Ip(net::vip(9), 15008)).await
}

#[tokio::test(flavor = "multi_thread")]
async fn waypoint_by_workload_address() -> Result<()> {
    through_a_waypoint(Gateway::Ip(net::ipv4(4), 15008)).await
}

/// 3.7.1: a waypoint that cannot be resolved is a failure, never a bypass.
#[tokio::test(flavor = "multi_thread")]
async fn waypoint_that_is_unknown() -> Result<()> {
    for gateway in [Gateway::Hostname("app", "nowhere.example", 15008), Gateway::Ip(net::vip(77), 15008)] {
        let case = Case::vary(|_, there, web| {
            there.tunnel_protocol = 0;
            web.waypoint = Some(gateway.clone());
            Ok(Vec::new())
        })
        .await?;
        let _app = App::start(&case.there.netns, case.there.at(8080))?;
        case.refused((net::vip(1), 80)).await?;
    }
    Ok(())
}

/// 3.7: the waypoint's service must have the port, unless the endpoint has an application tunnel.
#[tokio::test(flavor = "multi_thread")]
async fn waypoint_without_the_port() -> Result<()> {
    let case = Case::vary(|_, there, web| {
        web.waypoint = Some(Gateway::Hostname("app", "wp.example", 15008));
        endpoint_of(there, "wp", &[(80, 80)]);
        Ok(vec![service("wp", 9).resource()])
    })
    .await?;
    case.refused((net::vip(1), 80)).await
}

/// 3.7.1: weighted waypoints go before `waypoint`; with a sum of 0 it is `waypoint`.
#[tokio::test(flavor = "multi_thread")]
async fn weighted_waypoints() -> Result<()> {
    for (weights, expected) in [([0, 100], 5), ([100, 0], 4), ([0, 0], 4)] {
        let stage = Stage::set()?;
        let here = stage.local(2, "here")?;
        let (primary, canary) = (stage.remote(4, "primary")?, stage.remote(5, "canary")?);
        let [to_primary, to_canary] = [4, 5].map(|number| Gateway::Ip(net::ipv4(number), 15008));
        let web = Service {
            waypoint: Some(to_primary.clone()),
            weighted: vec![(to_primary, weights[0]), (to_canary, weights[1])],
            ..service("web", 1)
        };
        let resources =
            [here.workload.resource(), primary.workload.resource(), canary.workload.resource(), web.resource()];
        let world = World::start(stage, &[&here], &resources).await?;
        let server = world.serve(if expected == 4 { &primary } else { &canary })?;
        let mut accepted = None;
        for _ in 0..6 {
            let mut call = here.netns.connect((net::vip(1), 80).into()).await?;
            if accepted.is_none() {
                accepted = Some(server.accept().await?);
            }
            let (stream, _) = accepted.as_mut().context("a connection")?.take().await?;
            stream.data(b"x", true);
            assert_eq!(first(&mut call).await?, Seen::Bytes(b"x".to_vec()), "{weights:?}");
        }
    }
    Ok(())
}

/// 3.7.4: a workload's waypoint serves calls to the pod's address, not those to a service; and the waypoint itself
/// goes directly.
#[tokio::test(flavor = "multi_thread")]
async fn workload_waypoint() -> Result<()> {
    let stage = Stage::set()?;
    let (here, mut there, waypoint) = (stage.local(2, "here")?, stage.remote(3, "there")?, stage.local(4, "waypoint")?);
    endpoint_of(&mut there.workload, "web", &[(80, 8080)]);
    there.workload.waypoint = Some(Gateway::Ip(net::ipv4(4), 15008));
    let resources = [
        here.workload.resource(),
        there.workload.resource(),
        waypoint.workload.resource(),
        service("web", 1).resource(),
    ];
    // The waypoint's own pod is captured, but its 15008 is played by the test.
    let world = World::start(stage, &[&here], &resources).await?;
    let at_waypoint = world.serve(&waypoint)?;
    let at_there = world.serve(&there)?;
    let _call = here.netns.connect(there.at(8080)).await?;
    let (_stream, headers) = at_waypoint.accept().await?.take().await?;
    assert_eq!(authority(&headers), "198.18.1.3:8080");
    let _call = here.netns.connect((net::vip(1), 80).into()).await?;
    let (_stream, headers) = at_there.accept().await?.take().await?;
    assert_eq!(authority(&headers), "198.18.1.3:8080");
    drop((at_waypoint, at_there));
    Ok(())
}

/// 3.7.4: the waypoint itself is not sent to itself.
#[tokio::test(flavor = "multi_thread")]
async fn waypoint_calls_directly() -> Result<()> {
    let stage = Stage::set()?;
    let (here, mut there) = (stage.local(2, "here")?, stage.remote(3, "there")?);
    there.workload.waypoint = Some(Gateway::Ip(net::ipv4(2), 15008));
    let world = World::start(stage, &[&here], &[here.workload.resource(), there.workload.resource()]).await?;
    let server = world.serve(&there)?;
    let _call = here.netns.connect(there.at(8080)).await?;
    let (_stream, headers) = server.accept().await?.take().await?;
    assert_eq!(authority(&headers), "198.18.1.3:8080");
    Ok(())
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
