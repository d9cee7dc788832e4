//! Follows what is kept of the signers, makes it what signs, and moves a rotation on where this replica leads.
//!
//! ```text
//!   store ──► Active ──► authority (CA, own listener)         every replica
//!                   └──► RootBundle ──► publisher (proxies)
//!   clients, ledger ──► report ──► reports                    while a rotation is under way
//!   request, reports, pods ──► Rotation::advance ──► store    the leader
//! ```

mod lead;
mod open;
mod report;

use std::time::Duration;

use aquifer_objects::Source;
use aquifer_proto::aquifer::RootBundle;
use aquifer_proto::type_url::ROOT_BUNDLE;
use aquifer_runtime::Cancel;
use aquifer_xds::resource::Resource;
use aquifer_xds::server::{Clients, Publisher};
use time::OffsetDateTime;
use tokio::sync::watch;

use self::lead::LeadError;
use self::open::active;
pub use self::open::{OpenError, Opened, Parts};
use super::authority::{Active, Authority};
use super::issuer::Lifetimes;
use super::ledger::Ledger;
use super::pods::Pods;
use super::rotation::observe::Report;
use super::rotation::reports::Reports;
use super::rotation::request::Status;
use super::rotation::{Phase, Stage};
use super::store::{Kept, Signing, Store, StoreError, Stored};
use super::trust_domain::TrustDomains;
use crate::metrics::CaMetrics;

/// The one bundle's name.
pub const BUNDLE: &str = "default";
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

#[cfg(test)]
mod tests;
