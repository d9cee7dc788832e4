//! Who is in: labels, opt-outs, and pods that have a proxy of their own.

use crate::rules::pod::{PodRules, ProbeAddresses};
use k8s_openapi::api::core::v1::{Namespace, Pod};
use std::collections::BTreeMap;
use std::fmt::{self, Display, Formatter};

/// The label that brings a namespace or a pod in, or keeps a pod out.
pub const DATAPLANE_MODE: &str = "istio.io/dataplane-mode";
/// `enabled` or `pending`; ours to write. Peers use HBONE for a pod when it is `enabled`.
pub const REDIRECTION: &str = "ambient.istio.io/redirection";
/// Why a labelled pod is not in; ours to write.
pub const NOT_ENROLLED_REASON: &str = "ambient.istio.io/not-enrolled-reason";

const SIDECAR_STATUS: &str = "sidecar.istio.io/status";
const BYPASS_INBOUND: &str = "ambient.istio.io/bypass-inbound-capture";
const DNS_CAPTURE: &str = "ambient.istio.io/dns-capture";
const VIRTUAL_INTERFACES: &str = "istio.io/reroute-virtual-interfaces";

/// Containers that are a mesh's proxy: two redirections in one pod would send each other's traffic round and round.
const MESH_PROXIES: [&str; 2] = ["istio-proxy", "linkerd-proxy"];

/// What the agent decides for all pods alike.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Defaults {
    /// Pods of these namespaces are never enrolled.
    pub excluded_namespaces: Vec<String>,
    /// Whether DNS is captured where the pod does not say.
    pub capture_dns: bool,
    /// Where probes come from.
    pub probe_addresses: ProbeAddresses,
}

/// In or out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// The pod shall be in the mesh, with these rules.
    Enrol(PodRules),
    /// The pod shall not be in the mesh.
    Leave(Reason),
}

/// Why a pod is not in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reason {
    /// Neither it nor its namespace asks for it.
    NotLabelled,
    /// The pod says none.
    OptedOut,
    /// Its namespace is one that the agent leaves alone.
    ExcludedNamespace,
    /// It shares the node's network: its rules would be the node's.
    HostNetwork,
    /// It was given a sidecar (annotation `sidecar.istio.io/status`).
    Sidecar,
    /// A container of this name is a mesh proxy.
    MeshProxy(String),
    /// All its containers have ended.
    Terminated,
}

impl Reason {
    /// Whether someone asked for the pod to be in, and should be told why it is not.
    pub fn is_surprising(&self) -> bool {
        matches!(self, Self::ExcludedNamespace | Self::HostNetwork | Self::Sidecar | Self::MeshProxy(_))
    }

    /// A stable name, for metrics and scripts.
    pub fn name(&self) -> &'static str {
        match self {
            Self::NotLabelled => "NotLabelled",
            Self::OptedOut => "OptedOut",
            Self::ExcludedNamespace => "ExcludedNamespace",
            Self::HostNetwork => "HostNetwork",
            Self::Sidecar => "Sidecar",
            Self::MeshProxy(_) => "MeshProxy",
            Self::Terminated => "Terminated",
        }
    }
}

impl Display for Reason {
    fn fmt(&self, out: &mut Formatter<'_>) -> fmt::Result {
        write!(out, "{}: ", self.name())?;
        match self {
            Self::NotLabelled => write!(out, "label {DATAPLANE_MODE} is not ambient on the pod or its namespace"),
            Self::OptedOut => write!(out, "the pod's label {DATAPLANE_MODE} is none"),
            Self::ExcludedNamespace => write!(out, "the agent leaves this namespace alone"),
            Self::HostNetwork => write!(out, "the pod uses the node's network"),
            Self::Sidecar => write!(out, "the pod has a sidecar (annotation {SIDECAR_STATUS})"),
            Self::MeshProxy(container) => write!(out, "container {container} is a mesh proxy of the pod's own"),
            Self::Terminated => write!(out, "the pod has ended"),
        }
    }
}

/// Whether the pod shall be in, and how.
pub fn desired(pod: &Pod, namespace: Option<&Namespace>, defaults: &Defaults) -> Decision {
    match refusal(pod, namespace, defaults) {
        Some(reason) => Decision::Leave(reason),
        None => Decision::Enrol(rules(pod, defaults)),
    }
}

fn refusal(pod: &Pod, namespace: Option<&Namespace>, defaults: &Defaults) -> Option<Reason> {
    let mode = |labels: Option<&BTreeMap<String, String>>| labels.and_then(|all| all.get(DATAPLANE_MODE)).cloned();
    let on_pod = mode(pod.metadata.labels.as_ref());
    let on_namespace = namespace.and_then(|namespace| mode(namespace.metadata.labels.as_ref()));
    match (on_pod.as_deref(), on_namespace.as_deref()) {
        (Some("none"), _) => return Some(Reason::OptedOut),
        (Some("ambient"), _) | (_, Some("ambient")) => {}
        _ => return Some(Reason::NotLabelled),
    }

    let own_namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let spec = pod.spec.as_ref();
    if matches!(pod.status.as_ref().and_then(|status| status.phase.as_deref()), Some("Succeeded" | "Failed")) {
        return Some(Reason::Terminated);
    }
    if defaults.excluded_namespaces.iter().any(|excluded| excluded == own_namespace) {
        return Some(Reason::ExcludedNamespace);
    }
    if spec.and_then(|spec| spec.host_network) == Some(true) {
        return Some(Reason::HostNetwork);
    }
    if let Some(container) = mesh_proxy(pod) {
        return Some(Reason::MeshProxy(container));
    }
    annotation(pod, SIDECAR_STATUS).map(|_| Reason::Sidecar)
}

/// A mesh proxy among the containers, native sidecars (init containers that go on running) included.
fn mesh_proxy(pod: &Pod) -> Option<String> {
    let spec = pod.spec.as_ref()?;
    let containers = spec.containers.iter().chain(spec.init_containers.iter().flatten());
    let mut names = containers.map(|container| container.name.as_str());
    names.find(|name| MESH_PROXIES.contains(name)).map(str::to_owned)
}

/// An annotation, or a part of one, that means nothing to the agent: the pod is enrolled as if it were not there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ignored {
    /// The annotation.
    pub key: &'static str,
    /// What it says.
    pub value: String,
    /// What it could say.
    pub expected: &'static str,
}

/// The pod's annotations that say something else than they can.
pub fn ignored(pod: &Pod) -> Vec<Ignored> {
    let mut ignored = Vec::new();
    for key in [DNS_CAPTURE, BYPASS_INBOUND] {
        if let Some(value) = annotation(pod, key).filter(|value| value.parse::<bool>().is_err()) {
            ignored.push(Ignored { key, value: value.to_owned(), expected: "true or false" });
        }
    }
    for name in annotation(pod, VIRTUAL_INTERFACES).into_iter().flat_map(|list| list.split(',').map(str::trim)) {
        if !name.is_empty() && !is_interface(name) {
            let expected = "interface names with commas between";
            ignored.push(Ignored { key: VIRTUAL_INTERFACES, value: name.to_owned(), expected });
        }
    }
    ignored
}

fn rules(pod: &Pod, defaults: &Defaults) -> PodRules {
    PodRules {
        probe_addresses: defaults.probe_addresses,
        capture_dns: annotation(pod, DNS_CAPTURE).and_then(|value| value.parse().ok()).unwrap_or(defaults.capture_dns),
        ingress: annotation(pod, BYPASS_INBOUND) == Some("true"),
        virtual_interfaces: annotation(pod, VIRTUAL_INTERFACES)
            .map(|list| list.split(',').map(str::trim).filter(|name| is_interface(name)).map(str::to_owned).collect())
            .unwrap_or_default(),
    }
}

/// A name that the kernel could give an interface; anything else would match nothing.
fn is_interface(name: &str) -> bool {
    !name.is_empty() && name.len() < libc::IFNAMSIZ && !name.contains(['/', ' '])
}

/// One annotation of the pod.
pub fn annotation<'a>(pod: &'a Pod, key: &str) -> Option<&'a str> {
    pod.metadata.annotations.as_ref()?.get(key).map(String::as_str)
}
