//! Handshakes, driven by rustls; then its keys.

use super::record::{Keys, Opener, Sealer};
use super::{READ, TlsStream};
use bytes::{Bytes, BytesMut};
use rustls::client::UnbufferedClientConnection;
use rustls::pki_types::ServerName;
use rustls::server::UnbufferedServerConnection;
use rustls::unbuffered::{ConnectionState, EncodeError, UnbufferedStatus};
use rustls::{ClientConfig, CommonState, Error, ServerConfig};
use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// The longest flight that is taken in before rustls has dealt with what came: chains are a few KiB.
const LONGEST_FLIGHT: usize = 256 << 10;

pub(super) async fn client<Io: AsyncRead + AsyncWrite + Unpin, T>(
    config: Arc<ClientConfig>,
    name: ServerName<'static>,
    io: Io,
    inspect: impl FnOnce(&CommonState) -> T,
) -> io::Result<TlsStream<Io, T>> {
    let mut connection = UnbufferedClientConnection::new(config, name).map_err(invalid)?;
    let flights = Flights::run(io, |incoming, flights| flights.step(connection.process_tls_records(incoming))).await?;
    let peer = inspect(&connection);
    let (secrets, kernel) = connection.dangerous_into_kernel_connection().map_err(invalid)?;
    flights.into_stream(secrets, Keys::Client(kernel), peer)
}

pub(super) async fn server<Io: AsyncRead + AsyncWrite + Unpin, T>(
    config: Arc<ServerConfig>,
    io: Io,
    inspect: impl FnOnce(&CommonState) -> T,
) -> io::Result<TlsStream<Io, T>> {
    let mut connection = UnbufferedServerConnection::new(config).map_err(invalid)?;
    let flights = Flights::run(io, |incoming, flights| flights.step(connection.process_tls_records(incoming))).await?;
    let peer = inspect(&connection);
    let (secrets, kernel) = connection.dangerous_into_kernel_connection().map_err(invalid)?;
    flights.into_stream(secrets, Keys::Server(kernel), peer)
}

fn invalid(error: Error) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

/// What goes to and fro while a connection is made.
struct Flights<Io> {
    io: Io,
    inbox: BytesMut,
    exchange: Exchange,
}

#[derive(Default)]
struct Exchange {
    outgoing: Vec<u8>,
    /// Data that came in one flight with the end of the handshake.
    early: VecDeque<Bytes>,
    ended: bool,
}

enum Step {
    Again,
    Send,
    Receive,
    Done,
    Failed(Error),
}

impl<Io: AsyncRead + AsyncWrite + Unpin> Flights<Io> {
    async fn run(io: Io, mut process: impl FnMut(&mut [u8], &mut Exchange) -> (usize, Step)) -> io::Result<Self> {
        let mut flights = Self { io, inbox: BytesMut::new(), exchange: Exchange::default() };
        loop {
            let (discard, step) = process(&mut flights.inbox, &mut flights.exchange);
            if !matches!(step, Step::Failed(_)) {
                let _ = flights.inbox.split_to(discard);
            }
            match step {
                Step::Again => {}
                Step::Send => flights.send().await?,
                Step::Receive => flights.receive().await?,
                Step::Done => {
                    flights.send().await?;
                    return Ok(flights);
                }
                Step::Failed(error) => {
                    // The peer is told why, if it still listens: rustls has one alert ready, unless the peer sent one.
                    if !matches!(error, Error::AlertReceived(_)) {
                        process(&mut flights.inbox, &mut flights.exchange);
                        let _ = flights.send().await;
                    }
                    return Err(invalid(error));
                }
            }
        }
    }

    async fn send(&mut self) -> io::Result<()> {
        let outgoing = std::mem::take(&mut self.exchange.outgoing);
        if !outgoing.is_empty() {
            self.io.write_all(&outgoing).await?;
            self.io.flush().await?;
        }
        Ok(())
    }

    async fn receive(&mut self) -> io::Result<()> {
        if self.inbox.len() >= LONGEST_FLIGHT {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "a handshake longer than any"));
        }
        self.inbox.reserve(READ.0);
        match self.io.read_buf(&mut self.inbox).await? {
            0 => Err(io::Error::new(io::ErrorKind::UnexpectedEof, "tls handshake eof")),
            _ => Ok(()),
        }
    }

    fn into_stream<P>(self, secrets: rustls::ExtractedSecrets, keys: Keys, peer: P) -> io::Result<TlsStream<Io, P>> {
        let suite = keys.suite();
        Ok(TlsStream {
            opener: Opener::new(suite, secrets.rx).map_err(invalid)?,
            sealer: Sealer::new(suite, secrets.tx).map_err(invalid)?,
            io: self.io,
            peer,
            keys,
            inbox: self.inbox,
            appetite: READ.0,
            plain: self.exchange.early,
            ended: self.exchange.ended,
            failed: None,
            gathered: BytesMut::new(),
            outbox: VecDeque::new(),
            waiting: 0,
            closed: false,
            _own: Default::default(),
        })
    }
}

impl Exchange {
    /// Deals with what rustls wants next; says how much of the inbox is done with.
    fn step<Data>(&mut self, status: UnbufferedStatus<'_, '_, Data>) -> (usize, Step) {
        let UnbufferedStatus { discard, state } = status;
        let step = match state {
            Err(error) => Step::Failed(error),
            Ok(ConnectionState::EncodeTlsData(mut data)) => {
                let start = self.outgoing.len();
                if let Err(EncodeError::InsufficientSize(size)) = data.encode(&mut []) {
                    self.outgoing.resize(start + size.required_size, 0);
                }
                match data.encode(&mut self.outgoing[start..]) {
                    Ok(_) => Step::Again,
                    Err(error) => Step::Failed(Error::General(error.to_string())),
                }
            }
            Ok(ConnectionState::TransmitTlsData(sent)) => {
                sent.done();
                Step::Send
            }
            Ok(ConnectionState::BlockedHandshake) => Step::Receive,
            Ok(ConnectionState::ReadTraffic(mut traffic)) => loop {
                match traffic.next_record() {
                    Some(Ok(record)) => self.early.push_back(Bytes::copy_from_slice(record.payload)),
                    Some(Err(error)) => break Step::Failed(error),
                    None => break Step::Again,
                }
            },
            Ok(ConnectionState::PeerClosed) => {
                self.ended = true;
                Step::Again
            }
            Ok(ConnectionState::WriteTraffic(_) | ConnectionState::Closed) => Step::Done,
            Ok(_) => Step::Failed(Error::General("early data, which is not offered".into())),
        };
        (discard, step)
    }
}
