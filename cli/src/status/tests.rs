use std::io::{Read as _, Write as _};
use std::net::TcpListener;

use time::macros::datetime;

use super::*;

const PAGE: &str = r#"{
  "generation": 7,
  "resources": {"type.googleapis.com/istio.workload.Address": 3},
  "proxies": [
    {"id": "ztunnel~198.18.0.2~ztunnel-b.istio-system~x", "name": "ztunnel-b.istio-system", "namespace": "istio-system",
     "kind": "ztunnel", "version": "1.0", "cluster": "Kubernetes", "node": "node2", "address": "198.18.0.2:1",
     "connectedSince": "2026-11-21T00:00:00Z", "certificateExpiry": "2026-11-21T13:00:00Z",
     "types": {
       "type.googleapis.com/istio.workload.Address":
         {"state": "SYNCED", "sent": 7, "acked": 7, "responses": 4, "lagSeconds": 0.0, "lastNack": null},
       "type.googleapis.com/istio.security.Authorization":
         {"state": "REJECTED", "sent": 6, "acked": 5, "responses": 2, "lagSeconds": 12.5,
          "lastNack": {"at": "2026-11-21T00:59:00Z", "reason": "shop/deny: unknown action"}}}},
    {"id": "y", "name": "ztunnel-a.istio-system", "namespace": "istio-system", "kind": "ztunnel", "version": null,
     "cluster": null, "node": null, "address": "198.18.0.1:1", "connectedSince": "2026-11-21T00:58:30Z",
     "certificateExpiry": "2026-11-20T23:00:00Z", "types": {}}]
}"#;

fn proxies() -> Vec<(String, Proxy)> {
    let page: Page = serde_json::from_str(PAGE).unwrap();
    page.proxies.into_iter().map(|proxy| ("istiod-1".to_owned(), proxy)).collect()
}

#[test]
fn each_proxy_and_type_has_a_row() {
    let text = table::table(&proxies(), datetime!(2026-11-21 01:00 UTC));
    let rows: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(rows[0][0], "PROXY", "{text}");
    assert_eq!(
        rows[1],
        ["ztunnel-a.istio-system", "-", "-", "istiod-1", "90s", "expired", "-", "-", "-", "-"],
        "{text}"
    );
    assert_eq!(
        rows[2],
        [
            "ztunnel-b.istio-system",
            "node2",
            "1.0",
            "istiod-1",
            "60m",
            "12h",
            "Authorization",
            "REJECTED",
            "6/5",
            "12.500s"
        ],
        "{text}"
    );
    assert_eq!(rows[3], ["Address", "SYNCED", "7/7", "0.000s"], "{text}");
    assert!(
        text.ends_with(
            "ztunnel-b.istio-system refuses Authorization (2026-11-21T00:59:00Z): shop/deny: unknown action\n"
        ),
        "{text}"
    );
    assert_eq!(table::table(&[], datetime!(2026-11-21 01:00 UTC)), "no proxy is connected\n");
}

#[test]
fn a_refusal_is_an_exit_code() {
    let mut all = proxies();
    assert_eq!(exit_code(&all), 2);
    all.iter_mut()
        .flat_map(|(_, proxy)| proxy.types.values_mut())
        .for_each(|progress| progress.state = "SYNCED".into());
    assert_eq!(exit_code(&all), 0);
}

#[test]
fn replicas_are_asked_over_http() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let server = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut request = Vec::new();
        while !request.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            stream.read_exact(&mut byte).unwrap();
            request.push(byte[0]);
        }
        stream.write_all(b"HTTP/1.0 200 OK\r\ncontent-type: application/json\r\n\r\n{}").unwrap();
        String::from_utf8(request).unwrap()
    });
    assert_eq!(fetch::get(&address, Some("abc")).unwrap(), "{}");
    let request = server.join().unwrap();
    assert!(
        request.starts_with("GET /debug/proxies HTTP/1.0\r\n") && request.contains("Authorization: Bearer abc\r\n")
    );
    let refused = fetch::body("HTTP/1.0 401 Unauthorized\r\n\r\nno token\n").unwrap_err().to_string();
    assert_eq!(refused, "the answer is 401: no token");
    let nobody = fetch::get("127.0.0.1:1", None).unwrap_err().to_string();
    assert!(nobody.contains("asking istiod-lite at 127.0.0.1:1"), "{nobody}");
}

/// kubectl says each connection on its standard output.
#[test]
fn a_port_forward_goes_on_when_it_speaks() {
    let dir = tempfile::tempdir().unwrap();
    let script = "echo 'Forwarding from 127.0.0.1:1 -> 8080'; for i in $(seq 1000); do [ -e go ] && break; sleep 0.02; done; \
                  echo 'Handling connection for 1'; : >alive; exec sleep 60";
    let mut kubectl = std::process::Command::new("sh");
    kubectl.args(["-c", script, "kubectl"]).current_dir(dir.path());
    let _forward = fetch::Forward::start(kubectl, "pod/istiod").unwrap();
    std::fs::write(dir.path().join("go"), "").unwrap();
    let begin = std::time::Instant::now();
    while !dir.path().join("alive").exists() {
        assert!(begin.elapsed() < std::time::Duration::from_secs(10), "it died of its word");
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
}
