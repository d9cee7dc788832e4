use aquifer_core::reason::Reason;
use http::{HeaderMap, StatusCode};
use std::sync::Arc;
use std::time::Duration;

/// Why a CONNECT gave no stream.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ConnectError {
    /// The peer answered with anything but 200.
    #[error("http status: {status}")]
    Status {
        /// The answer.
        status: StatusCode,
        /// Its headers.
        headers: Box<HeaderMap>,
    },
    /// The request cannot be written as HTTP/2: the authority or a header is malformed.
    #[error("invalid request: {0}")]
    InvalidRequest(Arc<http::Error>),
    /// No answer in time.
    #[error("no response within {0:?}")]
    Timeout(Duration),
    /// The stream or its connection broke before the answer.
    #[error("{0}")]
    Http2(Arc<h2::Error>),
}

impl From<h2::Error> for ConnectError {
    fn from(e: h2::Error) -> Self {
        Self::Http2(Arc::new(e))
    }
}

impl ConnectError {
    /// Its place in the mesh's list of reasons.
    pub fn reason(&self) -> Reason {
        match self {
            Self::Status { status, .. } if *status == StatusCode::UNAUTHORIZED => Reason::PeerDenied,
            Self::Status { .. } => Reason::PeerRefused,
            Self::InvalidRequest(_) => Reason::InvalidRequest,
            Self::Timeout(_) => Reason::ConnectTimeout,
            Self::Http2(_) => Reason::TunnelClosed,
        }
    }

    /// Whether the peer surely did not act on the request (RFC 9113, 8.7: REFUSED_STREAM, or a stream above the
    /// last one of a GOAWAY).
    pub fn is_unprocessed(&self) -> bool {
        let Self::Http2(e) = self else { return false };
        (e.reason() == Some(h2::Reason::REFUSED_STREAM) && !e.is_go_away())
            || (e.is_go_away() && e.is_remote() && e.reason() == Some(h2::Reason::NO_ERROR))
    }

    /// Whether the connection broke, rather than the peer answering or this stream alone failing.
    pub fn is_connection_lost(&self) -> bool {
        matches!(self, Self::Http2(e) if e.is_io() || e.is_go_away())
    }
}
