//! WorkloadEntry → istio.workload.Workload: a machine that Kubernetes does not know.

use std::net::IpAddr;
use std::sync::Arc;

use aquifer_objects::crds::{WorkloadEntry, WorkloadEntrySpec};
use aquifer_proto::workload::{Workload, WorkloadType};

use super::labels::{Interner, LabelSet};
use super::pod::{Tunnel, canonical_service, tunnel};
use super::service::{BackendPort, Target};
use super::status::is_ours;
use super::workload::{Backend, Standing, joined, set_tunnel, written_locality};
use super::{Mesh, address_bytes};

/// The facts of a WorkloadEntry.
#[derive(Clone, Debug, PartialEq)]
pub struct WorkloadEntryFacts {
    /// Its name.
    pub name: Arc<str>,
    /// Its namespace.
    pub namespace: Arc<str>,
    /// The object's labels and the entry's; the entry's win.
    pub labels: Arc<LabelSet>,
    /// Whether conditions of ours stand in its status.
    pub has_conditions: bool,
    spec: WorkloadEntrySpec,
    tunnel: Tunnel,
}

impl WorkloadEntryFacts {
    /// The facts of a WorkloadEntry.
    pub fn of(entry: &WorkloadEntry, interner: &mut Interner) -> Self {
        let mut labels = entry.metadata.labels.clone().unwrap_or_default();
        labels.extend(entry.spec.labels.clone());
        let labels = interner.labels(Some(&labels));
        let conditions = entry.status.as_ref().map(|status| status.conditions.as_slice()).unwrap_or_default();
        Self {
            name: interner.string(entry.metadata.name.as_deref().unwrap_or_default()),
            namespace: interner.string(entry.metadata.namespace.as_deref().unwrap_or_default()),
            tunnel: tunnel(&labels, entry.metadata.annotations.as_ref()),
            labels,
            has_conditions: conditions.iter().any(|condition| is_ours(&condition.type_)),
            spec: entry.spec.clone(),
        }
    }

    /// The resource.
    pub fn message(
        &self,
        services: &[Backend],
        policies: Vec<String>,
        standing: &Standing,
        mesh: &Mesh,
    ) -> Option<Workload> {
        let mut made = endpoint(&self.spec, &mesh.network, services, mesh)?;
        let workload_name = self.labels.said("service.istio.io/workload-name").unwrap_or(&self.name);
        (made.canonical_name, made.canonical_revision) = canonical_service(&self.labels, workload_name);
        made.workload_name = (**workload_name).to_owned();
        made.uid = format!("{}/networking.istio.io/WorkloadEntry/{}/{}", mesh.cluster_id, self.namespace, self.name);
        made.name = (*self.name).to_owned();
        made.namespace = (*self.namespace).to_owned();
        made.authorization_policies = policies;
        set_tunnel(&mut made, self.tunnel);
        standing.apply(&mut made);
        Some(made)
    }
}

/// What an endpoint says by itself, inside a ServiceEntry or as an object: all but its names. `None` for one that has
/// no address, or one that only its own machine can reach.
pub(super) fn endpoint(spec: &WorkloadEntrySpec, network: &str, services: &[Backend], mesh: &Mesh) -> Option<Workload> {
    let address = spec.address.as_deref().filter(|at| !at.is_empty() && !at.starts_with("unix://"))?;
    let ip: Option<IpAddr> = address.parse().ok();
    let network = spec.network.as_deref().filter(|own| !own.is_empty()).unwrap_or(network);
    Some(Workload {
        network: network.to_owned(),
        cluster_id: mesh.cluster_id.clone(),
        trust_domain: mesh.sent_trust_domain(),
        addresses: ip.map(address_bytes).into_iter().collect(),
        hostname: if ip.is_some() { String::new() } else { address.to_owned() },
        service_account: spec.service_account.clone().unwrap_or_default(),
        services: joined(services, |_, port| of_entry(spec, port)),
        locality: spec.locality.as_deref().and_then(written_locality),
        capacity: spec.weight.filter(|weight| *weight > 0),
        workload_type: WorkloadType::Pod.into(),
        ..Default::default()
    })
}

/// A named target must be among the entry's ports; else the port of the same name overrules the number.
fn of_entry(spec: &WorkloadEntrySpec, port: &BackendPort) -> Option<u32> {
    match &port.target {
        Target::Name(name) => spec.ports.get(&**name).copied(),
        Target::Number(number) => Some(spec.ports.get(&*port.name).copied().unwrap_or(*number)),
    }
}
