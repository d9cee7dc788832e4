//! What the tests share: a lab, and manifests of small programs.

use std::path::PathBuf;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use aquifer_lab::{Lab, LabOptions};

/// A lab without the mesh and without a resolver: no pods but the test's own.
pub(crate) async fn plain_lab() -> Lab {
    start(LabOptions { dns: false, ..LabOptions::plain() }).await
}

pub(crate) async fn start(options: LabOptions) -> Lab {
    tokio::task::spawn_blocking(aquifer).await.unwrap();
    match Lab::start(options).await {
        Ok(lab) => lab,
        Err(error) => panic!("{error}"),
    }
}

/// The `aquifer` binary. It and those that a lab starts are built once per run: a test must not try yesterday's.
pub(crate) fn aquifer() -> PathBuf {
    static BUILT: OnceLock<bool> = OnceLock::new();
    let built = BUILT.get_or_init(|| {
        assert!(nix::unistd::Uid::effective().is_root(), "a lab makes network namespaces: run its tests as root");
        let status = std::process::Command::new(env!("CARGO"))
            .args(["build", "--quiet", "--workspace", "--bins"])
            .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."))
            .status()
            .expect("cargo to run");
        status.success()
    });
    assert!(built, "cargo build of the binaries");
    std::env::current_exe().unwrap().ancestors().nth(2).unwrap().join("aquifer")
}

/// A web server that answers with its pod's name, and its Service on port 80.
pub(crate) fn web(namespace: &str, name: &str, replicas: usize, node: Option<&str>) -> String {
    let node = node.map(|node| format!("nodeSelector: {{kubernetes.io/hostname: {node}}}")).unwrap_or_default();
    format!(
        r#"
apiVersion: apps/v1
kind: Deployment
metadata: {{name: {name}, namespace: {namespace}}}
spec:
  replicas: {replicas}
  selector: {{matchLabels: {{app: {name}}}}}
  template:
    metadata: {{labels: {{app: {name}}}}}
    spec:
      {node}
      terminationGracePeriodSeconds: 5
      containers:
      - name: nginx
        image: nginx
        command:
        - sh
        - -c
        - |
          cat > /tmp/nginx.conf <<'CONF'
          daemon off;
          pid /tmp/nginx.pid;
          worker_processes 1;
          events {{ worker_connections 256; }}
          http {{
            access_log off;
            client_body_temp_path /tmp/a; proxy_temp_path /tmp/b; fastcgi_temp_path /tmp/c; uwsgi_temp_path /tmp/d; scgi_temp_path /tmp/e;
            server {{ listen 8080; listen [::]:8080; default_type text/plain; location / {{ return 200 "$hostname\n"; }} }}
          }}
          CONF
          exec nginx -c /tmp/nginx.conf
        ports: [{{name: http, containerPort: 8080}}]
        readinessProbe: {{httpGet: {{path: /, port: http}}, periodSeconds: 1}}
        lifecycle: {{stopSignal: SIGQUIT}}
---
apiVersion: v1
kind: Service
metadata: {{name: {name}, namespace: {namespace}}}
spec:
  selector: {{app: {name}}}
  ports: [{{name: http, port: 80, targetPort: http}}]
"#
    )
}

/// Pods that only wait, for commands to be run in them.
pub(crate) fn idle(namespace: &str, name: &str, replicas: usize, node: Option<&str>) -> String {
    let node = node.map(|node| format!("nodeSelector: {{kubernetes.io/hostname: {node}}}")).unwrap_or_default();
    format!(
        r#"
apiVersion: apps/v1
kind: Deployment
metadata: {{name: {name}, namespace: {namespace}}}
spec:
  replicas: {replicas}
  selector: {{matchLabels: {{app: {name}}}}}
  template:
    metadata: {{labels: {{app: {name}}}}}
    spec:
      {node}
      terminationGracePeriodSeconds: 0
      containers: [{{name: idle, image: busybox, command: [sleep, infinity]}}]
"#
    )
}

/// Polls until it holds.
pub(crate) async fn until(what: &str, within: Duration, mut holds: impl AsyncFnMut() -> bool) {
    let begin = Instant::now();
    while !holds().await {
        assert!(begin.elapsed() < within, "{what}: not within {within:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Runs curl in a pod; its output, or its complaint.
pub(crate) async fn curl(lab: &Lab, namespace: &str, from: &str, args: &[&str]) -> Result<String, String> {
    let mut command = vec!["curl", "-sS", "-m", "30"];
    command.extend(args);
    let output = lab.exec(namespace, from, &command).await.unwrap();
    if output.ok() {
        Ok(output.stdout.trim().to_owned())
    } else {
        Err(format!("{}: {}", output.code, output.stderr.trim()))
    }
}
