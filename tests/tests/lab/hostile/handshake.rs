//! 15008 of a meshed pod: who gets past the handshake.

use std::sync::Arc;

use anyhow::{Context, Result};
use aquifer_lab::{Lab, LabOptions};
use rcgen::SanType;
use rustls::ClientConfig;
use rustls::version::{TLS12, TLS13};

use super::Bystander;
use crate::harness::{ORDERS, access_line_appears, meshed_shop, netns, node_netns};
use crate::mint::{self, Ca, client, refusal};

/// One who knocks, what the alert tells him, and what the log tells us.
struct Knock {
    name: &'static str,
    config: Arc<ClientConfig>,
    alert: &'static str,
    reason: &'static str,
    says: &'static str,
}

fn knocks(lab: &Lab) -> Result<Vec<Knock>> {
    let ours = Ca::of(lab)?;
    let mut expired = mint::leaf(&[ORDERS])?;
    expired.not_after = rcgen::date_time_ymd(2024, 1, 1);
    let mut early = mint::leaf(&[ORDERS])?;
    early.not_before = rcgen::date_time_ymd(2080, 1, 1);
    let mut named = mint::leaf(&[])?;
    named.subject_alt_names = vec![SanType::DnsName("orders.shop.svc.cluster.local".try_into()?)];
    let mut server_only = mint::leaf(&[ORDERS])?;
    server_only.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ServerAuth];
    let outsider = ours.workload(&["spiffe://cluster.local/ns/outside/sa/client"])?.into_ca()?;
    let shows = |minted: mint::Minted| client(Some(&minted), &[&TLS13]);
    let invalid = "peer_certificate_invalid";
    let knock = |name, config, alert, reason, says| Knock { name, config, alert, reason, says };
    Ok(vec![
        knock(
            "no certificate",
            client(None, &[&TLS13])?,
            "CertificateRequired",
            "peer_certificate_missing",
            "no certificates",
        ),
        knock("expired", shows(ours.sign(expired)?)?, "CertificateExpired", invalid, "expired"),
        knock("not valid yet", shows(ours.sign(early)?)?, "CertificateExpired", invalid, "not valid yet"),
        knock("self-signed", shows(mint::self_signed(&[ORDERS])?)?, "UnknownCA", invalid, "UnknownIssuer"),
        knock(
            "another CA of the same name",
            shows(Ca::stranger()?.workload(&[ORDERS])?)?,
            "",
            invalid,
            "invalid peer certificate",
        ),
        knock("signed by a workload", shows(outsider.workload(&[ORDERS])?)?, "", invalid, "invalid peer certificate"),
        knock("for servers only", shows(ours.sign(server_only)?)?, "", invalid, "invalid peer certificate"),
        knock(
            "foreign trust domain",
            shows(ours.workload(&["spiffe://evil.example/ns/shop/sa/orders"])?)?,
            "",
            invalid,
            "is not of trust domain cluster.local",
        ),
        knock(
            "foreign trust domain before our own",
            shows(ours.workload(&["spiffe://evil.example/ns/shop/sa/orders", ORDERS])?)?,
            "",
            invalid,
            "is not of trust domain cluster.local",
        ),
        knock("a DNS name only", shows(ours.sign(named)?)?, "", invalid, "no SPIFFE identity"),
        knock("no SAN at all", shows(ours.workload(&[])?)?, "", invalid, "no SPIFFE identity"),
        knock(
            "a longer path",
            shows(ours.workload(&["spiffe://cluster.local/ns/shop/sa/orders/admin"])?)?,
            "",
            invalid,
            "no SPIFFE identity",
        ),
        knock(
            "TLS 1.2",
            client(Some(&ours.workload(&[ORDERS])?), &[&TLS12])?,
            "ProtocolVersion",
            "tls_failed",
            "TLS12_ENABLED",
        ),
    ])
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_gets_in_without_a_certificate_of_the_mesh() -> Result<()> {
    let lab = meshed_shop(LabOptions::default()).await?;
    let bystander = Bystander::start(&lab).await?;
    let payments = lab.pod("shop", "payments").await?;
    let outside = netns(&lab, &lab.pod("outside", "client").await?)?;
    let (near, far) = (node_netns(&lab, "node2").await?, node_netns(&lab, "node1").await?);
    let v6 = payments.ipv6().context("dual stack")?;
    let places = [
        ("pod", &outside, payments.ipv4()),
        ("pod, IPv6", &outside, v6),
        ("own node", &near, payments.ipv4()),
        ("node", &far, payments.ipv4()),
    ];
    for knock in knocks(&lab)? {
        for (place, netns, ip) in &places {
            let what = format!("{} from a {place}", knock.name);
            let (error, port) = refusal(netns, (*ip, 15008).into(), &knock.config).await.context(what.clone())?;
            println!("{what}: {error}");
            assert!(error.contains("alert") && error.contains(knock.alert), "{what}: {error}");
            // With all it says: another knock, from another address, may have had that port.
            let (port, reason) = (format!(":{port} "), format!("reason=\"{}\"", knock.reason));
            let texts = [&*port, "connection failed", "direction=\"inbound\"", &reason, knock.says];
            access_line_appears(&lab, "node2", &texts).await.context(what)?;
        }
    }
    // Not because nobody gets in at all.
    let good = client(Some(&Ca::of(&lab)?.workload(&[ORDERS])?), &[&TLS13])?;
    let let_in = refusal(&outside, (payments.ipv4(), 15008).into(), &good).await;
    assert_eq!(let_in.expect_err("a good certificate").to_string(), "let in");
    bystander.unharmed().await
}
