//! From a pod: captured on 15001, sent on by HBONE or plain TCP.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use aquifer_core::demand::Key;
use aquifer_core::hbone::{Forwarded, Traceparent};
use aquifer_core::reason::Reason;
use aquifer_core::resolve::{Need, OutboundConn, Reject, Resolution, Route, Tunnel, resolve_on_demand};
use aquifer_hbone::{H2Stream, HboneRequest, TcpTransport, Transport};
use http::{HeaderMap, HeaderValue};
use tokio::net::TcpStream;
use tokio::time::Instant;

use super::conn_table::{Asked, Guard, View};
use super::connector::{PoolKey, dial, pool_failure};
use super::pod::{Pod, left, refuse};
use super::same_node::{self, Joined};
use crate::metrics::{Parties, Reporter};
use crate::records::{self, Failure, Opening, Record, Traffic};
use crate::socket;

/// Takes one connection of the pod from accept to record.
pub(super) fn serve(pod: Rc<Pod>, client: TcpStream) -> impl Future<Output = ()> {
    // Boxed, and gone before bytes flow: an open connection holds no room for how it was opened. Outside of the task,
    // which would keep a place for what it was given.
    let opening = pod.clone();
    let open = Box::pin(async move { open(&opening, client).await });
    async move {
        let Some(Open { mut client, upstream, guard, record }) = open.await else { return };
        let outcome = match upstream {
            Upstream::Tunnel(mut stream) => pod.copy(&guard, &mut client, &mut *stream, &record.traffic()).await,
            Upstream::Plain(mut stream) => pod.copy(&guard, &mut client, &mut *stream, &record.traffic()).await,
            Upstream::Neighbour(joined) => Box::pin(joined.copy(&pod, &guard, &mut client, &record.traffic())).await,
        };
        record.finish(outcome.as_ref().copied());
        // Closed last: who looks for the line once the client has seen the end finds it.
        drop(client);
    }
}

/// A connection whose bytes can flow.
struct Open {
    client: TcpTransport,
    upstream: Upstream,
    guard: Guard,
    record: Record,
}

/// All that comes before. `None`: it came to nothing, which is recorded.
async fn open(pod: &Pod, client: TcpStream) -> Option<Open> {
    let since = Instant::now();
    let src = client.peer_addr().map(socket::canonical).ok()?;
    let asked = match socket::original_destination(&client, src) {
        Ok(asked) => asked,
        // The client is gone already: there is nobody to serve, and no destination to report.
        Err(error) => {
            tracing::debug!(%src, %error, "connection lost before it was served");
            return None;
        }
    };
    let route = match route(pod, asked).await {
        Ok(route) => route,
        Err(failure) => {
            records::refused(pod.metrics.shared(), Reporter::Source, src, asked, &failure);
            refuse(client);
            return None;
        }
    };
    let opening = opening(src, &route, since);
    let view = View {
        src,
        original_dst: Some(Asked::Address(asked)),
        actual_dst: route.next_hop,
        protocol: if opening.hbone_target.is_some() { "HBONE" } else { "TCP" },
    };
    let guard = pod.table.open_outbound(&pod.uid, view);
    let record = Record::open(opening, &pod.metrics);
    let traffic = record.traffic();
    guard.count(traffic.clone());

    let connected = tokio::select! {
        biased; // The end first: nothing may begin after it.
        failure = pod.must_end(&guard) => Err(failure),
        gone = left(&client) => Err(gone),
        connected = connect(pod, &guard, &route, (src, &traffic)) => connected,
    };
    let mut client = TcpTransport::new(client);
    match connected {
        Ok(upstream) => Some(Open { client, upstream, guard, record }),
        Err(failure) => {
            client.abort();
            record.finish(Err(&failure));
            drop(client);
            None
        }
    }
}

async fn route(pod: &Pod, asked: SocketAddr) -> Result<Route, Failure> {
    let (state, source) = pod.workload().await?;
    let conn = OutboundConn {
        source,
        network: pod.shared.config.network.clone(),
        destination: asked,
        preferred_service_namespace: pod.shared.config.preferred_service_namespace.clone(),
    };
    let known = |key: &Key| pod.is_known(key);
    let mut resolution = resolve_on_demand(&state, &conn, &known, &mut rand::rng());
    loop {
        resolution = match resolution {
            Resolution::Route(route) => return Ok(route),
            Resolution::Reject(reject) => return Err(rejected(&reject, asked)),
            Resolution::Need(Need::Dns(pending)) => {
                pod.metrics.shared().on_demand_dns(&conn.source, pending.hostname());
                let found = pod.shared.names.lookup(pending.hostname()).await;
                pending.complete(&found)
            }
            Resolution::Need(Need::Resource(key)) => {
                pod.learn(&key).await?;
                resolve_on_demand(&pod.shared.state.load(), &conn, &known, &mut rand::rng())
            }
        };
    }
}

fn rejected(reject: &Reject, asked: SocketAddr) -> Failure {
    let message = match reject.reason {
        Reason::NoHealthyUpstream => format!("no healthy upstream: {asked}"),
        Reason::IllegalPort => "attempted recursive call to ourselves".to_owned(),
        Reason::WaypointUnavailable => format!("unknown waypoint: {asked}"),
        reason => format!("{}: {asked}", reason.code().replace('_', " ")),
    };
    Failure::new(reject.reason, message)
}

fn opening(src: SocketAddr, route: &Route, since: Instant) -> Opening {
    let (hbone_target, source_identity) = match &route.tunnel {
        Tunnel::Passthrough => (None, None),
        Tunnel::Hbone { authority, .. } => (Some(Arc::from(authority.as_str())), Some(route.source.identity())),
    };
    Opening {
        src,
        dst: route.next_hop,
        hbone_target,
        parties: Parties {
            reporter: Reporter::Source,
            source: Some(route.source.clone()),
            source_identity,
            destination: route.destination.clone(),
            service: route.service.clone(),
        },
        since,
    }
}

enum Upstream {
    Tunnel(Box<H2Stream>),
    Plain(Box<TcpTransport>),
    Neighbour(Box<Joined>),
}

async fn connect(
    pod: &Pod,
    guard: &Guard,
    route: &Route,
    (src, traffic): (SocketAddr, &Traffic),
) -> Result<Upstream, Failure> {
    if let Some(neighbour) = same_node::neighbour(pod, route, src) {
        let joined = neighbour.connect(pod, guard, route, (src, traffic)).await?;
        return Ok(Upstream::Neighbour(Box::new(joined)));
    }
    match &route.tunnel {
        Tunnel::Passthrough => {
            let stream = dial(&pod.shared, &pod.netns, route.next_hop, None, &pod.shared.config.tcp).await;
            let stream = stream.map_err(|e| Failure::new(e.reason, format!("io error: {}", e.error)))?;
            Ok(Upstream::Plain(Box::new(TcpTransport::new(stream))))
        }
        Tunnel::Hbone { authority, expect } => {
            let source = route.source.identity();
            let deadline = Instant::now() + pod.shared.config.connect_timeout;
            let configs = pod.shared.certs.get(&source, deadline).await;
            let configs = configs.map_err(|e| Failure::new(e.reason(), format!("identity error: {e}")))?;
            let mut expect = expect.clone();
            expect.sort_unstable();
            let key =
                PoolKey { source, generation: configs.generation, expect: expect.into(), destination: route.next_hop };
            let request = HboneRequest { authority: authority.clone(), headers: headers(pod, route, src) };
            let (stream, _headers) = pod.pool.stream(&key, &request).await.map_err(|e| pool_failure(&e))?;
            if let Err(failure) = pod.bind(guard, stream.peer(), Reporter::Source) {
                // Its connection is older than the list: the next stream shakes hands anew.
                pod.pool.retire_where(|other| *other == key);
                return Err(failure);
            }
            Ok(Upstream::Tunnel(Box::new(stream)))
        }
    }
}

/// For the peer's telemetry only; nobody may authorize by these.
fn headers(pod: &Pod, route: &Route, src: SocketAddr) -> HeaderMap {
    let mut headers = HeaderMap::with_capacity(3);
    if let Some(baggage) = pod.baggage(&route.source) {
        headers.insert("baggage", baggage);
    }
    let host = route.service.as_ref().map(|s| s.hostname().to_string());
    let trace = Traceparent::random(&mut rand::rng());
    let texts =
        [("forwarded", Forwarded { for_addr: Some(src), host }.to_string()), ("traceparent", trace.to_string())];
    for (name, text) in texts {
        // Names come from the control plane; one that can't be a header is left out rather than failing the connection.
        if let Ok(mut value) = HeaderValue::try_from(text) {
            // Never the same twice: in HPACK's table it would only push out what is (RFC 7541, 6.2.3).
            value.set_sensitive(true);
            headers.insert(name, value);
        }
    }
    headers
}
