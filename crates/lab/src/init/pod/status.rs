//! What a pod reports: its conditions, its containers, its phase.

use std::net::IpAddr;

use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};

use super::{Life, Live, PodState};
use crate::init::cluster::Event;
use crate::init::shared::Shared;

/// A container as it stands.
#[derive(Debug, Clone, Default)]
pub(in crate::init) struct ContainerState {
    pub(in crate::init) image: String,
    pub(in crate::init) pid: Option<i32>,
    pub(in crate::init) ready: bool,
    pub(in crate::init) restarts: u32,
    /// It ended, and won't be started again.
    pub(in crate::init) finished: Option<i32>,
    /// Its task is over, or it never began.
    pub(in crate::init) stopped: bool,
    /// A native sidecar or a container that prepares the pod.
    pub(in crate::init) init: bool,
    /// Its environment, which commands run in it share.
    pub(in crate::init) env: Vec<(String, String)>,
}

impl Life {
    /// Changes one container's state and tells of it.
    pub(super) fn container(&self, name: &str, change: impl FnOnce(&mut ContainerState)) {
        change(self.state.live.lock().containers.entry(name.to_owned()).or_default());
        self.publish();
    }

    /// Why the pod isn't running.
    pub(super) fn message(&self, message: &str) {
        let mut live = self.state.live.lock();
        if live.message != message {
            live.message = message.to_owned();
            drop(live);
            self.publish();
        }
    }

    /// Writes the status, if it differs from what was last written, and tells the cluster.
    pub(super) fn publish(&self) {
        let status = {
            let mut live = self.state.live.lock();
            live.settle(&self.state);
            let mut status = status(&self.shared, &self.state, &live);
            keep_times(&mut status, &live.published);
            if status == live.published {
                return;
            }
            live.published = status.clone();
            status
        };
        self.write(self.shared.store().publish(&self.state.key(), status));
        self.shared.send(Event::PodChanged);
    }
}

impl Live {
    /// Phase and readiness from the containers.
    fn settle(&mut self, state: &PodState) {
        let main: Vec<_> = self.containers.values().filter(|container| !container.init).collect();
        let wanted = state.pod.spec.as_ref().map_or(0, |spec| spec.containers.len());
        let sidecars_ready = self.containers.values().all(|c| !c.init || c.ready || c.finished.is_some());
        let all_there = wanted > 0 && main.len() == wanted;
        self.phase = if all_there && main.iter().all(|container| container.finished.is_some()) {
            if main.iter().all(|container| container.finished == Some(0)) { "Succeeded" } else { "Failed" }
        } else if all_there && main.iter().all(|c| c.pid.is_some() || c.restarts > 0 || c.finished.is_some()) {
            "Running"
        } else if self.phase == "Running" {
            // Once it ran, a container that is down for a moment doesn't make it pending again.
            "Running"
        } else {
            "Pending"
        };
        self.ready = all_there && sidecars_ready && main.iter().all(|container| container.ready);
    }
}

fn status(shared: &Shared, state: &PodState, live: &Live) -> Value {
    let node = shared.node(state.node);
    let list = |ips: &[IpAddr]| ips.iter().map(|ip| json!({"ip": ip})).collect::<Vec<_>>();
    let condition = |kind: &str, holds: bool| json!({"type": kind, "status": if holds { "True" } else { "False" }});
    let statuses = |init: bool| {
        let of_kind = live.containers.iter().filter(move |(_, container)| container.init == init);
        of_kind.map(|(name, container)| container_status(name, container)).collect::<Vec<_>>()
    };
    let initialized = live.containers.values().any(|container| !container.init);
    let mut status = json!({
        "phase": live.phase,
        "conditions": [
            condition("PodScheduled", true),
            condition("Initialized", initialized),
            condition("ContainersReady", live.ready),
            condition("Ready", live.ready),
        ],
        "hostIP": node.ips.first(),
        "hostIPs": list(&node.ips),
        "startTime": now(),
        "containerStatuses": statuses(false),
        "initContainerStatuses": statuses(true),
        "message": live.message,
    });
    if live.namespaces.is_some() {
        status["podIP"] = json!(state.ips.first());
        status["podIPs"] = json!(list(&state.ips));
    }
    status
}

fn container_status(name: &str, container: &ContainerState) -> Value {
    let running = container.pid.is_some();
    let state = match container.finished {
        Some(code) => json!({"terminated": {"exitCode": code}}),
        None if running => json!({"running": {}}),
        None => {
            json!({"waiting": {"reason": if container.restarts > 0 { "CrashLoopBackOff" } else { "ContainerCreating" }}})
        }
    };
    json!({
        "name": name, "image": container.image, "imageID": "", "ready": container.ready,
        "restartCount": container.restarts, "started": running, "state": state,
    })
}

/// Carries over the times of what has not changed.
fn keep_times(status: &mut Value, before: &Value) {
    if before["startTime"].is_string() {
        status["startTime"] = before["startTime"].clone();
    }
    let Some(conditions) = status["conditions"].as_array_mut() else { return };
    for condition in conditions {
        let old = before["conditions"].as_array().into_iter().flatten();
        let same = old.into_iter().find(|old| old["type"] == condition["type"] && old["status"] == condition["status"]);
        condition["lastTransitionTime"] = same.map_or_else(|| json!(now()), |old| old["lastTransitionTime"].clone());
    }
}

fn now() -> String {
    format!("{:.0}", Timestamp::now())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_stay_with_what_stays() {
        let condition =
            |kind: &str, status: &str, time: &str| json!({"type": kind, "status": status, "lastTransitionTime": time});
        let before = json!({
            "startTime": "t0",
            "conditions": [condition("Ready", "False", "t1"), condition("Initialized", "True", "t1")],
        });
        let mut status = json!({
            "startTime": "t9",
            "conditions": [{"type": "Ready", "status": "True"}, {"type": "Initialized", "status": "True"}],
        });
        keep_times(&mut status, &before);
        assert_eq!(status["startTime"], "t0");
        assert_eq!(status["conditions"][1]["lastTransitionTime"], "t1");
        assert_ne!(status["conditions"][0]["lastTransitionTime"], "t1");
    }
}
