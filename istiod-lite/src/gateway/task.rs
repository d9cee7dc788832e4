//! The task: watches while it leads, and does what the controller says.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use aquifer_objects::{Event, Kind, Object, ObjectKey, Selection, Source, SourceError, Watch, WriteError, Writer};
use aquifer_runtime::{Cancel, Tracker};
use serde_json::json;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use super::controller::Controller;
use super::reconcile::Action;
use super::render::GATEWAY_NAME;
use super::{CLASS_DEFAULTS, CONTROLLER_VERSION, FOLDER_MANAGER, MANAGED, MANAGER, Settings, Told, VERSION};
use crate::revision::Revision;
use crate::status::{StatusQueue, Wanted};

/// Changes are gathered for so long.
const GATHER: Duration = Duration::from_millis(50);
/// What could not be written is tried again after this.
const RETRY: Duration = Duration::from_secs(5);
/// A name that is taken is looked at again after this.
const TAKEN: Duration = Duration::from_secs(31);

/// What waypoints are made of, and whose.
pub struct Waypoints {
    /// As the process was told it.
    pub settings: Settings,
    /// As the mesh has it; `None` until that is known, for a waypoint that is told another thing restarts.
    pub told: watch::Receiver<Option<Told>>,
    /// Of which Gateways.
    pub revision: Revision,
}

/// Starts the task; it works while `leader` says so.
pub fn start(
    source: &Source,
    waypoints: Waypoints,
    status: StatusQueue,
    leader: watch::Receiver<bool>,
    tracker: &Tracker,
    cancel: &Cancel,
) {
    let Waypoints { settings, told, revision } = waypoints;
    let folder = matches!(source, Source::Folder(_));
    let task = Task {
        writer: source.writer(if folder { FOLDER_MANAGER } else { MANAGER }),
        source: source.clone(),
        settings,
        told,
        revision,
        status,
        folder,
        tracker: tracker.clone(),
        cancel: cancel.clone(),
    };
    let cancel = cancel.clone();
    tracker.spawn("gateways", async move {
        tokio::select! {
            biased;
            () = cancel.drained() => {}
            () = task.run(leader) => {}
        }
    });
}

struct Task {
    source: Source,
    writer: Writer,
    settings: Settings,
    told: watch::Receiver<Option<Told>>,
    revision: Revision,
    status: StatusQueue,
    folder: bool,
    tracker: Tracker,
    cancel: Cancel,
}

impl Task {
    async fn run(self, mut leader: watch::Receiver<bool>) {
        while leader.wait_for(|leads| *leads).await.is_ok() {
            tokio::select! {
                biased;
                lost = leader.wait_for(|leads| !*leads) => {
                    if lost.is_err() {
                        return;
                    }
                }
                () = self.lead() => return,
            }
        }
    }

    /// What a leader sees: everything, anew.
    fn watch(&self) -> Result<Watch, SourceError> {
        let made = |kind: Kind| Selection::from(kind).labelled(MANAGED, None);
        let defaults = Selection::from(Kind::ConfigMap)
            .in_namespace(self.settings.root_namespace.clone())
            .labelled(CLASS_DEFAULTS, None);
        self.source.watch_selected(vec![
            Kind::Gateway.into(),
            Kind::GatewayClass.into(),
            Kind::Namespace.into(),
            defaults,
            made(Kind::ServiceAccount),
            made(Kind::Deployment),
            made(Kind::Service),
            made(Kind::HorizontalPodAutoscaler),
            made(Kind::PodDisruptionBudget),
            Selection::from(Kind::EndpointSlice).labelled(GATEWAY_NAME, None),
        ])
    }

    async fn lead(&self) {
        let mut watch = match self.watch() {
            Ok(watch) => watch,
            Err(error) => {
                tracing::error!(%error, "Gateways are not looked after");
                return std::future::pending().await;
            }
        };
        let mut told = self.told.clone();
        let first = told.wait_for(Option::is_some).await.ok().and_then(|first| first.clone());
        let Some(first) = first else { return std::future::pending().await };
        let mut controller = Controller::new(self.settings.clone(), first, self.revision.clone(), self.folder);
        let mut parameters = Parameters::new();
        loop {
            let due = controller.next_due(Instant::now());
            tokio::select! {
                event = watch.next() => {
                    let Some(event) = event else { return std::future::pending().await };
                    let now = Instant::now();
                    self.take(&mut controller, &event, now);
                    while let Some(event) = watch.try_next() {
                        self.take(&mut controller, &event, now);
                    }
                }
                Ok(()) = told.changed() => {
                    let told = told.borrow_and_update().clone().unwrap_or_default();
                    controller.tell(told, Instant::now());
                }
                Some(event) = parameters.events.recv() => {
                    // A watch of one ConfigMap is synced by itself.
                    if event != Event::Synced {
                        controller.take(&event, Instant::now());
                    }
                }
                () = sleep_until(due) => {
                    tokio::time::sleep(GATHER).await;
                    while let Some(event) = watch.try_next() {
                        self.take(&mut controller, &event, Instant::now());
                    }
                    self.classes(&mut controller).await;
                    while let Some(key) = controller.next(Instant::now()) {
                        self.gateway(&mut controller, &key).await;
                    }
                }
            }
            parameters.follow(self, &controller.parameters());
        }
    }

    fn take(&self, controller: &mut Controller, event: &Event, now: Instant) {
        match event {
            Event::Applied(object) if matches!(object.kind(), Kind::Gateway | Kind::GatewayClass) => {
                self.status.observed(object);
            }
            Event::Deleted(key) if matches!(key.kind, Kind::Gateway | Kind::GatewayClass) => self.status.forget(key),
            _ => {}
        }
        controller.take(event, now);
        if *event == Event::Synced {
            for key in controller.orphaned() {
                controller.again(&key, now, Duration::ZERO);
            }
        }
    }

    async fn classes(&self, controller: &mut Controller) {
        let (missing, told) = controller.classes();
        for class in missing {
            // Not applied: a class that somebody just made is theirs.
            match self.writer.create(class).await {
                Ok(key) => tracing::info!(class = %key, "created"),
                Err(WriteError::Conflict { .. } | WriteError::NotFound(_)) => {}
                Err(error) => tracing::warn!(%error, "GatewayClass not created"),
            }
        }
        for (object, conditions) in told {
            self.status.conditions(&object.key(), conditions);
        }
    }

    async fn gateway(&self, controller: &mut Controller, key: &ObjectKey) {
        for name in controller.unread(key, Instant::now()) {
            match self.read(&name).await {
                Ok(object) => controller.was_read(name, object, Instant::now()),
                Err(error) => {
                    tracing::warn!(gateway = %key, %error, "not reconciled; it is tried again");
                    return controller.again(key, Instant::now(), RETRY);
                }
            }
        }
        let actions = controller.actions(key, Instant::now());
        if !actions.iter().any(|action| matches!(action, Action::Status(..))) {
            // It may have been ours before.
            self.status.release(key);
        }
        for action in actions {
            if let Err(error) = self.act(controller, action).await {
                tracing::warn!(gateway = %key, %error, "not written; it is tried again");
                controller.again(key, Instant::now(), RETRY);
            }
        }
    }

    /// What stands under a name. It is listed, since who may watch need not be allowed to get.
    async fn read(&self, key: &ObjectKey) -> Result<Option<Object>, SourceError> {
        let selection = Selection::from(key.kind).in_namespace(&*key.namespace).named(&*key.name);
        let (objects, _) = self.source.read(&[selection]).await?;
        Ok(objects.into_iter().next())
    }

    async fn act(&self, controller: &mut Controller, action: Action) -> Result<(), WriteError> {
        match action {
            Action::Claim(key) => {
                let mark = json!({
                    "apiVersion": "gateway.networking.k8s.io/v1",
                    "kind": "Gateway",
                    "metadata": {
                        "name": &*key.name,
                        "namespace": &*key.namespace,
                        "annotations": { CONTROLLER_VERSION: VERSION.to_string() },
                    },
                });
                self.writer.apply(mark).await.map(|_| ())
            }
            Action::Apply(key, object) => {
                self.writer.apply(object.clone()).await?;
                tracing::info!(%key, "applied");
                controller.applied(&key, &object, Instant::now());
                Ok(())
            }
            Action::Delete(key, uid) => match self.writer.delete(&key, uid.as_deref()).await {
                Ok(()) => {
                    tracing::info!(%key, "deleted: no Gateway uses it any more");
                    Ok(())
                }
                Err(WriteError::NotFound(_) | WriteError::Conflict { .. }) => Ok(()),
                Err(error) => Err(error),
            },
            Action::Status(key, status) => {
                let taken = status.conditions.iter().any(|condition| condition.reason == "Conflict");
                self.status.want(&key, Wanted::Gateway(status));
                if taken {
                    controller.again(&key, Instant::now(), TAKEN);
                }
                Ok(())
            }
        }
    }
}

/// Watches of the ConfigMaps that Gateways name: one each, for there are few of them among many.
struct Parameters {
    followed: BTreeMap<ObjectKey, watch::Sender<()>>,
    sender: mpsc::Sender<Event>,
    events: mpsc::Receiver<Event>,
}

impl Parameters {
    fn new() -> Self {
        let (sender, events) = mpsc::channel(16);
        Self { followed: BTreeMap::new(), sender, events }
    }

    fn follow(&mut self, task: &Task, wanted: &BTreeSet<ObjectKey>) {
        self.followed.retain(|key, _| wanted.contains(key));
        for key in wanted {
            if self.followed.contains_key(key) {
                continue;
            }
            let selection = Selection::from(Kind::ConfigMap).in_namespace(&*key.namespace).named(&*key.name);
            let Ok(mut watch) = task.source.watch_selected(vec![selection]) else { continue };
            let (alive, mut dropped) = watch::channel(());
            self.followed.insert(key.clone(), alive);
            let (sender, cancel) = (self.sender.clone(), task.cancel.clone());
            task.tracker.spawn("gateway parameters", async move {
                loop {
                    let event = tokio::select! {
                        biased;
                        () = cancel.drained() => return,
                        _ = dropped.changed() => return,
                        event = watch.next() => event,
                    };
                    let Some(event) = event else { return };
                    if sender.send(event).await.is_err() {
                        return;
                    }
                }
            });
        }
    }
}

async fn sleep_until(due: Option<Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due).await,
        None => std::future::pending().await,
    }
}
