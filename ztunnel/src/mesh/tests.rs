use aquifer_core::store;
use aquifer_proto::security::Action;
use aquifer_tls::CertManager;
use prost::Message;

use super::*;
use crate::inpod::zds::{PodUid, WorkloadInfo};
use crate::testing::{namespace_policy, pod};

struct Fixture {
    sink: MeshSink,
    state: store::Reader,
    certs: CertManager,
    identities: Identities,
    published: watch::Receiver<u64>,
    changes: mpsc::UnboundedReceiver<Change>,
}

fn fixture() -> Fixture {
    let certs = CertManager::new();
    let identities = Identities::new("node1", certs.clone());
    let (writer, state) = store::store();
    let (published, published_rx) = watch::channel(0);
    let (changes, changes_rx) = mpsc::unbounded_channel();
    let sink = MeshSink::new(writer, identities.clone(), published, changes);
    Fixture { sink, state, certs, identities, published: published_rx, changes: changes_rx }
}

fn address(workload: workload::Workload) -> ResourceUpdate {
    let name = workload.uid.clone();
    let body = workload::Address { r#type: Some(workload::address::Type::Workload(workload)) }.encode_to_vec();
    ResourceUpdate::Upsert { name, version: String::new(), aliases: Vec::new(), body: body.into() }
}

fn identities(certs: &CertManager) -> Vec<String> {
    certs.dump().iter().map(|status| status.identity.to_string()).collect()
}

#[tokio::test]
async fn one_response_is_one_publication_and_a_bad_resource_is_named_while_the_rest_applies() {
    let mut f = fixture();
    let mut legacy = pod("shop", "legacy", [10, 0, 0, 3]);
    legacy.tunnel_protocol = workload::TunnelProtocol::LegacyIstioMtls as i32;
    let garbage = ResourceUpdate::Upsert {
        name: "garbage".into(),
        version: String::new(),
        aliases: Vec::new(),
        body: vec![0xff, 0xff].into(),
    };
    let updates = vec![
        address(pod("shop", "web", [10, 0, 0, 1])),
        address(legacy),
        garbage,
        address(pod("shop", "cart", [10, 0, 0, 2])),
    ];
    let rejected = f.sink.apply(type_url::ADDRESS, updates);
    let names: Vec<&str> = rejected.iter().map(|r| r.name.as_str()).collect();
    assert_eq!(names, ["Kubernetes//Pod/shop/legacy", "garbage"]);
    assert!(rejected[0].error.contains("LEGACY_ISTIO_MTLS"), "{rejected:?}");
    assert_eq!(f.state.load().workloads().count(), 2);
    assert_eq!(*f.published.borrow_and_update(), 1);
    assert_eq!(f.changes.try_recv(), Ok(Change { policies: false }));
    assert!(f.changes.try_recv().is_err());

    let policy = namespace_policy("shop", "p", Action::Deny, &["x"]).encode_to_vec();
    let policy = ResourceUpdate::Upsert {
        name: "shop/p".into(),
        version: String::new(),
        aliases: Vec::new(),
        body: policy.into(),
    };
    assert!(f.sink.apply(type_url::AUTHORIZATION, vec![policy]).is_empty());
    assert_eq!(f.changes.try_recv(), Ok(Change { policies: true }));
    assert_eq!(f.state.load().policies().count(), 1);
    f.sink.apply(type_url::AUTHORIZATION, vec![ResourceUpdate::Remove { name: "shop/p".into() }]);
    assert_eq!(f.state.load().policies().count(), 0);
}

#[tokio::test]
async fn an_empty_answer_publishes_nothing() {
    let mut f = fixture();
    assert!(f.sink.apply(type_url::AUTHORIZATION, Vec::new()).is_empty());
    assert!(!f.published.has_changed().unwrap());
}

#[tokio::test]
async fn certificates_are_kept_for_what_is_here_and_no_longer() {
    let mut f = fixture();
    let mut elsewhere = pod("shop", "far", [10, 0, 1, 1]);
    elsewhere.node = "node2".into();
    let mut plain = pod("shop", "plain", [10, 0, 0, 4]);
    plain.tunnel_protocol = 0;
    let web = pod("shop", "web", [10, 0, 0, 1]);
    let mut twin = pod("shop", "web-2", [10, 0, 0, 5]);
    twin.service_account = "web".into();
    f.sink.apply(type_url::ADDRESS, [elsewhere, plain, web, twin].map(address).into());
    assert_eq!(identities(&f.certs), ["spiffe://cluster.local/ns/shop/sa/web"]);

    // Enrolled, though not yet called HBONE by the control plane.
    let uid = PodUid::new("1");
    let info = WorkloadInfo { name: "plain".into(), namespace: "shop".into(), service_account: "plain".into() };
    f.identities.add(&uid, &info, &f.state.load());
    assert_eq!(
        identities(&f.certs),
        ["spiffe://cluster.local/ns/shop/sa/plain", "spiffe://cluster.local/ns/shop/sa/web"]
    );
    f.identities.remove(&uid, &f.state.load());
    let remove = |name: &str| ResourceUpdate::Remove { name: format!("Kubernetes//Pod/shop/{name}") };
    f.sink.apply(type_url::ADDRESS, vec![remove("web")]);
    assert_eq!(identities(&f.certs), ["spiffe://cluster.local/ns/shop/sa/web"], "its twin is still here");
    f.sink.apply(type_url::ADDRESS, vec![remove("web-2")]);
    assert!(identities(&f.certs).is_empty());
}
