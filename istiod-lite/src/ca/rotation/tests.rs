use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;

const LIMITS: Limits = Limits { min_overlap: 0, max_ttl: 1_000_000 };

fn root(n: u32) -> Fingerprint {
    Fingerprint(format!("{n:064x}"))
}

type Roots = BTreeSet<Fingerprint>;
type Version = (Roots, Fingerprint);

/// What a replica follows, publishes and signs with.
#[derive(Clone, Debug)]
struct View {
    step: Option<Step>,
    version: Version,
}

#[derive(Clone, Debug, Default)]
struct Report {
    follows: Option<Step>,
    /// Proxies that are connected: what they acknowledged, or that they do not subscribe.
    connected: BTreeMap<usize, Option<Option<Version>>>,
    evidence: BTreeSet<(usize, usize)>,
}

struct ReplicaModel {
    view: View,
    now: Report,
    reported: Report,
}

#[derive(Clone, Debug)]
struct Leaf {
    signer: Fingerprint,
    roots: Roots,
    at: u64,
}

struct ProxyModel {
    ours: bool,
    connected: Option<usize>,
    /// Bundles on their way, from the replica that sent them.
    coming: Vec<Version>,
    bundle: Option<(Roots, u64)>,
    leaves: Vec<Option<Leaf>>,
}

struct World {
    truth: Option<Rotation>,
    active: Fingerprint,
    made: u32,
    goal: Goal,
    clock: u64,
    replicas: Vec<ReplicaModel>,
    proxies: Vec<ProxyModel>,
}

fn version(truth: Option<&Rotation>, active: &Fingerprint) -> Version {
    match truth {
        None => (BTreeSet::from([active.clone()]), active.clone()),
        Some(r) => (r.trusted().into_iter().cloned().collect(), r.signs().clone()),
    }
}

impl World {
    fn new() -> Self {
        let active = root(0);
        let view = View { step: None, version: version(None, &active) };
        let replica = || ReplicaModel { view: view.clone(), now: Report::default(), reported: Report::default() };
        let proxy =
            |ours| ProxyModel { ours, connected: None, coming: Vec::new(), bundle: None, leaves: vec![None, None] };
        let mut world = Self {
            truth: None,
            active,
            made: 0,
            goal: Goal::Complete,
            clock: 0,
            replicas: vec![replica(), replica()],
            proxies: vec![proxy(true), proxy(true), proxy(false)],
        };
        for p in 0..3 {
            world.connect(p, p % 2);
            world.issue(p, 0, p % 2);
        }
        world
    }

    fn begin(&mut self) {
        if self.truth.as_ref().is_none_or(|r| r.phase == Phase::Settled) {
            if let Some(settled) = self.truth.take() {
                self.active = settled.to;
            }
            self.made += 1;
            self.goal = Goal::Complete;
            let id = self.made.to_string();
            self.truth = Some(Rotation::begin(id, self.active.clone(), root(self.made), 0));
        }
    }

    fn sync(&mut self, r: usize) {
        let step = self.truth.as_ref().map(Rotation::step);
        let version = version(self.truth.as_ref(), &self.active);
        let replica = &mut self.replicas[r];
        if replica.view.step != step {
            replica.now.evidence.clear();
            replica.now.follows = step.clone();
        }
        replica.view = View { step, version: version.clone() };
        let hears = |p: &&mut ProxyModel| p.ours && p.connected == Some(r);
        self.proxies.iter_mut().filter(hears).for_each(|p| p.coming.push(version.clone()));
    }

    fn connect(&mut self, p: usize, r: usize) {
        self.disconnect(p);
        let proxy = &mut self.proxies[p];
        proxy.connected = Some(r);
        proxy.coming = if proxy.ours { vec![self.replicas[r].view.version.clone()] } else { Vec::new() };
        self.replicas[r].now.connected.insert(p, proxy.ours.then_some(None));
    }

    fn disconnect(&mut self, p: usize) {
        if let Some(r) = self.proxies[p].connected.take() {
            self.replicas[r].now.connected.remove(&p);
        }
        self.proxies[p].coming.clear();
    }

    fn deliver(&mut self, p: usize) {
        self.clock += 1;
        let proxy = &mut self.proxies[p];
        let Some(r) = proxy.connected.filter(|_| !proxy.coming.is_empty()) else { return };
        let version = proxy.coming.remove(0);
        proxy.bundle = Some((version.0.clone(), self.clock));
        self.replicas[r].now.connected.insert(p, Some(Some(version)));
    }

    fn issue(&mut self, p: usize, i: usize, r: usize) {
        self.clock += 1;
        let replica = &mut self.replicas[r];
        replica.now.evidence.insert((p, i));
        let (roots, signer) = replica.view.version.clone();
        self.proxies[p].leaves[i] = Some(Leaf { signer, roots, at: self.clock });
    }

    /// The proxy's process begins anew in the same pod.
    fn restart(&mut self, p: usize) {
        self.disconnect(p);
        let proxy = &mut self.proxies[p];
        proxy.bundle = None;
        proxy.leaves.fill(None);
    }

    fn observed(&self) -> Observed {
        let truth = self.truth.as_ref().unwrap();
        let step = Some(truth.step());
        let current = version(Some(truth), &self.active);
        let reports: Vec<&Report> = self.replicas.iter().map(|r| &r.reported).collect();
        let replica = |r: &&Report| Replica { name: "r".into(), follows: r.follows.clone(), heard: 0 };
        let fresh = || reports.iter().filter(|r| r.follows == step);
        let proxy = |(p, model): (usize, &ProxyModel)| {
            let said = fresh().filter_map(|r| r.connected.get(&p));
            let trust = said.map(|said| match said {
                None => Trust::PerCertificate,
                Some(acked) if acked.as_ref() == Some(&current) => Trust::Adopted,
                Some(_) => Trust::Behind,
            });
            // Two replicas may both think that it is theirs: the worse word counts.
            let trust = trust.reduce(|a, b| if a == Trust::Adopted { b } else { a }).unwrap_or(Trust::Absent);
            let held = (0..2).filter(|i| model.leaves[*i].is_some());
            let missing = held.filter(|i| !fresh().any(|r| r.evidence.contains(&(p, *i)))).map(|i| i.to_string());
            Proxy { name: format!("p{p}"), trust, since: 0, missing: missing.collect() }
        };
        Observed {
            replicas: reports.iter().map(replica).collect(),
            proxies: self.proxies.iter().enumerate().map(proxy).collect(),
        }
    }

    fn lead(&mut self, r: usize) {
        let Some(truth) = &self.truth else { return };
        // Who has not read the last step cannot write the next: the store refuses.
        if self.replicas[r].view.step != Some(truth.step()) {
            return;
        }
        if let Ok(next) = truth.advance(self.goal, &self.observed(), LIMITS, 0) {
            self.truth = Some(next);
        }
    }

    fn trusts(&self, p: usize, i: usize) -> Option<Roots> {
        let proxy = &self.proxies[p];
        let leaf = proxy.leaves[i].as_ref()?;
        Some(match &proxy.bundle {
            Some((roots, at)) if *at > leaf.at => roots.clone(),
            Some((roots, _)) => roots.union(&leaf.roots).cloned().collect(),
            None => leaf.roots.clone(),
        })
    }

    fn check(&self) -> Result<(), String> {
        let all = || (0..self.proxies.len()).flat_map(|p| (0..2).map(move |i| (p, i)));
        for (p, i) in all() {
            let Some(trusted) = self.trusts(p, i) else { continue };
            for (q, j) in all() {
                if let Some(leaf) = &self.proxies[q].leaves[j]
                    && !trusted.contains(&leaf.signer)
                {
                    return Err(format!("{p}/{i} does not trust {q}/{j}, of {}; truth {:?}", leaf.signer, self.truth));
                }
            }
        }
        Ok(())
    }

    fn event(&mut self, (what, a, b, c): (u8, u8, u8, u8)) {
        let (p, i, r) = (usize::from(a) % 3, usize::from(b) % 2, usize::from(c) % 2);
        match what {
            0 => self.begin(),
            1 => self.goal = if a.is_multiple_of(2) { Goal::Complete } else { Goal::Abort },
            2..=4 => self.sync(r),
            5..=7 => self.replicas[r].reported = self.replicas[r].now.clone(),
            8..=11 => self.lead(r),
            12 => self.connect(p, r),
            13 => self.disconnect(p),
            14..=16 => self.deliver(p),
            17..=20 => self.issue(p, i, r),
            _ => self.restart(p),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    /// Whatever the order of events, whoever lags, restarts or hears late: any two proxies can shake hands.
    #[test]
    fn no_order_of_events_breaks_a_handshake(
        events in prop::collection::vec((0..22_u8, any::<u8>(), any::<u8>(), any::<u8>()), 0..250)
    ) {
        let mut world = World::new();
        for event in events {
            world.event(event);
            world.check().map_err(TestCaseError::fail)?;
        }
    }

    /// From wherever it is, it ends as soon as everybody does what they should.
    #[test]
    fn it_ends(
        events in prop::collection::vec((0..22_u8, any::<u8>(), any::<u8>(), any::<u8>()), 0..100),
        abort in any::<bool>(),
    ) {
        let mut world = World::new();
        events.into_iter().for_each(|event| world.event(event));
        world.begin();
        world.goal = if abort { Goal::Abort } else { Goal::Complete };
        for _ in 0..12 {
            for r in 0..2 {
                world.sync(r);
            }
            for p in 0..3 {
                if world.proxies[p].connected.is_none() {
                    world.connect(p, p % 2);
                }
                while !world.proxies[p].coming.is_empty() {
                    world.deliver(p);
                }
                world.issue(p, 0, 0);
                world.issue(p, 1, 1);
            }
            for r in 0..2 {
                world.replicas[r].reported = world.replicas[r].now.clone();
            }
            world.lead(0);
            world.check().map_err(TestCaseError::fail)?;
        }
        prop_assert_eq!(world.truth.unwrap().phase, Phase::Settled);
    }
}

fn at(phase: Phase, stage: Stage) -> Rotation {
    Rotation { phase, stage, ..Rotation::begin("r".into(), root(1), root(2), 100) }
}

fn proxy(trust: Trust, missing: &[&str]) -> Proxy {
    let missing = missing.iter().map(|s| (*s).to_owned()).collect();
    Proxy { name: "istio-system/ztunnel-a".into(), trust, since: 150, missing }
}

#[test]
fn who_lags_is_named() {
    let limits = Limits { min_overlap: 60, max_ttl: 1000 };
    let (overlap, cut_over) = (at(Phase::Overlap, Stage::Gating), at(Phase::CutOver, Stage::Gating));
    type Row<'a> = (&'a Rotation, i64, Option<Proxy>, Result<Phase, &'a str>);
    let table: [Row<'_>; 13] = [
        (&overlap, 159, None, Err("mounted files: the ConfigMap is given 60 s to reach them")),
        (&overlap, 160, None, Ok(Phase::CutOver)),
        (&overlap, 500, Some(proxy(Trust::Adopted, &["a", "b"])), Ok(Phase::CutOver)),
        (&overlap, 500, Some(proxy(Trust::Behind, &[])), Err("ztunnel-a: has not acknowledged")),
        (&overlap, 500, Some(proxy(Trust::PerCertificate, &[])), Ok(Phase::CutOver)),
        (&overlap, 500, Some(proxy(Trust::PerCertificate, &["x"])), Err("ztunnel-a: not issued anew since: x")),
        (
            &overlap,
            500,
            Some(proxy(Trust::Absent, &["x"])),
            Err("ztunnel-a: is not connected; not issued anew since: x"),
        ),
        // The age of certificates is no help where trust is lacking.
        (&overlap, 5000, Some(proxy(Trust::Behind, &[])), Err("has not acknowledged")),
        (&cut_over, 500, Some(proxy(Trust::Adopted, &["1", "2", "3", "4", "5"])), Err("1, 2, 3 and 2 more")),
        (&cut_over, 500, Some(proxy(Trust::Behind, &[])), Ok(Phase::Settled)),
        (&cut_over, 1100, Some(proxy(Trust::Absent, &["x"])), Err("not issued anew")),
        (&cut_over, 1101, Some(proxy(Trust::Absent, &["x"])), Ok(Phase::Settled)),
        (&cut_over, 500, None, Ok(Phase::Settled)),
    ];
    for (number, (rotation, now, proxy, expect)) in table.into_iter().enumerate() {
        let observed = Observed { replicas: Vec::new(), proxies: proxy.into_iter().collect() };
        match (rotation.advance(Goal::Complete, &observed, limits, now), expect) {
            (Ok(next), Ok(phase)) => {
                assert_eq!((next.phase, next.since, next.seq), (phase, now, rotation.seq + 1), "row {number}");
            }
            (Err(lags), Err(text)) => {
                let said = format!("{}: {}", lags[0].who, lags[0].why);
                assert!(said.contains(text), "row {number}: {said}");
                assert!(lags[0].since >= rotation.since, "row {number}");
            }
            (got, expect) => panic!("row {number}: {got:?}, not {expect:?}"),
        }
    }
}

#[test]
fn a_phase_spreads_over_all_replicas_before_anything_counts() {
    let rotation = at(Phase::CutOver, Stage::Spreading);
    let replica = |follows| Replica { name: "istiod-b".into(), follows, heard: 120 };
    let with = |follows| Observed { replicas: vec![replica(follows)], proxies: vec![proxy(Trust::Absent, &["x"])] };
    let advance = |observed: &Observed| rotation.advance(Goal::Complete, observed, LIMITS, 200);
    for follows in [None, Some(Step { seq: 0, ..rotation.step() }), Some(Step { id: "q".into(), seq: 1 })] {
        let lag = advance(&with(follows)).unwrap_err().remove(0);
        assert_eq!((lag.who.as_str(), lag.since), ("istiod-lite istiod-b", 120));
    }
    let next = advance(&with(Some(rotation.step()))).unwrap();
    assert_eq!((next.phase, next.stage, next.since), (Phase::CutOver, Stage::Gating, rotation.since));
}

#[test]
fn an_abort_goes_back_by_the_way_that_is_safe() {
    let none = Observed::default();
    let early = at(Phase::Overlap, Stage::Gating).advance(Goal::Abort, &none, LIMITS, 200).unwrap();
    assert_eq!((early.phase, early.signs(), early.trusted()), (Phase::Settled, &root(1), vec![&root(1)]));

    let late = at(Phase::CutOver, Stage::Gating).advance(Goal::Abort, &none, LIMITS, 200).unwrap();
    assert_eq!((late.phase, late.stage, late.signs()), (Phase::CutOver, Stage::Spreading, &root(1)));
    assert_eq!(late.trusted(), [&root(1), &root(2)]);
    // Another mind: forward again.
    let forward = late.advance(Goal::Complete, &none, LIMITS, 300).unwrap();
    assert_eq!((forward.signs(), forward.back), (&root(2), false));
    // Or all the way back.
    let gating = late.advance(Goal::Abort, &none, LIMITS, 300).unwrap();
    let settled = gating.advance(Goal::Abort, &none, LIMITS, 300).unwrap();
    assert_eq!((settled.phase, settled.signs(), settled.trusted()), (Phase::Settled, &root(1), vec![&root(1)]));
    assert_eq!(settled.advance(Goal::Abort, &none, LIMITS, 300), Err(vec![]));
}

#[test]
fn the_control_planes_own_certificate_is_of_the_root_that_files_know() {
    assert_eq!(at(Phase::Overlap, Stage::Gating).serves(), &root(1));
    let cut_over = at(Phase::CutOver, Stage::Gating);
    assert_eq!(cut_over.serves(), &root(1));
    assert_eq!(cut_over.turned(0).serves(), &root(1));
    assert_eq!(at(Phase::Settled, Stage::Gating).serves(), &root(2));
}
