//! Section 3.1 from the called side: with whom a pod's 15008 speaks, and in which words.

use anyhow::{Result, ensure};
use rustls::{CipherSuite, NamedGroup};

use crate::inbound::Case;
use crate::peer::pki::{self, Ca, Tls};

/// 3.1: TLS 1.3 alone, `h2` by ALPN, the pod's certificate, X25519MLKEM768 where the caller has it.
#[tokio::test(flavor = "multi_thread")]
async fn tls_as_negotiated() -> Result<()> {
    let case = Case::start().await?;
    let client = case.dial().await?;
    assert_eq!(client.alpn.as_deref(), Some(b"h2".as_slice()));
    assert_eq!(client.group, NamedGroup::X25519MLKEM768);
    assert_eq!(pki::uris(&client.peer[0])?, [case.here.identity()]);
    ensure!(matches!(client.suite, CipherSuite::TLS13_AES_128_GCM_SHA256 | CipherSuite::TLS13_AES_256_GCM_SHA384));
    Ok(())
}

/// 3.1: the suites: both AES ones, not ChaCha20; no TLS 1.2; a caller without ML-KEM is served.
#[tokio::test(flavor = "multi_thread")]
async fn tls_versions_suites_groups() -> Result<()> {
    let case = Case::start().await?;
    let suites = |suite| Tls { suites: Some(vec![suite]), ..Tls::default() };
    for (tls, served, what) in [
        (suites(CipherSuite::TLS13_AES_128_GCM_SHA256), true, "AES-128"),
        (suites(CipherSuite::TLS13_AES_256_GCM_SHA384), true, "AES-256"),
        (suites(CipherSuite::TLS13_CHACHA20_POLY1305_SHA256), false, "ChaCha20"),
        (Tls { versions: vec![&rustls::version::TLS12], ..Tls::default() }, false, "TLS 1.2"),
        (Tls { groups: Some(vec![NamedGroup::X25519]), ..Tls::default() }, true, "X25519"),
    ] {
        assert_eq!(case.gets_through(case.certificate()?, &tls).await, served, "{what}");
    }
    Ok(())
}

/// 3.1: TLS12_ENABLED=true adds TLS 1.2.
#[tokio::test(flavor = "multi_thread")]
async fn tls12_when_enabled() -> Result<()> {
    let case = Case::vary(|stage, _, _| stage.var("TLS12_ENABLED", "true")).await?;
    let tls = Tls { versions: vec![&rustls::version::TLS12], ..Tls::default() };
    ensure!(case.gets_through(case.certificate()?, &tls).await, "TLS 1.2");
    ensure!(case.gets_through(case.certificate()?, &Tls::default()).await, "TLS 1.3");
    Ok(())
}

/// 3.1: COMPLIANCE_POLICY=pqc leaves X25519MLKEM768 as the only key exchange.
#[tokio::test(flavor = "multi_thread")]
async fn pqc_policy() -> Result<()> {
    let case = Case::vary(|stage, _, _| stage.var("COMPLIANCE_POLICY", "pqc")).await?;
    let tls = Tls { groups: Some(vec![NamedGroup::X25519]), ..Tls::default() };
    ensure!(!case.gets_through(case.certificate()?, &tls).await, "X25519");
    ensure!(case.gets_through(case.certificate()?, &Tls::default()).await, "X25519MLKEM768");
    Ok(())
}

/// 3.1, trap 23: who may call: a certificate of the CA with a SPIFFE name in the own trust domain.
#[tokio::test(flavor = "multi_thread")]
async fn client_certificates() -> Result<()> {
    let case = Case::start().await?;
    let ca = &case.world.stage.ca;
    let through = async |own| case.gets_through(own, &Tls::default()).await;
    ensure!(through(case.certificate()?).await, "the usual one");
    ensure!(!through(None).await, "none");
    ensure!(!through(Some(Ca::new()?.workload(&case.there.identity())?)).await, "of another CA");
    ensure!(!through(Some(ca.workload("spiffe://elsewhere/ns/app/sa/x")?)).await, "of another trust domain");
    ensure!(!through(Some(ca.certify(vec![pki::dns("there.example")?])?)).await, "without a SPIFFE name");
    for odd in [
        "spiffe://cluster.local/ns/app/sa/x/more",
        "spiffe://cluster.local/ns/app",
        "spiffe://cluster.local/sa/x/ns/app",
        "https://cluster.local/ns/app/sa/x",
    ] {
        ensure!(!through(Some(ca.workload(odd)?)).await, "{odd}");
    }
    Ok(())
}
