//! `/debug/registryz`: the services as proxies know them, in the shape of Istio's page as far as ambient has the like.

use std::net::IpAddr;

use aquifer_proto::type_url::ADDRESS;
use aquifer_proto::workload::{Address, Service, address};
use aquifer_xds::resource::TypeSet;
use aquifer_xds::server::{Publisher, Source as _};
use prost::Message as _;
use serde_json::{Value, json};

pub(super) fn page(publisher: &Publisher) -> Value {
    let set = publisher.snapshot();
    let all = set.of_type(ADDRESS).into_iter().flat_map(TypeSet::iter);
    let mut services: Vec<Service> = all
        .filter_map(|resource| match Address::decode(resource.body.clone()).ok()?.r#type? {
            address::Type::Service(service) => Some(service),
            address::Type::Workload(_) => None,
        })
        .collect();
    services.sort_by(|a, b| (&a.namespace, &a.hostname).cmp(&(&b.namespace, &b.hostname)));
    Value::Array(services.iter().map(service).collect())
}

fn service(service: &Service) -> Value {
    let addresses: Vec<String> =
        service.addresses.iter().filter_map(|a| ip(&a.address)).map(|ip| ip.to_string()).collect();
    let ports: Vec<Value> = service
        .ports
        .iter()
        .map(|port| json!({ "port": port.service_port, "targetPort": port.target_port, "protocol": "TCP" }))
        .collect();
    json!({
        "Attributes": { "Name": service.name, "Namespace": service.namespace },
        "hostname": service.hostname,
        "ports": ports,
        "clusterVIPs": { "Addresses": { "": addresses } },
        "defaultAddress": addresses.first(),
        "subjectAltNames": service.subject_alt_names,
    })
}

fn ip(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => <[u8; 4]>::try_from(bytes).ok().map(IpAddr::from),
        16 => <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from),
        _ => None,
    }
}
