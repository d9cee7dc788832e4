//! A Lease of `coordination.k8s.io/v1`, as far as leadership reads it.

use std::time::Duration;

use http::{Request, header};
use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::{DURATION, Leases};
use crate::cluster::{Asking, Rest, RestError};

/// What stands in a lease. The times are for people; candidates go by their own clocks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Record {
    /// Who leads; empty for nobody.
    pub(super) holder: String,
    pub(super) duration: Duration,
    acquired: String,
    renewed: String,
    pub(super) transitions: u64,
}

impl Record {
    pub(super) fn taken(identity: &str, before: Option<&Self>) -> Self {
        let now = now();
        Self {
            holder: identity.to_owned(),
            duration: DURATION,
            acquired: now.clone(),
            renewed: now,
            transitions: before.map_or(0, |before| before.transitions + 1),
        }
    }

    pub(super) fn renewed(before: &Self) -> Self {
        Self { duration: DURATION, renewed: now(), ..before.clone() }
    }

    pub(super) fn released(before: &Self) -> Self {
        Self { holder: String::new(), duration: Duration::from_secs(1), renewed: now(), ..before.clone() }
    }
}

fn now() -> String {
    format!("{:.6}", Timestamp::now())
}

/// A record and which state of the object it is.
#[derive(Clone, Debug)]
pub(super) struct Held {
    pub(super) record: Record,
    pub(super) version: String,
}

/// The object on the API server.
#[derive(Debug)]
pub(super) struct Stored {
    rest: Rest,
    /// Whoever holds or awaits a lease reads it all the time, from the API server's store.
    asking: Asking,
    collection: String,
    name: String,
    namespace: String,
}

impl Stored {
    pub(super) fn new(rest: Rest, asking: Asking, namespace: &str, name: &str) -> Self {
        let collection = format!("/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases");
        Self { rest, asking, collection, name: name.to_owned(), namespace: namespace.to_owned() }
    }

    fn sentence(&self, verb: &str, error: &RestError) -> String {
        match error.code {
            403 => format!(
                "the RBAC rule apiGroups: [\"coordination.k8s.io\"], resources: [\"leases\"], verbs: [\"{verb}\"] is missing \
                 in namespace {} ({})",
                self.namespace, error.message
            ),
            _ => format!("lease {}/{}: {error}", self.namespace, self.name),
        }
    }
}

impl Leases for Stored {
    async fn read(&self) -> Result<Option<Held>, String> {
        let request = crate::cluster::get(&format!("{}/{}", self.collection, self.name));
        let asked = Instant::now();
        let body = match self.rest.call(request).await {
            Ok(body) => Some(body),
            Err(error) if error.code == 404 => None,
            Err(error) => {
                if matches!(error.code, 401 | 403) {
                    self.asking.refused();
                }
                return Err(self.sentence("get", &error));
            }
        };
        self.asking.answered(asked);
        let Some(body) = body else { return Ok(None) };
        let value: Value = serde_json::from_slice(&body).map_err(|error| error.to_string())?;
        let text = |pointer: &str| value.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned();
        let number = |pointer: &str| value.pointer(pointer).and_then(Value::as_u64).unwrap_or_default();
        let record = Record {
            holder: text("/spec/holderIdentity"),
            duration: Duration::from_secs(number("/spec/leaseDurationSeconds")),
            acquired: text("/spec/acquireTime"),
            renewed: text("/spec/renewTime"),
            transitions: number("/spec/leaseTransitions"),
        };
        Ok(Some(Held { record, version: text("/metadata/resourceVersion") }))
    }

    async fn write(&self, over: Option<&Held>, record: &Record) -> Result<bool, String> {
        let mut body = json!({
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": { "name": self.name, "namespace": self.namespace },
            "spec": {
                "holderIdentity": record.holder,
                "leaseDurationSeconds": record.duration.as_secs(),
                "acquireTime": record.acquired,
                "renewTime": record.renewed,
                "leaseTransitions": record.transitions,
            },
        });
        let request = match over {
            None => Request::post(&self.collection),
            Some(held) => {
                body["metadata"]["resourceVersion"] = held.version.as_str().into();
                Request::put(format!("{}/{}", self.collection, self.name))
            }
        };
        let request = request
            .header(header::CONTENT_TYPE, "application/json")
            .header(header::ACCEPT, "application/json")
            .body(body.to_string().into_bytes())
            .map_err(|error| error.to_string())?;
        match self.rest.call(request).await {
            Ok(_) => Ok(true),
            Err(error) if error.code == 409 => Ok(false),
            Err(error) => Err(self.sentence(if over.is_some() { "update" } else { "create" }, &error)),
        }
    }
}
