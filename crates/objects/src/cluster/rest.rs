//! Requests and answers of the API server, errors as sentences.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, StatusCode};
use http_body_util::BodyExt;
use kube::client::Body;
use kube::core::Status;
use parking_lot::RwLock;
use serde::Deserialize;

use super::connect::chain;
use crate::kinds::Kind;

/// An answer that is not a watch is complete by then.
const PATIENCE: Duration = Duration::from_secs(30);

/// Sends requests.
#[derive(Clone)]
pub(crate) struct Rest {
    client: kube::Client,
    /// Versions in which kinds were found served, where that was looked up.
    versions: Arc<RwLock<HashMap<Kind, String>>>,
}

/// What came instead of an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RestError {
    /// The HTTP status; 0 if nothing was answered.
    pub(crate) code: u16,
    /// What the server or the connection says.
    pub(crate) message: String,
    /// When the server wants to be asked again, at the earliest.
    pub(crate) retry_after: Option<Duration>,
}

impl fmt::Display for RestError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.code {
            0 => write!(f, "the API server cannot be reached: {}", self.message),
            401 => write!(f, "the API server does not know us ({}): check the token or the kubeconfig", self.message),
            _ => f.write_str(&self.message),
        }
    }
}

impl RestError {
    pub(crate) fn transport(message: impl Into<String>) -> Self {
        Self { code: 0, message: message.into(), retry_after: None }
    }

    /// From the body of an answer that is no success, or of a watch's ERROR.
    pub(crate) fn of_status(code: u16, body: &[u8]) -> Self {
        match serde_json::from_slice::<Status>(body) {
            Ok(status) if !status.message.is_empty() => {
                let seconds = status.details.as_ref().map_or(0, |details| details.retry_after_seconds);
                Self {
                    code: if status.code == 0 { code } else { status.code },
                    message: status.message,
                    retry_after: (seconds > 0).then(|| Duration::from_secs(u64::from(seconds))),
                }
            }
            _ => {
                let text = String::from_utf8_lossy(body);
                let first = text.lines().next().unwrap_or_default().trim();
                let known = StatusCode::from_u16(code).ok().and_then(|code| code.canonical_reason()).unwrap_or("error");
                let message = if first.is_empty() { known } else { first };
                Self { code, message: format!("HTTP {code}: {message}"), retry_after: None }
            }
        }
    }
}

impl Rest {
    pub(crate) fn new(client: kube::Client) -> Self {
        Self { client, versions: Arc::default() }
    }

    /// The API version to speak of the kind in: the one that it was found served in, or else ours.
    pub(crate) fn version(&self, kind: Kind) -> String {
        self.versions.read().get(&kind).cloned().unwrap_or_else(|| kind.api_version().to_owned())
    }

    /// The API version that the kind is served in, of those that we read; `None` if in none.
    pub(crate) async fn find_version(&self, kind: Kind) -> Result<Option<String>, RestError> {
        if !kind.optional() {
            return Ok(Some(kind.api_version().to_owned()));
        }
        for version in kind.versions() {
            let version = format!("{}/{version}", kind.group());
            let found = match self.call(get(&format!("/apis/{version}"))).await {
                Ok(found) => found,
                Err(error) if error.code == 404 => continue,
                Err(error) => return Err(error),
            };
            let found: Resources =
                serde_json::from_slice(&found).map_err(|error| RestError::transport(error.to_string()))?;
            if found.resources.iter().any(|resource| resource.name == kind.plural()) {
                self.versions.write().insert(kind, version.clone());
                return Ok(Some(version));
            }
        }
        Ok(None)
    }

    pub(crate) fn client(&self) -> kube::Client {
        self.client.clone()
    }

    /// The whole body of a success.
    pub(crate) async fn call(&self, request: Request<Vec<u8>>) -> Result<Bytes, RestError> {
        let answer = async {
            let body = self.open(request).await?;
            collect(body).await
        };
        match tokio::time::timeout(PATIENCE, answer).await {
            Ok(answer) => answer,
            Err(_) => Err(RestError::transport(format!("no answer within {PATIENCE:?}"))),
        }
    }

    /// The body of a success as it comes.
    pub(crate) async fn stream(&self, request: Request<Vec<u8>>) -> Result<Lines, RestError> {
        match tokio::time::timeout(PATIENCE, self.open(request)).await {
            Ok(body) => Ok(Lines { body: body?, buffer: Vec::new(), searched: 0 }),
            Err(_) => Err(RestError::transport(format!("no answer within {PATIENCE:?}"))),
        }
    }

    async fn open(&self, request: Request<Vec<u8>>) -> Result<Body, RestError> {
        let sent = self.client.send(request.map(Body::from)).await;
        let response = sent.map_err(|error| RestError::transport(chain(&error)))?;
        let status = response.status();
        if status.is_success() {
            return Ok(response.into_body());
        }
        let body = collect(response.into_body()).await.unwrap_or_default();
        Err(RestError::of_status(status.as_u16(), &body))
    }
}

/// An API version's resources, by their plural names.
#[derive(Debug, Deserialize)]
struct Resources {
    resources: Vec<Resource>,
}

#[derive(Debug, Deserialize)]
struct Resource {
    name: String,
}

/// A request for what lies at a path.
pub(crate) fn get(path: &str) -> Request<Vec<u8>> {
    let request = Request::get(path).header(http::header::ACCEPT, "application/json").body(Vec::new());
    request.expect("paths are made of names that the API accepts")
}

impl fmt::Debug for Rest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Rest").finish_non_exhaustive()
    }
}

async fn collect(body: Body) -> Result<Bytes, RestError> {
    body.collect().await.map(|body| body.to_bytes()).map_err(|error| RestError::transport(chain(&error)))
}

/// The lines of an answer that goes on.
pub(crate) struct Lines {
    body: Body,
    buffer: Vec<u8>,
    /// So much of the buffer holds no line's end.
    searched: usize,
}

impl Lines {
    /// The next line; `None` at the end. A last line without an end is no line: it was cut.
    pub(crate) async fn next(&mut self) -> Option<Result<Vec<u8>, RestError>> {
        loop {
            if let Some(at) = self.buffer[self.searched..].iter().position(|byte| *byte == b'\n') {
                let rest = self.buffer.split_off(self.searched + at + 1);
                let line = std::mem::replace(&mut self.buffer, rest);
                self.searched = 0;
                return Some(Ok(line));
            }
            self.searched = self.buffer.len();
            match self.body.frame().await? {
                Ok(frame) => {
                    if let Ok(data) = frame.into_data() {
                        self.buffer.extend_from_slice(&data);
                    }
                }
                Err(error) => return Some(Err(RestError::transport(chain(&error)))),
            }
        }
    }
}

/// The path of a kind's objects in an API version, of one namespace or of all.
pub(crate) fn collection(kind: Kind, api_version: &str, namespace: Option<&str>) -> String {
    let root = if api_version.contains('/') { "/apis" } else { "/api" };
    match namespace.filter(|_| kind.namespaced()) {
        Some(namespace) => format!("{root}/{api_version}/namespaces/{namespace}/{}", kind.plural()),
        None => format!("{root}/{api_version}/{}", kind.plural()),
    }
}
