//! Fields that are read, and upon which nobody acts so far.

use super::{MeshConfig, NoEffect, OutboundMode, Why};

const WITH_WAYPOINTS: &str = "has no effect yet: it takes effect with waypoints, which do not act on it so far";
const EGRESS_STAYS_OPEN: &str = "REGISTRY_ONLY is not enforced: egress stays open, and pods reach addresses that the mesh \
     does not know. To close it, write NetworkPolicies with egress rules that let TCP port 15008 through";
const NO_DYNAMIC_NAMES: &str = "ALLOW_ANY_DYNAMIC_DNS acts as ALLOW_ANY: names are not looked up as they come";

/// Those of a MeshConfig that are set.
pub(super) fn not_yet(config: &MeshConfig) -> Vec<NoEffect> {
    let mut fields: Vec<String> = Vec::new();
    let mut note = |is_set: bool, field: &str| fields.extend(is_set.then(|| field.to_owned()));
    note(config.access_log_file.is_some(), "accessLogFile");
    if let Some(providers) = &config.default_providers {
        note(!providers.tracing.is_empty(), "defaultProviders.tracing");
        note(!providers.metrics.is_empty(), "defaultProviders.metrics");
        note(!providers.access_logging.is_empty(), "defaultProviders.accessLogging");
    }
    if let Some(proxies) = &config.default_config {
        note(proxies.concurrency.is_some(), "defaultConfig.concurrency");
        note(!proxies.proxy_metadata.is_empty(), "defaultConfig.proxyMetadata");
        note(proxies.termination_drain_duration.is_some(), "defaultConfig.terminationDrainDuration");
        let sampling = proxies.tracing.as_ref().is_some_and(|tracing| tracing.sampling.is_some());
        note(sampling, "defaultConfig.tracing.sampling");
    }
    for (at, provider) in config.extension_providers.iter().enumerate() {
        // Of one of another kind that kind is named already.
        note(provider.is_known(), &format!("extensionProviders[{at}] ({})", provider.name));
    }
    let mut found: Vec<NoEffect> =
        fields.into_iter().map(|field| NoEffect { field, why: Why::NotSoFar(WITH_WAYPOINTS) }).collect();
    let mode = config.outbound_traffic_policy.as_ref().map(|policy| policy.mode);
    let why = match mode {
        Some(OutboundMode::RegistryOnly) => Some(EGRESS_STAYS_OPEN),
        Some(OutboundMode::AllowAnyDynamicDns) => Some(NO_DYNAMIC_NAMES),
        Some(OutboundMode::AllowAny) | None => None,
    };
    let field = "outboundTrafficPolicy.mode".to_owned();
    found.extend(why.map(|why| NoEffect { field, why: Why::NotSoFar(why) }));
    found
}
