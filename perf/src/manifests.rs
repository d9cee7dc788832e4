//! The pods that are measured, as a person would write them.

/// The port of the web server.
pub(crate) const HTTP: u16 = 8080;
/// The port of iperf3.
pub(crate) const BULK: u16 = 5201;

/// The port of `aquifer-load serve`, which is told what to do by the first bytes.
pub(crate) const LOAD: u16 = 9000;

/// Bytes of the page that is asked for.
const PAGE: usize = 1024;

/// A client, its neighbour and a server on node1, a server on node2.
pub(crate) fn bench(ambient: bool, threads: u32) -> String {
    let servers = servers(threads);
    [
        namespace(ambient),
        deployment("client", "node1", 1, &idle()),
        deployment("neighbour", "node1", 1, &idle()),
        deployment("near", "node1", 1, &servers),
        deployment("far", "node2", 1, &servers),
    ]
    .join("---\n")
}

/// So many pods on node1, and a server on node2 that they can reach.
pub(crate) fn filler(ambient: bool, count: u32) -> String {
    let far = deployment("far", "node2", 1, &servers(1));
    [namespace(ambient), deployment("filler", "node1", count, &idle()), far].join("---\n")
}

fn namespace(ambient: bool) -> String {
    let label = if ambient { "  labels:\n    istio.io/dataplane-mode: ambient\n" } else { "" };
    format!("apiVersion: v1\nkind: Namespace\nmetadata:\n  name: bench\n{label}")
}

fn idle() -> String {
    container("idle", "exec sleep infinity", None)
}

fn servers(threads: u32) -> String {
    let nginx = format!("cat > /tmp/nginx.conf <<'CONF'\n{}CONF\nexec nginx -c /tmp/nginx.conf\n", nginx(threads));
    let iperf3 = format!("exec iperf3 -s -p {BULK}");
    container("nginx", &nginx, Some(HTTP)) + &container("iperf3", &iperf3, None)
}

/// Each worker with a listener of its own, connections kept for ever, no log, no file touched.
fn nginx(threads: u32) -> String {
    let page = "x".repeat(PAGE);
    format!(
        "daemon off;
pid /tmp/nginx.pid;
error_log stderr crit;
worker_processes {threads};
worker_rlimit_nofile 20000;
events {{ worker_connections 16384; }}
http {{
  access_log off;
  keepalive_requests 1000000000;
  keepalive_timeout 3600;
  client_body_temp_path /tmp/body;
  proxy_temp_path /tmp/proxy;
  fastcgi_temp_path /tmp/fastcgi;
  uwsgi_temp_path /tmp/uwsgi;
  scgi_temp_path /tmp/scgi;
  server {{
    listen {HTTP} reuseport backlog=4096;
    default_type text/plain;
    location / {{ return 200 \"{page}\"; }}
  }}
}}
"
    )
}

fn deployment(name: &str, node: &str, replicas: u32, containers: &str) -> String {
    format!(
        "apiVersion: v1
kind: ServiceAccount
metadata:
  name: {name}
  namespace: bench
---
apiVersion: apps/v1
kind: Deployment
metadata:
  name: {name}
  namespace: bench
spec:
  replicas: {replicas}
  selector:
    matchLabels:
      app: {name}
  template:
    metadata:
      labels:
        app: {name}
    spec:
      serviceAccountName: {name}
      terminationGracePeriodSeconds: 1
      nodeSelector:
        kubernetes.io/hostname: {node}
      containers:
{containers}"
    )
}

fn container(name: &str, script: &str, port: Option<u16>) -> String {
    let lines: String = script.lines().map(|line| format!("          {line}\n")).collect();
    let probe = port.map_or_else(String::new, |port| {
        format!(
            "        readinessProbe:
          tcpSocket:
            port: {port}
          periodSeconds: 5
"
        )
    });
    format!(
        "      - name: {name}
        image: {name}
        command:
        - sh
        - -c
        - |
{lines}{probe}"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_has_a_kibibyte_and_only_a_mesh_is_labelled() {
        let plain = bench(false, 1);
        assert!(plain.contains(&format!("return 200 \"{}\"", "x".repeat(1024))));
        assert!(!plain.contains("dataplane-mode"));
        assert!(bench(true, 1).contains("istio.io/dataplane-mode: ambient"));
        assert_eq!(plain.matches("kind: Deployment").count(), 4);
        assert!(filler(false, 20).contains("replicas: 20\n"));
    }
}
