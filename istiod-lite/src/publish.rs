//! From the object stream to the published resources: one task that owns the index.
//!
//! ```text
//!   Event ──► pods (at once) ──► Index::apply ──debounce──► Index::flush ──► ResourceSet ──► Publisher
//!                                                                      └──► conditions ──► StatusQueue
//! ```

use std::collections::BTreeSet;
use std::sync::Arc;

use aquifer_objects::{Event, Kind, Object, ObjectKey, Watch};
use aquifer_proto::type_url::{ADDRESS, AUTHORIZATION};
use aquifer_proto::workload::{Address, address};
use aquifer_runtime::Cancel;
use aquifer_xds::resource::{Resource, ResourceSet};
use aquifer_xds::server::{Publisher, Source as _};
use prost::Message as _;
use tokio::time::Instant;

use crate::ca::pods::{PodFacts, PodWriter};
use crate::config::MeshConfig;
use crate::debounce::Debounce;
use crate::index::{Change, Changes, Dirty, Index, Published};
use crate::metrics::{PushMetrics, type_label};
use crate::revision::Revision;
use crate::status::{self, Condition, StatusQueue};
use crate::translate::Mesh;

/// At most so many events are taken at once, so that a storm cannot starve the publication.
const BATCH: usize = 1024;

/// The task's state.
pub struct Publish {
    index: Index,
    pods: PodWriter,
    publisher: Publisher,
    status: StatusQueue,
    metrics: PushMetrics,
    debounce: Debounce,
    synced: bool,
    revision: Revision,
    services: BTreeSet<Arc<str>>,
}

impl Publish {
    /// A publisher of nothing yet.
    pub fn new(
        config: &MeshConfig,
        pods: PodWriter,
        publisher: Publisher,
        status: StatusQueue,
        metrics: PushMetrics,
    ) -> Self {
        let mesh = Mesh {
            cluster_id: config.cluster_id.clone(),
            trust_domain: config.trust_domain.clone(),
            root_namespace: config.root_namespace.clone(),
            domain: config.cluster_domain.clone(),
            network: String::new(),
            same_node: config.same_node,
        };
        Self {
            index: Index::new(mesh),
            pods,
            publisher,
            status,
            metrics,
            debounce: Debounce::default(),
            synced: false,
            revision: config.revision.clone(),
            services: BTreeSet::new(),
        }
    }

    /// Follows `watch` until the drain. `when_synced` is called once, after the first publication.
    pub async fn run(mut self, mut watch: Watch, when_synced: impl FnOnce(), cancel: &Cancel) {
        let mut when_synced = Some(when_synced);
        loop {
            let due = self.debounce.due().filter(|_| self.synced);
            let event = tokio::select! {
                biased; // The end first, then what is due: steady change must not put it off.
                () = cancel.drained() => return,
                () = sleep_until(due) => {
                    self.publish();
                    continue;
                }
                event = watch.next() => event,
            };
            let Some(event) = event else {
                tracing::error!("the manifests are no longer watched; what is published stays");
                return cancel.drained().await;
            };
            let mut next = Some(event);
            for _ in 0..BATCH {
                let Some(event) = next else { break };
                self.take(event);
                next = watch.try_next();
            }
            if let Some(event) = next {
                self.take(event);
            }
            if self.synced
                && let Some(when_synced) = when_synced.take()
            {
                self.publish();
                when_synced();
            }
        }
    }

    fn take(&mut self, event: Event) {
        match &event {
            Event::Applied(object) => {
                self.metrics.inbound_updates.get_or_create(&type_label(object.kind().as_str())).inc();
                self.remember(object);
            }
            Event::Deleted(key) => {
                self.metrics.inbound_updates.get_or_create(&type_label(key.kind.as_str())).inc();
                self.forget(key);
            }
            Event::Synced => self.synced = true,
        }
        // To us, what is for another revision does not exist.
        let event = match event {
            Event::Applied(object) if !self.revision.reads(&object) => Event::Deleted(object.key()),
            event => event,
        };
        if self.index.apply(event) == Dirty::Yes {
            self.debounce.changed(Instant::now());
        }
    }

    fn remember(&mut self, object: &Object) {
        match object {
            Object::Pod(pod) => self.pods.upsert(object.namespace(), object.name(), PodFacts::of(pod)),
            _ if status::has_status(object.kind()) => self.status.observed(object),
            _ => {}
        }
    }

    fn forget(&mut self, key: &ObjectKey) {
        match key.kind {
            Kind::Pod => self.pods.remove(&key.namespace, &key.name),
            kind if status::has_status(kind) => self.status.forget(key),
            _ => {}
        }
    }

    /// Translates what changed and hands it out.
    fn publish(&mut self) {
        let started = Instant::now();
        let changes = self.index.flush();
        self.metrics.translate_time.observe(started.elapsed().as_secs_f64());
        self.report(&changes);
        let mut set = (*self.publisher.snapshot()).clone();
        let addresses = self.change(&mut set, ADDRESS, changes.addresses);
        let authorizations = self.change(&mut set, AUTHORIZATION, changes.authorizations);
        let waited = self.debounce.published(Instant::now());
        if addresses + authorizations == 0 {
            return;
        }
        self.publisher.publish(set);
        self.metrics.debounce_time.observe(waited.as_secs_f64());
        self.metrics.services.set(self.services.len() as i64);
        tracing::debug!(addresses, authorizations, ?waited, "resources published");
    }

    fn change(&mut self, set: &mut ResourceSet, type_url: &str, changes: Vec<Change>) -> usize {
        let mut changed = 0;
        for change in changes {
            changed += usize::from(match change {
                Change::Upsert(name, published) => {
                    let resource = self.resource(type_url, name, published);
                    set.upsert(resource)
                }
                Change::Remove(name) => {
                    self.services.remove(&name);
                    set.remove(type_url, &name)
                }
            });
        }
        if changed > 0 {
            let short = type_url.rsplit('.').next().unwrap_or_default().to_ascii_lowercase();
            self.metrics.push_triggers.get_or_create(&type_label(short)).inc();
        }
        changed
    }

    fn resource(&mut self, type_url: &str, name: Arc<str>, published: Published) -> Resource {
        let message = (type_url == ADDRESS).then(|| Address::decode(published.body.clone()).ok()).flatten();
        let resource =
            Resource::from_bytes(type_url, name.clone(), published.body.to_vec()).with_aliases(published.aliases);
        match message.and_then(|m| m.r#type) {
            Some(address::Type::Workload(workload)) => {
                let follows = workload.services.into_keys().map(Into::into).collect();
                resource.with_follows(follows).with_node(workload.node)
            }
            Some(address::Type::Service(_)) => {
                self.services.insert(name);
                resource
            }
            None => resource,
        }
    }

    /// What the translation has to say of what users wrote.
    fn report(&mut self, changes: &Changes) {
        for (key, conditions) in &changes.statuses {
            self.status.conditions(key, conditions.iter().map(Condition::from).collect());
        }
    }
}

async fn sleep_until(due: Option<Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due).await,
        None => std::future::pending().await,
    }
}
