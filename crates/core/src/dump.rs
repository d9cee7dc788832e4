//! The state as `/config_dump` shows it: the keys and spellings that Istio's tools read.

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use serde::{Serialize, Serializer};

use crate::{
    address::{GatewayAddress, GatewayDestination, PortList},
    policy::{Action, Clause, Match, Policy, Rule, Scope, ServiceAccountMatch, StringMatch},
    service::{HealthPolicy, IpFamilies, LoadBalancing, Mode, Service, Visibility},
    state::MeshState,
    workload::{
        ApplicationTunnel, ApplicationTunnelProtocol, HealthStatus, Locality, NetworkMode, TunnelProtocol, Workload,
    },
};

/// Everything that a snapshot holds, in order of name.
#[derive(Debug, Serialize)]
pub struct ConfigDump<'a> {
    workloads: Vec<&'a Workload>,
    services: Vec<ServiceDump<'a>>,
    policies: Vec<&'a Policy>,
}

impl MeshState {
    /// For people and their tools: `workloads`, `services`, `policies`.
    pub fn dump(&self) -> ConfigDump<'_> {
        let mut workloads: Vec<&Workload> = self.workloads().map(|workload| &**workload).collect();
        workloads.sort_by(|a, b| a.uid.cmp(&b.uid));
        let mut services: Vec<&Service> = self.services().map(|service| &**service).collect();
        services.sort_by(|a, b| a.key.cmp(&b.key));
        let services = services.into_iter().map(|service| ServiceDump::new(self, service)).collect();
        let mut policies: Vec<&Policy> = self.policies().map(|policy| &**policy).collect();
        policies.sort_by(|a, b| a.key.cmp(&b.key));
        ConfigDump { workloads, services, policies }
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct WorkloadDump<'a> {
    uid: String,
    name: String,
    namespace: &'a str,
    workload_ips: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    hostname: Option<&'a str>,
    #[serde(skip_serializing_if = "str::is_empty")]
    network: &'a str,
    network_mode: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    network_gateway: Option<GatewayDump>,
    protocol: &'static str,
    #[serde(skip_serializing_if = "is_false")]
    native_tunnel: bool,
    #[serde(skip_serializing_if = "is_false")]
    same_node_fast_path: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    application_tunnel: Option<TunnelDump>,
    trust_domain: &'a str,
    service_account: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    waypoint: Option<GatewayDump>,
    #[serde(skip_serializing_if = "str::is_empty")]
    node: &'a str,
    cluster_id: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    locality: Option<LocalityDump<'a>>,
    #[serde(skip_serializing_if = "str::is_empty")]
    canonical_name: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    canonical_revision: &'a str,
    workload_type: &'static str,
    #[serde(skip_serializing_if = "str::is_empty")]
    workload_name: &'a str,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    authorization_policies: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    services: Vec<String>,
    status: &'static str,
    capacity: u32,
}

#[derive(Serialize)]
struct LocalityDump<'a> {
    region: &'a str,
    zone: &'a str,
    subzone: &'a str,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct GatewayDump {
    destination: String,
    hbone_mtls_port: u16,
}

#[derive(Serialize)]
struct TunnelDump {
    protocol: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    port: Option<u16>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct ServiceDump<'a> {
    name: &'a str,
    namespace: &'a str,
    hostname: &'a str,
    vips: Vec<String>,
    ports: BTreeMap<u16, u16>,
    endpoints: BTreeMap<String, EndpointDump>,
    subject_alt_names: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    waypoint: Option<GatewayDump>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    weighted_waypoints: Vec<WeightedDump>,
    #[serde(skip_serializing_if = "Option::is_none")]
    load_balancer: Option<BalancerDump>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ip_families: Option<&'static str>,
    canonical: bool,
    visibility: &'static str,
}

#[derive(Debug, Serialize)]
struct WeightedDump {
    destination: GatewayDump,
    weight: u32,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct BalancerDump {
    routing_preferences: Vec<String>,
    mode: &'static str,
    health_policy: &'static str,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct EndpointDump {
    workload_uid: String,
    port: BTreeMap<u16, u16>,
    status: &'static str,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct PolicyDump<'a> {
    name: &'a str,
    namespace: &'a str,
    scope: &'static str,
    action: &'static str,
    rules: &'a [Rule],
    dry_run: bool,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct MatchDump<'a> {
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    namespaces: &'a [StringMatch],
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    not_namespaces: &'a [StringMatch],
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    principals: &'a [StringMatch],
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    not_principals: &'a [StringMatch],
    #[serde(skip_serializing_if = "Vec::is_empty")]
    service_accounts: Vec<AccountDump<'a>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    not_service_accounts: Vec<AccountDump<'a>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    source_ips: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    not_source_ips: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    destination_ips: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    not_destination_ips: Vec<String>,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    destination_ports: &'a [u16],
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    not_destination_ports: &'a [u16],
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct AccountDump<'a> {
    namespace: &'a str,
    service_account: &'a str,
}

impl Serialize for Workload {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        WorkloadDump {
            uid: self.uid.to_string(),
            name: self.name().to_string(),
            namespace: &self.namespace,
            workload_ips: texts(&self.addresses),
            hostname: self.hostname.as_deref(),
            network: &self.network,
            network_mode: match self.network_mode {
                NetworkMode::Standard => "Standard",
                NetworkMode::HostNetwork => "HostNetwork",
            },
            network_gateway: self.network_gateway.as_ref().map(gateway),
            protocol: match self.tunnel_protocol {
                TunnelProtocol::None => "TCP",
                TunnelProtocol::Hbone => "HBONE",
            },
            native_tunnel: self.native_tunnel,
            same_node_fast_path: self.same_node,
            application_tunnel: self.application_tunnel.as_ref().map(tunnel),
            trust_domain: &self.trust_domain,
            service_account: &self.service_account,
            waypoint: self.waypoint.as_ref().map(gateway),
            node: &self.node,
            cluster_id: &self.cluster_id,
            locality: (self.locality != Locality::default()).then_some(LocalityDump {
                region: &self.locality.region,
                zone: &self.locality.zone,
                subzone: &self.locality.subzone,
            }),
            canonical_name: &self.canonical_name,
            canonical_revision: &self.canonical_revision,
            workload_type: self.workload_type.as_str(),
            workload_name: &self.workload_name,
            authorization_policies: texts(&self.authorization_policies),
            services: self.services.keys().map(ToString::to_string).collect(),
            status: status(self.status),
            capacity: self.capacity,
        }
        .serialize(serializer)
    }
}

impl Serialize for Policy {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        PolicyDump {
            name: &self.key.name,
            namespace: &self.key.namespace,
            scope: match self.scope {
                Scope::Global => "Global",
                Scope::Namespace => "Namespace",
                Scope::WorkloadSelector => "WorkloadSelector",
            },
            action: match self.action {
                Action::Allow => "Allow",
                Action::Deny => "Deny",
            },
            rules: &self.rules,
            dry_run: self.dry_run,
        }
        .serialize(serializer)
    }
}

impl Serialize for Rule {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.clauses.serialize(serializer)
    }
}

impl Serialize for Clause {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.matches.serialize(serializer)
    }
}

impl Serialize for Match {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        MatchDump {
            namespaces: &self.namespaces,
            not_namespaces: &self.not_namespaces,
            principals: &self.principals,
            not_principals: &self.not_principals,
            service_accounts: accounts(&self.service_accounts),
            not_service_accounts: accounts(&self.not_service_accounts),
            source_ips: texts(&self.source_ips),
            not_source_ips: texts(&self.not_source_ips),
            destination_ips: texts(&self.destination_ips),
            not_destination_ips: texts(&self.not_destination_ips),
            destination_ports: &self.destination_ports,
            not_destination_ports: &self.not_destination_ports,
        }
        .serialize(serializer)
    }
}

impl Serialize for StringMatch {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let (index, variant, text) = match self {
            Self::Exact(text) => (0, "Exact", text),
            Self::Prefix(text) => (1, "Prefix", text),
            Self::Suffix(text) => (2, "Suffix", text),
            // An object like the others: Istio's tools give up on the whole dump at a text here.
            Self::Presence => return serializer.serialize_newtype_variant("StringMatch", 3, "Presence", &[(); 0]),
        };
        serializer.serialize_newtype_variant("StringMatch", index, variant, &**text)
    }
}

impl<'a> ServiceDump<'a> {
    fn new(state: &'a MeshState, service: &'a Service) -> Self {
        let endpoints = state.endpoints(&service.key).iter().map(|workload| {
            let endpoint = EndpointDump {
                workload_uid: workload.uid.to_string(),
                port: workload.services.get(&service.key).map(ports).unwrap_or_default(),
                status: status(workload.status),
            };
            (workload.uid.to_string(), endpoint)
        });
        let weighted = service
            .weighted_waypoints
            .iter()
            .map(|waypoint| WeightedDump { destination: gateway(&waypoint.destination), weight: waypoint.weight });
        Self {
            name: &service.name,
            namespace: &service.key.namespace,
            hostname: &service.key.hostname,
            vips: texts(&service.addresses),
            ports: ports(&service.ports),
            endpoints: endpoints.collect(),
            subject_alt_names: texts(&service.subject_alt_names),
            waypoint: service.waypoint.as_ref().map(gateway),
            weighted_waypoints: weighted.collect(),
            load_balancer: balancer(&service.load_balancing),
            ip_families: match service.ip_families {
                IpFamilies::Automatic => None,
                IpFamilies::Ipv4Only => Some("IPv4"),
                IpFamilies::Ipv6Only => Some("IPv6"),
                IpFamilies::Dual => Some("Dual"),
            },
            canonical: service.canonical,
            visibility: match service.visibility {
                Visibility::Public => "Public",
                Visibility::Namespace => "Namespace",
            },
        }
    }
}

fn accounts(accounts: &[ServiceAccountMatch]) -> Vec<AccountDump<'_>> {
    accounts.iter().map(|of| AccountDump { namespace: &of.namespace, service_account: &of.service_account }).collect()
}

fn balancer(load_balancing: &LoadBalancing) -> Option<BalancerDump> {
    (*load_balancing != LoadBalancing::default()).then(|| BalancerDump {
        routing_preferences: load_balancing.routing_preference.iter().map(|scope| format!("{scope:?}")).collect(),
        mode: match load_balancing.mode {
            Mode::Unspecified => "Standard",
            Mode::Strict => "Strict",
            Mode::Failover => "Failover",
            Mode::Passthrough => "Passthrough",
        },
        health_policy: match load_balancing.health_policy {
            HealthPolicy::OnlyHealthy => "OnlyHealthy",
            HealthPolicy::AllowAll => "AllowAll",
        },
    })
}

fn gateway(gateway: &GatewayAddress) -> GatewayDump {
    let destination = match &gateway.destination {
        GatewayDestination::Hostname(name) => name.to_string(),
        GatewayDestination::Address(address) => address.to_string(),
    };
    GatewayDump { destination, hbone_mtls_port: gateway.hbone_mtls_port }
}

fn tunnel(tunnel: &ApplicationTunnel) -> TunnelDump {
    let protocol = match tunnel.protocol {
        ApplicationTunnelProtocol::None => "NONE",
        ApplicationTunnelProtocol::Proxy => "PROXY",
    };
    TunnelDump { protocol, port: tunnel.port }
}

/// A named port has the number 0, as on the wire.
fn ports(list: &PortList) -> BTreeMap<u16, u16> {
    list.ports.iter().map(|port| (port.service_port, port.target_port.unwrap_or_default())).collect()
}

fn status(status: HealthStatus) -> &'static str {
    match status {
        HealthStatus::Healthy => "Healthy",
        HealthStatus::Unhealthy => "Unhealthy",
    }
}

fn texts<T: ToString>(values: &[T]) -> Vec<String> {
    values.iter().map(ToString::to_string).collect()
}

fn is_false(value: &bool) -> bool {
    !value
}
