use aquifer_proto::type_url::{ADDRESS, AUTHORIZATION};
use aquifer_proto::workload::{self, Address, address};
use aquifer_runtime::http::Handler;
use aquifer_xds::resource::{Resource, ResourceSet};
use aquifer_xds::server::driver::AllowAnonymous;
use http::HeaderMap;
use http_body_util::BodyExt as _;

use super::*;

fn handler(authenticate: Option<Arc<dyn Authenticate>>) -> Handler {
    let mut set = ResourceSet::of_types([ADDRESS, AUTHORIZATION]);
    let service = workload::Service {
        name: "web".into(),
        namespace: "shop".into(),
        hostname: "web.shop.svc.cluster.local".into(),
        addresses: vec![workload::NetworkAddress { address: vec![10, 96, 0, 1].into(), ..Default::default() }],
        ports: vec![workload::Port { service_port: 80, target_port: 8080, ..Default::default() }],
        ..Default::default()
    };
    let address = Address { r#type: Some(address::Type::Service(service)) };
    set.upsert(Resource::new(ADDRESS, "shop/web.shop.svc.cluster.local", &address));
    let expiries = Expiries::default();
    let clients = Clients::default();
    Pages { publisher: Publisher::new(set), clients, authenticate, configs: None, expiries }
        .into_server(&Readiness::new())
        .into_handler()
}

async fn get(handler: &Handler, path: &str, peer: &str) -> (StatusCode, String) {
    let request = Request {
        method: Method::GET,
        path: path.to_owned(),
        query: Default::default(),
        headers: HeaderMap::new(),
        peer: Some(peer.parse().unwrap()),
    };
    let response = handler(request).await;
    let status = response.status();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    (status, String::from_utf8(body.to_vec()).unwrap())
}

#[tokio::test]
async fn pages_are_for_this_machine_and_for_callers_with_a_token() {
    let closed = handler(None);
    let open = handler(Some(Arc::new(AllowAnonymous)));
    for path in PAGES {
        for here in ["127.0.0.1:4000", "[::1]:4000", "[::ffff:127.0.0.1]:4000"] {
            assert_eq!(get(&closed, path, here).await.0, StatusCode::OK, "{path} from {here}");
        }
        let (status, body) = get(&closed, path, "10.0.0.1:4000").await;
        assert_eq!(status, StatusCode::UNAUTHORIZED);
        assert!(body.contains("bearer token"), "{body}");
        assert_eq!(get(&open, path, "10.0.0.1:4000").await.0, StatusCode::OK);
    }
    assert_eq!(get(&closed, "/ready", "10.0.0.1:4000").await.0, StatusCode::OK, "readiness is for everybody");
}

#[tokio::test]
async fn services_are_listed_as_istio_lists_them() {
    let (_, body) = get(&handler(None), "/debug/registryz", "127.0.0.1:1").await;
    let page: Value = serde_json::from_str(&body).unwrap();
    assert_eq!(page[0]["hostname"], "web.shop.svc.cluster.local");
    assert_eq!(page[0]["Attributes"]["Namespace"], "shop");
    assert_eq!(page[0]["defaultAddress"], "10.96.0.1");
    assert_eq!(page[0]["ports"][0]["targetPort"], 8080);
}

#[test]
fn the_certificate_that_ends_first_counts() {
    let (expiries, now) = (Expiries::default(), time::OffsetDateTime::now_utc());
    let after = |hours| now + time::Duration::hours(hours);
    assert_eq!(expiries.first("ztunnel-a.istio-system"), None);
    expiries.issued("ztunnel-a", "istio-system", "spiffe://a", after(2));
    expiries.issued("ztunnel-a", "istio-system", "spiffe://b", after(1));
    assert_eq!(expiries.first("ztunnel-a.istio-system"), Some(after(1)));
    expiries.issued("ztunnel-a", "istio-system", "spiffe://b", after(3));
    assert_eq!(expiries.first("ztunnel-a.istio-system"), Some(after(2)), "renewed");
    expiries.issued("ztunnel-a", "istio-system", "spiffe://a", now - time::Duration::hours(1));
    expiries.issued("ztunnel-a", "istio-system", "spiffe://c", after(5));
    assert_eq!(expiries.first("ztunnel-a.istio-system"), Some(after(3)), "what is over is forgotten");
    expiries.keep(|proxy| proxy != "ztunnel-a.istio-system");
    assert_eq!(expiries.first("ztunnel-a.istio-system"), None);
}
