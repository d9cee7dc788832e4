//! Certificates, pages, conditions, and the end before the start.

use super::*;
use aquifer_objects::source::Settings;

#[tokio::test]
async fn certificates_for_the_pods_of_the_callers_node() {
    let world = World::new();
    let app = world.start().await;
    let mut ca = IstioCertificateServiceClient::new(world.channel(&app, NAME).await.unwrap());
    let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
    let csr = rcgen::CertificateParams::default().serialize_request(&key).unwrap().pem().unwrap();
    let identity = "spiffe://cluster.local/ns/shop/sa/payments";
    let ask = |identity: &str| {
        let fields = [("ImpersonatedIdentity".to_owned(), text_value(identity))].into();
        let metadata = Some(prost_types::Struct { fields });
        let request = IstioCertificateRequest { csr: csr.clone(), validity_duration: 600, metadata };
        with_headers(request, &world.token())
    };
    let chain = ca.create_certificate(ask(identity)).await.unwrap().into_inner().cert_chain;
    assert_eq!(chain.len(), 2);
    let der = |pem: &str| CertificateDer::from_pem_slice(pem.as_bytes()).unwrap();
    let (leaf, root) = (der(&chain[0]), der(&chain[1]));
    let anchor = webpki::anchor_from_trusted_cert(&root).unwrap();
    webpki::EndEntityCert::try_from(&leaf)
        .unwrap()
        .verify_for_usage(
            webpki::ALL_VERIFICATION_ALGS,
            &[anchor],
            &[],
            UnixTime::now(),
            webpki::KeyUsage::client_auth(),
            None,
            None,
        )
        .unwrap();
    let (_, parsed) = x509_parser::parse_x509_certificate(&leaf).unwrap();
    assert_eq!(parsed.public_key().raw, rcgen::PublicKeyData::subject_public_key_info(&key));
    let rustls_key = rustls::crypto::aws_lc_rs::sign::any_supported_type(&rustls_pki_types::PrivateKeyDer::Pkcs8(
        key.serialize_der().into(),
    ))
    .unwrap();
    rustls::sign::CertifiedKey::new(vec![leaf.clone()], rustls_key).keys_match().unwrap();

    // A pod that leaves takes its identity with it, at once.
    std::fs::remove_file(world.path("manifests/payments.yaml")).unwrap();
    let started = tokio::time::Instant::now();
    while ca.create_certificate(ask(identity)).await.is_ok() {
        assert!(started.elapsed() < PATIENCE, "the pod is gone, its identity is not");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let refused = ca.create_certificate(ask(identity)).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unauthenticated);
    assert_eq!(refused.message(), "request impersonation authentication failure");
    app.shutdown().await;
}

#[tokio::test]
async fn it_is_not_ready_from_the_beginning_of_the_drain() {
    let world = World::new();
    let app = world.start().await;
    let address = app.addresses().http;
    let mut client = Client::fresh(world.channel(&app, NAME).await.unwrap(), &world.token()).await.unwrap();
    client.sync().await;
    assert!(http(address, "/ready").await.starts_with("HTTP/1.1 200"));

    // Something takes its time to end.
    let (release, held) = tokio::sync::oneshot::channel::<()>();
    app.tracker.spawn("held", async move {
        let _ = held.await;
    });
    let shutdown = app.shutdown();
    let looks = async {
        let started = tokio::time::Instant::now();
        let answer = loop {
            let answer = http(address, "/ready").await;
            if !answer.starts_with("HTTP/1.1 200") {
                break answer;
            }
            assert!(started.elapsed() < PATIENCE, "still ready");
            tokio::task::yield_now().await;
        };
        assert!(answer.starts_with("HTTP/1.1 500"), "{answer}");
        assert!(answer.ends_with("not ready, pending: draining\n"), "{answer}");
        drop(release);
    };
    tokio::join!(shutdown, looks);
    assert!(TcpStream::connect(address).await.is_err(), "the port is closed in the end");
}

#[tokio::test]
async fn pages_tell_of_readiness_clients_and_counts() {
    let world = World::new();
    let app = world.start().await;
    let addresses = app.addresses().clone();
    let mut client = Client::fresh(world.channel(&app, NAME).await.unwrap(), &world.token()).await.unwrap();
    client.sync().await;
    assert!(http(addresses.http, "/ready").await.starts_with("HTTP/1.1 200"));
    let body = proxies(&app, |body| body["proxies"][0]["types"][AUTHORIZATION]["state"] == "SYNCED").await;
    assert_eq!(body["resources"][AUTHORIZATION], 1, "{body}");
    assert_eq!(body["proxies"][0]["id"], node().id, "{body}");
    let syncz = page(&app, "/debug/syncz", |body| body[0]["resources"][AUTHORIZATION]["acked"].is_string()).await;
    assert_eq!(syncz[0]["proxy"], node().id.split('~').nth(2).unwrap());
    let status = &syncz[0]["resources"][AUTHORIZATION];
    assert_eq!((&status["sent"], status["sentTime"].is_string()), (&status["acked"], true), "{syncz}");
    let services = page(&app, "/debug/registryz", |_| true).await;
    assert_eq!(services[0]["hostname"], "payments.shop.svc.cluster.local", "{services}");
    drop(client);
    proxies(&app, |body| body["proxies"].as_array().unwrap().is_empty()).await;
    let metrics = http(addresses.monitoring, "/metrics").await;
    for name in [
        "pilot_xds",
        "pilot_xds_pushes",
        "pilot_debounce_time_count",
        "pilot_inbound_updates",
        "pilot_services 1",
        "pilot_info",
        "istio_build{component=\"pilot\"",
        "citadel_server_root_cert_expiry_timestamp",
        "citadel_server_root_cert_expiry_seconds 3153",
        "istiod_uptime_seconds",
        "process_resident_memory_bytes",
    ] {
        assert!(metrics.contains(name), "{name} not in\n{metrics}");
    }
    app.shutdown().await;
}

#[tokio::test]
async fn conditions_are_written_once() {
    let world = World::new();
    let app = world.start().await;
    let status = world.path("manifests/.managed/istio-status/AuthorizationPolicy/shop/only-orders.yaml");
    let started = tokio::time::Instant::now();
    let text = loop {
        if let Ok(text) = std::fs::read_to_string(&status) {
            break text;
        }
        assert!(started.elapsed() < PATIENCE, "no status at {}", status.display());
        tokio::time::sleep(Duration::from_millis(10)).await;
    };
    assert!(text.contains("ZtunnelAccepted") && text.contains("Accepted"), "{text}");
    let written = std::fs::metadata(&status).unwrap().modified().unwrap();
    app.shutdown().await;
    // Nor does a restart write again what stands there already.
    let app = world.start().await;
    let mut client = Client::fresh(world.channel(&app, NAME).await.unwrap(), &world.token()).await.unwrap();
    client.sync().await;
    world.write("payments.yaml", &payments("v2"));
    client.until(|c| c.workload(PAYMENTS).unwrap().canonical_revision == "v2").await;
    app.shutdown().await;
    assert_eq!(std::fs::read_to_string(&status).unwrap(), text);
    assert_eq!(std::fs::metadata(&status).unwrap().modified().unwrap(), written);
}

#[tokio::test]
async fn one_line_says_why_it_cannot_start() {
    type Edit = Box<dyn FnOnce(&mut Config)>;
    let world = World::new();
    let taken = StdListener::bind("127.0.0.1:0").unwrap();
    let start = |edit: Edit| async {
        let mut config = world.config();
        edit(&mut config);
        format!("{:#}", App::start(config).await.err().expect("a refusal"))
    };
    let missing: PathBuf = world.path("nowhere");
    let file: PathBuf = world.path("jwks.json");
    let address = taken.local_addr().unwrap();
    let table: Vec<(Edit, Vec<String>)> = vec![
        (
            Box::new(move |c| c.listen.secure = address),
            vec!["SECURE_GRPC_ADDR".into(), address.to_string(), "in use".into()],
        ),
        (
            Box::new({
                let missing = missing.clone();
                move |c| c.source = Settings::Folder(missing)
            }),
            vec!["AQUIFER_MANIFESTS".into(), missing.display().to_string()],
        ),
        (Box::new(move |c| c.ca.data_dir = Some(file)), vec!["AQUIFER_DATA_DIR".into(), "jwks.json".into()]),
    ];
    for (edit, words) in table {
        let line = start(edit).await;
        assert!(!line.contains('\n'), "{line}");
        for word in words {
            assert!(line.contains(&word), "{word:?} not in {line:?}");
        }
    }
}
