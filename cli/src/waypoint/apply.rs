//! `aquifer waypoint apply`.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use aquifer_objects::{Kind, Object, ObjectKey, Source, WriteError};
use serde_json::json;

use super::{Apply, MANAGER, USE_WAYPOINT, gateway, programmed};

pub(super) async fn run(source: &Source, namespace: &str, name: &str, options: &Apply) -> Result<()> {
    let gateway = gateway(namespace, name, &options.wish)?;
    let home = ObjectKey::new(Kind::Namespace, "", namespace);
    if options.enroll_namespace {
        let Some(object) = source.get(&home).await? else { bail!("namespace {namespace} not found") };
        match object.label(USE_WAYPOINT) {
            Some(other) if other != name && !options.overwrite => {
                bail!("namespace {namespace} uses waypoint {other:?} already: add --overwrite to replace it");
            }
            _ => {}
        }
        if object.label("istio.io/dataplane-mode") != Some("ambient") {
            eprintln!(
                "warning: namespace {namespace} is not in the mesh: `kubectl label namespace {namespace} \
                 istio.io/dataplane-mode=ambient` takes it in"
            );
        }
    }
    let folder = matches!(source, Source::Folder(_));
    // In a folder the manifests are the user's.
    let writer = source.writer(if folder { "user" } else { MANAGER });
    // Who else has set a field differently is named, not overruled.
    match writer.without_force().apply(gateway).await {
        Ok(_) => println!("waypoint {namespace}/{name} applied"),
        Err(WriteError::NotFound(_)) => bail!(
            "the API server has no kind Gateway, or no namespace {namespace}: the Gateway API's CRDs are to be \
             installed first (https://gateway-api.sigs.k8s.io/guides/#installing-gateway-api)"
        ),
        Err(error) => return Err(error).context("waypoint not applied"),
    }
    if options.wait {
        wait(source, namespace, name, options.waypoint_timeout).await?;
        println!("waypoint {namespace}/{name} is ready");
    }
    if options.enroll_namespace {
        let label = json!({ "metadata": { "labels": { USE_WAYPOINT: name } } });
        writer.patch(&home, label).await?;
        println!("namespace {namespace} labelled {USE_WAYPOINT}={name}");
    }
    Ok(())
}

/// Until the waypoint is programmed.
pub(super) async fn wait(source: &Source, namespace: &str, name: &str, limit: Duration) -> Result<()> {
    let begin = Instant::now();
    let key = ObjectKey::new(Kind::Gateway, namespace, name);
    loop {
        let reason = match source.get(&key).await? {
            Some(Object::Gateway(gateway)) => match programmed(&gateway) {
                (status, ..) if status == "True" => return Ok(()),
                (_, reason, message) => format!("{reason}: {message}"),
            },
            _ => "it is gone".to_owned(),
        };
        if begin.elapsed() >= limit {
            bail!("waypoint {namespace}/{name} is not ready after {limit:?}: {reason}");
        }
        tokio::time::sleep(Duration::from_millis(500).min(limit)).await;
    }
}
