//! The published resources, and what of them differs from before.

use std::sync::Arc;

use aquifer_proto::security::Authorization;
use aquifer_proto::workload::{Address, Service, Workload, address};
use bytes::Bytes;
use prost::Message;

use super::{Batch, Change, Index, Item, Made, Published, ResourceKind, Table};
use crate::translate::{service, workload};

impl Index {
    pub(super) fn publish_policy(&mut self, item: Item, sent: Option<Authorization>, batch: &mut Batch) {
        let sent = sent.map(|policy| {
            let name = self.interner.string(&format!("{}/{}", policy.namespace, policy.name));
            (name, published(&policy, ResourceKind::Policy))
        });
        self.publish(item, sent.into_iter().collect(), true, batch);
    }

    pub(super) fn publish_workloads(
        &mut self,
        item: Item,
        workloads: impl IntoIterator<Item = Workload>,
        batch: &mut Batch,
    ) {
        let sent = workloads.into_iter().map(|workload| self.workload_resource(workload)).collect();
        self.publish(item, sent, false, batch);
    }

    pub(super) fn workload_resource(&mut self, workload: Workload) -> (Arc<str>, Published) {
        let name: Arc<str> = workload.uid.as_str().into();
        let aliases = workload::aliases(&workload);
        let follows = workload.services.keys().map(|service| self.interner.string(service)).collect();
        let node = self.interner.string(&workload.node);
        let message = Address { r#type: Some(address::Type::Workload(workload)) };
        (name, Published { aliases, follows, node, ..published(&message, ResourceKind::Workload) })
    }

    pub(super) fn service_resource(&mut self, service: Service, batch: &mut Batch) -> (Arc<str>, Published) {
        let name = self.interner.string(&format!("{}/{}", service.namespace, service.hostname));
        batch.claimed.insert(name.clone());
        let aliases = service::aliases(&service);
        let message = Address { r#type: Some(address::Type::Service(service)) };
        (name, Published { aliases, ..published(&message, ResourceKind::Service) })
    }

    /// Puts what an item makes now in the place of what it made before.
    pub(super) fn publish(
        &mut self,
        item: Item,
        resources: Vec<(Arc<str>, Published)>,
        policy: bool,
        batch: &mut Batch,
    ) {
        let (table, changes, gone) = if policy {
            (&mut self.authorizations, &mut batch.changes.authorizations, &mut batch.gone_authorizations)
        } else {
            (&mut self.addresses, &mut batch.changes.addresses, &mut batch.gone_addresses)
        };
        let mut now = Vec::with_capacity(resources.len());
        for (name, resource) in resources {
            if table.get(&name) != Some(&resource.body) {
                table.insert(name.clone(), resource.body.clone());
                changes.push(Change::Upsert(name.clone(), resource));
            }
            now.push(name);
        }
        let before = self.made.remove(&item);
        let before = before.as_ref().map(Made::names).unwrap_or_default();
        gone.extend(before.iter().filter(|name| !now.contains(name)).cloned());
        if let Some(made) = Made::of(now) {
            self.made.insert(item, made);
        }
    }

    /// Takes away what no item makes any more.
    pub(super) fn settle(&mut self, batch: &mut Batch) {
        let Batch { changes, claimed, gone_addresses, gone_authorizations } = batch;
        let addresses = gone_addresses.drain(..).filter(|name| !claimed.contains(name));
        remove(&mut self.addresses, addresses, &mut changes.addresses);
        remove(&mut self.authorizations, gone_authorizations.drain(..), &mut changes.authorizations);
    }
}

impl Made {
    fn of(mut names: Vec<Arc<str>>) -> Option<Self> {
        match names.len() {
            0 => None,
            1 => names.pop().map(Self::One),
            _ => Some(Self::Many(names.into())),
        }
    }

    fn names(&self) -> &[Arc<str>] {
        match self {
            Self::One(name) => std::slice::from_ref(name),
            Self::Many(names) => names,
        }
    }
}

fn remove(table: &mut Table, names: impl Iterator<Item = Arc<str>>, changes: &mut Vec<Change>) {
    for name in names {
        if table.remove(&name).is_some() {
            changes.push(Change::Remove(name));
        }
    }
}

fn published(message: &impl Message, kind: ResourceKind) -> Published {
    let body = Bytes::from(message.encode_to_vec());
    Published { body, kind, aliases: Vec::new(), follows: Vec::new(), node: Arc::default() }
}
