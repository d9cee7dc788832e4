//! Events in, and whom they concern.

use std::sync::Arc;

use aquifer_objects::crds::gateway_api::Gateway;
use aquifer_objects::{Event, Kind, Object, ObjectKey};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use tokio::time::Instant;

use super::{CHILDREN, Controller, parameters};
use crate::gateway::render::{GATEWAY_NAME, Names};
use crate::gateway::{CLASS_DEFAULTS, MANAGED};

impl Controller {
    /// Takes an event in.
    pub(in crate::gateway) fn take(&mut self, event: &Event, now: Instant) {
        match event {
            Event::Applied(object) => self.observed(object, now),
            Event::Deleted(key) => self.gone(key, now),
            Event::Synced => self.synced = true,
        }
    }

    fn observed(&mut self, object: &Object, now: Instant) {
        match object {
            Object::Gateway(gateway) => {
                self.gateways.insert(object.key(), Arc::clone(gateway));
                self.wake(object.key(), now);
            }
            Object::GatewayClass(class) => {
                self.classes.insert(object.name().into(), Arc::clone(class));
                self.classes_due = true;
                self.wake_where(now, |gateway| gateway.spec.gateway_class_name == object.name());
            }
            Object::ConfigMap(config) => {
                self.config_maps.insert(object.key(), Arc::clone(config));
                self.wake_users_of(&object.key(), object.label(CLASS_DEFAULTS), now);
            }
            Object::Namespace(_) => {
                let labels = object.meta().labels.clone().unwrap_or_default();
                let before = self.namespace_labels.insert(object.name().into(), labels.clone());
                if before != Some(labels) {
                    self.wake_where(now, |gateway| gateway.metadata.namespace.as_deref() == Some(object.name()));
                }
            }
            Object::EndpointSlice(slice) => self.slice(object.key(), Some(slice), now),
            _ if CHILDREN.contains(&object.kind()) => {
                let key = object.key();
                self.strangers.remove(&key);
                if object.label(MANAGED).is_some() {
                    self.children.insert(key, object.clone());
                } else {
                    self.children.remove(&key);
                    self.strangers.insert(key, object.clone());
                }
                self.wake_owner(object, now);
            }
            _ => {}
        }
    }

    fn gone(&mut self, key: &ObjectKey, now: Instant) {
        match key.kind {
            Kind::Gateway => {
                self.gateways.remove(key);
                self.rounds.remove(key);
                self.due.insert((now, key.clone()));
            }
            Kind::GatewayClass => {
                self.classes.remove(&key.name);
                self.classes_due = true;
                self.wake_where(now, |gateway| *gateway.spec.gateway_class_name == *key.name);
            }
            Kind::ConfigMap => {
                let config = self.config_maps.remove(key);
                let labels = config.as_ref().and_then(|config| config.metadata.labels.as_ref());
                let class = labels.and_then(|labels| labels.get(CLASS_DEFAULTS)).cloned();
                self.wake_users_of(key, class.as_deref(), now);
            }
            Kind::EndpointSlice => self.slice(key.clone(), None, now),
            Kind::Namespace => {
                self.namespace_labels.remove(&key.name);
            }
            _ => {
                self.applied.remove(key);
                self.strangers.remove(key);
                if let Some(object) = self.children.remove(key) {
                    self.wake_owner(&object, now);
                }
            }
        }
    }

    fn slice(&mut self, key: ObjectKey, slice: Option<&EndpointSlice>, now: Instant) {
        let service =
            slice.and_then(|slice| slice.metadata.labels.as_ref()?.get("kubernetes.io/service-name").cloned());
        let ready =
            slice.is_some_and(|slice| {
                slice.endpoints.iter().flatten().any(|endpoint| {
                    endpoint.conditions.as_ref().is_some_and(|conditions| conditions.ready.unwrap_or(true))
                })
            });
        let mut changed = Vec::new();
        self.ready.retain(|(namespace, name), slices| {
            if *namespace == key.namespace && slices.remove(&key.name) {
                changed.push(name.clone());
            }
            !slices.is_empty()
        });
        if let Some(service) = service.filter(|_| ready) {
            self.ready.entry((Arc::clone(&key.namespace), service.clone())).or_default().insert(Arc::clone(&key.name));
            changed.push(service);
        }
        for service in changed {
            let namespace = &*key.namespace;
            self.wake_where(now, |gateway| {
                gateway.metadata.namespace.as_deref() == Some(namespace) && Names::of(gateway).deployment == service
            });
        }
    }

    pub(super) fn wake(&mut self, key: ObjectKey, now: Instant) {
        self.due.insert((now, key));
    }

    pub(super) fn wake_where(&mut self, now: Instant, which: impl Fn(&Gateway) -> bool) {
        let keys: Vec<ObjectKey> =
            self.gateways.iter().filter(|(_, gateway)| which(gateway)).map(|(key, _)| key.clone()).collect();
        self.due.extend(keys.into_iter().map(|key| (now, key)));
    }

    fn wake_users_of(&mut self, config: &ObjectKey, class: Option<&str>, now: Instant) {
        let config = config.clone();
        self.wake_where(now, |gateway| {
            class == Some(gateway.spec.gateway_class_name.as_str()) || parameters(gateway).as_ref() == Some(&config)
        });
    }

    /// Whose it is: by its label, and by its name, which a Gateway may wait for.
    fn wake_owner(&mut self, object: &Object, now: Instant) {
        let (namespace, name) = (object.namespace().to_owned(), object.name().to_owned());
        let label = object.label(GATEWAY_NAME).map(str::to_owned);
        if let Some(owner) = &label {
            self.wake(ObjectKey::new(Kind::Gateway, &namespace, owner), now);
        }
        self.wake_where(now, |gateway| {
            let names = Names::of(gateway);
            gateway.metadata.namespace.as_deref() == Some(namespace.as_str())
                && (names.deployment == name || names.service_account == name)
        });
    }
}
