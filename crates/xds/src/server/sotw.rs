//! State-of-the-world streams: how `istioctl proxy-status` and `istioctl x internal-debug` ask for debug pages. Resources
//! are for the delta service alone.

use std::collections::BTreeMap;
use std::future::{Ready, ready};
use std::sync::Arc;
use std::time::Duration;

use aquifer_proto::type_url::DEBUG;
use aquifer_proto::xds::{ControlPlane, DiscoveryRequest, DiscoveryResponse};
use aquifer_runtime::{Cancel, Tracker};
use prost_types::Any;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tonic::server::StreamingService;
use tonic::{Request, Response, Status, Streaming};

use super::driver::Caller;
use super::limits::{Bucket, Limits};

/// Bytes of a question: a node, a type and a name.
pub(super) const MAX_QUESTION: usize = 64 * 1024;

/// Types of one stream whose last answer is remembered. There are few, so that more are no honest client's.
const MAX_TYPES: usize = 64;

/// Answers what is asked on state-of-the-world streams.
#[tonic::async_trait]
pub trait Inspect: Send + Sync + 'static {
    /// Who answers, as Istio puts it into `ControlPlane.identifier`.
    fn identifier(&self) -> String;

    /// What a type of `istio.io/debug` and these names ask for; an error ends the stream with it.
    async fn answer(&self, caller: &Caller, type_url: &str, names: &[String]) -> Result<Vec<Any>, Status>;
}

/// What a stream is told that asks for anything else.
pub(super) fn not_here(type_url: &str) -> Status {
    Status::unimplemented(format!(
        "state-of-the-world streams serve the types of {DEBUG} alone, not {type_url:?}: \
         use the delta service, AggregatedDiscoveryService/DeltaAggregatedResources"
    ))
}

/// Serves one stream on a task of its own.
pub(super) struct Opened {
    pub(super) inspect: Arc<dyn Inspect>,
    pub(super) caller: Caller,
    pub(super) limits: Limits,
    pub(super) tracker: Tracker,
    pub(super) cancel: Cancel,
}

impl StreamingService<DiscoveryRequest> for Opened {
    type Response = DiscoveryResponse;
    type ResponseStream = ReceiverStream<Result<DiscoveryResponse, Status>>;
    type Future = Ready<Result<Response<Self::ResponseStream>, Status>>;

    fn call(&mut self, request: Request<Streaming<DiscoveryRequest>>) -> Self::Future {
        let (out, answers) = mpsc::channel(1);
        let stream = Stream {
            inspect: Arc::clone(&self.inspect),
            caller: self.caller.clone(),
            limits: self.limits,
            answered: BTreeMap::new(),
            nonce: 0,
        };
        let (requests, cancel) = (request.into_inner(), self.cancel.clone());
        self.tracker.spawn("xds_debug_stream", async move {
            tokio::select! {
                biased; // An end that was asked for comes before more answers.
                () = cancel.drained() => {}
                () = stream.run(requests, out) => {}
            }
        });
        ready(Ok(Response::new(ReceiverStream::new(answers))))
    }
}

struct Stream {
    inspect: Arc<dyn Inspect>,
    caller: Caller,
    limits: Limits,
    /// By type.
    answered: BTreeMap<String, Answered>,
    nonce: u64,
}

/// The last answer of a type.
struct Answered {
    names: Vec<String>,
    nonce: String,
}

type Out = mpsc::Sender<Result<DiscoveryResponse, Status>>;

impl Stream {
    async fn run(mut self, requests: Streaming<DiscoveryRequest>, out: Out) {
        if let Err(status) = self.serve(requests, &out).await {
            tracing::info!(caller = ?self.caller, code = ?status.code(), reason = status.message(), "debug stream refused");
            // Whoever has gone needs no reason.
            let _ = out.send_timeout(Err(status), self.limits.write_timeout).await;
        }
    }

    async fn serve(&mut self, mut requests: Streaming<DiscoveryRequest>, out: &Out) -> Result<(), Status> {
        let mut tokens = Bucket::new(&self.limits, Instant::now());
        let idle = self.limits.first_request_timeout;
        while let Some(request) = within(idle, requests.message()).await? {
            tokens.take(1.0, Instant::now());
            if let Some(ready) = tokens.ready_at(Instant::now()) {
                tokio::time::sleep_until(ready).await;
            }
            if let Some(refusal) = &request.error_detail {
                tracing::debug!(type_url = request.type_url, reason = refusal.message, "a debug answer was refused");
                continue;
            }
            if !self.is_question(&request) {
                continue;
            }
            let answer = self.answer(request).await?;
            if out.send_timeout(Ok(answer), self.limits.write_timeout).await.is_err() {
                return Ok(());
            }
        }
        Ok(())
    }

    /// Whether it wants an answer, rather than being one. istioctl begins with a nonce that nobody gave it, and leaves
    /// the names out when it acknowledges.
    fn is_question(&self, request: &DiscoveryRequest) -> bool {
        let Some(last) = self.answered.get(&request.type_url) else { return true };
        let acknowledges = request.resource_names.is_empty() && request.response_nonce == last.nonce;
        request.response_nonce.is_empty() || (request.resource_names != last.names && !acknowledges)
    }

    async fn answer(&mut self, request: DiscoveryRequest) -> Result<DiscoveryResponse, Status> {
        let DiscoveryRequest { type_url, resource_names: names, .. } = request;
        let is_debug = type_url.strip_prefix(DEBUG).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
        if !is_debug {
            return Err(not_here(&type_url));
        }
        let resources = self.inspect.answer(&self.caller, &type_url, &names).await?;
        if self.answered.len() >= MAX_TYPES && !self.answered.contains_key(&type_url) {
            return Err(Status::resource_exhausted("too many types on one stream: open another"));
        }
        self.nonce += 1;
        let nonce = self.nonce.to_string();
        self.answered.insert(type_url.clone(), Answered { names, nonce: nonce.clone() });
        Ok(DiscoveryResponse {
            // Clients wait for one that is not empty.
            version_info: nonce.clone(),
            resources,
            type_url,
            nonce,
            control_plane: Some(ControlPlane { identifier: self.inspect.identifier() }),
        })
    }
}

async fn within<T>(limit: Duration, next: impl Future<Output = Result<T, Status>>) -> Result<T, Status> {
    match tokio::time::timeout(limit, next).await {
        Ok(next) => next,
        Err(_) => Err(Status::deadline_exceeded(format!("nothing was asked in {limit:?}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Nobody;

    #[tonic::async_trait]
    impl Inspect for Nobody {
        fn identifier(&self) -> String {
            "nobody".to_owned()
        }

        async fn answer(&self, _: &Caller, _: &str, _: &[String]) -> Result<Vec<Any>, Status> {
            Ok(Vec::new())
        }
    }

    fn stream() -> Stream {
        let (caller, limits) = (Caller::Anonymous, Limits::default());
        Stream { inspect: Arc::new(Nobody), caller, limits, answered: BTreeMap::new(), nonce: 0 }
    }

    fn request(type_url: &str, names: &[&str], nonce: &str) -> DiscoveryRequest {
        DiscoveryRequest {
            type_url: type_url.to_owned(),
            resource_names: names.iter().map(|&name| name.to_owned()).collect(),
            response_nonce: nonce.to_owned(),
            ..Default::default()
        }
    }

    #[tokio::test]
    async fn questions_are_told_from_acknowledgements() {
        let mut stream = stream();
        let first = request(DEBUG, &["syncz"], "2026-11-21 of no answer");
        assert!(stream.is_question(&first), "a nonce of its own making");
        let answer = stream.answer(first).await.unwrap();
        assert_eq!((answer.version_info.as_str(), answer.nonce.as_str()), ("1", "1"));
        let table = [
            (&["syncz"][..], "1", false, "an acknowledgement"),
            (&[], "1", false, "istioctl's acknowledgement"),
            (&["syncz"], "old", false, "of an answer before"),
            (&["syncz"], "", true, "asked again"),
            (&["configz"], "1", true, "another page"),
        ];
        for (names, nonce, expect, what) in table {
            assert_eq!(stream.is_question(&request(DEBUG, names, nonce)), expect, "{what}");
        }
        assert!(stream.is_question(&request("istio.io/debug/syncz", &[], "1")), "another type");
    }

    #[tokio::test]
    async fn only_debug_types_are_served() {
        for type_url in ["", "istio.io/debugger", "type.googleapis.com/istio.workload.Address"] {
            let refused = stream().answer(request(type_url, &[], "")).await.unwrap_err();
            assert_eq!(refused.code(), tonic::Code::Unimplemented);
            assert!(refused.message().contains("DeltaAggregatedResources"), "{refused}");
        }
        assert!(stream().answer(request("istio.io/debug/syncz", &[], "")).await.is_ok());
    }
}
