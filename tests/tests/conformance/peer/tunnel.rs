//! HBONE from both ends.

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use rustls::pki_types::{CertificateDer, ServerName};
use tokio::net::TcpStream;
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::h2::{Connection, Stream};
use super::hello::{self, Hello};
use super::hpack::{self, Headers};
use super::net::Netns;
use super::pki::{self, Certified, Tls};
use super::within;

/// A connection to somebody's 15008.
#[derive(Debug)]
pub(crate) struct Client {
    pub(crate) connection: Connection,
    pub(crate) peer: Vec<CertificateDer<'static>>,
    pub(crate) suite: rustls::CipherSuite,
    pub(crate) group: rustls::NamedGroup,
    pub(crate) alpn: Option<Vec<u8>>,
}

impl Client {
    pub(crate) async fn dial(from: &Netns, to: SocketAddr, own: Option<Certified>) -> Result<Self> {
        Self::dial_with(from, to, own, &Tls::default()).await
    }

    pub(crate) async fn dial_with(from: &Netns, to: SocketAddr, own: Option<Certified>, tls: &Tls) -> Result<Self> {
        let stream = from.connect(to).await?;
        let (config, looking) = tls.client(own)?;
        let name = ServerName::IpAddress(to.ip().into());
        let tls = within("a TLS handshake", TlsConnector::from(Arc::new(config)).connect(name, stream)).await??;
        let session = tls.get_ref().1;
        let suite = session.negotiated_cipher_suite().context("a suite")?.suite();
        let group = session.negotiated_key_exchange_group().context("a group")?.name();
        let alpn = session.alpn_protocol().map(<[u8]>::to_vec);
        let peer = looking.seen.lock().clone();
        Ok(Self { connection: Connection::client(tls), peer, suite, group, alpn })
    }

    /// Opens a CONNECT stream; the answer's headers.
    pub(crate) async fn connect(&self, authority: &str, more: &[(&str, &str)]) -> Result<(Stream, Headers)> {
        let mut headers = vec![(":method", "CONNECT"), (":authority", authority)];
        headers.extend_from_slice(more);
        let mut stream = self.connection.open(&headers, false);
        let (headers, _) = stream.response().await?;
        Ok((stream, headers))
    }

    /// The status that a CONNECT gets.
    pub(crate) async fn status(&self, authority: &str) -> Result<String> {
        let (_, headers) = self.connect(authority, &[]).await?;
        Ok(hpack::value(&headers, ":status").context("a status")?.to_owned())
    }
}

/// A listener that takes HBONE.
#[derive(Debug)]
pub(crate) struct Server {
    listener: tokio::net::TcpListener,
    own: Certified,
    tls: Tls,
    /// SETTINGS that the server announces.
    pub(crate) settings: Vec<(u16, u32)>,
}

/// A connection that the server took.
#[derive(Debug)]
pub(crate) struct Accepted {
    pub(crate) connection: Connection,
    pub(crate) hello: Hello,
    pub(crate) peer: Vec<CertificateDer<'static>>,
    pub(crate) group: rustls::NamedGroup,
}

impl Accepted {
    /// The caller's identity.
    pub(crate) fn identity(&self) -> Result<String> {
        let uris = pki::uris(self.peer.first().context("a client certificate")?)?;
        ensure!(uris.len() == 1, "one URI, not {uris:?}");
        Ok(uris[0].clone())
    }

    /// Takes the next CONNECT and answers it 200.
    pub(crate) async fn take(&mut self) -> Result<(Stream, Headers)> {
        let (stream, headers) = self.connection.accept().await?;
        stream.headers(&[(":status", "200")], false);
        Ok((stream, headers))
    }
}

impl Server {
    pub(crate) fn bind(netns: &Netns, address: SocketAddr, own: Certified) -> Result<Self> {
        Ok(Self { listener: netns.listen(address)?, own, tls: Tls::default(), settings: vec![(3, 100)] })
    }

    /// The next TCP connection, before TLS.
    pub(crate) async fn tcp(&self) -> Result<(TcpStream, SocketAddr)> {
        Ok(within("a TCP connection", self.listener.accept()).await??)
    }

    /// The next connection, its handshake done.
    pub(crate) async fn accept(&self) -> Result<Accepted> {
        let (stream, _) = self.tcp().await?;
        let hello = hello::peek(&stream).await?;
        let (config, looking) = self.tls.server(self.own.clone(), true)?;
        let tls = within("a TLS handshake", TlsAcceptor::from(Arc::new(config)).accept(stream)).await??;
        let group = tls.get_ref().1.negotiated_key_exchange_group().context("a group")?.name();
        let peer = looking.seen.lock().clone();
        Ok(Accepted { connection: Connection::server(tls, &self.settings), hello, peer, group })
    }
}
