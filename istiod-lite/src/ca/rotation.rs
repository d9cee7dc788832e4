//! From one root to another without a failed handshake: decisions only.
//!
//! ```text
//!             every proxy trusts both        every certificate is of the new root
//!   overlap ───────────────────────► cut over ───────────────────────────► settled
//!   old signs, both trusted          new signs, both trusted               new signs, new trusted
//!      │ abort: nothing is of the       │ abort: the two roots change their parts, and all
//!      ▼ new root yet                   ▼ certificates are to be of the old one again
//!   settled (old)                    cut over (back)
//! ```
//!
//! Overlap and cut over have two stages each. First the phase *spreads*: every replica of the control plane follows it.
//! Only what happened after that counts for the *gate*: before it, a replica may still have handed out the old state.
//!
//! Invariant: at any moment, every certificate in use was signed by a root that every proxy trusts. `tests` holds all
//! orders of events against it.

pub mod observe;
pub mod reports;
pub mod request;

use serde::{Deserialize, Serialize};

use super::fingerprint::Fingerprint;

/// How far a rotation is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// Both roots are trusted, the old one signs.
    Overlap,
    /// Both roots are trusted, the new one signs.
    CutOver,
    /// The new root alone.
    Settled,
}

impl Phase {
    /// As people read it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Overlap => "overlap",
            Self::CutOver => "cut-over",
            Self::Settled => "settled",
        }
    }
}

/// What is waited for within a phase.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Stage {
    /// Every replica follows the phase.
    Spreading,
    /// The proxies fulfil what the next phase needs.
    Gating,
}

/// A rotation under way. Kept where all replicas read it, so that it survives any of them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rotation {
    /// Names this rotation among others.
    pub id: String,
    /// Counts its steps.
    pub seq: u64,
    /// How far it is.
    pub phase: Phase,
    /// What is waited for.
    pub stage: Stage,
    /// The root that goes.
    pub from: Fingerprint,
    /// The root that comes.
    pub to: Fingerprint,
    /// It was aborted after the cut over: `to` is the root of before.
    #[serde(default)]
    pub back: bool,
    /// When it began, in Unix seconds.
    pub began: i64,
    /// When the phase began, in Unix seconds.
    pub since: i64,
}

/// A step of a rotation: evidence belongs to one, and a replica says which one it follows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Default)]
pub struct Step {
    /// [`Rotation::id`].
    pub id: String,
    /// [`Rotation::seq`].
    pub seq: u64,
}

/// What the operator wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Goal {
    /// The new root alone.
    Complete,
    /// The old root alone.
    Abort,
}

/// What is seen of the mesh.
#[derive(Debug, Clone, Default)]
pub struct Observed {
    /// The replicas of the control plane that exist.
    pub replicas: Vec<Replica>,
    /// The proxies that exist.
    pub proxies: Vec<Proxy>,
}

/// A replica of the control plane.
#[derive(Debug, Clone)]
pub struct Replica {
    /// Its name.
    pub name: String,
    /// The step that it follows, by its last word.
    pub follows: Option<Step>,
    /// When it last spoke, in Unix seconds; 0 for never.
    pub heard: i64,
}

/// A proxy, as of reports that were made at the present step.
#[derive(Debug, Clone)]
pub struct Proxy {
    /// Its pod, or its node id.
    pub name: String,
    /// Whom it trusts.
    pub trust: Trust,
    /// Since when it is as it is, in Unix seconds.
    pub since: i64,
    /// Its identities that have not been issued anew within the present step.
    pub missing: Vec<String>,
}

/// What is known of whom a proxy trusts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trust {
    /// It has acknowledged the present bundle.
    Adopted,
    /// It subscribes to bundles and has not acknowledged the present one.
    Behind,
    /// It does not subscribe: it trusts what came with each certificate.
    PerCertificate,
    /// It exists, but is not connected.
    Absent,
}

/// Times that hold for every rotation.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Seconds from the overlap to the cut over, at least: mounted files follow their ConfigMap with a delay.
    pub min_overlap: i64,
    /// Seconds that a certificate lives at most.
    pub max_ttl: i64,
}

/// Who holds the next phase up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lag {
    /// Which proxy or replica.
    pub who: String,
    /// Since when, in Unix seconds.
    pub since: i64,
    /// What is lacking.
    pub why: String,
}

/// Identities named in a [`Lag`]; the others are counted.
const NAMED: usize = 3;

impl Rotation {
    /// A rotation that begins now.
    pub fn begin(id: String, from: Fingerprint, to: Fingerprint, now: i64) -> Self {
        let (phase, stage) = (Phase::Overlap, Stage::Spreading);
        Self { id, seq: 1, phase, stage, from, to, back: false, began: now, since: now }
    }

    /// Its present step.
    pub fn step(&self) -> Step {
        Step { id: self.id.clone(), seq: self.seq }
    }

    /// The root that signs workload certificates.
    pub fn signs(&self) -> &Fingerprint {
        match self.phase {
            Phase::Overlap => &self.from,
            Phase::CutOver | Phase::Settled => &self.to,
        }
    }

    /// The root that signs the control plane's own certificate: the one that files out there have known for longest.
    pub fn serves(&self) -> &Fingerprint {
        match (self.phase, self.back) {
            (Phase::Settled, _) | (Phase::CutOver, true) => &self.to,
            (Phase::Overlap | Phase::CutOver, _) => &self.from,
        }
    }

    /// The roots that are trusted, in an order that no phase changes.
    pub fn trusted(&self) -> Vec<&Fingerprint> {
        let mut both = match self.phase {
            Phase::Settled => vec![&self.to],
            Phase::Overlap | Phase::CutOver => vec![&self.from, &self.to],
        };
        both.sort();
        both
    }

    /// The next state towards `goal`, or who holds it up. A settled rotation has none.
    pub fn advance(&self, goal: Goal, observed: &Observed, limits: Limits, now: i64) -> Result<Self, Vec<Lag>> {
        match (self.phase, goal) {
            (Phase::Settled, _) => Err(Vec::new()),
            // Nothing was ever signed by the new root.
            (Phase::Overlap, Goal::Abort) => {
                let (from, to) = (self.to.clone(), self.from.clone());
                Ok(Self { from, to, back: true, ..self.next(Phase::Settled, Stage::Gating, now) })
            }
            // Everybody trusts both; so the two may change their parts at once.
            (Phase::CutOver, Goal::Abort) if !self.back => Ok(self.turned(now)),
            (Phase::CutOver, Goal::Complete) if self.back => Ok(self.turned(now)),
            (phase, _) => {
                let mut lags = self.replicas_behind(observed);
                if self.stage == Stage::Spreading {
                    return if lags.is_empty() { Ok(self.next(phase, Stage::Gating, now)) } else { Err(lags) };
                }
                lags.extend(self.proxies_behind(observed, limits, now));
                match phase {
                    _ if !lags.is_empty() => Err(lags),
                    Phase::Overlap => Ok(self.next(Phase::CutOver, Stage::Spreading, now)),
                    _ => Ok(self.next(Phase::Settled, Stage::Gating, now)),
                }
            }
        }
    }

    fn next(&self, phase: Phase, stage: Stage, now: i64) -> Self {
        let since = if phase == self.phase { self.since } else { now };
        Self { seq: self.seq + 1, phase, stage, since, ..self.clone() }
    }

    fn turned(&self, now: i64) -> Self {
        let (from, to) = (self.to.clone(), self.from.clone());
        Self { from, to, back: !self.back, since: now, ..self.next(Phase::CutOver, Stage::Spreading, now) }
    }

    fn replicas_behind(&self, observed: &Observed) -> Vec<Lag> {
        let step = self.step();
        let behind = observed.replicas.iter().filter(|r| r.follows.as_ref() != Some(&step));
        behind
            .map(|r| Lag {
                who: format!("istiod-lite {}", r.name),
                since: if r.heard == 0 { self.since } else { r.heard },
                why: format!("does not follow the phase {} yet", self.phase.as_str()),
            })
            .collect()
    }

    fn proxies_behind(&self, observed: &Observed, limits: Limits, now: i64) -> Vec<Lag> {
        let mut lags = Vec::new();
        if self.phase == Phase::Overlap && now < self.since + limits.min_overlap {
            lags.push(Lag {
                who: "mounted files".into(),
                since: self.since,
                why: format!("the ConfigMap is given {} s to reach them", limits.min_overlap),
            });
        }
        // What the old root has signed is over by then, whoever holds it.
        if self.phase == Phase::CutOver && now > self.since + limits.max_ttl {
            return lags;
        }
        lags.extend(observed.proxies.iter().filter_map(|proxy| {
            let why = self.proxy_lacks(proxy)?;
            Some(Lag { who: proxy.name.clone(), since: proxy.since.max(self.since), why })
        }));
        lags
    }

    fn proxy_lacks(&self, proxy: &Proxy) -> Option<String> {
        let reissued = proxy.missing.is_empty();
        let fine = match (self.phase, proxy.trust) {
            (Phase::CutOver, _) => reissued,
            (_, Trust::Adopted) => true,
            // A bundle of before may still be on its way to it.
            (_, Trust::Behind) => false,
            // What comes with a certificate is trusted, by everybody.
            (_, Trust::PerCertificate | Trust::Absent) => reissued,
        };
        let not_reissued = || {
            let count = proxy.missing.len();
            let named = proxy.missing.iter().take(NAMED).cloned().collect::<Vec<_>>().join(", ");
            let more = if count > NAMED { format!(" and {} more", count - NAMED) } else { String::new() };
            format!("not issued anew since: {named}{more}")
        };
        (!fine).then(|| match (self.phase, proxy.trust) {
            (Phase::Overlap, Trust::Behind) => "has not acknowledged the bundle of both roots".to_owned(),
            (Phase::Overlap, Trust::Absent) => format!("is not connected; {}", not_reissued()),
            _ => not_reissued(),
        })
    }
}

#[cfg(test)]
mod tests;
