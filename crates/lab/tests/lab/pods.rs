//! Pods' lives: containers, probes, deletion, deployments, commands.

use std::io::Write;
use std::time::{Duration, Instant};

use aquifer_lab::Lab;
use aquifer_objects::{Kind, Object};
use k8s_openapi::api::core::v1::Pod;

use crate::support::{idle, plain_lab, until, web};

async fn pod_objects(lab: &Lab, namespace: &str) -> Vec<std::sync::Arc<Pod>> {
    let objects = lab.objects(&[Kind::Pod]).await.unwrap();
    let pod = |object| if let Object::Pod(pod) = object { Some(pod) } else { None };
    objects.into_iter().filter_map(pod).filter(|pod| pod.metadata.namespace.as_deref() == Some(namespace)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_goes_in_the_order_that_kubernetes_promises() {
    let lab = plain_lab().await;
    let manifest = r#"
apiVersion: v1
kind: Pod
metadata: {name: worker, namespace: default, labels: {app: worker}}
spec:
  terminationGracePeriodSeconds: 20
  containers:
  - name: c
    command:
    - bash
    - -c
    - |
      trap 'echo got QUIT; sleep 0.3; echo finished; exit 0' QUIT
      trap 'echo got TERM' TERM
      echo started
      while :; do sleep 0.05; done
    lifecycle:
      stopSignal: SIGQUIT
      preStop: {exec: {command: [sh, -c, "echo preStop > /tmp/pre; while ! test -e /tmp/go; do sleep 0.02; done"]}}
---
apiVersion: v1
kind: Service
metadata: {name: worker, namespace: default}
spec: {selector: {app: worker}, ports: [{port: 80}]}
"#;
    lab.apply(manifest).await.unwrap();
    let ready =
        |status: &aquifer_lab::Status| status.pods.iter().any(|pod| pod.name == "worker" && pod.ready).then_some(());
    lab.wait_status("the pod ready", Duration::from_secs(20), ready).await.unwrap();
    let log = || std::fs::read_to_string(lab.state_dir().join("logs/default/worker.log")).unwrap();
    until("the program started", Duration::from_secs(10), async || log().contains("started")).await;

    lab.delete("pod", "default", "worker").await.unwrap();
    until("preStop runs", Duration::from_secs(10), async || {
        lab.exec("default", "worker", &["cat", "/tmp/pre"]).await.is_ok_and(|output| output.stdout == "preStop\n")
    })
    .await;
    // While preStop runs: marked, out of the ready endpoints, no signal yet.
    let pod = pod_objects(&lab, "default").await.remove(0);
    assert!(pod.metadata.deletion_timestamp.is_some());
    until("the endpoint withdrawn", Duration::from_secs(5), async || {
        let slices = lab.objects(&[Kind::EndpointSlice]).await.unwrap();
        let conditions = slices.iter().find_map(|object| match object {
            Object::EndpointSlice(slice) => slice.endpoints.as_ref()?.first()?.conditions.clone(),
            _ => None,
        });
        let conditions = conditions.expect("the pod is still listed");
        (conditions.ready, conditions.serving, conditions.terminating) == (Some(false), Some(true), Some(true))
    })
    .await;
    assert!(!log().contains("QUIT"), "{}", log());

    lab.exec("default", "worker", &["touch", "/tmp/go"]).await.unwrap();
    until("the object gone", Duration::from_secs(10), async || pod_objects(&lab, "default").await.is_empty()).await;
    until("all it said is in its log", Duration::from_secs(10), async || log().ends_with("finished\n")).await;
    assert_eq!(log(), "started\ngot QUIT\nfinished\n");
    assert!(lab.exec("default", "worker", &["true"]).await.is_err());
    // Its namespace and its link went with it.
    until("the link gone", Duration::from_secs(10), async || {
        let links = lab.node_exec("node1", &["ip", "-o", "link"]).await.unwrap().stdout;
        let other = lab.node_exec("node2", &["ip", "-o", "link"]).await.unwrap().stdout;
        !links.contains("veth") && !other.contains("veth")
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_does_not_end_within_the_grace_period_is_killed_with_its_children() {
    let lab = plain_lab().await;
    let manifest = r#"
apiVersion: v1
kind: Pod
metadata: {name: stubborn, namespace: default}
spec:
  terminationGracePeriodSeconds: 60
  containers:
  - name: c
    command: [bash, -c, "trap '' TERM; setsid sleep 86399.5 & while :; do sleep 86399.4; done"]
"#;
    lab.apply(manifest).await.unwrap();
    lab.wait_status("the pod", Duration::from_secs(20), |status| status.pods.iter().any(|pod| pod.ready).then_some(()))
        .await
        .unwrap();
    let sleeping = async || {
        lab.netns_exec(aquifer_lab::Netns::Wire, &["pgrep", "-x", "sleep"]).await.unwrap().stdout.lines().count()
    };
    until("its children", Duration::from_secs(10), async || sleeping().await == 2).await;
    let begin = Instant::now();
    lab.delete("pod", "default", "stubborn").await.unwrap();
    // A second, shorter deletion takes over.
    lab.delete_pod("default", "stubborn", Some(1)).await.unwrap();
    until("the pod gone", Duration::from_secs(20), async || lab.status().await.unwrap().pods.is_empty()).await;
    assert!(begin.elapsed() >= Duration::from_secs(1));
    until("also what left its process group gone", Duration::from_secs(10), async || sleeping().await == 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn deployments_scale_roll_and_heal() {
    let lab = plain_lab().await;
    lab.apply(&web("default", "web", 2, None)).await.unwrap();
    let first = lab.wait_ready("default", "web", 2).await.unwrap();
    assert_ne!(first[0].node, first[1].node, "spread over the nodes");
    // A pod that is deleted is replaced, one whose process dies is restarted.
    lab.delete_pod("default", &first[0].name, Some(0)).await.unwrap();
    until("a new pod", Duration::from_secs(20), async || {
        let pods = lab.pods("default", "web").await.unwrap();
        pods.len() == 2 && pods.iter().all(|pod| pod.ready && pod.name != first[0].name)
    })
    .await;
    lab.exec("default", &first[1].name, &["sh", "-c", "kill -9 $(cat /tmp/nginx.pid)"]).await.unwrap();
    until("a restart", Duration::from_secs(20), async || {
        let pod = lab.pod("default", &first[1].name).await.unwrap();
        pod.restarts == 1 && pod.ready
    })
    .await;
    // A new template replaces them all.
    let new = web("default", "web", 2, None).replace("image: nginx", "image: nginx:2");
    lab.apply(&new).await.unwrap();
    until("a roll-out", Duration::from_secs(30), async || {
        let pods = lab.status().await.unwrap().pods;
        pods.len() == 2 && pods.iter().all(|pod| pod.ready && pod.name != first[1].name)
    })
    .await;
    lab.delete("deployment", "default", "web").await.unwrap();
    until("no pods", Duration::from_secs(20), async || lab.status().await.unwrap().pods.is_empty()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_namespace_takes_all_in_it_along() {
    let lab = plain_lab().await;
    lab.apply("apiVersion: v1\nkind: Namespace\nmetadata: {name: shop}\n").await.unwrap();
    lab.apply(&[web("shop", "web", 1, None), idle("default", "idle", 1, None)].join("---")).await.unwrap();
    lab.wait_ready("shop", "web", 1).await.unwrap();
    lab.wait_ready("default", "idle", 1).await.unwrap();
    let shop = lab.objects(&[Kind::Namespace, Kind::ServiceAccount]).await.unwrap();
    assert!(shop.iter().any(|object| object.label("kubernetes.io/metadata.name") == Some("shop")));
    assert!(shop.iter().any(|object| object.namespace() == "shop" && object.name() == "default"));
    lab.delete("namespace", "", "shop").await.unwrap();
    until("nothing left of it", Duration::from_secs(20), async || {
        let objects = lab.objects(Kind::ALL).await.unwrap();
        objects.iter().all(|object| object.namespace() != "shop" && object.name() != "shop")
    })
    .await;
    assert!(lab.pod("default", "idle").await.unwrap().ready);
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_have_their_own_files_names_and_status() {
    let lab = plain_lab().await;
    lab.apply(&idle("default", "idle", 2, Some("node1"))).await.unwrap();
    let pods = lab.wait_ready("default", "idle", 2).await.unwrap();
    for pod in &pods {
        let script = "hostname; echo $HOSTNAME; pwd; cat /tmp/mine /run/mine /var/log/mine 2>/dev/null; for f in /tmp /run /var/log; do echo x > $f/mine; done";
        let output = lab.exec("default", &pod.name, &["sh", "-c", script]).await.unwrap();
        assert_eq!(output.stdout, format!("{0}\n{0}\n/tmp\n", pod.name));
    }
    assert!(!std::path::Path::new("/tmp/mine").exists() && !std::path::Path::new("/run/mine").exists());
    // The lab knows it a moment before the object says it.
    let is_ready = |object: &Pod| {
        let conditions = object.status.iter().flat_map(|status| status.conditions.iter().flatten());
        conditions.into_iter().any(|condition| condition.type_ == "Ready" && condition.status == "True")
    };
    let mut object = pod_objects(&lab, "default").await.remove(0);
    until("the object says that it is ready", Duration::from_secs(10), async || {
        object = pod_objects(&lab, "default").await.remove(0);
        is_ready(&object)
    })
    .await;
    let (status, info) =
        (object.status.clone().unwrap(), lab.pod("default", object.metadata.name.as_deref().unwrap()).await.unwrap());
    assert_eq!(status.pod_ip, Some(info.ipv4().to_string()));
    assert_eq!(status.pod_ips.unwrap().len(), 2);
    assert_eq!((status.host_ip.as_deref(), status.phase.as_deref()), (Some("198.18.0.1"), Some("Running")));
    let ready = status.conditions.unwrap().into_iter().find(|condition| condition.type_ == "Ready").unwrap();
    assert_eq!(ready.status, "True");
    assert_eq!(object.metadata.owner_references.as_ref().unwrap()[0].kind, "ReplicaSet");
    assert_eq!(object.metadata.uid.as_deref(), Some(info.uid.as_str()));
}

#[tokio::test(flavor = "multi_thread")]
async fn commands_in_pods() {
    let lab = plain_lab().await;
    lab.apply(&idle("default", "idle", 1, None)).await.unwrap();
    lab.wait_ready("default", "idle", 1).await.unwrap();
    let output = lab.exec("default", "idle", &["sh", "-c", "echo out; echo err >&2; exit 7"]).await.unwrap();
    assert_eq!((output.code, output.stdout.as_str(), output.stderr.as_str()), (7, "out\n", "err\n"));
    let mut cat = lab.spawn("default", "idle", &["cat"]).unwrap();
    let mut stdin = cat.take_stdin().unwrap();
    stdin.write_all(b"there and back").unwrap();
    cat.wait_output("there and back", Duration::from_secs(10)).await.unwrap();
    drop(stdin);
    assert_eq!(cat.wait().await.unwrap().code, 0);
    // Dropping the handle kills.
    let sleep = lab.spawn("default", "idle", &["sleep", "86398.1"]).unwrap();
    let running = async || lab.exec("default", "idle", &["pgrep", "-f", "sleep 86398.1"]).await.unwrap().ok();
    until("the command runs", Duration::from_secs(10), async || running().await).await;
    assert!(sleep.is_running());
    drop(sleep);
    until("the command gone", Duration::from_secs(10), async || !running().await).await;
    let killed = lab.spawn("default", "idle", &["sleep", "100"]).unwrap();
    assert_eq!(killed.kill().await.unwrap().code, 128 + 9);
    let errors = [
        (lab.exec("default", "nobody", &["true"]).await.unwrap_err(), "no pod or deployment `nobody`"),
        (
            lab.exec("default", "idle", &["no-such-program"]).await.unwrap_err(),
            "`no-such-program` is not on this machine",
        ),
    ];
    for (error, expect) in errors {
        assert!(error.to_string().contains(expect), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn commands_wait_for_pods_that_were_just_applied() {
    let lab = plain_lab().await;
    for round in 0..5 {
        let name = format!("new-{round}");
        lab.apply(&idle("default", &name, 1, None)).await.unwrap();
        let output = lab.exec("default", &format!("deploy/{name}"), &["hostname"]).await.unwrap();
        assert!(output.stdout.starts_with(&name), "{output:?}");
    }
    let error = lab.exec("default", "svc/new-0", &["true"]).await.unwrap_err().to_string();
    assert!(error.contains("`deploy/…`"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn labels_that_kubernetes_refuses_are_refused() {
    let lab = plain_lab().await;
    lab.apply("apiVersion: v1\nkind: Namespace\nmetadata: {name: shop}\n").await.unwrap();
    // One namespace is a person's, the other the lab's.
    for namespace in ["shop", "default"] {
        for (key, value) in [("bad key!", "b"), ("a", "b c")] {
            let error = lab.label_namespace(namespace, key, Some(value)).await.unwrap_err().to_string();
            assert!(error.starts_with("metadata.labels: the "), "{error}");
        }
        lab.label_namespace(namespace, "istio.io/dataplane-mode", Some("ambient")).await.unwrap();
        lab.label_namespace(namespace, "istio.io/dataplane-mode", None).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_run_says_why_and_bad_manifests_are_refused() {
    let lab = plain_lab().await;
    lab.apply("apiVersion: v1\nkind: Pod\nmetadata: {name: a, namespace: default}\nspec: {containers: [{name: c, image: nginx}]}\n").await.unwrap();
    lab.apply("apiVersion: v1\nkind: Pod\nmetadata: {name: b, namespace: default}\nspec: {containers: [{name: c, command: [no-such]}]}\n").await.unwrap();
    for (pod, expect) in [("a", "no `command`"), ("b", "`no-such` is not on this machine")] {
        until(pod, Duration::from_secs(20), async || {
            lab.pod("default", pod).await.is_ok_and(|found| found.message.contains(expect) && !found.ready)
        })
        .await;
    }
    let error = lab.apply("apiVersion: v1\nkind: Pod\nmetadata: {name: x}\nspec: {containers: 5}\n").await.unwrap_err();
    assert!(error.to_string().contains("containers"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn probes_decide_who_is_ready() {
    let lab = plain_lab().await;
    let pod = |name: &str, probe: &str| {
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: default}}\nspec:\n  terminationGracePeriodSeconds: 0\n  containers:\n  \
             - name: c\n    command: [sh, -c, \"touch /tmp/up; exec redis-server --port 6379 --save ''\"]\n    readinessProbe: {{{probe}, periodSeconds: 1, failureThreshold: 1}}\n"
        )
    };
    let pods = [
        pod("by-file", "exec: {command: [test, -e, /tmp/up]}"),
        pod("by-port", "tcpSocket: {port: 6379}"),
        pod("by-wrong-port", "tcpSocket: {port: 6380}"),
    ];
    lab.apply(&pods.join("---\n")).await.unwrap();
    let ready = async |name: &str| lab.pod("default", name).await.is_ok_and(|pod| pod.ready);
    for name in ["by-file", "by-port"] {
        until(name, Duration::from_secs(20), async || ready(name).await).await;
    }
    assert!(!ready("by-wrong-port").await);
    lab.exec("default", "by-file", &["rm", "/tmp/up"]).await.unwrap();
    until("not ready any more", Duration::from_secs(20), async || !ready("by-file").await).await;
    lab.exec("default", "by-file", &["touch", "/tmp/up"]).await.unwrap();
    until("ready again", Duration::from_secs(20), async || ready("by-file").await).await;
}
