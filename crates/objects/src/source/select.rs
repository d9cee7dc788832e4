//! Which objects of a kind are wanted.

use crate::kinds::{Kind, Object};

/// All objects of a kind, or a part of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Selection {
    pub(crate) kind: Kind,
    pub(crate) namespace: Option<String>,
    pub(crate) name: Option<String>,
    pub(crate) node: Option<String>,
    pub(crate) labels: Vec<(String, Option<String>)>,
}

impl From<Kind> for Selection {
    fn from(kind: Kind) -> Self {
        Self { kind, namespace: None, name: None, node: None, labels: Vec::new() }
    }
}

impl Selection {
    /// The kind.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Only those of this namespace.
    #[must_use]
    pub fn in_namespace(mut self, namespace: impl Into<String>) -> Self {
        self.namespace = Some(namespace.into());
        self
    }

    /// Only those of this name.
    #[must_use]
    pub fn named(mut self, name: impl Into<String>) -> Self {
        self.name = Some(name.into());
        self
    }

    /// Only pods that are bound to this node.
    #[must_use]
    pub fn on_node(mut self, node: impl Into<String>) -> Self {
        self.node = Some(node.into());
        self
    }

    /// Only those with this label, whatever its value (`None`) or with this one.
    #[must_use]
    pub fn labelled(mut self, key: impl Into<String>, value: Option<&str>) -> Self {
        self.labels.push((key.into(), value.map(str::to_owned)));
        self
    }

    /// Whether the object is among them.
    pub fn matches(&self, object: &Object) -> bool {
        let node = |object: &Object| match object {
            Object::Pod(pod) => pod.spec.as_ref().and_then(|spec| spec.node_name.clone()),
            _ => None,
        };
        object.kind() == self.kind
            && self.namespace.as_deref().is_none_or(|namespace| namespace == object.namespace())
            && self.name.as_deref().is_none_or(|name| name == object.name())
            && (self.node.is_none() || self.node == node(object))
            && self.labels.iter().all(|(key, value)| match (object.label(key), value) {
                (Some(found), Some(wanted)) => found == wanted,
                (found, None) => found.is_some(),
                (None, Some(_)) => false,
            })
    }

    /// As the API server takes it: `fieldSelector`.
    pub(crate) fn field_selector(&self) -> Option<String> {
        let name = self.name.as_ref().map(|name| format!("metadata.name={name}"));
        let node = self.node.as_ref().map(|node| format!("spec.nodeName={node}"));
        let all: Vec<String> = name.into_iter().chain(node).collect();
        (!all.is_empty()).then(|| all.join(","))
    }

    /// As the API server takes it: `labelSelector`.
    pub(crate) fn label_selector(&self) -> Option<String> {
        let one = |(key, value): &(String, Option<String>)| match value {
            Some(value) => format!("{key}={value}"),
            None => key.clone(),
        };
        let all: Vec<String> = self.labels.iter().map(one).collect();
        (!all.is_empty()).then(|| all.join(","))
    }
}
