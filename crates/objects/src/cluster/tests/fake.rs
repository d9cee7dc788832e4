//! An API server in memory: collections, paged lists, watches, and what may go wrong with them.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::sync::Arc;

use bytes::Bytes;
use http::{Method, Request, Response};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use kube::client::Body;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use crate::cluster::Cluster;

type Answer = Response<UnsyncBoxBody<Bytes, io::Error>>;

/// The server; clones are the same.
#[derive(Clone, Default)]
pub(super) struct Fake(Arc<Mutex<State>>);

#[derive(Default)]
pub(super) struct State {
    version: u64,
    /// By path of the collection, by `namespace/name`.
    collections: BTreeMap<String, BTreeMap<String, Value>>,
    /// What happened, for watches.
    history: Vec<(u64, String, &'static str, Value)>,
    /// What happened up to here is forgotten.
    compacted: u64,
    watchers: Vec<(String, mpsc::UnboundedSender<Result<Bytes, io::Error>>)>,
    /// Refuses connections.
    pub(super) down: bool,
    /// Answers of these codes come first, to whatever is asked at a path that begins so.
    pub(super) refusals: VecDeque<(&'static str, u16, &'static str)>,
    /// `group/version` → plurals.
    pub(super) served: BTreeMap<String, BTreeSet<String>>,
    /// Writes take this answer, else they succeed.
    pub(super) written: VecDeque<(u16, Value)>,
    /// Continue tokens are refused once.
    pub(super) forget_lists: bool,
    pub(super) requests: Vec<Seen>,
}

/// A request that came.
#[derive(Clone, Debug)]
pub(super) struct Seen {
    pub(super) method: Method,
    pub(super) path: String,
    pub(super) query: String,
    pub(super) accept: String,
    pub(super) content: String,
    pub(super) body: Value,
}

impl Fake {
    pub(super) fn cluster(&self) -> Cluster {
        let state = self.clone();
        let service = tower::service_fn(move |request: Request<Body>| {
            let state = state.clone();
            async move { state.answer(request).await }
        });
        Cluster::new(kube::Client::new(service, "default"))
    }

    pub(super) fn state<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        change(&mut self.0.lock())
    }

    /// Creates or changes an object; its metadata gets the next version.
    pub(super) fn put(&self, path: &str, mut object: Value) {
        let mut state = self.0.lock();
        state.version += 1;
        let version = state.version;
        object["metadata"]["resourceVersion"] = version.to_string().into();
        let key = key(&object);
        let old = state.collections.entry(path.to_owned()).or_default().insert(key, object.clone());
        state.tell(path, if old.is_some() { "MODIFIED" } else { "ADDED" }, object);
    }

    pub(super) fn delete(&self, path: &str, key: &str) {
        let mut state = self.0.lock();
        state.version += 1;
        let mut object = state.collections.get_mut(path).unwrap().remove(key).unwrap();
        object["metadata"]["resourceVersion"] = state.version.to_string().into();
        state.tell(path, "DELETED", object);
    }

    /// Tells watchers how far it is.
    pub(super) fn bookmark(&self, path: &str) -> u64 {
        let mut state = self.0.lock();
        state.version += 1;
        let version = state.version;
        let object = json!({ "metadata": { "resourceVersion": version.to_string() } });
        state.send(path, "BOOKMARK", &object);
        version
    }

    /// Ends all watches; an error says whether in good order.
    pub(super) fn hang_up(&self, error: Option<&str>) {
        for (_, watcher) in self.0.lock().watchers.drain(..) {
            if let Some(error) = error {
                let _ = watcher.send(Err(io::Error::other(error.to_owned())));
            }
        }
    }

    /// Forgets what happened so far.
    pub(super) fn compact(&self) {
        let mut state = self.0.lock();
        state.compacted = state.version;
        state.history.clear();
    }

    pub(super) fn go_down(&self) {
        self.0.lock().down = true;
        self.hang_up(Some("connection reset"));
    }

    pub(super) fn come_back(&self) {
        self.0.lock().down = false;
    }

    /// The requests of a path since the last call.
    pub(super) fn requests(&self, path: &str) -> Vec<Seen> {
        let mut state = self.0.lock();
        let (those, others) = std::mem::take(&mut state.requests).into_iter().partition(|seen| seen.path == path);
        state.requests = others;
        those
    }

    async fn answer(&self, request: Request<Body>) -> Result<Answer, io::Error> {
        let (head, body) = request.into_parts();
        let body = body.collect_bytes().await.map_err(io::Error::other)?;
        let header = |name| head.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned();
        let seen = Seen {
            method: head.method.clone(),
            path: head.uri.path().to_owned(),
            query: head.uri.query().unwrap_or_default().to_owned(),
            accept: header(http::header::ACCEPT),
            content: header(http::header::CONTENT_TYPE),
            body: serde_json::from_slice(&body).unwrap_or_default(),
        };
        let mut state = self.0.lock();
        state.requests.push(seen.clone());
        if state.down {
            return Err(io::ErrorKind::ConnectionRefused.into());
        }
        if state.refusals.front().is_some_and(|(path, ..)| seen.path.starts_with(path)) {
            let (_, code, message) = state.refusals.pop_front().unwrap();
            return Ok(status(code, message));
        }
        if seen.method != Method::GET {
            let (code, body) = state.written.pop_front().unwrap_or((200, json!({})));
            return Ok(whole(code, &body));
        }
        if seen.query.contains("watch=true") {
            return Ok(state.watch(&seen));
        }
        if let Some(version) = seen.path.strip_prefix("/apis/").filter(|rest| rest.matches('/').count() == 1) {
            let Some(plurals) = state.served.get(version) else { return Ok(status(404, "not found")) };
            let resources: Vec<Value> = plurals.iter().map(|name| json!({ "name": name })).collect();
            return Ok(whole(200, &json!({ "resources": resources })));
        }
        Ok(state.list(&seen))
    }
}

impl State {
    fn tell(&mut self, path: &str, what: &'static str, object: Value) {
        self.send(path, what, &object);
        self.history.push((self.version, path.to_owned(), what, object));
    }

    fn send(&mut self, path: &str, what: &str, object: &Value) {
        // Only what is watched says its kind; what is listed leaves that to the list.
        let mut object = object.clone();
        (object["kind"], object["apiVersion"]) = ("Kind".into(), "group/v1".into());
        let line = line(what, &object);
        self.watchers.retain(|(watched, sender)| watched != path || sender.send(Ok(line.clone())).is_ok());
    }

    fn list(&mut self, seen: &Seen) -> Answer {
        let Some(objects) = self.collections.get(&seen.path) else { return status(404, "not found") };
        let from: usize = parameter(&seen.query, "continue").map_or(0, |token| token.parse().unwrap());
        if from > 0 && std::mem::take(&mut self.forget_lists) {
            return status(410, "The provided continue parameter is too old");
        }
        let limit: usize = parameter(&seen.query, "limit").unwrap().parse().unwrap();
        let items: Vec<&Value> = objects.values().skip(from).take(limit).collect();
        let next = (from + items.len() < objects.len()).then(|| (from + items.len()).to_string());
        let metadata = json!({ "resourceVersion": self.version.to_string(), "continue": next.unwrap_or_default() });
        whole(200, &json!({ "kind": "List", "apiVersion": "v1", "metadata": metadata, "items": items }))
    }

    fn watch(&mut self, seen: &Seen) -> Answer {
        if !self.collections.contains_key(&seen.path) {
            return status(404, "not found");
        }
        let from: u64 = parameter(&seen.query, "resourceVersion").unwrap().parse().unwrap();
        let (sender, mut receiver) = mpsc::unbounded_channel();
        if from < self.compacted {
            let gone =
                json!({ "kind": "Status", "code": 410, "reason": "Expired", "message": "too old resource version" });
            let _ = sender.send(Ok(line("ERROR", &gone)));
        } else {
            for (version, path, what, object) in &self.history {
                if *version > from && *path == seen.path {
                    let _ = sender.send(Ok(line(what, object)));
                }
            }
            self.watchers.push((seen.path.clone(), sender));
        }
        let lines = futures_util::stream::poll_fn(move |cx| receiver.poll_recv(cx));
        let frames = futures_util::StreamExt::map(lines, |line| line.map(http_body::Frame::data));
        Response::new(StreamBody::new(frames).boxed_unsync())
    }
}

fn line(what: &str, object: &Value) -> Bytes {
    format!("{}\n", json!({ "type": what, "object": object })).into()
}

fn whole(code: u16, body: &Value) -> Answer {
    let body = Full::new(Bytes::from(body.to_string())).map_err(|never| match never {}).boxed_unsync();
    Response::builder().status(code).body(body).unwrap()
}

pub(super) fn status(code: u16, message: &str) -> Answer {
    whole(code, &json!({ "kind": "Status", "apiVersion": "v1", "status": "Failure", "message": message, "code": code }))
}

fn parameter<'a>(query: &'a str, name: &str) -> Option<&'a str> {
    query.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='))
}

fn key(object: &Value) -> String {
    let meta = &object["metadata"];
    match meta["namespace"].as_str() {
        Some(namespace) => format!("{namespace}/{}", meta["name"].as_str().unwrap()),
        None => meta["name"].as_str().unwrap().to_owned(),
    }
}
