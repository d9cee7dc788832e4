//! The root of the mesh makes way for another under load: `aquifer rotate-root`, followed by real proxies.

use std::fs;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use aquifer_istiod_lite::ca::rotation::request::{self, Status};
use aquifer_lab::{Component, Lab, LabOptions, Load};
use aquifer_objects::{Folder, Source};
use k8s_openapi::ByteString;
use nix::sys::signal::Signal;
use rustls::RootCertStore;
use rustls::crypto::aws_lc_rs;
use rustls::server::WebPkiClientVerifier;
use rustls::version::TLS13;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, UnixTime};
use serde_json::Value;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::process::Command;

use crate::harness::{ORDERS, eventually, freeze, meshed_shop, netns};
use crate::mint::{Ca, client, refusal};
use crate::rotation::{ping, redis};

/// In which a proxy that works takes a bundle, and the leader looks at the mesh a few times.
const LOOKS: Duration = Duration::from_secs(6);
/// Renewals are spread over 20 s and count 10 s later.
const RENEWED: Duration = Duration::from_secs(40);
const LONG: Duration = Duration::from_secs(60);

/// `aquifer rotate-root` on the lab's folder.
fn rotate_root(lab: &Lab, args: &[&str]) -> Result<Command> {
    let aquifer = std::env::current_exe()?.ancestors().nth(2).context("the folder of the binaries")?.join("aquifer");
    let mut command = Command::new(aquifer);
    command.arg("rotate-root").arg("--manifests").arg(lab.manifests()).args(args);
    command.env_remove("KUBECONFIG").stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    Ok(command)
}

/// What the leader says; nothing before its first word.
async fn told(lab: &Lab) -> Result<Status> {
    let object = Source::Folder(Folder::new(lab.manifests())).get(&request::key("istio-system")).await?;
    Ok(object.as_ref().and_then(request::status).unwrap_or_default())
}

async fn ztunnel_pod(lab: &Lab, node: &str) -> Result<String> {
    let component = Component::ztunnel(node);
    let components = lab.status().await?.components;
    let found = components.into_iter().find(|c| c.component == component).context("a ztunnel")?;
    Ok(format!("istio-system/{}", found.pod))
}

/// What is handed out to be trusted.
fn published(lab: &Lab) -> Result<Vec<CertificateDer<'static>>> {
    certificates(&fs::read(lab.root_cert())?)
}

fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>> {
    Ok(CertificateDer::pem_slice_iter(pem).collect::<Result<_, _>>()?)
}

/// Whether all that a node's proxy holds is of this root, and it trusts nothing else.
async fn is_all_of(lab: &Lab, node: &str, root: &CertificateDer<'static>) -> Result<bool> {
    let dump: Value = serde_json::from_str(&lab.ztunnel_admin(node, "/config_dump").await?)?;
    let held = dump["certificates"].as_array().context("certificates in the config dump")?;
    ensure!(!held.is_empty(), "{node} holds no certificates");
    let mut roots = RootCertStore::empty();
    roots.add(root.clone())?;
    let provider = Arc::new(aws_lc_rs::default_provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build()?;
    for entry in held {
        let (chain, trusted) = (chain(&entry["certChain"])?, chain(&entry["rootCerts"])?);
        let (leaf, above) = chain.split_first().context("a certificate")?;
        if trusted != [root.clone()] || verifier.verify_client_cert(leaf, above, UnixTime::now()).is_err() {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Certificates of the config dump: PEM once more in base64.
fn chain(entries: &Value) -> Result<Vec<CertificateDer<'static>>> {
    let mut all = Vec::new();
    for entry in entries.as_array().context("a list of certificates")? {
        let pem: ByteString = serde_json::from_value(entry["pem"].clone())?;
        all.extend(certificates(&pem.0)?);
    }
    Ok(all)
}

/// What `payments` says to whom this authority calls `orders`.
async fn knock(lab: &Lab, authority: &Ca) -> Result<String> {
    let outside = netns(lab, &lab.pod("outside", "client").await?)?;
    let config = client(Some(&authority.workload(&[ORDERS])?), &[&TLS13])?;
    let payments = lab.pod("shop", "payments").await?.ipv4();
    Ok(match refusal(&outside, (payments, 15008).into(), &config).await {
        Ok((alert, _)) => alert,
        Err(error) => error.to_string(),
    })
}

/// The proxy that stands still is `orders`' own, so that what is sent meanwhile waits in its queue and nobody fails.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_root_changes_under_load_and_waits_for_a_proxy_that_stands_still() -> Result<()> {
    // Less than the two minutes of a cluster, but more than none: a gate beside that of the proxies.
    let lab = meshed_shop(LabOptions::default().istiod_var("ROOT_ROTATION_MIN_OVERLAP", "2s")).await?;
    let mut open = redis(&lab).await?;
    let load = Load::patient(&lab, "shop", "orders", "http://payments/", 2, LONG)?;
    load.wait_answers(20, LONG).await?;
    let (old, old_root) = (Ca::of(&lab)?, published(&lab)?);
    assert_eq!(knock(&lab, &old).await?, "let in");

    let frozen = ztunnel_pod(&lab, "node1").await?;
    freeze(&lab, "node1").await?;
    let asked = OffsetDateTime::now_utc().unix_timestamp();
    let follower = rotate_root(&lab, &["--timeout", "10m"])?.spawn()?;
    let mut status = Status::default();
    // Alone: the replica, the other proxy and the mounted files are done.
    eventually("only the frozen proxy is waited for", LOOKS, async || {
        status = told(&lab).await?;
        ensure!(matches!(status.phase.as_str(), "" | "overlap"), "it went on without {frozen}: {status:?}");
        Ok(status.lagging.len() == 1 && status.lagging[0].who == frozen)
    })
    .await
    .with_context(|| format!("{status:?}"))?;
    let lag = &status.lagging[0];
    assert_eq!(lag.why, "has not acknowledged the bundle of both roots");
    assert!((asked..=OffsetDateTime::now_utc().unix_timestamp()).contains(&lag.since), "{asked}: {lag:?}");
    assert_eq!((status.trusted.len(), published(&lab)?.len()), (2, 2), "{status:?}");
    let said = rotate_root(&lab, &["--status"])?.output().await?;
    let text = String::from_utf8_lossy(&said.stdout);
    let since = OffsetDateTime::from_unix_timestamp(lag.since)?.format(&Rfc3339)?;
    assert_eq!(said.status.code(), Some(2), "{said:?}");
    assert!(text.contains(&format!("{frozen} since {since}: {}", lag.why)), "{text}");
    let old_signer = status.signer.clone();
    assert_eq!(told(&lab).await?.phase, "overlap");

    lab.kill(Component::ztunnel("node1"), Signal::SIGCONT as i32).await?;
    eventually("the proxy has followed, the new root signs", LOOKS, async || {
        status = told(&lab).await?;
        Ok(status.phase == "cut-over")
    })
    .await
    .with_context(|| format!("{status:?}"))?;
    assert_ne!(status.signer, old_signer);
    eventually("the new root alone is trusted", RENEWED, async || {
        // The connection of before is used all the time.
        ping(&mut open).await?;
        status = told(&lab).await?;
        Ok(status.phase == "completed")
    })
    .await
    .with_context(|| format!("{status:?}"))?;
    let followed = tokio::time::timeout(LONG, follower.wait_with_output()).await??;
    assert_eq!(followed.status.code(), Some(0), "{followed:?}");
    println!("{}", String::from_utf8_lossy(&followed.stdout));

    let mut new_root = Vec::new();
    eventually("the new root alone is handed out", LOOKS, async || {
        new_root = published(&lab)?;
        Ok(new_root.len() == 1)
    })
    .await?;
    assert_ne!(new_root, old_root);
    for node in ["node1", "node2"] {
        let what = format!("{node} has certificates of the new root, and trusts it alone");
        eventually(&what, LOOKS, async || is_all_of(&lab, node, &new_root[0]).await).await?;
    }
    let refused = knock(&lab, &old).await?;
    assert!(refused.contains("alert"), "one of the old root: {refused}");
    assert_eq!(knock(&lab, &Ca::of(&lab)?).await?, "let in");

    load.wait_answers(load.report().total() + 10, LONG).await?;
    ping(&mut open).await.context("the connection that was open all the time")?;
    let report = load.stop().await?;
    println!("{} requests, {} failed", report.total(), report.failed());
    assert_eq!(report.failed(), 0, "of {}: {}", report.total(), report.first_failure());
    Ok(())
}
