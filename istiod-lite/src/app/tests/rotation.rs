//! The root changes under a node proxy's own clients: discovery brings both roots, certificates follow by themselves.

use std::sync::Arc;

use aquifer_core::identity::Identity;
use aquifer_objects::{Folder, Source};
use aquifer_proto::aquifer::RootBundle;
use aquifer_tls::{CertManager, TrustBundle};
use aquifer_xds::client::driver::run;
use aquifer_xds::client::metrics::ClientMetrics;
use aquifer_xds::client::session::Watch;
use aquifer_xds::client::{Rejected, ResourceSink, ResourceUpdate};
use rustls_pki_types::ServerName;
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::*;
use crate::ca::rotation::Goal;
use crate::ca::rotation::request::{self, Status as Progress};

/// Renewals are spread over 20 s and count 10 s later.
const ROTATION: Duration = Duration::from_secs(40);

/// Takes what a ztunnel takes of roots, and nothing else.
struct Roots(CertManager);

impl ResourceSink for Roots {
    fn apply(&mut self, type_url: &str, updates: Vec<ResourceUpdate>) -> Vec<Rejected> {
        for update in updates {
            if let (ROOT_BUNDLE, ResourceUpdate::Upsert { body, .. }) = (type_url, update) {
                let bundle = RootBundle::decode(body).unwrap();
                self.0.adopt(Some(TrustBundle::new(&bundle.roots, &bundle.renewal).unwrap())).unwrap();
            }
        }
        Vec::new()
    }
}

async fn handshake(manager: &CertManager, identity: &Identity) {
    let configs = manager.current(identity).expect("a certificate");
    let (near, far) = tokio::io::duplex(64 * 1024);
    let connector = TlsConnector::from(configs.client_config(std::slice::from_ref(identity)));
    let acceptor = TlsAcceptor::from(Arc::clone(&configs.server));
    let name = ServerName::try_from("198.18.17.3").unwrap();
    let (client, server) = tokio::join!(connector.connect(name, near), acceptor.accept(far));
    client.map(|_| ()).and(server.map(|_| ())).expect("a handshake");
}

#[tokio::test]
async fn a_node_proxy_follows_a_rotation_by_itself() {
    follows_a_rotation(Duration::from_secs(3600)).await;
}

/// Such a proxy renews before its last answer counts.
#[tokio::test]
async fn a_rotation_comes_to_its_end_with_certificates_of_a_few_seconds_too() {
    follows_a_rotation(Duration::from_secs(12)).await;
}

async fn follows_a_rotation(ttl: Duration) {
    let world = World::new();
    let app = world.start().await;
    let address = app.addresses().secure;
    let (tracker, cancel) = (Tracker::new(), Cancel::new());
    let manager = CertManager::new();
    let payments = Identity::new("cluster.local", "shop", "payments");
    manager.want(&payments);
    let (certificates, ca, until) = (manager.clone(), world.ca_client_of(address, ttl), cancel.clone());
    tracker.spawn("certificates", async move { certificates.run(ca, until).await });
    let mut config = world.xds_client(address);
    config.watches.push(Watch::if_served(ROOT_BUNDLE));
    let metrics = ClientMetrics::register(&mut Registry::default());
    tracker.spawn("xds client", run(config, Roots(manager.clone()), metrics, || {}, cancel.clone()));
    manager.get(&payments, tokio::time::Instant::now() + PATIENCE).await.unwrap();
    let root = || std::fs::read_to_string(world.path("data/root-cert.pem")).unwrap();
    let old = root();

    let source = Source::Folder(Folder::new(world.path("manifests")));
    let wish = request::Request { id: "r1".into(), goal: Goal::Complete };
    source.writer("aquifer-cli").apply(request::request_object("istio-system", &wish)).await.unwrap();
    let started = tokio::time::Instant::now();
    let mut phases: Vec<String> = Vec::new();
    let last: Progress = loop {
        handshake(&manager, &payments).await;
        let object = source.get(&request::key("istio-system")).await.unwrap();
        if let Some(status) = object.as_ref().and_then(request::status) {
            if phases.last() != Some(&status.phase) {
                phases.push(status.phase.clone());
            }
            if status.is_final() {
                break status;
            }
            assert!(started.elapsed() < ROTATION * 5, "{status:?}");
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    };
    println!("rotated in {:?}", started.elapsed());
    assert_eq!(phases, ["overlap", "cut-over", "completed"], "{last:?}");
    let new = root();
    assert!(new != old && new.matches("BEGIN").count() == 1);

    // The proxy trusts the new root alone, holds a certificate of it, and still reaches the control plane, which now shows
    // one of the new root too.
    let started = tokio::time::Instant::now();
    while manager.current(&payments).unwrap().roots().len() != 1 {
        assert!(started.elapsed() < PATIENCE);
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(manager.current(&payments).unwrap().roots()[0].pem.trim(), new.trim());
    handshake(&manager, &payments).await;
    let other = Identity::new("cluster.local", "istio-system", "ztunnel");
    manager.want(&other);
    manager.get(&other, tokio::time::Instant::now() + PATIENCE).await.unwrap();
    cancel.drain();
    app.shutdown().await;
    assert_eq!(tracker.panics(), 0);
}
