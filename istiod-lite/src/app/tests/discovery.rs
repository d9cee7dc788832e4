//! What clients of discovery get, and who gets nothing.

use super::*;

#[tokio::test]
async fn objects_reach_clients_and_changes_are_pushed() {
    let world = World::new();
    let app = world.start().await;
    let channel = world.channel(&app, NAME).await.unwrap();
    let mut client = Client::fresh(channel, &world.token()).await.unwrap();
    client.sync().await;

    let payments_1 = client.workload(PAYMENTS).unwrap();
    assert_eq!(payments_1.canonical_revision, "v1");
    assert_eq!(payments_1.tunnel_protocol, workload::TunnelProtocol::Hbone as i32);
    assert_eq!(payments_1.authorization_policies, ["shop/only-orders"]);
    assert!(client.held[ADDRESS].contains_key("shop/payments.shop.svc.cluster.local"));
    let (_, policy) = &client.held[AUTHORIZATION]["shop/only-orders"];
    assert_eq!(Authorization::decode(policy.as_slice()).unwrap().name, "only-orders");

    // A change of one pod is one resource.
    world.write("payments.yaml", &payments("v2"));
    let response = client.next().await.unwrap();
    let names: Vec<_> = response.resources.iter().map(|r| r.name.as_str()).collect();
    assert_eq!(names, [PAYMENTS]);
    assert_eq!(client.workload(PAYMENTS).unwrap().canonical_revision, "v2");

    // A file that cannot be read changes nothing; the next good one does.
    world.write("payments.yaml", "apiVersion: v1\nkind: Pod\nmetadata: [this is no pod\n");
    world.write("other.yaml", &payments("x").replace("payments-1", "other-1").replace("17.3", "17.4"));
    client.until(|c| c.workload("Kubernetes//Pod/shop/other-1").is_some()).await;
    assert_eq!(client.workload(PAYMENTS).unwrap().canonical_revision, "v2");
    world.write("payments.yaml", &payments("v3"));
    client.until(|c| c.workload(PAYMENTS).unwrap().canonical_revision == "v3").await;

    // A deleted file takes its objects with it.
    std::fs::remove_file(world.path("manifests/other.yaml")).unwrap();
    client.until(|c| c.workload("Kubernetes//Pod/shop/other-1").is_none()).await;
    app.shutdown().await;
}

#[tokio::test]
async fn workloads_without_their_wrapper_for_who_asks() {
    let world = World::new();
    let app = world.start().await;
    let mut client = Client::fresh(world.channel(&app, NAME).await.unwrap(), &world.token()).await.unwrap();
    client.sync().await;
    let types = |body: &Value| body["resources"].as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    assert!(!types(&proxies(&app, |_| true).await).contains(&WORKLOAD.to_owned()));

    client.requests.send(DeltaDiscoveryRequest { type_url: WORKLOAD.into(), ..Default::default() }).await.unwrap();
    client.until(|c| c.held.contains_key(WORKLOAD)).await;
    let revision = |c: &Client| {
        let (_, bytes) = &c.held[WORKLOAD][PAYMENTS];
        Workload::decode(bytes.as_slice()).unwrap().canonical_revision
    };
    assert_eq!(revision(&client), "v1");
    assert!(client.held[WORKLOAD].keys().all(|name| client.workload(name).is_some()), "workloads alone");
    assert!(client.held[WORKLOAD].len() < client.held[ADDRESS].len());

    world.write("payments.yaml", &payments("v2"));
    client.until(|c| revision(c) == "v2").await;
    std::fs::remove_file(world.path("manifests/payments.yaml")).unwrap();
    client.until(|c| !c.held[WORKLOAD].contains_key(PAYMENTS)).await;
    app.shutdown().await;
}

#[tokio::test]
async fn a_storm_of_changes_is_few_pushes() {
    let world = World::new();
    let app = world.start().await;
    let mut client = Client::fresh(world.channel(&app, NAME).await.unwrap(), &world.token()).await.unwrap();
    client.sync().await;
    let before = proxies(&app, |_| true).await["generation"].as_u64().unwrap();
    for i in 0..300 {
        let pod = payments("v1").replace("payments-1", &format!("p-{i}")).replace("p1", &format!("u{i}"));
        world.write(&format!("p-{i}.yaml"), &pod.replace("198.18.17.3", &format!("198.18.18.{}", i % 250)));
    }
    let many = |c: &Client| c.held[ADDRESS].keys().filter(|name| name.contains("/shop/p-")).count();
    client.until(|c| many(c) == 300).await;
    let after = proxies(&app, |_| true).await["generation"].as_u64().unwrap();
    assert!(after - before < 60, "{} publications", after - before);
    app.shutdown().await;
}

#[tokio::test]
async fn a_restart_keeps_the_root_and_resends_nothing() {
    let world = World::new();
    let app = world.start().await;
    let root = world.root();
    let channel = world.channel(&app, NAME).await.unwrap();
    let mut client = Client::fresh(channel, &world.token()).await.unwrap();
    client.sync().await;
    let held = client.held.clone();
    app.shutdown().await;
    assert!(client.next().await.is_err());

    world.write("payments.yaml", &payments("v2"));
    let app = world.start().await;
    assert_eq!(world.root(), root);
    let channel = world.channel(&app, NAME).await.unwrap();
    let mut client = Client::connect(channel, &world.token(), &client).await.unwrap();
    let first = client.sync().await;
    let names: Vec<_> = first[ADDRESS].resources.iter().map(|r| r.name.as_str()).collect();
    assert_eq!(names, [PAYMENTS]);
    assert!(first[ADDRESS].removed_resources.is_empty());
    assert_eq!(client.held[ADDRESS].len(), held[ADDRESS].len());
    app.shutdown().await;
}

#[tokio::test]
async fn only_known_callers_get_anything_on_either_port() {
    let world = World::new();
    let app = world.start().await;
    let good = world.token();
    let stranger = Signer::ec("k1").sign(&claims("istio-system", "ztunnel", "ztunnel-a", "z1"));
    let gone = world.signer.sign(&claims("istio-system", "ztunnel", "ztunnel-a", "z0"));
    for channel in [world.channel(&app, NAME).await.unwrap(), world.plaintext(&app).await] {
        Client::fresh(channel.clone(), &good).await.unwrap().sync().await;
        for bad in [stranger.as_str(), gone.as_str(), "not-a-token", ""] {
            let refused = match Client::fresh(channel.clone(), bad).await {
                Ok(mut client) => client.next().await.unwrap_err(),
                Err(status) => status,
            };
            assert_eq!(refused.code(), Code::Unauthenticated, "{bad}: {refused}");
        }
    }
    // The CA is served with TLS only.
    let mut ca = IstioCertificateServiceClient::new(world.plaintext(&app).await);
    let call = with_headers(IstioCertificateRequest::default(), &good);
    assert_eq!(ca.create_certificate(call).await.unwrap_err().code(), Code::Unimplemented);
    // And the listener's certificate is for its own names only.
    assert!(world.channel(&app, "elsewhere.example").await.is_err());
    app.shutdown().await;
}

#[tokio::test]
async fn an_on_demand_client_gets_its_node_and_what_it_asks_for() {
    let world = World::new();
    let elsewhere = payments("v1").replace("payments-1", "payments-2").replace("p1", "p2");
    world.write("payments-2.yaml", &elsewhere.replace("node1", "node2").replace("17.3", "18.3"));
    let app = world.start().await;
    let channel = world.channel(&app, NAME).await.unwrap();
    let mut client = Client::on_demand(channel, &world.token()).await.unwrap();
    client.until(|c| c.workload(PAYMENTS).is_some()).await;
    let other = "Kubernetes//Pod/shop/payments-2";
    assert!(client.workload(other).is_none(), "it runs on another node");

    let ask = DeltaDiscoveryRequest {
        type_url: ADDRESS.into(),
        resource_names_subscribe: vec!["/198.19.0.10".into()],
        ..Default::default()
    };
    client.requests.send(ask).await.unwrap();
    client.until(|c| c.workload(other).is_some()).await;
    let held = &client.held[ADDRESS];
    assert!(held.contains_key("shop/payments.shop.svc.cluster.local"), "{:?}", held.keys());
    app.shutdown().await;
}
