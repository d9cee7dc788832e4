//! The harness itself: what the other tests build on.

use std::time::Duration;

use serde_json::json;

use crate::harness::{ApiServer, Link, client_of, eventually, ready_pod};

#[tokio::test(flavor = "multi_thread")]
async fn objects_tokens_and_reviews() {
    let server = ApiServer::start().await;
    let shop = server.namespace("shop").await;
    server
        .apply(&format!(
            "apiVersion: v1\nkind: ServiceAccount\nmetadata: {{name: web, namespace: {shop}}}\n---\n\
             apiVersion: v1\nkind: Node\nmetadata: {{name: node1}}\n"
        ))
        .await;
    let pod =
        server.apply_object(ready_pod(&shop, "web-1", "web", "node1", "10.244.0.5", &json!({"app": "web"}))).await;
    assert_eq!(pod["status"]["podIP"], "10.244.0.5");
    let uid = pod["metadata"]["uid"].as_str().expect("a uid");
    let token = server.token(&shop, "web", &["istio-ca"], Some(("web-1", uid)), 600).await;
    let review = json!({
        "apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "metadata": {"name": ""},
        "spec": {"token": token, "audiences": ["istio-ca"]},
    });
    let answer = server.post("/apis/authentication.k8s.io/v1/tokenreviews", &review).await.expect("a review");
    let status = &answer["status"];
    assert_eq!(status["authenticated"], true, "{answer}");
    assert_eq!(status["user"]["username"], format!("system:serviceaccount:{shop}:web"));
    assert_eq!(status["user"]["extra"]["authentication.kubernetes.io/pod-uid"][0], uid);
}

#[tokio::test(flavor = "multi_thread")]
async fn outages_and_their_end() {
    let server = ApiServer::start().await;
    let link = Link::to(&server.address()).await;
    let through = client_of(&server.through(&server.kubeconfig(), &link)).await;
    let version = async || match through.apiserver_version().await {
        Ok(version) => Ok(version.git_version),
        Err(error) => Err(error.to_string()),
    };
    version().await.expect("an answer through the link");
    link.cut();
    version().await.expect_err("an answer through a link that is cut");
    link.mend();
    eventually("an answer through a mended link", Duration::from_secs(5), version).await;
    server.stop_etcd();
    server.start_etcd();
    let shop = eventually("a write after etcd came back", Duration::from_secs(10), async || {
        let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop"}});
        server.try_apply(namespace).await.map_err(|error| error.to_string())
    })
    .await;
    server.compact().await;
    let old = shop["metadata"]["resourceVersion"].as_str().expect("a version");
    server.apply("apiVersion: v1\nkind: Namespace\nmetadata: {name: later}\n").await;
    let ask =
        http::Request::get(format!("/api/v1/namespaces?watch=1&resourceVersion={}", old.parse::<u64>().unwrap() - 1));
    let gone = server.client().await.request_text(ask.body(Vec::new()).expect("a request")).await;
    let said = gone.unwrap_or_else(|error| error.to_string());
    assert!(said.contains("410") || said.contains("too old"), "{said}");
}
