//! Time from an object to its effect.

use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use aquifer_lab::{Component, Lab};

use super::Ends;
use super::inside::{self, LIMIT, inside};
use crate::bed::NAMESPACE;

/// Between two tries: a tenth of what is measured at most, and the client leaves the cores to others.
const PAUSE: Duration = Duration::from_millis(2);

/// How long a connection may take that falls between two states: the next one begins afresh.
const BETWEEN: Duration = Duration::from_millis(100);

/// Longer than changes are held together.
const QUIET: Duration = Duration::from_millis(300);

const LABEL: &str = "istio.io/dataplane-mode";
const POLICY: &str = "nobody";

/// Milliseconds from the namespace's label until a connection between two of its running pods goes through HBONE.
pub(super) async fn label_to_hbone(lab: &Lab, ends: &Ends, rounds: u32) -> Result<Vec<f64>> {
    let mut taken = Vec::new();
    for _ in 0..rounds {
        lab.wait_enrolled(NAMESPACE, false).await?;
        plain(lab, ends).await?;
        let before = protected(lab).await?;
        let begin = Instant::now();
        lab.label_namespace(NAMESPACE, LABEL, Some("ambient")).await?;
        while {
            try_once(ends).await?;
            protected(lab).await?
        } == before
        {
            ensure!(begin.elapsed() < LIMIT, "no connection goes through HBONE {LIMIT:?} after the label");
            tokio::time::sleep(PAUSE).await;
        }
        taken.push(millis(begin));
        lab.wait_enrolled(NAMESPACE, true).await?;
        lab.label_namespace(NAMESPACE, LABEL, None).await?;
    }
    Ok(taken)
}

/// Returns when connections go without the mesh.
async fn plain(lab: &Lab, ends: &Ends) -> Result<()> {
    let begin = Instant::now();
    loop {
        let before = protected(lab).await?;
        if try_once(ends).await? && protected(lab).await? == before {
            return Ok(());
        }
        ensure!(begin.elapsed() < LIMIT, "connections go through HBONE {LIMIT:?} after the label is gone");
        tokio::time::sleep(PAUSE).await;
    }
}

/// Connections with mutual TLS that the server's proxy has seen.
async fn protected(lab: &Lab) -> Result<f64> {
    let labels = ["reporter=\"destination\"", "connection_security_policy=\"mutual_tls\""];
    Ok(lab.metric(Component::ztunnel("node2"), "istio_tcp_connections_opened_total", &labels).await?)
}

async fn try_once(ends: &Ends) -> Result<bool> {
    let server = ends.server;
    // While rules come and go, a connection may break off or fall silent.
    inside(&ends.client, move || Ok(inside::try_open(server, BETWEEN).is_ok_and(|open| open.is_some()))).await
}

/// What was before a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Before {
    /// Nothing for a while.
    Quiet,
    /// Another change, whose effect was just seen: a control plane may hold changes together that follow each other.
    Change,
}

impl Before {
    async fn pass(self) {
        if self == Self::Quiet {
            tokio::time::sleep(QUIET).await;
        }
    }
}

/// Milliseconds from the write of an AuthorizationPolicy until a new connection is refused, until an open one is cut,
/// and from its deletion until a new one is served again.
pub(super) async fn policy(lab: &Lab, ends: &Ends, before: Before, rounds: u32) -> Result<[Vec<f64>; 3]> {
    let mut taken: [Vec<f64>; 3] = Default::default();
    for _ in 0..rounds {
        until(ends, true).await?;
        before.pass().await;
        let server = ends.server;
        let open = inside(&ends.client, move || inside::open(server)).await?;
        let begin = Instant::now();
        let cut = inside(&ends.client, move || {
            inside::wait_cut(&open)?;
            Ok(millis(begin))
        });
        let refused = async {
            lab.apply(&nobody()).await?;
            until(ends, false).await?;
            Ok(millis(begin))
        };
        let (refused, cut) = tokio::try_join!(refused, cut)?;
        before.pass().await;
        let begin = Instant::now();
        lab.delete("AuthorizationPolicy", NAMESPACE, POLICY).await?;
        until(ends, true).await?;
        for (all, one) in taken.iter_mut().zip([refused, cut, millis(begin)]) {
            all.push(one);
        }
    }
    Ok(taken)
}

/// Opens connections until one is served, or refused.
async fn until(ends: &Ends, served: bool) -> Result<()> {
    let server = ends.server;
    inside(&ends.client, move || {
        let begin = Instant::now();
        while inside::try_open(server, LIMIT)?.is_some() != served {
            if begin.elapsed() > LIMIT {
                bail!("connections are {} after {LIMIT:?}", if served { "still refused" } else { "still served" });
            }
            std::thread::sleep(PAUSE);
        }
        Ok(())
    })
    .await
}

/// Nobody of the clients may talk to the server.
fn nobody() -> String {
    format!(
        "apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata:
  name: {POLICY}
  namespace: {NAMESPACE}
spec:
  selector:
    matchLabels:
      app: far
  action: DENY
  rules:
  - from:
    - source:
        principals: [cluster.local/ns/{NAMESPACE}/sa/filler]
"
    )
}

fn millis(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1e3
}
