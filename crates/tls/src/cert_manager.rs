//! Keeps a certificate for every identity in use.
//!
//! The handle may be used from any thread and runtime; the driver runs once, on the control runtime.

use crate::bundle::CertBundle;
use crate::ca_client::{CaClient, CaError};
use crate::config::{ConfigError, IdentityConfigs, TlsOptions};
use crate::crl::Revocations;
use crate::error::CertError;
use crate::schedule::{Schedule, Step};
use crate::trust::TrustBundle;
use aquifer_core::identity::Identity;
use aquifer_runtime::Cancel;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use parking_lot::{Mutex, RwLock};
use rand::RngExt;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

#[cfg(test)]
mod tests;

/// How an identity's certificate stands.
#[derive(Clone, Debug)]
pub enum CertState {
    /// The first one is on its way.
    Initializing,
    /// There is one, and it is valid.
    Available,
    /// There is none, or it has expired.
    Unavailable(CertError),
}

/// One identity, for the configuration dump.
#[derive(Clone)]
pub struct CertStatus {
    /// Whose.
    pub identity: Identity,
    /// How it stands.
    pub state: CertState,
    /// The current certificate, if there is one, expired or not.
    pub configs: Option<Arc<IdentityConfigs>>,
}

/// The handle; clones share it.
#[derive(Clone)]
pub struct CertManager {
    shared: Arc<Shared>,
}

struct Shared {
    options: TlsOptions,
    /// Whether anybody issues certificates.
    has_authority: bool,
    schedule: Mutex<Schedule>,
    certs: RwLock<HashMap<Identity, watch::Sender<Cert>>>,
    /// Taken after the schedule's lock and before that of `certs`.
    trust: Mutex<Trust>,
    generation: AtomicU64,
    changed: Notify,
}

/// What the control plane says, where it does.
#[derive(Default)]
struct Trust {
    bundle: Option<TrustBundle>,
    /// The last occasion to renew that was heeded.
    renewed: Option<String>,
}

/// Renewals that all nodes are asked for at once are spread over this time.
const RENEWAL_SPREAD: Duration = Duration::from_secs(20);

#[derive(Clone, Default)]
struct Cert {
    configs: Option<Arc<IdentityConfigs>>,
    /// Of the last fetch, if it failed.
    error: Option<Arc<CaError>>,
}

impl Default for CertManager {
    fn default() -> Self {
        Self::new()
    }
}

impl CertManager {
    /// A manager without identities. Nothing is fetched until [`run`](Self::run) is polled.
    pub fn new() -> Self {
        Self::with_options(TlsOptions::default())
    }

    /// The same, with all configurations made under `options`.
    pub fn with_options(options: TlsOptions) -> Self {
        Self::build(options, true)
    }

    /// One that nobody issues certificates for: who asks is told so at once.
    pub fn without_authority(options: TlsOptions) -> Self {
        Self::build(options, false)
    }

    fn build(options: TlsOptions, has_authority: bool) -> Self {
        let schedule = Mutex::new(Schedule::new());
        let (certs, trust, generation) = (RwLock::default(), Mutex::default(), AtomicU64::new(0));
        let shared = Shared { options, has_authority, schedule, certs, trust, generation, changed: Notify::new() };
        Self { shared: Arc::new(shared) }
    }

    /// Whom the configurations do not trust in spite of a good chain.
    pub fn revocations(&self) -> &Revocations {
        &self.shared.options.revocations
    }

    /// Trusts whom `bundle` names from now on, for every identity, instead of whom the certificates of this moment came
    /// with; what comes with later ones is trusted also. `None`: there is no such word any more, certificates' count.
    ///
    /// When it returns, every handshake that begins has the new roots; connections that are open stay.
    pub fn adopt(&self, bundle: Option<TrustBundle>) -> Result<(), ConfigError> {
        let shared = &self.shared;
        let mut schedule = shared.schedule.lock();
        let mut trust = shared.trust.lock();
        let certs = shared.certs.read();
        let mut made = Vec::new();
        for (identity, cert) in certs.iter() {
            let Some(configs) = cert.borrow().configs.clone() else { continue };
            let answer = match &bundle {
                Some(bundle) => configs.bundle().trusting(bundle),
                None => configs.bundle().trusting_itself(),
            };
            made.push((cert, IdentityConfigs::new(identity.clone(), answer, shared.next(), &shared.options)?));
        }
        for (cert, configs) in made {
            cert.send_modify(|cert| cert.configs = Some(Arc::new(configs)));
        }
        let occasion = bundle.as_ref().and_then(|bundle| bundle.renewal.clone());
        if occasion.is_some() && occasion != trust.renewed {
            let delay = || RENEWAL_SPREAD.mul_f64(rand::rng().random_range(0.0..1.0));
            schedule.renew_all(Instant::now().into_std(), delay);
            shared.changed.notify_one();
            trust.renewed = occasion;
        }
        trust.bundle = bundle;
        Ok(())
    }

    /// Has a certificate kept for `identity`, from now until as many calls of [`forget`](Self::forget).
    pub fn want(&self, identity: &Identity) {
        // Entries are made and dropped under the schedule's lock, so that both always name the same identities.
        let mut schedule = self.shared.schedule.lock();
        if schedule.want(identity, Instant::now().into_std()) {
            let cert = watch::Sender::new(Cert::default());
            self.shared.certs.write().insert(identity.clone(), cert);
            self.shared.changed.notify_one();
        }
    }

    /// Takes one [`want`](Self::want) back. After the last the certificate is dropped.
    pub fn forget(&self, identity: &Identity) {
        let mut schedule = self.shared.schedule.lock();
        if schedule.forget(identity) {
            self.shared.certs.write().remove(identity);
        }
    }

    /// The configurations for `identity`. Waits for the first certificate until `deadline`; once a fetch has failed and
    /// there is no valid one, or without an authority, gives the error at once.
    pub async fn get(&self, identity: &Identity, deadline: Instant) -> Result<Arc<IdentityConfigs>, CertError> {
        let since = Instant::now();
        let first = tokio::time::timeout_at(deadline, self.first(identity)).await;
        first.unwrap_or_else(|_| Err(CertError::Late { identity: identity.clone(), waited: since.elapsed() }))
    }

    async fn first(&self, identity: &Identity) -> Result<Arc<IdentityConfigs>, CertError> {
        let mut cert = {
            let certs = self.shared.certs.read();
            let cert = certs.get(identity).ok_or_else(|| CertError::NotWanted(identity.clone()))?;
            if let Some(done) = cert.borrow().outcome(identity) {
                return done;
            }
            if !self.shared.has_authority {
                return Err(CertError::NoAuthority(identity.clone()));
            }
            cert.subscribe()
        };
        self.shared.schedule.lock().urge(identity);
        loop {
            if let Some(done) = cert.borrow_and_update().outcome(identity) {
                return done;
            }
            // The sender goes when the identity is forgotten.
            cert.changed().await.map_err(|_| CertError::NotWanted(identity.clone()))?;
        }
    }

    /// The valid configurations of this moment, if any, without waiting.
    pub fn current(&self, identity: &Identity) -> Option<Arc<IdentityConfigs>> {
        let certs = self.shared.certs.read();
        certs.get(identity)?.borrow().outcome(identity)?.ok()
    }

    /// All identities in use, sorted.
    pub fn dump(&self) -> Vec<CertStatus> {
        let certs = self.shared.certs.read();
        let mut all: Vec<_> = certs.iter().map(|(identity, cert)| cert.borrow().status(identity)).collect();
        for status in all.iter_mut().filter(|_| !self.shared.has_authority) {
            status.state = CertState::Unavailable(CertError::NoAuthority(status.identity.clone()));
        }
        all.sort_by(|a, b| a.identity.cmp(&b.identity));
        all
    }

    /// The driver: fetches what is due until `cancel`'s drain.
    ///
    /// A certificate that falls due while connections drain is not renewed; the drain is shorter than any validity.
    pub async fn run(&self, ca: impl CaClient, cancel: Cancel) {
        let mut fetches = FuturesUnordered::new();
        loop {
            let wake = loop {
                let step = self.shared.schedule.lock().poll(Instant::now().into_std());
                match step {
                    Step::Fetch(identity) => {
                        let ca = &ca;
                        fetches.push(async move {
                            let result = ca.fetch(&identity).await;
                            (identity, result)
                        });
                    }
                    Step::SleepUntil(due) => break Some(Instant::from_std(due)),
                    Step::Idle => break None,
                }
            };
            let sleep = async {
                match wake {
                    Some(due) => tokio::time::sleep_until(due).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                () = cancel.drained() => return,
                Some((identity, result)) = fetches.next() => {
                    self.report(&identity, result);
                }
                () = self.shared.changed.notified() => {}
                () = sleep => {}
            }
        }
    }

    fn report(&self, identity: &Identity, result: Result<CertBundle, CaError>) {
        let jitter = rand::rng().random_range(-1.0..=1.0);
        let now = Instant::now().into_std();
        let mut schedule = self.shared.schedule.lock();
        let (options, generation) = (&self.shared.options, self.shared.next());
        // Under the lock: no bundle comes between the look at it and the publication.
        let trust = self.shared.trust.lock();
        let built = result.and_then(|answer| {
            let answer = trust.bundle.as_ref().map_or_else(|| answer.clone(), |bundle| answer.trusting_also(bundle));
            Ok(IdentityConfigs::new(identity.clone(), answer, generation, options)?)
        });
        let certs = self.shared.certs.read();
        match built {
            Ok(configs) => {
                let wanted = schedule.fetched(identity, remaining(&configs), now, jitter);
                if let Some(cert) = certs.get(identity).filter(|_| wanted) {
                    let not_after = configs.leaf().not_after;
                    tracing::debug!(%identity, generation, %not_after, "certificate fetched");
                    cert.send_replace(Cert { configs: Some(Arc::new(configs)), error: None });
                }
            }
            Err(error) => {
                let wanted = schedule.failed(identity, now, jitter);
                if let Some(cert) = certs.get(identity).filter(|_| wanted) {
                    tracing::warn!(%identity, %error, "certificate fetch failed, retrying");
                    // The certificate stays: while it is valid nobody sees the error.
                    cert.send_modify(|c| c.error = Some(Arc::new(error)));
                }
            }
        }
    }
}

impl Shared {
    /// The next generation of configurations.
    fn next(&self) -> u64 {
        self.generation.fetch_add(1, Ordering::Relaxed) + 1
    }
}

fn remaining(configs: &IdentityConfigs) -> Duration {
    let now: time::OffsetDateTime = SystemTime::now().into();
    Duration::try_from(configs.leaf().not_after - now).unwrap_or(Duration::ZERO)
}

impl Cert {
    /// `None`: wait.
    fn outcome(&self, identity: &Identity) -> Option<Result<Arc<IdentityConfigs>, CertError>> {
        let now = SystemTime::now().into();
        if let Some(configs) = self.configs.as_ref().filter(|c| c.is_valid(now)) {
            return Some(Ok(configs.clone()));
        }
        let identity = identity.clone();
        if let Some(source) = self.error.clone() {
            return Some(Err(CertError::Fetch { identity, source }));
        }
        self.configs.as_ref().map(|_| Err(CertError::Expired(identity)))
    }

    fn status(&self, identity: &Identity) -> CertStatus {
        let state = match self.outcome(identity) {
            None => CertState::Initializing,
            Some(Ok(_)) => CertState::Available,
            Some(Err(e)) => CertState::Unavailable(e),
        };
        CertStatus { identity: identity.clone(), state, configs: self.configs.clone() }
    }
}
