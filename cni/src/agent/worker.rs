//! One pod's way in and out: what shall be against what is done, until they agree.

use crate::agent::decision::{Decision, Reason};
use crate::agent::effects::{Effects, Marks, PodId};
use crate::rules::pod::PodRules;
use crate::zds::ZdsError;
use aquifer_runtime::Backoff;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;

const RETRY_FIRST: Duration = Duration::from_millis(5);
const RETRY_MAX: Duration = Duration::from_secs(5);
/// A namespace that is not there yet is a pod that is just starting.
const NETNS_RETRY_MAX: Duration = Duration::from_millis(250);
/// A pod without a namespace or an address for this long is not just starting: someone should know.
const NETNS_OVERDUE: Duration = Duration::from_secs(5);

/// From the annotation's removal to the rules': peers hear of it and go back to plain TCP meanwhile, which the proxy
/// still lets in, instead of meeting a closed HBONE port.
pub(crate) const PEERS_HEAR: Duration = Duration::from_millis(250);

/// What a worker is told.
#[derive(Debug)]
pub enum Order {
    /// What shall be.
    Shall(Target),
    /// The CNI plugin created the pod's network.
    Created(Created),
    /// The pod is gone.
    Gone,
}

/// What shall be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// In or out.
    pub decision: Decision,
    /// The pod's addresses, as far as its status has them.
    pub ips: Vec<IpAddr>,
    /// Our annotations as the object has them now.
    pub marks: Marks,
}

/// What the CNI plugin said.
#[derive(Debug)]
pub struct Created {
    /// Where the network namespace is.
    pub netns: PathBuf,
    /// The pod's addresses.
    pub ips: Vec<IpAddr>,
    /// Told when the pod is in, or will not be, or could not be brought in by the deadline.
    pub answer: oneshot::Sender<Result<Answer, String>>,
    /// Until when it waits.
    pub deadline: Instant,
}

/// What the CNI plugin is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// The pod is in.
    Enrolled,
    /// It shall not be in.
    NotEnrolled(Reason),
}

/// Held until a worker has laid its pod's rules for the first time, or found that there is nothing to lay.
pub type Stocktaking = mpsc::Sender<()>;

/// Drives one pod until it is gone, or the orders end (which changes nothing for the pod).
pub async fn run<E: Effects>(
    effects: Arc<E>,
    pod: PodId,
    mut orders: mpsc::UnboundedReceiver<Order>,
    stocktaking: Option<Stocktaking>,
) {
    let proxies = effects.proxies();
    let mut worker = Worker {
        effects,
        pod,
        target: None,
        created: None,
        waiting: Vec::new(),
        done: Done::Nothing,
        written: None,
        awaited: None,
        stocktaking,
    };
    let Some(first) = orders.recv().await else { return };
    if worker.take(first) {
        return worker.gone().await;
    }
    let mut retry = Retry::new(proxies);
    loop {
        // All that is known counts before anything is done.
        while let Ok(order) = orders.try_recv() {
            retry.reset();
            if worker.take(order) {
                return worker.gone().await;
            }
        }
        retry.mark();
        let outcome = worker.step().await;
        worker.stocktaking = None;
        worker.overdue(&outcome).await;
        worker.answer(&outcome);
        let order = match outcome {
            Outcome::Done(_) => {
                retry.reset();
                orders.recv().await
            }
            Outcome::Again { after, .. } => {
                let delay = retry.delay(after).min(worker.until_deadline());
                tokio::select! {
                    order = orders.recv() => order,
                    () = tokio::time::sleep(delay) => continue,
                    () = retry.proxy_connected() => continue,
                }
            }
        };
        let Some(order) = order else { return };
        retry.reset();
        if worker.take(order) {
            return worker.gone().await;
        }
    }
}

struct Worker<E> {
    effects: Arc<E>,
    pod: PodId,
    target: Option<Target>,
    created: Option<(PathBuf, Vec<IpAddr>)>,
    waiting: Vec<(Instant, oneshot::Sender<Result<Answer, String>>)>,
    done: Done,
    written: Option<Marks>,
    /// Since when the pod's namespace or address is awaited, and whether that was told.
    awaited: Option<(Instant, bool)>,
    stocktaking: Option<Stocktaking>,
}

#[derive(Debug, PartialEq, Eq)]
enum Done {
    Nothing,
    In(Facts),
    Out(Reason),
}

/// What an enrolment depends on.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Facts {
    netns: PathBuf,
    rules: PodRules,
    ips: Vec<IpAddr>,
}

enum Outcome {
    Done(Answer),
    Again { after: After, error: String },
}

#[derive(Clone, Copy, PartialEq)]
enum After {
    /// The pod is just starting.
    Netns,
    /// A step failed.
    Failure,
}

impl<E: Effects> Worker<E> {
    /// True when the pod is gone.
    fn take(&mut self, order: Order) -> bool {
        match order {
            Order::Shall(target) => self.target = Some(target),
            Order::Created(created) => {
                self.created = Some((created.netns, created.ips));
                self.waiting.push((created.deadline, created.answer));
            }
            Order::Gone => return true,
        }
        false
    }

    async fn step(&mut self) -> Outcome {
        let again = |after, error: &str| Outcome::Again { after, error: error.to_owned() };
        let Some(target) = self.target.clone() else { return again(After::Netns, "the pod is not known yet") };
        match target.decision {
            Decision::Leave(reason) => self.leave(&reason, &target.marks).await,
            Decision::Enrol(rules) => {
                let created = self.created.clone();
                let netns = created.as_ref().map(|(netns, _)| netns.clone()).or_else(|| self.effects.find(&self.pod));
                let Some(netns) = netns else {
                    if target.marks.redirection.as_deref() == Some(ENABLED) {
                        self.effects.keep(&self.pod);
                    }
                    return again(After::Netns, "the pod's network namespace is not there yet");
                };
                let ips =
                    if target.ips.is_empty() { created.map(|(_, ips)| ips).unwrap_or_default() } else { target.ips };
                if ips.is_empty() {
                    return again(After::Netns, "the pod has no address yet");
                }
                self.enrol(Facts { netns, rules, ips }, &target.marks).await
            }
        }
    }

    async fn enrol(&mut self, facts: Facts, marks: &Marks) -> Outcome {
        if self.done == Done::In(facts.clone()) {
            if marks.redirection.as_deref() != Some(ENABLED) {
                // Someone took it off, or this is how the pod looked before we wrote it; writing it twice is nothing.
                self.written = None;
                if let Err(error) = self.mark(marks, Some(ENABLED), None).await {
                    return self.failure("annotation", error, marks, false).await;
                }
            }
            return Outcome::Done(Answer::Enrolled);
        }
        self.no_longer_in();
        if let Err(error) = self.effects.lay(&self.pod, &facts.netns, &facts.rules, &facts.ips).await {
            return self.failure("rules", error, marks, true).await;
        }
        // New proxies are told of the pod from here on: the stock need not wait for this one.
        self.stocktaking = None;
        if let Err(error) = self.effects.hand_over(&self.pod).await {
            // A pod that is in stays in while proxies come and go: the next one finds it in its snapshot.
            let told = matches!(error, ZdsError::Refused(_)) || marks.redirection.as_deref() != Some(ENABLED);
            return self.failure("zds", error.to_string(), marks, told).await;
        }
        if let Err(error) = self.effects.admit_probes(&self.pod, &facts.ips).await {
            return self.failure("probes", error, marks, true).await;
        }
        if let Err(error) = self.mark(marks, Some(ENABLED), None).await {
            return self.failure("annotation", error, marks, false).await;
        }
        tracing::info!(pod = %self.name(), ips = ?facts.ips, "enrolled");
        self.done = Done::In(facts);
        self.effects.enrolled(1);
        Outcome::Done(Answer::Enrolled)
    }

    async fn leave(&mut self, reason: &Reason, marks: &Marks) -> Outcome {
        let done = || Outcome::Done(Answer::NotEnrolled(reason.clone()));
        if self.done == Done::Out(reason.clone()) {
            return done();
        }
        let told = reason.is_surprising().then(|| reason.to_string());
        if let Err(error) = self.mark(marks, None, told.as_deref()).await {
            return self.failure("annotation", error, marks, false).await;
        }
        // From here on it is neither in nor out, should it be wanted in again before all of this has succeeded.
        let was_in = self.no_longer_in();
        if marks.redirection.as_deref() == Some(ENABLED) && *reason != Reason::Terminated {
            tokio::time::sleep(PEERS_HEAR).await;
        }
        if was_in || self.effects.knows(&self.pod) {
            // An ended pod's namespace goes with it.
            if *reason != Reason::Terminated
                && let Err(error) = self.effects.remove_rules(&self.pod).await
            {
                return self.failure("rules", error, marks, false).await;
            }
            if let Err(error) = self.effects.forget(&self.pod).await {
                return self.failure("zds", error, marks, false).await;
            }
            tracing::info!(pod = %self.name(), %reason, "taken out of the mesh");
        } else if reason.is_surprising() {
            tracing::info!(pod = %self.name(), %reason, "not enrolled");
        }
        self.done = Done::Out(reason.clone());
        done()
    }

    async fn gone(mut self) {
        if self.effects.knows(&self.pod) {
            self.no_longer_in();
            if let Err(error) = self.effects.forget(&self.pod).await {
                tracing::warn!(pod = %self.name(), %error, "could not forget a pod that is gone");
            }
        }
        for (_, answer) in self.waiting.drain(..) {
            let _ = answer.send(Err("the pod is gone".into()));
        }
    }

    /// Tells once of a pod that should long have had its network.
    async fn overdue(&mut self, outcome: &Outcome) {
        let (Outcome::Again { after: After::Netns, error }, Some(target)) = (outcome, self.target.clone()) else {
            self.awaited = None;
            return;
        };
        let (since, told) = self.awaited.get_or_insert((Instant::now(), false));
        if !*told && since.elapsed() >= NETNS_OVERDUE {
            *told = true;
            // One that is in has lost nothing yet: its peers go on as before.
            let show = target.marks.redirection.as_deref() != Some(ENABLED);
            self.failure("netns", error.clone(), &target.marks, show).await;
        }
    }

    /// Nothing is known to be done any more; whether the pod was in.
    fn no_longer_in(&mut self) -> bool {
        let was_in = matches!(std::mem::replace(&mut self.done, Done::Nothing), Done::In(_));
        if was_in {
            self.effects.enrolled(-1);
        }
        was_in
    }

    /// Counts, logs and perhaps shows a failed step; it is tried again.
    async fn failure(&mut self, step: &'static str, error: String, marks: &Marks, show: bool) -> Outcome {
        self.effects.failed(step);
        tracing::warn!(pod = %self.name(), step, %error, "not enrolled yet");
        if show && let Err(error) = self.mark(marks, Some(PENDING), None).await {
            tracing::warn!(pod = %self.name(), %error, "annotation");
        }
        Outcome::Again { after: After::Failure, error }
    }

    /// Writes our annotations, unless they are there already: as last written, or else as the object has them `now`.
    async fn mark(&mut self, now: &Marks, redirection: Option<&str>, reason: Option<&str>) -> Result<(), String> {
        let marks = Marks { redirection: redirection.map(str::to_owned), reason: reason.map(str::to_owned) };
        if self.written.as_ref().unwrap_or(now) == &marks {
            return Ok(());
        }
        self.effects.mark(&self.pod, &marks).await?;
        self.written = Some(marks);
        Ok(())
    }

    /// Answers those who wait: all of them when it is done, those whose time is up otherwise.
    fn answer(&mut self, outcome: &Outcome) {
        match outcome {
            Outcome::Done(answer) => {
                for (_, waiting) in self.waiting.drain(..) {
                    let _ = waiting.send(Ok(answer.clone()));
                }
            }
            Outcome::Again { error, .. } => {
                let now = Instant::now();
                let (over, waiting): (Vec<_>, Vec<_>) =
                    self.waiting.drain(..).partition(|(deadline, _)| *deadline <= now);
                self.waiting = waiting;
                for (_, waiting) in over {
                    let _ = waiting.send(Err(error.clone()));
                }
            }
        }
    }

    fn until_deadline(&self) -> Duration {
        let now = Instant::now();
        let next = self.waiting.iter().map(|(deadline, _)| deadline.saturating_duration_since(now)).min();
        next.unwrap_or(Duration::MAX)
    }

    fn name(&self) -> String {
        format!("{}/{}", self.pod.namespace, self.pod.name)
    }
}

/// Values of the redirection annotation.
const ENABLED: &str = "enabled";
const PENDING: &str = "pending";

/// When to try again: with growing pauses, and as soon as a proxy has connected.
struct Retry {
    failure: Backoff,
    netns: Backoff,
    proxies: watch::Receiver<u64>,
}

impl Retry {
    fn new(proxies: watch::Receiver<u64>) -> Self {
        Self {
            failure: Backoff::doubling(RETRY_FIRST, RETRY_MAX),
            netns: Backoff::doubling(RETRY_FIRST, NETNS_RETRY_MAX),
            proxies,
        }
    }

    fn reset(&mut self) {
        self.failure.reset();
        self.netns.reset();
    }

    /// Proxies that connect from here on count as new.
    fn mark(&mut self) {
        self.proxies.mark_unchanged();
    }

    fn delay(&mut self, after: After) -> Duration {
        match after {
            After::Netns => self.netns.next(&mut rand::rng()),
            After::Failure => self.failure.next(&mut rand::rng()),
        }
    }

    async fn proxy_connected(&mut self) {
        if self.proxies.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
        self.reset();
    }
}
