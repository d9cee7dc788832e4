//! Small workloads, services and states for tests.

pub(crate) mod any;

use std::{net::IpAddr, sync::Arc};

use crate::{
    address::{
        AppProtocol, GatewayAddress, GatewayDestination, NamespacedHostname, NetworkAddress, NetworkCidr, Port,
        PortList,
    },
    service::{IpFamilies, LoadBalancing, Service, Visibility},
    state::{MeshState, Update},
    workload::{Common, HealthStatus, Locality, NetworkMode, TunnelProtocol, Workload, WorkloadType},
};

pub(crate) fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

pub(crate) fn at(text: &str) -> NetworkAddress {
    NetworkAddress::new("", ip(text))
}

/// An HBONE pod of namespace `ns` on node `n1` with service account `<name>`.
pub(crate) fn pod(name: &str, addresses: &[&str]) -> Workload {
    Workload {
        uid: format!("Kubernetes//Pod/ns/{name}").into(),
        addresses: addresses.iter().map(|text| ip(text)).collect(),
        node: "n1".into(),
        common: Arc::new(Common {
            own_name: None,
            status: HealthStatus::Healthy,
            capacity: 1,
            namespace: "ns".into(),
            hostname: None,
            network: "".into(),
            network_mode: NetworkMode::Standard,
            network_gateway: None,
            tunnel_protocol: TunnelProtocol::Hbone,
            native_tunnel: false,
            same_node: false,
            application_tunnel: None,
            trust_domain: "cluster.local".into(),
            service_account: name.into(),
            waypoint: None,
            cluster_id: "Kubernetes".into(),
            locality: Locality::default(),
            canonical_name: name.into(),
            canonical_revision: "latest".into(),
            workload_type: WorkloadType::Pod,
            workload_name: name.into(),
            authorization_policies: vec![],
            services: Default::default(),
        }),
    }
}

impl Workload {
    /// The same but for what `change` does.
    pub(crate) fn with(mut self, change: impl FnOnce(&mut Self)) -> Self {
        change(&mut self);
        self
    }

    /// The same as an endpoint of `service`, with `ports` of its own.
    pub(crate) fn of(mut self, service: &str, ports: &[(u16, u16)]) -> Self {
        let others = self.services.iter().map(|(key, ports)| (key.clone(), ports.clone()));
        self.services = others.chain([(service.parse().unwrap(), port_list(ports))]).collect();
        self
    }
}

/// A service `<namespace>/<hostname>` with these VIPs, `ip` or `ip/len`; target port 0 = named.
pub(crate) fn service(key: &str, vips: &[&str], ports: &[(u16, u16)]) -> Service {
    let vip = |text: &&str| NetworkCidr { network: "".into(), cidr: text.parse().unwrap_or_else(|_| ip(text).into()) };
    Service {
        name: "svc".into(),
        key: key.parse().unwrap(),
        addresses: vips.iter().map(vip).collect(),
        ports: port_list(ports),
        subject_alt_names: vec![],
        waypoint: None,
        weighted_waypoints: vec![],
        load_balancing: LoadBalancing::default(),
        ip_families: IpFamilies::Automatic,
        canonical: false,
        ingress_use_waypoint: false,
        visibility: Visibility::Public,
    }
}

pub(crate) fn port_list(ports: &[(u16, u16)]) -> PortList {
    let port = |&(service_port, target): &(u16, u16)| Port {
        service_port,
        target_port: Some(target).filter(|port| *port != 0),
        app_protocol: AppProtocol::Unknown,
    };
    PortList { ports: ports.iter().map(port).collect() }
}

pub(crate) fn gateway_host(key: &str) -> GatewayAddress {
    let name: NamespacedHostname = key.parse().unwrap();
    GatewayAddress { destination: GatewayDestination::Hostname(name), hbone_mtls_port: 15008 }
}

pub(crate) fn gateway_ip(text: &str) -> GatewayAddress {
    GatewayAddress { destination: GatewayDestination::Address(at(text)), hbone_mtls_port: 15008 }
}

pub(crate) fn mesh(
    workloads: impl IntoIterator<Item = Workload>,
    services: impl IntoIterator<Item = Service>,
) -> MeshState {
    let mut state = MeshState::default();
    for workload in workloads {
        state.apply(Update::Workload(Arc::new(workload)));
    }
    for service in services {
        state.apply(Update::Service(Arc::new(service)));
    }
    state
}
