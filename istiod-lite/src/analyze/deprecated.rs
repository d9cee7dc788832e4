//! Fields that have a better name. Those of DestinationRules stand in their status.

use aquifer_objects::Object;

use super::{Finding, codes};

/// Deprecated fields that no status names.
pub(super) fn findings(objects: &[Object]) -> Vec<Finding> {
    objects.iter().flat_map(of_object).collect()
}

fn of_object(object: &Object) -> Vec<Finding> {
    let mut fields = Vec::new();
    match object {
        Object::VirtualService(service) => {
            for (i, route) in service.spec.http.iter().enumerate() {
                let mut add = |is_set: bool, field: &str, instead: &str| {
                    if is_set {
                        fields.push((format!("spec.http[{i}].{field}"), instead.to_owned()));
                    }
                };
                add(route.mirror_percent_snake.is_some(), "mirror_percent", "mirrorPercentage.value");
                add(route.mirror_percent.is_some(), "mirrorPercent", "mirrorPercentage.value");
                let cors = route.cors_policy.as_ref();
                add(cors.is_some_and(|cors| !cors.allow_origin.is_empty()), "corsPolicy.allowOrigin", "allowOrigins");
                let delay = route.fault.as_ref().and_then(|fault| fault.delay.as_ref());
                add(delay.is_some_and(|delay| delay.percent.is_some()), "fault.delay.percent", "percentage.value");
            }
        }
        Object::RequestAuthentication(policy) => {
            for (i, rule) in policy.spec.jwt_rules.iter().enumerate() {
                if rule.jwks_uri_snake.is_some() {
                    fields.push((format!("spec.jwtRules[{i}].jwks_uri"), "jwksUri".to_owned()));
                }
            }
        }
        _ => {}
    }
    let finding = |(field, instead)| Finding {
        code: codes::DEPRECATED_FIELD,
        object: object.key(),
        message: format!("{field} is deprecated: write {instead}"),
    };
    fields.into_iter().map(finding).collect()
}
