//! What the API server holds: made-up objects, those whom somebody wrote, and the changes that watches wait for.

use std::collections::BTreeMap;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};
use serde_json::{Value, json};

use super::objects::{self, Kind, Size};

/// The objects and their changes.
#[derive(Debug)]
pub(super) struct Api {
    size: Size,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// Which pods are not as they were made, by their number.
    versions: BTreeMap<u32, u64>,
    /// Pods changed, in order. The resource version of the n-th is n + 2.
    log: Vec<u32>,
    /// What was written, by its path.
    written: BTreeMap<String, Value>,
}

/// How long a watch waits before it looks whether its client is still there.
const BOOKMARK: Duration = Duration::from_secs(20);

/// Resource version of what was made up.
const FIRST: u64 = 1;

impl Api {
    pub(super) fn new(size: Size) -> Self {
        Self { size, state: Mutex::default(), changed: Condvar::new() }
    }

    /// Changes some pod; gives what proxies will see of it.
    pub(super) fn change_pod(&self, version: u64) -> String {
        // Spread over all pods, by a step that shares no factor with their number.
        let number = (version.wrapping_mul(7919) % u64::from(self.size.pods.max(1))) as u32;
        let mut state = self.state.lock();
        state.versions.insert(number, version);
        state.log.push(number);
        self.changed.notify_all();
        objects::marker(version)
    }

    /// A page of a list.
    pub(super) fn list(&self, path: &str, from: u32, limit: u32) -> String {
        let state = self.state.lock();
        let version = FIRST + state.log.len() as u64;
        let Some(kind) = Kind::at(path) else {
            // Of all other kinds there is nothing but what was written.
            let items: Vec<&Value> =
                state.written.iter().filter(|(at, _)| at.starts_with(path)).map(|(_, v)| v).collect();
            return json!({ "kind": "List", "apiVersion": "v1", "metadata": { "resourceVersion": version.to_string() }, "items": items })
                .to_string();
        };
        let end = self.size.count(kind).min(from.saturating_add(limit));
        let items: Vec<String> = (from..end)
            .map(|n| {
                self.size.object(kind, n, if kind == Kind::Pod { *state.versions.get(&n).unwrap_or(&0) } else { 0 })
            })
            .collect();
        let next = if end < self.size.count(kind) { format!(",\"continue\":\"{end}\"") } else { String::new() };
        format!(
            "{{\"kind\":\"List\",\"apiVersion\":\"v1\",\"metadata\":{{\"resourceVersion\":\"{version}\"{next}}},\"items\":[{}]}}",
            items.join(",")
        )
    }

    /// The lines of a watch after `seen` changes, and how many changes are seen then. Waits for the next.
    pub(super) fn watch(&self, path: &str, seen: u64) -> (String, u64) {
        let pods = Kind::at(path) == Some(Kind::Pod);
        let mut state = self.state.lock();
        self.changed.wait_while_for(&mut state, |state| !pods || state.log.len() as u64 <= seen, BOOKMARK);
        let now = state.log.len() as u64;
        if !pods || now <= seen {
            let version = FIRST + now;
            let kind = if pods { "Pod" } else { "Bookmark" };
            let line = json!({ "type": "BOOKMARK", "object": { "kind": kind, "apiVersion": "v1", "metadata": { "resourceVersion": version.to_string() } } });
            return (format!("{line}\n"), now);
        }
        let mut lines = String::new();
        for number in &state.log[seen as usize..] {
            let version = *state.versions.get(number).unwrap_or(&0);
            lines.push_str("{\"type\":\"MODIFIED\",\"object\":");
            lines.push_str(&self.size.object(Kind::Pod, *number, version));
            lines.push_str("}\n");
        }
        (lines, now)
    }

    /// How many changes came before a resource version.
    pub(super) fn seen_at(version: u64) -> u64 {
        version.saturating_sub(FIRST)
    }

    /// Whatever is neither listed nor watched: status and body.
    pub(super) fn other(&self, method: &str, path: &str, body: &str) -> (u16, String) {
        let missing = || {
            (404, json!({ "kind": "Status", "status": "Failure", "reason": "NotFound", "code": 404, "message": "not found" }).to_string())
        };
        if path.ends_with("/tokenreviews") {
            return (201, review(body));
        }
        if path.ends_with("/subjectaccessreviews") || path.ends_with("/selfsubjectaccessreviews") {
            return (201, json!({ "kind": "SubjectAccessReview", "apiVersion": "authorization.k8s.io/v1", "status": { "allowed": true } }).to_string());
        }
        let mut state = self.state.lock();
        match method {
            "GET" => state.written.get(path).map_or_else(missing, |found| (200, found.to_string())),
            "DELETE" => state.written.remove(path).map_or_else(missing, |gone| (200, gone.to_string())),
            _ => {
                let Ok(mut value) = serde_json::from_str::<Value>(body) else {
                    return (400, json!({ "kind": "Status", "code": 400, "message": "no JSON" }).to_string());
                };
                let name = value["metadata"]["name"].as_str().unwrap_or_default().to_owned();
                let at = if method == "POST" { format!("{path}/{name}") } else { path.to_owned() };
                let before =
                    state.written.get(&at).and_then(|v| v["metadata"]["resourceVersion"].as_str()?.parse::<u64>().ok());
                value["metadata"]["resourceVersion"] = (before.unwrap_or(FIRST) + 1).to_string().into();
                value["metadata"]["uid"] = at.clone().into();
                state.written.insert(at, value.clone());
                (if method == "POST" { 201 } else { 200 }, value.to_string())
            }
        }
    }
}

/// A token of a node's proxy: what stands in it is true of any, and its signature is the node's number.
pub(super) fn token(node: u32) -> String {
    // Of {"alg":"none"} and {"aud":["istio-ca"],"iat":1,"exp":32503680000}.
    const HEADER: &str = "eyJhbGciOiJub25lIn0";
    const CLAIMS: &str = "eyJhdWQiOlsiaXN0aW8tY2EiXSwiaWF0IjoxLCJleHAiOjMyNTAzNjgwMDAwfQ";
    format!("{HEADER}.{CLAIMS}.proxy-{node}")
}

fn review(body: &str) -> String {
    let asked: Value = serde_json::from_str(body).unwrap_or_default();
    let token = asked["spec"]["token"].as_str().unwrap_or_default();
    let Some(node) = token.rsplit_once(".proxy-").map(|(_, node)| node).and_then(|n| n.parse::<u32>().ok()) else {
        return json!({ "kind": "TokenReview", "apiVersion": "authentication.k8s.io/v1", "status": { "authenticated": false } }).to_string();
    };
    json!({
        "kind": "TokenReview", "apiVersion": "authentication.k8s.io/v1",
        "status": {
            "authenticated": true,
            "audiences": asked["spec"]["audiences"],
            "user": {
                "username": "system:serviceaccount:istio-system:ztunnel", "uid": "sa-ztunnel",
                "groups": ["system:serviceaccounts", "system:serviceaccounts:istio-system", "system:authenticated"],
                "extra": {
                    "authentication.kubernetes.io/pod-name": [objects::proxy_name(node)],
                    "authentication.kubernetes.io/pod-uid": [objects::proxy_uid(node)],
                    "authentication.kubernetes.io/node-name": [objects::node_name(node)],
                },
            },
        },
    })
    .to_string()
}
