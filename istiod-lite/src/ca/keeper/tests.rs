//! A rotation from its request to its end, over the folder store, through restarts, with handshakes at every step.

use std::sync::Arc;

use aquifer_core::identity::Identity;
use aquifer_objects::Folder;
use aquifer_proto::aquifer::RootBundle;
use aquifer_runtime::metrics::Registry;
use aquifer_tls::{CaClient, CaError, CertBundle, CertManager, TrustBundle};
use aquifer_xds::resource::ResourceSet;
use aquifer_xds::server::Source as _;
use parking_lot::Mutex;
use prost::Message as _;
use rustls_pki_types::{PrivateKeyDer, ServerName};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::*;
use crate::ca::ledger::{CONFIRMED_AFTER, holder};
use crate::ca::material::Material;
use crate::ca::pods::{PodFacts, PodWriter};
use crate::ca::root::LIFETIME;
use crate::ca::rotation::Goal;
use crate::ca::rotation::request::{self, Request};
use crate::ca::store::{CACERTS_NEXT, FolderStore};

const ROOT_NAMESPACE: &str = "istio-system";
const WORKLOADS: [&str; 2] = ["orders", "payments"];

fn seconds(n: i64) -> time::Duration {
    time::Duration::seconds(n)
}

/// A control plane over two folders. `now` is moved by hand.
struct World {
    dir: tempfile::TempDir,
    pods: Pods,
    _writer: PodWriter,
    publisher: Publisher,
    authority: Authority,
    ledger: Ledger,
    keeper: Keeper,
    leader: watch::Sender<bool>,
    now: OffsetDateTime,
    requests: u32,
}

fn facts(account: &str, captured: bool) -> PodFacts {
    PodFacts {
        uid: format!("u-{account}"),
        service_account: account.into(),
        node: "node1".into(),
        captured,
        failed: false,
    }
}

async fn open(dir: &tempfile::TempDir) -> Opened {
    let data = dir.path().join("data");
    let manifests = dir.path().join("manifests");
    std::fs::create_dir_all(&manifests).unwrap();
    let day = Duration::from_secs(86_400);
    let parts = Parts {
        settings: Settings {
            replica: "istiod-lite".into(),
            root_namespace: ROOT_NAMESPACE.into(),
            trust_domains: "cluster.local".into(),
            node_accounts: vec![(ROOT_NAMESPACE.into(), "ztunnel".into())],
            lifetimes: Lifetimes { default: day, max: day },
            min_overlap: 0,
        },
        store: Store::Folder(FolderStore::new(data.clone())),
        reports: Reports::folder(&data),
        source: Source::Folder(Folder::new(&manifests)),
        metrics: crate::metrics::Metrics::register(&mut Registry::default()).ca,
    };
    parts.open().await.unwrap()
}

impl World {
    async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let opened = open(&dir).await;
        let (writer, pods) = crate::ca::pods::table();
        writer.upsert(ROOT_NAMESPACE, "zt-1", facts("ztunnel", false));
        for account in WORKLOADS {
            writer.upsert("shop", account, facts(account, true));
        }
        let publisher = Publisher::new(ResourceSet::of_types([ROOT_BUNDLE]));
        let (leader, leads) = watch::channel(true);
        let (authority, ledger) = (opened.authority(), opened.ledger());
        let keeper = opened.keeper(publisher.clone(), Clients::default(), pods.clone(), leads);
        let now = OffsetDateTime::now_utc();
        Self { dir, pods, _writer: writer, publisher, authority, ledger, keeper, leader, now, requests: 0 }
    }

    /// The process ends and begins anew. What it had in memory is gone.
    async fn restart(&mut self) {
        let opened = open(&self.dir).await;
        (self.authority, self.ledger) = (opened.authority(), opened.ledger());
        self.publisher = Publisher::new(ResourceSet::of_types([ROOT_BUNDLE]));
        let leader = self.leader.subscribe();
        self.keeper = opened.keeper(self.publisher.clone(), Clients::default(), self.pods.clone(), leader);
    }

    async fn ask(&mut self, goal: Goal) -> String {
        if goal == Goal::Complete {
            self.requests += 1;
        }
        let request = Request { id: format!("r{}", self.requests), goal };
        let object = request::request_object(ROOT_NAMESPACE, &request);
        self.keeper.source.writer("aquifer-cli").apply(object).await.unwrap();
        request.id
    }

    async fn tick(&mut self) -> Option<Status> {
        self.now += seconds(1);
        self.keeper.tick(self.now).await;
        assert_eq!(self.keeper.complained, "");
        let object = self.keeper.source.get(&request::key(ROOT_NAMESPACE)).await.unwrap();
        object.as_ref().and_then(request::status)
    }

    /// As if the node's proxy had had all of its certificates issued, a while ago.
    fn reissue(&mut self) {
        let active = self.authority.load();
        for account in WORKLOADS {
            let identity = format!("spiffe://cluster.local/ns/shop/sa/{account}");
            self.ledger.record(active.step.as_ref(), holder("u-ztunnel", &identity), 86_400, self.now.unix_timestamp());
        }
        self.now += seconds(CONFIRMED_AFTER);
    }

    async fn until(&mut self, phase: &str) -> Status {
        for _ in 0..20 {
            match self.tick().await {
                Some(status) if status.phase == phase => return status,
                _ => {}
            }
        }
        panic!("{phase} is not reached: {:?}", self.keeper.told);
    }

    fn signer(&self) -> String {
        self.authority.load().issuer.id().0.clone()
    }

    fn published(&self) -> RootBundle {
        let set = self.publisher.snapshot();
        RootBundle::decode(set.get(ROOT_BUNDLE, BUNDLE).unwrap().body.clone()).unwrap()
    }

    fn mounted(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("data/root-cert.pem")).unwrap()
    }

    fn trusted(&self) -> usize {
        let bundle = self.published().roots;
        // Whoever is told is told the same.
        assert_eq!(bundle, self.authority.load().issuer.root_bundle());
        assert_eq!(bundle, self.mounted());
        bundle.matches("BEGIN").count()
    }
}

#[tokio::test]
async fn a_rotation_goes_from_phase_to_phase_and_waits_for_who_lags() {
    let mut world = World::new().await;
    assert_eq!(world.tick().await, None);
    let old = world.signer();
    let id = world.ask(Goal::Complete).await;
    let status = world.until("overlap").await;
    assert_eq!((status.request.as_str(), status.signer.as_str(), world.trusted()), (id.as_str(), old.as_str(), 2));

    // The node's proxy is not connected, and has certificates of before.
    for _ in 0..5 {
        world.tick().await;
    }
    assert_eq!((world.signer(), world.trusted()), (old.clone(), 2));
    let status = world.tick().await.unwrap();
    assert_eq!((status.phase.as_str(), status.lagging.len()), ("overlap", 1));
    assert_eq!(status.lagging[0].who, "istio-system/zt-1");
    assert!(status.lagging[0].why.contains("is not connected; not issued anew since: spiffe://"), "{status:?}");

    world.reissue();
    world.until("cut-over").await;
    world.tick().await;
    let new = world.signer();
    assert_ne!(new, old);
    assert_eq!(world.trusted(), 2);
    // What was issued before, and what is issued while replicas may still differ, proves nothing.
    world.tick().await;
    world.tick().await;
    assert!(world.published().renewal.starts_with(&id));
    let status = world.tick().await.unwrap();
    assert!(status.lagging[0].why.starts_with("not issued anew since"), "{status:?}");
    let serving = world.authority.load().serving.id().0.clone();
    assert_eq!(serving, old, "mounted files have known this one for longest");

    world.reissue();
    let status = world.until("completed").await;
    assert_eq!((status.signer.as_str(), world.trusted()), (new.as_str(), 1));
    assert!(!world.mounted().is_empty() && world.published().renewal.is_empty());
    // It is done once.
    for _ in 0..3 {
        assert_eq!(world.tick().await.unwrap().phase, "completed");
    }
    world.restart().await;
    world.tick().await;
    assert_eq!((world.signer(), world.trusted()), (new, 1));
}

#[tokio::test]
async fn a_rotation_survives_restarts_at_every_step() {
    let mut world = World::new().await;
    let old = world.signer();
    world.ask(Goal::Complete).await;
    let mut seen = Vec::new();
    for _ in 0..40 {
        let Some(status) = world.tick().await else { continue };
        if seen.last() != Some(&status.phase) {
            seen.push(status.phase.clone());
        }
        world.reissue();
        // What was issued is reported before the process ends.
        world.tick().await;
        let (signer, bundle) = (world.signer(), world.published().roots);
        world.restart().await;
        assert_eq!((world.signer(), world.published().roots), (signer, bundle));
    }
    assert_eq!(seen, ["overlap", "cut-over", "completed"]);
    assert_ne!(world.signer(), old);
}

#[tokio::test]
async fn an_abort_leaves_the_old_root() {
    for late in [false, true] {
        let mut world = World::new().await;
        let old = world.signer();
        world.ask(Goal::Complete).await;
        world.until("overlap").await;
        if late {
            world.tick().await;
            world.tick().await;
            world.reissue();
            world.until("cut-over").await;
            world.tick().await;
            assert_ne!(world.signer(), old);
        }
        world.ask(Goal::Abort).await;
        for _ in 0..6 {
            world.tick().await;
            world.reissue();
        }
        let status = world.until("aborted").await;
        assert_eq!((status.signer, world.signer(), world.trusted()), (old.clone(), old.clone(), 1), "late {late}");
        world.restart().await;
        assert_eq!(world.signer(), old);
    }
}

#[tokio::test]
async fn what_cannot_be_is_refused_once_and_with_a_remedy() {
    let mut world = World::new().await;
    world.requests = 1;
    world.ask(Goal::Abort).await;
    assert!(world.until("refused").await.message.contains("no rotation to abort"));

    // An operator's own signer is replaced by an operator's own signer.
    let (data, now) = (world.dir.path().join("data"), world.now);
    let put = |folder: &str| {
        let material = Material::self_signed("own", LIFETIME, now).unwrap();
        std::fs::create_dir_all(data.join(folder)).unwrap();
        for (name, content) in material.entries() {
            crate::ca::root::overwrite(&data.join(folder).join(name), &content, 0o600).unwrap();
        }
        material.signer(now).unwrap().id().0
    };
    let plugged = put("cacerts");
    world.tick().await;
    assert_eq!(world.signer(), plugged, "a changed signer acts without a restart");
    world.ask(Goal::Complete).await;
    let status = world.until("refused").await;
    assert!(status.message.contains("cacerts-next"), "{status:?}");

    let next = put(CACERTS_NEXT);
    world.ask(Goal::Complete).await;
    for _ in 0..8 {
        world.tick().await;
        world.reissue();
    }
    assert_eq!(world.until("completed").await.signer, next);
    assert!(!data.join(CACERTS_NEXT).exists());
    world.restart().await;
    assert_eq!((world.signer(), world.trusted()), (next, 1));
}

#[tokio::test]
async fn only_the_leader_moves_it() {
    let mut world = World::new().await;
    world.leader.send_replace(false);
    world.ask(Goal::Complete).await;
    for _ in 0..3 {
        assert_eq!(world.tick().await, None);
    }
    world.leader.send_replace(true);
    world.until("overlap").await;
}

#[tokio::test]
async fn a_signer_that_is_broken_later_changes_nothing() {
    let mut world = World::new().await;
    let signer = world.signer();
    std::fs::create_dir_all(world.dir.path().join("data/cacerts")).unwrap();
    std::fs::write(world.dir.path().join("data/cacerts/ca-cert.pem"), "nonsense").unwrap();
    world.keeper.tick(world.now).await;
    assert!(world.keeper.complained.contains("cacerts"), "{}", world.keeper.complained);
    assert_eq!(world.signer(), signer);
}

/// Issues by whatever signs at the moment.
struct Direct(Arc<Mutex<Authority>>, Arc<Mutex<Ledger>>);

impl CaClient for Direct {
    async fn fetch(&self, identity: &Identity) -> Result<CertBundle, CaError> {
        let csr = aquifer_tls::csr::generate(identity)?;
        let (active, now) = (self.0.lock().load(), OffsetDateTime::now_utc());
        let chain = active.issuer.issue(&csr.pem, identity, 3600, now).unwrap();
        let step = active.step.as_ref();
        let pod = format!("u-{}", identity.service_account);
        self.1.lock().record(step, holder(&pod, &identity.to_string()), 3600, now.unix_timestamp());
        let key = PrivateKeyDer::try_from(csr.key.secret_der().to_vec()).unwrap();
        Ok(CertBundle::from_chain(identity, key, &chain, now)?)
    }
}

async fn handshake(client: &CertManager, of: &Identity, server: &CertManager, to: &Identity) -> Result<(), String> {
    let from = client.current(of).ok_or("no certificate")?;
    let accepts = server.current(to).ok_or("no certificate")?;
    let (near, far) = tokio::io::duplex(64 * 1024);
    let connector = TlsConnector::from(from.client_config(std::slice::from_ref(to)));
    let acceptor = TlsAcceptor::from(Arc::clone(&accepts.server));
    let name = ServerName::try_from("198.18.0.1").unwrap();
    let (a, b) = tokio::join!(connector.connect(name, near), acceptor.accept(far));
    a.map(|_| ()).and(b.map(|_| ())).map_err(|e| e.to_string())
}

#[tokio::test]
async fn no_handshake_fails_from_the_first_phase_to_the_last() {
    aquifer_tls::provider::install(aquifer_tls::TlsPolicy::default());
    let mut world = World::new().await;
    let authority = Arc::new(Mutex::new(world.authority.clone()));
    let ledger = Arc::new(Mutex::new(Ledger::default()));
    let identity = |account: &str| Identity::new("cluster.local", "shop", account);
    // The first hears of bundles; the second trusts what comes with its certificates, and renews late.
    let ids = WORKLOADS.map(identity);
    let managers = [CertManager::new(), CertManager::new()];
    let (tracker, cancel) = (aquifer_runtime::Tracker::new(), Cancel::new());
    let start = |manager: &CertManager, id: &Identity| {
        manager.want(id);
        let ca = Direct(Arc::clone(&authority), Arc::clone(&ledger));
        let (manager, cancel) = (manager.clone(), cancel.clone());
        tracker.spawn("certificates", async move { manager.run(ca, cancel).await });
    };
    for (manager, id) in managers.iter().zip(&ids) {
        start(manager, id);
    }
    let deadline = || tokio::time::Instant::now() + Duration::from_secs(20);
    for (manager, id) in managers.iter().zip(&ids) {
        manager.get(id, deadline()).await.unwrap();
    }
    let all = async |managers: &[CertManager; 2], when: &str| {
        for (c, client) in managers.iter().enumerate() {
            for (s, server) in managers.iter().enumerate() {
                let result = handshake(client, &ids[c], server, &ids[s]).await;
                assert_eq!(result, Ok(()), "{when}: {c} to {s}");
            }
        }
    };
    let renewed = async |manager: &CertManager, id: &Identity| {
        manager.forget(id);
        manager.want(id);
        manager.get(id, deadline()).await.unwrap();
    };
    let adopt = |manager: &CertManager, world: &World| {
        let bundle = world.published();
        manager.adopt(Some(TrustBundle::new(&bundle.roots, "").unwrap())).unwrap();
    };
    all(&managers, "before").await;
    world.ask(Goal::Complete).await;
    world.until("overlap").await;
    world.tick().await;
    all(&managers, "overlap begins").await;
    adopt(&managers[0], &world);
    all(&managers, "one has adopted both roots").await;
    renewed(&managers[1], &ids[1]).await;
    all(&managers, "both trust both").await;
    world.tick().await;
    world.reissue();
    world.until("cut-over").await;
    world.tick().await;
    all(&managers, "cut over").await;
    renewed(&managers[1], &ids[1]).await;
    all(&managers, "one certificate of the new root").await;
    world.tick().await;
    adopt(&managers[0], &world);
    renewed(&managers[0], &ids[0]).await;
    all(&managers, "both certificates of the new root").await;
    world.tick().await;
    world.reissue();
    world.until("completed").await;
    adopt(&managers[0], &world);
    all(&managers, "the first trusts the new root alone").await;
    renewed(&managers[1], &ids[1]).await;
    all(&managers, "both do").await;
    // And a certificate of the old root would not pass any more.
    let roots = managers.each_ref().map(|m| m.dump()[0].configs.as_ref().unwrap().roots().len());
    assert_eq!(roots, [1, 1]);
    cancel.drain();
}
