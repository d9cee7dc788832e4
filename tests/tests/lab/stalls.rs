//! Readers that stop in the middle, and another transfer on the same pooled connection.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use aquifer_lab::{Component, Lab, LabOptions, PodInfo};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

use crate::bytes::{self, receive};
use crate::harness::{connect, in_pod, listen, raw, service_ips};

const PORT: u16 = 7007;
const STALLED: usize = 5;
const TOTAL: usize = 50_000_000;
const PATIENCE: Duration = Duration::from_secs(60);
/// Of each proxy, by what it had before: five streams in our windows and our send buffers, what two transfers need, and
/// the allocator's slack.
const MEMORY: u64 = 40 << 20;

/// Sends, and gives back what it sent by, open still.
async fn send(mut to: TcpStream, stream: usize, total: usize) -> Result<TcpStream> {
    bytes::send(&mut to, stream, total).await?;
    Ok(to)
}

/// Established connections to 15008 from within a pod's network namespace.
fn tunnels(lab: &Lab, pod: &PodInfo) -> Result<usize> {
    in_pod(lab, pod, || {
        let files = ["/proc/thread-self/net/tcp", "/proc/thread-self/net/tcp6"].map(std::fs::read_to_string);
        let lines: Vec<String> =
            files.into_iter().flatten().flat_map(|t| t.lines().map(str::to_owned).collect::<Vec<_>>()).collect();
        // 15008 is 3AA0, ESTABLISHED is 01.
        let open = |line: &&String| {
            let fields: Vec<&str> = line.split_whitespace().collect();
            fields.get(2).is_some_and(|remote| remote.ends_with(":3AA0")) && fields.get(3) == Some(&"01")
        };
        lines.iter().filter(open).count()
    })
}

async fn memory(lab: &Lab) -> Result<[u64; 2]> {
    let near = lab.stats(Component::ztunnel("node1")).await?.rss_bytes;
    Ok([near, lab.stats(Component::ztunnel("node2")).await?.rss_bytes])
}

async fn pair(lab: &Lab, client: &PodInfo, listener: &TcpListener, to: SocketAddr) -> Result<(TcpStream, TcpStream)> {
    let near = connect(lab, client, to)?;
    let (far, _) = timeout(PATIENCE, listener.accept()).await.context("nothing arrived")??;
    Ok((near, far))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn five_readers_that_stop_do_not_slow_a_sixth_on_their_connection() -> Result<()> {
    // One worker, so one pool; and no connections beside those that are needed.
    let options = LabOptions { workers: Some(1), ..LabOptions::default() };
    let lab = raw(options.ztunnel_var("POOL_SPARE_CONNECTIONS", "0")).await?;
    let client = lab.pod("raw", "a").await?;
    let listener = listen(&lab, &lab.pod("raw", "b").await?, PORT)?;
    let to: SocketAddr = (service_ips(&lab, "raw", "b").await?[0], 7).into();
    for upload in [true, false] {
        let direction = if upload { "client to server" } else { "server to client" };
        let turned = |(near, far)| if upload { (near, far) } else { (far, near) };

        let alone = {
            let (source, mut sink) = turned(pair(&lab, &client, &listener, to).await?);
            let begin = Instant::now();
            let both = async { tokio::try_join!(send(source, 0, TOTAL), receive(&mut sink, 0, 0, TOTAL)) };
            timeout(PATIENCE, both).await.context("alone")??;
            begin.elapsed()
        };
        let before = memory(&lab).await?;

        let mut stalled = Vec::new();
        for stream in 1..=STALLED {
            let (source, mut sink) = turned(pair(&lab, &client, &listener, to).await?);
            let sender = tokio::spawn(send(source, stream, TOTAL));
            // In the middle of the transfer, no more.
            timeout(PATIENCE, receive(&mut sink, stream, 0, 1_000_000)).await.context("the first megabyte")??;
            stalled.push((sender, sink));
        }
        let (source, mut sink) = turned(pair(&lab, &client, &listener, to).await?);
        let begin = Instant::now();
        let both = async { tokio::try_join!(send(source, 6, TOTAL), receive(&mut sink, 6, 0, TOTAL)) };
        timeout(PATIENCE * 2, both)
            .await
            .with_context(|| format!("{direction}: the sixth is stuck behind the stalled"))??;
        let beside = begin.elapsed();
        let after = memory(&lab).await?;
        let open = tunnels(&lab, &client)?;
        println!(
            "{direction}: 50 MB alone in {alone:?}, beside five stalled in {beside:?}, on {open} connection(s); memory of \
             both proxies {before:?} before, {after:?} after"
        );
        assert_eq!(open, 1, "all on one connection");
        assert!(stalled.iter().all(|(sender, _)| !sender.is_finished()), "they are stalled indeed");
        let bound = alone * 4 + Duration::from_secs(2);
        assert!(beside < bound * 5, "{direction}: {beside:?}, {alone:?} alone (bound {bound:?})");
        for (before, after) in before.into_iter().zip(after) {
            assert!(after <= before + MEMORY, "{direction}: {before} bytes before, {after} after");
        }
        // They read again: nothing was lost meanwhile.
        for (at, (sender, mut sink)) in stalled.into_iter().enumerate() {
            let rest = receive(&mut sink, at + 1, 1_000_000, TOTAL);
            timeout(PATIENCE, rest).await.with_context(|| format!("{direction}: stream {at} does not go on"))??;
            sender.await??;
        }
    }
    Ok(())
}
