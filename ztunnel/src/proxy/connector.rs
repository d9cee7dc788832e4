//! How the pool reaches a peer: TCP from inside the pod's namespace, then TLS as the pod.

use std::any::Any;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use aquifer_core::identity::Identity;
use aquifer_core::reason::Reason;
use aquifer_hbone::{ConnectError, PoolError};
use aquifer_tls::{CertError, PeerCertificate, TlsStream, stream};
use rustls::CommonState;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::time::Instant;

use super::pod::Shared;
use crate::descriptors;
use crate::inpod::netns::Netns;
use crate::records::Failure;
use crate::socket::{self, TcpOptions};

/// Whose connections may be shared. The pool itself belongs to one pod, so the source address is implied.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct PoolKey {
    /// As whom we connect.
    pub source: Identity,
    /// With which certificate: a new one means new connections, the old ones go idle.
    pub generation: u64,
    /// Who may answer, sorted.
    pub expect: Arc<[Identity]>,
    /// Where.
    pub destination: SocketAddr,
}

/// Dials peers of one pod.
pub struct Connector {
    shared: Arc<Shared>,
    netns: Netns,
}

/// Why a peer wasn't reached.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// TCP.
    #[error("io error: {0}")]
    Tcp(#[source] io::Error),
    /// No certificate to show.
    #[error("identity error: {0}")]
    Identity(#[from] CertError),
    /// TLS, or the peer is somebody else.
    #[error("tls handshake error: {}", aquifer_tls::explain(.0))]
    Tls(#[source] io::Error),
}

impl Connector {
    /// Dials from `netns`.
    pub fn new(shared: Arc<Shared>, netns: Netns) -> Self {
        Self { shared, netns }
    }
}

impl aquifer_hbone::Connect<PoolKey> for Connector {
    type Io = TlsStream<TcpStream, Option<Arc<PeerCertificate>>>;
    type Error = DialError;

    async fn connect(&self, key: &PoolKey) -> Result<Self::Io, DialError> {
        // Whoever asked for the connection had it a moment ago.
        let configs = self.shared.certs.get(&key.source, Instant::now()).await?;
        let tcp = dial(&self.shared, &self.netns, key.destination, None, &self.shared.config.tcp)
            .await
            .map_err(|e| DialError::Tcp(e.error))?;
        // An address: no SNI is sent, and names play no part in the verification of SPIFFE identities.
        let name = ServerName::IpAddress(key.destination.ip().into());
        let inspect = |state: &CommonState| configs.server_of(state);
        stream::connect(configs.client_config(&key.expect), name, tcp, inspect).await.map_err(DialError::Tls)
    }

    /// An `Arc<PeerCertificate>`.
    fn peer(&self, io: &Self::Io) -> Option<Rc<dyn Any>> {
        io.peer().clone().map(|certificate| Rc::new(certificate) as _)
    }
}

/// A TCP connect that failed.
#[derive(Debug)]
pub struct DialFailed {
    /// What the kernel said.
    pub error: io::Error,
    /// The same for machines.
    pub reason: Reason,
}

/// Connects from inside a pod's namespace, with `source` as the sender's address if it may.
pub async fn dial(
    shared: &Shared,
    netns: &Netns,
    destination: SocketAddr,
    source: Option<IpAddr>,
    options: &TcpOptions,
) -> Result<TcpStream, DialFailed> {
    let mut tries = 0;
    loop {
        tries += 1;
        let made = netns.run(|| socket::upstream(destination, source, options)).flatten();
        let made = made.and_then(|(socket, unspoofed)| descriptors::opened(&socket).map(|()| (socket, unspoofed)));
        let (socket, unspoofed) = made.map_err(|error| DialFailed { error, reason: Reason::ConnectFailed })?;
        if let Some(error) = unspoofed {
            if shared.config.original_source == socket::OriginalSource::Required {
                return Err(DialFailed { error, reason: Reason::ConnectFailed });
            }
            if shared.warned_unspoofed.swap(true, Relaxed) {
                tracing::debug!(%destination, %error, "connecting without the client's own address");
            } else {
                tracing::warn!(%destination, %error, "connecting without the client's own address; said once");
            }
        }
        let error = match tokio::time::timeout(shared.config.connect_timeout, socket.connect(destination)).await {
            Ok(Ok(stream)) => return Ok(stream),
            Ok(Err(error)) => error,
            Err(_) => io::Error::from_raw_os_error(libc::ETIMEDOUT),
        };
        let reason = match error.raw_os_error() {
            // Another socket may have taken the chosen port a moment before.
            Some(libc::EADDRNOTAVAIL) if tries == 1 && source.is_some() => continue,
            Some(libc::EADDRNOTAVAIL) => Reason::SourcePortExhausted,
            Some(libc::ECONNREFUSED) => Reason::ConnectRefused,
            Some(libc::ETIMEDOUT) => Reason::ConnectTimeout,
            _ => Reason::ConnectFailed,
        };
        return Err(DialFailed { error, reason });
    }
}

/// Why the pool gave no stream.
pub fn pool_failure(error: &PoolError<DialError>) -> Failure {
    const BLOCKED: &str = "maybe a NetworkPolicy is blocking HBONE port 15008";
    let (reason, message) = match error {
        PoolError::Connect(dial) => match &**dial {
            DialError::Tcp(e) => match e.raw_os_error() {
                Some(libc::ETIMEDOUT) => (Reason::HboneTimeout, format!("connection timed out, {BLOCKED}: {e}")),
                Some(libc::ECONNREFUSED) => (Reason::HboneRefused, dial.to_string()),
                _ => (Reason::ConnectFailed, dial.to_string()),
            },
            DialError::Identity(e) => (e.reason(), dial.to_string()),
            DialError::Tls(e) => (aquifer_tls::reason_of(e), dial.to_string()),
        },
        PoolError::ConnectTimeout(_) => (Reason::HboneTimeout, format!("connection timed out, {BLOCKED}")),
        PoolError::Handshake(e) => (Reason::H2Failed, format!("http2 handshake failed: {e}")),
        PoolError::Stream(ConnectError::Status { status, .. }) => return status_failure(*status),
        PoolError::Stream(ConnectError::InvalidRequest(e)) => (Reason::Internal, e.to_string()),
        PoolError::Stream(e @ (ConnectError::Timeout(_) | ConnectError::Http2(_))) => {
            (Reason::TunnelClosed, format!("http2 error: {e}"))
        }
        PoolError::Closed => (Reason::Shutdown, "connection closed due to connection drain".to_owned()),
    };
    Failure::new(reason, message)
}

/// What a client is told whose CONNECT was answered so.
pub(super) fn status_failure(status: http::StatusCode) -> Failure {
    let denied = status == http::StatusCode::UNAUTHORIZED;
    let reason = if denied { Reason::PeerDenied } else { Reason::PeerRefused };
    Failure::new(reason, format!("http status: {status}"))
}
