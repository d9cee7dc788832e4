//! The recorded calls of the reference CA, asked of ours.

use aquifer_runtime::metrics::Registry;
use prost::Message as _;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use serde_json::Value;
use tonic::Code;

use super::*;
use crate::ca::authn::Authenticator;
use crate::ca::authority;
use crate::ca::issuer::Lifetimes;
use crate::ca::jwt::JwtAuthenticator;
use crate::ca::pods::{self, PodFacts};
use crate::metrics::Metrics;
use crate::test_support::{ISSUER, Signer, claims, from_base64, write_jwks};

const RECORDING: &str = include_str!("../../../../tests/recordings/ca/ca-cases.json");

/// Where we differ on purpose: the call, our answer, and why.
const INTENDED: [(&str, Code, &str); 1] = [(
    "impersonation, trust domain of the request unlike the mesh's",
    Code::Unauthenticated,
    "a CA vouches for its own trust domain only; the reference signs whatever is asked",
)];

struct Case {
    note: String,
    headers: Vec<(String, String)>,
    request: IstioCertificateRequest,
    answer: Result<Vec<String>, (Code, String)>,
}

fn recorded() -> Vec<Case> {
    let file: Value = serde_json::from_str(RECORDING).unwrap();
    let mut cases: Vec<Case> = Vec::new();
    let (mut note, mut headers, mut request) = (String::new(), Vec::new(), None);
    for entry in file["entries"].as_array().unwrap() {
        match entry["direction"].as_str().unwrap() {
            "cluster" if entry.get("headers").is_some() => {
                note = entry["note"].as_str().unwrap().to_owned();
                let pairs = entry["headers"].as_object().unwrap().iter();
                headers = pairs.map(|(k, v)| (k.clone(), v.as_str().unwrap().to_owned())).collect();
            }
            "client->server" => {
                let bytes = from_base64(entry["raw_base64"].as_str().unwrap());
                request = Some(IstioCertificateRequest::decode(bytes.as_slice()).unwrap());
            }
            "server->client" => cases.push(Case {
                note: note.clone(),
                headers: headers.clone(),
                request: request.take().unwrap(),
                answer: answer(entry),
            }),
            _ => {}
        }
    }
    cases
}

fn answer(entry: &Value) -> Result<Vec<String>, (Code, String)> {
    if let Some(error) = entry["error"].as_str() {
        let (code, text) = error.split_once(": ").unwrap();
        let code = match code {
            "Unauthenticated" => Code::Unauthenticated,
            "InvalidArgument" => Code::InvalidArgument,
            other => panic!("unknown code {other}"),
        };
        return Err((code, text.to_owned()));
    }
    let chain = entry["json"]["certChain"].as_array().unwrap();
    Ok(chain.iter().map(|c| c.as_str().unwrap().to_owned()).collect())
}

/// What of a leaf must be the same, whoever signed it.
#[derive(Debug, PartialEq)]
struct Leaf {
    subject: String,
    sans: String,
    san_critical: bool,
    seconds: i64,
    key_usage: u16,
    extended: Vec<&'static str>,
    ca: bool,
}

fn leaf(pem: &str) -> Leaf {
    let der = CertificateDer::from_pem_slice(pem.as_bytes()).unwrap();
    let (_, cert) = x509_parser::parse_x509_certificate(&der).unwrap();
    let san = cert.subject_alternative_name().unwrap().unwrap();
    let validity = cert.validity();
    let extended = cert.extended_key_usage().unwrap().unwrap().value;
    Leaf {
        subject: cert.subject().to_string(),
        sans: format!("{:?}", san.value.general_names),
        san_critical: san.critical,
        seconds: validity.not_after.timestamp() - validity.not_before.timestamp(),
        key_usage: cert.key_usage().unwrap().unwrap().value.flags,
        extended: [(extended.server_auth, "server"), (extended.client_auth, "client")]
            .into_iter()
            .filter_map(|(set, name)| set.then_some(name))
            .collect(),
        ca: cert.is_ca(),
    }
}

#[tokio::test]
async fn the_recorded_calls_get_the_recorded_answers() {
    let dir = tempfile::tempdir().unwrap();
    let signer = Signer::rsa("k1");
    let jwks = dir.path().join("jwks.json");
    write_jwks(&jwks, &[&signer]);
    let (writer, table) = pods::table();
    for (namespace, name, uid, account) in
        [("istio-system", "ztunnel-x", "z1", "ztunnel"), ("amb", "server-x", "s1", "server")]
    {
        let (uid, service_account, node) = (uid.into(), account.into(), "node1".into());
        writer.upsert(namespace, name, PodFacts { uid, service_account, node, ..PodFacts::default() });
    }
    let now = OffsetDateTime::now_utc();
    let seconds = std::time::Duration::from_secs;
    let lifetimes = Lifetimes { default: seconds(86_400), max: seconds(90 * 86_400) };
    let root = crate::ca::root::open(&dir.path().join("data"), "cluster.local", now).unwrap();
    let authority = authority::Authority::new(authority::Active::plain(&root, lifetimes, now).unwrap());
    let issuer = authority.load().issuer.clone();
    let jwt = JwtAuthenticator::new(ISSUER.into(), vec!["istio-ca".into()], jwks);
    let authenticators =
        Authenticators::new(vec![Authenticator::Jwt(jwt)], table.clone(), "Kubernetes".into(), "cluster.local".into());
    let trusted = [("istio-system".to_owned(), "ztunnel".to_owned())];
    let mut registry = Registry::default();
    let service = CertificateService::new(
        authority,
        Ledger::default(),
        Arc::new(authenticators),
        NodeAuthorizer::new(trusted, "cluster.local".into(), table),
        "cluster.local".into(),
        Metrics::register(&mut registry).ca,
    );
    let token = signer.sign(&claims("istio-system", "ztunnel", "ztunnel-x", "z1"));

    let cases = recorded();
    assert_eq!(cases.len(), 14);
    for case in &cases {
        let mut request = Request::new(case.request.clone());
        for (key, value) in &case.headers {
            let value = value.replace("<redacted>", &token).parse().unwrap();
            let key: tonic::metadata::AsciiMetadataKey = key.parse().unwrap();
            request.metadata_mut().insert(key, value);
        }
        let got = service.create_certificate(request).await;
        let note = &case.note;
        if let Some((_, code, why)) = INTENDED.iter().find(|(n, ..)| n == note) {
            assert_eq!(got.unwrap_err().code(), *code, "{note}: {why}");
            continue;
        }
        match (got, &case.answer) {
            (Ok(got), Ok(expect)) => {
                let chain = got.into_inner().cert_chain;
                assert_eq!(chain.len(), expect.len(), "{note}");
                assert_eq!(leaf(&chain[0]), leaf(&expect[0]), "{note}");
                assert_eq!(chain[1], issuer.root_bundle(), "{note}");
            }
            (Err(status), Err((code, text))) => {
                assert_eq!((status.code(), status.message()), (*code, text.as_str()), "{note}");
            }
            (got, expect) => panic!("{note}: {got:?}, recorded {expect:?}"),
        }
    }
    let text = aquifer_runtime::metrics::encode(&registry);
    for line in [
        "citadel_server_csr_count 14",
        "citadel_server_success_cert_issuance_count 5",
        "citadel_server_authentication_failure_count 7",
        "citadel_server_csr_parsing_err_count 1",
        "citadel_server_csr_sign_err_count{error=\"ttl_error\"} 1",
        "citadel_server_csr_sign_err_count{error=\"csr_error\"} 1",
    ] {
        assert!(text.lines().any(|l| l == line), "{line} not in\n{text}");
    }
}

#[test]
fn an_identity_that_is_not_text_is_not_taken_for_absent() {
    let with = |kind| IstioCertificateRequest {
        metadata: Some(prost_types::Struct {
            fields: [(IMPERSONATED_IDENTITY.to_owned(), prost_types::Value { kind })].into(),
        }),
        ..Default::default()
    };
    assert_eq!(impersonated(&IstioCertificateRequest::default()), Ok(None));
    assert_eq!(impersonated(&with(Some(Kind::StringValue(String::new())))), Ok(None));
    assert_eq!(impersonated(&with(Some(Kind::StringValue("x".into())))), Ok(Some("x")));
    for kind in [None, Some(Kind::BoolValue(true)), Some(Kind::NullValue(0))] {
        assert!(impersonated(&with(kind)).is_err());
    }
}

#[test]
fn the_real_ztunnels_requests_can_be_read() {
    let recording = include_str!("../../../../tests/recordings/ca/ca-real-ztunnel.json");
    let file: Value = serde_json::from_str(recording).unwrap();
    let mut read = 0;
    for entry in file["entries"].as_array().unwrap() {
        if entry["message"] == "IstioCertificateRequest" {
            let bytes = from_base64(entry["raw_base64"].as_str().unwrap());
            let request = IstioCertificateRequest::decode(bytes.as_slice()).unwrap();
            crate::ca::csr::verified_key(&request.csr).unwrap();
            assert!(impersonated(&request).unwrap().unwrap().starts_with("spiffe://"));
            read += 1;
        }
    }
    assert!(read > 0);
}
