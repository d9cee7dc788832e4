//! Who is in, and in which order they get in and out.

use super::decision::{Decision, Defaults, Ignored, NOT_ENROLLED_REASON, REDIRECTION, Reason, desired, ignored};
use super::effects::{Effects, Marks, PodId};
use super::reconciler::{CmdAdd, Reconciler};
use super::worker::{Answer, Created};
use crate::metrics::Metrics;
use crate::rules::pod::PodRules;
use crate::zds::ZdsError;
use aquifer_objects::{Event, Kind, Object, ObjectKey};
use aquifer_runtime::Tracker;
use k8s_openapi::api::core::v1::{Namespace, Pod};
use parking_lot::Mutex;
use serde_json::{Value, json};
use std::collections::{HashSet, VecDeque};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, timeout};

const PATIENCE: Duration = Duration::from_secs(10);

fn pod(changes: Value) -> Pod {
    let mut pod = json!({
        "metadata": {"name": "web", "namespace": "shop", "uid": "uid-1", "labels": {}, "annotations": {}},
        "spec": {"nodeName": "node1", "serviceAccountName": "web", "containers": [{"name": "web"}]},
        "status": {"phase": "Running", "podIPs": [{"ip": "198.18.16.2"}], "podIP": "198.18.16.2"},
    });
    merge(&mut pod, changes);
    serde_json::from_value(pod).unwrap()
}

fn merge(into: &mut Value, changes: Value) {
    match (into, changes) {
        (Value::Object(into), Value::Object(changes)) => {
            for (key, change) in changes {
                merge(into.entry(key).or_insert(Value::Null), change);
            }
        }
        (into, change) => *into = change,
    }
}

fn namespace(mode: Option<&str>) -> Namespace {
    let labels = mode.map(|mode| json!({"istio.io/dataplane-mode": mode})).unwrap_or_default();
    serde_json::from_value(json!({"metadata": {"name": "shop", "labels": labels}})).unwrap()
}

#[test]
fn who_is_in() {
    let defaults = Defaults { excluded_namespaces: vec!["kube-system".into()], ..Defaults::default() };
    let check = |changes: Value, mode: Option<&str>, expected: Option<Reason>| {
        let decision = desired(&pod(changes.clone()), Some(&namespace(mode)), &defaults);
        match (decision, expected) {
            (Decision::Enrol(_), None) => {}
            (Decision::Leave(reason), Some(expected)) => assert_eq!(reason, expected, "{changes} {mode:?}"),
            (decision, expected) => panic!("{changes} {mode:?}: {decision:?}, not {expected:?}"),
        }
    };
    let label = |mode: &str| json!({"metadata": {"labels": {"istio.io/dataplane-mode": mode}}});
    let proxy = |name: &str| Some(Reason::MeshProxy(name.into()));
    let native = json!({"spec": {"initContainers": [{"name": "linkerd-proxy", "restartPolicy": "Always"}]}});
    let sidecar = json!({"metadata": {"annotations": {"sidecar.istio.io/status": "{}"}}});
    let both = json!({
        "metadata": {"annotations": {"sidecar.istio.io/status": "{}"}},
        "spec": {"containers": [{"name": "web"}, {"name": "istio-proxy"}]},
    });

    check(json!({}), None, Some(Reason::NotLabelled));
    check(json!({}), Some("ambient"), None);
    check(json!({}), Some("none"), Some(Reason::NotLabelled));
    check(json!({}), Some("Ambient"), Some(Reason::NotLabelled));
    check(label("ambient"), None, None);
    check(label("ambient"), Some("none"), None);
    check(label("none"), Some("ambient"), Some(Reason::OptedOut));
    check(json!({"spec": {"hostNetwork": true}}), Some("ambient"), Some(Reason::HostNetwork));
    check(json!({"spec": {"hostNetwork": true}}), None, Some(Reason::NotLabelled));
    check(sidecar, Some("ambient"), Some(Reason::Sidecar));
    check(json!({"spec": {"containers": [{"name": "istio-proxy"}]}}), Some("ambient"), proxy("istio-proxy"));
    check(json!({"spec": {"containers": [{"name": "linkerd-proxy"}]}}), Some("ambient"), proxy("linkerd-proxy"));
    check(json!({"spec": {"containers": [{"name": "my-istio-proxy"}]}}), Some("ambient"), None);
    check(native, Some("ambient"), proxy("linkerd-proxy"));
    check(both, Some("ambient"), proxy("istio-proxy"));
    check(json!({"metadata": {"namespace": "kube-system"}}), Some("ambient"), Some(Reason::ExcludedNamespace));
    check(json!({"status": {"phase": "Succeeded"}}), Some("ambient"), Some(Reason::Terminated));
    check(json!({"status": {"phase": "Failed"}}), Some("ambient"), Some(Reason::Terminated));
    check(json!({"metadata": {"annotations": {REDIRECTION: "enabled"}}}), None, Some(Reason::NotLabelled));
}

#[test]
fn annotations_choose_the_rules() {
    let check = |annotations: Value, capture_dns: bool, expected: PodRules| {
        let defaults = Defaults { capture_dns, ..Defaults::default() };
        let pod = pod(json!({"metadata": {"annotations": annotations}}));
        assert_eq!(desired(&pod, Some(&namespace(Some("ambient"))), &defaults), Decision::Enrol(expected));
    };
    let plain = PodRules {
        probe_addresses: Defaults::default().probe_addresses,
        capture_dns: false,
        ingress: false,
        virtual_interfaces: Vec::new(),
    };
    check(json!({}), false, plain.clone());
    check(json!({}), true, PodRules { capture_dns: true, ..plain.clone() });
    check(json!({"ambient.istio.io/dns-capture": "true"}), false, PodRules { capture_dns: true, ..plain.clone() });
    check(json!({"ambient.istio.io/dns-capture": "false"}), true, plain.clone());
    check(json!({"ambient.istio.io/dns-capture": "perhaps"}), true, PodRules { capture_dns: true, ..plain.clone() });
    check(
        json!({"ambient.istio.io/bypass-inbound-capture": "true"}),
        false,
        PodRules { ingress: true, ..plain.clone() },
    );
    check(
        json!({"istio.io/reroute-virtual-interfaces": "vm0, vm1,,much-too-long-for-a-name"}),
        false,
        PodRules { virtual_interfaces: vec!["vm0".into(), "vm1".into()], ..plain },
    );
}

#[test]
fn annotations_that_mean_nothing_are_named() {
    let check = |annotations: Value, expected: &[(&str, &str)]| {
        let ignored = ignored(&pod(json!({"metadata": {"annotations": annotations}})));
        let named: Vec<(&str, &str)> = ignored.iter().map(|ignored| (ignored.key, &*ignored.value)).collect();
        assert_eq!(named, expected);
    };
    let dns = "ambient.istio.io/dns-capture";
    let bypass = "ambient.istio.io/bypass-inbound-capture";
    let interfaces = "istio.io/reroute-virtual-interfaces";
    check(json!({}), &[]);
    check(json!({dns: "true", bypass: "false", interfaces: "vm0, vm1,"}), &[]);
    check(json!({dns: "perhaps"}), &[(dns, "perhaps")]);
    check(json!({dns: ""}), &[(dns, "")]);
    check(json!({bypass: "True"}), &[(bypass, "True")]);
    check(
        json!({interfaces: "vm0,a/b, sixteen-letters!,x y"}),
        &[(interfaces, "a/b"), (interfaces, "sixteen-letters!"), (interfaces, "x y")],
    );
    check(json!({dns: "on", bypass: "yes"}), &[(dns, "on"), (bypass, "yes")]);
}

#[tokio::test]
async fn a_warning_comes_once_for_each_value_and_only_for_pods_that_are_in() {
    let bench_with = |value: &str| pod(json!({"metadata": {"annotations": {"ambient.istio.io/dns-capture": value}}}));
    let mut bench = bench();
    bench.applied(namespace(None));
    bench.applied(bench_with("perhaps"));
    bench.reconciler.event(Event::Synced);
    bench.steps(&[]).await;
    bench.applied(namespace(Some("ambient")));
    bench.steps(&["ignored web ambient.istio.io/dns-capture: perhaps", IN[0], IN[1], IN[2], IN[3]]).await;
    bench.applied(bench_with("perhaps"));
    bench.applied(namespace(Some("ambient")));
    bench.applied(bench_with("maybe"));
    bench.applied(bench_with("false"));
    assert_eq!(bench.fake.steps.lock()[..], ["ignored web ambient.istio.io/dns-capture: maybe"]);
}

/// Notes every step; fails those that are told to.
#[derive(Default)]
struct Fake {
    steps: Mutex<Vec<String>>,
    proxy: Mutex<VecDeque<ZdsError>>,
    rules: Mutex<VecDeque<String>>,
    runs: Mutex<HashSet<String>>,
    laid: Mutex<HashSet<String>>,
    failures: Mutex<Vec<&'static str>>,
    proxies: watch::Sender<u64>,
}

impl Fake {
    fn note(&self, step: String) {
        self.steps.lock().push(step);
    }
}

impl Effects for Fake {
    fn find(&self, pod: &PodId) -> Option<PathBuf> {
        self.runs.lock().contains(&pod.uid).then(|| PathBuf::from(format!("/netns/{}", pod.uid)))
    }

    fn knows(&self, pod: &PodId) -> bool {
        self.laid.lock().contains(&pod.uid)
    }

    async fn lay(&self, pod: &PodId, netns: &Path, rules: &PodRules, _ips: &[IpAddr]) -> Result<(), String> {
        self.note(format!("lay {}{}", netns.display(), if rules.capture_dns { " with DNS" } else { "" }));
        if let Some(error) = self.rules.lock().pop_front() {
            return Err(error);
        }
        self.laid.lock().insert(pod.uid.clone());
        Ok(())
    }

    async fn hand_over(&self, pod: &PodId) -> Result<(), ZdsError> {
        self.note(format!("add {} as {}", pod.name, pod.service_account));
        self.proxy.lock().pop_front().map_or(Ok(()), Err)
    }

    fn keep(&self, pod: &PodId) {
        self.note(format!("keep {}", pod.uid));
    }

    async fn admit_probes(&self, _pod: &PodId, ips: &[IpAddr]) -> Result<(), String> {
        let ips: Vec<String> = ips.iter().map(IpAddr::to_string).collect();
        self.note(format!("probes {}", ips.join(" ")));
        Ok(())
    }

    async fn mark(&self, _pod: &PodId, marks: &Marks) -> Result<(), String> {
        let reason = marks.reason.as_ref().map(|reason| format!(" ({reason})")).unwrap_or_default();
        self.note(format!("mark {}{reason}", marks.redirection.as_deref().unwrap_or("nothing")));
        Ok(())
    }

    async fn remove_rules(&self, _pod: &PodId) -> Result<(), String> {
        self.note("remove".into());
        Ok(())
    }

    async fn forget(&self, pod: &PodId) -> Result<(), String> {
        self.note(format!("forget {}", pod.uid));
        self.laid.lock().remove(&pod.uid);
        Ok(())
    }

    fn proxies(&self) -> watch::Receiver<u64> {
        self.proxies.subscribe()
    }

    fn ignored(&self, pod: &PodId, annotation: &Ignored) {
        self.note(format!("ignored {} {}: {}", pod.name, annotation.key, annotation.value));
    }

    fn failed(&self, step: &'static str) {
        self.failures.lock().push(step);
    }
    fn enrolled(&self, _change: i64) {}
}

struct Bench {
    fake: Arc<Fake>,
    reconciler: Reconciler<Fake>,
    stock: mpsc::Receiver<()>,
}

fn bench() -> Bench {
    let fake = Arc::new(Fake::default());
    fake.runs.lock().insert("uid-1".into());
    let (stocktaking, stock) = mpsc::channel(1);
    let reconciler = Reconciler::new(
        fake.clone(),
        "node1".into(),
        Defaults::default(),
        Metrics::default(),
        Tracker::new(),
        stocktaking,
    );
    Bench { fake, reconciler, stock }
}

impl Bench {
    fn applied(&mut self, object: impl Into<Object>) {
        self.reconciler.event(Event::Applied(object.into()));
    }

    /// The steps since the last call, once they are these.
    async fn steps(&self, expected: &[&str]) {
        let polled = async {
            while self.fake.steps.lock().len() < expected.len() {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        let _ = timeout(PATIENCE, polled).await;
        assert_eq!(*std::mem::take(&mut *self.fake.steps.lock()), *expected);
    }

    fn cmdadd(&mut self, patience: Duration) -> oneshot::Receiver<Result<Answer, String>> {
        let (answer, answered) = oneshot::channel();
        let created = Created {
            netns: "/netns/given".into(),
            ips: vec!["198.18.16.7".parse().unwrap()],
            answer,
            deadline: Instant::now() + patience,
        };
        self.reconciler.created(CmdAdd { namespace: "shop".into(), name: "web".into(), created });
        answered
    }
}

const IN: [&str; 4] = ["lay /netns/uid-1", "add web as web", "probes 198.18.16.2", "mark enabled"];

#[tokio::test]
async fn in_and_out_by_the_namespaces_label() {
    let mut bench = bench();
    bench.applied(namespace(None));
    bench.applied(pod(json!({})));
    bench.reconciler.event(Event::Synced);
    assert_eq!(timeout(PATIENCE, bench.stock.recv()).await.unwrap(), None, "the stock is taken");
    bench.steps(&[]).await;

    bench.applied(namespace(Some("ambient")));
    bench.steps(&IN).await;
    // Our own annotation comes back as an event; nothing is to be done for it.
    bench.applied(pod(json!({"metadata": {"annotations": {REDIRECTION: "enabled"}}})));
    bench.applied(namespace(None));
    bench.steps(&["mark nothing", "remove", "forget uid-1"]).await;

    bench.applied(pod(json!({})));
    bench.applied(namespace(Some("ambient")));
    bench.steps(&IN).await;
    bench.reconciler.event(Event::Deleted(ObjectKey::new(Kind::Pod, "shop", "web")));
    bench.steps(&["forget uid-1"]).await;
}

#[tokio::test]
async fn pods_of_other_nodes_are_not_ours() {
    let mut bench = bench();
    bench.applied(namespace(Some("ambient")));
    bench.applied(pod(json!({"spec": {"nodeName": "node2"}})));
    bench.applied(pod(json!({"metadata": {"name": "unscheduled", "uid": "uid-2"}, "spec": {"nodeName": null}})));
    bench.applied(pod(json!({})));
    bench.steps(&IN).await;
    // The same name, now elsewhere.
    bench.applied(pod(json!({"metadata": {"uid": "uid-3"}, "spec": {"nodeName": "node2"}})));
    bench.steps(&["forget uid-1"]).await;
}

#[tokio::test]
async fn a_change_of_rules_is_laid_and_a_new_pod_of_the_name_starts_over() {
    let mut bench = bench();
    bench.applied(namespace(Some("ambient")));
    bench.applied(pod(json!({})));
    bench.steps(&IN).await;
    let dns = json!({"metadata": {"annotations": {REDIRECTION: "enabled", "ambient.istio.io/dns-capture": "true"}}});
    bench.applied(pod(dns));
    bench.steps(&["lay /netns/uid-1 with DNS", "add web as web", "probes 198.18.16.2"]).await;

    bench.fake.runs.lock().insert("uid-2".into());
    bench.applied(pod(json!({"metadata": {"uid": "uid-2"}})));
    let polled = async {
        while bench.fake.steps.lock().len() < 5 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    timeout(PATIENCE, polled).await.unwrap();
    let steps = std::mem::take(&mut *bench.fake.steps.lock());
    assert!(steps.contains(&"forget uid-1".to_owned()) && steps.contains(&"lay /netns/uid-2".to_owned()), "{steps:?}");
}

#[tokio::test]
async fn why_a_labelled_pod_is_not_in_is_written_on_it() {
    let mut bench = bench();
    bench.applied(namespace(Some("ambient")));
    bench.applied(pod(json!({"spec": {"containers": [{"name": "istio-proxy"}]}})));
    bench.steps(&["mark nothing (MeshProxy: container istio-proxy is a mesh proxy of the pod's own)"]).await;
    let reason = "MeshProxy: container istio-proxy is a mesh proxy of the pod's own";
    bench.applied(pod(json!({
        "metadata": {"annotations": {NOT_ENROLLED_REASON: reason}},
        "spec": {"containers": [{"name": "istio-proxy"}]},
    })));
    bench.applied(namespace(None));
    bench.steps(&["mark nothing"]).await;
}

#[tokio::test]
async fn refusals_are_pending_and_tried_again() {
    let mut bench = bench();
    bench.fake.proxy.lock().extend([ZdsError::Refused("no".into()), ZdsError::Lost("gone".into())]);
    bench.applied(namespace(Some("ambient")));
    bench.applied(pod(json!({})));
    let retried = [
        "lay /netns/uid-1",
        "add web as web",
        "mark pending",
        "lay /netns/uid-1",
        "add web as web",
        "lay /netns/uid-1",
        "add web as web",
        "probes 198.18.16.2",
        "mark enabled",
    ];
    bench.steps(&retried).await;
}

#[tokio::test]
async fn a_label_that_comes_back_at_once_brings_the_pod_back() {
    let mut bench = bench();
    bench.applied(namespace(Some("ambient")));
    bench.applied(pod(json!({})));
    bench.steps(&IN).await;
    bench.applied(pod(json!({"metadata": {"annotations": {REDIRECTION: "enabled"}}})));
    bench.applied(namespace(None));
    bench.steps(&["mark nothing"]).await;
    // While it is on its way out, and before the watch shows that the annotation went.
    bench.applied(namespace(Some("ambient")));
    bench.steps(&["remove", "forget uid-1", IN[0], IN[1], IN[2], IN[3]]).await;

    // Someone else takes the annotation off.
    bench.applied(pod(json!({"metadata": {"annotations": {"other": "x"}}})));
    bench.steps(&["mark enabled"]).await;
}

#[tokio::test]
async fn a_proxy_that_connects_ends_the_wait() {
    let mut bench = bench();
    // So many failures that the pauses would take minutes.
    bench.fake.proxy.lock().extend(vec![ZdsError::NotConnected; 12]);
    bench.applied(namespace(Some("ambient")));
    bench.applied(pod(json!({})));
    let polled = async {
        while !bench.fake.steps.lock().contains(&"mark enabled".to_owned()) {
            bench.fake.proxies.send_modify(|count| *count += 1);
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    timeout(PATIENCE, polled).await.unwrap();
}

#[tokio::test]
async fn a_pod_that_was_in_is_adopted_without_a_gap() {
    let mut bench = bench();
    bench.fake.laid.lock().insert("uid-1".into());
    bench.fake.proxy.lock().extend([ZdsError::NotConnected]);
    bench.applied(pod(json!({"metadata": {"annotations": {REDIRECTION: "enabled"}}})));
    bench.applied(namespace(Some("ambient")));
    bench.reconciler.event(Event::Synced);
    assert_eq!(timeout(PATIENCE, bench.stock.recv()).await.unwrap(), None);
    assert!(bench.fake.steps.lock().contains(&"lay /netns/uid-1".to_owned()), "before any proxy is served");
    // Never pending meanwhile: peers go on as before.
    bench
        .steps(&["lay /netns/uid-1", "add web as web", "lay /netns/uid-1", "add web as web", "probes 198.18.16.2"])
        .await;
}

#[tokio::test]
async fn a_pod_that_left_while_no_agent_ran_is_taken_out() {
    let mut bench = bench();
    bench.fake.laid.lock().insert("uid-1".into());
    bench.applied(pod(json!({"metadata": {"annotations": {REDIRECTION: "enabled"}}})));
    bench.applied(namespace(None));
    bench.reconciler.event(Event::Synced);
    bench.steps(&["mark nothing", "remove", "forget uid-1"]).await;
}

#[tokio::test]
async fn a_proxy_keeps_what_the_agent_does_not_find() {
    let mut bench = bench();
    bench.fake.runs.lock().clear();
    bench.applied(namespace(Some("ambient")));
    bench.applied(pod(json!({"metadata": {"annotations": {REDIRECTION: "enabled"}}})));
    bench.reconciler.event(Event::Synced);
    assert_eq!(timeout(PATIENCE, bench.stock.recv()).await.unwrap(), None);
    assert_eq!(bench.fake.steps.lock()[0], "keep uid-1");
}

#[tokio::test(start_paused = true)]
async fn a_pod_whose_network_does_not_come_is_told_of_once() {
    let mut bench = bench();
    bench.fake.runs.lock().clear();
    bench.applied(namespace(Some("ambient")));
    bench.applied(pod(json!({})));
    tokio::time::sleep(Duration::from_secs(4)).await;
    bench.steps(&[]).await;
    assert_eq!(bench.fake.failures.lock().len(), 0, "it may just be starting");
    bench.steps(&["mark pending"]).await;
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(*bench.fake.failures.lock(), ["netns"]);
    bench.fake.runs.lock().insert("uid-1".into());
    bench.steps(&IN).await;
}

#[tokio::test]
async fn cmdadd_brings_a_starting_pod_in() {
    let mut bench = bench();
    bench.fake.runs.lock().clear();
    bench.applied(namespace(Some("ambient")));
    bench.applied(pod(json!({"status": {"phase": "Pending", "podIPs": null, "podIP": null}})));
    bench.reconciler.event(Event::Synced);
    let answered = bench.cmdadd(PATIENCE);
    assert_eq!(timeout(PATIENCE, answered).await.unwrap().unwrap(), Ok(Answer::Enrolled));
    bench.steps(&["lay /netns/given", "add web as web", "probes 198.18.16.7", "mark enabled"]).await;
}

#[tokio::test]
async fn cmdadd_before_the_watch_waits_for_it() {
    let mut bench = bench();
    bench.reconciler.event(Event::Synced);
    let mut answered = bench.cmdadd(PATIENCE);
    assert!(answered.try_recv().is_err());
    bench.applied(namespace(None));
    bench.applied(pod(json!({})));
    let answer = timeout(PATIENCE, answered).await.unwrap().unwrap();
    assert_eq!(answer, Ok(Answer::NotEnrolled(Reason::NotLabelled)));
    bench.steps(&[]).await;
}

#[tokio::test]
async fn cmdadd_says_why_a_pod_did_not_get_in() {
    let mut bench = bench();
    bench.fake.rules.lock().extend(vec!["add rule \"x\": no".to_owned(); 1000]);
    bench.applied(namespace(Some("ambient")));
    bench.applied(pod(json!({})));
    let answered = bench.cmdadd(Duration::from_millis(500));
    let answer = timeout(PATIENCE, answered).await.unwrap().unwrap();
    assert_eq!(answer, Err("add rule \"x\": no".into()));
}
