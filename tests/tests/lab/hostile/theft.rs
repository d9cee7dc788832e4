//! Identities that are not the caller's to have.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use aquifer_core::identity::Identity;
use aquifer_lab::{Component, Lab, LabOptions, PodInfo};
use aquifer_tls::ca_client::Source;
use aquifer_tls::{CaClient, CaConfig, CaError, IstioCaClient};
use jsonwebtoken::jwk::Jwk;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use rcgen::KeyPair;
use serde_json::{Value, json};
use tonic::Code;

use crate::harness::{ORDERS, PAYMENTS, eventually, in_netns, meshed_shop, netns};

const OUTSIDE: &str = "spiffe://cluster.local/ns/outside/sa/client";

/// The CA as a pod outside the mesh sees it.
struct Office<'a> {
    lab: &'a Lab,
    netns: PathBuf,
    address: String,
    root: String,
}

/// One request.
#[derive(Clone)]
struct Ask {
    token: Option<String>,
    identity: &'static str,
    impersonate: bool,
    cluster: &'static str,
}

impl Ask {
    fn of(token: &str, identity: &'static str) -> Self {
        Self { token: Some(token.to_owned()), identity, impersonate: true, cluster: "Kubernetes" }
    }
}

impl<'a> Office<'a> {
    async fn new(lab: &'a Lab) -> Result<Self> {
        let istiod = component_pod(lab, &Component::Istiod).await?;
        Ok(Self {
            lab,
            netns: netns(lab, &lab.pod("outside", "client").await?)?,
            address: format!("https://{}:15012", istiod.ipv4()),
            root: fs::read_to_string(lab.root_cert())?,
        })
    }

    fn ask(&self, ask: Ask) -> Result<Result<(), CaError>> {
        let identity: Identity = ask.identity.parse()?;
        let client = IstioCaClient::new(CaConfig {
            address: self.address.clone(),
            root: Source::Inline(self.root.clone()).into(),
            alt_hostname: Some("istiod.istio-system.svc".into()),
            token: ask.token.map(Source::Inline),
            cluster_id: ask.cluster.into(),
            headers: Vec::new(),
            ttl: Duration::from_secs(3600),
            impersonate: ask.impersonate,
            timeout: Duration::from_secs(30),
        });
        in_netns(&self.netns, move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            Ok(runtime.block_on(client.fetch(&identity)).map(drop))
        })?
    }

    fn issued(&self, what: &str, ask: Ask) -> Result<()> {
        println!("{what}");
        self.ask(ask)?.with_context(|| format!("{what}: refused"))
    }

    /// Refused, and istiod-lite's log says why: to the caller it says nothing.
    async fn refused(&self, what: &str, ask: Ask, why: &str) -> Result<()> {
        let before = self.said(why).await?;
        let outcome = self.ask(ask)?;
        let Err(CaError::Call(status)) = &outcome else { anyhow::bail!("{what}: {outcome:?}") };
        println!("{what}: {status}");
        ensure!(status.code() == Code::Unauthenticated, "{what}: {status}");
        ensure!(!status.message().contains(why), "{what}: the caller is told {status}");
        eventually(&format!("{what}: the log says {why:?}"), Duration::from_secs(1), async || {
            Ok(self.said(why).await? > before)
        })
        .await?;
        Ok(())
    }

    async fn said(&self, why: &str) -> Result<usize> {
        let log = self.lab.component_logs(&Component::Istiod).await?;
        Ok(log.lines().filter(|line| line.contains("CA: ") && line.contains(why)).count())
    }
}

async fn component_pod(lab: &Lab, component: &Component) -> Result<PodInfo> {
    let status = lab.status().await?;
    let found = status.components.iter().find(|found| found.component == *component).context("the component")?;
    status.pods.iter().find(|pod| pod.name == found.pod).cloned().context("its pod")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_gets_the_identities_of_its_own_pods_only() -> Result<()> {
    let lab = meshed_shop(LabOptions::default()).await?;
    let office = Office::new(&lab).await?;
    let proxy = component_pod(&lab, &Component::ztunnel("node1")).await?;
    let token = lab.token("istio-system", &proxy.name, Duration::from_secs(600)).await?;
    let node1 = |identity| Ask::of(&token, identity);

    office.issued("orders, which runs on node1", node1(ORDERS))?;
    office
        .issued("itself", Ask { impersonate: false, ..node1("spiffe://cluster.local/ns/istio-system/sa/ztunnel") })?;
    office.refused("payments, which runs on node2", node1(PAYMENTS), "no pod of").await?;
    office.refused("nobody's", node1("spiffe://cluster.local/ns/shop/sa/ghost"), "no pod of").await?;
    office.refused("node2's agent", node1("spiffe://cluster.local/ns/kube-system/sa/istio-cni"), "no pod of").await?;
    office
        .refused("a foreign trust domain", node1("spiffe://evil.example/ns/shop/sa/orders"), "foreign trust domain")
        .await?;
    office.refused("another cluster", Ask { cluster: "elsewhere", ..node1(ORDERS) }, "unknown clusterid").await?;
    office.refused("no token", Ask { token: None, ..node1(ORDERS) }, "no bearer token").await?;

    // A pod with its own token: itself and nobody else.
    let own = lab.pod("outside", "client").await?;
    let client = lab.token("outside", &own.name, Duration::from_secs(600)).await?;
    office.issued("a pod asks for itself", Ask { impersonate: false, ..Ask::of(&client, OUTSIDE) })?;
    office.refused("a pod asks for another", Ask::of(&client, ORDERS), "is not a trusted node account").await?;
    // What a CSR says counts for nothing: the certificate is the caller's own.
    let other = office.ask(Ask { impersonate: false, ..Ask::of(&client, ORDERS) })?;
    println!("a CSR with another's name: {other:?}");
    assert!(matches!(other, Err(CaError::Bundle(_))), "a certificate for {ORDERS}");

    // The pod moves: what was node2's becomes node1's when it runs there, and not before.
    lab.scale("shop", "orders", 0).await?;
    lab.wait_ready("shop", "orders", 0).await?;
    eventually("orders is gone, and so is node1's right to it", Duration::from_secs(2), async || {
        Ok(office.ask(node1(ORDERS))?.is_err())
    })
    .await?;

    // The proxy is replaced: its token ends with its pod.
    let gone = lab.replace_ztunnel("node1").await?;
    lab.wait_status("the old proxy is gone", Duration::from_secs(60), |status| {
        status.pods.iter().all(|pod| pod.name != gone).then_some(())
    })
    .await?;
    let web = "spiffe://cluster.local/ns/shop/sa/web";
    eventually("the control plane knows that it is gone", Duration::from_secs(1), async || {
        Ok(office.ask(node1(web))?.is_err())
    })
    .await?;
    office.refused("a token of a pod that is gone", node1(web), "which does not exist").await?;
    office.refused("for itself", Ask { impersonate: false, ..node1(web) }, "which does not exist").await?;
    Ok(())
}

/// Signs tokens of any content.
struct Forger {
    key: EncodingKey,
    kid: &'static str,
}

impl Forger {
    fn new(kid: &'static str) -> Result<Self> {
        Ok(Self { key: EncodingKey::from_ec_der(&KeyPair::generate()?.serialize_der()), kid })
    }

    fn token(&self, claims: &Value) -> Result<String> {
        let header = Header { kid: Some(self.kid.to_owned()), ..Header::new(Algorithm::ES256) };
        Ok(jsonwebtoken::encode(&header, claims, &self.key)?)
    }

    /// Puts the public key beside the lab's own, so that only a token's content is left to be wrong.
    fn trust(&self, jwks: &Path) -> Result<()> {
        let mut set: Value = serde_json::from_slice(&fs::read(jwks)?)?;
        let mut jwk = Jwk::from_encoding_key(&self.key, Algorithm::ES256)?;
        jwk.common.key_id = Some(self.kid.to_owned());
        set["keys"].as_array_mut().context("keys")?.push(serde_json::to_value(&jwk)?);
        let new = jwks.with_extension("new");
        fs::write(&new, set.to_string())?;
        Ok(fs::rename(new, jwks)?)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_must_be_right_in_every_part() -> Result<()> {
    let lab = meshed_shop(LabOptions::default()).await?;
    let office = Office::new(&lab).await?;
    let proxy = component_pod(&lab, &Component::ztunnel("node1")).await?;
    let trusted = Forger::new("second")?;
    trusted.trust(&lab.state_dir().join("tokens/jwks.json"))?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
    let good = json!({
        "iss": "https://kubernetes.default.svc.cluster.local",
        "aud": ["istio-ca"],
        "sub": "system:serviceaccount:istio-system:ztunnel",
        "iat": now, "nbf": now, "exp": now + 600,
        "kubernetes.io": {
            "namespace": "istio-system",
            "serviceaccount": {"name": "ztunnel", "uid": "s"},
            "pod": {"name": proxy.name, "uid": proxy.uid},
            "node": {"name": "node1", "uid": "n"},
        },
    });
    let but = |path: &str, value: Value| {
        let mut claims = good.clone();
        match claims.pointer_mut(path) {
            Some(claim) => *claim = value,
            None => panic!("no claim {path}"),
        }
        claims
    };
    let ask = |token: &str| Ask::of(token, ORDERS);
    let other_subject = but("/sub", json!("system:serviceaccount:istio-system:istiod"));
    let mut other_account = other_subject.clone();
    other_account["kubernetes.io"]["serviceaccount"]["name"] = json!("istiod");
    office.issued("all is right", ask(&trusted.token(&good)?))?;
    let cases = [
        ("another audience", but("/aud", json!(["vault"])), "audience"),
        ("no audience", but("/aud", json!([])), "audience"),
        ("another issuer", but("/iss", json!("https://kubernetes.evil.example")), "issuer"),
        ("expired", but("/exp", json!(now - 1)), "expired"),
        ("not valid yet", but("/nbf", json!(now + 300)), "not valid yet"),
        ("a pod that never was", but("/kubernetes.io/pod/name", json!("ztunnel-other")), "does not exist"),
        (
            "another pod of that name",
            but("/kubernetes.io/pod/uid", json!("00000000-0000-4000-a000-000000000000")),
            "does not exist",
        ),
        ("not a service account", but("/sub", json!("system:node:node1")), "not a service account"),
        ("a subject that is not its account", other_subject, "not a service account"),
        ("an account that the pod does not have", other_account, "does not exist"),
    ];
    for (what, claims, why) in cases {
        office.refused(what, ask(&trusted.token(&claims)?), why).await?;
    }
    office.refused("a key of somebody else", ask(&Forger::new("third")?.token(&good)?), "no key in").await?;
    office
        .refused("a key of somebody else under our key's name", ask(&Forger::new("second")?.token(&good)?), "signature")
        .await?;
    office.refused("under the lab key's name", ask(&Forger::new("lab")?.token(&good)?), "no key in").await?;
    // The right token with one bit changed, without a signature, and no token at all.
    let right = lab.token("istio-system", &proxy.name, Duration::from_secs(600)).await?;
    let (signed, signature) = right.rsplit_once('.').context("a signature")?;
    let mut forged = signature.to_owned();
    forged.replace_range(9..10, if &signature[9..10] == "A" { "B" } else { "A" });
    office.refused("another signature", ask(&format!("{signed}.{forged}")), "signature").await?;
    office.refused("without its signature", ask(&format!("{signed}.")), "signature").await?;
    office
        .refused(
            "algorithm none",
            ask(&format!("eyJhbGciOiJub25lIn0.{}.", signed.split('.').nth(1).context("claims")?)),
            "malformed",
        )
        .await?;
    office.refused("no token", ask("aquifer"), "malformed").await?;
    office.issued("the lab's own token still counts", ask(&right))
}
