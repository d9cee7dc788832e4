//! The HTTP port: readiness, and what is offered to clients.

use aquifer_runtime::admin::AdminServer;
use aquifer_runtime::http::json;
use aquifer_runtime::readiness::Readiness;
use aquifer_xds::server::{Publisher, Source as _};
use http::{Method, StatusCode};
use serde_json::{Value, json};

/// `/ready` and `/debug/syncz`.
pub fn pages(readiness: &Readiness, publisher: Publisher) -> AdminServer {
    AdminServer::new()
        .route(Method::GET, "/ready", readiness.handler())
        .route(Method::GET, "/healthz/ready", readiness.handler())
        .get("/debug/syncz", move |_| {
            let body = syncz(&publisher);
            async move { json(StatusCode::OK, &body) }
        })
}

fn syncz(publisher: &Publisher) -> Value {
    let set = publisher.snapshot();
    let resources: serde_json::Map<String, Value> = set
        .types()
        .map(|t| (t.to_owned(), set.of_type(t).map_or(0, aquifer_xds::resource::TypeSet::len).into()))
        .collect();
    json!({ "generation": *publisher.subscribe().borrow(), "resources": resources })
}
