//! Which fields were set to no effect.

use serde_json::Value;

use super::{NoEffect, Why};
use crate::parse::remove_nulls;

/// The fields of Istio's MeshConfig that are not read here.
pub(super) const WITHOUT_EFFECT: &[&str] = &[
    "accessLogEncoding",
    "accessLogFormat",
    "ca",
    "caCertificates",
    "certificates",
    "configSources",
    "connectTimeout",
    "defaultDestinationRuleExportTo",
    "defaultHttpRetryPolicy",
    "defaultServiceExportTo",
    "defaultTrafficPolicy",
    "defaultVirtualServiceExportTo",
    "disableEnvoyListenerLog",
    "dnsRefreshRate",
    "enableAutoMtls",
    "enableEnvoyAccessLogService",
    "enablePrometheusMerge",
    "enableTracing",
    "h2UpgradePolicy",
    "hboneIdleTimeout",
    "inboundClusterStatName",
    "inboundTrafficPolicy",
    "ingressClass",
    "ingressControllerMode",
    "ingressSelector",
    "ingressService",
    "localityLbSetting",
    "meshMTLS",
    "outboundClusterStatName",
    "pathNormalization",
    "protocolDetectionTimeout",
    "proxyHttpPort",
    "proxyInboundListenPort",
    "proxyListenPort",
    "serviceScopeConfigs",
    "serviceSettings",
    "tcpKeepalive",
    "tlsDefaults",
    "verifyCertificateAtClient",
    "zoneAwareLbSetting",
];

/// Removes what says nothing: nulls, as protobuf's JSON reads them, and empty texts at the top.
pub(super) fn prune(value: &mut Value) {
    remove_nulls(value);
    if let Value::Object(fields) = value {
        fields.retain(|_, field| field != "");
    }
}

/// What stands in `given` and not in `read`, which is `given` after it went through the types.
pub(super) fn unread(given: &Value, read: &Value) -> Vec<NoEffect> {
    let mut found = Vec::new();
    compare("", given, read, &mut found);
    found
}

fn compare(path: &str, given: &Value, read: &Value, found: &mut Vec<NoEffect>) {
    match (given, read) {
        (Value::Object(given), Value::Object(read)) => {
            for (name, value) in given {
                let camel = camel_case(name);
                let field = if path.is_empty() { camel.clone() } else { format!("{path}.{name}") };
                match read.get(name).or_else(|| read.get(&camel)) {
                    Some(read) => compare(&field, value, read, found),
                    // Left out again because it is empty.
                    None if empty(value) && !(path.is_empty() && WITHOUT_EFFECT.contains(&camel.as_str())) => {}
                    None => {
                        let known = !path.is_empty() || WITHOUT_EFFECT.contains(&camel.as_str());
                        found.push(NoEffect { field, why: if known { Why::NotHere } else { Why::Unknown } });
                    }
                }
            }
        }
        (Value::Array(given), Value::Array(read)) => {
            for (i, (given, read)) in given.iter().zip(read).enumerate() {
                compare(&format!("{path}[{i}]"), given, read, found);
            }
        }
        _ => {}
    }
}

fn empty(value: &Value) -> bool {
    match value {
        Value::Object(fields) => fields.is_empty(),
        Value::Array(items) => items.is_empty(),
        _ => false,
    }
}

/// A name as in protobuf to one as in its JSON.
fn camel_case(name: &str) -> String {
    let mut camel = String::with_capacity(name.len());
    let mut up = false;
    for c in name.chars() {
        match c {
            '_' => up = true,
            c if up => {
                camel.extend(c.to_uppercase());
                up = false;
            }
            c => camel.push(c),
        }
    }
    camel
}
