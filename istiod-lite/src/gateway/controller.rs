//! What the task knows: Gateways, and everything that says something about them. Pure; time passed in.
//!
//! ```text
//!   Event ──observe──▶ Controller ──turns──▶ a Gateway ──actions──▶ what writes say is needed
//! ```

mod observe;
mod turns;
mod writes;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use aquifer_objects::crds::gateway_api::{Gateway, GatewayClass};
use aquifer_objects::{Kind, Object, ObjectKey};
use k8s_openapi::api::core::v1::ConfigMap;
use serde_json::Value;
use tokio::time::Instant;

use self::writes::Applied;
use super::reconcile::{Action, Input, elsewhere, made_by, reconcile, service_named};
use super::render::{GATEWAY_NAME, Names};
use super::{CLASS_DEFAULTS, MANAGED, Settings, Told, class};
use crate::revision::{LABEL, Revision};
use crate::status::Condition;
use crate::translate::Labels;

/// The kinds that a Gateway becomes.
const CHILDREN: [Kind; 5] =
    [Kind::ServiceAccount, Kind::Deployment, Kind::Service, Kind::HorizontalPodAutoscaler, Kind::PodDisruptionBudget];
/// What is not seen through a watch is read again after this.
const REREAD: Duration = Duration::from_secs(30);

/// The state.
pub(super) struct Controller {
    settings: Settings,
    told: Told,
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
    namespace_labels: BTreeMap<Arc<str>, Labels>,
    applied: HashMap<ObjectKey, Applied>,
    rounds: HashMap<ObjectKey, (Instant, u32)>,
    due: BTreeSet<(Instant, ObjectKey)>,
    classes_due: bool,
    synced: bool,
}

impl Controller {
    /// Knows nothing yet.
    pub(super) fn new(settings: Settings, told: Told, revision: Revision, collects_garbage: bool) -> Self {
        Self {
            settings,
            told,
            revision,
            collects_garbage,
            gateways: BTreeMap::new(),
            classes: BTreeMap::new(),
            config_maps: BTreeMap::new(),
            children: BTreeMap::new(),
            strangers: BTreeMap::new(),
            read: HashMap::new(),
            ready: BTreeMap::new(),
            namespace_labels: BTreeMap::new(),
            applied: HashMap::new(),
            rounds: HashMap::new(),
            due: BTreeSet::new(),
            classes_due: true,
            synced: false,
        }
    }

    /// From now on waypoints are told this.
    pub(super) fn tell(&mut self, told: Told, now: Instant) {
        if self.told != told {
            tracing::info!(trust_domain = told.trust_domain, network = told.network, "told to waypoints");
            self.told = told;
            self.wake_where(now, |_| true);
        }
    }

    /// The ConfigMaps that Gateways name as their parameters.
    pub(super) fn parameters(&self) -> BTreeSet<ObjectKey> {
        self.gateways.values().filter_map(|gateway| parameters(gateway)).collect()
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

    /// Names in question that no watch shows and that were not read lately.
    pub(super) fn unread(&self, key: &ObjectKey, now: Instant) -> Vec<ObjectKey> {
        let mut names = Vec::new();
        if let Some(gateway) = self.gateways.get(key)
            && self.is_ours(key, gateway)
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
        if !self.is_ours(key, &gateway) {
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
        let actions = reconcile(&input, &self.settings, &self.told);
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

    /// Whether the Gateway is this revision's, and its namespace the mesh's.
    fn is_ours(&self, key: &ObjectKey, gateway: &Gateway) -> bool {
        let labels = self.namespace_labels.get(&key.namespace);
        let revision = labels.and_then(|labels| labels.get(LABEL)).map(String::as_str);
        self.revision.owns(gateway.metadata.labels.as_ref(), revision) && self.told.discovers(&key.namespace, labels)
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
}

fn parameters(gateway: &Gateway) -> Option<ObjectKey> {
    let reference = gateway.spec.infrastructure.as_ref()?.parameters_ref.as_ref()?;
    let namespace = gateway.metadata.namespace.as_deref().unwrap_or_default();
    (reference.kind == "ConfigMap").then(|| ObjectKey::new(Kind::ConfigMap, namespace, &reference.name))
}
