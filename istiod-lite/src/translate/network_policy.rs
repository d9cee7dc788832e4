//! NetworkPolicy: only whom it selects. Whoever enforces it does so on the wire, where it must see the traffic.

use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelectorRequirement;

use super::Labels;

/// Whether the policy selects a pod of its namespace, for either direction. What cannot be understood selects.
pub fn selects(policy: &NetworkPolicy, labels: Option<&Labels>) -> bool {
    // None, or an empty one, is every pod of the namespace.
    let Some(selector) = policy.spec.as_ref().and_then(|spec| spec.pod_selector.as_ref()) else { return true };
    selector.match_labels.as_ref().is_none_or(|wanted| super::selects(wanted, labels))
        && selector.match_expressions.iter().flatten().all(|requirement| meets(labels, requirement))
}

fn meets(labels: Option<&Labels>, requirement: &LabelSelectorRequirement) -> bool {
    let value = labels.and_then(|labels| labels.get(&requirement.key));
    let among = || value.is_some_and(|value| requirement.values.iter().flatten().any(|allowed| allowed == value));
    match requirement.operator.as_str() {
        "In" => among(),
        // A pod without the label is none of them.
        "NotIn" => !among(),
        "Exists" => value.is_some(),
        "DoesNotExist" => value.is_none(),
        _ => true,
    }
}
