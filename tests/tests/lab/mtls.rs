//! PeerAuthentication: plaintext refused and let in.

use std::time::Duration;

use anyhow::Result;
use aquifer_lab::{Lab, LabOptions};

use crate::harness::{access_line_appears, eventually, get, meshed_shop};

const STRICT: &str = include_str!("../../../examples/shop/policies/strict.yaml");
const PERMISSIVE: &str = include_str!("../../../examples/shop/policies/permissive.yaml");

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn strict_refuses_plaintext_and_permissive_lets_it_in() -> Result<()> {
    let lab = meshed_shop(LabOptions::default()).await?;
    let outside = async |to: &str| get(&lab, "outside", "client", to).await;
    assert!(outside("http://payments.shop/").await?.ok(), "permissive is the default");

    lab.apply(STRICT).await?;
    eventually("STRICT refuses plaintext", Duration::from_secs(1), async || {
        Ok(!outside("http://payments.shop/").await?.ok())
    })
    .await?;
    let pod = lab.pod("shop", "payments").await?;
    let by_pod = outside(&format!("http://{}:8080/", pod.ipv4())).await?;
    assert!(!by_pod.ok(), "by pod address: {by_pod:?}");
    assert!(get(&lab, "shop", "orders", "http://payments/").await?.ok(), "STRICT cut a mesh client");
    let source = lab.pod("outside", "client").await?;
    access_line_appears(&lab, "node2", &[&format!("src.addr={}", source.ipv4()), "reason="]).await?;
    // A STRICT pod still passes its kubelet probes.
    lab.wait_ready("shop", "payments", 1).await?;

    lab.apply(PERMISSIVE).await?;
    eventually("PERMISSIVE lets plaintext in", Duration::from_secs(1), async || {
        Ok(outside("http://payments.shop/").await?.ok())
    })
    .await?;
    Ok(())
}

/// What a TLS client without post-quantum key exchange hears on a pod's port 15008.
async fn classical_client(lab: &Lab) -> Result<String> {
    let at = format!("{}:15008", lab.pod("shop", "payments").await?.ipv4());
    let connect = ["openssl", "s_client", "-connect", &at, "-tls1_3", "-groups", "X25519", "-alpn", "h2"];
    let output = lab.exec("outside", "client", &connect).await?;
    Ok(output.stdout + &output.stderr)
}

/// With the setting on every node the mesh and its control plane work, and OpenSSL's classical groups are refused.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn post_quantum_only_carries_the_mesh_and_nobody_else() -> Result<()> {
    let lab = meshed_shop(LabOptions::default().ztunnel_var("COMPLIANCE_POLICY", "pqc")).await?;
    assert!(get(&lab, "shop", "orders", "http://payments/").await?.ok());
    let heard = classical_client(&lab).await?;
    assert!(heard.contains("handshake failure"), "{heard}");
    access_line_appears(&lab, "node2", &["reason=\"tls_failed\"", "COMPLIANCE_POLICY=pqc"]).await?;
    drop(lab);

    let lab = meshed_shop(LabOptions::default()).await?;
    let heard = classical_client(&lab).await?;
    assert!(
        heard.contains("X25519") && heard.contains("spiffe") || heard.contains("Server Temp Key: X25519"),
        "{heard}"
    );
    Ok(())
}
