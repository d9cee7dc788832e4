//! The HTTP port: readiness, what is offered, and how far each client is with it.

use aquifer_runtime::admin::AdminServer;
use aquifer_runtime::http::json;
use aquifer_runtime::readiness::Readiness;
use aquifer_xds::resource::TypeSet;
use aquifer_xds::server::{ClientInfo, Clients, Publisher, Source as _, TypeInfo};
use http::{Method, StatusCode};
use serde_json::{Map, Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// `/ready` and `/debug/syncz`.
pub fn pages(readiness: &Readiness, publisher: Publisher, clients: Clients) -> AdminServer {
    AdminServer::new()
        .route(Method::GET, "/ready", readiness.handler())
        .route(Method::GET, "/healthz/ready", readiness.handler())
        .get("/debug/syncz", move |_| {
            let body = syncz(&publisher, &clients);
            async move { json(StatusCode::OK, &body) }
        })
}

fn syncz(publisher: &Publisher, clients: &Clients) -> Value {
    let set = publisher.snapshot();
    let resources: Map<String, Value> =
        set.types().map(|t| (t.to_owned(), set.of_type(t).map_or(0, TypeSet::len).into())).collect();
    let clients: Vec<Value> = clients.list().iter().map(client).collect();
    json!({ "generation": *publisher.subscribe().borrow(), "resources": resources, "clients": clients })
}

fn client(info: &ClientInfo) -> Value {
    let since = OffsetDateTime::from(info.since).format(&Rfc3339).unwrap_or_default();
    let types: Map<String, Value> = info.types.iter().map(|(t, info)| (t.clone(), progress(info))).collect();
    json!({ "id": info.id, "address": info.peer, "since": since, "types": types })
}

/// `SYNCED` and `STALE` as Istio's page has them; a refusal is said in its own words.
fn progress(info: &TypeInfo) -> Value {
    match &info.rejected {
        Some(error) => json!({ "state": "REJECTED", "error": error }),
        None if info.answered >= info.sent => json!({ "state": "SYNCED" }),
        None => json!({ "state": "STALE", "unanswered": info.sent - info.answered }),
    }
}
