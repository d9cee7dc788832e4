//! What the leader does besides: it begins rotations, moves them on, and says how they stand.

use std::collections::BTreeMap;

use time::OffsetDateTime;

use super::{Keeper, REPEAT};
use crate::ca::material::Material;
use crate::ca::root::LIFETIME;
use crate::ca::rotation::observe::{self, Mesh};
use crate::ca::rotation::request::{self, Request, Status};
use crate::ca::rotation::{Goal, Limits, Observed, Phase, Rotation};
use crate::ca::store::{Done, Kept, Place, Signing, State, StoreError};

/// The field manager of a rotation's status.
const MANAGER: &str = "istiod-lite";

#[derive(Debug, thiserror::Error)]
pub(super) enum LeadError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("{0}")]
    Source(String),
}

impl Keeper {
    /// Moves a rotation on, or begins one.
    pub(super) async fn lead(&mut self, now: OffsetDateTime) -> Result<(), LeadError> {
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
