//! Lists and watches against an API server in memory, on a clock that the tests turn.

use std::time::Duration;

use futures_util::{FutureExt, StreamExt};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep, timeout};

use super::fake::Fake;
use crate::kinds::{Kind, Object, ObjectKey};
use crate::source::{Selection, Source, Watch};
use crate::{Cluster, Event};

const PODS: &str = "/api/v1/pods";
const SERVICES: &str = "/api/v1/services";
const CRDS: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
const POLICIES: &str = "/apis/security.istio.io/v1/authorizationpolicies";

fn pod(name: &str, app: &str) -> Value {
    json!({
        "metadata": {
            "name": name, "namespace": "shop", "uid": format!("uid-{name}"), "labels": { "app": app },
            "managedFields": [{ "manager": "kubelet", "operation": "Update" }],
            "annotations": { "ambient.istio.io/redirection": "enabled", "cni.example/status": "a lot" },
        },
        "spec": {
            "nodeName": "node1", "serviceAccountName": "web",
            "volumes": [{ "name": "v" }],
            "containers": [{
                "name": "web", "image": "web:1", "env": [{ "name": "A", "value": "b" }],
                "ports": [{ "containerPort": 8080, "name": "http", "protocol": "TCP" }],
            }],
        },
        "status": { "phase": "Running", "podIP": "10.0.0.1", "podIPs": [{ "ip": "10.0.0.1" }], "conditions": [
            { "type": "Ready", "status": "True", "lastProbeTime": null, "lastTransitionTime": "2026-01-01T00:00:00Z" }
        ] },
    })
}

fn named(name: &str) -> Value {
    json!({ "metadata": { "name": name } })
}

fn source(fake: &Fake) -> (Source, Cluster) {
    let cluster = fake.cluster();
    (Source::Cluster(cluster.clone()), cluster)
}

/// What comes until `Synced`.
async fn until_synced(watch: &mut Watch) -> Vec<Event> {
    let mut events = Vec::new();
    loop {
        match timeout(Duration::from_secs(600), watch.next()).await.expect("synced within ten minutes") {
            Some(Event::Synced) => return events,
            Some(event) => events.push(event),
            None => panic!("the watch ended"),
        }
    }
}

async fn next(watch: &mut Watch) -> Event {
    timeout(Duration::from_secs(600), watch.next()).await.expect("an event within ten minutes").expect("no end")
}

/// Nothing comes for that long.
async fn quiet(watch: &mut Watch, time: Duration) {
    if let Ok(event) = timeout(time, watch.next()).await {
        panic!("{event:?}");
    }
}

fn key(kind: Kind, name: &str) -> ObjectKey {
    ObjectKey::new(kind, "shop", name)
}

fn applied(event: Event) -> Object {
    match event {
        Event::Applied(object) => object,
        other => panic!("{other:?}"),
    }
}

#[tokio::test(start_paused = true)]
async fn lists_come_in_pages_pruned_and_synced_once() {
    let fake = Fake::default();
    for n in 0..1234 {
        fake.put(PODS, pod(&format!("web-{n}"), "web"));
    }
    fake.put(
        SERVICES,
        json!({ "metadata": { "name": "web", "namespace": "shop" }, "spec": { "clusterIP": "10.1.0.1" } }),
    );
    let (source, _) = source(&fake);
    let mut watch = source.watch(&[Kind::Pod, Kind::Service]).unwrap();
    let events = until_synced(&mut watch).await;
    assert_eq!(events.len(), 1235);
    let queries: Vec<String> = fake.requests(PODS).into_iter().map(|seen| seen.query).collect();
    assert_eq!(queries[..3], ["limit=500", "limit=500&continue=500", "limit=500&continue=1000"]);

    let one = events.into_iter().map(applied).find(|object| object.name() == "web-7").unwrap();
    let mut expected = pod("web-7", "web");
    expected["apiVersion"] = "v1".into();
    expected["kind"] = "Pod".into();
    expected["metadata"].as_object_mut().unwrap().remove("managedFields");
    expected["metadata"]["annotations"] = json!({ "ambient.istio.io/redirection": "enabled" });
    expected["spec"].as_object_mut().unwrap().remove("volumes");
    let container = json!({ "name": "web", "ports": [{ "containerPort": 8080, "name": "http", "protocol": "TCP" }] });
    expected["spec"]["containers"] = json!([container]);
    expected["status"]["conditions"] = json!([{ "type": "Ready", "status": "True" }]);
    assert_eq!(one.to_json(), expected);

    // The watch goes on from the list's version, and Synced does not come again.
    fake.put(PODS, pod("new", "web"));
    assert_eq!(applied(next(&mut watch).await).name(), "new");
    quiet(&mut watch, Duration::from_secs(60)).await;
}

#[tokio::test(start_paused = true)]
async fn only_what_someone_reads_is_a_change() {
    let fake = Fake::default();
    fake.put(PODS, pod("web", "web"));
    let (source, _) = source(&fake);
    let mut watch = source.watch(&[Kind::Pod]).unwrap();
    until_synced(&mut watch).await;

    let mut touched = pod("web", "web");
    touched["metadata"]["managedFields"][0]["time"] = "2026-01-02T00:00:00Z".into();
    touched["metadata"]["annotations"]["cni.example/status"] = "even more".into();
    touched["status"]["conditions"][0]["lastTransitionTime"] = "2026-01-03T00:00:00Z".into();
    touched["spec"]["containers"][0]["image"] = "web:2".into();
    fake.put(PODS, touched);
    quiet(&mut watch, Duration::from_secs(5)).await;

    fake.put(PODS, pod("web", "other"));
    assert_eq!(applied(next(&mut watch).await).label("app"), Some("other"));
    let mut bare = pod("web", "other");
    bare["metadata"].as_object_mut().unwrap().remove("annotations");
    fake.put(PODS, bare.clone());
    assert_eq!(applied(next(&mut watch).await).annotation("ambient.istio.io/redirection"), None);
    bare["metadata"]["annotations"] = json!({ "cni.example/status": "a lot" });
    fake.put(PODS, bare);
    quiet(&mut watch, Duration::from_secs(5)).await;
    fake.delete(PODS, "shop/web");
    assert_eq!(next(&mut watch).await, Event::Deleted(key(Kind::Pod, "web")));
    // One of the same name is another.
    fake.put(PODS, pod("web", "other"));
    assert_eq!(applied(next(&mut watch).await).name(), "web");
}

#[tokio::test(start_paused = true)]
async fn after_410_the_difference_is_told_and_nothing_else() {
    let fake = Fake::default();
    for name in ["stays", "goes", "changes"] {
        fake.put(PODS, pod(name, "web"));
    }
    let (source, _) = source(&fake);
    let mut watch = source.watch(&[Kind::Pod]).unwrap();
    assert_eq!(until_synced(&mut watch).await.len(), 3);
    quiet(&mut watch, Duration::from_secs(1)).await;

    fake.go_down();
    quiet(&mut watch, Duration::from_secs(1)).await;
    fake.delete(PODS, "shop/goes");
    fake.put(PODS, pod("changes", "other"));
    fake.put(PODS, pod("comes", "web"));
    fake.compact();
    fake.come_back();
    let mut events = [next(&mut watch).await, next(&mut watch).await, next(&mut watch).await];
    events.sort_by_key(|event| match event {
        Event::Applied(object) => object.name().to_owned(),
        Event::Deleted(key) => key.name.to_string(),
        Event::Synced => panic!("Synced again"),
    });
    assert_eq!(events[2], Event::Deleted(key(Kind::Pod, "goes")));
    assert_eq!(applied(events[0].clone()).label("app"), Some("other"));
    assert_eq!(applied(events[1].clone()).name(), "comes");
    quiet(&mut watch, Duration::from_secs(60)).await;
}

#[tokio::test(start_paused = true)]
async fn a_watch_goes_on_from_the_last_bookmark() {
    let fake = Fake::default();
    fake.put(PODS, pod("web", "web"));
    let (source, _) = source(&fake);
    let mut watch = source.watch(&[Kind::Pod]).unwrap();
    until_synced(&mut watch).await;
    quiet(&mut watch, Duration::from_secs(1)).await;
    let version = fake.bookmark(PODS);
    quiet(&mut watch, Duration::from_secs(1)).await;
    fake.requests(PODS);
    fake.hang_up(None);
    quiet(&mut watch, Duration::from_secs(1)).await;
    let again = fake.requests(PODS);
    assert_eq!(again.len(), 1, "one watch and no list: {again:?}");
    assert!(again[0].query.contains("watch=true") && again[0].query.contains("allowWatchBookmarks=true"));
    assert!(again[0].query.contains(&format!("resourceVersion={version}")), "{}", again[0].query);
}

#[tokio::test(start_paused = true)]
async fn a_list_whose_token_expired_is_begun_again() {
    let fake = Fake::default();
    for n in 0..700 {
        fake.put(PODS, pod(&format!("web-{n}"), "web"));
    }
    fake.state(|state| state.forget_lists = true);
    let (source, _) = source(&fake);
    let mut watch = source.watch(&[Kind::Pod]).unwrap();
    assert_eq!(until_synced(&mut watch).await.len(), 700, "each once");
}

#[tokio::test(start_paused = true)]
async fn a_server_that_is_away_for_an_hour_costs_staleness_and_nothing_else() {
    let fake = Fake::default();
    fake.put(PODS, pod("web", "web"));
    let (source, cluster) = source(&fake);
    let mut registry = prometheus_client::registry::Registry::default();
    source.register(&mut registry);
    let mut watch = source.watch(&[Kind::Pod]).unwrap();
    until_synced(&mut watch).await;
    quiet(&mut watch, Duration::from_secs(1)).await;
    assert!(metric(&registry, "aquifer_source_staleness_seconds{kind=\"Pod\"}") < 0.001);
    assert!(metric(&registry, "aquifer_source_objects{kind=\"Pod\"}") > 0.999);

    fake.go_down();
    fake.requests(PODS);
    let hour = Duration::from_secs(3600);
    quiet(&mut watch, hour).await;
    let stale = metric(&registry, "aquifer_source_staleness_seconds{kind=\"Pod\"}");
    assert!((3599.0..3602.0).contains(&stale), "{stale}");
    let asked = fake.requests(PODS).len();
    assert!((360..=800).contains(&asked), "asked {asked} times in an hour");
    assert!(metric(&registry, "aquifer_source_watch_errors_total{kind=\"Pod\",reason=\"unreachable\"}") > 300.0);

    fake.come_back();
    let back = Instant::now();
    fake.put(PODS, pod("web-2", "web"));
    assert_eq!(applied(next(&mut watch).await).name(), "web-2");
    assert!(back.elapsed() <= Duration::from_secs(10), "{:?}", back.elapsed());
    assert!(metric(&registry, "aquifer_source_staleness_seconds{kind=\"Pod\"}") < 0.001);
    drop(cluster);
}

fn metric(registry: &prometheus_client::registry::Registry, name: &str) -> f64 {
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, registry).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    line.unwrap_or_else(|| panic!("{name} in {text}")).trim().parse().unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_server_that_is_away_at_the_start_is_waited_for() {
    let fake = Fake::default();
    fake.put(PODS, pod("web", "web"));
    fake.go_down();
    let (source, _) = source(&fake);
    let mut watch = source.watch(&[Kind::Pod]).unwrap();
    quiet(&mut watch, Duration::from_secs(120)).await;
    fake.come_back();
    assert_eq!(until_synced(&mut watch).await.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn kinds_without_a_crd_are_awaited_and_leave_with_it() {
    let fake = Fake::default();
    fake.put(PODS, pod("web", "web"));
    fake.put(CRDS, named("gateways.gateway.networking.k8s.io"));
    let (source, _) = source(&fake);
    let mut watch = source.watch(&[Kind::Pod, Kind::AuthorizationPolicy]).unwrap();
    assert_eq!(until_synced(&mut watch).await.len(), 1, "what is absent does not hold up the rest");
    let crds = fake.requests(CRDS);
    assert!(crds.iter().all(|seen| seen.accept.contains("as=PartialObjectMetadata")), "{crds:?}");
    assert!(fake.requests(POLICIES).is_empty(), "nobody asks for what is not there");

    for round in 0..2 {
        // Installed: at first it is not served yet, and then only in an older version.
        fake.put(CRDS, named("authorizationpolicies.security.istio.io"));
        quiet(&mut watch, Duration::from_secs(3)).await;
        let older = POLICIES.replace("/v1/", "/v1beta1/");
        let plurals = [String::from("authorizationpolicies")].into();
        fake.put(&older, json!({ "metadata": { "name": "deny", "namespace": "shop" }, "spec": { "action": "DENY" } }));
        fake.state(|state| state.served.insert("security.istio.io/v1beta1".to_owned(), plurals));
        let object = applied(next(&mut watch).await);
        assert_eq!(
            (object.key(), object.to_json()["apiVersion"].as_str().unwrap()),
            (key(Kind::AuthorizationPolicy, "deny"), "security.istio.io/v1")
        );

        // Gone, whether its watch ends first or not.
        fake.state(|state| state.served.clear());
        fake.delete(CRDS, "authorizationpolicies.security.istio.io");
        if round == 0 {
            fake.hang_up(None);
        }
        assert_eq!(next(&mut watch).await, Event::Deleted(key(Kind::AuthorizationPolicy, "deny")));
        quiet(&mut watch, Duration::from_secs(60)).await;
        fake.delete(&older, "shop/deny");
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_forbidden_names_the_rule_and_holds_up_only_itself() {
    let fake = Fake::default();
    fake.put(PODS, pod("web", "web"));
    fake.put(SERVICES, json!({ "metadata": { "name": "web", "namespace": "shop" }, "spec": {} }));
    let refusal = "services is forbidden: User \"system:serviceaccount:istio-system:istiod\" cannot list resource";
    fake.state(|state| state.refusals.push_back((SERVICES, 403, refusal)));
    let (source, cluster) = source(&fake);
    let mut watch = source.watch(&[Kind::Pod, Kind::Service]).unwrap();
    assert_eq!(applied(next(&mut watch).await).kind(), Kind::Pod);
    assert_eq!(applied(next(&mut watch).await).kind(), Kind::Service);
    assert_eq!(next(&mut watch).await, Event::Synced);
    let error = super::super::write::missing_rule(Kind::AuthorizationPolicy, "list", "", None, refusal);
    assert!(
        error.contains("apiGroups: [\"security.istio.io\"], resources: [\"authorizationpolicies\"], verbs: [\"list\"]")
    );
    drop(cluster);
}

#[tokio::test(start_paused = true)]
async fn a_watch_that_says_nothing_is_dead() {
    let fake = Fake::default();
    fake.put(PODS, pod("web", "web"));
    let (source, _) = source(&fake);
    let mut watch = source.watch(&[Kind::Pod]).unwrap();
    until_synced(&mut watch).await;
    quiet(&mut watch, Duration::from_secs(100)).await;
    fake.requests(PODS);
    quiet(&mut watch, Duration::from_secs(100)).await;
    assert_eq!(fake.requests(PODS).len(), 1, "watched anew");
}

#[tokio::test(start_paused = true)]
async fn a_reader_that_lags_loses_nothing() {
    let fake = Fake::default();
    fake.put(PODS, pod("web-0", "web"));
    let (source, _) = source(&fake);
    let mut watch = source.watch(&[Kind::Pod]).unwrap();
    until_synced(&mut watch).await;
    quiet(&mut watch, Duration::from_secs(1)).await;
    // Ten minutes in which nobody polls, much happens, and the server gives up on us.
    for n in 1..2000 {
        fake.put(PODS, pod(&format!("web-{n}"), "web"));
    }
    fake.delete(PODS, "shop/web-0");
    sleep(Duration::from_secs(600)).await;
    fake.hang_up(None);
    fake.compact();
    let (mut names, mut gone) = (std::collections::BTreeSet::new(), 0);
    while names.len() < 1999 || gone == 0 {
        match next(&mut watch).await {
            Event::Applied(object) => assert!(names.insert(object.name().to_owned()), "{} twice", object.name()),
            Event::Deleted(key) => {
                assert_eq!(&*key.name, "web-0");
                gone += 1;
            }
            Event::Synced => panic!("Synced again"),
        }
    }
    quiet(&mut watch, Duration::from_secs(1)).await;
}

#[tokio::test(start_paused = true)]
async fn selections_go_to_the_server() {
    let fake = Fake::default();
    fake.put(PODS, pod("web", "web"));
    fake.put("/api/v1/namespaces", named("shop"));
    fake.put(
        "/api/v1/namespaces/istio-system/configmaps",
        json!({ "metadata": { "name": "istio", "namespace": "istio-system" } }),
    );
    let (source, _) = source(&fake);
    let selections = vec![
        Selection::from(Kind::Pod).on_node("node1").labelled("app", None),
        Kind::Namespace.into(),
        Selection::from(Kind::ConfigMap).in_namespace("istio-system").named("istio").labelled("a", Some("b")),
    ];
    let mut watch = source.watch_selected(selections).unwrap();
    assert_eq!(until_synced(&mut watch).await.len(), 3);
    let query = |path: &str| fake.requests(path)[0].clone();
    assert_eq!(query(PODS).query, "limit=500&fieldSelector=spec.nodeName%3Dnode1&labelSelector=app");
    assert!(query("/api/v1/namespaces").accept.contains("as=PartialObjectMetadataList"));
    let maps = query("/api/v1/namespaces/istio-system/configmaps");
    assert_eq!(maps.query, "limit=500&fieldSelector=metadata.name%3Distio&labelSelector=a%3Db");
    assert!(!maps.accept.contains("PartialObject"));
}

#[tokio::test(start_paused = true)]
async fn a_bad_object_leaves_what_it_said_before() {
    let fake = Fake::default();
    fake.put(PODS, pod("web", "web"));
    let (source, _) = source(&fake);
    let mut watch = source.watch(&[Kind::Pod]).unwrap();
    until_synced(&mut watch).await;
    let mut bad = pod("web", "web");
    bad["spec"]["containers"] = "none".into();
    fake.put(PODS, bad);
    quiet(&mut watch, Duration::from_secs(5)).await;
    fake.put(PODS, pod("web", "good"));
    assert_eq!(applied(next(&mut watch).await).label("app"), Some("good"));
}

/// Nobody stands before the API server and refuses what a folder would refuse. A policy that was left out for one bad
/// value would let everybody in, and nothing could be said on it.
#[tokio::test(start_paused = true)]
async fn what_the_api_server_took_is_told_even_where_a_value_is_wrong() {
    let fake = Fake::default();
    fake.put(CRDS, named("authorizationpolicies.security.istio.io"));
    let plurals = [String::from("authorizationpolicies")].into();
    fake.state(|state| state.served.insert("security.istio.io/v1".to_owned(), plurals));
    let rules = json!([{ "from": [{ "source": { "ipBlocks": ["10.0.0.0/33"] } }] }]);
    let metadata = json!({ "name": "deny", "namespace": "shop" });
    fake.put(POLICIES, json!({ "metadata": metadata, "spec": { "action": "DENY", "rules": rules } }));
    let (source, _) = source(&fake);
    let (objects, problems) = source.read(&[Kind::AuthorizationPolicy.into()]).await.unwrap();
    assert_eq!((objects.len(), problems), (1, Vec::new()));
    let mut watch = source.watch(&[Kind::AuthorizationPolicy]).unwrap();
    let told = until_synced(&mut watch).await;
    assert_eq!(
        told.into_iter().map(|event| applied(event).key()).collect::<Vec<_>>(),
        [key(Kind::AuthorizationPolicy, "deny")]
    );
}

#[tokio::test(start_paused = true)]
async fn reading_once() {
    let fake = Fake::default();
    for n in 0..501 {
        fake.put(PODS, pod(&format!("web-{n}"), "web"));
    }
    let (source, _) = source(&fake);
    let read = source.read(&[Kind::Pod.into(), Kind::HTTPRoute.into()]).now_or_never().is_none();
    assert!(read, "it takes requests");
    let (objects, problems) = source.read(&[Kind::Pod.into(), Kind::HTTPRoute.into()]).await.unwrap();
    assert_eq!((objects.len(), problems.len()), (501, 0));
    assert_eq!(source.get(&key(Kind::Pod, "nobody")).await.unwrap(), None);
    let mut nothing = source.watch(&[]).unwrap();
    assert_eq!(StreamExt::next(&mut nothing).await, Some(Event::Synced));
}
