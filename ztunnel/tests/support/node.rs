//! A node proxy's data path without its control plane: the test publishes the mesh itself.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::time::{Duration, Instant, SystemTime};

use aquifer_core::from_proto;
use aquifer_core::identity::Identity;
use aquifer_core::state::Update;
use aquifer_core::store;
use aquifer_hbone::{PoolConfig, ServerConfig};
use aquifer_proto::{security, workload as wire};
use aquifer_runtime::env::MapEnv;
use aquifer_runtime::metrics::Registry;
use aquifer_runtime::{Cancel, Tracker};
use aquifer_tls::{CaClient, CaError, CertBundle, CertManager, TlsOptions};
use aquifer_xds::client::demand::{self, Demands};
use parking_lot::Mutex;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CertificateSigningRequestParams,
    CertifiedIssuer, DnType, IsCa, Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose, RevokedCertParams,
};
use tokio::sync::{mpsc, watch};
use ztunnel::certs::Identities;
use ztunnel::config::{self, Config, Surroundings};
use ztunnel::dns::lookup::Resolver;
use ztunnel::dns::upstream::Upstream;
use ztunnel::inpod::handover::{self, Predecessor};
use ztunnel::inpod::netns::Netns;
use ztunnel::inpod::packet::PacketListener;
use ztunnel::inpod::zds::{PodUid, WorkloadInfo};
use ztunnel::mesh::{MeshSink, grace};
use ztunnel::metrics::ProxyMetrics;
use ztunnel::on_demand::OnDemand;
use ztunnel::proxy::conn_table::Connections;
use ztunnel::proxy::pod::Shared;
use ztunnel::proxy::worker::Workers;

use super::net::TestPod;

/// From a fork to the program that it runs, at most.
const FORKED: Duration = Duration::from_secs(30);

/// Whether an authority does its work.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Answers {
    /// It signs what it is asked for.
    Always,
    /// It is asked, and says nothing.
    Never,
    /// There is none, as with CA_ADDRESS="".
    Absent,
}

/// Signs what it is asked for, with an intermediate certificate whose KeyUsage names certificates only.
#[derive(Clone)]
pub(crate) struct TestCa {
    issuer: Arc<Issuer<'static, KeyPair>>,
    /// The intermediate's certificate and the root's.
    chain: [Arc<str>; 2],
    serials: Arc<AtomicU64>,
    answers: Answers,
}

fn authority(name: &str, usages: &[KeyUsagePurpose]) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::OrganizationName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = usages.to_vec();
    params
}

impl TestCa {
    pub(crate) fn new() -> Self {
        let root = CertifiedIssuer::self_signed(authority("root", &[]), KeyPair::generate().unwrap()).unwrap();
        let params = authority("intermediate", &[KeyUsagePurpose::KeyCertSign]);
        let key = KeyPair::generate().unwrap();
        let own = params.signed_by(&key, &root).unwrap();
        let chain = [own.pem().into(), root.as_ref().pem().into()];
        let issuer = Arc::new(Issuer::new(params, key));
        Self { issuer, chain, serials: Arc::new(1.into()), answers: Answers::Always }
    }

    pub(crate) fn that(answers: Answers) -> Self {
        Self { answers, ..Self::new() }
    }

    pub(crate) fn issue(&self, identity: &Identity) -> CertBundle {
        let csr = aquifer_tls::csr::generate(identity).unwrap();
        let mut request = CertificateSigningRequestParams::from_pem(&csr.pem).unwrap();
        let now: time::OffsetDateTime = SystemTime::now().into();
        request.params.serial_number = Some(self.serials.fetch_add(1, SeqCst).into());
        request.params.not_before = now - Duration::from_secs(60);
        request.params.not_after = now + Duration::from_secs(3600);
        let leaf = request.signed_by(&self.issuer).unwrap().pem();
        let [own, root] = self.chain.clone().map(|pem| pem.to_string());
        CertBundle::from_chain(identity, csr.key, &[leaf, own, root], now).unwrap()
    }
}

impl TestCa {
    /// A list that names these certificates.
    pub(crate) fn crl(&self, serials: &[u64]) -> Vec<aquifer_tls::crl::List> {
        let now: time::OffsetDateTime = SystemTime::now().into();
        let named = |serial: &u64| RevokedCertParams {
            serial_number: (*serial).into(),
            revocation_time: now,
            reason_code: None,
            invalidity_date: None,
        };
        let params = CertificateRevocationListParams {
            this_update: now,
            next_update: now + Duration::from_secs(3600),
            crl_number: 1.into(),
            issuing_distribution_point: None,
            revoked_certs: serials.iter().map(named).collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        // rcgen minds the issuer's KeyUsage; whoever holds the key needn't.
        let signer = Issuer::new(authority("intermediate", &[]), self.issuer.key());
        let list = params.signed_by(&signer).unwrap();
        aquifer_tls::crl::parse(list.der()).unwrap().into_iter().map(|(list, _)| list).collect()
    }
}

impl CaClient for TestCa {
    async fn fetch(&self, identity: &Identity) -> Result<CertBundle, CaError> {
        match self.answers {
            Answers::Always => Ok(self.issue(identity)),
            Answers::Never | Answers::Absent => std::future::pending().await,
        }
    }
}

/// How long a node of these tests waits for what doesn't come.
pub(crate) const PATIENCE: Duration = Duration::from_secs(2);

/// One node.
pub(crate) struct Node {
    pub(crate) workers: Workers,
    pub(crate) metrics: Arc<ProxyMetrics>,
    pub(crate) cancel: Cancel,
    pub(crate) tracker: Tracker,
    certs: CertManager,
    sink: Mutex<MeshSink>,
    identities: Identities,
    state: store::Reader,
    control: Cancel,
    /// Who served the pods before, if anybody.
    pub(crate) predecessor: Predecessor,
    /// Names that this node resolves.
    pub(crate) hosts: tempfile::NamedTempFile,
}

impl Node {
    pub(crate) fn start(name: &'static str, ca: &TestCa, workers: usize) -> Self {
        Self::with_grace(name, ca, workers, grace::Settings::default())
    }

    /// With a time of its own for policies that are not known.
    pub(crate) fn with_grace(name: &'static str, ca: &TestCa, workers: usize, settings: grace::Settings) -> Self {
        Self::begin(name, ca, workers, None, settings, |_| ())
    }

    /// With other settings of its data path.
    pub(crate) fn with(name: &'static str, ca: &TestCa, workers: usize, change: fn(&mut config::Proxy)) -> Self {
        Self::begin(name, ca, workers, None, grace::Settings::default(), change)
    }

    /// One that asks for what it doesn't know, the test.
    pub(crate) fn start_on_demand(name: &'static str, ca: &TestCa, workers: usize) -> (Self, Demands) {
        let (demander, demands) = demand::channel();
        let on_demand = OnDemand::new(demander, Tracker::new());
        (Self::begin(name, ca, workers, Some(on_demand.into()), grace::Settings::default(), |_| ()), demands)
    }

    fn begin(
        name: &'static str,
        ca: &TestCa,
        workers: usize,
        on_demand: Option<Arc<OnDemand>>,
        settings: grace::Settings,
        change: fn(&mut config::Proxy),
    ) -> Self {
        let certs = match ca.answers {
            Answers::Always | Answers::Never => CertManager::new(),
            Answers::Absent => CertManager::without_authority(TlsOptions::default()),
        };
        let identities = Identities::new(name, certs.clone());
        let (writer, state) = store::store();
        let (published, published_rx) = watch::channel(0);
        let (changes, mut changes_rx) = mpsc::unbounded_channel();
        let sink = MeshSink::new(writer, identities.clone(), published, changes).with_grace(settings);
        let sink = Mutex::new(sink);
        let (cancel, control, tracker) = (Cancel::new(), Cancel::new(), Tracker::new());
        let metrics = Arc::new(ProxyMetrics::default());
        let mut proxy = data_path(name);
        if ca.answers != Answers::Always {
            proxy.handshake_timeout = PATIENCE;
        }
        change(&mut proxy);
        let hosts = tempfile::NamedTempFile::new().unwrap();
        let upstream = Upstream::new(Vec::new(), Netns::current().unwrap(), proxy.tcp, 1);
        let shared = Arc::new(Shared {
            config: proxy,
            state: state.clone(),
            published: published_rx,
            certs: certs.clone(),
            tracker: tracker.clone(),
            server: ServerConfig::default(),
            pool: PoolConfig::default(),
            warned_unspoofed: false.into(),
            dns: None,
            names: Resolver::new(upstream, Some(hosts.path().into()), true),
            on_demand,
        });
        let workers = Workers::start(workers, shared, metrics.clone(), cancel.clone()).unwrap();
        let control_tasks = Tracker::new();
        let (manager, ca, end) = (certs.clone(), ca.clone(), control.clone());
        control_tasks.spawn("certificates", async move { manager.run(ca, end).await });
        let judges = workers.clone();
        control_tasks.spawn("judge-again", async move {
            while let Some(change) = changes_rx.recv().await {
                judges.mesh_changed(change.policies).await;
            }
        });
        let giving_up = sink.lock().clone().give_up_policies();
        let end = control.clone();
        control_tasks.spawn("policy-grace", async move {
            tokio::select! {
                () = end.forced() => {}
                () = giving_up => {}
            }
        });
        let predecessor = Predecessor::default();
        Self { workers, metrics, cancel, tracker, certs, sink, identities, state, control, predecessor, hosts }
    }

    pub(crate) fn publish(&self, updates: Vec<Update>) {
        self.sink.lock().publish(updates);
    }

    pub(crate) fn enrol(&self, pod: &TestPod, name: &str) {
        // A program that another test is just starting still has what was open here, listeners among it.
        let begin = Instant::now();
        loop {
            match self.try_enrol(&pod.namespace.netns, name) {
                Err(error) if error.kind() == ErrorKind::AddrInUse && begin.elapsed() < FORKED => {
                    std::thread::sleep(Duration::from_millis(5));
                }
                done => return done.unwrap(),
            }
        }
    }

    pub(crate) fn try_enrol(&self, netns: &Netns, name: &str) -> std::io::Result<()> {
        let (uid, info) = (PodUid::new(name), info(name));
        let added = self.workers.add(&uid, &info, netns, &self.predecessor);
        // Tests are plain functions here and there, on one of their runtime's threads.
        tokio::task::block_in_place(|| tokio::runtime::Handle::current().block_on(added))?;
        self.identities.add(&uid, &info, &self.state.load());
        Ok(())
    }

    /// Hands its sockets over to whoever asks here.
    pub(crate) fn hand_over_at(&self, path: &std::path::Path) {
        let listener = PacketListener::bind(path).unwrap();
        let tasks = Tracker::new();
        let answers = handover::serve(listener, self.workers.clone(), tasks.clone(), self.control.clone());
        tasks.spawn("hand-over", answers);
    }

    /// The number of the certificate that a pod of this node shows.
    pub(crate) fn serial(&self, name: &str) -> u64 {
        let identity = Identity::new("cluster.local", "shop", name);
        self.certs.current(&identity).unwrap().leaf().serial.parse().unwrap()
    }

    /// Whether a pod of this node has its certificate.
    pub(crate) fn is_certified(&self, name: &str) -> bool {
        self.certs.current(&Identity::new("cluster.local", "shop", name)).is_some()
    }

    /// What CRL_PATH holds on this node from now on. Returns how many connections that cut.
    pub(crate) async fn revoke(&self, lists: Vec<aquifer_tls::crl::List>) -> usize {
        self.certs.revocations().publish(lists);
        self.workers.revocations_changed().await
    }

    pub(crate) fn page(&self) -> String {
        let mut registry = Registry::default();
        self.metrics.register(&mut registry);
        aquifer_runtime::metrics::encode(&registry)
    }

    pub(crate) async fn connections(&self) -> BTreeMap<PodUid, Connections> {
        self.workers.dump().await
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.cancel.force();
        self.control.force();
    }
}

/// The data path's settings on a node.
pub(crate) fn data_path(node: &str) -> config::Proxy {
    let env: MapEnv = [("NODE_NAME", node)].into();
    let around = Surroundings { mesh_file: None, cpus: 2, file_exists: |_| false };
    let mut proxy = Config::read(&env, &around).unwrap().proxy;
    proxy.connect_timeout = PATIENCE;
    proxy
}

/// Who a pod is.
pub(crate) fn info(name: &str) -> WorkloadInfo {
    WorkloadInfo { name: name.into(), namespace: "shop".into(), service_account: name.into() }
}

/// A pod's workload, an endpoint of service `name` at 198.19.0.n:80 → 8080.
pub(crate) fn workload(pod: &TestPod, name: &str, node: &str, hbone: bool) -> wire::Workload {
    let octets = |ip: std::net::IpAddr| match ip {
        std::net::IpAddr::V4(ip) => ip.octets().to_vec(),
        std::net::IpAddr::V6(ip) => ip.octets().to_vec(),
    };
    let ports =
        wire::PortList { ports: vec![wire::Port { service_port: 80, target_port: 8080, ..Default::default() }] };
    wire::Workload {
        uid: format!("Kubernetes//Pod/shop/{name}"),
        name: name.into(),
        namespace: "shop".into(),
        addresses: vec![octets(pod.v4).into(), octets(pod.v6).into()],
        node: node.into(),
        service_account: name.into(),
        workload_name: name.into(),
        canonical_name: name.into(),
        canonical_revision: "latest".into(),
        tunnel_protocol: i32::from(hbone),
        services: [(format!("shop/{name}.shop.svc.cluster.local"), ports)].into(),
        ..Default::default()
    }
}

pub(crate) fn service(name: &str, n: u8) -> Update {
    let service = wire::Service {
        name: name.into(),
        namespace: "shop".into(),
        hostname: format!("{name}.shop.svc.cluster.local"),
        addresses: vec![wire::NetworkAddress { address: vec![198, 19, 0, n].into(), ..Default::default() }],
        ports: vec![wire::Port { service_port: 80, target_port: 8080, ..Default::default() }],
        ..Default::default()
    };
    address(wire::address::Type::Service(service))
}

pub(crate) fn update(workload: wire::Workload) -> Update {
    address(wire::address::Type::Workload(workload))
}

fn address(kind: wire::address::Type) -> Update {
    match from_proto::address(&wire::Address { r#type: Some(kind) }).unwrap() {
        from_proto::Address::Workload(workload) => Update::Workload(workload),
        from_proto::Address::Service(service) => Update::Service(service),
    }
}

/// A policy in namespace `shop` about callers with these principals.
pub(crate) fn policy(name: &str, action: security::Action, principals: &[&str]) -> Update {
    let exact = |text: &&str| security::StringMatch {
        match_type: Some(security::string_match::MatchType::Exact((*text).to_owned())),
    };
    let matches = security::Match { principals: principals.iter().map(exact).collect(), ..Default::default() };
    let policy = security::Authorization {
        name: name.into(),
        namespace: "shop".into(),
        scope: security::Scope::Namespace as i32,
        action: action as i32,
        rules: vec![security::Rule { clauses: vec![security::Clause { matches: vec![matches] }] }],
        ..Default::default()
    };
    Update::Policy(from_proto::authorization(&policy).unwrap().into())
}
