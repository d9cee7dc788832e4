//! What the task knows: Gateways, and everything that says something about them. Pure; time passed in.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use aquifer_objects::crds::gateway_api::{Gateway, GatewayClass};
use aquifer_objects::{Event, Kind, Object, ObjectKey};
use k8s_openapi::api::core::v1::ConfigMap;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use serde_json::Value;
use tokio::time::Instant;

use super::reconcile::{Action, Input, elsewhere, made_by, reconcile, service_named};
use super::render::{GATEWAY_NAME, Names};
use super::{CLASS_DEFAULTS, MANAGED, Settings, class};
use crate::revision::Revision;
use crate::status::Condition;

/// The kinds that a Gateway becomes.
const CHILDREN: [Kind; 5] =
    [Kind::ServiceAccount, Kind::Deployment, Kind::Service, Kind::HorizontalPodAutoscaler, Kind::PodDisruptionBudget];
/// An own write takes so long at most to come back as an event.
const ECHO: Duration = Duration::from_secs(5);
/// So many rounds of one Gateway in [`WINDOW`] before it has to wait: somebody fights us.
const ROUNDS: u32 = 100;
const WINDOW: Duration = Duration::from_secs(30);
/// What is not seen through a watch is read again after this.
const REREAD: Duration = Duration::from_secs(30);

/// The state.
pub(super) struct Controller {
    settings: Settings,
    revision: Revision,
    /// Whether nobody else removes what a deleted Gateway leaves behind.
    collects_garbage: bool,
    gateways: BTreeMap<ObjectKey, Arc<Gateway>>,
    classes: BTreeMap<Arc<str>, Arc<GatewayClass>>,
    config_maps: BTreeMap<ObjectKey, Arc<ConfigMap>>,
    children: BTreeMap<ObjectKey, Object>,
    /// Objects without our label under names that we would use, as they were when last read.
    strangers: BTreeMap<ObjectKey, Object>,
    /// When each name was last read.
    read: HashMap<ObjectKey, Instant>,
    /// Ready endpoints by Service: the slices that have some.
    ready: BTreeMap<(Arc<str>, String), BTreeSet<Arc<str>>>,
    namespace_revisions: BTreeMap<Arc<str>, String>,
    applied: HashMap<ObjectKey, Applied>,
    rounds: HashMap<ObjectKey, (Instant, u32)>,
    due: BTreeSet<(Instant, ObjectKey)>,
    classes_due: bool,
    synced: bool,
}

/// What we last applied to an object.
struct Applied {
    content: u64,
    at: Instant,
    /// What stood when it came back.
    stands: Option<u64>,
}

impl Controller {
    /// Knows nothing yet.
    pub(super) fn new(settings: Settings, revision: Revision, collects_garbage: bool) -> Self {
        Self {
            settings,
            revision,
            collects_garbage,
            gateways: BTreeMap::new(),
            classes: BTreeMap::new(),
            config_maps: BTreeMap::new(),
            children: BTreeMap::new(),
            strangers: BTreeMap::new(),
            read: HashMap::new(),
            ready: BTreeMap::new(),
            namespace_revisions: BTreeMap::new(),
            applied: HashMap::new(),
            rounds: HashMap::new(),
            due: BTreeSet::new(),
            classes_due: true,
            synced: false,
        }
    }

    /// Takes an event in.
    pub(super) fn take(&mut self, event: &Event, now: Instant) {
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
                let label = object.label(crate::revision::LABEL).map(str::to_owned);
                let before = match label.clone() {
                    Some(revision) => self.namespace_revisions.insert(object.name().into(), revision),
                    None => self.namespace_revisions.remove(object.name()),
                };
                if before != label {
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
                self.namespace_revisions.remove(&key.name);
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

    fn wake(&mut self, key: ObjectKey, now: Instant) {
        self.due.insert((now, key));
    }

    fn wake_where(&mut self, now: Instant, which: impl Fn(&Gateway) -> bool) {
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

    /// The ConfigMaps that Gateways name as their parameters.
    pub(super) fn parameters(&self) -> BTreeSet<ObjectKey> {
        self.gateways.values().filter_map(|gateway| parameters(gateway)).collect()
    }

    /// When there is something to do; nothing before everything was seen.
    pub(super) fn next_due(&self, now: Instant) -> Option<Instant> {
        if !self.synced {
            return None;
        }
        if self.classes_due { Some(now) } else { self.due.first().map(|(at, _)| *at) }
    }

    /// Classes to make, and what is said on those that stand. Once for every change of them.
    pub(super) fn classes(&mut self) -> (Vec<Value>, Vec<(Object, Vec<Condition>)>) {
        if !std::mem::replace(&mut self.classes_due, false) || !self.revision.is_default() {
            return (Vec::new(), Vec::new());
        }
        let missing = class::missing(|name| self.classes.contains_key(name));
        let told = self.classes.values().filter_map(|class| {
            class::conditions(class).map(|conditions| (Object::GatewayClass(Arc::clone(class)), conditions))
        });
        (missing, told.collect())
    }

    /// The Gateway whose turn it is, if any. Who comes too often waits.
    pub(super) fn next(&mut self, now: Instant) -> Option<ObjectKey> {
        loop {
            let (at, _) = self.due.first()?;
            if *at > now {
                return None;
            }
            let (_, key) = self.due.pop_first()?;
            self.due.retain(|(_, other)| *other != key);
            let (since, rounds) = self.rounds.entry(key.clone()).or_insert((now, 0));
            if now - *since > WINDOW {
                (*since, *rounds) = (now, 0);
            }
            *rounds += 1;
            if *rounds <= ROUNDS {
                return Some(key);
            }
            if *rounds == ROUNDS + 1 {
                tracing::warn!(gateway = %key, "changes all the time; it is looked at every {WINDOW:?} until it rests");
            }
            self.due.insert((*since + WINDOW + Duration::from_millis(1), key));
        }
    }

    /// It is to be looked at again after `pause`.
    pub(super) fn again(&mut self, key: &ObjectKey, now: Instant, pause: Duration) {
        self.due.insert((now + pause, key.clone()));
    }

    /// Names in question that no watch shows and that were not read lately.
    pub(super) fn unread(&self, key: &ObjectKey, now: Instant) -> Vec<ObjectKey> {
        let mut names = Vec::new();
        if let Some(gateway) = self.gateways.get(key)
            && self.revision.owns(gateway.metadata.labels.as_ref(), self.namespace_revision(key))
            && class::role(&gateway.spec.gateway_class_name, self.class_of(gateway).map(|class| &**class))
                == class::Role::Waypoint
        {
            names = self.names_in_question(gateway);
            names.retain(|name| !self.children.contains_key(name));
            names.retain(|name| self.read.get(name).is_none_or(|at| now - *at > REREAD));
        }
        names
    }

    fn names_in_question(&self, gateway: &Gateway) -> Vec<ObjectKey> {
        let namespace = gateway.metadata.namespace.as_deref().unwrap_or_default();
        if let Some(host) = elsewhere(gateway) {
            let service = service_named(host, namespace, &self.settings.cluster_domain);
            return service
                .map(|(namespace, name)| ObjectKey::new(Kind::Service, &namespace, &name))
                .into_iter()
                .collect();
        }
        let names = Names::of(gateway);
        let name = |kind| if kind == Kind::ServiceAccount { &names.service_account } else { &names.deployment };
        // Autoscalers and budgets are made at the user's wish only; who has one of that name is asked when it comes up.
        CHILDREN.iter().map(|kind| ObjectKey::new(*kind, namespace, name(*kind))).collect()
    }

    /// What stands under a name in question, as it was just read.
    pub(super) fn was_read(&mut self, key: ObjectKey, object: Option<Object>, now: Instant) {
        self.read.insert(key.clone(), now);
        match object {
            // The watch has not shown it yet, or its label was just taken away.
            Some(object) => {
                self.strangers.insert(key, object);
            }
            None => {
                self.strangers.remove(&key);
            }
        }
    }

    /// What is to be done about a Gateway, without what stands already.
    pub(super) fn actions(&mut self, key: &ObjectKey, now: Instant) -> Vec<Action> {
        let Some(gateway) = self.gateways.get(key).cloned() else {
            return self.orphans(key);
        };
        if !self.revision.owns(gateway.metadata.labels.as_ref(), self.namespace_revision(key)) {
            return Vec::new();
        }
        let class = self.class_of(&gateway).cloned();
        let mine = self.children.values().filter(|object| object.namespace() == &*key.namespace);
        let mine = mine.filter(|object| made_by(object, &gateway));
        let mut observed: Vec<Object> = mine.cloned().collect();
        for name in self.names_in_question(&gateway) {
            let object = self.children.get(&name).or_else(|| self.strangers.get(&name));
            if let Some(object) = object.filter(|object| !observed.iter().any(|seen| seen.key() == object.key())) {
                observed.push(object.clone());
            }
        }
        let service = Names::of(&gateway).deployment;
        let defaults = self.defaults(&gateway.spec.gateway_class_name);
        let parameters = parameters(&gateway).and_then(|key| self.config_maps.get(&key).cloned());
        let input = Input {
            gateway: &gateway,
            class: class.as_deref(),
            defaults: defaults.as_deref(),
            parameters: parameters.as_deref(),
            observed: &observed,
            endpoint_ready: self.ready.contains_key(&(Arc::clone(&key.namespace), service)),
        };
        let actions = reconcile(&input, &self.settings);
        actions.into_iter().filter(|action| self.is_needed(action, now)).collect()
    }

    /// What a Gateway that is gone has left.
    fn orphans(&self, key: &ObjectKey) -> Vec<Action> {
        if !self.collects_garbage {
            return Vec::new();
        }
        let left = self.children.values().filter(|object| {
            object.namespace() == &*key.namespace
                && object.label(GATEWAY_NAME) == Some(&*key.name)
                && object.label(MANAGED) == Some(super::render::MANAGED_BY)
                && object.meta().owner_references.iter().flatten().any(|owner| *owner.name == *key.name)
        });
        left.map(|object| Action::Delete(object.key(), object.meta().uid.clone())).collect()
    }

    /// Objects whose Gateway went while nobody looked.
    pub(super) fn orphaned(&self) -> Vec<ObjectKey> {
        let owner =
            |object: &Object| Some(ObjectKey::new(Kind::Gateway, object.namespace(), object.label(GATEWAY_NAME)?));
        let owners: BTreeSet<ObjectKey> = self.children.values().filter_map(owner).collect();
        owners.into_iter().filter(|key| !self.gateways.contains_key(key)).collect()
    }

    fn class_of(&self, gateway: &Gateway) -> Option<&Arc<GatewayClass>> {
        self.classes.get(gateway.spec.gateway_class_name.as_str())
    }

    fn namespace_revision(&self, key: &ObjectKey) -> Option<&str> {
        self.namespace_revisions.get(&key.namespace).map(String::as_str)
    }

    /// The oldest overlay of a class.
    fn defaults(&self, class: &str) -> Option<Arc<ConfigMap>> {
        let of_class = self.config_maps.iter().filter(|(key, config)| {
            let label = config.metadata.labels.as_ref().and_then(|labels| labels.get(CLASS_DEFAULTS));
            *key.namespace == *self.settings.root_namespace && label.is_some_and(|label| label == class)
        });
        let age = |config: &ConfigMap| config.metadata.creation_timestamp.as_ref().map(|time| time.0);
        of_class.min_by_key(|(key, config)| (age(config), (*key).clone())).map(|(_, config)| Arc::clone(config))
    }

    fn is_needed(&mut self, action: &Action, now: Instant) -> bool {
        let Action::Apply(key, object) = action else { return true };
        let stands = self.children.get(key).map(fingerprint);
        let Some(applied) = self.applied.get_mut(key) else { return true };
        if applied.content != content(object) {
            return true;
        }
        match (stands, applied.stands) {
            (None, _) => now - applied.at > ECHO,
            (Some(stands), None) => {
                applied.stands = Some(stands);
                false
            }
            (Some(stands), Some(before)) => stands != before,
        }
    }

    /// It was applied.
    pub(super) fn applied(&mut self, key: &ObjectKey, object: &Value, now: Instant) {
        self.applied.insert(key.clone(), Applied { content: content(object), at: now, stands: None });
    }
}

fn parameters(gateway: &Gateway) -> Option<ObjectKey> {
    let reference = gateway.spec.infrastructure.as_ref()?.parameters_ref.as_ref()?;
    let namespace = gateway.metadata.namespace.as_deref().unwrap_or_default();
    (reference.kind == "ConfigMap").then(|| ObjectKey::new(Kind::ConfigMap, namespace, &reference.name))
}

/// A hash of what we say; the uid is a condition, not content.
fn content(object: &Value) -> u64 {
    let mut object = object.clone();
    if let Some(metadata) = object["metadata"].as_object_mut() {
        metadata.remove("uid");
    }
    hash(&object)
}

/// A hash of what stands, as far as it is somebody's wish.
fn fingerprint(object: &Object) -> u64 {
    let mut json = object.to_json();
    if let Some(fields) = json.as_object_mut() {
        fields.remove("status");
    }
    if let Some(metadata) = json["metadata"].as_object_mut() {
        metadata
            .retain(|key, _| ["labels", "annotations", "ownerReferences", "uid", "generation"].contains(&key.as_str()));
        // The Deployment's controller counts its rollouts here.
        if let Some(annotations) = metadata.get_mut("annotations").and_then(Value::as_object_mut) {
            annotations.remove("deployment.kubernetes.io/revision");
        }
    }
    hash(&json)
}

fn hash(value: &Value) -> u64 {
    xxhash_rust::xxh64::xxh64(value.to_string().as_bytes(), 0)
}
