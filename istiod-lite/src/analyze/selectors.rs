//! Policies that select nobody.

use aquifer_objects::Object;
use aquifer_objects::crds::WorkloadSelector;

use super::registry::{Registry, has_all};
use super::{Finding, codes};

/// Policies whose selector no pod has, where there are pods.
pub(super) fn findings(objects: &[Object], registry: &Registry<'_>) -> Vec<Finding> {
    objects.iter().filter_map(|object| finding(object, registry)).collect()
}

fn finding(object: &Object, registry: &Registry<'_>) -> Option<Finding> {
    let labels = &selector(object)?.match_labels;
    let scope = (!registry.is_root(object.namespace())).then_some(object.namespace());
    let all: Vec<_> = registry.workloads(scope).collect();
    if labels.is_empty() || all.is_empty() || all.iter().any(|pod| has_all(pod, labels)) {
        return None;
    }
    let wanted: Vec<String> = labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
    let place = scope.map_or_else(|| "the mesh".to_owned(), |namespace| format!("namespace {namespace}"));
    let message = format!(
        "spec.selector: none of the {} pods of {place} has the labels {}: correct them, or the pods'",
        all.len(),
        wanted.join(",")
    );
    Some(Finding { code: codes::SELECTOR_WITHOUT_PODS, object: object.key(), message })
}

fn selector(object: &Object) -> Option<&WorkloadSelector> {
    match object {
        Object::AuthorizationPolicy(policy) => policy.spec.selector.as_ref(),
        Object::PeerAuthentication(policy) => policy.spec.selector.as_ref(),
        Object::RequestAuthentication(policy) => policy.spec.selector.as_ref(),
        Object::Telemetry(policy) => policy.spec.selector.as_ref(),
        _ => None,
    }
}
