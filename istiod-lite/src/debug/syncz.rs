//! `/debug/syncz`, in the shape of Istio's page.

use std::collections::BTreeMap;
use std::time::{Duration, Instant, SystemTime};

use aquifer_xds::server::{ClientInfo, Clients, TypeInfo};
use serde_json::{Map, Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// A list of proxies, by namespace if one is named.
pub(super) fn page(clients: &Clients, namespace: Option<&str>) -> Value {
    let all = clients.list();
    let wanted = all.iter().filter(|client| namespace.is_none_or(|wanted| client.node.namespace == wanted));
    // A proxy whose connection was replaced is listed by its newest.
    let newest: BTreeMap<&str, &ClientInfo> = wanted.map(|client| (client.node.id.as_str(), client)).collect();
    Value::Array(newest.into_values().map(proxy).collect())
}

fn proxy(client: &ClientInfo) -> Value {
    let mut fields = Map::new();
    let mut put = |key: &str, value: Option<&str>| {
        // Istio leaves out what is empty.
        if let Some(value) = value.filter(|value| !value.is_empty()) {
            fields.insert(key.to_owned(), value.into());
        }
    };
    put("cluster_id", client.node.cluster_id.as_deref());
    put("proxy", Some(client.node.name()));
    put("proxy_type", Some(&client.node.kind));
    put("istio_version", client.node.version.as_deref());
    let resources: Map<String, Value> = client.types.iter().map(|(t, info)| (t.clone(), status(info))).collect();
    fields.insert("resources".to_owned(), Value::Object(resources));
    Value::Object(fields)
}

fn status(info: &TypeInfo) -> Value {
    let nonce = |stamp: &Option<aquifer_xds::server::Stamp>| stamp.as_ref().map(|stamp| stamp.nonce.clone());
    let mut fields = Map::new();
    for (key, value) in [("sent", nonce(&info.last_sent)), ("acked", nonce(&info.last_answered))] {
        if let Some(value) = value {
            fields.insert(key.to_owned(), value.into());
        }
    }
    if let Some(sent_at) = info.sent_at {
        fields.insert("sentTime".to_owned(), wall_clock(sent_at).into());
    }
    if let Some(nack) = info.last_nack.as_ref().filter(|_| info.is_rejected) {
        fields.insert("lastError".to_owned(), json!(nack.reason));
    }
    Value::Object(fields)
}

fn wall_clock(at: Instant) -> String {
    rfc3339(SystemTime::now().checked_sub(at.elapsed()).unwrap_or(SystemTime::UNIX_EPOCH + Duration::ZERO))
}

/// As JSON has times.
pub(super) fn rfc3339(at: SystemTime) -> String {
    OffsetDateTime::from(at).format(&Rfc3339).unwrap_or_default()
}
