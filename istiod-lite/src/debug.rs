//! The HTTP port: readiness for everybody; what is offered and how far each client is with it for whoever is on this
//! machine or shows a token.
//!
//! | page | what |
//! |---|---|
//! | `/debug/syncz` | each proxy's types, sent and acknowledged, as `istioctl proxy-status` reads it |
//! | `/debug/configz` | the Istio and Gateway API objects that were read |
//! | `/debug/registryz` | the services |
//! | `/debug/proxies` | each proxy's state in full, as `aquifer status` reads it |
//! | `/debug/list` | the pages |
//!
//! The same through discovery, for [`istioctl`].

mod expiry;
pub mod istioctl;
mod proxies;
mod registryz;
mod syncz;

use std::collections::BTreeMap;
use std::sync::Arc;

use aquifer_objects::Object;
use aquifer_runtime::admin::AdminServer;
use aquifer_runtime::http::{Request, Response, json, text};
use aquifer_runtime::readiness::Readiness;
use aquifer_xds::server::{Authenticate, Clients, Publisher};
use http::{Method, StatusCode};
use serde_json::Value;
use tokio::sync::{mpsc, oneshot};
use tonic::metadata::MetadataMap;

pub use self::expiry::Expiries;

/// What the pages show, and to whom.
#[derive(Clone)]
pub struct Pages {
    /// What is offered.
    pub publisher: Publisher,
    /// Who is connected.
    pub clients: Clients,
    /// Whom they are shown to besides this machine: as xDS has it. Nobody if there is none.
    pub authenticate: Option<Arc<dyn Authenticate>>,
    /// The objects of `/debug/configz`.
    pub configs: Option<Configs>,
    /// Until when each proxy's certificates last.
    pub expiries: Expiries,
}

/// Asks whoever holds the objects for them. Clones ask the same.
#[derive(Clone, Debug)]
pub struct Configs(mpsc::Sender<Question>);

/// A question for all configuration objects.
pub type Question = oneshot::Sender<Vec<Object>>;

/// Both ends of [`Configs`].
pub fn configs() -> (Configs, mpsc::Receiver<Question>) {
    let (tx, rx) = mpsc::channel(4);
    (Configs(tx), rx)
}

impl Configs {
    async fn all(&self) -> Vec<Object> {
        let (question, answer) = oneshot::channel();
        match self.0.send(question).await {
            Ok(()) => answer.await.unwrap_or_default(),
            Err(_) => Vec::new(),
        }
    }
}

const PREFIX: &str = "/debug/";
const PAGES: [&str; 5] = ["/debug/configz", "/debug/list", "/debug/proxies", "/debug/registryz", "/debug/syncz"];

impl Pages {
    /// As routes.
    pub fn into_server(self, readiness: &Readiness) -> AdminServer {
        let server = AdminServer::new().route(Method::GET, "/ready", readiness.handler()).route(
            Method::GET,
            "/healthz/ready",
            readiness.handler(),
        );
        PAGES.into_iter().fold(server, |server, path| self.route(server, path))
    }

    fn route(&self, server: AdminServer, path: &'static str) -> AdminServer {
        let (pages, page) = (self.clone(), path.strip_prefix(PREFIX).unwrap_or_default());
        server.get(path, move |request| {
            let pages = pages.clone();
            async move {
                if let Some(refusal) = pages.refused(&request).await {
                    return refusal;
                }
                json(StatusCode::OK, &pages.show(page, &request.query).await)
            }
        })
    }

    /// What a page shows, by the last part of its path; nothing if there is no such page.
    async fn show(&self, page: &str, query: &BTreeMap<String, String>) -> Option<Value> {
        Some(match page {
            "syncz" => syncz::page(&self.clients, query.get("namespace").map(String::as_str)),
            "configz" => match &self.configs {
                Some(configs) => Value::Array(configs.all().await.iter().map(Object::to_json).collect()),
                None => Value::Array(Vec::new()),
            },
            "registryz" => registryz::page(&self.publisher),
            "proxies" => proxies::page(&self.publisher, &self.clients, &self.expiries),
            "list" => PAGES.into(),
            _ => return None,
        })
    }

    /// Names and addresses of the whole mesh are nobody's business who isn't here and can't say who he is.
    async fn refused(&self, request: &Request) -> Option<Response> {
        if request.peer.is_some_and(|peer| peer.ip().to_canonical().is_loopback()) {
            return None;
        }
        if let Some(authenticate) = &self.authenticate {
            let headers = MetadataMap::from_headers(request.headers.clone());
            if authenticate.authenticate(&headers, None, request.peer).await.is_ok() {
                return None;
            }
        }
        tracing::warn!(peer = ?request.peer, path = request.path, "debug page refused");
        let remedy = "debug pages are for callers on this machine (kubectl port-forward) or with a bearer token\n";
        Some(text(StatusCode::UNAUTHORIZED, remedy))
    }
}

#[cfg(test)]
mod tests;
