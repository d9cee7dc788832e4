//! Sections 3.1-3.3 and 3.10 from the caller's side: how the proxy dials 15008, and what it says there.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustls::NamedGroup;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::outbound::{Case, authority, endpoint_of, service};
use crate::peer::h2::{self, Frame};
use crate::peer::tunnel::Server;
use crate::peer::wds::Service;
use crate::peer::world::{Seen, Stage, World, first};
use crate::peer::{hello, hpack, net, pki, within};

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
    let begin = Instant::now();
    let _call = case.call((net::vip(1), 80)).await?;
    let mut accepted = case.server.accept().await?;
    let _stream = accepted.take().await?;
    accepted.connection.frame("a PING", |f| f.kind == h2::PING && !f.is_ack()).await?;
    let took = begin.elapsed();
    ensure!((Duration::from_secs(9)..Duration::from_secs(50)).contains(&took), "after {took:?}");
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
