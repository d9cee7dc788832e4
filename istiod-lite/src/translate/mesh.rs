//! What holds for the whole mesh.

use aquifer_objects::mesh_config::{MeshConfig, NamespaceSelector, ServiceEntryVisibility, Visibility as Said};

use super::labels::{LabelSet, Selector};
use super::visibility::{Rules, Visibility};

/// What holds for the whole mesh: the process's settings, overruled by the MeshConfig and by the labels of the control
/// plane's namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mesh {
    /// This cluster's id.
    pub cluster_id: String,
    /// The trust domain of all identities.
    pub trust_domain: String,
    /// Further trust domains whose identities count as the mesh's own.
    pub trust_domain_aliases: Vec<String>,
    /// The control plane's own namespace, where the MeshConfig lies and whose label names the network.
    pub system_namespace: String,
    /// The ConfigMap there that holds the MeshConfig.
    pub config_map: String,
    /// The namespace whose policies hold for the whole mesh.
    pub root_namespace: String,
    /// The DNS suffix of service names.
    pub domain: String,
    /// The network of all pods; empty for the default one.
    pub network: String,
    /// Whether pods of one node that no NetworkPolicy selects may be connected within their node proxy.
    pub same_node: bool,
    /// Whether workloads behind a waypoint let its pods in without a word of the user.
    pub allow_waypoints: bool,
    /// The namespaces that belong to the mesh: those that any of these selects, or all if there are none.
    pub discovery: Vec<Selector>,
    /// Who sees ServiceEntries; `None` where nobody has decided.
    pub visibility: Option<Rules>,
}

impl Default for Mesh {
    fn default() -> Self {
        Self {
            cluster_id: "Kubernetes".to_owned(),
            trust_domain: "cluster.local".to_owned(),
            trust_domain_aliases: Vec::new(),
            system_namespace: "istio-system".to_owned(),
            config_map: "istio".to_owned(),
            root_namespace: "istio-system".to_owned(),
            domain: "cluster.local".to_owned(),
            network: String::new(),
            same_node: true,
            allow_waypoints: false,
            discovery: Vec::new(),
            visibility: None,
        }
    }
}

impl Mesh {
    /// With what a MeshConfig overrules.
    #[must_use]
    pub fn overruled(&self, config: &MeshConfig) -> Self {
        let or = |said: &Option<String>, own: &String| said.as_ref().unwrap_or(own).clone();
        Self {
            trust_domain: or(&config.trust_domain, &self.trust_domain),
            trust_domain_aliases: config.trust_domain_aliases.clone(),
            root_namespace: or(&config.root_namespace, &self.root_namespace),
            discovery: config.discovery_selectors.iter().map(selector).collect(),
            visibility: config.service_entry_visibility.as_ref().map(rules),
            ..self.clone()
        }
    }

    /// The trust domain as resources carry it: left out when it is the default.
    pub(super) fn sent_trust_domain(&self) -> String {
        if self.trust_domain == "cluster.local" { String::new() } else { self.trust_domain.clone() }
    }

    /// A Service's host name.
    pub fn service_hostname(&self, namespace: &str, name: &str) -> String {
        format!("{name}.{namespace}.svc.{}", self.domain)
    }

    /// The name of a Service's resource.
    pub fn service_resource(&self, namespace: &str, name: &str) -> String {
        format!("{namespace}/{}", self.service_hostname(namespace, name))
    }

    /// Namespace and name of the Service that a host name would be.
    pub fn service_of<'a>(&self, host: &'a str) -> Option<(&'a str, &'a str)> {
        let (name, rest) = host.split_once('.')?;
        let namespace = rest.strip_suffix(&*self.domain)?.strip_suffix(".svc.")?;
        (!namespace.contains('.')).then_some((namespace, name))
    }

    /// A host as an object names it: one without a dot is a Service of the object's own namespace.
    pub fn expanded(&self, host: &str, namespace: &str) -> String {
        if host.contains('.') || host == "*" { host.to_owned() } else { self.service_hostname(namespace, host) }
    }

    /// Whether a namespace with such labels belongs to the mesh. The control plane's own always does.
    pub fn discovers(&self, namespace: &str, labels: &LabelSet) -> bool {
        self.discovery.is_empty()
            || namespace == self.system_namespace
            || namespace == self.root_namespace
            || self.discovery.iter().any(|selector| selector.selects(labels))
    }
}

/// The key of the MeshConfig in its ConfigMap.
pub const CONFIG_KEY: &str = "mesh";

fn selector(selector: &NamespaceSelector) -> Selector {
    let labels = Selector::of_labels(selector.match_labels.clone());
    let expressions = selector.match_expressions.iter();
    expressions.fold(labels, |made, one| made.and(&one.key, &one.operator, &one.values))
}

fn rules(said: &ServiceEntryVisibility) -> Rules {
    let policies = said.policies.iter().map(|policy| {
        let selectors = policy.matching_rules.iter().map(|rule| rule.namespace_selector.as_ref().map(selector));
        (visibility(policy.visibility), selectors.collect())
    });
    Rules { default: said.default_visibility.map(visibility).unwrap_or_default(), rules: policies.collect() }
}

fn visibility(said: Said) -> Visibility {
    match said {
        Said::VisibilityUnspecified | Said::Public => Visibility::Public,
        Said::Namespace => Visibility::Namespace,
        Said::None => Visibility::None,
    }
}
