//! `POST /cmdadd` on a unix socket: the CNI plugin tells of a pod whose network it just created, and holds the
//! pod back until it is in the mesh.

use crate::agent::reconciler::CmdAdd;
use crate::agent::worker::{Answer, Created};
use aquifer_runtime::{Cancel, Tracker, accept_loop};
use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use serde_json::Value;
use std::convert::Infallible;
use std::io;
use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

/// A call is some hundred bytes.
const MAX_BODY: usize = 64 * 1024;

/// The plugin's words.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
struct Call {
    #[serde(rename = "Netns")]
    netns: PathBuf,
    #[serde(rename = "PodName")]
    name: String,
    #[serde(rename = "PodNamespace")]
    namespace: String,
    #[serde(rename = "IPs", default)]
    ips: Option<Vec<Value>>,
}

/// Serves the socket; calls go to the reconciler.
#[derive(Debug, Clone)]
pub struct CmdAddServer {
    /// Where calls go.
    pub calls: mpsc::UnboundedSender<CmdAdd>,
    /// How long a pod may take to get in before the plugin hears why it has not.
    pub patience: Duration,
}

impl CmdAddServer {
    /// Listens at `path` for this user's programs only; a stale socket there is replaced.
    pub fn bind(path: &Path) -> io::Result<UnixListener> {
        let explain = |error: io::Error| io::Error::new(error.kind(), format!("listen at {}: {error}", path.display()));
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder).map_err(explain)?;
        }
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(explain(error)),
            _ => {}
        }
        let listener = UnixListener::bind(path).map_err(explain)?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).map_err(explain)?;
        Ok(listener)
    }

    /// Serves until drained.
    pub async fn serve(self, listener: UnixListener, tracker: Tracker, cancel: Cancel) -> io::Result<()> {
        let serve = |stream: UnixStream| {
            let server = self.clone();
            tracker.spawn("cmdadd", async move {
                let service = service_fn(move |request| server.clone().respond(request));
                let connection = hyper::server::conn::http1::Builder::new();
                if let Err(error) = connection.serve_connection(TokioIo::new(stream), service).await {
                    tracing::debug!(%error, "plugin's connection");
                }
            });
        };
        accept_loop("cmdadd", async || listener.accept().await.map(|(stream, _)| stream), serve, &cancel).await
    }

    async fn respond(self, request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
        let (status, text) = match (request.method(), request.uri().path()) {
            (&Method::POST, "/cmdadd") => match Limited::new(request.into_body(), MAX_BODY).collect().await {
                Ok(body) => self.cmdadd(&body.to_bytes()).await,
                Err(error) => (StatusCode::BAD_REQUEST, format!("body: {error}")),
            },
            (_, "/cmdadd") => (StatusCode::METHOD_NOT_ALLOWED, "use POST".into()),
            (_, path) => (StatusCode::NOT_FOUND, format!("no such path: {path}")),
        };
        let mut response = Response::new(Full::new(Bytes::from(text)));
        *response.status_mut() = status;
        Ok(response)
    }

    /// Status and words for one call.
    pub async fn cmdadd(&self, body: &[u8]) -> (StatusCode, String) {
        let call: Call = match serde_json::from_slice(body) {
            Ok(call) => call,
            Err(error) => return (StatusCode::BAD_REQUEST, format!("cmdadd: {error}")),
        };
        let pod = format!("{}/{}", call.namespace, call.name);
        let ips = call.ips.iter().flatten().filter_map(address).collect();
        let (answer, answered) = oneshot::channel();
        let deadline = Instant::now() + self.patience;
        let created = Created { netns: call.netns, ips, answer, deadline };
        let sent = self.calls.send(CmdAdd { namespace: call.namespace, name: call.name, created });
        if sent.is_err() {
            return (StatusCode::INTERNAL_SERVER_ERROR, format!("{pod}: the agent is shutting down"));
        }
        // The worker answers by the deadline; a pod that no watch ever brings has no worker.
        let failed = match tokio::time::timeout_at(deadline + Duration::from_secs(1), answered).await {
            Ok(Ok(Ok(Answer::Enrolled))) => return (StatusCode::OK, format!("{pod} is in the mesh\n")),
            Ok(Ok(Ok(Answer::NotEnrolled(reason)))) => return (StatusCode::OK, format!("{pod} stays out: {reason}\n")),
            Ok(Ok(Err(error))) => error,
            Ok(Err(_)) => "the agent is shutting down".into(),
            Err(_) => "no such pod on this node (its object has not been seen)".into(),
        };
        (StatusCode::INTERNAL_SERVER_ERROR, format!("{pod}: {failed}\n"))
    }
}

/// An address as a plugin may write it: `"10.0.0.7"`, `"10.0.0.7/24"`, `{"Address": "10.0.0.7/24"}` or
/// `{"Address": {"IP": "10.0.0.7", "Mask": "…"}}` (Go's encodings).
fn address(value: &Value) -> Option<IpAddr> {
    match value {
        Value::String(text) => text.split('/').next()?.parse().ok(),
        Value::Object(fields) => {
            let inner = ["Address", "address", "IP", "ip"].iter().find_map(|name| fields.get(*name))?;
            address(inner)
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn addresses_in_every_spelling() {
        let check = |value: Value, expected: Option<&str>| {
            assert_eq!(address(&value), expected.map(|ip| ip.parse().unwrap()), "{value}");
        };
        check(json!("198.18.16.2"), Some("198.18.16.2"));
        check(json!("198.18.16.2/24"), Some("198.18.16.2"));
        check(json!("fd00:18::2/64"), Some("fd00:18::2"));
        check(
            json!({"Address": {"IP": "198.18.16.2", "Mask": "////AA=="}, "Gateway": "198.18.16.1"}),
            Some("198.18.16.2"),
        );
        check(json!({"address": "fd00:18::2/64"}), Some("fd00:18::2"));
        check(json!("nonsense"), None);
        check(json!(7), None);
    }
}
