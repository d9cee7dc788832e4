//! Section 2: the node agent's packets, and what the proxy does with them.

use std::fs::File;
use std::os::fd::AsFd;
use std::time::Duration;

use anyhow::{Result, ensure};
use nix::sys::signal::Signal;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::peer::h2::Stream;
use crate::peer::hpack;
use crate::peer::net::Netns;
use crate::peer::protobuf::Message;
use crate::peer::tunnel::Client;
use crate::peer::wds::{ADDRESS, AUTHORIZATION};
use crate::peer::world::{Pod, Stage, World};
use crate::peer::zds;
use crate::peer::{until, within};

/// Short: the longest that the agent itself would wait for something unsolicited is 10 ms.
const A_MOMENT: Duration = Duration::from_millis(400);

/// The TCP ports that somebody listens on in the namespace.
pub(crate) fn listening(netns: &Netns) -> Result<Vec<u16>> {
    let tables = netns.run(|| {
        ["/proc/thread-self/net/tcp", "/proc/thread-self/net/tcp6"]
            .map(|path| std::fs::read_to_string(path).unwrap_or_default())
    })?;
    let mut ports = Vec::new();
    for line in tables.iter().flat_map(|table| table.lines().skip(1)) {
        let fields: Vec<&str> = line.split_whitespace().collect();
        if fields.get(3) == Some(&"0A")
            && let Some(port) = fields[1].rsplit(':').next().and_then(|port| u16::from_str_radix(port, 16).ok())
        {
            ports.push(port);
        }
    }
    ports.sort_unstable();
    ports.dedup();
    Ok(ports)
}

fn captured(netns: &Netns) -> Result<bool> {
    let ports = listening(netns)?;
    Ok([15001, 15006, 15008].iter().all(|port| ports.contains(port)))
}

fn released(netns: &Netns) -> Result<bool> {
    let ports = listening(netns)?;
    Ok(![15001, 15006, 15008].iter().any(|port| ports.contains(port)))
}

/// A tunnel through a local pod's 15008 to an application there: client, its stream, the application's end.
pub(crate) async fn tunnel(world: &World, from: &Pod, to: &Pod, port: u16) -> Result<(Client, Stream, TcpStream)> {
    let app = to.netns.listen(to.at(port))?;
    let client = world.dial(from, to).await?;
    let (mut stream, headers) = client.connect(&to.at(port).to_string(), &[]).await?;
    ensure!(hpack::value(&headers, ":status") == Some("200"), "answered {headers:?}");
    let (mut accepted, _) = within("the application's connection", app.accept()).await??;
    stream.data(b"over", false);
    let mut buffer = [0; 4];
    within("bytes", accepted.read_exact(&mut buffer)).await??;
    accepted.write_all(b"back").await?;
    ensure!(stream.read(4).await? == b"back");
    Ok((client, stream, accepted))
}

/// Whether the application's end was closed.
async fn cut(app: &mut TcpStream) -> Result<()> {
    let mut buffer = [0; 16];
    match within("the application's end", app.read(&mut buffer)).await? {
        Ok(0) | Err(_) => Ok(()),
        Ok(length) => anyhow::bail!("{length} bytes instead of an end"),
    }
}

/// A world with one local pod and one remote one, both known.
async fn one_pod() -> Result<(World, Pod, Pod)> {
    let stage = Stage::set()?;
    let (pod, peer) = (stage.local(2, "here")?, stage.remote(3, "there")?);
    let resources = [pod.workload.resource(), peer.workload.resource()];
    Ok((World::start(stage, &[&pod], &resources).await?, pod, peer))
}

/// 2.4, traps 2 and 28: the agent is dialled only when both types were answered and acked.
#[tokio::test(flavor = "multi_thread")]
async fn dialled_after_both_types() -> Result<()> {
    let mut stage = Stage::set()?;
    let _ztunnel = stage.start()?;
    let mut ads = stage.istiod.ads().await?;
    for _ in 0..2 {
        ads.request().await?;
    }
    ensure!(stage.agent.accept_within(A_MOMENT)?.is_none(), "dialled before any answer");
    ads.accepted(ADDRESS, &[], &[]).await?;
    ensure!(stage.agent.accept_within(A_MOMENT)?.is_none(), "dialled before the policies");
    let (status, text) = stage.get(15021, "/healthz/ready").await?;
    ensure!(status == 500 && text.starts_with("not ready, pending: "), "{status} {text}");
    ads.accepted(AUTHORIZATION, &[], &[]).await?;
    stage.agent.accept()?.hello()
}

/// 2.4, 8.1: from its start to its first sync the proxy is never ready.
#[tokio::test(flavor = "multi_thread")]
async fn never_ready_before_the_first_sync() -> Result<()> {
    let stage = Stage::set()?;
    let _ztunnel = stage.start()?;
    let begin = std::time::Instant::now();
    let mut answers = 0;
    while answers == 0 || begin.elapsed() < Duration::from_secs(2) {
        if let Ok((status, text)) = stage.get(15021, "/healthz/ready").await {
            ensure!(status == 500, "{status} {text} after {:?}", begin.elapsed());
            answers += 1;
        }
    }
    Ok(())
}

/// 2.2: the hello comes first, once, without an answer; then the proxy is silent until it is asked.
#[tokio::test(flavor = "multi_thread")]
async fn hello_then_silence() -> Result<()> {
    let mut stage = Stage::set()?;
    let _ztunnel = stage.start()?;
    stage.istiod.ads().await?.first(&[], &[]).await?;
    let link = stage.agent.accept()?;
    link.hello()?;
    ensure!(link.silent_for(A_MOMENT)?, "unsolicited");
    link.accepted(&zds::snapshot_sent(), &[])?;
    ensure!(link.silent_for(A_MOMENT)?, "unsolicited after the snapshot");
    Ok(())
}

/// 2.3, trap 3: one answer for each request, each in a packet of its own, in order, even when requests pile up.
#[tokio::test(flavor = "multi_thread")]
async fn lockstep() -> Result<()> {
    let (world, _, _) = one_pod().await?;
    let more = [world.stage.local(4, "four")?, world.stage.local(5, "five")?];
    for pod in &more {
        world.link.send(&pod.add().0, &[pod.netns.fd()])?;
    }
    world.link.send(&zds::del(&more[0].uid()).0, &[])?;
    for _ in 0..3 {
        let packet = world.link.receive()?.expect("an answer");
        assert_eq!(packet.bytes, [0x0a, 0], "an ack without an error, as recorded");
    }
    ensure!(world.link.silent_for(A_MOMENT)?, "a fourth answer");
    until("the fourth pod let go", async || released(&more[0].netns)).await?;
    ensure!(captured(&more[1].netns)?, "the fifth pod captured");
    Ok(())
}

/// 1.5: the three listeners stand in the pod's namespace when the Add is acked, marked 1337, on IPv4 and IPv6.
#[tokio::test(flavor = "multi_thread")]
async fn listeners_of_a_pod() -> Result<()> {
    let (_world, pod, peer) = one_pod().await?;
    ensure!(captured(&pod.netns)?, "{:?}", listening(&pod.netns)?);
    let sockets = pod.netns.command(&["ss", "-Htlne"], "")?;
    for port in [":15001", ":15006", ":15008"] {
        let lines: Vec<&str> = sockets.lines().filter(|line| line.contains(port)).collect();
        ensure!(!lines.is_empty(), "no {port} in {sockets}");
        ensure!(lines.iter().all(|line| line.contains("fwmark:0x539")), "marks: {lines:?}");
    }
    for ip in [pod.ip(), pod.ip6()] {
        peer.netns.connect((ip, 15008).into()).await?;
    }
    Ok(())
}

/// 1.5: with IPV6_ENABLED=false the listeners are on IPv4 alone.
#[tokio::test(flavor = "multi_thread")]
async fn listeners_without_ipv6() -> Result<()> {
    let mut stage = Stage::set()?;
    stage.var("IPV6_ENABLED", "false");
    let pod = stage.local(2, "here")?;
    let _world = World::start(stage, &[&pod], &[pod.workload.resource()]).await?;
    let table = pod.netns.run(|| std::fs::read_to_string("/proc/thread-self/net/tcp6").unwrap_or_default())?;
    let v6 = table.lines().skip(1).filter(|line| line.contains(":3AA0 ") || line.contains(":3A99 ")).count();
    assert_eq!(v6, 0, "{table}");
    ensure!(captured(&pod.netns)?);
    Ok(())
}

/// 2.4: an Add for a known uid with the same namespace is acked and changes nothing.
#[tokio::test(flavor = "multi_thread")]
async fn add_again() -> Result<()> {
    let (world, pod, peer) = one_pod().await?;
    let (_client, mut stream, mut app) = tunnel(&world, &peer, &pod, 8080).await?;
    // The same namespace through another descriptor: told by inode and device.
    let same = pod.netns.run(|| File::open("/proc/thread-self/ns/net"))??;
    world.link.accepted(&pod.add(), &[same.as_fd()])?;
    app.write_all(b"still").await?;
    ensure!(stream.read(5).await? == b"still");
    let started = async || world.metric("workload_manager_proxies_started_total", &[]).await;
    until("a started proxy is counted", async || Ok(started().await? >= 1.0)).await?;
    assert_eq!(started().await?, 1.0);
    Ok(())
}

/// 2.4: an Add for a known uid with another namespace drops the old proxy at once and starts a new one.
#[tokio::test(flavor = "multi_thread")]
async fn add_with_another_namespace() -> Result<()> {
    let (world, pod, peer) = one_pod().await?;
    let (_client, _stream, mut app) = tunnel(&world, &peer, &pod, 8080).await?;
    let other = world.stage.local(7, "here")?;
    world.link.accepted(&other.add(), &[other.netns.fd()])?;
    cut(&mut app).await?;
    until("the old namespace let go", async || released(&pod.netns)).await?;
    ensure!(captured(&other.netns)?);
    Ok(())
}

/// 2.4, trap 4: a Del cuts open connections at once.
#[tokio::test(flavor = "multi_thread")]
async fn del_cuts() -> Result<()> {
    let (world, pod, peer) = one_pod().await?;
    let (client, _stream, mut app) = tunnel(&world, &peer, &pod, 8080).await?;
    world.link.accepted(&zds::del(&pod.uid()), &[])?;
    cut(&mut app).await?;
    client.connection.closed().await?;
    until("the listeners gone", async || released(&pod.netns)).await?;
    ensure!(peer.netns.connect(pod.at(15008)).await.is_err(), "15008 still answers");
    Ok(())
}

/// 2.4: a lost agent changes nothing for running proxies; the proxy dials again and says hello again.
#[tokio::test(flavor = "multi_thread")]
async fn disconnect_and_keep() -> Result<()> {
    let (mut world, pod, peer) = one_pod().await?;
    let (_client, mut stream, mut app) = tunnel(&world, &peer, &pod, 8080).await?;
    let gone = world.stage.local(4, "gone")?;
    world.link.accepted(&gone.add(), &[gone.netns.fd()])?;
    world.link.close()?;
    world.link = world.stage.agent.accept()?;
    world.link.hello()?;
    ensure!(captured(&pod.netns)? && captured(&gone.netns)?, "running proxies stay");
    world.link.accepted(&zds::keep(&pod.uid()), &[])?;
    ensure!(captured(&gone.netns)?, "nothing goes before the snapshot's end");
    world.link.accepted(&zds::snapshot_sent(), &[])?;
    until("the pod that was not named let go", async || released(&gone.netns)).await?;
    app.write_all(b"kept").await?;
    ensure!(stream.read(4).await? == b"kept", "the kept pod's connection goes on");
    world.ready().await
}

/// 2.4: a Del during the snapshot takes the pod out of it.
#[tokio::test(flavor = "multi_thread")]
async fn del_within_the_snapshot() -> Result<()> {
    let mut stage = Stage::set()?;
    let pod = stage.local(2, "here")?;
    let _ztunnel = stage.start()?;
    stage.istiod.ads().await?.first(&[pod.workload.resource()], &[]).await?;
    let link = stage.agent.accept()?;
    link.hello()?;
    link.accepted(&pod.add(), &[pod.netns.fd()])?;
    link.accepted(&zds::del(&pod.uid()), &[])?;
    link.accepted(&zds::snapshot_sent(), &[])?;
    until("the pod let go", async || released(&pod.netns)).await
}

/// 2.4: not ready before the snapshot's end, and the text names what is awaited.
#[tokio::test(flavor = "multi_thread")]
async fn readiness_waits_for_the_snapshot() -> Result<()> {
    let mut stage = Stage::set()?;
    let _ztunnel = stage.start()?;
    stage.istiod.ads().await?.first(&[], &[]).await?;
    let link = stage.agent.accept()?;
    link.hello()?;
    until("only the snapshot is awaited", async || {
        let (status, text) = stage.get(15021, "/healthz/ready").await?;
        ensure!(status == 500, "{status} {text}");
        Ok(text.trim() == "not ready, pending: workload proxy manager")
    })
    .await?;
    link.accepted(&zds::snapshot_sent(), &[])?;
    until("readiness", async || Ok(stage.get(15021, "/healthz/ready").await?.0 == 200)).await?;
    assert_eq!(stage.get(15021, "/healthz/ready").await?.1.trim(), "ready");
    Ok(())
}

/// 2.4: what cannot be started is refused with a short text, kept pending (not ready), and the connection stays; a
/// Del ends it. The other pods do not suffer.
#[tokio::test(flavor = "multi_thread")]
async fn start_failure() -> Result<()> {
    let (world, pod, peer) = one_pod().await?;
    let no_namespace = File::open("/dev/null")?;
    let error = world.link.request(&zds::add("bad", "bad", "app", "bad"), &[no_namespace.as_fd()])?;
    ensure!(error.contains("failure to start proxy"), "nack: {error:?}");
    ensure!(error.len() < 500, "a short text: {error}");
    until("not ready", async || Ok(world.stage.get(15021, "/healthz/ready").await?.0 == 500)).await?;
    let pending = async || world.metric("workload_manager_pending_proxy_count", &[]).await;
    until("a pending pod", async || Ok(pending().await? == 1.0)).await?;
    tunnel(&world, &peer, &pod, 8080).await?;
    world.link.accepted(&zds::del("bad"), &[])?;
    world.ready().await
}

/// 2.2, 2.4: a message that breaks the rules is refused with a short text, and the proxy dials anew.
async fn broken(send: impl AsyncFnOnce(&World, &Pod) -> Result<()>) -> Result<()> {
    let (mut world, pod, peer) = one_pod().await?;
    let (_client, mut stream, mut app) = tunnel(&world, &peer, &pod, 8080).await?;
    send(&world, &pod).await?;
    // A nack if possible, then the end.
    if let Some(packet) = world.link.receive()? {
        ensure!(packet.bytes.len() < 500, "a nack of {} bytes", packet.bytes.len());
        ensure!(packet.bytes != [0x0a, 0] && packet.bytes.first() == Some(&0x0a), "a nack, not {:02x?}", packet.bytes);
        ensure!(world.link.receive()?.is_none(), "more after the nack");
    }
    world.link = world.stage.agent.accept()?;
    world.link.hello()?;
    world.link.accepted(&pod.add(), &[pod.netns.fd()])?;
    world.link.accepted(&zds::snapshot_sent(), &[])?;
    app.write_all(b"unharmed").await?;
    ensure!(stream.read(8).await? == b"unharmed");
    world.ready().await
}

#[tokio::test(flavor = "multi_thread")]
async fn add_without_a_descriptor() -> Result<()> {
    broken(async |world, _| world.link.send(&zds::add("x", "x", "app", "x").0, &[])).await
}

#[tokio::test(flavor = "multi_thread")]
async fn add_without_workload_info() -> Result<()> {
    broken(async |world, pod| {
        let add = Message::new().message(1, &Message::new().string(1, "x"));
        world.link.send(&add.0, &[pod.netns.fd()])
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn del_with_a_descriptor() -> Result<()> {
    broken(async |world, pod| world.link.send(&zds::del("x").0, &[pod.netns.fd()])).await
}

#[tokio::test(flavor = "multi_thread")]
async fn garbage() -> Result<()> {
    broken(async |world, _| world.link.send(&[0xff; 40], &[])).await
}

#[tokio::test(flavor = "multi_thread")]
async fn too_large_a_packet() -> Result<()> {
    broken(async |world, pod| world.link.send(&zds::add("x", &"n".repeat(1100), "app", "x").0, &[pod.netns.fd()])).await
}

/// 2.2: a packet of exactly 1024 bytes is allowed.
#[tokio::test(flavor = "multi_thread")]
async fn largest_packet() -> Result<()> {
    let (world, _, _) = one_pod().await?;
    let pod = world.stage.local(4, "large")?;
    let fit = |length: usize| zds::add("large", &"n".repeat(length), "app", "x");
    let add = (800..1024).map(fit).find(|add| add.0.len() == 1024).expect("a length that fits");
    world.link.accepted(&add, &[pod.netns.fd()])
}

/// 2.3: Keep after the snapshot, or a second SnapshotSent, is a protocol error: never acked.
#[tokio::test(flavor = "multi_thread")]
async fn keep_and_snapshot_after_the_snapshot() -> Result<()> {
    for message in [zds::keep("uid-of-here"), zds::snapshot_sent()] {
        let (world, _, _) = one_pod().await?;
        world.link.send(&message.0, &[])?;
        if let Some(packet) = world.link.receive()? {
            ensure!(packet.bytes != [0x0a, 0], "acked {message:?}");
        }
    }
    Ok(())
}

/// 2.4: SIGTERM closes the listeners at once; what is open drains.
#[tokio::test(flavor = "multi_thread")]
async fn sigterm_drains() -> Result<()> {
    let mut stage = Stage::set()?;
    stage.var("CONNECTION_TERMINATION_DEADLINE", "8s");
    let (pod, peer) = (stage.local(2, "here")?, stage.remote(3, "there")?);
    let resources = [pod.workload.resource(), peer.workload.resource()];
    let mut world = World::start(stage, &[&pod], &resources).await?;
    let (_client, mut stream, mut app) = tunnel(&world, &peer, &pod, 8080).await?;
    let begin = std::time::Instant::now();
    world.ztunnel.signal(Signal::SIGTERM)?;
    until("the listeners gone", async || released(&pod.netns)).await?;
    if begin.elapsed() < Duration::from_secs(4) {
        app.write_all(b"drain").await?;
        ensure!(stream.read(5).await? == b"drain", "an open connection drains");
    }
    cut(&mut app).await?;
    ensure!(begin.elapsed() >= Duration::from_millis(7900), "cut after {:?}, before the deadline", begin.elapsed());
    world.ztunnel.wait()?;
    Ok(())
}

/// 8.2: the in-pod metrics, whose names have no `istio_` before them.
#[tokio::test(flavor = "multi_thread")]
async fn in_pod_metrics() -> Result<()> {
    let (world, pod, _) = one_pod().await?;
    let metric = async |name: &str| world.metric(name, &[]).await;
    for (name, expected) in [
        ("workload_manager_active_proxy_count", 1.0),
        ("workload_manager_pending_proxy_count", 0.0),
        ("workload_manager_proxies_started_total", 1.0),
    ] {
        until(name, async || Ok(metric(name).await? == expected)).await?;
    }
    world.link.accepted(&zds::del(&pod.uid()), &[])?;
    until("no active proxy", async || Ok(metric("workload_manager_active_proxy_count").await? == 0.0)).await?;
    until("a stopped proxy", async || Ok(metric("workload_manager_proxies_stopped_total").await? == 1.0)).await
}
