//! What somebody sees who listens between the nodes.

use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context, Result};
use aquifer_lab::{Component, Lab, LabOptions, Packet, Pcap};

use super::ports::knock;
use crate::harness::{access_line_appears, eventually, get, meshed_shop, netns};

const STRICT: &str = include_str!("../../../../examples/shop/policies/strict.yaml");
const ONLY_ORDERS: &str = include_str!("../../../../examples/shop/policies/payments-only-from-orders.yaml");

/// Every address of the mesh's pods.
async fn members(lab: &Lab) -> Result<Vec<IpAddr>> {
    let pods = lab.status().await?.pods;
    Ok(pods.into_iter().filter(|pod| pod.namespace == "shop").flat_map(|pod| pod.ips).collect())
}

/// Payloads from or to members that are no part of a TLS connection to 15008.
fn in_the_clear(seen: &Pcap, members: &[IpAddr]) -> Vec<String> {
    let of_members = seen.filter(|packet| members.iter().any(|ip| packet.has_ip(*ip)));
    let hbone = |packet: &Packet| packet.is_tcp() && packet.has_port(15008);
    // ICMPv6 finds neighbours; it carries nothing of anybody's.
    let stray = of_members
        .packets
        .iter()
        .filter(|packet| packet.protocol != 58 && !packet.payload.is_empty() && !hbone(packet));
    let mut found: Vec<String> = stray
        .map(|packet| format!("{} → {}: {:?}", packet.src, packet.dst, String::from_utf8_lossy(&packet.payload)))
        .collect();
    for flow in of_members.filter(hbone).flows() {
        // Each direction of a TLS connection is records: a handshake (22) first, of TLS 1.x.
        if !flow.payload.is_empty() && !flow.payload.starts_with(&[22, 3]) {
            found.push(format!("{} → {}: not TLS", flow.src, flow.dst));
        }
    }
    found
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn under_strict_nothing_of_the_mesh_is_in_the_clear_between_nodes() -> Result<()> {
    let lab = meshed_shop(LabOptions::default()).await?;
    lab.apply(STRICT).await?;
    let url = "http://payments/";
    eventually("STRICT holds", Duration::from_secs(1), async || {
        Ok(!get(&lab, "outside", "client", "http://payments.shop/").await?.ok())
    })
    .await?;
    let payments = lab.pod("shop", "payments").await?;
    let v6 = payments.ipv6().context("dual stack")?;
    let members = members(&lab).await?;
    let capture = lab.capture("node1").await?;

    let secret = "a-secret-between-pods";
    let direct = [url.to_owned(), format!("http://{}:8080/", payments.ipv4()), format!("http://[{v6}]:8080/")];
    for to in &direct {
        assert!(get(&lab, "shop", "orders", &format!("{to}{secret}")).await?.ok(), "{to}");
    }
    // Refused at the other end, by policy: the request has not crossed in the clear to learn that.
    lab.apply(ONLY_ORDERS).await?;
    eventually("the policy holds", Duration::from_secs(1), async || Ok(!get(&lab, "shop", "web", url).await?.ok()))
        .await?;
    for to in &direct {
        assert!(!get(&lab, "shop", "web", &format!("{to}{secret}")).await?.ok(), "{to}");
    }
    // Refused because nobody listens, and because there is no such address.
    assert!(!get(&lab, "shop", "orders", &format!("http://{}:9/{secret}", payments.ipv4())).await?.ok());
    // The proxies are gone, one after the other: then there is no way, and none in the clear either.
    for node in ["node2", "node1"] {
        lab.kill(Component::ztunnel(node), nix::sys::signal::Signal::SIGKILL as i32).await?;
        for to in &direct {
            let answer = get(&lab, "shop", "orders", &format!("{to}{secret}")).await?;
            assert!(!answer.ok(), "{to} without the proxy of {node}: {answer:?}");
        }
    }
    for node in ["node1", "node2"] {
        lab.start_component(Component::ztunnel(node)).await?;
    }
    eventually("traffic flows again", Duration::from_secs(5), async || {
        Ok(get(&lab, "shop", "orders", url).await?.ok())
    })
    .await?;

    let seen = capture.stop().await?;
    let tunnels = seen.filter(|packet| packet.has_port(15008) && packet.has_ip(payments.ipv4())).tcp_payloads().count();
    println!("{} packets, {tunnels} of them HBONE with payload", seen.packets.len());
    assert!(tunnels > 10, "the capture has seen the mesh at work");
    assert_eq!(in_the_clear(&seen, &members), Vec::<String>::new());
    for text in [secret, "GET /", payments.name.as_str(), "HTTP/1.1", "payments-only-from-orders"] {
        let of_members = seen.filter(|packet| members.iter().any(|ip| packet.has_ip(*ip)));
        assert!(!of_members.contains(text.as_bytes()), "{text:?} crosses the wire");
    }
    Ok(())
}

/// Somebody outside who speaks plaintext gives away his own words only: not one byte comes back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refused_stranger_learns_nothing() -> Result<()> {
    let lab = meshed_shop(LabOptions::default()).await?;
    lab.apply(STRICT).await?;
    eventually("STRICT holds", Duration::from_secs(1), async || {
        Ok(!get(&lab, "outside", "client", "http://payments.shop/").await?.ok())
    })
    .await?;
    let stranger = lab.pod("outside", "client").await?;
    let place = netns(&lab, &stranger)?;
    let (payments, cart) = (lab.pod("shop", "payments").await?, lab.pod("shop", "cart").await?);
    let capture = lab.capture("node1").await?;
    let inside =
        lab.capture_in(aquifer_lab::Netns::Pod { namespace: "shop".into(), name: "payments".into() }, "any").await?;
    let targets = [(payments.ipv4(), 8080), (payments.ipv6().context("dual stack")?, 8080), (cart.ipv4(), 6379)];
    for to in targets {
        let (answer, port) = knock(&place, to.into()).await?;
        assert!(answer.is_empty(), "{to:?}: {:?}", String::from_utf8_lossy(&answer));
        let from = if port == 0 { "direction=\"inbound\"".to_owned() } else { format!(":{port} ") };
        let line = access_line_appears(&lab, "node2", &[&from, "reason=\"policy_denied\""]).await?;
        assert!(line.contains("policy="), "{line}");
    }
    let (seen, inside) = (capture.stop().await?, inside.stop().await?);
    let back = seen.filter(|packet| packet.dst.ip() == stranger.ipv4() || Some(packet.dst.ip()) == stranger.ipv6());
    let members = members(&lab).await?;
    let spoken = back.tcp_payloads().filter(|packet| members.contains(&packet.src.ip())).count();
    assert_eq!(spoken, 0, "members answer a stranger");
    assert!(seen.packets.iter().any(|packet| packet.is_rst()), "the refusal is a reset");
    // The application has not seen him either: no connection reached its port past the proxy.
    let reached = inside
        .packets
        .iter()
        .filter(|packet| packet.is_syn() && packet.dst.port() == 8080 && packet.src.ip() == stranger.ipv4());
    println!("SYNs of the stranger seen in the pod: {}", reached.clone().count());
    let marked = inside.filter(|packet| packet.src.port() == 8080 && packet.dst.ip() == stranger.ipv4());
    assert_eq!(marked.tcp_payloads().count(), 0, "the application answered");
    Ok(())
}
