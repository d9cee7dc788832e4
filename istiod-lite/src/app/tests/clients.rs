//! The node proxy's own clients against the whole process.

use std::sync::Arc;

use aquifer_core::from_proto;
use aquifer_core::identity::Identity;
use aquifer_tls::ca_client::Source as TokenSource;
use aquifer_tls::{CaConfig, CertManager, IstioCaClient, peer_identity};
use aquifer_xds::client::driver::{ClientConfig, RootCa, Token, run};
use aquifer_xds::client::metrics::ClientMetrics;
use aquifer_xds::client::session::Watch;
use aquifer_xds::client::{Rejected, ResourceSink, ResourceUpdate};
use bytes::Bytes;
use parking_lot::Mutex;
use rustls_pki_types::ServerName;
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::*;

/// What arrived, as the proxy would read it.
#[derive(Clone, Default)]
struct Sink(Arc<Mutex<BTreeMap<String, String>>>);

impl Sink {
    fn read(type_url: &str, body: Bytes) -> Result<String, String> {
        if type_url == ADDRESS {
            let wire = workload::Address::decode(body).map_err(|e| e.to_string())?;
            let address = from_proto::address(&wire).map_err(|e| e.to_string())?;
            return Ok(format!("{address:?}"));
        }
        let wire = Authorization::decode(body).map_err(|e| e.to_string())?;
        let policy = from_proto::authorization(&wire).map_err(|e| e.to_string())?;
        Ok(format!("{policy:?}"))
    }
}

impl ResourceSink for Sink {
    fn apply(&mut self, type_url: &str, updates: Vec<ResourceUpdate>) -> Vec<Rejected> {
        let mut held = self.0.lock();
        let mut rejected = Vec::new();
        for update in updates {
            match update {
                ResourceUpdate::Upsert { name, body, .. } => match Self::read(type_url, body) {
                    Ok(text) => drop(held.insert(name, text)),
                    Err(error) => rejected.push(Rejected { name, error }),
                },
                ResourceUpdate::Remove { name } => drop(held.remove(&name)),
            }
        }
        assert_eq!(rejected, []);
        rejected
    }
}

async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let started = tokio::time::Instant::now();
    while !holds() {
        assert!(started.elapsed() < PATIENCE, "not in time: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

impl World {
    fn token_file(&self) -> PathBuf {
        std::fs::write(self.path("token"), self.token()).unwrap();
        self.path("token")
    }

    pub(super) fn xds_client(&self, address: std::net::SocketAddr) -> ClientConfig {
        ClientConfig {
            address: format!("https://{address}"),
            alt_hostname: Some(NAME.into()),
            root_ca: RootCa::File(self.path("data/root-cert.pem")),
            token: Some(Token::File(self.token_file())),
            cluster_id: "Kubernetes".into(),
            headers: Vec::new(),
            node: node(),
            watches: vec![Watch::wildcard(ADDRESS), Watch::wildcard(AUTHORIZATION)],
        }
    }

    pub(super) fn ca_client(&self, address: std::net::SocketAddr) -> IstioCaClient {
        self.ca_client_of(address, Duration::from_secs(3600))
    }

    pub(super) fn ca_client_of(&self, address: std::net::SocketAddr, ttl: Duration) -> IstioCaClient {
        IstioCaClient::new(CaConfig {
            address: format!("https://{address}"),
            root: TokenSource::Path(self.path("data/root-cert.pem")).into(),
            alt_hostname: Some(NAME.into()),
            token: Some(TokenSource::Path(self.token_file())),
            cluster_id: "Kubernetes".into(),
            headers: Vec::new(),
            ttl,
            impersonate: true,
            timeout: PATIENCE,
        })
    }
}

#[tokio::test]
async fn the_node_proxy_follows_the_mesh_across_a_restart() {
    let world = World::new();
    let app = world.start().await;
    let address = app.addresses().secure;
    let (tracker, cancel) = (Tracker::new(), Cancel::new());
    let sink = Sink::default();
    let held = Arc::clone(&sink.0);
    let (synced, on_synced) = tokio::sync::oneshot::channel();
    let client = run(
        world.xds_client(address),
        sink,
        ClientMetrics::register(&mut Registry::default()),
        move || synced.send(()).unwrap_or_default(),
        cancel.clone(),
    );
    tracker.spawn("xds client", client);
    tokio::time::timeout(PATIENCE, on_synced).await.unwrap().unwrap();
    assert!(held.lock()[PAYMENTS].contains("v1"));
    assert!(held.lock().contains_key("shop/only-orders"));

    // Down and up again on the same port, with a change in between: the client comes back by itself.
    app.shutdown().await;
    world.write("payments.yaml", &payments("v2"));
    let mut config = world.config();
    config.listen.secure = address;
    // A client that tries again and again may meet itself there, for a moment.
    eventually("its port is free", || std::net::TcpListener::bind(address).is_ok()).await;
    let app = App::start(config).await.unwrap();
    eventually("the change after the restart", || held.lock()[PAYMENTS].contains("v2")).await;

    // A policy that goes takes its name off the workload.
    world.write("mesh.yaml", MESH.split("---\napiVersion: security").next().unwrap());
    eventually("the policy is gone", || {
        let held = held.lock();
        !held.contains_key("shop/only-orders") && !held[PAYMENTS].contains("only-orders")
    })
    .await;
    cancel.drain();
    app.shutdown().await;
    assert_eq!(tracker.panics(), 0);
}

#[tokio::test]
async fn two_pods_trust_each_other_with_what_they_are_issued() {
    let world = World::new();
    let orders = payments("v1").replace("payments", "orders").replace("uid: p1", "uid: o1").replace("17.3", "17.9");
    world.write("orders.yaml", &orders);
    let app = world.start().await;
    let (tracker, cancel) = (Tracker::new(), Cancel::new());
    let manager = Arc::new(CertManager::new());
    let runner = (Arc::clone(&manager), world.ca_client(app.addresses().secure), cancel.clone());
    tracker.spawn("certificates", async move { runner.0.run(runner.1, runner.2).await });

    let identity = |account: &str| Identity::new("cluster.local", "shop", account);
    let (orders, payments) = (identity("orders"), identity("payments"));
    manager.want(&orders);
    manager.want(&payments);
    let of_orders = tokio::time::timeout(PATIENCE, manager.get(&orders, tokio::time::Instant::now() + PATIENCE))
        .await
        .unwrap()
        .unwrap();
    let of_payments = tokio::time::timeout(PATIENCE, manager.get(&payments, tokio::time::Instant::now() + PATIENCE))
        .await
        .unwrap()
        .unwrap();

    let (near, far) = tokio::io::duplex(64 * 1024);
    let connector = TlsConnector::from(of_orders.client_config(std::slice::from_ref(&payments)));
    let acceptor = TlsAcceptor::from(Arc::clone(&of_payments.server));
    let name = ServerName::try_from("198.18.17.3").unwrap();
    let (client, server) = tokio::join!(connector.connect(name, near), acceptor.accept(far));
    let (client, server) = (client.unwrap(), server.unwrap());
    assert_eq!(peer_identity(server.get_ref().1), Some(orders));
    assert_eq!(peer_identity(client.get_ref().1), Some(payments));

    // Nobody of that name runs on the caller's node.
    let nobody = identity("nobody");
    manager.want(&nobody);
    assert!(
        tokio::time::timeout(PATIENCE, manager.get(&nobody, tokio::time::Instant::now() + PATIENCE))
            .await
            .unwrap()
            .is_err()
    );
    cancel.drain();
    app.shutdown().await;
}
