//! The certificate authority on a real API server: tokens that it reviews, signers in Secrets, a rotation of two replicas.

use std::time::Duration;

use aquifer_istiod_lite::ca::issuer::Lifetimes;
use aquifer_istiod_lite::ca::keeper::{Keeper, Parts, Settings};
use aquifer_istiod_lite::ca::material::Material;
use aquifer_istiod_lite::ca::pods;
use aquifer_istiod_lite::ca::rotation::Goal;
use aquifer_istiod_lite::ca::rotation::reports::Reports;
use aquifer_istiod_lite::ca::rotation::request::{self, Request, Status};
use aquifer_istiod_lite::ca::store::{Place, SecretStore, Signing, Store, StoreError};
use aquifer_istiod_lite::ca::token_review::{ApiServer as Reviews, ReviewError, TokenReviewer};
use aquifer_istiod_lite::metrics::Metrics;
use aquifer_objects::Source;
use aquifer_proto::type_url::ROOT_BUNDLE;
use aquifer_runtime::metrics::Registry;
use aquifer_xds::resource::ResourceSet;
use aquifer_xds::server::{Clients, Publisher};
use serde_json::json;
use time::OffsetDateTime;
use tokio::sync::watch;

use crate::harness::{ApiServer, ready_pod};
use crate::source::source_of;

const TRUST_DOMAIN: &str = "cluster.local";

fn now() -> OffsetDateTime {
    OffsetDateTime::now_utc()
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_are_reviewed() {
    let server = ApiServer::shared().await;
    let namespace = server.namespace("tokens").await;
    let account = json!({ "apiVersion": "v1", "kind": "ServiceAccount", "metadata": { "name": "ztunnel", "namespace": namespace } });
    server.apply_object(account).await;
    let pod = server.apply_object(ready_pod(&namespace, "zt-1", "ztunnel", "node1", "10.9.0.1", &json!({}))).await;
    let uid = pod["metadata"]["uid"].as_str().expect("a uid").to_owned();
    let bound = Some(("zt-1", uid.as_str()));
    let ours = server.token(&namespace, "ztunnel", &["istio-ca"], bound, 3600).await;
    let unbound = server.token(&namespace, "ztunnel", &["istio-ca"], None, 3600).await;
    let foreign = server.token(&namespace, "ztunnel", &["vault"], bound, 3600).await;
    let reviewer = |audience: &str| {
        let client = server.client();
        let audiences = vec![audience.to_owned()];
        async { TokenReviewer::new(Reviews(client.await), audiences) }
    };
    let ask = async |token: &str| reviewer("istio-ca").await.subject(token, None, now()).await;

    let subject = ask(&ours).await.expect("a good token");
    assert_eq!((subject.namespace.as_str(), subject.service_account.as_str()), (namespace.as_str(), "ztunnel"));
    assert_eq!(subject.pod, Some(("zt-1".to_owned(), uid.clone())));
    assert_eq!(ask(&unbound).await.expect("a good token").pod, None);
    assert_eq!(ask(&foreign).await, Err(ReviewError::Audience(vec!["vault".into()])));
    // Signed by nobody.
    let mut parts: Vec<&str> = ours.split('.').collect();
    let forged = "AAAA".repeat(20);
    parts[2] = &forged;
    let forged = parts.join(".");
    assert!(matches!(ask(&forged).await, Err(ReviewError::Refused(_))));

    // With its pod a bound token ends; the other does not.
    let path = format!("/api/v1/namespaces/{namespace}/pods/zt-1?gracePeriodSeconds=0");
    let delete = http::Request::delete(path).body(Vec::new()).expect("a request");
    server.client().await.request::<serde_json::Value>(delete).await.expect("the pod is deleted");
    crate::harness::eventually("the token ends", Duration::from_secs(20), async || match ask(&ours).await {
        Err(ReviewError::Refused(_)) => Ok(()),
        other => Err(format!("{other:?}")),
    })
    .await;
    assert!(ask(&unbound).await.is_ok());
}

async fn store(server: &ApiServer, namespace: &str) -> SecretStore {
    SecretStore::new(server.client().await, namespace)
}

async fn signer(store: &Store) -> Result<(String, Place), StoreError> {
    match store.load(TRUST_DOMAIN, now()).await?.signing {
        Signing::Plain(material, place) => Ok((material.signer(now()).expect("a good signer").id().0, place)),
        Signing::Rotating(kept) => panic!("{:?}", kept.rotation),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn replicas_that_start_together_make_one_root() {
    let server = ApiServer::shared().await;
    let namespace = server.namespace("root").await;
    let mut starting = tokio::task::JoinSet::new();
    for _ in 0..6 {
        let store = Store::Secrets(Box::new(store(server, &namespace).await));
        starting.spawn(async move { signer(&store).await.expect("a signer") });
    }
    let mut signers = starting.join_all().await;
    signers.dedup();
    assert_eq!(signers.len(), 1, "{signers:?}");
    assert_eq!(signers[0].1, Place::SelfSigned);
    let secret = server.get("v1", "Secret", &namespace, "istio-ca-secret").await.expect("the Secret");
    assert_eq!(secret["type"], "istio.io/ca-root");
    let keys: Vec<&String> = secret["data"].as_object().expect("data").keys().collect();
    assert_eq!(keys, ["ca-cert.pem", "ca-key.pem", "cert-chain.pem", "root-cert.pem"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn istios_own_signers_are_adopted_as_they_are() {
    let server = ApiServer::shared().await;
    let namespace = server.namespace("adopt").await;
    let store = Store::Secrets(Box::new(store(server, &namespace).await));
    let put = async |name: &str, kind: &str| {
        let made = Material::self_signed("istio", time::Duration::days(1), now()).expect("a root");
        let data: serde_json::Map<String, serde_json::Value> =
            made.entries().into_iter().map(|(k, v)| (k, String::from_utf8(v).expect("PEM").into())).collect();
        let secret = json!({
            "apiVersion": "v1", "kind": "Secret", "type": kind,
            "metadata": { "name": name, "namespace": namespace },
            "stringData": data,
        });
        server.apply_object(secret).await;
        made.signer(now()).expect("a good signer").id().0
    };
    let own = put("istio-ca-secret", "istio.io/ca-root").await;
    assert_eq!(signer(&store).await.expect("a signer"), (own, Place::SelfSigned));
    let plugged = put("cacerts", "Opaque").await;
    assert_eq!(signer(&store).await.expect("a signer"), (plugged, Place::PluggedIn));
}

struct Replica {
    keeper: Keeper,
    leader: watch::Sender<bool>,
}

/// A replica that ticks when it is told to.
async fn replica(source: &Source, store: SecretStore, namespace: &str, name: &str) -> Replica {
    let day = Duration::from_secs(86_400);
    let parts = Parts {
        settings: Settings {
            replica: name.to_owned(),
            root_namespace: namespace.to_owned(),
            trust_domains: TRUST_DOMAIN.into(),
            node_accounts: Vec::new(),
            lifetimes: Lifetimes { default: day, max: day },
            min_overlap: 0,
        },
        store: Store::Secrets(Box::new(store)),
        reports: Reports::Cluster { source: source.clone(), namespace: namespace.to_owned() },
        source: source.clone(),
        metrics: Metrics::register(&mut Registry::default()).ca,
    };
    let opened = parts.open().await.expect("a signer");
    let (leader, leads) = watch::channel(false);
    let publisher = Publisher::new(ResourceSet::of_types([ROOT_BUNDLE]));
    let mut keeper = opened.keeper(publisher, Clients::default(), pods::table().1, leads);
    keeper.announce().await.expect("a report");
    Replica { keeper, leader }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rotation_of_two_replicas_waits_for_both_and_survives_a_change_of_leader() {
    let server = ApiServer::shared().await;
    let namespace = server.namespace("rotate").await;
    let source = source_of(&server.kubeconfig()).await;
    let secrets = store(server, &namespace).await;
    let all = Store::Secrets(Box::new(secrets.clone()));
    let mut a = replica(&source, secrets.clone(), &namespace, "istiod-a").await;
    let mut b = replica(&source, secrets.clone(), &namespace, "istiod-b").await;
    let old = signer(&all).await.expect("a signer").0;
    let request = Request { id: "r1".into(), goal: Goal::Complete };
    source.writer("aquifer-cli").apply(request::request_object(&namespace, &request)).await.expect("a request");
    let status = async || -> Status {
        let object = source.get(&request::key(&namespace)).await.expect("an answer").expect("the ConfigMap");
        request::status(&object).expect("a status")
    };

    a.leader.send_replace(true);
    for _ in 0..4 {
        a.keeper.tick(now()).await;
    }
    // The other has not heard of it, and is named.
    let said = status().await;
    assert_eq!((said.phase.as_str(), said.lagging.len()), ("overlap", 1), "{said:?}");
    assert_eq!(said.lagging[0].who, "istiod-lite istiod-b");

    // The leader dies; the other takes over what is kept.
    a.leader.send_replace(false);
    b.leader.send_replace(true);
    for _ in 0..12 {
        b.keeper.tick(now()).await;
        a.keeper.tick(now()).await;
    }
    let said = status().await;
    assert_eq!(said.phase, "completed", "{said:?}");
    let (new, place) = signer(&all).await.expect("a signer");
    assert!(new != old && place == Place::SelfSigned && new == said.signer);
    let kept = server.get("v1", "Secret", &namespace, "aquifer-root-rotation").await.expect("the Secret");
    assert!(!kept.to_string().contains("PRIVATE"), "no key stays where it is not needed");
}
