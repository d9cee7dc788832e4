//! A collection of the API server, listed and then watched, whatever happens on the way.

use std::time::Duration;

use serde_json::Value;
use tokio::time::Instant;

use super::prune::{Line, Page, Pruned, metadata_only};
use super::rest::{Lines, Rest, RestError, collection, get};
use crate::source::Selection;

/// Objects a page.
const PAGE: usize = 500;
/// The API server ends each watch after a while of this order, so that the load spreads over its replicas.
const WATCH: Duration = Duration::from_secs(300);
/// Bookmarks come once a minute: a watch that says nothing for this long is dead.
const SILENCE: Duration = Duration::from_secs(150);
/// How long to wait after trouble, the first time and at most.
const BACKOFF_FIRST: Duration = Duration::from_millis(200);
const BACKOFF_MAX: Duration = Duration::from_secs(10);
/// A watch that lasted so long, or said something, was none that failed.
const SOUND: Duration = Duration::from_secs(5);

const METADATA: &str = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1,application/json";
const METADATA_LIST: &str = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1,application/json";

/// Who is told what is in a collection.
pub(super) trait Sink: Send {
    /// A list begins: what it does not hold is gone at its end.
    fn begin(&mut self);
    /// The object is so.
    fn upsert(&mut self, object: Value) -> impl Future<Output = ()> + Send;
    /// The object is gone.
    fn remove(&mut self, object: Value) -> impl Future<Output = ()> + Send;
    /// The list is complete.
    fn complete(&mut self) -> impl Future<Output = ()> + Send;
    /// From here on changes are told as they happen.
    fn live(&mut self);
    /// They are not, for the time being.
    fn failed(&mut self, error: &RestError, verb: &'static str);
}

/// How to read one collection.
#[derive(Clone, Debug)]
pub(super) struct Follow {
    rest: Rest,
    path: String,
    /// Query parameters that narrow it, beginning with `&`.
    narrowed: String,
    metadata_only: bool,
    rule: Pruned,
}

/// How far a list has come.
#[derive(Debug, Default)]
pub(super) struct List {
    begun: bool,
    next: Option<String>,
    resource_version: String,
}

enum End {
    /// What we know is too old to go on from.
    Gone,
    Failed(RestError),
}

impl From<RestError> for End {
    fn from(error: RestError) -> Self {
        // A server that was restored from a backup has never come as far as we have.
        if error.code == 410 || error.message.contains("Too large resource version") {
            Self::Gone
        } else {
            Self::Failed(error)
        }
    }
}

impl Follow {
    pub(super) fn new(rest: &Rest, selection: &Selection, api_version: &str) -> Self {
        let mut narrowed = String::new();
        for (name, value) in
            [("fieldSelector", selection.field_selector()), ("labelSelector", selection.label_selector())]
        {
            if let Some(value) = value {
                narrowed.push_str(&format!("&{name}={}", encode(&value)));
            }
        }
        Self {
            rest: rest.clone(),
            path: collection(selection.kind, api_version, selection.namespace.as_deref()),
            narrowed,
            metadata_only: metadata_only(selection.kind),
            rule: Pruned::of(selection.kind),
        }
    }

    /// The metadata of what lies at a path.
    pub(super) fn metadata(rest: &Rest, path: &str, rule: Pruned) -> Self {
        Self { rest: rest.clone(), path: path.to_owned(), narrowed: String::new(), metadata_only: true, rule }
    }

    /// The list's next page; `None` after the last.
    pub(super) async fn page(&self, list: &mut List) -> Result<Option<Vec<Value>>, RestError> {
        if list.begun && list.next.is_none() {
            return Ok(None);
        }
        let token = list.next.as_deref().map(|token| format!("&continue={}", encode(token))).unwrap_or_default();
        let uri = format!("{}?limit={PAGE}{token}{}", self.path, self.narrowed);
        let body = self.rest.call(self.request(&uri, METADATA_LIST)).await?;
        let page = Page::read(&body, self.rule).map_err(unreadable)?;
        // A list that goes on after its snapshot expired ends with a later version; the first page's misses nothing.
        if !list.begun {
            list.resource_version = page.resource_version;
        }
        list.begun = true;
        list.next = page.next;
        Ok(Some(page.items))
    }

    /// Tells `sink` of the collection until it is served no more.
    pub(super) async fn run(&self, sink: &mut impl Sink) {
        let mut version: Option<String> = None;
        let mut backoff = Backoff::default();
        loop {
            let (verb, done) = match &mut version {
                None => ("list", self.list(sink).await.map(|listed| version = Some(listed))),
                Some(version) => ("watch", self.watch(version, sink, &mut backoff).await),
            };
            let error = match done {
                Ok(()) => continue,
                Err(End::Gone) => {
                    version = None;
                    tracing::debug!(path = self.path, "listing again: what was known is too old to go on from");
                    RestError { code: 410, message: "what was known is too old".to_owned(), retry_after: None }
                }
                Err(End::Failed(error)) if error.code == 404 => return sink.failed(&error, verb),
                Err(End::Failed(error)) => error,
            };
            sink.failed(&error, verb);
            let nap = backoff.next().max(error.retry_after.unwrap_or_default());
            tokio::time::sleep(nap).await;
        }
    }

    async fn list(&self, sink: &mut impl Sink) -> Result<String, End> {
        let mut list = List::default();
        sink.begin();
        loop {
            match self.page(&mut list).await {
                Ok(Some(objects)) => {
                    for object in objects {
                        sink.upsert(object).await;
                    }
                }
                Ok(None) => break,
                Err(error) => return Err(error.into()),
            }
        }
        sink.complete().await;
        Ok(list.resource_version)
    }

    /// Watches from `version` on, which moves with what is told, until the stream ends.
    async fn watch(&self, version: &mut String, sink: &mut impl Sink, backoff: &mut Backoff) -> Result<(), End> {
        let seconds = WATCH.mul_f64(rand::random_range(1.0..2.0)).as_secs();
        let uri = format!(
            "{}?watch=true&allowWatchBookmarks=true&timeoutSeconds={seconds}&resourceVersion={}{}",
            self.path,
            encode(version),
            self.narrowed
        );
        let begun = Instant::now();
        let mut lines = self.rest.stream(self.request(&uri, METADATA)).await?;
        sink.live();
        let mut told = false;
        while let Some(line) = next(&mut lines).await? {
            self.tell(&line, version, sink).await?;
            told = true;
            backoff.reset();
        }
        if told || begun.elapsed() >= SOUND {
            backoff.reset();
            return Ok(());
        }
        Err(End::Failed(RestError::transport("it ended the watch at once")))
    }

    async fn tell(&self, line: &[u8], version: &mut String, sink: &mut impl Sink) -> Result<(), End> {
        if line.trim_ascii().is_empty() {
            return Ok(());
        }
        let Line { what, object } = Line::read(line, self.rule).map_err(unreadable)?;
        if what == "ERROR" {
            // A Status is no object of the kind: the rule has cut what it says.
            let object = serde_json::from_slice::<Value>(line).map_err(unreadable)?["object"].take();
            let code = object["code"].as_u64().and_then(|code| u16::try_from(code).ok()).unwrap_or(500);
            return Err(RestError::of_status(code, object.to_string().as_bytes()).into());
        }
        let at = object.pointer("/metadata/resourceVersion").and_then(Value::as_str).map(str::to_owned);
        match what.as_str() {
            "ADDED" | "MODIFIED" => sink.upsert(object).await,
            "DELETED" => sink.remove(object).await,
            // BOOKMARK: only how far we are.
            _ => {}
        }
        if let Some(at) = at {
            *version = at;
        }
        Ok(())
    }

    fn request(&self, uri: &str, metadata: &'static str) -> http::Request<Vec<u8>> {
        let mut request = get(uri);
        if self.metadata_only {
            request.headers_mut().insert(http::header::ACCEPT, http::HeaderValue::from_static(metadata));
        }
        request
    }
}

async fn next(lines: &mut Lines) -> Result<Option<Vec<u8>>, RestError> {
    match tokio::time::timeout(SILENCE, lines.next()).await {
        Ok(line) => line.transpose(),
        Err(_) => Err(RestError::transport(format!("nothing came for {SILENCE:?}"))),
    }
}

fn unreadable(error: serde_json::Error) -> RestError {
    RestError::transport(format!("its answer cannot be read: {error}"))
}

/// A query parameter's value.
fn encode(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => encoded.push(char::from(byte)),
            _ => encoded.push_str(&format!("%{byte:02X}")),
        }
    }
    encoded
}

/// Growing pauses, each shortened by chance so that not all come back at once.
#[derive(Debug, Default)]
pub(super) struct Backoff {
    failures: u32,
}

impl Backoff {
    pub(super) fn next(&mut self) -> Duration {
        let full = BACKOFF_FIRST.saturating_mul(1 << self.failures.min(16)).min(BACKOFF_MAX);
        self.failures = self.failures.saturating_add(1);
        full.mul_f64(rand::random_range(0.5..=1.0))
    }

    pub(super) fn reset(&mut self) {
        self.failures = 0;
    }
}
