//! Where replicas leave their reports for the one that leads.

use std::path::PathBuf;

use aquifer_objects::{Kind, Object, ObjectKey, Selection, Source, Writer};
use serde_json::json;

use super::observe::Report;
use crate::ca::root;

const LABEL: &str = "aquifer.dev/root-rotation";
const VALUE: &str = "report";
const MANAGER: &str = "istiod-lite";

/// The reports of all replicas.
#[derive(Debug, Clone)]
pub enum Reports {
    /// A folder has one replica; its report is kept for its next life.
    Folder(PathBuf),
    /// One ConfigMap each.
    Cluster {
        /// The API server.
        source: Source,
        /// Where the ConfigMaps are.
        namespace: String,
    },
}

impl Reports {
    /// In the data folder.
    pub fn folder(data: &std::path::Path) -> Self {
        Self::Folder(data.join("root-report.json"))
    }

    /// Leaves `report`.
    pub async fn save(&self, report: &Report) -> Result<(), String> {
        let text = serde_json::to_string(report).map_err(|e| e.to_string())?;
        match self {
            Self::Folder(path) => root::overwrite(path, text.as_bytes(), 0o600).map_err(|e| e.to_string()),
            Self::Cluster { namespace, .. } => {
                let object = json!({
                    "apiVersion": "v1",
                    "kind": "ConfigMap",
                    "metadata": {
                        "name": name(&report.replica),
                        "namespace": namespace,
                        "labels": { LABEL: VALUE },
                    },
                    "data": { "report": text },
                });
                self.writer()?.apply(object).await.map(|_| ()).map_err(|e| e.to_string())
            }
        }
    }

    /// All of them.
    pub async fn all(&self) -> Result<Vec<Report>, String> {
        match self {
            Self::Folder(path) => {
                let text = root::read_secret(path).map_err(|e| e.to_string())?;
                Ok(text.and_then(|text| serde_json::from_str(&text).ok()).into_iter().collect())
            }
            Self::Cluster { source, namespace } => {
                let all = Selection::from(Kind::ConfigMap).in_namespace(namespace).labelled(LABEL, Some(VALUE));
                let (objects, problems) = source.read(&[all]).await.map_err(|e| e.to_string())?;
                if let Some(problem) = problems.into_iter().next() {
                    return Err(problem);
                }
                Ok(objects.iter().filter_map(read).collect())
            }
        }
    }

    /// Takes away the report of a replica that is gone.
    pub async fn forget(&self, replica: &str) -> Result<(), String> {
        let Self::Cluster { namespace, .. } = self else { return Ok(()) };
        let key = ObjectKey::new(Kind::ConfigMap, namespace, &name(replica));
        self.writer()?.delete(&key, None).await.map_err(|e| e.to_string())
    }

    fn writer(&self) -> Result<Writer, String> {
        match self {
            Self::Cluster { source, .. } => Ok(source.writer(MANAGER)),
            Self::Folder(_) => Err("a folder has no ConfigMaps of reports".into()),
        }
    }
}

fn name(replica: &str) -> String {
    format!("aquifer-root-report-{replica}")
}

fn read(object: &Object) -> Option<Report> {
    let Object::ConfigMap(map) = object else { return None };
    serde_json::from_str(map.data.as_ref()?.get("report")?).ok()
}
