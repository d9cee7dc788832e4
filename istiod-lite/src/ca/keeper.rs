//! Follows what is kept of the signers, makes it what signs, and moves a rotation on where this replica leads.
//!
//! ```text
//!   store ──► Active ──► authority (CA, own listener)         every replica
//!                   └──► RootBundle ──► publisher (proxies)
//!   clients, ledger ──► report ──► reports                    while a rotation is under way
//!   request, reports, pods ──► Rotation::advance ──► store    the leader
//! ```

use std::collections::BTreeMap;
use std::time::Duration;

use aquifer_objects::Source;
use aquifer_proto::aquifer::RootBundle;
use aquifer_proto::type_url::ROOT_BUNDLE;
use aquifer_runtime::Cancel;
use aquifer_xds::resource::Resource;
use aquifer_xds::server::{Clients, Publisher};
use time::OffsetDateTime;
use tokio::sync::watch;

use super::authority::{Active, ActiveError, Authority};
use super::issuer::Lifetimes;
use super::ledger::Ledger;
use super::material::Material;
use super::pods::Pods;
use super::root::LIFETIME;
use super::rotation::observe::{self, Client, ClientTrust, Evidence, Mesh, Report};
use super::rotation::reports::Reports;
use super::rotation::request::{self, Request, Status};
use super::rotation::{Goal, Limits, Observed, Phase, Rotation, Stage};
use super::store::{Done, Kept, Place, Signing, State, Store, StoreError, Stored};
use super::trust_domain::TrustDomains;
use crate::metrics::CaMetrics;

/// The one bundle's name.
pub const BUNDLE: &str = "default";
/// The field manager of a rotation's status.
const MANAGER: &str = "istiod-lite";
/// Between two looks at the store, while a rotation is under way and while none is.
const BUSY: Duration = Duration::from_secs(1);
const IDLE: Duration = Duration::from_secs(5);
/// A report or status that says nothing new is written again after this many seconds: it shows that we live.
const REPEAT: i64 = 20;
/// A signer that ends within so many days is told of.
const EXPIRY_WARNING: time::Duration = time::Duration::days(30);

/// What does not change while the process runs.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Our pod's name, or our host's.
    pub replica: String,
    /// Where the control plane is.
    pub root_namespace: String,
    /// The mesh's trust domain.
    pub trust_domains: TrustDomains,
    /// Accounts of node proxies.
    pub node_accounts: Vec<(String, String)>,
    /// Of workload certificates.
    pub lifetimes: Lifetimes,
    /// Seconds between a rotation's beginning and its cut over, at least.
    pub min_overlap: i64,
}

/// The task and what it works with.
pub struct Keeper {
    settings: Settings,
    store: Store,
    reports: Reports,
    source: Source,
    authority: Authority,
    ledger: Ledger,
    publisher: Publisher,
    clients: Clients,
    pods: Pods,
    leader: watch::Receiver<bool>,
    metrics: CaMetrics,
    stored: Stored,
    /// The publisher's generation since which the present bundle is offered.
    offered: u64,
    /// What was last written, so that it isn't written again.
    reported: Option<Report>,
    told: Option<Status>,
    /// The fault last told of, and the expiry.
    complained: String,
    warned: Option<OffsetDateTime>,
}

/// What a keeper needs to begin.
#[derive(Clone)]
pub struct Parts {
    /// Settings.
    pub settings: Settings,
    /// Signers.
    pub store: Store,
    /// Reports.
    pub reports: Reports,
    /// Requests and their status.
    pub source: Source,
    /// Metrics.
    pub metrics: CaMetrics,
}

/// The signers are read; what signs is known.
pub struct Opened {
    parts: Parts,
    stored: Stored,
    ledger: Ledger,
    authority: Authority,
}

impl Parts {
    /// Reads the signers, or makes the first one. A folder's fault is final; an API server may come back.
    pub async fn open(self) -> Result<Opened, OpenError> {
        let now = OffsetDateTime::now_utc();
        let stored = self.store.load(&self.settings.trust_domains.own(), now).await?;
        let active = active(&stored, self.settings.lifetimes, now)?;
        let ledger = Ledger::default();
        ledger.begin(active.step.clone());
        if let Some(step) = &active.step {
            // Our own words of an earlier life still hold.
            let reports = self.reports.all().await.map_err(StoreError::Unavailable)?;
            for report in reports.into_iter().filter(|r| r.follows.as_ref() == Some(step)) {
                if report.replica == self.settings.replica {
                    ledger.restore(step, report.evidence.0);
                }
            }
        }
        self.store.publish(active.issuer.root_bundle())?;
        let authority = Authority::new(active);
        Ok(Opened { parts: self, stored, ledger, authority })
    }
}

/// Why the authority cannot begin.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// What is in it.
    #[error(transparent)]
    Active(#[from] ActiveError),
}

impl OpenError {
    /// Whether trying again may help.
    pub fn is_passing(&self) -> bool {
        matches!(self, Self::Store(StoreError::Unavailable(_) | StoreError::Conflict(_)))
    }
}

impl Opened {
    /// What signs.
    pub fn authority(&self) -> Authority {
        self.authority.clone()
    }

    /// Where the CA notes what it has issued.
    pub fn ledger(&self) -> Ledger {
        self.ledger.clone()
    }

    /// The keeper. `leader` says whether this replica moves rotations on.
    pub fn keeper(self, publisher: Publisher, clients: Clients, pods: Pods, leader: watch::Receiver<bool>) -> Keeper {
        let Self { parts, stored, ledger, authority } = self;
        let Parts { settings, store, reports, source, metrics } = parts;
        let mut keeper = Keeper {
            settings,
            store,
            reports,
            source,
            authority,
            ledger,
            publisher,
            clients,
            pods,
            leader,
            metrics,
            stored,
            offered: 0,
            reported: None,
            told: None,
            complained: String::new(),
            warned: None,
        };
        keeper.offer();
        keeper
    }
}

fn active(stored: &Stored, lifetimes: Lifetimes, now: OffsetDateTime) -> Result<Active, ActiveError> {
    match &stored.signing {
        Signing::Plain(material, _) => Active::plain(material, lifetimes, now),
        Signing::Rotating(kept) => Active::rotating(kept, lifetimes, now),
    }
}

impl Keeper {
    /// Says that this replica is there, so that no rotation goes on without it. To be done before anybody is served.
    pub async fn announce(&mut self) -> Result<(), String> {
        let now = OffsetDateTime::now_utc().unix_timestamp();
        self.report(now).await
    }

    /// Follows the store until the drain.
    pub async fn run(mut self, cancel: &Cancel) {
        loop {
            let nap = self.tick(OffsetDateTime::now_utc()).await;
            tokio::select! {
                biased;
                () = cancel.drained() => return,
                () = tokio::time::sleep(nap) => {}
            }
        }
    }

    /// One look at everything. Returns how long nothing is to be done.
    pub async fn tick(&mut self, now: OffsetDateTime) -> Duration {
        if let Err(error) = self.step(now).await {
            if error != self.complained {
                tracing::warn!(%error, "CA: signers are not followed; what signs stays");
            }
            self.complained = error;
        } else {
            self.complained.clear();
        }
        match self.stored.signing {
            Signing::Rotating(_) => BUSY,
            Signing::Plain(..) if matches!(self.store, Store::Folder(_)) => BUSY,
            Signing::Plain(..) => IDLE,
        }
    }

    async fn step(&mut self, now: OffsetDateTime) -> Result<(), String> {
        self.follow(now).await?;
        self.warn_of_expiry(now);
        let seconds = now.unix_timestamp();
        if matches!(self.stored.signing, Signing::Rotating(_)) {
            self.report(seconds).await?;
        }
        if *self.leader.borrow() {
            match self.lead(now).await {
                // Somebody else has led meanwhile; we follow.
                Ok(()) | Err(LeadError::Store(StoreError::Conflict(_))) => {}
                Err(error) => return Err(error.to_string()),
            }
            self.follow(now).await?;
        }
        Ok(())
    }

    /// Makes what is kept what signs.
    async fn follow(&mut self, now: OffsetDateTime) -> Result<(), String> {
        let stored = self.store.load(&self.settings.trust_domains.own(), now).await.map_err(|e| e.to_string())?;
        if stored == self.stored {
            return Ok(());
        }
        if stored.signing != self.stored.signing {
            let active = active(&stored, self.settings.lifetimes, now).map_err(|e| e.to_string())?;
            self.warn_of_strangers(&active);
            tracing::info!(signer = active.issuer.id().short(), roots = active.roots.len(), step = ?active.step, "CA: what signs");
            // First, so that nothing that is signed by it goes unnoticed.
            self.ledger.begin(active.step.clone());
            self.store.publish(active.issuer.root_bundle()).map_err(|e| e.to_string())?;
            self.authority.swap(active);
            self.stored = stored;
            self.offer();
        } else {
            self.stored = stored;
        }
        Ok(())
    }

    /// Publishes the bundle.
    fn offer(&mut self) {
        let active = self.authority.load();
        self.metrics.expiry(active.issuer.root_not_after(), active.issuer.not_after());
        let bundle =
            RootBundle { roots: active.issuer.root_bundle().to_owned(), renewal: renewal(&self.stored.signing) };
        let resource = Resource::new(ROOT_BUNDLE, BUNDLE, &bundle);
        self.offered = self.publisher.update(|set| set.upsert(resource));
    }

    /// A signer that no proxy trusts yet breaks the mesh until all have heard of it; a rotation would not.
    fn warn_of_strangers(&self, next: &Active) {
        let present = self.authority.load();
        let common = next.roots.iter().any(|root| present.roots.contains(root));
        if !common && next.step.is_none() {
            tracing::error!(
                "CA: the new signer has no root in common with the old one: handshakes fail until every certificate is \
                 renewed. To change roots without that, put the new one into cacerts-next and run `aquifer rotate-root`"
            );
        }
    }

    fn warn_of_expiry(&mut self, now: OffsetDateTime) {
        let end = self.authority.load().issuer.not_after();
        let is_near = end - now < EXPIRY_WARNING;
        if is_near && self.warned.is_none_or(|last| now - last > time::Duration::days(1)) {
            tracing::warn!(%end, "CA: what signs ends soon: run `aquifer rotate-root`");
            self.warned = Some(now);
        }
    }

    /// Leaves word of what this replica knows.
    async fn report(&mut self, now: i64) -> Result<(), String> {
        let active = self.authority.load();
        let report = Report {
            replica: self.settings.replica.clone(),
            at: now,
            follows: active.step.clone(),
            clients: clients(&self.clients, self.offered),
            evidence: Evidence(self.ledger.confirmed(now).into_iter().collect()),
        };
        let is_news = self
            .reported
            .as_ref()
            .is_none_or(|last| now - last.at >= REPEAT || *last != Report { at: last.at, ..report.clone() });
        if is_news {
            self.reports.save(&report).await?;
            self.reported = Some(report);
        }
        Ok(())
    }

    /// Moves a rotation on, or begins one.
    async fn lead(&mut self, now: OffsetDateTime) -> Result<(), LeadError> {
        let key = request::key(&self.settings.root_namespace);
        let object = self.source.get(&key).await.map_err(|e| LeadError::Source(e.to_string()))?;
        let request = object.as_ref().map(request::request).transpose().map_err(LeadError::Source)?.flatten();
        if self.told.is_none() {
            self.told = object.as_ref().and_then(request::status);
        }
        let seconds = now.unix_timestamp();
        let status = match &self.stored.signing {
            Signing::Rotating(kept) => Some(self.go_on(kept.clone(), request.as_ref(), seconds).await?),
            Signing::Plain(material, place) => {
                let answered = self.stored.done.as_ref().map(|done| done.id.as_str());
                match request {
                    Some(request) if answered != Some(&request.id) => {
                        let (material, place) = (material.clone(), *place);
                        Some(self.begin(&request, material, place, now).await?)
                    }
                    _ => self.stored.done.as_ref().map(|done| self.ended(done)),
                }
            }
        };
        match status {
            Some(status) => self.tell(Status { at: seconds, ..status }).await,
            None => Ok(()),
        }
    }

    async fn begin(
        &mut self,
        request: &Request,
        old: Material,
        place: Place,
        now: OffsetDateTime,
    ) -> Result<Status, LeadError> {
        let seconds = now.unix_timestamp();
        let begun = match (request.goal, &self.stored.next, place) {
            (Goal::Abort, ..) => Err("there is no rotation to abort".to_owned()),
            (Goal::Complete, Some(next), _) => Ok((next.clone(), Place::PluggedIn)),
            (Goal::Complete, None, Place::PluggedIn) => Err(format!(
                "the signer is plugged in (cacerts): put the next one into cacerts-next in {}, and ask again",
                self.settings.root_namespace
            )),
            (Goal::Complete, None, Place::SelfSigned) => {
                Material::self_signed(&self.settings.trust_domains.own(), LIFETIME, now)
                    .map(|made| (made, Place::SelfSigned))
                    .map_err(|e| format!("cannot make a root: {e}"))
            }
        };
        let version = self.stored.version.clone();
        let begun = begun.and_then(|(new, place)| {
            let id = |material: &Material| material.signer(now).map(|signer| signer.id()).map_err(|e| e.to_string());
            let (from, to) = (id(&old)?, id(&new)?);
            if from == to {
                return Err("cacerts-next holds the present signer".to_owned());
            }
            let rotation = Rotation::begin(request.id.clone(), from.clone(), to.clone(), seconds);
            let signers = BTreeMap::from([(from, old), (to.clone(), new)]);
            Ok(Kept { rotation, signers, newcomer: to, place })
        });
        match begun {
            Ok(kept) => {
                let status = self.under_way(&kept.rotation);
                tracing::info!(
                    from = kept.rotation.from.short(),
                    to = kept.rotation.to.short(),
                    "root rotation begins"
                );
                self.store.keep(&State::Rotating(kept), version.as_deref()).await?;
                Ok(status)
            }
            Err(reason) => {
                let done = Done { id: request.id.clone(), at: seconds, refused: Some(reason), aborted: false };
                self.store.keep(&State::Done(done.clone()), version.as_deref()).await?;
                Ok(self.ended(&done))
            }
        }
    }

    async fn go_on(&mut self, kept: Kept, request: Option<&Request>, now: i64) -> Result<Status, LeadError> {
        let version = self.stored.version.clone();
        let rotation = &kept.rotation;
        if rotation.phase == Phase::Settled {
            // In this order: until the state says so, the rotation's own copy signs.
            if rotation.to == kept.newcomer
                && let Some(material) = kept.signers.get(&kept.newcomer)
            {
                self.store.settle(material, kept.place).await?;
            }
            let aborted = rotation.to != kept.newcomer;
            let done = Done { id: rotation.id.clone(), at: now, refused: None, aborted };
            self.store.keep(&State::Done(done.clone()), version.as_deref()).await?;
            tracing::info!(aborted, signer = rotation.to.short(), "root rotation ended");
            return Ok(self.ended(&done));
        }
        let goal = request.map_or(Goal::Complete, |request| request.goal);
        let observed = self.observed(rotation, now).await?;
        let ttl = i64::try_from(self.settings.lifetimes.max.as_secs()).unwrap_or(i64::MAX);
        let limits = Limits { min_overlap: self.settings.min_overlap, max_ttl: ttl };
        match rotation.advance(goal, &observed, limits, now) {
            Ok(next) => {
                tracing::info!(phase = next.phase.as_str(), stage = ?next.stage, seq = next.seq, "root rotation moves on");
                let status = self.under_way(&next);
                self.store.keep(&State::Rotating(Kept { rotation: next, ..kept }), version.as_deref()).await?;
                Ok(status)
            }
            Err(lags) => Ok(self.under_way(rotation).waiting_for(lags)),
        }
    }

    async fn observed(&self, rotation: &Rotation, now: i64) -> Result<Observed, LeadError> {
        let mut reports = self.reports.all().await.map_err(LeadError::Source)?;
        // Our own, as it is now.
        reports.retain(|report| report.replica != self.settings.replica);
        reports.extend(self.reported.clone());
        let pods = self.pods.all();
        let mesh = Mesh {
            pods: &pods,
            node_accounts: &self.settings.node_accounts,
            trust_domain: &self.settings.trust_domains.own(),
            root_namespace: &self.settings.root_namespace,
        };
        Ok(observe::observe(rotation, &reports, &mesh, now))
    }

    fn under_way(&self, rotation: &Rotation) -> Status {
        let back = if rotation.back { ", back to the old root" } else { "" };
        // Settled is this phase's last moment; then it is said how it ended.
        let phase = if rotation.phase == Phase::Settled { Phase::CutOver } else { rotation.phase };
        Status {
            request: rotation.id.clone(),
            phase: phase.as_str().to_owned(),
            message: format!("under way{back}"),
            since: rotation.since,
            signer: rotation.signs().0.clone(),
            trusted: rotation.trusted().into_iter().map(|id| id.0.clone()).collect(),
            ..Status::default()
        }
    }

    fn ended(&self, done: &Done) -> Status {
        let active = self.authority.load();
        let (phase, message) = match (&done.refused, done.aborted) {
            (Some(reason), _) => ("refused", reason.clone()),
            (None, true) => ("aborted", "the old root alone is trusted".to_owned()),
            (None, false) => ("completed", "the new root alone is trusted".to_owned()),
        };
        Status {
            request: done.id.clone(),
            phase: phase.to_owned(),
            message,
            since: done.at,
            signer: active.issuer.id().0.clone(),
            ..Status::default()
        }
    }

    async fn tell(&mut self, status: Status) -> Result<(), LeadError> {
        let is_old = |last: &Status| status.same(last) && (status.is_final() || status.at - last.at < REPEAT);
        if self.told.as_ref().is_some_and(is_old) {
            return Ok(());
        }
        let object = request::status_object(&self.settings.root_namespace, &status);
        let written = self.source.writer(MANAGER).apply(object).await;
        written.map_err(|e| LeadError::Source(e.to_string()))?;
        self.told = Some(status);
        Ok(())
    }
}

#[derive(Debug, thiserror::Error)]
enum LeadError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("{0}")]
    Source(String),
}

/// The occasion to renew: every replica signs with the new root, and certificates are to be of it. Not earlier, for what
/// is issued before proves nothing.
fn renewal(signing: &Signing) -> String {
    match signing {
        Signing::Rotating(Kept { rotation, .. })
            if rotation.phase == Phase::CutOver && rotation.stage == Stage::Gating =>
        {
            format!("{}/{}", rotation.id, rotation.seq)
        }
        _ => String::new(),
    }
}

/// Who is connected, and whether it has acknowledged what is offered since the generation `offered`.
fn clients(clients: &Clients, offered: u64) -> Vec<Client> {
    let mut all: Vec<Client> = clients
        .list()
        .into_iter()
        .map(|info| {
            let trust = match info.types.get(ROOT_BUNDLE) {
                None => ClientTrust::PerCertificate,
                Some(bundle) => {
                    let taken = bundle.last_answered.as_ref().is_some_and(|stamp| stamp.generation >= offered);
                    if taken && !bundle.is_rejected { ClientTrust::Adopted } else { ClientTrust::Behind }
                }
            };
            let since = OffsetDateTime::from(info.since).unix_timestamp();
            Client { name: pod_of(&info.node.id), trust, since }
        })
        .collect();
    all.sort_by(|a, b| a.name.cmp(&b.name));
    all
}

/// `kind~ip~name.namespace~domain` → `namespace/name`.
fn pod_of(node_id: &str) -> String {
    let name = node_id.split('~').nth(2).unwrap_or(node_id);
    // Names of pods may hold dots, namespaces don't.
    name.rsplit_once('.').map_or_else(|| name.to_owned(), |(name, namespace)| format!("{namespace}/{name}"))
}

#[cfg(test)]
mod tests;
