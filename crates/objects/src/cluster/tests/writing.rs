//! What is sent to write, and what its answers mean.

use http::Method;
use serde_json::{Value, json};

use super::fake::Fake;
use crate::kinds::{Kind, ObjectKey};
use crate::source::{Source, WriteError, Writer};

fn writer(fake: &Fake) -> Writer {
    Source::Cluster(fake.cluster()).writer("istio.io/gateway-controller")
}

fn pod() -> ObjectKey {
    ObjectKey::new(Kind::Pod, "shop", "web")
}

#[tokio::test(start_paused = true)]
async fn each_way_to_write() {
    let fake = Fake::default();
    let writer = writer(&fake);
    let service = json!({ "apiVersion": "v1", "kind": "Service", "metadata": { "name": "web", "namespace": "shop" }, "spec": {} });
    let key = writer.apply(service.clone()).await.unwrap();
    assert_eq!(key, ObjectKey::new(Kind::Service, "shop", "web"));
    writer.without_force().apply(service.clone()).await.unwrap();
    writer.create(service.clone()).await.unwrap();
    let policy = ObjectKey::new(Kind::AuthorizationPolicy, "shop", "deny");
    writer.apply_status(&policy, json!({ "conditions": [] })).await.unwrap();
    writer.patch(&policy, json!({ "metadata": { "labels": { "a": null } } })).await.unwrap();
    writer.patch_annotations(&pod(), Some("uid-1"), &[("a.istio.io/b", Some("c")), ("d", None)]).await.unwrap();
    writer.patch_annotations(&ObjectKey::new(Kind::Namespace, "", "shop"), None, &[("a", Some("b"))]).await.unwrap();
    writer.delete(&pod(), Some("uid-1")).await.unwrap();
    let class =
        json!({ "apiVersion": "gateway.networking.k8s.io/v1", "kind": "GatewayClass", "metadata": { "name": "w" } });
    writer.apply(class).await.unwrap();

    let manager = "fieldManager=istio.io%2Fgateway-controller";
    let requests = fake.state(|state| std::mem::take(&mut state.requests));
    let sent: Vec<(Method, String, String, String)> = requests
        .iter()
        .map(|seen| (seen.method.clone(), seen.path.clone(), seen.query.clone(), seen.content.clone()))
        .collect();
    let expect =
        |method: Method, path: &str, query: String, content: &str| (method, path.to_owned(), query, content.to_owned());
    let (apply, merge, plain) = ("application/apply-patch+yaml", "application/merge-patch+json", "application/json");
    let policy_path = "/apis/security.istio.io/v1/namespaces/shop/authorizationpolicies/deny";
    assert_eq!(
        sent,
        [
            expect(Method::PATCH, "/api/v1/namespaces/shop/services/web", format!("{manager}&force=true"), apply),
            expect(Method::PATCH, "/api/v1/namespaces/shop/services/web", format!("{manager}&force=false"), apply),
            expect(Method::POST, "/api/v1/namespaces/shop/services", manager.to_owned(), plain),
            expect(Method::PATCH, &format!("{policy_path}/status"), format!("{manager}&force=true"), apply),
            expect(Method::PATCH, policy_path, manager.to_owned(), merge),
            expect(Method::PATCH, "/api/v1/namespaces/shop/pods/web/status", manager.to_owned(), merge),
            expect(Method::PATCH, "/api/v1/namespaces/shop", manager.to_owned(), merge),
            expect(Method::DELETE, "/api/v1/namespaces/shop/pods/web", String::new(), plain),
            expect(
                Method::PATCH,
                "/apis/gateway.networking.k8s.io/v1/gatewayclasses/w",
                format!("{manager}&force=true"),
                apply
            ),
        ]
    );
    let status = json!({
        "apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy",
        "metadata": { "name": "deny", "namespace": "shop" }, "status": { "conditions": [] },
    });
    assert_eq!(requests[3].body, status);
    let annotations = json!({ "metadata": { "annotations": { "a.istio.io/b": "c", "d": null }, "uid": "uid-1" } });
    assert_eq!(requests[5].body, annotations);
    assert_eq!(requests[7].body["preconditions"], json!({ "uid": "uid-1" }));
}

#[tokio::test(start_paused = true)]
async fn each_answer_is_one_sentence() {
    let fake = Fake::default();
    let writer = writer(&fake);
    let answer = |code: u16, message: &str| (code, json!({ "kind": "Status", "code": code, "message": message }));
    let forbidden = "pods \"web\" is forbidden: User \"system:serviceaccount:istio-system:istio-cni\" cannot patch";
    let table: Vec<((u16, Value), WriteError)> = vec![
        (answer(404, "pods \"web\" not found"), WriteError::NotFound(pod())),
        (
            answer(409, "the UID in the precondition does not match"),
            WriteError::Conflict { key: pod(), message: "the UID in the precondition does not match".into() },
        ),
        (
            answer(403, forbidden),
            WriteError::Forbidden {
                key: pod(),
                message: format!(
                    "the RBAC rule apiGroups: [\"\"], resources: [\"pods/status\"], verbs: [\"patch\"] is missing in \
                     namespace shop ({forbidden})"
                ),
            },
        ),
        (answer(422, "is invalid"), WriteError::Invalid("Pod/shop/web: is invalid".into())),
        (
            (500, Value::String("out of order".into())),
            WriteError::Unavailable { key: pod(), message: "HTTP 500: \"out of order\"".into() },
        ),
    ];
    for (answer, expected) in table {
        fake.state(|state| state.written.push_back(answer));
        let error = writer.patch_annotations(&pod(), None, &[("a", None)]).await.unwrap_err();
        assert_eq!(error, expected);
        assert!(!error.to_string().contains('\n'));
    }
    fake.go_down();
    let error = writer.delete(&pod(), None).await.unwrap_err().to_string();
    assert!(error.starts_with("Pod/shop/web: not written: the API server cannot be reached: "), "{error}");
    let error = writer.apply(json!({ "kind": "Service", "apiVersion": "v1", "metadata": {} })).await.unwrap_err();
    assert_eq!(error, WriteError::Invalid("metadata.name: is missing".into()));
}

#[tokio::test(start_paused = true)]
async fn a_storm_of_writes_is_paced() {
    let fake = Fake::default();
    let writer = writer(&fake);
    let begun = tokio::time::Instant::now();
    for _ in 0..400 {
        writer.patch(&pod(), json!({})).await.unwrap();
    }
    let took = begun.elapsed().as_secs_f64();
    assert!((5.5..6.5).contains(&took), "400 writes in {took} s");
}
