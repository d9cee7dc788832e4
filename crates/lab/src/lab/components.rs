//! The mesh's own processes in a lab: their lives, their pages, their metrics.

use std::time::Duration;

use super::{Lab, owned, sum_metric, unexpected};
use crate::error::{LabError, Result};
use crate::options::{Component, Netns};
use crate::status::ProcessStats;
use crate::wire::{Reply, Request};

impl Lab {
    /// Sends a signal to a component's process. It stays down until it is started again.
    pub async fn kill(&self, component: Component, signal: i32) -> Result<()> {
        self.ask(Request::SignalComponent { component, signal }).await.map(drop)
    }

    /// Starts a component that is down, in the pod it was in, and returns when its process runs.
    pub async fn start_component(&self, component: Component) -> Result<()> {
        self.start_component_with(component, &[]).await
    }

    /// The same, with variables that replace or add to those it had.
    pub async fn start_component_with(&self, component: Component, env: &[(&str, &str)]) -> Result<()> {
        let env = owned(env);
        self.ask(Request::StartComponent { component, env }).await.map(drop)
    }

    /// Waits until a component's readiness probe passes.
    pub async fn wait_component_ready(&self, component: &Component) -> Result<()> {
        self.wait_status(&format!("{component} ready"), Duration::from_secs(30), |status| {
            status.components.iter().any(|found| found.component == *component && found.ready).then_some(())
        })
        .await
    }

    /// Starts a new ztunnel on the node, waits until it is ready, then stops the old one with its grace period.
    /// Returns when the old one has been told; its name.
    pub async fn replace_ztunnel(&self, node: &str) -> Result<String> {
        match self.ask(Request::ReplaceZtunnel { node: node.to_owned(), env: Vec::new() }).await? {
            Reply::Text(old) => Ok(old),
            other => Err(unexpected(&other)),
        }
    }

    /// Starts a second istiod-lite, waits until it is ready, then stops the first with its grace period. Returns when
    /// the first one has been told; its name.
    pub async fn replace_istiod(&self) -> Result<String> {
        match self.ask(Request::ReplaceIstiod).await? {
            Reply::Text(old) => Ok(old),
            other => Err(unexpected(&other)),
        }
    }

    /// What a component's process has used.
    pub async fn stats(&self, component: Component) -> Result<ProcessStats> {
        match self.ask(Request::Stats { component }).await? {
            Reply::Stats(stats) => Ok(stats),
            other => Err(unexpected(&other)),
        }
    }

    /// GET on a ztunnel's admin port (15000, on its own loopback).
    pub async fn ztunnel_admin(&self, node: &str, path: &str) -> Result<String> {
        let (status, body) = self.http(Netns::Component(Component::ztunnel(node)), "GET", 15000, path).await?;
        match status {
            200 => Ok(body),
            _ => Err(LabError::Refused(format!("ztunnel on {node} answered {status} to {path}: {body}"))),
        }
    }

    /// A component's metrics.
    pub async fn metrics(&self, component: Component) -> Result<String> {
        let port = if matches!(component, Component::Ztunnel(_)) { 15020 } else { 15014 };
        let (_, body) = self.http(Netns::Component(component), "GET", port, "/metrics").await?;
        Ok(body)
    }

    /// The sum of a metric's samples whose line holds every one of `labels` (each as `name="value"`).
    pub async fn metric(&self, component: Component, name: &str, labels: &[&str]) -> Result<f64> {
        Ok(sum_metric(&self.metrics(component).await?, name, labels))
    }

    /// One HTTP request to localhost in a network namespace; status and body.
    pub async fn http(&self, netns: Netns, method: &str, port: u16, path: &str) -> Result<(u16, String)> {
        match self.ask(Request::Http { netns, method: method.into(), port, path: path.into() }).await? {
            Reply::Http { status, body } => Ok((status, body)),
            other => Err(unexpected(&other)),
        }
    }

    /// A token for the service account of a pod, as its projected volume would hold.
    pub async fn token(&self, namespace: &str, pod: &str, ttl: Duration) -> Result<String> {
        let request = Request::Token { namespace: namespace.into(), pod: pod.into(), ttl_seconds: ttl.as_secs() };
        match self.ask(request).await? {
            Reply::Text(token) => Ok(token),
            other => Err(unexpected(&other)),
        }
    }
}
