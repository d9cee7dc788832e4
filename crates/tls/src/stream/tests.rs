//! Our stream against rustls's own, as tokio-rustls carries it, in both roles.

use super::*;
use crate::testing::{TestCa, client_id, peer_name, server_id};
use proptest::prelude::*;
use rustls::pki_types::ServerName;
use std::future::poll_fn;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::time::timeout;
use tokio_rustls::{TlsAcceptor, TlsConnector};

type Ours = TlsStream<DuplexStream>;

fn configs() -> (Arc<ClientConfig>, Arc<ServerConfig>) {
    let ca = TestCa::new();
    let client = ca.configs(&client_id(), 86_400).client_config(&[server_id()]);
    (client, ca.configs(&server_id(), 86_400).server.clone())
}

fn name() -> ServerName<'static> {
    peer_name()
}

/// We connect, rustls accepts.
async fn we_connect() -> (Ours, tokio_rustls::server::TlsStream<DuplexStream>) {
    let (client, server) = configs();
    let (near, far) = duplex(64 << 10);
    let (ours, theirs) = tokio::join!(connect(client, name(), near, |_| ()), TlsAcceptor::from(server).accept(far));
    (ours.unwrap(), theirs.unwrap())
}

/// We accept, rustls connects.
async fn we_accept() -> (Ours, tokio_rustls::client::TlsStream<DuplexStream>) {
    let (client, server) = configs();
    let (near, far) = duplex(64 << 10);
    let (ours, theirs) = tokio::join!(accept(server, near, |_| ()), TlsConnector::from(client).connect(name(), far));
    (ours.unwrap(), theirs.unwrap())
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i * 31 % 251) as u8).collect()
}

/// All of `data` there and back, in writes of `step`.
async fn echo<P: Unpin, T: AsyncRead + AsyncWrite + Unpin>(
    ours: TlsStream<DuplexStream, P>,
    theirs: T,
    data: &[u8],
    step: usize,
) {
    let (mut ours_read, mut ours_write) = tokio::io::split(ours);
    let (mut theirs_read, mut theirs_write) = tokio::io::split(theirs);
    let send = async {
        for chunk in data.chunks(step) {
            ours_write.write_all(chunk).await.unwrap();
        }
        ours_write.shutdown().await.unwrap();
    };
    let back = async {
        let mut all = Vec::new();
        theirs_read.read_to_end(&mut all).await.unwrap();
        for chunk in all.chunks(step) {
            theirs_write.write_all(chunk).await.unwrap();
        }
        theirs_write.shutdown().await.unwrap();
    };
    let mut echoed = Vec::new();
    let receive = async { ours_read.read_to_end(&mut echoed).await.unwrap() };
    tokio::join!(send, back, receive);
    assert!(echoed == data, "{} of {} bytes came back, or others", echoed.len(), data.len());
}

#[tokio::test]
async fn bytes_of_any_number_in_writes_of_any_size_arrive() {
    for (len, step) in [(1, 1), (1000, 7), (16_384, 16_384), (16_385, 16_384), (100_000, 9), (3_000_000, 300_000)] {
        let data = pattern(len);
        let (ours, theirs) = we_connect().await;
        echo(ours, theirs, &data, step).await;
        let (ours, theirs) = we_accept().await;
        echo(ours, theirs, &data, step).await;
    }
}

#[tokio::test]
async fn both_ends_ours() {
    let (client, server) = configs();
    let (near, far) = duplex(64 << 10);
    let inspect = |state: &CommonState| crate::peer_identity(state);
    let (a, b) = tokio::join!(connect(client, name(), near, inspect), accept(server, far, inspect));
    let (a, b) = (a.unwrap(), b.unwrap());
    assert_eq!((a.peer(), b.peer()), (&Some(server_id()), &Some(client_id())));
    echo(a, b, &pattern(1_000_000), 5_000).await;
}

/// TLS12_ENABLED, and a peer that has no other.
#[tokio::test]
async fn tls_1_2_in_both_roles() {
    let ca = TestCa::new();
    let options = crate::TlsOptions { policy: crate::TlsPolicy::Tls12, ..Default::default() };
    let both = ca.configs_with(&client_id(), 86_400, &options).client_config(&[server_id()]);
    let server = ca.configs_with(&server_id(), 86_400, &options).server.clone();
    let mut only = rustls::ClientConfig::builder_with_provider(both.crypto_provider().clone())
        .with_protocol_versions(&[&rustls::version::TLS12])
        .unwrap()
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_client_cert_resolver(both.client_auth_cert_resolver.clone());
    only.dangerous().set_certificate_verifier(Arc::new(Anybody(both.crypto_provider().clone())));
    let only = Arc::new(only);

    let (near, far) = duplex(64 << 10);
    let accepting = accept(server.clone(), near, |state: &CommonState| state.protocol_version());
    let (ours, theirs) = tokio::join!(accepting, TlsConnector::from(only.clone()).connect(name(), far));
    let ours = ours.unwrap();
    assert_eq!(*ours.peer(), Some(rustls::ProtocolVersion::TLSv1_2));
    echo(ours, theirs.unwrap(), &pattern(100_000), 5_000).await;

    let (near, far) = duplex(64 << 10);
    let connecting = connect(Arc::new((*only).clone().extracting()), name(), near, |_| ());
    let (ours, theirs) = tokio::join!(connecting, TlsAcceptor::from(server).accept(far));
    echo(ours.unwrap(), theirs.unwrap(), &pattern(100_000), 5_000).await;
}

trait Extracting {
    fn extracting(self) -> Self;
}

impl Extracting for ClientConfig {
    fn extracting(mut self) -> Self {
        self.enable_secret_extraction = true;
        self
    }
}

/// Who a server is doesn't matter to the record layer.
#[derive(Debug)]
struct Anybody(Arc<rustls::crypto::CryptoProvider>);

impl rustls::client::danger::ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &rustls::pki_types::CertificateDer<'_>,
        _: &[rustls::pki_types::CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: rustls::pki_types::UnixTime,
    ) -> Result<rustls::client::danger::ServerCertVerified, rustls::Error> {
        Ok(rustls::client::danger::ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &rustls::pki_types::CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &rustls::pki_types::CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

#[tokio::test]
async fn what_is_sent_at_once_after_the_handshake_is_read() {
    let (mut ours, mut theirs) = we_accept().await;
    theirs.write_all(b"first").await.unwrap();
    theirs.flush().await.unwrap();
    let chunk = poll_fn(|cx| ours.poll_chunk(cx)).await.unwrap().unwrap();
    assert_eq!(&chunk[..], b"first");
}

#[tokio::test]
async fn small_writes_share_a_record_and_leave_at_the_flush() {
    let (mut ours, theirs) = we_connect().await;
    for _ in 0..100 {
        ours.write_all(b"0123456789").await.unwrap();
    }
    assert!(ours.outbox.is_empty(), "encrypted before there was need");
    ours.flush().await.unwrap();
    let (mut below, mut theirs) = theirs.into_inner();
    let mut wire = Vec::with_capacity(8 << 10);
    below.read_buf(&mut wire).await.unwrap();
    assert_eq!(wire.len(), 5 + 1000 + 1 + 16, "not one record");
    theirs.read_tls(&mut &wire[..]).unwrap();
    let plain = theirs.process_new_packets().unwrap();
    assert_eq!(plain.plaintext_bytes_to_read(), 1000);
}

#[tokio::test]
async fn unsent_bytes_are_bounded() {
    let (mut ours, _theirs) = we_connect().await;
    let block = vec![0; 64 << 10];
    let mut taken = 0;
    loop {
        let polled = poll_fn(|cx| Poll::Ready(ours.poll_send(cx, &[IoSlice::new(&block)]))).await;
        match polled {
            Poll::Ready(n) => taken += n.unwrap(),
            Poll::Pending => break,
        }
        assert!(taken < 1 << 20, "takes and takes");
    }
}

#[tokio::test]
async fn worn_keys_are_renewed_and_the_peer_follows() {
    for accepting in [false, true] {
        let data = pattern(500_000);
        if accepting {
            let (mut ours, theirs) = we_accept().await;
            ours.sealer.wears_after(3);
            echo(ours, theirs, &data, 10_000).await;
        } else {
            let (mut ours, theirs) = we_connect().await;
            ours.sealer.wears_after(3);
            echo(ours, theirs, &data, 10_000).await;
        }
    }
}

#[tokio::test]
async fn the_peer_may_renew_its_keys_and_have_ours_renewed() {
    let (ours, mut theirs) = we_connect().await;
    theirs.get_mut().1.refresh_traffic_keys().unwrap();
    echo(ours, theirs, &pattern(300_000), 10_000).await;
}

#[tokio::test]
async fn an_end_without_goodbye_is_an_error_and_one_with_is_none() {
    let (mut ours, mut theirs) = we_connect().await;
    theirs.write_all(b"x").await.unwrap();
    theirs.shutdown().await.unwrap();
    let mut read = Vec::new();
    assert_eq!(ours.read_to_end(&mut read).await.unwrap(), 1);

    let (mut ours, mut theirs) = we_connect().await;
    theirs.write_all(b"x").await.unwrap();
    theirs.flush().await.unwrap();
    drop(theirs.into_inner());
    let error = ours.read_to_end(&mut read).await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
}

#[tokio::test]
async fn a_peer_that_refuses_us_is_heard_in_its_own_words() {
    let (ca, foreign) = (TestCa::new(), TestCa::named("elsewhere"));
    let server = ca.configs(&server_id(), 86_400).server.clone();
    let client = foreign.bundle_trusting(&client_id(), 86_400, &[&ca]);
    let client = crate::IdentityConfigs::new(client_id(), client, 1, &crate::TlsOptions::default()).unwrap();
    let (near, far) = duplex(64 << 10);
    let ours = async {
        let mut stream = connect(client.client_config(&[server_id()]), name(), near, |_| ()).await?;
        stream.read_u8().await
    };
    let (ours, theirs) = tokio::join!(ours, accept(server, far, |_| ()));
    assert!(theirs.is_err());
    let error = ours.unwrap_err();
    let alert = error.get_ref().and_then(|e| e.downcast_ref::<rustls::Error>());
    assert!(matches!(alert, Some(rustls::Error::AlertReceived(_))), "{error:?}");
}

#[tokio::test]
async fn an_idle_connection_holds_no_buffers() {
    let (mut ours, mut theirs) = we_connect().await;
    theirs.write_all(&pattern(200_000)[..60_000]).await.unwrap();
    theirs.flush().await.unwrap();
    let mut got = vec![0; 60_000];
    ours.read_exact(&mut got).await.unwrap();
    ours.write_all(b"answer").await.unwrap();
    ours.flush().await.unwrap();
    assert!(poll_fn(|cx| Poll::Ready(ours.poll_chunk(cx))).await.is_pending());
    let held = ours.inbox.capacity() + ours.gathered.capacity() + ours.outbox.capacity() + ours.plain.capacity();
    assert!(held < 1 << 10, "{held} bytes");
}

fn tampered(index: usize, bit: u8) -> io::Result<Vec<u8>> {
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
        let (mut ours, mut theirs) = we_connect().await;
        theirs.write_all(b"a message").await.unwrap();
        theirs.flush().await.unwrap();
        drop(theirs);
        let mut wire = Vec::new();
        ours.io.read_to_end(&mut wire).await.unwrap();
        let index = index % wire.len();
        wire[index] ^= 1 << (bit % 8);
        ours.inbox.extend_from_slice(&wire);
        let mut read = Vec::new();
        ours.read_to_end(&mut read).await.map(|_| read)
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]
    /// Whatever is changed on the wire is noticed, at the latest as a missing end; nothing changed is ever delivered.
    #[test]
    fn a_changed_bit_is_an_error(index in 0usize..1000, bit in 0u8..8) {
        if let Ok(read) = tampered(index, bit) {
            prop_assert!(read == b"a message" || read.is_empty());
        }
    }

    #[test]
    fn no_bytes_bring_it_down(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
            let (mut ours, theirs) = we_accept().await;
            let (mut below, _) = theirs.into_inner();
            below.write_all(&bytes).await.unwrap();
            drop(below);
            let mut read = Vec::new();
            assert!(ours.read_to_end(&mut read).await.is_err());
            assert!(read.is_empty());
        });
    }
}

/// Passes bytes on; one bit of those that come from `a` is changed.
async fn meddle(a: DuplexStream, b: DuplexStream, index: usize, bit: u8) {
    let ((mut from_a, mut to_a), (mut from_b, mut to_b)) = (tokio::io::split(a), tokio::io::split(b));
    let there = async {
        let (mut buf, mut seen) = (vec![0; 4096], 0);
        while let Ok(n @ 1..) = from_a.read(&mut buf).await {
            if (seen..seen + n).contains(&index) {
                buf[index - seen] ^= 1 << bit;
            }
            seen += n;
            if to_b.write_all(&buf[..n]).await.is_err() {
                break;
            }
        }
        let _ = to_b.shutdown().await;
    };
    let back = async {
        let _ = tokio::io::copy(&mut from_b, &mut to_a).await;
        let _ = to_a.shutdown().await;
    };
    tokio::join!(there, back);
}

/// Both ends, of whose bytes one bit is changed. Whether they come to an end, and what they read.
fn meddled(index: usize, bit: u8, client_side: bool) -> (bool, Vec<Vec<u8>>) {
    // A length that was made longer promises bytes that never come: whoever shakes hands sets it a time.
    const HANDSHAKE: Duration = Duration::from_secs(10);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    runtime.block_on(async {
        let (client, server) = configs();
        let ((near, a), (b, far)) = (duplex(64 << 10), duplex(64 << 10));
        let (a, b) = if client_side { (a, b) } else { (b, a) };
        let ours = async {
            let mut stream = timeout(HANDSHAKE, connect(client, name(), near, |_| ())).await??;
            stream.write_all(b"hello").await?;
            stream.shutdown().await?;
            let mut read = Vec::new();
            stream.read_to_end(&mut read).await.map(|_| read)
        };
        let theirs = async {
            let mut stream = timeout(HANDSHAKE, accept(server, far, |_| ())).await??;
            let mut read = Vec::new();
            stream.read_to_end(&mut read).await?;
            stream.write_all(&read).await?;
            stream.shutdown().await?;
            Ok::<_, io::Error>(read)
        };
        let both = async { tokio::join!(ours, theirs, meddle(a, b, index, bit)) };
        match timeout(HANDSHAKE * 3, both).await {
            Ok((ours, theirs, ())) => (true, [ours, theirs].into_iter().flatten().collect()),
            Err(_) => (false, Vec::new()),
        }
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]
    /// Neither end panics or hangs, whatever a meddler changes while hands are shaken; what is read then is the truth.
    #[test]
    fn a_handshake_survives_meddling(index in 0usize..3000, bit in 0u8..8, client_side: bool) {
        let (ended, read) = meddled(index, bit, client_side);
        assert!(ended, "somebody still waits");
        assert!(read.iter().all(|read| read == b"hello"), "{read:?}");
    }
}

/// Of the first record's header, in either direction.
#[test]
fn a_length_that_promises_more_than_comes_ends_with_the_time_for_the_handshake() {
    for (index, bit, client_side) in [(3, 3, false), (3, 4, true), (4, 0, true), (8, 3, true)] {
        assert_eq!(meddled(index, bit, client_side), (true, Vec::new()), "{index} {bit} {client_side}");
    }
}
