//! From the object stream to the published resources: one task that owns the index.
//!
//! ```text
//!   Event ──► pods (at once) ──► Index::apply ──debounce──► Index::flush ──► ResourceSet ──► Publisher
//!                                                                      └──► conditions ──► StatusQueue
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use aquifer_objects::crds::ServiceAddress;
use aquifer_objects::{Event, Kind, Object, ObjectKey, Watch};
use aquifer_proto::type_url::{ADDRESS, AUTHORIZATION};
use aquifer_runtime::Cancel;
use aquifer_xds::resource::{Resource, ResourceSet};
use aquifer_xds::server::Publisher;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use crate::ca::pods::{PodFacts, PodWriter};
use crate::ca::trust_domain::TrustDomains;
use crate::config::MeshConfig;
use crate::debounce::Debounce;
use crate::debug::Question;
use crate::follow::Follow;
use crate::gateway::Told;
use crate::index::{Change, Changes, Dirty, Index, Published, ResourceKind};
use crate::metrics::{PushMetrics, type_label};
use crate::revision::{DEFAULT, Revision};
use crate::status::{self, Condition, StatusQueue};
use crate::translate::Mesh;

/// At most so many events are taken at once, so that a storm cannot starve the publication.
const BATCH: usize = 1024;

/// The task's state.
pub struct Publish {
    index: Index,
    follow: Follow,
    pods: PodWriter,
    publisher: Publisher,
    status: StatusQueue,
    metrics: PushMetrics,
    debounce: Debounce,
    synced: bool,
    revision: Revision,
    services: BTreeSet<Arc<str>>,
    /// What users wrote for the mesh, for a debug page.
    configs: BTreeMap<ObjectKey, Object>,
    /// Who asks for it.
    questions: Option<mpsc::Receiver<Question>>,
    /// Who makes waypoints.
    tell: Option<watch::Sender<Option<Told>>>,
}

impl Publish {
    /// A publisher of nothing yet.
    pub fn new(
        config: &MeshConfig,
        trust_domains: TrustDomains,
        pods: PodWriter,
        publisher: Publisher,
        status: StatusQueue,
        metrics: PushMetrics,
    ) -> Self {
        let mesh = Mesh {
            cluster_id: config.cluster_id.clone(),
            trust_domain: config.trust_domain.clone(),
            root_namespace: config.root_namespace.clone(),
            system_namespace: config.root_namespace.clone(),
            domain: config.cluster_domain.clone(),
            same_node: config.same_node,
            allow_waypoints: config.allow_waypoints,
            // As the installers name it: `istio`, or `istio-<revision>`.
            config_map: match config.revision.name() {
                DEFAULT => "istio".to_owned(),
                revision => format!("istio-{revision}"),
            },
            ..Mesh::default()
        };
        Self {
            index: Index::new(mesh),
            follow: Follow::new(config, trust_domains),
            pods,
            publisher,
            status,
            metrics,
            debounce: Debounce::default(),
            synced: false,
            revision: config.revision.clone(),
            services: BTreeSet::new(),
            configs: BTreeMap::new(),
            questions: None,
            tell: None,
        }
    }

    /// Says what waypoints are told, from the first publication on.
    #[must_use]
    pub fn telling(mut self, tell: watch::Sender<Option<Told>>) -> Self {
        self.tell = Some(tell);
        self
    }

    /// Answers a debug page.
    #[must_use]
    pub fn with_questions(mut self, questions: mpsc::Receiver<Question>) -> Self {
        self.questions = Some(questions);
        self
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
                question = asked(&mut self.questions) => {
                    if let Some(question) = question {
                        // Who has given up waiting needs no answer.
                        let _ = question.send(self.configs.values().cloned().collect());
                    } else {
                        self.questions = None;
                    }
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
        if is_config(object.kind()) {
            self.configs.insert(object.key(), object.clone());
        }
        match object {
            Object::Pod(pod) => self.pods.upsert(object.namespace(), object.name(), PodFacts::of(pod)),
            _ if status::is_of_interest(object.kind()) => self.status.observed(object),
            _ => {}
        }
    }

    fn forget(&mut self, key: &ObjectKey) {
        self.configs.remove(key);
        match key.kind {
            Kind::Pod => self.pods.remove(&key.namespace, &key.name),
            kind if status::is_of_interest(kind) => self.status.forget(key),
            _ => {}
        }
    }

    /// Translates what changed and hands it out.
    fn publish(&mut self) {
        let started = Instant::now();
        let changes = self.index.flush();
        self.metrics.translate_time.observe(started.elapsed().as_secs_f64());
        self.report(&changes);
        let (mut addresses, mut authorizations) = (0, 0);
        // Roots are published beside us.
        self.publisher.clone().update(|set| {
            addresses = self.change(set, ADDRESS, changes.addresses);
            authorizations = self.change(set, AUTHORIZATION, changes.authorizations);
            addresses + authorizations > 0
        });
        let waited = self.debounce.published(Instant::now());
        if addresses + authorizations == 0 {
            return;
        }
        self.metrics.debounce_time.observe(waited.as_secs_f64());
        self.metrics.services.set(self.services.len() as i64);
        tracing::debug!(addresses, authorizations, ?waited, "resources published");
    }

    fn change(&mut self, set: &mut ResourceSet, type_url: &str, changes: Vec<Change>) -> usize {
        let mut changed = 0;
        // One copy for all of them.
        let own: Arc<str> = set.of_type(type_url).map_or_else(|| type_url.into(), |of| Arc::clone(of.type_url()));
        for change in changes {
            changed += usize::from(match change {
                Change::Upsert(name, published) => {
                    let resource = self.resource(Arc::clone(&own), name, published);
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

    fn resource(&mut self, type_url: Arc<str>, name: Arc<str>, published: Published) -> Resource {
        if published.kind == ResourceKind::Service {
            self.services.insert(name.clone());
        }
        let Published { body, aliases, follows, node, .. } = published;
        let resource = Resource::from_bytes(type_url, name, body).with_aliases(aliases);
        let resource = resource.with_follows(follows);
        if node.is_empty() { resource } else { resource.with_node(node) }
    }

    /// What the translation has to say of what users wrote.
    fn report(&mut self, changes: &Changes) {
        for error in changes.mesh.iter().filter_map(|mesh| mesh.error.as_ref()) {
            tracing::error!(%error, "the MeshConfig cannot be read; the last one stays in force");
        }
        for field in changes.mesh.iter().flat_map(|mesh| &mesh.without_effect) {
            tracing::warn!("MeshConfig: {field}");
        }
        for found in &changes.restrictions {
            tracing::warn!(object = %found.object, "{}: {}", found.code, found.message);
        }
        // Before anybody hears of it: who asks for an identity of the new domain is given it.
        if let Some(change) = &changes.mesh {
            self.follow.mesh(&change.mesh);
        }
        if let Some(tell) = self.tell.as_ref().filter(|tell| changes.mesh.is_some() || tell.borrow().is_none()) {
            let told = Told::from(self.index.mesh());
            tell.send_if_modified(|last| last.replace(told.clone()).as_ref() != Some(&told));
        }
        for (key, conditions) in &changes.statuses {
            self.status.conditions(key, conditions.iter().map(Condition::from).collect());
        }
        for allocation in &changes.allocations {
            let host = |address: &ServiceAddress| (address.host.clone(), address.value.clone());
            self.status.addresses(&allocation.entry, allocation.addresses.iter().map(host).collect());
        }
    }
}

/// Whether users write it for the mesh.
fn is_config(kind: Kind) -> bool {
    kind.of_istio() || kind.group() == "gateway.networking.k8s.io"
}

async fn asked(questions: &mut Option<mpsc::Receiver<Question>>) -> Option<Question> {
    match questions {
        Some(questions) => questions.recv().await,
        None => std::future::pending().await,
    }
}

async fn sleep_until(due: Option<Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due).await,
        None => std::future::pending().await,
    }
}
