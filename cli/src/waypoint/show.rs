//! `aquifer waypoint list` and `aquifer waypoint status`.

use std::time::Duration;

use anyhow::Result;
use aquifer_objects::Source;
use aquifer_objects::crds::gateway_api::Gateway;

use super::{REVISION, TRAFFIC, apply, programmed, waypoints};

const NONE: &str = "No waypoints found.\n";

/// The table of `list`.
pub(super) fn list(gateways: &[Gateway], all_namespaces: bool) -> String {
    let label =
        |gateway: &Gateway, key: &str| gateway.metadata.labels.as_ref().and_then(|labels| labels.get(key)).cloned();
    let rows = gateways.iter().map(|gateway| {
        [
            gateway.metadata.namespace.clone().unwrap_or_default(),
            gateway.metadata.name.clone().unwrap_or_default(),
            label(gateway, REVISION).unwrap_or_else(|| "default".to_owned()),
            // What holds where nothing is said.
            label(gateway, TRAFFIC).unwrap_or_else(|| "service".to_owned()),
            programmed(gateway).0,
        ]
    });
    table(["NAMESPACE", "NAME", "REVISION", "TRAFFIC TYPE", "PROGRAMMED"], rows.collect(), all_namespaces)
}

/// Prints the table of `status`; 1 if one of them is not ready.
pub(super) async fn status(source: &Source, namespace: Option<&str>, wait: Option<Duration>) -> Result<u8> {
    let mut gateways = waypoints(source, namespace).await?;
    if let Some(limit) = wait {
        let begin = std::time::Instant::now();
        for gateway in &gateways {
            let (home, name) = (&gateway.metadata.namespace, &gateway.metadata.name);
            let left = limit.saturating_sub(begin.elapsed());
            // The table says which is not ready, and why.
            let _ = apply::wait(source, home.as_deref().unwrap_or_default(), name.as_deref().unwrap_or_default(), left)
                .await;
        }
        gateways = waypoints(source, namespace).await?;
    }
    print!("{}", status_table(&gateways, namespace.is_none()));
    Ok(u8::from(gateways.iter().any(|gateway| programmed(gateway).0 != "True")))
}

fn status_table(gateways: &[Gateway], all_namespaces: bool) -> String {
    let rows = gateways.iter().map(|gateway| {
        let (status, reason, message) = programmed(gateway);
        [
            gateway.metadata.namespace.clone().unwrap_or_default(),
            gateway.metadata.name.clone().unwrap_or_default(),
            status,
            "Programmed".to_owned(),
            reason,
            message,
        ]
    });
    table(["NAMESPACE", "NAME", "STATUS", "TYPE", "REASON", "MESSAGE"], rows.collect(), all_namespaces)
}

/// Columns as wide as their widest cell; the first only if it says something.
fn table<const N: usize>(head: [&str; N], rows: Vec<[String; N]>, with_first: bool) -> String {
    if rows.is_empty() {
        return NONE.to_owned();
    }
    let mut all = vec![head.map(str::to_owned)];
    all.extend(rows);
    let first = usize::from(!with_first);
    let width = |column: usize| all.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..N).map(width).collect();
    let line = |row: &[String; N]| {
        let cells: Vec<String> =
            row.iter().zip(&widths).skip(first).map(|(cell, width)| format!("{cell:width$}")).collect();
        format!("{}\n", cells.join("     ").trim_end())
    };
    all.iter().map(line).collect()
}
