//! Into a pod: plaintext captured on 15006. As HBONE, without a tunnel and without an identity.

use std::rc::Rc;

use aquifer_core::authz::Connection;
use aquifer_core::inbound::{self, InboundRoute};
use aquifer_hbone::{TcpTransport, Transport};
use tokio::net::TcpStream;
use tokio::time::Instant;

use super::conn_table::{Asked, Guard, View};
use super::inbound::{authorized_connect, guess_service, source_workload};
use super::pod::{Pod, left, refuse};
use crate::metrics::{Parties, Reporter};
use crate::records::{self, Failure, Opening, Record};
use crate::socket;

/// Takes one connection to the pod from accept to record.
pub(super) fn serve(pod: Rc<Pod>, client: TcpStream) -> impl Future<Output = ()> {
    // Boxed, and gone before bytes flow: see `outbound::serve`.
    let opening = pod.clone();
    let open = Box::pin(async move { open(&opening, client).await });
    async move {
        let Some(Open { mut client, mut upstream, guard, record }) = open.await else { return };
        let outcome = pod.copy(&guard, &mut client, &mut upstream, &record.traffic()).await;
        record.finish(outcome.as_ref().copied());
        // Closed last: who looks for the line once the client has seen the end finds it.
        drop(client);
    }
}

/// A connection whose bytes can flow.
struct Open {
    client: TcpTransport,
    upstream: TcpTransport,
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
    let target =
        inbound::passthrough(asked).map_err(|reason| Failure::new(reason, "attempted recursive call to ourselves"));
    pod.learn_in_passing(src.ip()).await;
    let found = match target {
        Ok(upstream) => pod.workload().await.map(|(state, workload)| (upstream, state, workload)),
        Err(failure) => Err(failure),
    };
    let (upstream, state, workload) = match found {
        Ok(found) => found,
        Err(failure) => {
            records::refused(pod.metrics.shared(), Reporter::Destination, src, asked, &failure);
            refuse(client);
            return None;
        }
    };
    let target = InboundRoute { upstream, service: None, application_tunnel: None, asked: upstream };
    let opening = Opening {
        src,
        dst: upstream,
        hbone_target: None,
        parties: Parties {
            reporter: Reporter::Destination,
            source: source_workload(&state, pod, src.ip(), None),
            source_identity: None,
            destination: Some(workload.clone()),
            service: guess_service(&state, &workload, None, upstream),
        },
        since,
    };
    let view = View { src, original_dst: Some(Asked::Address(asked)), actual_dst: upstream, protocol: "TCP" };
    let judged = Connection { destination: workload, identity: None, source_ip: src.ip(), destination_addr: upstream };
    let guard = pod.table.open_inbound(&pod.uid, view, judged);
    let record = Record::open(opening, &pod.metrics);
    guard.count(record.traffic());

    let connected = tokio::select! {
        biased; // The end first: nothing may begin after it.
        failure = pod.must_end(&guard) => Err(failure),
        gone = left(&client) => Err(gone),
        connected = authorized_connect(pod, &guard, &target, src, None) => connected,
    };
    let mut client = TcpTransport::new(client);
    match connected {
        Ok(stream) => Some(Open { client, upstream: TcpTransport::new(stream), guard, record }),
        Err(failure) => {
            client.abort();
            record.finish(Err(&failure));
            drop(client);
            None
        }
    }
}
