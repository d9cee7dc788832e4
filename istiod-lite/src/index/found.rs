//! What became of what policies and routes are for, and what is said of each object.

use aquifer_objects::ObjectKey;
use aquifer_objects::crds::PolicyCondition;

use super::{Batch, Index};
use crate::translate::gateway::MESH_CONTROLLER;
use crate::translate::status::{Found, Subject};
use crate::translate::waypoint::{Binding, Key};

impl Index {
    /// What became of what a policy or a route is for.
    pub(super) fn found(&self, subject: &Subject) -> Found {
        let through = |binding: Binding| binding.waypoint.map_or(Found::Unbound, |at| Found::Bound(shown(&at.key)));
        let missing = Found::Missing;
        match subject {
            Subject::Service(key) => {
                let service = self.space(key).and_then(|space| space.services.get(&key.1));
                service.map_or(missing, |service| through(self.bound_service(service)))
            }
            Subject::ServiceEntry(key) => {
                let entry = self.space(key).and_then(|space| space.entries.get(&key.1));
                entry.map_or(missing, |entry| through(self.bound_entry(entry)))
            }
            Subject::Host(host) => {
                let wanting = self.objects.hosts.get(host).into_iter().flatten();
                let found = wanting.map(|key| self.found(&Subject::ServiceEntry(key.clone())));
                found
                    .filter(|found| *found != Found::Missing)
                    .max_by_key(|found| *found != Found::Unbound)
                    .unwrap_or(missing)
            }
            Subject::Gateway(key) => {
                let Some(gateway) = self.objects.gateways.get(key) else { return missing };
                match self.controls(&gateway.spec.gateway_class_name) {
                    None => missing,
                    Some(false) => Found::Wrong(format!("Gateway {} is not a waypoint", shown(key))),
                    Some(true) if self.objects.waypoints.contains_key(key) => Found::Bound(shown(key)),
                    Some(true) => missing,
                }
            }
            Subject::GatewayClass(name) => match self.controls(name) {
                None => missing,
                Some(true) => Found::Bound((**name).to_owned()),
                Some(false) => {
                    Found::Wrong(format!("GatewayClass must use controller name `{MESH_CONTROLLER}` for waypoints"))
                }
            },
            Subject::Delegate(key) => {
                let by = self.objects.delegators.get(key).and_then(|all| all.first());
                by.map_or(missing, |by| Found::Bound(shown(by)))
            }
        }
    }

    /// Whether Gateways of a class are waypoints of ours; `None` if there is no such class.
    fn controls(&self, class: &str) -> Option<bool> {
        Some(self.objects.gateway_classes.get(class)?.spec.controller_name == MESH_CONTROLLER)
    }

    /// Keeps the conditions of an object. `stale`: conditions of ours stand there, so that none must be said as well.
    pub(super) fn report(&mut self, key: ObjectKey, conditions: Vec<PolicyCondition>, stale: bool, batch: &mut Batch) {
        let wanted = (stale || !conditions.is_empty()).then_some(conditions);
        if self.statuses.get(&key) == wanted.as_ref() {
            return;
        }
        match &wanted {
            Some(conditions) => self.statuses.insert(key.clone(), conditions.clone()),
            None => self.statuses.remove(&key),
        };
        batch.changes.statuses.push((key, wanted.unwrap_or_default()));
    }
}

fn shown((namespace, name): &Key) -> String {
    format!("{namespace}/{name}")
}
