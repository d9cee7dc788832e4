use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ED25519};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{ServerName, TrustAnchor, UnixTime};
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::prelude::X509Certificate;

use super::*;
use crate::test_support::base64;

const DAY: i64 = 86_400;

fn lifetimes() -> Lifetimes {
    let days = |n| Duration::from_secs(n * DAY as u64);
    Lifetimes { default: days(1), max: days(90) }
}

fn issuer_at(now: OffsetDateTime) -> Issuer {
    let dir = tempfile::tempdir().unwrap();
    let root = crate::ca::root::open(dir.path(), "cluster.local", now).unwrap().signer(now).unwrap();
    Issuer::new(root, lifetimes()).unwrap()
}

fn server() -> Identity {
    "spiffe://cluster.local/ns/amb/sa/server".parse().unwrap()
}

fn csr(sans: Vec<SanType>) -> String {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.subject_alt_names = sans;
    params.serialize_request(&key).unwrap().pem().unwrap()
}

fn der(pem: &str) -> CertificateDer<'static> {
    CertificateDer::from_pem_slice(pem.as_bytes()).unwrap()
}

fn with_leaf(chain: &[String], check: impl FnOnce(&X509Certificate<'_>)) {
    let der = der(&chain[0]);
    check(&x509_parser::parse_x509_certificate(&der).unwrap().1);
}

#[test]
fn a_leaf_is_what_clients_expect() {
    let now = OffsetDateTime::now_utc().replace_nanosecond(0).unwrap();
    let issuer = issuer_at(now);
    let other = SanType::URI("spiffe://cluster.local/ns/other/sa/other".try_into().unwrap());
    let chain = issuer.issue(&csr(vec![other]), &server(), 3600, now).unwrap();
    assert_eq!(chain.len(), 2);
    assert_eq!(chain[0].matches("BEGIN CERTIFICATE").count(), 1);
    assert_eq!(chain[1], issuer.root_bundle());
    with_leaf(&chain, |leaf| {
        assert_eq!(leaf.subject().iter_rdn().count(), 0);
        assert_eq!(leaf.issuer().to_string(), "O=cluster.local");
        assert_eq!(leaf.validity().not_before.to_datetime(), now - time::Duration::minutes(2));
        assert_eq!(leaf.validity().not_after.to_datetime(), now + time::Duration::hours(1));
        let san = leaf.subject_alternative_name().unwrap().unwrap();
        assert!(san.critical);
        let expect = GeneralName::URI("spiffe://cluster.local/ns/amb/sa/server");
        assert_eq!(san.value.general_names, [expect]);
        let usage = leaf.key_usage().unwrap().unwrap();
        assert!(usage.critical && usage.value.digital_signature() && usage.value.key_encipherment());
        assert_eq!(usage.value.flags.count_ones(), 2);
        let extended = leaf.extended_key_usage().unwrap().unwrap().value;
        assert!(extended.server_auth && extended.client_auth && !extended.any);
        let constraints = leaf.basic_constraints().unwrap().unwrap();
        assert!(constraints.critical && !constraints.value.ca);
        assert!(leaf.iter_extensions().any(|e| matches!(
            e.parsed_extension(),
            ParsedExtension::AuthorityKeyIdentifier(id) if id.key_identifier.is_some()
        )));
    });
}

#[test]
fn lifetimes_table() {
    let now = OffsetDateTime::now_utc().replace_nanosecond(0).unwrap();
    let issuer = issuer_at(now);
    let request = csr(vec![]);
    for (asked, expect) in [
        (0, Some(DAY)),
        (-5, Some(DAY)),
        (i64::MIN, Some(DAY)),
        (1, Some(1)),
        (90 * DAY, Some(90 * DAY)),
        (90 * DAY + 1, None),
        (i64::MAX, None),
    ] {
        let got = issuer.issue(&request, &server(), asked, now);
        match expect {
            Some(seconds) => with_leaf(&got.unwrap(), |leaf| {
                let end = leaf.validity().not_after.to_datetime();
                assert_eq!(end, now + time::Duration::seconds(seconds), "{asked}");
            }),
            None => assert!(matches!(got, Err(IssueError::Ttl { .. })), "{asked}: {got:?}"),
        }
    }
    let error = issuer.issue(&request, &server(), 400 * DAY, now).unwrap_err().to_string();
    assert_eq!(error, "CSR signing error (requested TTL 9600h0m0s is greater than the max allowed TTL 2160h0m0s)");
}

#[test]
fn nothing_outlives_the_signer() {
    let made = OffsetDateTime::now_utc().replace_nanosecond(0).unwrap();
    let issuer = issuer_at(made);
    let end = issuer.root_not_after();
    let late = end - time::Duration::hours(1);
    let chain = issuer.issue(&csr(vec![]), &server(), DAY, late).unwrap();
    with_leaf(&chain, |leaf| assert_eq!(leaf.validity().not_after.to_datetime(), end));
    assert_eq!(issuer.issue(&csr(vec![]), &server(), DAY, end), Err(IssueError::RootExpired));
}

#[test]
fn requests_that_are_refused() {
    let now = OffsetDateTime::now_utc();
    let issuer = issuer_at(now);
    let good = csr(vec![]);
    let forged = {
        // Another key in the middle of the signed part.
        let mut der = rustls_pki_types::CertificateSigningRequestDer::from_pem_slice(good.as_bytes()).unwrap().to_vec();
        let last = der.len() - 1;
        der[last] ^= 1;
        format!("-----BEGIN CERTIFICATE REQUEST-----\n{}\n-----END CERTIFICATE REQUEST-----\n", base64(&der))
    };
    let table = [
        ("", CsrError::Encoding),
        ("not a CSR", CsrError::Encoding),
        (issuer.root_bundle(), CsrError::Encoding),
        ("-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----\n", CsrError::Encoding),
        (forged.as_str(), CsrError::Signature),
    ];
    for (request, expect) in table {
        let got = issuer.issue(request, &server(), 0, now);
        assert_eq!(got, Err(IssueError::Csr(expect)), "{request}");
    }
    let ed25519 = KeyPair::generate_for(&PKCS_ED25519).unwrap();
    let request = CertificateParams::default().serialize_request(&ed25519).unwrap().pem().unwrap();
    issuer.issue(&request, &server(), 0, now).unwrap();
}

#[test]
fn serials_differ_and_are_positive() {
    let mut seen = std::collections::HashSet::new();
    for _ in 0..1000 {
        let serial = random_serial().to_bytes();
        assert!(serial.len() == 16 && serial[0] & 0xc0 == 0x40);
        assert!(seen.insert(serial));
    }
}

#[test]
fn the_serving_certificate_verifies_for_its_names_only() {
    let now = OffsetDateTime::now_utc();
    let issuer = issuer_at(now);
    let names = ["istiod.istio-system.svc", "localhost", "127.0.0.1"].map(str::to_owned);
    let cert = issuer.serving(&names, now).unwrap();
    let root = der(issuer.root_bundle());
    let anchor: TrustAnchor<'_> = webpki::anchor_from_trusted_cert(&root).unwrap();
    let leaf = webpki::EndEntityCert::try_from(&cert.chain[0]).unwrap();
    leaf.verify_for_usage(
        webpki::ALL_VERIFICATION_ALGS,
        &[anchor],
        &[],
        UnixTime::now(),
        webpki::KeyUsage::server_auth(),
        None,
        None,
    )
    .unwrap();
    for name in names {
        leaf.verify_is_valid_for_subject_name(&ServerName::try_from(name).unwrap()).unwrap();
    }
    let other = ServerName::try_from("istiod.other.svc").unwrap();
    assert!(leaf.verify_is_valid_for_subject_name(&other).is_err());
}
