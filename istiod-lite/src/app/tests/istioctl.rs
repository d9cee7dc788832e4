//! Debug pages as istioctl asks for them: with the requests that it sends, on the stream that it opens.

use aquifer_proto::type_url::{CLIENT_CONFIG, DEBUG};
use aquifer_proto::xds::{ClientConfig, ConfigStatus, DiscoveryRequest, DiscoveryResponse};

use super::*;

/// A state-of-the-world client.
struct Istioctl {
    requests: mpsc::Sender<DiscoveryRequest>,
    responses: Streaming<DiscoveryResponse>,
}

impl Istioctl {
    /// As its first request: a sidecar by its node, with a nonce that nobody gave it. It sends no cluster.
    async fn ask(channel: Channel, token: &str, type_url: &str, names: &[&str]) -> Result<Self, Status> {
        let (requests, receiver) = mpsc::channel(4);
        let fields = [("GENERATOR", "event"), ("NAMESPACE", "istio-system"), ("SERVICE_ACCOUNT", "default")];
        let fields = fields.map(|(key, value)| (key.to_owned(), text_value(value))).into_iter().collect();
        let node = Node {
            id: "sidecar~10.0.0.9~test-1.default~default.svc.cluster.local".into(),
            metadata: Some(prost_types::Struct { fields }),
            ..Node::default()
        };
        let first = DiscoveryRequest {
            node: Some(node),
            type_url: type_url.into(),
            resource_names: names.iter().map(|&name| name.to_owned()).collect(),
            response_nonce: "2026-11-21 09:00:00.1 +0000 UTC m=+0.1".into(),
            ..Default::default()
        };
        requests.send(first).await.unwrap();
        let mut call = Request::new(ReceiverStream::new(receiver));
        call.metadata_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
        let mut client = AggregatedDiscoveryServiceClient::new(channel);
        let responses = client.stream_aggregated_resources(call).await?.into_inner();
        Ok(Self { requests, responses })
    }

    /// An answer, acknowledged.
    async fn next(&mut self) -> Result<DiscoveryResponse, Status> {
        let message = tokio::time::timeout(PATIENCE, self.responses.message());
        let ended = || Status::unavailable("the stream has ended");
        let response = message.await.expect("an answer in time")?.ok_or_else(ended)?;
        let ack = DiscoveryRequest {
            type_url: response.type_url.clone(),
            response_nonce: response.nonce.clone(),
            version_info: response.version_info.clone(),
            ..Default::default()
        };
        let _ = self.requests.send(ack).await;
        Ok(response)
    }
}

/// A token of the account that istioctl calls as; it is bound to no pod.
fn token(world: &World, namespace: &str) -> String {
    let mut claims = claims(namespace, "default", "", "");
    claims["kubernetes.io"].as_object_mut().unwrap().remove("pod");
    world.signer.sign(&claims)
}

async fn refused(channel: Channel, token: &str, type_url: &str, names: &[&str]) -> Status {
    match Istioctl::ask(channel, token, type_url, names).await {
        Ok(mut stream) => stream.next().await.unwrap_err(),
        Err(status) => status,
    }
}

#[tokio::test]
async fn proxy_status_sees_every_proxy() {
    let world = World::new();
    let app = world.start().await;
    let mut client = Client::fresh(world.channel(&app, NAME).await.unwrap(), &world.token()).await.unwrap();
    client.sync().await;
    let synced =
        |body: &Value| [ADDRESS, AUTHORIZATION].iter().all(|t| body["proxies"][0]["types"][t]["state"] == "SYNCED");
    proxies(&app, synced).await;

    let token = token(&world, "istio-system");
    for channel in [world.channel(&app, NAME).await.unwrap(), world.plaintext(&app).await] {
        let mut stream = Istioctl::ask(channel, &token, "istio.io/debug/syncz", &[]).await.unwrap();
        let answer = stream.next().await.unwrap();
        assert_eq!(answer.type_url, "istio.io/debug/syncz");
        assert!(!answer.version_info.is_empty(), "istioctl waits for one");
        let identifier: Value = serde_json::from_str(&answer.control_plane.clone().unwrap().identifier).unwrap();
        assert_eq!((&identifier["Component"], &identifier["ID"]), (&"istiod".into(), &"istiod-lite".into()));
        assert_eq!(identifier["Info"]["version"], env!("CARGO_PKG_VERSION"));
        let [resource] = answer.resources.as_slice() else { panic!("one proxy: {answer:?}") };
        assert_eq!(resource.type_url, CLIENT_CONFIG);
        let config = ClientConfig::decode(resource.value.as_slice()).unwrap();
        let node = config.node.unwrap();
        assert_eq!(node.id, "ztunnel-a.istio-system");
        assert_eq!(node.metadata.unwrap().fields["NAMESPACE"], text_value("istio-system"));
        let status: Vec<_> = config
            .generic_xds_configs
            .iter()
            .map(|config| (config.type_url.as_str(), config.config_status(), config.last_updated.is_some()))
            .collect();
        assert_eq!(status, [(AUTHORIZATION, ConfigStatus::Synced, true), (ADDRESS, ConfigStatus::Synced, true)]);

        // The acknowledgement was none too many: the next answer is that to the next question.
        let again =
            DiscoveryRequest { type_url: DEBUG.into(), resource_names: vec!["registryz".into()], ..Default::default() };
        stream.requests.send(again).await.unwrap();
        assert_eq!(stream.next().await.unwrap().type_url, DEBUG);
    }
    assert_eq!(proxies(&app, |_| true).await["proxies"].as_array().unwrap().len(), 1, "who asks is no proxy");
    app.shutdown().await;
}

#[tokio::test]
async fn a_refusal_is_seen_with_its_reason() {
    let world = World::new();
    let app = world.start().await;
    let mut client = Client::fresh(world.channel(&app, NAME).await.unwrap(), &world.token()).await.unwrap();
    client.sync().await;
    world.write("payments.yaml", &payments("v2"));
    let response = client.responses.message().await.unwrap().unwrap();
    let status = aquifer_proto::xds::Status { message: "no such field".into(), ..Default::default() };
    let nack = DeltaDiscoveryRequest {
        type_url: response.type_url,
        response_nonce: response.nonce,
        error_detail: Some(status),
        ..Default::default()
    };
    client.requests.send(nack).await.unwrap();
    proxies(&app, |body| body["proxies"][0]["types"][ADDRESS]["state"] == "REJECTED").await;

    let channel = world.channel(&app, NAME).await.unwrap();
    let token = token(&world, "istio-system");
    let mut stream = Istioctl::ask(channel, &token, "istio.io/debug/syncz", &[]).await.unwrap();
    let answer = stream.next().await.unwrap();
    let config = ClientConfig::decode(answer.resources[0].value.as_slice()).unwrap();
    let of_address = config.generic_xds_configs.into_iter().find(|config| config.type_url == ADDRESS).unwrap();
    assert_eq!(of_address.config_status(), ConfigStatus::Error);
    assert_eq!(of_address.error_state.unwrap().details, "no such field");
    app.shutdown().await;
}

#[tokio::test]
async fn internal_debug_shows_the_pages() {
    let world = World::new();
    let app = world.start().await;
    let (channel, token) = (world.channel(&app, NAME).await.unwrap(), token(&world, "istio-system"));
    let show = async |name: &str| {
        let mut stream = Istioctl::ask(channel.clone(), &token, DEBUG, &[name]).await.unwrap();
        let mut answer = stream.next().await.unwrap();
        let page = answer.resources.pop().unwrap();
        assert_eq!((answer.resources.len(), page.type_url.as_str()), (0, DEBUG), "{name}");
        String::from_utf8(page.value).unwrap()
    };
    let services: Value = serde_json::from_str(&show("registryz").await).unwrap();
    assert_eq!(services[0]["hostname"], "payments.shop.svc.cluster.local");
    let configs: Value = serde_json::from_str(&show("configz").await).unwrap();
    assert_eq!(configs[0]["metadata"]["name"], "only-orders");
    let list: Vec<String> = serde_json::from_str(&show("list").await).unwrap();
    assert!(list.contains(&"/debug/syncz".to_owned()), "{list:?}");
    for page in list {
        serde_json::from_str::<Value>(&show(page.trim_start_matches("/debug/")).await).unwrap();
    }
    assert_eq!(show("syncz?namespace=shop").await, "[]");
    assert_eq!(show("adsz").await, "404 page not found\n");
    app.shutdown().await;
}

#[tokio::test]
async fn debug_streams_are_for_the_root_namespace_and_for_nothing_else() {
    let world = World::new();
    let app = world.start().await;
    let channel = world.channel(&app, NAME).await.unwrap();
    let (own, foreign) = (token(&world, "istio-system"), token(&world, "shop"));
    let table = [
        (foreign.as_str(), "istio.io/debug/syncz", &[][..], Code::PermissionDenied, "namespace \"istio-system\""),
        (&foreign, DEBUG, &["configz"], Code::PermissionDenied, "shop/default"),
        ("", "istio.io/debug/syncz", &[], Code::Unauthenticated, ""),
        (&own, DEBUG, &[], Code::InvalidArgument, "one debug page"),
        (&own, DEBUG, &["syncz", "configz"], Code::InvalidArgument, "one debug page"),
        (&own, "istio.io/debug/config_dump", &["a.shop"], Code::Unimplemented, "aquifer status"),
        (&own, ADDRESS, &[], Code::Unimplemented, "AggregatedDiscoveryService/DeltaAggregatedResources"),
    ];
    for (token, type_url, names, code, words) in table {
        let status = refused(channel.clone(), token, type_url, names).await;
        assert_eq!(status.code(), code, "{type_url} {names:?}: {status}");
        assert!(status.message().contains(words), "{type_url} {names:?}: {status}");
    }
    app.shutdown().await;
}
