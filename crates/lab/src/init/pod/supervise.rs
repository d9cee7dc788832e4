//! Runs a pod's containers: starts them, probes them, starts them again, stops them.

use std::fs::{self, File, OpenOptions};
use std::os::fd::OwnedFd;
use std::process::{Command, Stdio};
use std::time::Duration;

use k8s_openapi::api::core::v1::Container;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use super::{Deletion, Life, Order, deleted};
use crate::error::{During, LabError, Result};
use crate::init::container::{self, ContainerPlan, ProbePlan};
use crate::init::reaper::{Place, Running};
use crate::init::{components, probe};
use crate::options::Component;

/// Until a probe first succeeds it is made this often, so that a pod counts as ready when it is.
const EAGER_PERIOD: Duration = Duration::from_millis(25);

const FIRST_RESTART: Duration = Duration::from_millis(100);
const LONGEST_RESTART: Duration = Duration::from_secs(10);
/// A container that ran this long is started again at once.
const STEADY: Duration = Duration::from_secs(10);
/// How long the store may take to say that a pod goes, before its containers are told all the same.
const LONGEST_MARK: Duration = Duration::from_secs(5);

/// Starts everything in its order; returns when it is started.
pub(super) async fn containers(life: &Life, orders: mpsc::UnboundedReceiver<Order>) {
    let pod = std::sync::Arc::clone(&life.state.pod);
    let Some(spec) = &pod.spec else { return };
    if matches!(life.state.extra.component, Some(Component::Ztunnel(_))) {
        let ttl = Duration::from_secs(life.shared.options.token_ttl_seconds);
        if let Err(error) = components::write_token(&life.shared, &life.state, ttl).await {
            life.message(&error.to_string());
        }
    }
    if let Some((wanted, copy)) = &life.state.extra.copy {
        while fs::metadata(wanted).is_err() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        if let Err(error) = fs::copy(wanted, copy) {
            life.message(&format!("copying {}: {error}", wanted.display()));
        }
    }
    for container in spec.init_containers.iter().flatten() {
        let sidecar = container.restart_policy.as_deref() == Some("Always");
        let Some(worker) = Worker::plan(life, container, true).await else { return };
        if sidecar {
            worker.spawn(Restart::Always, None);
        } else {
            worker.run_to_success().await;
        }
    }
    let restart = match (&life.state.extra.component, spec.restart_policy.as_deref()) {
        (Some(_), _) => Restart::WhenTold,
        (_, Some("Never")) => Restart::Never,
        (_, Some("OnFailure")) => Restart::OnFailure,
        _ => Restart::Always,
    };
    let mut orders = Some(orders);
    for container in &spec.containers {
        let Some(worker) = Worker::plan(life, container, false).await else { return };
        worker.spawn(restart, orders.take());
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Restart {
    Always,
    OnFailure,
    Never,
    WhenTold,
}

/// How one run of a container ended.
enum End {
    Exited(i32),
    /// A liveness probe gave up on it, and it was killed.
    Unhealthy,
    /// The pod is deleted, and the container stopped.
    Stopped,
}

struct Worker {
    life: Life,
    plan: ContainerPlan,
    place: Place,
    deletion: watch::Receiver<Option<Deletion>>,
}

impl Worker {
    /// `None` if the spec cannot be run: the pod's message says why, and it stays as it is.
    async fn plan(life: &Life, container: &Container, init: bool) -> Option<Self> {
        let facts = life.state.facts(&life.shared);
        let plan = match container::plan(container, &life.state.pod, &facts) {
            Ok(plan) => plan,
            Err(why) => {
                tracing::warn!(pod = %life.state.key(), why, "a container cannot be run");
                life.message(&why);
                return None;
            }
        };
        let namespaces = life.state.live.lock().namespaces.clone()?;
        let place = Place { namespaces, user: plan.user, group: plan.group };
        let (env, image) = (plan.env.clone().into_iter().collect(), plan.image.clone());
        life.container(&plan.name, |state| {
            state.init = init;
            state.image = image;
            state.env = env;
            state.stopped = true;
        });
        let deletion = life.state.delete.subscribe();
        Some(Self { life: life.clone(), plan, place, deletion })
    }

    fn spawn(mut self, restart: Restart, orders: Option<mpsc::UnboundedReceiver<Order>>) {
        // Said before the task runs: a deletion from now on must wait for it.
        self.life.state.live.lock().containers.entry(self.plan.name.clone()).or_default().stopped = false;
        let tracker = self.life.shared.tracker.clone();
        tracker.spawn("container", async move {
            self.keep_running(restart, orders).await;
            let name = self.plan.name.clone();
            self.life.container(&name, |state| {
                state.stopped = true;
                state.ready = false;
                state.pid = None;
            });
        });
    }

    async fn keep_running(&mut self, restart: Restart, mut orders: Option<mpsc::UnboundedReceiver<Order>>) {
        let mut pause = FIRST_RESTART;
        loop {
            let begin = Instant::now();
            let end = self.run_once(&mut orders).await;
            let name = self.plan.name.clone();
            match end {
                Ok(End::Stopped) => return,
                Ok(End::Exited(code)) if restart == Restart::Never || (restart == Restart::OnFailure && code == 0) => {
                    self.life.container(&name, |state| {
                        state.finished = Some(code);
                        state.ready = false;
                        state.pid = None;
                    });
                    return;
                }
                Ok(End::Exited(code)) => tracing::info!(pod = %self.life.state.key(), container = name, code, "exited"),
                Ok(End::Unhealthy) => {}
                Err(error) => self.life.message(&format!("container {name}: {error}")),
            }
            self.life.container(&name, |state| {
                state.ready = false;
                state.pid = None;
            });
            if restart == Restart::WhenTold {
                if !self.wait_told(&mut orders).await {
                    return;
                }
            } else {
                if begin.elapsed() > STEADY {
                    pause = FIRST_RESTART;
                }
                if tokio::time::timeout(pause, deleted(&mut self.deletion)).await.is_ok() {
                    return;
                }
                pause = (pause * 2).min(LONGEST_RESTART);
            }
            self.life.container(&name, |state| state.restarts += 1);
        }
    }

    /// Waits for the order to start again; `false` if the pod is deleted meanwhile.
    async fn wait_told(&mut self, orders: &mut Option<mpsc::UnboundedReceiver<Order>>) -> bool {
        loop {
            tokio::select! {
                biased;
                () = deleted(&mut self.deletion) => return false,
                order = next_order(orders) => if let Order::Start(env) = order {
                    self.plan.env.extend(env);
                    return true;
                },
            }
        }
    }

    async fn run_to_success(mut self) {
        let mut pause = FIRST_RESTART;
        loop {
            let name = self.plan.name.clone();
            match self.run_once(&mut None).await {
                Ok(End::Exited(0)) => {
                    self.life.container(&name, |state| {
                        state.finished = Some(0);
                        state.pid = None;
                    });
                    return;
                }
                Ok(End::Stopped) => return,
                Ok(_) => {}
                Err(error) => self.life.message(&format!("container {name}: {error}")),
            }
            self.life.container(&name, |state| {
                state.pid = None;
                state.restarts += 1;
            });
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LONGEST_RESTART);
        }
    }

    async fn run_once(&mut self, orders: &mut Option<mpsc::UnboundedReceiver<Order>>) -> Result<End> {
        if self.deletion.borrow().is_some() {
            return Ok(End::Stopped);
        }
        let mut running = self.start()?;
        let (name, pid, probed) = (self.plan.name.clone(), running.pid, self.plan.readiness.is_some());
        self.life.container(&name, |state| {
            state.pid = Some(pid);
            state.ready = !probed;
        });
        self.life.message("");
        let mut exit = running.clone();
        let (readiness, liveness) =
            (Prober::new(self.plan.readiness.as_ref()), Prober::new(self.plan.liveness.as_ref()));
        tokio::pin! {
            let probing = self.probe(readiness, liveness);
        }
        let mut deletion = self.deletion.clone();
        loop {
            tokio::select! {
                biased;
                code = exit.wait() => return Ok(End::Exited(code)),
                () = deleted(&mut deletion) => break,
                order = next_order(orders) => if let Order::Signal(signal) = order {
                    running.signal(signal);
                },
                () = &mut probing => {
                    running.signal_group(libc::SIGKILL);
                    running.wait().await;
                    return Ok(End::Unhealthy);
                }
            }
        }
        self.stop(&mut running).await;
        Ok(End::Stopped)
    }

    fn start(&self) -> Result<Running> {
        let log = open_log(&self.life)?;
        let error_log = log.try_clone().during(|| "sharing a log".into())?;
        let (program, args) =
            self.plan.args.split_first().ok_or_else(|| LabError::Refused("an empty command".into()))?;
        let mut command = Command::new(program);
        command.args(args).env_clear().envs(&self.plan.env).stdin(Stdio::null());
        command.stdout(OwnedFd::from(log)).stderr(OwnedFd::from(error_log));
        // With the lab's own mounts, relative names must not land in the machine's folders.
        match (&self.plan.working_dir, self.life.state.extra.lab_mounts) {
            (Some(folder), _) => _ = command.current_dir(folder),
            (None, true) => _ = command.current_dir("/"),
            (None, false) => {}
        }
        let reaper = &self.life.shared.reaper;
        let started = reaper.start(command, &self.place);
        started.map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => LabError::Refused(format!(
                "`{program}` is not on this machine (the lab runs the machine's own programs)"
            )),
            _ => LabError::io(format!("starting `{program}`"), error),
        })
    }

    /// Probes forever; returns when the liveness probe has given up.
    async fn probe(&self, mut readiness: Prober, mut liveness: Prober) {
        loop {
            let next = match (readiness.next, liveness.next) {
                (Some(a), Some(b)) => a.min(b),
                (Some(one), None) | (None, Some(one)) => one,
                (None, None) => return std::future::pending().await,
            };
            tokio::time::sleep_until(next).await;
            let now = Instant::now();
            if readiness.next.is_some_and(|due| due <= now) {
                let result = self.check(self.plan.readiness.as_ref()).await;
                if let Some(ready) = readiness.judge(result.is_ok()) {
                    let name = self.plan.name.clone();
                    if let Err(why) = &result {
                        tracing::info!(pod = %self.life.state.key(), container = name, why, "not ready");
                    }
                    self.life.container(&name, |state| state.ready = ready);
                }
            }
            if liveness.next.is_some_and(|due| due <= now) {
                let result = self.check(self.plan.liveness.as_ref()).await;
                if let (Some(false), Err(why)) = (liveness.judge(result.is_ok()), &result) {
                    tracing::warn!(pod = %self.life.state.key(), container = self.plan.name, why, "unhealthy, killed");
                    return;
                }
            }
        }
    }

    async fn check(&self, probe: Option<&ProbePlan>) -> std::result::Result<(), String> {
        let Some(ProbePlan { check, timeout, .. }) = probe else { return Ok(()) };
        probe::check(&self.life.shared, &self.life.state, &self.place, &self.plan, check, *timeout).await
    }

    /// The object's mark, preStop, the stop signal, the rest of the grace period, SIGKILL to the group.
    async fn stop(&self, running: &mut Running) {
        let mut deletion = self.deletion.clone();
        let mut marked = self.life.state.marked.subscribe();
        let graceful = async {
            // An error would mean that the pod is gone. A store that does not answer must not cost the signal.
            let _ = tokio::time::timeout(LONGEST_MARK, marked.wait_for(|marked| *marked)).await;
            if let Some(check) = &self.plan.pre_stop {
                let left = deadline(&self.deletion).saturating_duration_since(Instant::now());
                let done =
                    probe::check(&self.life.shared, &self.life.state, &self.place, &self.plan, check, left).await;
                if let Err(why) = done {
                    tracing::info!(pod = %self.life.state.key(), why, "preStop failed");
                }
            }
            running.signal(self.plan.stop_signal);
            running.wait().await
        };
        let too_late = async {
            // A second deletion may bring the deadline nearer.
            while tokio::time::timeout_at(deadline(&deletion), deletion.changed()).await.is_ok() {}
        };
        tokio::select! {
            biased;
            _ = graceful => {}
            () = too_late => {}
        }
        running.signal_group(libc::SIGKILL);
        running.wait().await;
    }
}

/// When a probe is due, and what its results amount to.
struct Prober {
    plan: Option<ProbePlan>,
    next: Option<Instant>,
    verdict: Option<bool>,
    successes: u32,
    failures: u32,
}

impl Prober {
    fn new(plan: Option<&ProbePlan>) -> Self {
        let next = plan.map(|plan| Instant::now() + plan.initial_delay);
        Self { plan: plan.cloned(), next, verdict: None, successes: 0, failures: 0 }
    }

    /// Takes a result; says if the verdict changed.
    fn judge(&mut self, good: bool) -> Option<bool> {
        let plan = self.plan.as_ref()?;
        let before = self.verdict;
        if good {
            (self.successes, self.failures) = (self.successes + 1, 0);
            if self.successes >= plan.successes {
                self.verdict = Some(true);
            }
        } else {
            (self.successes, self.failures) = (0, self.failures + 1);
            if self.failures >= plan.failures && before.is_some() {
                self.verdict = Some(false);
            }
        }
        let period = if before.is_some() || self.verdict.is_some() { plan.period } else { EAGER_PERIOD };
        self.next = Some(Instant::now() + period);
        if self.verdict == before { None } else { self.verdict }
    }
}

async fn next_order(orders: &mut Option<mpsc::UnboundedReceiver<Order>>) -> Order {
    match orders {
        Some(orders) => match orders.recv().await {
            Some(order) => order,
            None => std::future::pending().await,
        },
        None => std::future::pending().await,
    }
}

fn deadline(deletion: &watch::Receiver<Option<Deletion>>) -> Instant {
    deletion.borrow().map_or_else(Instant::now, |deletion| deletion.deadline)
}

fn open_log(life: &Life) -> Result<File> {
    let path = life.state.log(&life.shared);
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).during(|| format!("making {}", folder.display()))?;
    }
    OpenOptions::new().create(true).append(true).open(&path).during(|| format!("opening {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::init::container::Check;

    #[test]
    fn verdicts_change_at_their_thresholds() {
        let plan = ProbePlan {
            check: Check::Sleep(Duration::ZERO),
            initial_delay: Duration::ZERO,
            period: Duration::from_secs(5),
            timeout: Duration::from_secs(1),
            failures: 2,
            successes: 1,
        };
        let mut prober = Prober::new(Some(&plan));
        let results = [false, false, false, true, true, false, false, false, true];
        let verdicts: Vec<_> = results.iter().map(|good| prober.judge(*good)).collect();
        let none = None;
        assert_eq!(verdicts, [none, none, none, Some(true), none, none, Some(false), none, Some(true)]);
    }
}
