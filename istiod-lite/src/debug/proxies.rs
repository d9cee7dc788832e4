//! `/debug/proxies`: everything about who is connected.

use aquifer_xds::resource::TypeSet;
use aquifer_xds::server::{ClientInfo, Clients, Publisher, Source as _, TypeInfo};
use serde_json::{Map, Value, json};
use time::format_description::well_known::Rfc3339;

use super::Expiries;
use super::syncz::rfc3339;

pub(super) fn page(publisher: &Publisher, clients: &Clients, expiries: &Expiries) -> Value {
    let set = publisher.snapshot();
    let resources: Map<String, Value> =
        set.types().map(|t| (t.to_owned(), set.of_type(t).map_or(0, TypeSet::len).into())).collect();
    let all = clients.list();
    expiries.keep(|proxy| all.iter().any(|client| client.node.name() == proxy));
    let proxies: Vec<Value> = all.iter().map(|client| proxy(client, expiries)).collect();
    json!({ "generation": *publisher.subscribe().borrow(), "resources": resources, "proxies": proxies })
}

fn proxy(client: &ClientInfo, expiries: &Expiries) -> Value {
    let types: Map<String, Value> = client.types.iter().map(|(t, info)| (t.clone(), progress(info))).collect();
    let expiry = expiries.first(client.node.name()).and_then(|at| at.format(&Rfc3339).ok());
    json!({
        "id": client.node.id,
        "name": client.node.name(),
        "namespace": client.node.namespace,
        "kind": client.node.kind,
        "version": client.node.version,
        "cluster": client.node.cluster_id,
        "node": client.node.node_name,
        "address": client.peer,
        "connectedSince": rfc3339(client.since),
        "certificateExpiry": expiry,
        "types": types,
    })
}

fn progress(info: &TypeInfo) -> Value {
    let state = match () {
        () if info.is_rejected => "REJECTED",
        () if info.last_sent.is_none() => "NOT SENT",
        () if info.waiting_since.is_some() => "STALE",
        () => "SYNCED",
    };
    let generation = |stamp: &Option<aquifer_xds::server::Stamp>| stamp.as_ref().map(|stamp| stamp.generation);
    let nack = info.last_nack.as_ref().map(|nack| json!({ "at": rfc3339(nack.at), "reason": nack.reason }));
    json!({
        "state": state,
        "sent": generation(&info.last_sent),
        "acked": generation(&info.last_answered),
        "responses": info.sent,
        "lagSeconds": (info.lag().as_secs_f64() * 1000.0).round() / 1000.0,
        "lastNack": nack,
    })
}
