//! How a keeper begins: from what the store holds.

use aquifer_objects::Source;
use aquifer_xds::server::{Clients, Publisher};
use time::OffsetDateTime;
use tokio::sync::watch;

use super::{Keeper, Settings};
use crate::ca::authority::{Active, ActiveError, Authority};
use crate::ca::issuer::Lifetimes;
use crate::ca::ledger::Ledger;
use crate::ca::pods::Pods;
use crate::ca::rotation::reports::Reports;
use crate::ca::store::{Signing, Store, StoreError, Stored};
use crate::metrics::CaMetrics;

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

pub(super) fn active(stored: &Stored, lifetimes: Lifetimes, now: OffsetDateTime) -> Result<Active, ActiveError> {
    match &stored.signing {
        Signing::Plain(material, _) => Active::plain(material, lifetimes, now),
        Signing::Rotating(kept) => Active::rotating(kept, lifetimes, now),
    }
}
