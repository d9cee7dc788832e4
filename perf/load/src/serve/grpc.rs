//! A gRPC-like echo: HTTP/2 with prior knowledge, every stream gives its messages back.

use std::io::{Error, Result};

use bytes::Bytes;
use h2::server::{Builder, SendResponse};
use h2::{RecvStream, SendStream};
use http::{HeaderMap, HeaderValue, Request, Response};
use tokio::net::TcpStream;

/// Wide enough that flow control is not what is measured.
const STREAM_WINDOW: u32 = 1 << 20;
const CONNECTION_WINDOW: u32 = 1 << 24;
const STREAMS: u32 = 100_000;

pub(super) async fn connection(stream: TcpStream) -> Result<()> {
    let mut connection = Builder::new()
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_concurrent_streams(STREAMS)
        .handshake(stream)
        .await
        .map_err(Error::other)?;
    while let Some(accepted) = connection.accept().await {
        let (request, respond) = accepted.map_err(Error::other)?;
        super::spawn(async move {
            // A stream that breaks off is the client's to count.
            let _ended = echo(request, respond).await;
        });
    }
    Ok(())
}

async fn echo(request: Request<RecvStream>, mut respond: SendResponse<Bytes>) -> std::result::Result<(), h2::Error> {
    let mut from = request.into_body();
    let response = Response::builder().header("content-type", "application/grpc").body(()).expect("a response");
    let mut to = respond.send_response(response, false)?;
    while let Some(data) = from.data().await {
        let data = data?;
        from.flow_control().release_capacity(data.len())?;
        send(&mut to, data).await?;
    }
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from_static("0"));
    to.send_trailers(trailers)
}

/// Sends no more than the peer has room for: a client that does not read holds nothing here but its own stream.
async fn send(to: &mut SendStream<Bytes>, mut data: Bytes) -> std::result::Result<(), h2::Error> {
    while !data.is_empty() {
        to.reserve_capacity(data.len());
        let room = match std::future::poll_fn(|cx| to.poll_capacity(cx)).await {
            Some(room) => room?,
            None => return Ok(()),
        };
        to.send_data(data.split_to(room.min(data.len())), false)?;
    }
    Ok(())
}
