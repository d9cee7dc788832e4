//! The proxy's own ports, addressed directly: no way in, no way around, no loop.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use aquifer_lab::{Component, Lab, LabOptions};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::Bystander;
use crate::harness::{
    access_line_appears, access_lines, access_lines_appear, connect_from, counted, meshed_shop, netns, node_netns,
};

/// Sends an HTTP request in the clear; what comes back, and from which port it was sent: 0 if it was reset that soon.
pub(super) async fn knock(netns: &Path, to: SocketAddr) -> Result<(Vec<u8>, u16)> {
    let mut tcp = match connect_from(netns, to) {
        Ok(tcp) => tcp,
        Err(error) => {
            println!("  {to}: {error:#}");
            return Ok((Vec::new(), 0));
        }
    };
    let port = tcp.local_addr()?.port();
    let mut answer = Vec::new();
    let exchange = async {
        // Either may fail: the refusal comes when it comes.
        let _ = tcp.write_all(b"GET / HTTP/1.1\r\nHost: payments\r\nConnection: close\r\n\r\n").await;
        let ended = tcp.read_to_end(&mut answer).await;
        println!("  {to} from port {port}: {ended:?}");
    };
    tokio::time::timeout(Duration::from_secs(25), exchange)
        .await
        .with_context(|| format!("{to}: still open after 25 s"))?;
    Ok((answer, port))
}

/// Lines that a node's proxy has written about connections.
async fn lines(lab: &Lab, node: &str) -> Result<usize> {
    Ok(access_lines(lab, node, &[]).await?.len())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_proxys_ports_lead_nowhere_from_outside() -> Result<()> {
    let lab = meshed_shop(LabOptions::default()).await?;
    let bystander = Bystander::start(&lab).await?;
    let payments = lab.pod("shop", "payments").await?;
    let v6 = payments.ipv6().context("dual stack")?;
    let place = async |name: &'static str, namespace: &str, pod: &str| -> Result<(&'static str, PathBuf)> {
        Ok((name, netns(&lab, &lab.pod(namespace, pod).await?)?))
    };
    let places = [
        place("a stranger", "outside", "client").await?,
        place("a member", "shop", "web").await?,
        place("a member on the same node", "shop", "cart").await?,
        ("another node", node_netns(&lab, "node1").await?),
        ("its own node", node_netns(&lab, "node2").await?),
    ];
    for (name, netns) in &places {
        for to in [payments.ipv4(), v6].into_iter().flat_map(|ip| [(ip, 15001), (ip, 15006)]) {
            let to = SocketAddr::from(to);
            println!("{name} → {to}");
            let (answer, _) = knock(netns, to).await?;
            assert!(answer.is_empty(), "{name} → {to}: {:?}", String::from_utf8_lossy(&answer));
        }
    }
    // The strangers' are refused where they arrive, the members' by the tunnel's end.
    // Only the node's own calls, as those of a kubelet, reach 15001 itself, which takes them for outbound ones.
    let illegal = ["reason=\"illegal_port\""];
    let told = access_lines_appear(&lab, "node2", 4 * places.len(), &illegal).await?;
    assert_eq!(told.len(), 4 * places.len(), "one line each: nothing went round");
    bystander.unharmed().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_enrolled_pod_cannot_call_its_own_proxy() -> Result<()> {
    let lab = meshed_shop(LabOptions::default()).await?;
    let web = lab.pod("shop", "web").await?;
    let inside = netns(&lab, &web)?;
    let v6 = web.ipv6().context("dual stack")?;
    let before = lines(&lab, "node1").await?;
    let addresses = [IpAddr::from(Ipv4Addr::LOCALHOST), Ipv6Addr::LOCALHOST.into(), web.ipv4(), v6];
    let proxy = Component::ztunnel("node1");
    let cpu = lab.stats(proxy.clone()).await?.cpu;
    for ip in addresses {
        for port in [15001, 15006, 15008] {
            let to = SocketAddr::new(ip, port);
            println!("web → {to}");
            let (answer, from) = knock(&inside, to).await?;
            // The TLS port may say that it wants TLS; none speaks HTTP.
            assert!(!answer.starts_with(b"HTTP"), "{to}: {:?}", String::from_utf8_lossy(&answer));
            if from != 0 {
                let reason = if port == 15008 { "reason=\"tls_failed\"" } else { "reason=" };
                let line = access_line_appears(&lab, "node1", &[&format!(":{from} "), reason]).await?;
                println!("  {}", line.split("src.addr").last().unwrap_or(&line));
            }
        }
    }
    let spent = lab.stats(proxy.clone()).await?.cpu - cpu;
    println!("the proxy spent {spent:?} on 12 of them");
    assert!(spent < Duration::from_secs(10), "{spent:?}: it talks to itself");
    counted(&lab, &proxy, "istio_tcp_sockets_open", &[], |open| open == 0.0).await?;
    // Nothing is open any more: whatever went round has its line.
    let wrote = lines(&lab, "node1").await? - before;
    assert!(wrote <= 3 * 12, "{wrote} connections of 12");
    Ok(())
}
