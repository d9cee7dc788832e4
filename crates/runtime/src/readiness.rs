//! Whether the process can do its work yet: `GET /healthz/ready` on port 15021.

use std::collections::BTreeMap;
use std::sync::Arc;

use http::{Method, StatusCode};
use parking_lot::Mutex;

use crate::http::{Handler, handler, text};

/// What the process still waits for. Ready when that is nothing.
#[derive(Clone, Debug, Default)]
pub struct Readiness {
    pending: Arc<Mutex<BTreeMap<u64, String>>>,
    next: Arc<std::sync::atomic::AtomicU64>,
}

/// Keeps the process unready until it is dropped.
#[derive(Debug)]
pub struct BlockReady {
    owner: Readiness,
    key: u64,
}

impl Readiness {
    /// Ready from the start.
    pub fn new() -> Self {
        Self::default()
    }

    /// Blocks readiness under `name` until the guard is dropped.
    pub fn register(&self, name: impl Into<String>) -> BlockReady {
        let key = self.next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        self.pending.lock().insert(key, name.into());
        BlockReady { owner: self.clone(), key }
    }

    /// What is waited for, in the order of registration.
    pub fn pending(&self) -> Vec<String> {
        self.pending.lock().values().cloned().collect()
    }

    /// Whether nothing is waited for.
    pub fn is_ready(&self) -> bool {
        self.pending.lock().is_empty()
    }

    /// Answers `GET /healthz/ready`, and `GET /ready` and `GET /readyz` as the control plane and the node agent name it;
    /// `GET /healthz` as long as the process answers at all.
    pub fn handler(&self) -> Handler {
        let readiness = self.clone();
        handler(move |request| {
            let readiness = readiness.clone();
            async move {
                match (request.method, request.path.as_str()) {
                    (Method::GET, "/healthz/ready" | "/ready" | "/readyz") => readiness.answer(),
                    (Method::GET, "/healthz") => text(StatusCode::OK, "alive\n"),
                    (_, "/healthz/ready" | "/ready" | "/readyz" | "/healthz") => {
                        text(StatusCode::METHOD_NOT_ALLOWED, "Invalid HTTP method\n")
                    }
                    _ => text(StatusCode::NOT_FOUND, "Not found\n"),
                }
            }
        })
    }

    fn answer(&self) -> crate::http::Response {
        let pending = self.pending();
        if pending.is_empty() {
            return text(StatusCode::OK, "ready\n");
        }
        let body = format!("not ready, pending: {}\n", pending.join(", "));
        text(StatusCode::INTERNAL_SERVER_ERROR, body)
    }
}

impl Drop for BlockReady {
    fn drop(&mut self) {
        let left = {
            let mut pending = self.owner.pending.lock();
            let name = pending.remove(&self.key);
            tracing::debug!(task = name, "ready");
            pending.len()
        };
        if left == 0 {
            tracing::info!("all tasks are ready");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::Server;
    use crate::http::tests::{ask, loopback};
    use crate::{Cancel, Tracker};

    #[tokio::test]
    async fn names_what_is_pending() {
        let readiness = Readiness::new();
        let (tracker, cancel) = (Tracker::new(), Cancel::new());
        let server = Server::bind("readiness", loopback()).await.unwrap();
        let address = server.local_addr().unwrap();
        server.serve(readiness.handler(), &tracker, cancel);
        let state = readiness.register("state manager");
        let proxy = readiness.register("proxy");

        let (head, body) = ask(address, "GET /healthz/ready", &[]).await;
        assert!(head.starts_with("HTTP/1.1 500 "), "{head}");
        assert_eq!(body, b"not ready, pending: state manager, proxy\n");

        let (head, _) = ask(address, "GET /readyz", &[]).await;
        assert!(head.starts_with("HTTP/1.1 500 "), "{head}");
        let (head, _) = ask(address, "GET /healthz", &[]).await;
        assert!(head.starts_with("HTTP/1.1 200 "), "{head}");

        drop(state);
        let (_, body) = ask(address, "GET /healthz/ready", &[]).await;
        assert_eq!(body, b"not ready, pending: proxy\n");

        drop(proxy);
        let (head, body) = ask(address, "GET /healthz/ready", &[]).await;
        assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
        assert!(head.contains("content-type: text/plain\r\n"), "{head}");
        assert_eq!(body, b"ready\n");
        let (head, _) = ask(address, "GET /readyz", &[]).await;
        assert!(head.starts_with("HTTP/1.1 200 "), "{head}");

        let (head, _) = ask(address, "POST /healthz/ready", &[]).await;
        assert!(head.starts_with("HTTP/1.1 405 "), "{head}");
        let (head, _) = ask(address, "GET /", &[]).await;
        assert!(head.starts_with("HTTP/1.1 404 "), "{head}");
    }

    #[test]
    fn a_guard_of_a_cancelled_task_does_not_leak() {
        let readiness = Readiness::new();
        let guard = readiness.register("dns proxy");
        let task = async move {
            let _guard = guard;
            std::future::pending::<()>().await;
        };
        assert!(!readiness.is_ready());
        drop(task);
        assert!(readiness.is_ready());
    }
}
