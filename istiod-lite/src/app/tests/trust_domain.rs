//! The MeshConfig changes the trust domain under the whole process.

use tonic::transport::Identity as ClientIdentity;
use x509_parser::extensions::GeneralName;

use super::*;

fn mesh_config(text: &str) -> String {
    format!(
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: istio, namespace: istio-system}}\ndata: {{mesh: '{text}'}}\n"
    )
}

struct Asker {
    key: rcgen::KeyPair,
    csr: String,
}

impl Asker {
    fn new() -> Self {
        let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
        let csr = rcgen::CertificateParams::default().serialize_request(&key).unwrap().pem().unwrap();
        Self { key, csr }
    }

    /// A request for `identity`, or for the caller's own.
    fn request(&self, identity: Option<&str>) -> IstioCertificateRequest {
        let metadata = identity.map(|identity| prost_types::Struct {
            fields: [("ImpersonatedIdentity".to_owned(), text_value(identity))].into(),
        });
        IstioCertificateRequest { csr: self.csr.clone(), validity_duration: 600, metadata }
    }

    /// The chain, when asked with the node proxy's token.
    async fn ask(&self, world: &World, channel: &Channel, identity: Option<&str>) -> Result<Vec<String>, Status> {
        let request = with_headers(self.request(identity), &world.token());
        let answer = IstioCertificateServiceClient::new(channel.clone()).create_certificate(request).await?;
        Ok(answer.into_inner().cert_chain)
    }

    /// The same with nothing but a certificate that was issued to it before.
    async fn ask_with(&self, world: &World, app: &App, leaf: &str) -> Result<Vec<String>, Status> {
        let identity = ClientIdentity::from_pem(leaf, self.key.serialize_pem());
        let tls = ClientTlsConfig::new()
            .ca_certificate(Certificate::from_pem(world.root()))
            .domain_name(NAME)
            .identity(identity);
        let address = format!("https://{}", app.addresses().secure);
        let channel = Endpoint::from_shared(address).unwrap().tls_config(tls).unwrap().connect().await.unwrap();
        let answer = IstioCertificateServiceClient::new(channel).create_certificate(self.request(None)).await?;
        Ok(answer.into_inner().cert_chain)
    }
}

/// The identity in a chain's leaf.
fn uri(chain: &[String]) -> String {
    let der = CertificateDer::from_pem_slice(chain[0].as_bytes()).unwrap();
    let (_, leaf) = x509_parser::parse_x509_certificate(&der).unwrap();
    match leaf.subject_alternative_name().unwrap().unwrap().value.general_names.as_slice() {
        [GeneralName::URI(uri)] => (*uri).to_owned(),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn another_trust_domain_reaches_workloads_and_certificates_without_a_restart() {
    let world = World::new();
    let app = world.start().await;
    let channel = world.channel(&app, NAME).await.unwrap();
    let mut client = Client::fresh(channel.clone(), &world.token()).await.unwrap();
    client.sync().await;
    let asker = Asker::new();
    let payments = |domain: &str| format!("spiffe://{domain}/ns/shop/sa/payments");
    let ztunnel = |domain: &str| format!("spiffe://{domain}/ns/istio-system/sa/ztunnel");
    let old = asker.ask(&world, &channel, None).await.unwrap();
    assert_eq!(uri(&old), ztunnel("cluster.local"));
    assert_eq!(uri(&asker.ask_with(&world, &app, &old[0]).await.unwrap()), ztunnel("cluster.local"));
    assert!(asker.ask(&world, &channel, Some(&payments("new.test"))).await.is_err());

    world.write("config.yaml", &mesh_config("{trustDomain: new.test, trustDomainAliases: [cluster.local]}"));
    client.until(|c| c.workload(PAYMENTS).unwrap().trust_domain == "new.test").await;
    // Who has heard of it is given what it asks for, the first time.
    let new = asker.ask(&world, &channel, Some(&payments("new.test"))).await.unwrap();
    assert_eq!(uri(&new), payments("new.test"));
    assert_eq!(uri(&asker.ask(&world, &channel, None).await.unwrap()), ztunnel("new.test"));
    let refused = asker.ask(&world, &channel, Some(&payments("cluster.local"))).await.unwrap_err();
    assert_eq!(refused.message(), "request impersonation authentication failure");
    // A certificate of before is still its holder's while an alias names its domain, and leads into the new one.
    assert_eq!(uri(&asker.ask_with(&world, &app, &old[0]).await.unwrap()), ztunnel("new.test"));

    world.write("config.yaml", &mesh_config("{trustDomain: new.test}"));
    let started = tokio::time::Instant::now();
    let refused = loop {
        match asker.ask_with(&world, &app, &old[0]).await {
            Err(refused) => break refused,
            Ok(_) => assert!(started.elapsed() < PATIENCE, "the alias is gone, what it named is not"),
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    };
    assert_eq!(refused.code(), Code::Unauthenticated);
    assert_eq!(uri(&asker.ask_with(&world, &app, &new[0]).await.unwrap()), payments("new.test"));

    // What is no trust domain changes nothing, nor does the rest of that MeshConfig.
    world.write("config.yaml", &mesh_config("{trustDomain: spiffe://New, trustDomainAliases: [cluster.local]}"));
    world.write("payments.yaml", &super::payments("v2"));
    client.until(|c| c.workload(PAYMENTS).unwrap().canonical_revision == "v2").await;
    assert_eq!(client.workload(PAYMENTS).unwrap().trust_domain, "new.test");
    assert_eq!(uri(&asker.ask(&world, &channel, None).await.unwrap()), ztunnel("new.test"));
    assert!(asker.ask_with(&world, &app, &old[0]).await.is_err());

    // Without a MeshConfig it is the process's own once more.
    std::fs::remove_file(world.path("manifests/config.yaml")).unwrap();
    client.until(|c| c.workload(PAYMENTS).unwrap().trust_domain.is_empty()).await;
    assert_eq!(uri(&asker.ask(&world, &channel, None).await.unwrap()), ztunnel("cluster.local"));
    app.shutdown().await;
}

const GATEWAY: &str = "
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: wp, namespace: shop, annotations: {sidecar.istio.io/proxyImage: registry.test/waypoint}}
spec:
  gatewayClassName: istio-waypoint
  listeners: [{name: mesh, port: 15008, protocol: HBONE}]
";

/// What the waypoint's Deployment says, once it says what is expected.
async fn deployment(world: &World, expect: impl Fn(&str) -> bool) -> String {
    let path = world.path("manifests/.managed/istio.io-gateway-controller/Deployment/shop/wp.yaml");
    let started = tokio::time::Instant::now();
    loop {
        let text = std::fs::read_to_string(&path).unwrap_or_default();
        if expect(&text) {
            return text;
        }
        assert!(started.elapsed() < PATIENCE, "{}:\n{text}", path.display());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn waypoints_are_told_the_trust_domain_and_the_network() {
    let world = World::new();
    world.write("config.yaml", &mesh_config("{trustDomain: first.test}"));
    world.write("gateway.yaml", GATEWAY);
    let app = world.start().await;
    let first = deployment(&world, |text| !text.is_empty()).await;
    assert!(first.contains("first.test"), "not what the process was told before the mesh was read: {first}");
    assert!(!first.contains("ISTIO_META_NETWORK"), "{first}");

    world.write("config.yaml", &mesh_config("{trustDomain: second.test}"));
    deployment(&world, |text| text.contains("second.test")).await;
    let labelled = "metadata: {name: istio-system, labels: {topology.istio.io/network: east}}";
    world.write("mesh.yaml", &MESH.replace("metadata: {name: istio-system}", labelled));
    let last = deployment(&world, |text| text.contains("east")).await;
    assert!(last.contains("ISTIO_META_NETWORK") && last.contains("second.test"), "{last}");
    app.shutdown().await;
}
