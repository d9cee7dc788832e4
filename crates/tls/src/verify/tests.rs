//! Whole handshakes in memory, each refusal with its reason on both sides.

use super::*;
use crate::config::IdentityConfigs;
use crate::provider::{TlsPolicy, provider};
use crate::testing::*;
use crate::{explain, reason_of};
use aquifer_core::reason::Reason;
use rcgen::KeyPair;
use rustls::client::Resumption;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::version::TLS13;
use rustls::{ClientConfig, HandshakeKind, NamedGroup, ServerConfig};
use std::io;
use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};
use tokio_rustls::{TlsAcceptor, TlsConnector};

fn alert(error: &io::Error) -> String {
    match error.get_ref().and_then(|e| e.downcast_ref::<Error>()) {
        Some(Error::AlertReceived(alert)) => format!("{alert:?}"),
        _ => format!("no alert: {error}"),
    }
}

#[tokio::test]
async fn the_right_peers_know_each_other() {
    let ca = TestCa::new();
    let (client, server) = (ca.configs(&client_id(), 3600), ca.configs(&server_id(), 3600));
    for _ in 0..2 {
        let (near, far) = shake(client.client_config(&[server_id()]), server.server.clone()).await;
        let (near, far) = (near.unwrap(), far.unwrap());
        assert_eq!(peer_identity(near.get_ref().1), Some(server_id()));
        assert_eq!(peer_identity(far.get_ref().1), Some(client_id()));
        for side in [&**near.get_ref().1 as &CommonState, &**far.get_ref().1] {
            assert_eq!(side.alpn_protocol(), Some(&b"h2"[..]));
            assert_eq!(side.protocol_version(), Some(rustls::ProtocolVersion::TLSv1_3));
            assert_eq!(side.negotiated_key_exchange_group().unwrap().name(), NamedGroup::X25519MLKEM768);
            let suite = side.negotiated_cipher_suite().unwrap().suite();
            assert_eq!(suite, rustls::CipherSuite::TLS13_AES_256_GCM_SHA384);
            // The second time as well: nothing is resumed.
            assert_eq!(side.handshake_kind(), Some(HandshakeKind::Full));
        }
        assert_eq!(far.get_ref().1.server_name(), None);
    }
}

#[tokio::test]
async fn an_intermediate_is_sent_along() {
    let root = TestCa::new();
    let ca = root.intermediate();
    let (client, server) = (ca.configs(&client_id(), 3600), root.configs(&server_id(), 3600));
    let (near, far) = shake(client.client_config(&[server_id()]), server.server.clone()).await;
    near.unwrap();
    assert_eq!(peer_identity(far.unwrap().get_ref().1), Some(client_id()));
}

/// A configuration that shows any certificate at all, for the hostile side.
fn showing(leaf: Option<(String, KeyPair)>, expect: &[Identity], roots: &TestCa) -> Arc<ClientConfig> {
    let mut store = RootCertStore::empty();
    store.add(der(&roots.pem())).unwrap();
    let builder = ClientConfig::builder_with_provider(provider(TlsPolicy::Tls13))
        .with_protocol_versions(&[&TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(ServerVerifier::new(
            Arc::new(store),
            expect.to_vec(),
            &TlsOptions::default(),
        )));
    let mut config = match leaf {
        Some(leaf) => builder.with_client_cert_resolver(Arc::new(shown(leaf))),
        None => builder.with_no_client_auth(),
    };
    config.resumption = Resumption::disabled();
    Arc::new(config)
}

fn shown((pem, key): (String, KeyPair)) -> SingleCertAndKey {
    let key = provider(TlsPolicy::Tls13).key_provider.load_private_key(private(&key)).unwrap();
    SingleCertAndKey::from(CertifiedKey::new(vec![der(&pem)], key))
}

fn leaf(ca: &TestCa, sans: Vec<rcgen::SanType>, from: i64, to: i64) -> (String, KeyPair) {
    let key = KeyPair::generate().unwrap();
    (ca.leaf(&key, sans, from, to), key)
}

#[tokio::test]
async fn clients_that_are_refused() {
    let (ca, same_name, other) = (TestCa::new(), TestCa::new(), TestCa::named("other"));
    let good = || vec![uri(&client_id().to_string())];
    let dns = || rcgen::SanType::DnsName("orders.shop".try_into().unwrap());
    let invalid = Reason::PeerCertificateInvalid;
    let cases = [
        ("no certificate", None, Reason::PeerCertificateMissing, "CertificateRequired"),
        ("another root", Some(leaf(&other, good(), -60, 600)), invalid, "UnknownCA"),
        ("another root of the same name", Some(leaf(&same_name, good(), -60, 600)), invalid, "DecryptError"),
        ("expired", Some(leaf(&ca, good(), -600, -60)), invalid, "CertificateExpired"),
        ("not valid yet", Some(leaf(&ca, good(), 600, 6000)), invalid, "CertificateExpired"),
        ("no SAN", Some(leaf(&ca, vec![], -60, 600)), invalid, "CertificateUnknown"),
        ("a DNS name only", Some(leaf(&ca, vec![dns()], -60, 600)), invalid, "CertificateUnknown"),
        ("no SPIFFE form", Some(leaf(&ca, vec![uri("https://a/b")], -60, 600)), invalid, "CertificateUnknown"),
        (
            "another trust domain",
            Some(leaf(&ca, vec![uri("spiffe://elsewhere/ns/shop/sa/orders")], -60, 600)),
            invalid,
            "CertificateUnknown",
        ),
        (
            "another trust domain first, ours second",
            Some(leaf(&ca, [vec![uri("spiffe://elsewhere/ns/a/sa/b")], good()].concat(), -60, 600)),
            invalid,
            "CertificateUnknown",
        ),
    ];
    let server = ca.configs(&server_id(), 3600);
    for (what, shown, reason, alerted) in cases {
        let client = showing(shown, &[server_id()], &ca);
        let (near, far) = shake(client, server.server.clone()).await;
        let far = far.err().unwrap_or_else(|| panic!("{what}: accepted"));
        assert_eq!(reason_of(&far), reason, "{what}: {far}");
        let near = near.err().unwrap_or_else(|| panic!("{what}: the client heard nothing"));
        assert_eq!(alert(&near), alerted, "{what}");
        assert_eq!(reason_of(&near), Reason::TlsFailed, "{what}");
    }
    // Self-signed, by the very name that is expected.
    let key = KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::default();
    params.subject_alt_names = good();
    let pem = params.self_signed(&key).unwrap().pem();
    let (_, far) = shake(showing(Some((pem, key)), &[server_id()], &ca), server.server.clone()).await;
    assert_eq!(reason_of(&far.err().unwrap()), invalid);
}

#[tokio::test]
async fn servers_that_are_refused() {
    let (ca, other) = (TestCa::new(), TestCa::new());
    let client = ca.configs(&client_id(), 3600);
    let right = || vec![server_id()];
    let mismatch = Reason::PeerIdentityMismatch;
    let cases = [
        ("another identity", ca.configs(&id("spiffe://cluster.local/ns/shop/sa/evil"), 3600), right(), mismatch),
        ("same names, other trust domain", ca.configs(&id("spiffe://td/ns/shop/sa/payments"), 3600), right(), mismatch),
        ("nobody is expected", ca.configs(&server_id(), 3600), vec![], mismatch),
        ("another root", other.configs(&server_id(), 3600), right(), Reason::PeerCertificateInvalid),
        ("expired", ca.configs(&server_id(), -60), right(), Reason::PeerCertificateInvalid),
    ];
    for (what, server, expected, reason) in cases {
        let (near, far) = shake(client.client_config(&expected), server.server.clone()).await;
        let near = near.err().unwrap_or_else(|| panic!("{what}: accepted"));
        assert_eq!(reason_of(&near), reason, "{what}: {near}");
        assert!(far.is_err(), "{what}");
    }
    // One of several is enough.
    let server = ca.configs(&server_id(), 3600);
    let expected = [id("spiffe://cluster.local/ns/a/sa/b"), server_id()];
    let (near, far) = shake(client.client_config(&expected), server.server.clone()).await;
    assert!(near.is_ok() && far.is_ok());
}

#[tokio::test]
async fn tls_1_2_is_refused() {
    // A ClientHello as TLS 1.2 clients send it: no supported_versions extension.
    let mut body = vec![3, 3];
    body.extend([7; 32]);
    body.extend([0, 0, 4, 0xc0, 0x2f, 0xc0, 0x30, 1, 0]);
    let extensions = [0, 10, 0, 4, 0, 2, 0, 23, 0, 13, 0, 4, 0, 2, 4, 3];
    body.extend([0, extensions.len() as u8]);
    body.extend(extensions);
    let mut hello = vec![0x16, 3, 1, 0, body.len() as u8 + 4, 1, 0, 0, body.len() as u8];
    hello.extend(body);
    let ca = TestCa::new();
    let server = ca.configs(&server_id(), 3600);
    let (mut near, far) = duplex(1 << 16);
    near.write_all(&hello).await.unwrap();
    let refused = TlsAcceptor::from(server.server.clone()).accept(far).await.err().unwrap();
    assert_eq!(reason_of(&refused), Reason::TlsFailed);
    let mut answer = vec![];
    near.read_to_end(&mut answer).await.unwrap();
    assert_eq!(answer, [0x15, 3, 3, 0, 2, 2, 70], "fatal alert protocol_version");
}

/// Our ClientHello next to the reference client's: the same offers, no SNI.
#[tokio::test]
async fn the_client_hello_is_the_references() {
    let path = format!("{}/../../tests/recordings/ztunnel/hbone-ztunnel-to-server.json", env!("CARGO_MANIFEST_DIR"));
    let recording: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let theirs = &recording["entries"][0]["json"];
    let (near, far) = duplex(1 << 16);
    let configs: IdentityConfigs = TestCa::new().configs(&client_id(), 3600);
    let name = peer_name();
    let connect = TlsConnector::from(configs.client_config(&[server_id()])).connect(name, near);
    let accept = tokio_rustls::LazyConfigAcceptor::new(rustls::server::Acceptor::default(), far);
    let start = tokio::select! {
        start = accept => start.unwrap(),
        _ = connect => panic!("nobody answered"),
    };
    let hello = start.client_hello();
    let suites: Vec<_> = hello.cipher_suites().iter().map(|s| format!("{s:?}").replace("TLS13_", "TLS_")).collect();
    // rustls adds the signalling value of RFC 5746 only with TLS 1.2.
    assert_eq!(serde_json::json!(suites), theirs["ciphers"]);
    assert_eq!(hello.alpn().unwrap().collect::<Vec<_>>(), [b"h2"]);
    assert_eq!((hello.server_name(), theirs["sni"].as_str()), (None, Some("")));
    let groups = hello.named_groups().unwrap();
    let ours = [NamedGroup::X25519MLKEM768, NamedGroup::X25519, NamedGroup::secp256r1, NamedGroup::secp384r1];
    assert_eq!(groups, ours);
    assert_eq!(theirs["groups"].as_array().unwrap().len(), ours.len());
}

#[tokio::test]
async fn peers_without_the_hybrid_get_x25519() {
    let ca = TestCa::new();
    let server = ca.configs(&server_id(), 3600);
    let mut plain = (*provider(TlsPolicy::Tls13)).clone();
    plain.kx_groups.remove(0);
    let mut store = RootCertStore::empty();
    store.add(der(&ca.pem())).unwrap();
    let client = ClientConfig::builder_with_provider(Arc::new(plain))
        .with_protocol_versions(&[&TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(ServerVerifier::new(
            Arc::new(store),
            vec![server_id()],
            &TlsOptions::default(),
        )))
        .with_client_cert_resolver(Arc::new(shown(leaf(&ca, vec![uri(&client_id().to_string())], -60, 600))));
    let (near, far) = shake(Arc::new(client), server.server.clone()).await;
    near.unwrap();
    let far = far.unwrap();
    assert_eq!(far.get_ref().1.negotiated_key_exchange_group().unwrap().name(), NamedGroup::X25519);
}

#[test]
fn client_configs_are_shared_and_bounded() {
    let configs = TestCa::new().configs(&client_id(), 3600);
    let nth = |i: usize| [id(&format!("spiffe://cluster.local/ns/shop/sa/s{i}"))];
    let first = configs.client_config(&nth(0));
    for i in 1..1000 {
        configs.client_config(&nth(i));
        // In use, so it stays.
        assert!(Arc::ptr_eq(&first, &configs.client_config(&nth(0))));
    }
    let gone = configs.client_config(&nth(1));
    assert!(Arc::strong_count(&gone) == 2 && Arc::strong_count(&first) == 2);
}

#[tokio::test]
async fn post_quantum_only_takes_nothing_else() {
    let ca = TestCa::new();
    let pqc = TlsOptions { policy: TlsPolicy::PostQuantum, ..TlsOptions::default() };
    let server = ca.configs_with(&server_id(), 3600, &pqc);
    let client = ca.configs_with(&client_id(), 3600, &pqc);
    // Both strict, and either strict with a peer that has more.
    let (lax_client, lax_server) = (ca.configs(&client_id(), 3600), ca.configs(&server_id(), 3600));
    for (client, server) in [(&client, &server), (&lax_client, &server), (&client, &lax_server)] {
        let (near, far) = shake(client.client_config(&[server_id()]), server.server.clone()).await;
        near.unwrap();
        let far = far.unwrap();
        let group = far.get_ref().1.negotiated_key_exchange_group().unwrap().name();
        assert_eq!(group, NamedGroup::X25519MLKEM768);
    }
    // A peer without the hybrid is refused on either side, and both sides' errors say where to look.
    let classical = |config: &ClientConfig| {
        let mut provider = (**config.crypto_provider()).clone();
        provider.kx_groups.remove(0);
        Arc::new(provider)
    };
    let old = classical(&lax_client.client_config(&[server_id()]));
    let mut store = RootCertStore::empty();
    store.add(der(&ca.pem())).unwrap();
    let verifier = ServerVerifier::new(Arc::new(store.clone()), vec![server_id()], &TlsOptions::default());
    let old_client = ClientConfig::builder_with_provider(old.clone())
        .with_protocol_versions(&[&TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_client_cert_resolver(Arc::new(shown(leaf(&ca, vec![uri(&client_id().to_string())], -60, 600))));
    let old_server = ServerConfig::builder_with_provider(old)
        .with_protocol_versions(&[&TLS13])
        .unwrap()
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(shown(leaf(&ca, vec![uri(&server_id().to_string())], -60, 600))));
    let (near, far) = shake(Arc::new(old_client), server.server.clone()).await;
    let (near, far) = (near.err().unwrap(), far.err().unwrap());
    assert!(explain(&far).contains("COMPLIANCE_POLICY=pqc"), "{}", explain(&far));
    assert!(explain(&near).contains("COMPLIANCE_POLICY=pqc"), "{}", explain(&near));
    assert_eq!(reason_of(&far), Reason::TlsFailed);
    let (near, far) = shake(client.client_config(&[server_id()]), Arc::new(old_server)).await;
    assert!(explain(&near.err().unwrap()).contains("COMPLIANCE_POLICY=pqc"));
    assert!(far.is_err());
}

#[tokio::test]
async fn tls_1_2_is_spoken_with_those_who_have_no_other() {
    let ca = TestCa::new();
    let both = TlsOptions { policy: TlsPolicy::Tls12, ..TlsOptions::default() };
    let server = ca.configs_with(&server_id(), 3600, &both);
    let mut store = RootCertStore::empty();
    store.add(der(&ca.pem())).unwrap();
    let old = || {
        let verifier = ServerVerifier::new(Arc::new(store.clone()), vec![server_id()], &both);
        let mut config = ClientConfig::builder_with_provider(provider(TlsPolicy::Tls12))
            .with_protocol_versions(&[&rustls::version::TLS12])
            .unwrap()
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier))
            .with_client_cert_resolver(Arc::new(shown(leaf(&ca, vec![uri(&client_id().to_string())], -60, 600))));
        // It would resume if it could.
        config.resumption = Resumption::in_memory_sessions(8);
        Arc::new(config)
    };
    let config = old();
    for _ in 0..2 {
        let (near, far) = shake(config.clone(), server.server.clone()).await;
        let (near, far) = (near.unwrap(), far.unwrap());
        let far: &CommonState = far.get_ref().1;
        assert_eq!(far.protocol_version(), Some(rustls::ProtocolVersion::TLSv1_2));
        let suite = far.negotiated_cipher_suite().unwrap().suite();
        assert_eq!(suite, rustls::CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384);
        assert_eq!(far.handshake_kind(), Some(HandshakeKind::Full), "nothing is resumed");
        assert_eq!(peer_identity(far), Some(client_id()), "the same checks");
        assert_eq!(peer_identity(near.get_ref().1), Some(server_id()));
    }
    // Those who have TLS 1.3 use it.
    let modern = ca.configs_with(&client_id(), 3600, &both);
    let (near, far) = shake(modern.client_config(&[server_id()]), server.server.clone()).await;
    near.unwrap();
    assert_eq!(far.unwrap().get_ref().1.protocol_version(), Some(rustls::ProtocolVersion::TLSv1_3));
    // Without the setting they are refused.
    let (near, far) = shake(config, ca.configs(&server_id(), 3600).server.clone()).await;
    assert!(near.is_err() && explain(&far.err().unwrap()).contains("TLS12_ENABLED"));
}

/// A client that would resume, and a server that gives it nothing to resume with.
#[tokio::test]
async fn nothing_is_resumed() {
    let ca = TestCa::new();
    let server = ca.configs(&server_id(), 3600);
    let mut client = (*ca.configs(&client_id(), 3600).client_config(&[server_id()])).clone();
    client.resumption = Resumption::in_memory_sessions(8);
    let client = Arc::new(client);
    for _ in 0..3 {
        let (near, far) = shake(client.clone(), server.server.clone()).await;
        assert_eq!(near.unwrap().get_ref().1.handshake_kind(), Some(HandshakeKind::Full));
        assert_eq!(far.unwrap().get_ref().1.handshake_kind(), Some(HandshakeKind::Full));
    }
}

mod any_certificate {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]

        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            prop_assert!(identity_of(&bytes.into()).is_none());
        }

        /// A certificate with something changed holds the identity that it held, another, or none.
        #[test]
        fn no_change_makes_it_panic(changes in proptest::collection::vec((any::<usize>(), any::<u8>()), 0..4), cut: Option<usize>) {
            static LEAF: std::sync::LazyLock<Vec<u8>> = std::sync::LazyLock::new(|| {
                der(&leaf(&TestCa::new(), vec![uri(&client_id().to_string())], -60, 600).0).to_vec()
            });
            let mut bytes = LEAF.clone();
            prop_assert_eq!(identity_of(&bytes.clone().into()), Some(client_id()));
            for (at, byte) in changes {
                let at = at % bytes.len();
                bytes[at] = byte;
            }
            bytes.truncate(cut.map_or(usize::MAX, |cut| cut % LEAF.len()));
            if let Some(identity) = identity_of(&bytes.into()) {
                prop_assert!(!identity.namespace.is_empty() && !identity.service_account.is_empty());
            }
        }

        /// The first URI of the exact form counts, and nothing that only looks like it.
        #[test]
        fn the_first_spiffe_uri_counts(
            uris in proptest::collection::vec(
                prop_oneof!["[a-z]{1,6}://[!-~]{0,20}", "spiffe://[a-z./]{0,30}", "spiffe://[a-z]{1,4}/ns/[a-z]{1,4}/sa/[a-z]{1,4}"],
                0..4,
            ),
        ) {
            let key = KeyPair::generate().unwrap();
            let pem = TestCa::new().leaf(&key, uris.iter().map(|u| uri(u)).collect(), -60, 600);
            let expected = uris.iter().find_map(|u| u.parse::<Identity>().ok());
            prop_assert_eq!(identity_of(&der(&pem)), expected);
        }
    }
}
