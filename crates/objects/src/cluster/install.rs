//! CustomResourceDefinitions: ours are made and renewed, those of others are left alone.

use http::{Method, Request, header};
use serde::Deserialize;
use serde_json::{Map, Value};

use super::{Cluster, ClusterError, RestError};
use crate::crds::definition::LABEL;

const PATH: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
/// Of a definition only this: Istio's schemas are long.
const METADATA: &str = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1";
/// So often a definition is looked at again that somebody changed in between.
const ATTEMPTS: usize = 3;

/// What became of a definition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Installed {
    /// It was not there.
    Created,
    /// An older one of ours was.
    Upgraded,
    /// It was there as it is.
    Unchanged,
    /// One of this name is there without our label: nothing was written.
    Foreign,
}

#[derive(Debug, Deserialize)]
struct Found {
    metadata: Metadata,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Metadata {
    resource_version: String,
    deletion_timestamp: Option<String>,
    #[serde(default)]
    labels: Map<String, Value>,
}

impl Cluster {
    /// Applies a CustomResourceDefinition as this field manager, unless one of its name is there that does not carry
    /// our label ([`LABEL`]). Errors say what was refused, and what would permit it.
    pub async fn install_definition(&self, manager: &str, definition: &Value) -> Result<Installed, ClusterError> {
        let Some(name) = definition["metadata"]["name"].as_str() else {
            return Err(ClusterError::Settings("a CustomResourceDefinition without a name".to_owned()));
        };
        let mut attempt = 1;
        loop {
            match self.try_install(manager, name, definition).await {
                Err(error) if error.code == 409 && attempt < ATTEMPTS => attempt += 1,
                done => return done.map_err(ClusterError::from),
            }
        }
    }

    /// What is written holds for what was seen; 409 if it is another by then.
    async fn try_install(&self, manager: &str, name: &str, definition: &Value) -> Result<Installed, RestError> {
        let path = format!("{PATH}/{name}");
        let there = match self.definition(Method::GET, &path, "get", Vec::new()).await {
            Ok(found) => Some(found.metadata),
            Err(error) if error.code == 404 => None,
            Err(error) => return Err(error),
        };
        let mut body = definition.clone();
        if let Some(there) = &there {
            if there.labels.get(LABEL.0).and_then(Value::as_str) != Some(LABEL.1) {
                return Ok(Installed::Foreign);
            }
            if there.deletion_timestamp.is_some() {
                let message = "it is being deleted, and its objects with it: apply again when it is gone";
                return Err(RestError { code: 410, message: message.to_owned(), retry_after: None });
            }
            body["metadata"]["resourceVersion"] = there.resource_version.as_str().into();
        }
        // Fields of one that appeared since we looked are not ours to take.
        let force = there.is_some();
        let path = format!("{path}?fieldManager={manager}&force={force}");
        let now = self.definition(Method::PATCH, &path, "patch", body.to_string().into_bytes()).await?.metadata;
        Ok(match there {
            None => Installed::Created,
            Some(there) if there.resource_version == now.resource_version => Installed::Unchanged,
            Some(_) => Installed::Upgraded,
        })
    }

    async fn definition(&self, method: Method, path: &str, verb: &str, body: Vec<u8>) -> Result<Found, RestError> {
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::ACCEPT, METADATA)
            .header(header::CONTENT_TYPE, "application/apply-patch+yaml")
            .body(body)
            .map_err(|error| RestError::transport(error.to_string()))?;
        let answer = self.rest.call(request).await.map_err(|mut error| {
            if error.code == 403 {
                error.message = format!(
                    "the RBAC rule apiGroups: [\"apiextensions.k8s.io\"], resources: [\"customresourcedefinitions\"], \
                     verbs: [\"{verb}\"] is missing ({})",
                    error.message
                );
            }
            error
        })?;
        serde_json::from_slice(&answer).map_err(|error| RestError::transport(error.to_string()))
    }
}
