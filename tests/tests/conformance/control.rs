//! Sections 5 and 6 from the other side: istiod-lite under a scripted proxy.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use aquifer_lab::{Component, PodInfo};
use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::TlsConnector;

use crate::cluster::Cluster;
use crate::peer::grpc::{Call, Status};
use crate::peer::h2::Connection;
use crate::peer::pki;
use crate::peer::protobuf::{Fields, Message};
use crate::peer::wds::{ADDRESS, AUTHORIZATION};
use crate::peer::{until, within};

const ADS: &str = "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources";
const CA: &str = "/istio.v1.auth.IstioCertificateService/CreateCertificate";

/// The proxy whose place the test takes: its pod, its token, a connection.
struct Proxy {
    pod: PodInfo,
    token: String,
    connection: Connection,
}

impl Proxy {
    async fn start(cluster: &Cluster) -> Result<Self> {
        let status = cluster.lab.status().await?;
        let component =
            status.components.iter().find(|c| c.component == Component::ztunnel("node1")).context("a ztunnel")?;
        let pod = cluster.lab.pod("istio-system", &component.pod).await?;
        let token = cluster.lab.token("istio-system", &pod.name, Duration::from_secs(600)).await?;
        let istiod = status.components.iter().find(|c| c.component == Component::Istiod).context("an istiod")?;
        let to: SocketAddr = (*istiod.ips.first().context("its address")?, 15012).into();
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(cluster.lab.root_cert())?)?;
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = rustls::ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = vec![b"h2".to_vec()];
        let stream = cluster.node().await?.connect(to).await?;
        let name = ServerName::try_from("istiod.istio-system.svc")?;
        let tls = within("a TLS handshake", TlsConnector::from(Arc::new(config)).connect(name, stream)).await??;
        Ok(Self { pod, token, connection: Connection::client(tls) })
    }

    fn call(&self, path: &str, token: Option<&str>) -> Call {
        let bearer = format!("Bearer {}", token.unwrap_or_default());
        let mut headers = vec![
            (":method", "POST"),
            (":scheme", "https"),
            (":authority", "istiod.istio-system.svc:15012"),
            (":path", path),
            ("content-type", "application/grpc"),
            ("te", "trailers"),
            ("clusterid", "Kubernetes"),
        ];
        if token.is_some() {
            headers.push(("authorization", &bearer));
        }
        Call::new(self.connection.open(&headers, false))
    }

    fn node(&self) -> Message {
        let id = format!("ztunnel~198.18.0.1~{}.istio-system~istio-system.svc.cluster.local", self.pod.name);
        let text = |key: &str, value: &str| Message::new().string(1, key).message(2, &Message::new().string(3, value));
        let metadata = Message::new().messages(1, [text("NAMESPACE", "istio-system"), text("NODE_NAME", "node1")]);
        Message::new().string(1, &id).message(3, &metadata)
    }

    /// A stream that has sent both first requests with these versions held.
    fn ads(&self, held: &BTreeMap<String, String>) -> Call {
        let call = self.call(ADS, Some(&self.token));
        for type_url in [ADDRESS, AUTHORIZATION] {
            let entries =
                held.iter().filter(|_| type_url == ADDRESS).map(|(k, v)| Message::new().string(1, k).string(2, v));
            call.send(&Message::new().message(1, &self.node()).string(2, type_url).messages(5, entries));
        }
        call
    }

    /// How a stream ends that begins with this.
    async fn ends(&self, token: Option<&str>, first: &Message) -> Result<Status> {
        let mut call = self.call(ADS, token);
        call.send(first);
        loop {
            if let Err(status) = call.receive().await? {
                return Ok(status);
            }
        }
    }
}

/// Takes the next response and acks it.
async fn response(call: &mut Call) -> Result<Fields> {
    let response = call.receive().await?.map_err(|status| anyhow!("ended: {status:?}"))?;
    call.send(&Message::new().string(2, &response.string(4)).string(6, &response.string(5)));
    Ok(response)
}

/// The resources of a response: name to version, aliases apart.
fn resources(response: &Fields) -> Result<BTreeMap<String, String>> {
    Ok(response.messages(2)?.iter().map(|resource| (resource.string(3), resource.string(1))).collect())
}

/// Takes responses until the pod is there as a workload of the mesh: what is known by then, by name, and that resource.
/// A control plane may answer before it has seen the latest of a cluster.
async fn settled(call: &mut Call, named: &str) -> Result<(BTreeMap<String, String>, Fields)> {
    let mut known = BTreeMap::new();
    loop {
        let next = response(call).await?;
        if next.string(4) != ADDRESS {
            continue;
        }
        known.extend(resources(&next)?);
        next.strings(6).iter().for_each(|gone| drop(known.remove(gone)));
        for resource in next.messages(2)?.into_iter().filter(|resource| resource.string(3) == named) {
            let address = Fields::read(resource.message(2)?.bytes(2))?;
            assert_eq!(address.numbers(), [1], "a workload");
            if address.message(1)?.number(5) == 1 {
                return Ok((known, resource));
            }
        }
    }
}

/// 5.3: the first request of each type is answered, Address first, even where there is nothing; a wildcard client gets
/// no aliases (12.2); an Address has its hash for a version, an Authorization none.
#[tokio::test(flavor = "multi_thread")]
async fn first_answers() -> Result<()> {
    let cluster = Cluster::start(&["a"], true).await?;
    let proxy = Proxy::start(&cluster).await?;
    let mut call = proxy.ads(&BTreeMap::new());
    let first = response(&mut call).await?;
    assert_eq!(first.string(4), ADDRESS);
    ensure!(!first.string(5).is_empty(), "a nonce");
    for resource in first.messages(2)? {
        let version = resource.string(1);
        ensure!(!version.is_empty() && version.bytes().all(|b| b.is_ascii_hexdigit()), "{version}");
        ensure!(!resource.has(4), "aliases of {}", resource.string(3));
        assert_eq!(resource.message(2)?.string(1), ADDRESS);
    }
    let second = response(&mut call).await?;
    assert_eq!(second.string(4), AUTHORIZATION);
    Ok(())
}

/// 5.6, 10.1, 10.2: the fields of an enrolled pod's Workload, by number.
#[tokio::test(flavor = "multi_thread")]
async fn workload_fields() -> Result<()> {
    let cluster = Cluster::start(&["a"], true).await?;
    let proxy = Proxy::start(&cluster).await?;
    let mut call = proxy.ads(&BTreeMap::new());
    let pod = cluster.pod("a").await?;
    let named = format!("Kubernetes//Pod/raw/{}", pod.name);
    let (_, resource) = settled(&mut call, &named).await?;
    let workload = Fields::read(resource.message(2)?.bytes(2))?.message(1)?;
    assert_eq!(workload.string(1), pod.name);
    assert_eq!(workload.string(2), "raw");
    let octets: Vec<Vec<u8>> = pod.ips.iter().map(|ip| crate::peer::wds::octets(*ip)).collect();
    assert_eq!(workload.all(3), octets);
    assert_eq!(workload.number(5), 1, "HBONE");
    assert_eq!(workload.string(7), "sa-a");
    assert_eq!(workload.string(9), "node1");
    assert_eq!((workload.string(10).as_str(), workload.string(11).as_str()), ("a", "latest"));
    assert_eq!((workload.number(12), workload.string(13).as_str()), (2, "a"));
    assert_eq!(workload.number(17), 0, "healthy");
    assert_eq!(workload.string(20), named);
    ensure!(!workload.has(6), "cluster.local is left out");
    Ok(())
}

/// 5.3: on reconnect what is current is not sent again, what changed is, and what went is removed by its name.
#[tokio::test(flavor = "multi_thread")]
async fn reconnect_with_versions() -> Result<()> {
    let cluster = Cluster::start(&["a"], true).await?;
    let proxy = Proxy::start(&cluster).await?;
    let mut call = proxy.ads(&BTreeMap::new());
    let pod = format!("Kubernetes//Pod/raw/{}", cluster.pod("a").await?.name);
    let (mut held, _) = settled(&mut call, &pod).await?;
    drop(call);
    let proxy = Proxy::start(&cluster).await?;
    held.insert(pod.clone(), "another".into());
    held.insert("Kubernetes//Pod/raw/gone".into(), "1".into());
    held.insert("raw/gone.example".into(), "1".into());
    let mut call = proxy.ads(&held);
    let first = response(&mut call).await?;
    assert_eq!(first.string(4), ADDRESS);
    let sent = resources(&first)?;
    ensure!(sent.contains_key(&pod), "what changed was not sent: {sent:?}");
    for (name, version) in &sent {
        ensure!(held.get(name) != Some(version), "{name} is current and was sent");
    }
    ensure!(sent.len() < held.len() - 2, "everything was sent");
    let mut removed = first.strings(6);
    removed.sort();
    assert_eq!(removed, ["Kubernetes//Pod/raw/gone", "raw/gone.example"]);
    Ok(())
}

/// 5.2, 12.10: who is let in, and with which status others are refused.
#[tokio::test(flavor = "multi_thread")]
async fn refusals() -> Result<()> {
    let cluster = Cluster::start(&["a"], true).await?;
    let proxy = Proxy::start(&cluster).await?;
    let token = Some(proxy.token.as_str());
    let first = |node: &Message| Message::new().message(1, node).string(2, ADDRESS);
    assert_eq!(proxy.ends(None, &first(&proxy.node())).await?.code, 16, "no token");
    assert_eq!(proxy.ends(Some("rubbish"), &first(&proxy.node())).await?.code, 16, "a bad token");
    assert_eq!(proxy.ends(token, &Message::new().string(2, ADDRESS)).await?.code, 3, "no node");
    for id in ["ztunnel", "a~b~c", "ztunnel~not-an-ip~x.y~y.svc", ""] {
        let node = Message::new().string(1, id);
        assert_eq!(proxy.ends(token, &first(&node)).await?.code, 3, "the id {id:?}");
    }
    let text = Message::new().string(1, "NAMESPACE").message(2, &Message::new().string(3, "elsewhere"));
    let node = Message::new()
        .string(1, "ztunnel~198.18.0.1~x.istio-system~istio-system.svc.cluster.local")
        .message(3, &Message::new().message(1, &text));
    ensure!(matches!(proxy.ends(token, &first(&node)).await?.code, 7 | 16), "another namespace than the token's");
    Ok(())
}

/// 5.3, trap 5: a NACK is an answer: nothing is sent again, and the stream goes on; a stale nonce is ignored.
#[tokio::test(flavor = "multi_thread")]
async fn nack_and_stale_nonce() -> Result<()> {
    let cluster = Cluster::start(&["a"], true).await?;
    let proxy = Proxy::start(&cluster).await?;
    let mut call = proxy.ads(&BTreeMap::new());
    let first = call.receive().await?.map_err(|status| anyhow!("{status:?}"))?;
    let error = Message::new().string(2, "no");
    call.send(&Message::new().string(2, ADDRESS).string(6, &first.string(5)).message(7, &error));
    call.send(&Message::new().string(2, ADDRESS).string(6, "a-nonce-of-yesterday"));
    assert_eq!(response(&mut call).await?.string(4), AUTHORIZATION);
    // The next Address is the one that is new, and nothing of what was refused.
    cluster.lab.scale("raw", "a", 2).await?;
    let next = response(&mut call).await?;
    assert_eq!(next.string(4), ADDRESS);
    ensure!(resources(&next)?.len() < resources(&first)?.len(), "{:?}", resources(&next)?);
    Ok(())
}

/// Trap 9: a policy is there before the workload that names it, and goes after it.
#[tokio::test(flavor = "multi_thread")]
async fn policies_before_references() -> Result<()> {
    let cluster = Cluster::start(&["a"], true).await?;
    let proxy = Proxy::start(&cluster).await?;
    let mut call = proxy.ads(&BTreeMap::new());
    for _ in 0..2 {
        response(&mut call).await?;
    }
    let policy = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: { name: p, namespace: raw }\n\
                  spec: { selector: { matchLabels: { app: a } }, rules: [{ from: [{ source: { namespaces: [x] } }] }] }\n";
    cluster.lab.apply(policy).await?;
    // What a client holds at each moment: policies known, policies named.
    let mut known = false;
    loop {
        let response = response(&mut call).await?;
        if response.string(4) == AUTHORIZATION {
            known |= resources(&response)?.contains_key("raw/p");
        } else {
            let mut names = false;
            for resource in response.messages(2)? {
                let workload = Fields::read(resource.message(2)?.bytes(2))?.message(1)?;
                names |= workload.strings(16).contains(&"raw/p".to_owned());
            }
            if names {
                ensure!(known, "named before it was sent");
                break;
            }
        }
    }
    cluster.lab.delete("AuthorizationPolicy", "raw", "p").await?;
    let mut named = true;
    loop {
        let response = response(&mut call).await?;
        if response.string(4) == ADDRESS {
            named = false;
        } else if response.strings(6).contains(&"raw/p".to_owned()) {
            ensure!(!named, "removed while it is named");
            return Ok(());
        }
    }
}

fn csr(identity: &str) -> Result<String> {
    let key = rcgen::KeyPair::generate()?;
    let mut params = rcgen::CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.subject_alt_names = vec![pki::uri(identity)?];
    Ok(params.serialize_request(&key)?.pem()?)
}

fn impersonating(identity: &str) -> Message {
    let entry = Message::new().string(1, "ImpersonatedIdentity").message(2, &Message::new().string(3, identity));
    Message::new().message(1, &entry)
}

impl Proxy {
    /// Asks for a certificate: the chain's elements, or the refusal.
    async fn certificate(
        &self,
        token: Option<&str>,
        csr: &str,
        seconds: u64,
        identity: &str,
    ) -> Result<Result<Vec<String>, Status>> {
        let mut call = self.call(CA, token);
        call.send(&Message::new().string(1, csr).uint(3, seconds).message(4, &impersonating(identity)));
        call.half_close();
        Ok(call.receive().await?.map(|answer| answer.strings(1)))
    }
}

/// 6.1, 6.5: the chain: the leaf alone, the root last; the leaf's name is the impersonated one whatever the CSR says, its
/// URI name is critical, its use both ways, its time two minutes back and as long as asked.
#[tokio::test(flavor = "multi_thread")]
async fn issued_certificate() -> Result<()> {
    use x509_parser::prelude::{FromDer, X509Certificate};
    let cluster = Cluster::start(&["a"], true).await?;
    let proxy = Proxy::start(&cluster).await?;
    let identity = "spiffe://cluster.local/ns/raw/sa/sa-a";
    let csr = csr("spiffe://cluster.local/ns/raw/sa/somebody-else")?;
    for (asked, expected) in [(3600, 3600), (0, 86_400)] {
        let chain =
            proxy.certificate(Some(&proxy.token), &csr, asked, identity).await?.map_err(|s| anyhow!("{s:?}"))?;
        ensure!(chain.len() >= 2, "{} elements", chain.len());
        assert_eq!(chain[0].matches("BEGIN CERTIFICATE").count(), 1, "the leaf alone");
        let leaf = CertificateDer::from_pem_slice(chain[0].as_bytes())?;
        assert_eq!(pki::uris(&leaf)?, [identity]);
        let (_, parsed) = X509Certificate::from_der(&leaf)?;
        ensure!(parsed.subject_alternative_name()?.context("a SAN")?.critical);
        let usage = parsed.extended_key_usage()?.context("an EKU")?.value;
        ensure!(usage.server_auth && usage.client_auth);
        let usage = parsed.key_usage()?.context("a KU")?.value;
        ensure!(usage.digital_signature() && usage.key_encipherment());
        let (from, to) = (parsed.validity().not_before.timestamp(), parsed.validity().not_after.timestamp());
        let now = time::OffsetDateTime::now_utc().unix_timestamp();
        ensure!((60..=180).contains(&(now - from)), "not before {} s ago", now - from);
        ensure!((to - now - expected).abs() < 60, "{} s ahead", to - now);
        let root = std::fs::read_to_string(cluster.lab.root_cert())?;
        ensure!(chain.last().context("roots")?.contains(root.trim()), "the root is last");
    }
    Ok(())
}

/// 6.4, 12.8: whom the caller may impersonate, and how the rest is refused.
#[tokio::test(flavor = "multi_thread")]
async fn impersonation() -> Result<()> {
    let cluster = Cluster::start(&["a"], true).await?;
    let proxy = Proxy::start(&cluster).await?;
    let csr = csr("spiffe://cluster.local/ns/raw/sa/sa-a")?;
    let mine = "spiffe://cluster.local/ns/raw/sa/sa-a";
    let code = async |token: Option<&str>, csr: &str, seconds, identity: &str| -> Result<u32> {
        Ok(proxy.certificate(token, csr, seconds, identity).await?.err().map_or(0, |status| status.code))
    };
    let token = Some(proxy.token.as_str());
    assert_eq!(code(token, &csr, 3600, mine).await?, 0);
    assert_eq!(code(None, &csr, 3600, mine).await?, 16, "no token");
    assert_eq!(code(Some("rubbish"), &csr, 3600, mine).await?, 16, "a bad token");
    assert_eq!(code(token, &csr, 3600, "spiffe://cluster.local/ns/raw/sa/nobody").await?, 16, "not on this node");
    assert_eq!(code(token, &csr, 3600, "spiffe://elsewhere/ns/raw/sa/sa-a").await?, 16, "a foreign trust domain");
    assert_eq!(code(token, &csr, 3600, "rubbish").await?, 16, "no identity");
    assert_eq!(code(token, "rubbish", 3600, mine).await?, 3, "no CSR");
    assert_eq!(code(token, &csr, 91 * 86_400, mine).await?, 3, "too long");
    let of_a_pod = cluster.lab.token("raw", &cluster.pod("a").await?.name, Duration::from_secs(600)).await?;
    assert_eq!(code(Some(&of_a_pod), &csr, 3600, mine).await?, 16, "a caller that is no node proxy");
    Ok(())
}

/// 8.4: readiness and metrics.
#[tokio::test(flavor = "multi_thread")]
async fn metrics() -> Result<()> {
    let cluster = Cluster::start(&["a"], true).await?;
    let proxy = Proxy::start(&cluster).await?;
    let mut call = proxy.ads(&BTreeMap::new());
    response(&mut call).await?;
    let csr = csr("spiffe://cluster.local/ns/raw/sa/sa-a")?;
    proxy.certificate(Some(&proxy.token), &csr, 60, "spiffe://cluster.local/ns/raw/sa/sa-a").await?.ok();
    until("metrics", async || {
        let text = cluster.lab.metrics(Component::Istiod).await?;
        let names = [
            "pilot_xds",
            "pilot_xds_pushes",
            "citadel_server_csr_count",
            "citadel_server_success_cert_issuance_count",
            "istio_build",
        ];
        Ok(names.iter().all(|name| text.lines().any(|line| line.starts_with(name))))
    })
    .await
}
