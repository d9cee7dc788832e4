//! The API server as a source of objects: lists, watches, writes, and what goes wrong with them.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::{Duration, Instant};

use aquifer_objects::lease::Leadership;
use aquifer_objects::source::Settings;
use aquifer_objects::{Event, Kind, Object, ObjectKey, Selection, Source, Watch, WriteError};
use aquifer_runtime::metrics::Registry;
use serde_json::{Value, json};

use crate::harness::{ApiServer, Link, eventually, rand_suffix, ready_pod};
use crate::samples;

/// How soon a change is told.
const SOON: Duration = Duration::from_secs(2);
/// How soon after an outage.
const RECOVERED: Duration = Duration::from_secs(30);

pub(crate) async fn source_of(kubeconfig: &Path) -> Source {
    let settings = Settings::Kubeconfig(kubeconfig.to_owned());
    settings.open().await.unwrap_or_else(|error| panic!("{error}"))
}

/// A watch and what it has told.
pub(crate) struct Seen {
    watch: Watch,
    pub(crate) objects: BTreeMap<ObjectKey, Object>,
    pub(crate) synced: bool,
    /// How often each object was told of.
    pub(crate) told: BTreeMap<ObjectKey, usize>,
}

impl Seen {
    pub(crate) fn of(watch: Watch) -> Self {
        Self { watch, objects: BTreeMap::new(), synced: false, told: BTreeMap::new() }
    }

    pub(crate) fn start(source: &Source, kinds: &[Kind]) -> Self {
        Self::of(source.watch(kinds).unwrap_or_else(|error| panic!("{error}")))
    }

    fn take(&mut self, event: Event) {
        match event {
            Event::Applied(object) => {
                *self.told.entry(object.key()).or_default() += 1;
                self.objects.insert(object.key(), object);
            }
            Event::Deleted(key) => {
                self.objects.remove(&key);
            }
            Event::Synced => {
                assert!(!self.synced, "Synced comes once");
                self.synced = true;
            }
        }
    }

    /// Follows until it is so; returns how long that took. Fails at five times the bound.
    pub(crate) async fn until(&mut self, what: &str, bound: Duration, so: impl Fn(&Self) -> bool) -> Duration {
        let begun = Instant::now();
        while !so(self) {
            let left = (bound * 5).saturating_sub(begun.elapsed());
            match tokio::time::timeout(left, self.watch.next()).await {
                Ok(Some(event)) => self.take(event),
                Ok(None) => panic!("{what}: the watch ended"),
                Err(_) => panic!("{what}: not within {:?}; known: {:?}", bound * 5, self.objects.keys()),
            }
        }
        println!("{what}: after {:.2} s", begun.elapsed().as_secs_f64());
        begun.elapsed()
    }

    /// Follows for that long.
    pub(crate) async fn for_a_while(&mut self, time: Duration) {
        let end = tokio::time::Instant::now() + time;
        while let Ok(Some(event)) = tokio::time::timeout_at(end, self.watch.next()).await {
            self.take(event);
        }
    }

    pub(crate) fn label(&self, key: &ObjectKey, label: &str) -> Option<String> {
        self.objects.get(key)?.label(label).map(str::to_owned)
    }
}

fn config_map(namespace: &str, name: &str, turn: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": { "name": name, "namespace": namespace, "labels": { "turn": turn } },
    })
}

fn metric(registry: &Registry, line: &str) -> f64 {
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, registry).expect("metrics");
    let found = text.lines().find_map(|found| found.strip_prefix(line));
    found.and_then(|value| value.trim().parse().ok()).unwrap_or_else(|| panic!("{line} in {text}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn every_kind_is_listed_watched_and_written() {
    let server = ApiServer::shared().await;
    let source = source_of(&server.kubeconfig()).await;
    let namespace = server.namespace("kinds").await;
    let name = format!("probe-{}", rand_suffix());
    // No controller makes it here, and no pod is without one.
    server
        .apply_object(json!({
            "apiVersion": "v1", "kind": "ServiceAccount", "metadata": { "name": "default", "namespace": namespace },
        }))
        .await;
    let mut all = Seen::start(&source, Kind::ALL);
    all.until("all kinds are listed", RECOVERED, |seen| seen.synced).await;
    let writer = source.writer("aquifer-test");
    for &kind in Kind::ALL {
        let sample = samples::of(kind, &namespace, &name);
        let written = writer.apply(sample).await;
        let key = written.unwrap_or_else(|error| panic!("{error}"));
        let applied = |seen: &Seen| seen.objects.contains_key(&key);
        all.until(&format!("{kind} is told of"), SOON, applied).await;

        // A list of its own has it too, and so has a look at it alone.
        let (listed, problems) = source.read(&[Selection::from(kind).named(&name)]).await.expect("a list");
        assert!(listed.iter().any(|object| object.key() == key) && problems.is_empty(), "{kind}: {problems:?}");
        assert!(source.get(&key).await.expect("an answer").is_some(), "{kind}");

        writer.patch(&key, json!({ "metadata": { "labels": { "turn": "2" } } })).await.expect("a patch");
        all.until(&format!("{kind} is told of again"), SOON, |seen| seen.label(&key, "turn").as_deref() == Some("2"))
            .await;

        if let Some(status) = samples::status(kind) {
            writer.apply_status(&key, status).await.unwrap_or_else(|error| panic!("{error}"));
            let (version, manifest) = (kind.api_version(), kind.manifest_name());
            let found = server.get(version, manifest, &key.namespace, &name).await.expect("the object");
            assert!(found["status"].to_string().contains("aquifer.dev/Probed"), "{kind}: {}", found["status"]);
        }
        let uid = source.get(&key).await.expect("an answer").and_then(|object| object.meta().uid.clone());
        let another = writer.delete(&key, Some("00000000-0000-0000-0000-000000000000")).await;
        assert!(matches!(another, Err(WriteError::Conflict { .. })), "{kind}: {another:?}");
        writer.delete(&key, uid.as_deref()).await.unwrap_or_else(|error| panic!("{error}"));
        if kind != Kind::Namespace {
            // Nobody finalizes a namespace here.
            all.until(&format!("{kind} is told to be gone"), SOON, |seen| !seen.objects.contains_key(&key)).await;
            assert_eq!(writer.patch(&key, json!({})).await, Err(WriteError::NotFound(key.clone())));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_nobody_reads_is_no_change() {
    let server = ApiServer::shared().await;
    let source = source_of(&server.kubeconfig()).await;
    let namespace = server.namespace("quiet").await;
    server
        .apply(&format!("apiVersion: v1\nkind: ServiceAccount\nmetadata: {{name: web, namespace: {namespace}}}\n"))
        .await;
    let node = format!("node-{}", rand_suffix());
    server.apply_object(json!({ "apiVersion": "v1", "kind": "Node", "metadata": { "name": node } })).await;
    server.apply_object(ready_pod(&namespace, "web", "web", &node, "10.244.7.7", &json!({ "app": "web" }))).await;
    let here = vec![
        Selection::from(Kind::Pod).on_node(&node),
        Selection::from(Kind::Node).named(&node),
        Selection::from(Kind::Namespace).named(&namespace),
    ];
    let mut seen = Seen::of(source.watch_selected(here).expect("a watch"));
    seen.until("pod, node and namespace", SOON, |seen| seen.synced).await;
    let (pod, on) = (ObjectKey::new(Kind::Pod, &namespace, "web"), ObjectKey::new(Kind::Node, "", &node));
    assert_eq!(seen.objects.len(), 3, "{:?}", seen.objects.keys());
    let before = seen.told.clone();

    // A kubelet's heartbeat, an annotation of someone else's, a condition's time.
    let client = server.client().await;
    let beat = json!({ "status": { "conditions": [{
        "type": "Ready", "status": "True", "lastHeartbeatTime": "2026-01-01T00:00:00Z", "reason": "KubeletReady",
        "lastTransitionTime": "2026-01-01T00:00:00Z", "message": "ready",
    }] } });
    let nodes: kube::Api<k8s_openapi::api::core::v1::Node> = kube::Api::all(client.clone());
    let merge = kube::api::Patch::Merge(&beat);
    nodes.patch_status(&node, &kube::api::PatchParams::default(), &merge).await.expect("a heartbeat");
    let noted = json!({ "metadata": { "annotations": { "cni.example/status": "much" } } });
    let pods: kube::Api<k8s_openapi::api::core::v1::Pod> = kube::Api::namespaced(client, &namespace);
    pods.patch("web", &kube::api::PatchParams::default(), &kube::api::Patch::Merge(&noted)).await.expect("a patch");
    // The last one counts: it comes after the others.
    let marks = [("ambient.istio.io/redirection", Some("enabled"))];
    let uid = seen.objects[&pod].meta().uid.clone();
    source.writer("istio-cni").patch_annotations(&pod, uid.as_deref(), &marks).await.expect("the annotation");
    let marked = |seen: &Seen| seen.objects[&pod].annotation("ambient.istio.io/redirection") == Some("enabled");
    seen.until("the agent's annotation", SOON, marked).await;
    assert_eq!((seen.told[&pod], seen.told[&on]), (before[&pod] + 1, before[&on]));
    let Object::Pod(kept) = &seen.objects[&pod] else { unreachable!("a pod") };
    assert_eq!(kept.metadata.managed_fields, None);
    assert_eq!(kept.metadata.annotations.as_ref().map(BTreeMap::len), Some(1));
    let spec = kept.spec.as_ref().expect("a spec");
    assert!(spec.volumes.is_none() && spec.tolerations.is_none() && spec.containers[0].image.is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn many_come_in_pages() {
    let server = ApiServer::shared().await;
    let source = source_of(&server.kubeconfig()).await;
    let namespace = server.namespace("pages").await;
    let writer = source.writer("aquifer-test");
    let mut writes = tokio::task::JoinSet::new();
    for n in 0..1100 {
        let (writer, map) = (writer.clone(), config_map(&namespace, &format!("m{n}"), "1"));
        writes.spawn(async move { writer.apply(map).await });
    }
    while let Some(done) = writes.join_next().await {
        done.expect("a task").unwrap_or_else(|error| panic!("{error}"));
    }
    let mut seen = Seen::of(
        source.watch_selected(vec![Selection::from(Kind::ConfigMap).in_namespace(&namespace)]).expect("a watch"),
    );
    seen.until("1100 ConfigMaps", Duration::from_secs(5), |seen| seen.synced).await;
    let ours = seen.objects.keys().filter(|key| key.name.starts_with('m')).count();
    assert_eq!(ours, 1100);
    assert!(seen.told.values().all(|times| *times == 1), "each once");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_api_server_that_stops_and_starts_costs_nothing_but_staleness() {
    let server = ApiServer::start().await;
    let source = source_of(&server.kubeconfig()).await;
    let mut registry = Registry::default();
    source.register(&mut registry);
    server.apply_object(config_map("default", "before", "1")).await;
    let mut seen = Seen::start(&source, &[Kind::ConfigMap, Kind::Pod]);
    seen.until("the first list", SOON, |seen| seen.synced).await;
    let stale = "aquifer_source_staleness_seconds{kind=\"ConfigMap\"}";
    seen.for_a_while(Duration::from_millis(500)).await;
    let current = async || match metric(&registry, stale) {
        0.0 => Ok(()),
        seconds => Err(format!("stale for {seconds} s")),
    };
    eventually("current", SOON, current).await;
    let before = seen.objects.clone();

    for what in ["apiserver", "etcd"] {
        let away = Instant::now();
        match what {
            "etcd" => server.stop_etcd(),
            _ => server.stop(),
        }
        seen.for_a_while(Duration::from_secs(5)).await;
        assert_eq!(seen.objects, before, "without {what} everything stays");
        if what == "apiserver" {
            let seconds = metric(&registry, stale);
            let most = away.elapsed().as_secs_f64() + 1.0;
            assert!((3.0..most).contains(&seconds), "{seconds}, of {most} at most");
        }
        let unwritten = source.writer("aquifer-test").apply(config_map("default", "lost", "1")).await;
        assert!(matches!(unwritten, Err(WriteError::Unavailable { .. })), "without {what}: {unwritten:?}");
        match what {
            "etcd" => {
                server.start_etcd();
                eventually("a write after etcd came back", RECOVERED, async || {
                    server.try_apply(config_map("default", "after", what)).await.map_err(|error| error.to_string())
                })
                .await;
            }
            _ => {
                server.start_again().await;
                server.apply_object(config_map("default", "after", what)).await;
            }
        }
        let after = ObjectKey::new(Kind::ConfigMap, "default", "after");
        seen.until(&format!("a change after {what} came back"), RECOVERED, |seen| {
            seen.label(&after, "turn").as_deref() == Some(what)
        })
        .await;
        server.delete("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: after, namespace: default}\n").await;
        seen.until("its deletion", SOON, |seen| !seen.objects.contains_key(&after)).await;
        eventually("current again", RECOVERED, current).await;
    }
    let twice: Vec<&ObjectKey> = before.keys().filter(|key| seen.told[*key] != 1).collect();
    assert!(twice.is_empty(), "told again though nothing changed: {twice:?}");
}

/// An API server without its store keeps watches open, and serves from memory: only who asks the store notices.
#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_stops_alone_shows_as_staleness_where_a_lease_is_followed() {
    let server = ApiServer::start().await;
    let mut replicas = Vec::new();
    for identity in ["leader", "follower"] {
        let source = source_of(&server.kubeconfig()).await;
        let mut registry = Registry::default();
        source.register(&mut registry);
        let mut seen = Seen::start(&source, &[Kind::ConfigMap]);
        seen.until("the first list", SOON, |seen| seen.synced).await;
        let (leadership, mut leads) = Leadership::new(&source, "default", "istiod-lite-leader", identity.to_owned());
        tokio::spawn(leadership.run(std::future::pending()));
        if identity == "leader" {
            tokio::time::timeout(RECOVERED, leads.wait_for(|leads| *leads)).await.expect("in time").expect("it leads");
        }
        replicas.push((registry, seen));
    }
    for (what, bound) in [("current", SOON), ("stale", Duration::from_secs(25)), ("current again", RECOVERED)] {
        match what {
            "stale" => server.stop_etcd(),
            "current again" => server.start_etcd(),
            _ => {}
        }
        let begun = Instant::now();
        for (registry, seen) in &mut replicas {
            loop {
                seen.for_a_while(Duration::from_millis(100)).await;
                let stale = metric(registry, "aquifer_source_staleness_seconds{kind=\"ConfigMap\"}");
                // It is counted from the store's last word on.
                if if what == "stale" { stale > 10.0 } else { stale == 0.0 } {
                    assert!(stale < begun.elapsed().as_secs_f64() + 5.0, "{stale}");
                    println!("{what}: {stale} s, after {:.1} s", begun.elapsed().as_secs_f64());
                    break;
                }
                assert!(begun.elapsed() < bound * 5, "not {what} within {:?}: {stale} s", bound * 5);
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn after_410_gone_the_difference_is_told() {
    let server = ApiServer::start().await;
    let link = Link::to(&server.address()).await;
    let source = source_of(&server.through(&server.kubeconfig(), &link)).await;
    let mut registry = Registry::default();
    source.register(&mut registry);
    for name in ["stays", "goes", "changes"] {
        server.apply_object(config_map("default", name, "1")).await;
    }
    let mut seen = Seen::start(&source, &[Kind::ConfigMap]);
    seen.until("the first list", SOON, |seen| seen.synced).await;
    seen.for_a_while(Duration::from_millis(300)).await;
    link.cut();
    server.delete("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: goes, namespace: default}\n").await;
    server.apply_object(config_map("default", "changes", "2")).await;
    server.apply_object(config_map("default", "comes", "1")).await;
    server.compact().await;
    link.mend();
    let key = |name: &str| ObjectKey::new(Kind::ConfigMap, "default", name);
    seen.until("what happened meanwhile", RECOVERED, |seen| {
        !seen.objects.contains_key(&key("goes"))
            && seen.label(&key("changes"), "turn").as_deref() == Some("2")
            && seen.objects.contains_key(&key("comes"))
    })
    .await;
    assert_eq!(seen.told[&key("stays")], 1, "what did not change is not told again");
    let gone = metric(&registry, "aquifer_source_watch_errors_total{kind=\"ConfigMap\",reason=\"gone\"}");
    assert!(gone >= 1.0, "{gone}");
}

#[tokio::test(flavor = "multi_thread")]
async fn crds_installed_later_are_picked_up_and_leave() {
    let server = ApiServer::start().await;
    let source = source_of(&server.kubeconfig()).await;
    let mut seen = Seen::start(&source, Kind::ALL);
    seen.until("synced without a single CRD", RECOVERED, |seen| seen.synced).await;
    let (none, _) = source.read(&[Kind::AuthorizationPolicy.into()]).await.expect("a list");
    assert!(none.is_empty());

    for round in 1..=2 {
        server.install_crds().await;
        let sample = samples::of(Kind::AuthorizationPolicy, "default", "late");
        eventually("the policy is accepted", SOON, async || {
            server.try_apply(sample.clone()).await.map_err(|error| error.to_string())
        })
        .await;
        let key = ObjectKey::new(Kind::AuthorizationPolicy, "default", "late");
        let told = |seen: &Seen| seen.objects.contains_key(&key);
        seen.until(&format!("a policy of a CRD that came late, round {round}"), Duration::from_secs(10), told).await;
        server
            .delete(
                "apiVersion: apiextensions.k8s.io/v1\nkind: CustomResourceDefinition\n\
                 metadata: {name: authorizationpolicies.security.istio.io}\n",
            )
            .await;
        seen.until("gone with its CRD", Duration::from_secs(10), |seen| !seen.objects.contains_key(&key)).await;
        let name = "authorizationpolicies.security.istio.io";
        eventually("the CRD is gone", Duration::from_secs(10), async || {
            match server.get("apiextensions.k8s.io/v1", "CustomResourceDefinition", "", name).await {
                None => Ok(()),
                Some(_) => Err("there".to_owned()),
            }
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_that_lags_loses_nothing() {
    let server = ApiServer::shared().await;
    let source = source_of(&server.kubeconfig()).await;
    let namespace = server.namespace("lags").await;
    let mut seen = Seen::of(
        source.watch_selected(vec![Selection::from(Kind::ConfigMap).in_namespace(&namespace)]).expect("a watch"),
    );
    seen.until("the first list", SOON, |seen| seen.synced).await;
    seen.for_a_while(Duration::from_millis(300)).await;
    // Nobody polls; what happens fills every buffer on the way, until the API server gives up on this watch.
    let writer = source.writer("aquifer-test");
    let text = "x".repeat(400_000);
    for turn in 0..60 {
        let mut map = config_map(&namespace, &format!("m{}", turn % 7), &turn.to_string());
        map["data"] = json!({ "text": text });
        writer.apply(map).await.unwrap_or_else(|error| panic!("{error}"));
    }
    writer.delete(&ObjectKey::new(Kind::ConfigMap, &namespace, "m0"), None).await.expect("a deletion");
    let wanted: BTreeSet<(String, String)> = server
        .list("v1", "ConfigMap", &namespace)
        .await
        .iter()
        .map(|map| (map["metadata"]["name"].to_string(), map["metadata"]["labels"]["turn"].to_string()))
        .collect();
    seen.until("all that happened", RECOVERED, |seen| {
        let known: BTreeSet<(String, String)> = seen
            .objects
            .values()
            .map(|map| (json!(map.name()).to_string(), json!(map.label("turn")).to_string()))
            .collect();
        known == wanted
    })
    .await;
}
