//! Bytes: what goes in comes out, in order, whole, with its ends where the application put them.

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use aquifer_lab::{Lab, LabOptions, PodInfo};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

use crate::bytes;
use crate::harness::{access_line_appears, connect, eventually, listen, raw, service_ips};

/// What the Service's port 7 leads to in the pod.
const ECHO: u16 = 7007;
const PATIENCE: Duration = Duration::from_secs(60);

struct Pair {
    client: PodInfo,
    listener: TcpListener,
    vips: Vec<IpAddr>,
}

/// A client pod, and a listener in the pod behind the Service.
async fn pair(lab: &Lab, server: &str) -> Result<Pair> {
    let pod = lab.pod("raw", server).await?;
    Ok(Pair {
        client: lab.pod("raw", "a").await?,
        listener: listen(lab, &pod, ECHO)?,
        vips: service_ips(lab, "raw", server).await?,
    })
}

impl Pair {
    async fn connected(&self, lab: &Lab, to: SocketAddr) -> Result<(TcpStream, TcpStream, SocketAddr)> {
        let client = connect(lab, &self.client, to)?;
        let (server, from) = timeout(PATIENCE, self.listener.accept()).await.context("nothing arrived")??;
        Ok((client, server, from))
    }
}

/// Sends, and says that this is all.
async fn send(mut to: OwnedWriteHalf, stream: usize, total: usize) -> Result<()> {
    bytes::send(&mut to, stream, total).await?;
    Ok(to.shutdown().await?)
}

/// Reads all of the stream, and nothing after it.
async fn receive(mut from: OwnedReadHalf, stream: usize, total: usize) -> Result<()> {
    bytes::receive(&mut from, stream, 0, total).await?;
    ensure!(from.read(&mut [0]).await? == 0, "more than was sent");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_megabytes_each_way_at_once_arrive_whole() -> Result<()> {
    const TOTAL: usize = 100_000_000;
    let lab = raw(LabOptions::default()).await?;
    for server in ["b", "c"] {
        let pair = pair(&lab, server).await?;
        let (client, other, _) = pair.connected(&lab, (pair.vips[0], 7).into()).await?;
        let (client_reads, client_writes) = client.into_split();
        let (server_reads, server_writes) = other.into_split();
        let up = async { tokio::try_join!(send(client_writes, 1, TOTAL), receive(server_reads, 1, TOTAL)) };
        let down = async { tokio::try_join!(send(server_writes, 2, TOTAL), receive(client_reads, 2, TOTAL)) };
        let both = async {
            tokio::try_join!(async { up.await.with_context(|| format!("client to {server}")) }, async {
                down.await.with_context(|| format!("{server} to client"))
            })
        };
        timeout(PATIENCE * 3, both).await.context("not done in 3 minutes")??;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn either_side_may_close_its_half_first() -> Result<()> {
    let lab = raw(LabOptions::default()).await?;
    for server in ["b", "c"] {
        let pair = pair(&lab, server).await?;
        for client_first in [true, false] {
            let (client, other, _) = pair.connected(&lab, (pair.vips[0], 7).into()).await?;
            let (mut first, mut second) = if client_first { (client, other) } else { (other, client) };
            first.write_all(b"question").await?;
            first.shutdown().await?;
            let mut heard = Vec::new();
            timeout(PATIENCE, second.read_to_end(&mut heard))
                .await
                .context("the end of the first half did not arrive")??;
            assert_eq!(heard, b"question");
            // The other half still carries bytes, long after.
            for _ in 0..3 {
                second.write_all(b"answer").await?;
                let mut part = [0; 6];
                timeout(PATIENCE, first.read_exact(&mut part)).await.context("the open half is dead")??;
                assert_eq!(&part, b"answer");
            }
            second.shutdown().await?;
            let mut rest = Vec::new();
            timeout(PATIENCE, first.read_to_end(&mut rest))
                .await
                .context("the end of the second half did not arrive")??;
            assert!(rest.is_empty());
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_server_sees_the_client_s_own_address_in_both_families() -> Result<()> {
    let lab = raw(LabOptions::default()).await?;
    let server = lab.pod("raw", "b").await?;
    let pair = pair(&lab, "b").await?;
    let by_pod = server.ips.iter().map(|ip| SocketAddr::new(*ip, ECHO));
    let by_service = pair.vips.iter().map(|ip| SocketAddr::new(*ip, 7));
    let targets: Vec<SocketAddr> = by_pod.chain(by_service).collect();
    assert!(targets.iter().any(SocketAddr::is_ipv6) && targets.iter().any(SocketAddr::is_ipv4));
    for to in targets {
        let (mut client, mut other, from) = pair.connected(&lab, to).await.with_context(|| format!("to {to}"))?;
        assert_eq!(from.ip().is_ipv6() && from.ip().to_canonical().is_ipv6(), to.is_ipv6());
        assert!(pair.client.ips.contains(&from.ip().to_canonical()), "{to}: the server saw {from}");
        other.write_all(b"hello").await?;
        let mut heard = [0; 5];
        timeout(PATIENCE, client.read_exact(&mut heard)).await??;
    }
    let v6 = pair.client.ipv6().context("IPv6")?;
    // IPv6 rode HBONE as well.
    access_line_appears(&lab, "node2", &["direction=\"inbound\"", &v6.to_string()]).await?;
    Ok(())
}

/// Who takes longer has met nobody: our proxies give a silent host ten seconds.
const SILENCE: Duration = Duration::from_secs(9);

/// How a connection to where nobody answers ends for the client.
#[derive(Debug, PartialEq, Eq)]
enum End {
    /// Refused at once, or accepted and reset: the application sees an error.
    Refused,
    /// Nothing for a while, then an error.
    TimedOut,
    /// An orderly end, as if the server had been there and had nothing to say.
    Orderly,
}

async fn end_of(lab: &Lab, client: &PodInfo, to: SocketAddr) -> Result<(End, Duration)> {
    let begin = std::time::Instant::now();
    let error = match connect(lab, client, to) {
        Err(error) => error.downcast::<std::io::Error>()?.kind(),
        Ok(mut stream) => {
            let mut byte = [0; 1];
            match timeout(PATIENCE, stream.read(&mut byte)).await.context("no end within a minute")? {
                Ok(_) => return Ok((End::Orderly, begin.elapsed())),
                Err(error) => error.kind(),
            }
        }
    };
    let end = match error {
        ErrorKind::ConnectionRefused | ErrorKind::ConnectionReset if begin.elapsed() < SILENCE => End::Refused,
        _ => End::TimedOut,
    };
    Ok((end, begin.elapsed()))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_closed_port_and_a_silent_host_look_as_they_do_without_a_mesh() -> Result<()> {
    ends(true).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_mesh_a_closed_port_refuses_and_a_silent_host_is_silent() -> Result<()> {
    ends(false).await
}

/// The same three targets with the mesh and without: a closed port by Service and by address, and a silent host.
async fn ends(mesh: bool) -> Result<()> {
    let silent: SocketAddr = "198.18.99.99:80".parse()?;
    let lab = match mesh {
        true => raw(LabOptions::default()).await?,
        false => {
            let lab = crate::harness::lab(LabOptions::plain()).await?;
            lab.apply(crate::harness::RAW).await?;
            lab.wait_namespace_ready("raw").await?;
            lab
        }
    };
    let drop = "add table inet hole; add chain inet hole f { type filter hook forward priority -300; }; \
                add rule inet hole f ip daddr 198.18.99.99 drop";
    assert!(lab.node_exec("node1", &["nft", drop]).await?.ok());
    let client = lab.pod("raw", "a").await?;
    let vip = service_ips(&lab, "raw", "b").await?[0];
    let pod = lab.pod("raw", "b").await?.ipv4();
    for (to, expect) in
        [(SocketAddr::new(vip, 81), End::Refused), (SocketAddr::new(pod, 8181), End::Refused), (silent, End::TimedOut)]
    {
        let (end, took) = end_of(&lab, &client, to).await?;
        println!("mesh {mesh}, {to}: {end:?} after {took:?}");
        assert_eq!(end, expect, "mesh {mesh}, {to}");
    }
    lab.down().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_connections_at_once_all_get_their_own_answer() -> Result<()> {
    const COUNT: usize = 1000;
    for workers in [1, 2] {
        let lab = raw(LabOptions { workers: Some(workers), ..LabOptions::default() }).await?;
        let pair = pair(&lab, "b").await?;
        let to = SocketAddr::new(pair.vips[0], 7);
        let (pod, netns) = (pair.client.clone(), crate::harness::netns(&lab, &pair.client)?);
        let echo = tokio::task::spawn(async move {
            let mut held = tokio::task::JoinSet::new();
            for _ in 0..COUNT {
                let (mut stream, _) = pair.listener.accept().await?;
                held.spawn(async move {
                    let (mut read, mut write) = stream.split();
                    tokio::io::copy(&mut read, &mut write).await
                });
            }
            while let Some(done) = held.join_next().await {
                done??;
            }
            anyhow::Ok(())
        });
        // Not on a thread of the server's: nobody would take what waits in its queue.
        let connect = move || {
            crate::harness::in_netns(&netns, move || {
                let one = |_| std::net::TcpStream::connect_timeout(&to, PATIENCE);
                (0..COUNT).map(one).collect::<std::io::Result<Vec<_>>>()
            })
        };
        let clients = tokio::task::spawn_blocking(connect).await??.with_context(|| pod.name)?;
        let mut streams = Vec::new();
        for client in clients {
            client.set_nonblocking(true)?;
            streams.push(TcpStream::from_std(client)?);
        }
        // All are open before the first one speaks.
        for (at, stream) in streams.iter_mut().enumerate() {
            stream.write_all(&(at as u64).to_le_bytes()).await?;
        }
        for (at, stream) in streams.iter_mut().enumerate() {
            let mut answer = [0; 8];
            timeout(PATIENCE, stream.read_exact(&mut answer)).await.with_context(|| format!("connection {at}"))??;
            assert_eq!(u64::from_le_bytes(answer), at as u64);
        }
        drop(streams);
        timeout(PATIENCE, echo).await.context("the server's side did not end")???;
        lab.down().await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_speaks_first_is_heard() -> Result<()> {
    let lab = raw(LabOptions::default()).await?;
    // A real SMTP server; curl is the mail client. It waits for the server's greeting before it says a word.
    let port = ECHO.to_string();
    let _server = lab.spawn(
        "raw",
        "b",
        &["msmtpd", "--interface=0.0.0.0", &format!("--port={port}"), "--command=cat > /tmp/mail; true"],
    )?;
    let vip = service_ips(&lab, "raw", "b").await?[0];
    let script = format!(
        "printf 'From: a@shop\\r\\nTo: b@shop\\r\\nSubject: hi\\r\\n\\r\\nhello there\\r\\n' > /tmp/m; \
         for i in $(seq 100); do curl -sv -m 10 smtp://{vip}:7 --mail-from a@shop --mail-rcpt b@shop -T /tmp/m && exit 0; sleep 0.2; done; exit 1"
    );
    let output = lab.exec("raw", "a", &["sh", "-c", &script]).await?;
    assert!(output.ok(), "{}", output.stderr);
    assert!(output.stderr.contains("< 220"), "no greeting: {}", output.stderr);
    eventually("the mail is there", Duration::from_secs(1), async || {
        Ok(lab.exec("raw", "b", &["cat", "/tmp/mail"]).await?.stdout.contains("hello there"))
    })
    .await?;
    // It rode HBONE.
    access_line_appears(&lab, "node1", &["direction=\"outbound\"", "sa/b"]).await?;
    Ok(())
}
