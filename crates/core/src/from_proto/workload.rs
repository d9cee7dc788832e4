//! Workloads.

use std::fmt;

use aquifer_proto::workload as wire;

use super::{ConversionError, Problem, each, error, gateway, ip, name, namespaced_hostname, or_default, port, ports};
use crate::{
    address::split_namespaced,
    intern::{intern, intern_common},
    policy::PolicyKey,
    workload::{
        ApplicationTunnel, ApplicationTunnelProtocol, Common, HealthStatus, Locality, NetworkMode, SAME_NODE_EXTENSION,
        TunnelProtocol, Uid, Workload, WorkloadType,
    },
};

pub(super) fn workload(w: &wire::Workload) -> Result<Workload, ConversionError> {
    name("namespace", &w.namespace)?;
    name("trust_domain", &w.trust_domain)?;
    name("service_account", &w.service_account)?;
    let services = w
        .services
        .iter()
        .map(|(key, list)| {
            let key = namespaced_hostname(&"services", key)?;
            let list = ports("ports", &list.ports).map_err(|e| e.within(format_args!("services[{key}]")))?;
            Ok((key, list))
        })
        .collect::<Result<_, _>>()?;
    let policy = |text: &String, at: &dyn fmt::Display| {
        let (namespace, name) = split_namespaced(text).map_err(|problem| error(at, Problem::NotNamespaced(problem)))?;
        Ok(PolicyKey { namespace: intern(namespace), name: intern(name) })
    };
    let locality = w.locality.as_ref().map(|l| Locality {
        region: intern(&l.region),
        zone: intern(&l.zone),
        subzone: intern(&l.subzone),
    });
    if w.uid.is_empty() {
        return Err(error("uid", Problem::Missing));
    }
    let uid = Uid::from(w.uid.as_str());
    let common = Common {
        own_name: (uid.last_segment() != w.name[..]).then(|| intern(&w.name)),
        capacity: w.capacity.unwrap_or(1),
        status: status(w.status)?,
        namespace: intern(&w.namespace),
        hostname: Some(w.hostname.as_str()).filter(|hostname| !hostname.is_empty()).map(Into::into),
        network: intern(&w.network),
        network_mode: network_mode(w.network_mode)?,
        network_gateway: w.network_gateway.as_ref().map(|g| gateway(&"network_gateway", g)).transpose()?,
        tunnel_protocol: tunnel_protocol(w.tunnel_protocol)?,
        native_tunnel: w.native_tunnel,
        same_node: w.extensions.iter().any(|extension| extension.name == SAME_NODE_EXTENSION),
        application_tunnel: w.application_tunnel.as_ref().map(application_tunnel).transpose()?,
        trust_domain: or_default(&w.trust_domain, "cluster.local"),
        service_account: or_default(&w.service_account, "default"),
        waypoint: w.waypoint.as_ref().map(|g| gateway(&"waypoint", g)).transpose()?,
        cluster_id: or_default(&w.cluster_id, "Kubernetes"),
        locality: locality.unwrap_or_default(),
        canonical_name: intern(&w.canonical_name),
        canonical_revision: intern(&w.canonical_revision),
        workload_type: workload_type(w.workload_type),
        workload_name: intern(&w.workload_name),
        authorization_policies: each("authorization_policies", &w.authorization_policies, policy)?,
        services,
    };
    Ok(Workload {
        uid,
        addresses: each("addresses", &w.addresses, |bytes, at| ip(at, bytes))?.into(),
        node: intern(&w.node),
        common: intern_common(common),
    })
}

fn tunnel_protocol(value: i32) -> Result<TunnelProtocol, ConversionError> {
    match wire::TunnelProtocol::try_from(value) {
        Ok(wire::TunnelProtocol::None) => Ok(TunnelProtocol::None),
        Ok(wire::TunnelProtocol::Hbone) => Ok(TunnelProtocol::Hbone),
        Ok(wire::TunnelProtocol::LegacyIstioMtls) => Err(error("tunnel_protocol", Problem::LegacyIstioMtls)),
        Err(_) => Err(error("tunnel_protocol", Problem::UnknownValue(value))),
    }
}

fn network_mode(value: i32) -> Result<NetworkMode, ConversionError> {
    match wire::NetworkMode::try_from(value) {
        Ok(wire::NetworkMode::Standard) => Ok(NetworkMode::Standard),
        Ok(wire::NetworkMode::HostNetwork) => Ok(NetworkMode::HostNetwork),
        Err(_) => Err(error("network_mode", Problem::UnknownValue(value))),
    }
}

fn status(value: i32) -> Result<HealthStatus, ConversionError> {
    match wire::WorkloadStatus::try_from(value) {
        Ok(wire::WorkloadStatus::Healthy) => Ok(HealthStatus::Healthy),
        Ok(wire::WorkloadStatus::Unhealthy) => Ok(HealthStatus::Unhealthy),
        Err(_) => Err(error("status", Problem::UnknownValue(value))),
    }
}

/// Only telemetry shows it: a kind that is not known here is no reason to lose the workload.
fn workload_type(value: i32) -> WorkloadType {
    match wire::WorkloadType::try_from(value) {
        Ok(wire::WorkloadType::Deployment) => WorkloadType::Deployment,
        Ok(wire::WorkloadType::Cronjob) => WorkloadType::CronJob,
        Ok(wire::WorkloadType::Job) => WorkloadType::Job,
        Ok(wire::WorkloadType::Pod) | Err(_) => WorkloadType::Pod,
    }
}

fn application_tunnel(tunnel: &wire::ApplicationTunnel) -> Result<ApplicationTunnel, ConversionError> {
    use wire::application_tunnel::Protocol;
    let protocol = match Protocol::try_from(tunnel.protocol) {
        Ok(Protocol::None) => ApplicationTunnelProtocol::None,
        Ok(Protocol::Proxy) => ApplicationTunnelProtocol::Proxy,
        Err(_) => return Err(error("application_tunnel.protocol", Problem::UnknownValue(tunnel.protocol))),
    };
    let port = Some(port(&"application_tunnel.port", tunnel.port)?).filter(|port| *port != 0);
    Ok(ApplicationTunnel { protocol, port })
}
