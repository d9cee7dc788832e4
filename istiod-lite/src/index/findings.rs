//! What users should know and no status of the object itself can say: NetworkPolicies have none that is ours.

use std::sync::Arc;

use aquifer_objects::{Kind, ObjectKey};

use super::Index;
use super::objects::Space;
use super::restricted::{Matter, restrictions};
use crate::translate::waypoint::Key;

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Something does not work.
    Error,
    /// Something does not work as it seems to.
    Warning,
}

/// Something that a user should know about one of his objects.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// What it is; never changes its meaning.
    pub code: &'static str,
    /// How bad it is.
    pub level: Level,
    /// The object.
    pub object: ObjectKey,
    /// What is wrong, and what to do.
    pub message: String,
}

/// A NetworkPolicy keeps tunnels from pods of the mesh.
pub const BLOCKS_INBOUND: &str = "NetworkPolicyBlocksInboundTunnels";
/// A NetworkPolicy keeps pods of the mesh from opening tunnels.
pub const BLOCKS_OUTBOUND: &str = "NetworkPolicyBlocksOutboundTunnels";
/// A NetworkPolicy names ports, and the mesh brings everything on one.
pub const PORTS_UNSEEN: &str = "NetworkPolicyPortsUnseen";

/// The MeshConfig cannot be read.
pub const CONFIG_INVALID: &str = "MeshConfigInvalid";
/// A field of the MeshConfig changes nothing.
pub const CONFIG_WITHOUT_EFFECT: &str = "MeshConfigFieldWithoutEffect";

/// Everything found, sorted by object and code.
pub(super) fn findings(index: &Index) -> Vec<Finding> {
    let discovered = index.objects.spaces().filter(|(namespace, _)| index.discovers(namespace));
    let mut found: Vec<Finding> = discovered.flat_map(|(namespace, space)| in_space(namespace, space)).collect();
    let object = || ObjectKey::new(Kind::ConfigMap, &index.base.system_namespace, &index.base.config_map);
    found.extend(index.config.error.iter().map(|error| Finding {
        code: CONFIG_INVALID,
        level: Level::Error,
        object: object(),
        message: format!("{error}. The last MeshConfig that could be read stays in force."),
    }));
    found.extend(index.config.without_effect.iter().map(|field| Finding {
        code: CONFIG_WITHOUT_EFFECT,
        level: Level::Warning,
        object: object(),
        message: field.to_string(),
    }));
    found.sort_by(|a, b| (&a.object, a.code, &a.message).cmp(&(&b.object, b.code, &b.message)));
    found
}

fn in_space(namespace: &Arc<str>, space: &Space) -> Vec<Finding> {
    let mut found: Vec<Finding> = Vec::new();
    if space.network_policies.is_empty() {
        return found;
    }
    let mut sets: Vec<_> = space.label_sets().collect();
    // By their first pod, so that the same is said each time.
    sets.sort_unstable_by_key(|(_, pods)| pods.first());
    for (labels, pods) in sets {
        let mut enrolled = pods.iter().filter(|pod| space.pods().get(*pod).is_some_and(|pod| pod.is_redirected()));
        let Some(pod) = enrolled.next() else { continue };
        for (matter, policy) in restrictions(space, labels) {
            let finding = of_pod(matter, &(namespace.clone(), policy), pod);
            // One word on each matter is enough, however many pods there are.
            if !found.iter().any(|known| known.object == finding.object && known.code == finding.code) {
                found.push(finding);
            }
        }
    }
    found
}

/// What a policy does to a pod, by way of example.
pub(super) fn of_pod(matter: Matter, (namespace, policy): &Key, pod: &str) -> Finding {
    let (code, level, message) = match matter {
        Matter::InboundBlocked => blocked(namespace, pod, true),
        Matter::OutboundBlocked => blocked(namespace, pod, false),
        Matter::InboundUnseen => unseen(namespace, pod, true),
        Matter::OutboundUnseen => unseen(namespace, pod, false),
    };
    Finding { code, level, object: ObjectKey::new(Kind::NetworkPolicy, namespace, policy), message }
}

fn blocked(namespace: &str, pod: &str, inbound: bool) -> (&'static str, Level, String) {
    let (code, what, rule) = if inbound {
        (BLOCKS_INBOUND, "is reached by nobody in the mesh: tunnels come on", "an ingress")
    } else {
        (BLOCKS_OUTBOUND, "reaches nobody in the mesh: tunnels go to", "an egress")
    };
    let message = format!(
        "pod {namespace}/{pod} {what} TCP port 15008, which none of its policies lets through. \
         Add {rule} rule for port 15008 with the same peers."
    );
    (code, Level::Error, message)
}

fn unseen(namespace: &str, pod: &str, inbound: bool) -> (&'static str, Level, String) {
    let (carried, instead) = if inbound {
        ("to it, which all comes on", "an AuthorizationPolicy with `ports` that selects the pod")
    } else {
        ("from it, which all goes to", "AuthorizationPolicies with `ports` at the destinations")
    };
    let message = format!(
        "its ports do not restrict pod {namespace}/{pod} within the mesh: what is carried {carried} TCP port 15008. \
         To restrict ports, write {instead}."
    );
    (PORTS_UNSEEN, Level::Warning, message)
}
