use std::path::PathBuf;

use serde_json::{Value, json};
use tempfile::TempDir;

use super::*;
use crate::ca::node_auth::{NodeAuthorizer, Refusal};
use crate::ca::pods::{self, PodFacts, PodWriter};
use crate::test_support::{ISSUER, Signer, base64url, claims, write_jwks};

struct World {
    _dir: TempDir,
    jwks: PathBuf,
    signer: Signer,
    pods: PodWriter,
    table: Pods,
    authenticators: Authenticators,
}

fn pod(uid: &str, account: &str, node: &str) -> PodFacts {
    PodFacts { uid: uid.into(), service_account: account.into(), node: node.into(), ..PodFacts::default() }
}

/// A mesh with two nodes: ztunnel and `amb/server` on node1, `amb/client` on node2.
fn world() -> World {
    let dir = tempfile::tempdir().unwrap();
    let jwks = dir.path().join("jwks.json");
    let signer = Signer::ec("k1");
    write_jwks(&jwks, &[&signer]);
    let (pods, table) = pods::table();
    pods.upsert("istio-system", "ztunnel-1", pod("z1", "ztunnel", "node1"));
    pods.upsert("amb", "server-1", pod("s1", "server", "node1"));
    pods.upsert("amb", "client-1", pod("c1", "client", "node2"));
    let jwt = JwtAuthenticator::new(ISSUER.into(), vec!["istio-ca".into()], jwks.clone());
    let authenticators =
        Authenticators::new(vec![Authenticator::Jwt(jwt)], table.clone(), "Kubernetes".into(), "cluster.local".into());
    World { _dir: dir, jwks, signer, pods, table, authenticators }
}

fn ztunnel_claims() -> Value {
    claims("istio-system", "ztunnel", "ztunnel-1", "z1")
}

fn headers(pairs: &[(&'static str, &str)]) -> MetadataMap {
    let mut map = MetadataMap::new();
    for (key, value) in pairs {
        map.insert(*key, value.parse().unwrap());
    }
    map
}

impl World {
    async fn with(&self, pairs: &[(&'static str, &str)]) -> Result<Caller, AuthnError> {
        self.authenticators.authenticate(Credentials::of(&headers(pairs)), OffsetDateTime::now_utc()).await
    }

    async fn token(&self, token: &str) -> Result<Caller, AuthnError> {
        let value = format!("Bearer {token}");
        self.with(&[("authorization", &value), ("clusterid", "Kubernetes")]).await
    }

    async fn claims(&self, edit: impl FnOnce(&mut Value)) -> Result<Caller, AuthnError> {
        let mut claims = ztunnel_claims();
        edit(&mut claims);
        self.token(&self.signer.sign(&claims)).await
    }
}

#[tokio::test]
async fn a_good_token() {
    let world = world();
    let caller = world.claims(|_| {}).await.unwrap();
    assert_eq!(
        caller,
        Caller {
            namespace: "istio-system".into(),
            service_account: "ztunnel".into(),
            pod: Some(CallerPod { name: "ztunnel-1".into(), uid: "z1".into() }),
            cluster: Some("Kubernetes".into()),
        }
    );
}

#[tokio::test]
async fn claims_table() {
    let now = OffsetDateTime::now_utc().unix_timestamp();
    type Edit = Box<dyn FnOnce(&mut Value)>;
    let set = |key: &'static str, value: Value| -> Edit { Box::new(move |c| c[key] = value) };
    let k8s = |key: &'static str, value: Value| -> Edit { Box::new(move |c| c["kubernetes.io"][key] = value) };
    let cut = |key: &'static str| -> Edit {
        Box::new(move |c| {
            c.as_object_mut().unwrap().remove(key);
        })
    };
    let table: Vec<(Edit, Option<&str>)> = vec![
        (set("aud", json!("istio-ca")), None),
        (set("aud", json!(["other", "istio-ca"])), None),
        (set("nbf", json!(now + 5)), None),
        (set("exp", json!(now + 60)), None),
        (set("exp", json!(now as f64 + 60.5)), None),
        (set("exp", json!(now - 1)), Some("has expired")),
        (set("exp", json!("tomorrow")), Some("malformed")),
        (cut("exp"), Some("malformed")),
        (set("nbf", json!(now + 60)), Some("not valid yet")),
        (set("aud", json!("kubernetes.default.svc")), Some("audience")),
        (set("aud", json!([])), Some("audience")),
        (cut("aud"), Some("malformed")),
        (set("iss", json!("https://elsewhere")), Some("issuer")),
        (cut("iss"), Some("malformed")),
        (set("sub", json!("system:node:node1")), Some("not a service account")),
        (set("sub", json!("system:serviceaccount:istio-system")), Some("not a service account")),
        (set("sub", json!("system:serviceaccount::ztunnel")), Some("not a service account")),
        (set("sub", json!("system:serviceaccount:istio-system:a:b")), Some("not a service account")),
        (set("sub", json!("system:serviceaccount:other:ztunnel")), Some("not a service account")),
        (k8s("serviceaccount", json!({"name": "other"})), Some("not a service account")),
        (k8s("pod", json!({"name": "ztunnel-1", "uid": "old"})), Some("does not exist")),
        (k8s("pod", json!({"name": "ztunnel-1"})), Some("does not exist")),
        (k8s("pod", json!({"name": "gone", "uid": "z1"})), Some("does not exist")),
    ];
    let world = world();
    for (number, (edit, expect)) in table.into_iter().enumerate() {
        match (world.claims(edit).await, expect) {
            (Ok(_), None) => {}
            (Err(error), Some(text)) => {
                assert!(error.to_string().contains(text), "row {number}: {error}");
            }
            (got, expect) => panic!("row {number}: {got:?}, not {expect:?}"),
        }
    }
}

#[tokio::test]
async fn a_token_without_a_pod_names_its_account() {
    let world = world();
    let caller = world
        .claims(|c| {
            c.as_object_mut().unwrap().remove("kubernetes.io");
        })
        .await
        .unwrap();
    assert_eq!((caller.service_account.as_str(), caller.pod), ("ztunnel", None));
}

#[tokio::test]
async fn signatures_table() {
    let world = world();
    let good = world.signer.sign(&ztunnel_claims());
    let parts: Vec<&str> = good.split('.').collect();
    let none = format!("{}.{}.", base64url(br#"{"alg":"none","typ":"JWT"}"#), parts[1]);
    let hmac = {
        // The old confusion: the public key's text as a shared secret.
        let mut header = jsonwebtoken::Header::new(jsonwebtoken::Algorithm::HS256);
        header.kid = Some("k1".into());
        let secret = std::fs::read(&world.jwks).unwrap();
        let key = jsonwebtoken::EncodingKey::from_secret(&secret);
        jsonwebtoken::encode(&header, &ztunnel_claims(), &key).unwrap()
    };
    let stranger = Signer::ec("k1");
    let other_claims = world.signer.sign(&claims("amb", "client", "client-1", "c1"));
    let mixed = format!("{}.{}.{}", parts[0], other_claims.split('.').nth(1).unwrap(), parts[2]);
    let table = [
        (world.signer.sign_as(None, &ztunnel_claims()), None),
        (Signer::ec("k2").sign(&ztunnel_claims()), Some("no key")),
        (Signer::rsa("k1").sign(&ztunnel_claims()), Some("no key")),
        (stranger.sign(&ztunnel_claims()), Some("signature")),
        (stranger.sign_as(None, &ztunnel_claims()), Some("signature")),
        (mixed, Some("signature")),
        (none, Some("malformed")),
        (hmac, Some("no key")),
        (format!("{}.{}", parts[0], parts[1]), Some("malformed")),
        (format!("{good}.x"), Some("malformed")),
        ("not-a-token".into(), Some("malformed")),
        (String::new(), Some("")),
    ];
    for (number, (token, expect)) in table.into_iter().enumerate() {
        match (world.token(&token).await, expect) {
            (Ok(_), None) => {}
            (Err(error), Some(text)) => {
                assert!(error.to_string().contains(text), "row {number}: {error}");
            }
            (got, expect) => panic!("row {number}: {got:?}, not {expect:?}"),
        }
    }
}

#[tokio::test]
async fn headers_table() {
    let world = world();
    let token = world.signer.sign(&ztunnel_claims());
    let bearer = format!("Bearer {token}");
    let lower = format!("bearer {token}");
    let basic = format!("Basic {token}");
    let cluster = ("clusterid", "Kubernetes");
    assert!(world.with(&[("authorization", &bearer), cluster]).await.is_ok());
    assert!(world.with(&[("authorization", &lower), cluster]).await.is_ok());
    // Without the header the caller is known, but from no cluster.
    assert_eq!(world.with(&[("authorization", &bearer)]).await.unwrap().cluster, None);
    assert_eq!(world.with(&[("authorization", &bearer), ("clusterid", "")]).await.unwrap().cluster, None);
    let refused: [&[(&'static str, &str)]; 5] = [
        &[],
        &[cluster],
        &[("authorization", &basic), cluster],
        &[("authorization", &token), cluster],
        &[("authorization", &bearer), ("clusterid", "elsewhere")],
    ];
    for pairs in refused {
        assert!(world.with(pairs).await.is_err(), "{pairs:?}");
    }
}

#[tokio::test]
async fn the_token_of_a_deleted_pod_is_refused() {
    let world = world();
    assert!(world.claims(|_| {}).await.is_ok());
    world.pods.remove("istio-system", "ztunnel-1");
    assert!(matches!(world.claims(|_| {}).await, Err(AuthnError::PodGone { .. })));
    // Its name with another uid is another pod, and so is one with another account.
    world.pods.upsert("istio-system", "ztunnel-1", pod("z2", "ztunnel", "node1"));
    assert!(matches!(world.claims(|_| {}).await, Err(AuthnError::PodGone { .. })));
    world.pods.upsert("istio-system", "ztunnel-1", pod("z1", "other", "node1"));
    assert!(matches!(world.claims(|_| {}).await, Err(AuthnError::PodGone { .. })));
}

#[tokio::test]
async fn keys_are_read_again_and_the_last_good_ones_stay() {
    let world = world();
    let next = Signer::rsa("k2");
    let token = next.sign(&ztunnel_claims());
    assert!(world.token(&token).await.is_err());
    write_jwks(&world.jwks, &[&world.signer, &next]);
    assert!(world.token(&token).await.is_ok());
    std::fs::write(&world.jwks, "{ half a file").unwrap();
    assert!(world.token(&token).await.is_ok());
    std::fs::remove_file(&world.jwks).unwrap();
    assert!(world.token(&token).await.is_ok());
    write_jwks(&world.jwks, &[&next]);
    assert!(world.claims(|_| {}).await.is_err());
    assert!(world.token(&token).await.is_ok());
}

#[test]
fn key_files_that_cannot_serve() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("jwks.json");
    let check = || JwtAuthenticator::new(ISSUER.into(), vec![], path.clone()).check_keys();
    assert!(check().unwrap_err().contains("jwks.json"));
    for bad in [
        "",
        "{}",
        r#"{"keys":[]}"#,
        r#"{"keys":[{"kty":"oct","k":"c2VjcmV0","kid":"k1"}]}"#,
        r#"{"keys":[{"kty":"new","kid":"k1"}]}"#,
    ] {
        std::fs::write(&path, bad).unwrap();
        assert!(check().is_err(), "{bad}");
    }
    let jwk = Signer::ec("k").jwk();
    std::fs::write(&path, json!({"keys": [{"kty": "new"}, jwk]}).to_string()).unwrap();
    check().unwrap();
    let mut encryption = Signer::ec("k").jwk();
    encryption["use"] = json!("enc");
    std::fs::write(&path, json!({"keys": [encryption]}).to_string()).unwrap();
    assert!(check().is_err());
}

#[tokio::test]
async fn impersonation_table() {
    let world = world();
    let rule = NodeAuthorizer::new(
        [("istio-system".to_owned(), "ztunnel".to_owned())],
        "cluster.local".into(),
        world.table.clone(),
    );
    let ztunnel = world.claims(|_| {}).await.unwrap();
    let server = "spiffe://cluster.local/ns/amb/sa/server";
    let asks = |caller: &Caller, requested: &str| rule.authorize(caller, requested);

    assert_eq!(asks(&ztunnel, server).unwrap().to_string(), server);
    let refused = |edit: &dyn Fn(&mut Caller)| {
        let mut caller = ztunnel.clone();
        edit(&mut caller);
        asks(&caller, server).unwrap_err()
    };
    assert!(matches!(refused(&|c| c.service_account = "waypoint".into()), Refusal::NotTrusted(..)));
    assert!(matches!(refused(&|c| c.namespace = "amb".into()), Refusal::NotTrusted(..)));
    assert_eq!(refused(&|c| c.cluster = None), Refusal::NoCluster);
    assert_eq!(refused(&|c| c.pod = None), Refusal::NoPod);
    let other_uid = |c: &mut Caller| c.pod = Some(CallerPod { name: "ztunnel-1".into(), uid: "z0".into() });
    assert!(matches!(refused(&other_uid), Refusal::CallerPodGone(..)));

    for (requested, expect) in [
        ("spiffe://cluster.local/ns/amb/sa/client", "no pod of"),
        ("spiffe://cluster.local/ns/amb/sa/nobody", "no pod of"),
        ("spiffe://cluster.local/ns/other/sa/server", "no pod of"),
        ("spiffe://elsewhere.example/ns/amb/sa/server", "foreign trust domain"),
        ("spiffe://CLUSTER.LOCAL/ns/amb/sa/server", "foreign trust domain"),
        ("amb/server", "not a SPIFFE identity"),
        ("spiffe://cluster.local/ns/amb\n/sa/server", "not a SPIFFE identity"),
        ("spiffe://cluster.local/ns/amb/sa/server/", "not a SPIFFE identity"),
    ] {
        let error = asks(&ztunnel, requested).unwrap_err().to_string();
        assert!(error.contains(expect), "{requested}: {error}");
    }

    // The last pod of an identity that leaves the node, or fails, takes the right with it.
    world.pods.upsert("amb", "server-2", pod("s2", "server", "node1"));
    world.pods.remove("amb", "server-1");
    assert!(asks(&ztunnel, server).is_ok());
    world.pods.upsert("amb", "server-2", PodFacts { failed: true, ..pod("s2", "server", "node1") });
    assert!(matches!(asks(&ztunnel, server), Err(Refusal::NotOnNode { .. })));
    world.pods.upsert("amb", "server-2", pod("s2", "server", "node2"));
    assert!(matches!(asks(&ztunnel, server), Err(Refusal::NotOnNode { .. })));

    // A caller that is on no node, and pods that are on none, do not meet there.
    world.pods.upsert("istio-system", "ztunnel-1", pod("z1", "ztunnel", ""));
    world.pods.upsert("amb", "server-2", pod("s2", "server", ""));
    assert!(matches!(asks(&ztunnel, server), Err(Refusal::CallerPodGone(..))));
}

#[test]
fn facts_of_a_pod() {
    let pod: k8s_openapi::api::core::v1::Pod = serde_json::from_value(json!({
        "metadata": {"name": "p", "namespace": "n", "uid": "u"},
        "spec": {"nodeName": "node1", "containers": []},
        "status": {"phase": "Failed"},
    }))
    .unwrap();
    let facts = PodFacts::of(&pod);
    assert_eq!(facts, PodFacts { failed: true, ..self::pod("u", "default", "node1") });
}

mod pods_oracle {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Any sequence of changes answers as a table made of what is left.
        #[test]
        fn incremental_equals_rebuild(
            steps in prop::collection::vec((0..4_u8, 0..3_u8, 0..3_u8, any::<bool>(), any::<bool>()), 0..40)
        ) {
            let (writer, pods) = pods::table();
            let mut model = std::collections::BTreeMap::new();
            for (name, account, node, failed, remove) in steps {
                let name = format!("p{name}");
                if remove {
                    writer.remove("n", &name);
                    model.remove(&name);
                } else {
                    let facts = PodFacts { failed, ..pod(&name, &format!("a{account}"), &format!("n{node}")) };
                    writer.upsert("n", &name, facts.clone());
                    model.insert(name, facts);
                }
                for account in 0..3 {
                    for node in 0..3 {
                        let (account, node) = (format!("a{account}"), format!("n{node}"));
                        let expect = model.values().any(|p| !p.failed && p.node == node && p.service_account == account);
                        prop_assert_eq!(pods.runs_on(&node, "n", &account), expect);
                    }
                }
            }
        }
    }
}
