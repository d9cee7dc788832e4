//! `/debug/syncz`, in the shape of Istio's page, and in that of the answer that `istioctl proxy-status` reads.

use std::collections::BTreeMap;
use std::time::{Instant, SystemTime};

use aquifer_proto::type_url::CLIENT_CONFIG;
use aquifer_proto::xds::client_config::GenericXdsConfig;
use aquifer_proto::xds::{ClientConfig, ConfigStatus, Node, UpdateFailureState};
use aquifer_xds::server::{ClientInfo, Clients, TypeInfo};
use prost::Message as _;
use prost_types::value::Kind;
use prost_types::{Any, Struct};
use serde_json::{Map, Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// A list of proxies, by namespace if one is named.
pub(super) fn page(clients: &Clients, namespace: Option<&str>) -> Value {
    let all = newest(clients);
    let wanted = all.iter().filter(|client| namespace.is_none_or(|wanted| client.node.namespace == wanted));
    wanted.map(proxy).collect()
}

/// Each proxy as `envoy.service.status.v3.ClientConfig`, with the types that it asks for.
pub(super) fn client_configs(clients: &Clients) -> Vec<Any> {
    let pack = |client: &ClientInfo| Any { type_url: CLIENT_CONFIG.to_owned(), value: config(client).encode_to_vec() };
    newest(clients).iter().map(pack).collect()
}

/// A proxy whose connection was replaced is listed by its newest.
fn newest(clients: &Clients) -> Vec<ClientInfo> {
    let by_id: BTreeMap<String, ClientInfo> =
        clients.list().into_iter().map(|client| (client.node.id.clone(), client)).collect();
    by_id.into_values().collect()
}

fn config(client: &ClientInfo) -> ClientConfig {
    let node = &client.node;
    let metadata = [
        ("CLUSTER_ID", node.cluster_id.as_deref()),
        ("ISTIO_VERSION", node.version.as_deref()),
        ("NAMESPACE", Some(node.namespace.as_str())),
    ];
    let text = |value: &str| prost_types::Value { kind: Some(Kind::StringValue(value.to_owned())) };
    let fields =
        metadata.into_iter().filter_map(|(name, value)| value.map(|value| (name.to_owned(), text(value)))).collect();
    ClientConfig {
        node: Some(Node { id: node.name().to_owned(), metadata: Some(Struct { fields }), ..Node::default() }),
        generic_xds_configs: client.types.iter().map(|(type_url, info)| generic(type_url, info)).collect(),
    }
}

fn generic(type_url: &str, info: &TypeInfo) -> GenericXdsConfig {
    let refusal = info.last_nack.as_ref().filter(|_| info.is_rejected);
    let config_status = match &info.last_sent {
        None => ConfigStatus::NotSent,
        Some(_) if refusal.is_some() => ConfigStatus::Error,
        Some(sent) if info.last_answered.as_ref().is_some_and(|answered| answered.nonce == sent.nonce) => {
            ConfigStatus::Synced
        }
        Some(_) => ConfigStatus::Stale,
    };
    GenericXdsConfig {
        type_url: type_url.to_owned(),
        last_updated: info.sent_at.map(|at| wall_clock(at).into()),
        config_status: config_status.into(),
        error_state: refusal
            .map(|nack| UpdateFailureState { last_update_attempt: Some(nack.at.into()), details: nack.reason.clone() }),
    }
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
        fields.insert("sentTime".to_owned(), rfc3339(wall_clock(sent_at)).into());
    }
    if let Some(nack) = info.last_nack.as_ref().filter(|_| info.is_rejected) {
        fields.insert("lastError".to_owned(), json!(nack.reason));
    }
    Value::Object(fields)
}

fn wall_clock(at: Instant) -> SystemTime {
    SystemTime::now().checked_sub(at.elapsed()).unwrap_or(SystemTime::UNIX_EPOCH)
}

/// As JSON has times.
pub(super) fn rfc3339(at: SystemTime) -> String {
    OffsetDateTime::from(at).format(&Rfc3339).unwrap_or_default()
}
