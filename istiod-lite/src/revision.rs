//! Which control plane has to do with which object, where several revisions run side by side.
//!
//! * An object without the label is read by all; one with it by the revision, or the tag of a revision, that it names.
//! * What is to be written (Gateways, status) is written by one: the revision that the label of the object, else that
//!   of its namespace names; without either, the default revision.

use std::collections::{BTreeMap, BTreeSet};

use aquifer_objects::validate::is_dns_name;
use aquifer_objects::{Kind, Object};

/// The label.
pub const LABEL: &str = "istio.io/rev";
/// The revision, and the tag, of objects that name none.
pub const DEFAULT: &str = "default";

/// Whether a control plane may have this revision's name: it becomes part of the names of objects. Else what it must be.
pub fn check_name(name: &str) -> Result<(), &'static str> {
    if is_dns_name(name) && !name.contains('.') && name.len() <= 40 {
        return Ok(());
    }
    Err("must be lower-case letters, digits and dashes, 40 at most, such as \"1-30-0\"")
}

/// This control plane's revision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Revision {
    name: String,
    /// Its name and whatever else points to it; `default` among them if unlabelled objects are its own.
    tags: BTreeSet<String>,
}

impl Default for Revision {
    fn default() -> Self {
        Self::new(DEFAULT, [], true)
    }
}

impl Revision {
    /// The revision `name` (REVISION), with further tags (REVISION_TAGS) and the objects of nobody
    /// (DEFAULT_REVISION).
    pub fn new(name: &str, tags: impl IntoIterator<Item = String>, is_default: bool) -> Self {
        let mut all: BTreeSet<String> = tags.into_iter().collect();
        all.insert(name.to_owned());
        if is_default {
            all.insert(DEFAULT.to_owned());
        }
        Self { name: name.to_owned(), tags: all }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether objects that name no revision are ours to write.
    pub fn is_default(&self) -> bool {
        self.tags.contains(DEFAULT)
    }

    /// Whether the object counts here. Only configuration of the mesh can be for another revision: services, pods and
    /// the Gateways that they are bound to are the same for all.
    pub fn reads(&self, object: &Object) -> bool {
        !is_configuration(object.kind()) || object.label(LABEL).is_none_or(|revision| self.tags.contains(revision))
    }

    /// Whether an object with these labels, in a namespace with this revision, is ours to write.
    pub fn owns(&self, labels: Option<&BTreeMap<String, String>>, of_namespace: Option<&str>) -> bool {
        let revision = labels.and_then(|labels| labels.get(LABEL)).map(String::as_str).or(of_namespace);
        self.tags.contains(revision.unwrap_or(DEFAULT))
    }

    /// The ConfigMap with its MeshConfig, as the installers name it: `istio`, or `istio-<revision>`.
    pub fn config_map(&self) -> String {
        match self.name() {
            DEFAULT => "istio".to_owned(),
            revision => format!("istio-{revision}"),
        }
    }

    /// The name of what only one replica of this revision may do.
    pub fn lease(&self) -> String {
        format!("istiod-lite-{}", self.name)
    }
}

fn is_configuration(kind: Kind) -> bool {
    kind.of_istio() || matches!(kind, Kind::HTTPRoute | Kind::GRPCRoute | Kind::TCPRoute | Kind::TLSRoute)
}

#[cfg(test)]
mod tests {
    use super::*;
    use aquifer_objects::parse::parse_object;
    use serde_json::{Value, json};

    fn labels(revision: Option<&str>) -> Option<BTreeMap<String, String>> {
        revision.map(|revision| BTreeMap::from([(LABEL.to_owned(), revision.to_owned())]))
    }

    #[test]
    fn what_is_written_has_one_writer() {
        let stable = Revision::new("1-30", ["prod".to_owned()], true);
        let canary = Revision::new("1-31", [], false);
        // Label of the object, of its namespace, whose it is.
        let table = [
            (None, None, "stable"),
            (Some("1-30"), None, "stable"),
            (Some("prod"), None, "stable"),
            (Some("default"), Some("1-31"), "stable"),
            (Some("1-31"), None, "canary"),
            (None, Some("1-31"), "canary"),
            (Some("1-31"), Some("1-30"), "canary"),
            (Some("other"), None, "nobody"),
        ];
        for (object, namespace, whose) in table {
            let of = |revision: &Revision| revision.owns(labels(object).as_ref(), namespace);
            let found = match (of(&stable), of(&canary)) {
                (true, false) => "stable",
                (false, true) => "canary",
                (false, false) => "nobody",
                (true, true) => "both",
            };
            assert_eq!(found, whose, "object {object:?}, namespace {namespace:?}");
        }
        assert_eq!((stable.lease(), canary.lease()), ("istiod-lite-1-30".into(), "istiod-lite-1-31".into()));
    }

    #[test]
    fn configuration_of_another_revision_is_not_read_and_the_rest_is() {
        let object = |api: &str, kind: &str, spec: Value| {
            parse_object(json!({ "apiVersion": api, "kind": kind, "spec": spec,
                "metadata": { "name": "x", "namespace": "n", "labels": { LABEL: "1-31" } } }))
            .unwrap()
        };
        let policy = object("security.istio.io/v1", "AuthorizationPolicy", json!({}));
        let service = object("v1", "Service", json!({ "ports": [{ "port": 80 }] }));
        let gateway = object(
            "gateway.networking.k8s.io/v1",
            "Gateway",
            json!({ "gatewayClassName": "istio-waypoint", "listeners": [] }),
        );
        let stable = Revision::default();
        assert!(!stable.reads(&policy));
        assert!(stable.reads(&service) && stable.reads(&gateway));
        let canary = Revision::new("1-31", [], false);
        assert!(canary.reads(&policy) && canary.reads(&service));
    }
}
