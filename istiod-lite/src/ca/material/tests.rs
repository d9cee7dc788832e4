use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyUsagePurpose};

use super::*;

fn now() -> OffsetDateTime {
    OffsetDateTime::now_utc()
}

fn ca(name: &str, edit: impl FnOnce(&mut CertificateParams)) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    edit(&mut params);
    params
}

fn ec() -> KeyPair {
    KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap()
}

/// Root, intermediate and issuing certificate, with the issuing key.
struct Tree {
    root: String,
    middle: String,
    issuing: String,
    key: String,
}

fn tree() -> Tree {
    let root = CertifiedIssuer::self_signed(ca("root", |_| {}), ec()).unwrap();
    let middle = CertifiedIssuer::signed_by(ca("middle", |_| {}), ec(), &root).unwrap();
    let key = ec();
    let issuing = ca("issuing", |_| {}).signed_by(&key, &middle).unwrap();
    Tree { root: root.pem(), middle: middle.pem(), issuing: issuing.pem(), key: key.serialize_pem() }
}

fn material(key: &str, cert: &str, chain: &str, roots: &str) -> Material {
    Material { key: Zeroizing::new(key.to_owned()), cert: cert.into(), chain: chain.into(), roots: roots.into() }
}

#[test]
fn the_way_to_the_root_is_found_whatever_the_chain_holds() {
    let Tree { root, middle, issuing, key } = tree();
    let table = [
        format!("{issuing}{middle}"),
        middle.clone(),
        format!("{issuing}{middle}{root}"),
        format!("{root}{middle}{issuing}"),
    ];
    for chain in table {
        let signer = material(&key, &issuing, &chain, &root).signer(now()).unwrap();
        let path: String = signer.path.iter().map(|c| pem_of(c)).collect();
        assert_eq!(path, format!("{issuing}{middle}"));
        assert_eq!(signer.bundle(), root);
        assert_eq!(signer.id(), Fingerprint::of(&signer.cert));
    }
    for (chain, text) in [(String::new(), "leads to no certificate of root-cert.pem"), (root.clone(), "leads to no")] {
        let error = material(&key, &issuing, &chain, &root).signer(now()).unwrap_err().to_string();
        assert!(error.contains(text), "{error}");
    }
    let other = tree().root;
    assert!(material(&key, &issuing, &middle, &other).signer(now()).is_err());
}

#[test]
fn a_root_needs_no_chain_and_further_roots_are_kept() {
    let now = now();
    let own = Material::self_signed("cluster.local", time::Duration::days(1), now).unwrap();
    let other = tree().root;
    for (roots, count) in [(String::new(), 1), (own.cert.clone(), 1), (format!("{}{other}", own.cert), 2)] {
        let signer = Material { roots, ..own.clone() }.signer(now).unwrap();
        assert_eq!((signer.path.len(), signer.roots.len()), (0, count));
    }
}

#[test]
fn keys_of_all_common_kinds_and_forms() {
    let rsa = KeyPair::generate_rsa_for(&rcgen::PKCS_RSA_SHA256, rcgen::RsaKeySize::_2048).unwrap();
    let pkcs1 = {
        use rsa::pkcs1::EncodeRsaPrivateKey as _;
        use rsa::pkcs8::DecodePrivateKey as _;
        let key = rsa::RsaPrivateKey::from_pkcs8_pem(&rsa.serialize_pem()).unwrap();
        key.to_pkcs1_pem(rsa::pkcs1::LineEnding::LF).unwrap().to_string()
    };
    let p384 = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).unwrap();
    let ed = KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
    let p256 = ec();
    let table = [
        (&rsa, rsa.serialize_pem()),
        (&rsa, pkcs1),
        (&p256, p256.serialize_pem()),
        (&p384, p384.serialize_pem()),
        (&ed, ed.serialize_pem()),
    ];
    for (pair, pem) in table {
        let cert = ca("root", |_| {}).self_signed(pair).unwrap().pem();
        let signer = material(&pem, &cert, "", &cert).signer(now()).unwrap();
        // It can really sign.
        let leaf = CertificateParams::default();
        let issuer = rcgen::Issuer::from_ca_cert_der(&signer.cert, &signer.key).unwrap();
        leaf.signed_by(&ec(), &issuer).unwrap();
    }
}

#[test]
fn what_cannot_sign_is_named() {
    let key = ec();
    let certificate = |edit: fn(&mut CertificateParams)| ca("c", edit).self_signed(&key).unwrap().pem();
    let good = certificate(|_| {});
    let pem = key.serialize_pem();
    let table = [
        (pem.clone(), certificate(|p| p.is_ca = IsCa::ExplicitNoCa), "ca-cert.pem: is not a CA"),
        (
            pem.clone(),
            certificate(|p| p.key_usages = vec![KeyUsagePurpose::DigitalSignature]),
            "ca-cert.pem: may not sign",
        ),
        (pem.clone(), certificate(|p| p.not_after = rcgen::date_time_ymd(2001, 1, 1)), "ca-cert.pem: expired at"),
        (ec().serialize_pem(), good.clone(), "the public keys differ"),
        ("nonsense".into(), good.clone(), "ca-key.pem: not a PEM private key"),
        (pem, "nonsense".into(), "ca-cert.pem: holds no certificate"),
    ];
    for (key, cert, text) in table {
        let error = material(&key, &cert, "", "").signer(now()).unwrap_err().to_string();
        assert!(error.contains(text), "{error}");
        assert!(!error.contains("PRIVATE"), "{error}");
    }
}

#[test]
fn secrets_of_istio_and_of_cert_manager() {
    let Tree { root, middle, issuing, key } = tree();
    let entries = |pairs: &[(&str, &str)]| -> BTreeMap<String, Vec<u8>> {
        pairs.iter().map(|(k, v)| ((*k).to_owned(), v.as_bytes().to_vec())).collect()
    };
    let istio = entries(&[(CA_CERT, &issuing), (CA_KEY, &key), (ROOT_CERT, &root), (CERT_CHAIN, &middle)]);
    let istio = Material::from_entries(&istio).unwrap();
    assert_eq!(Material::from_entries(&istio.entries()).unwrap(), istio);
    istio.signer(now()).unwrap();
    let chain = format!("{issuing}{middle}");
    let manager = entries(&[("tls.crt", &chain), ("tls.key", &key), ("ca.crt", &root)]);
    assert_eq!(Material::from_entries(&manager).unwrap().signer(now()).unwrap().path.len(), 2);
    // What Istio itself leaves empty in `istio-ca-secret`.
    let own = entries(&[(CA_CERT, &root), (CA_KEY, &key), (ROOT_CERT, ""), (CERT_CHAIN, "")]);
    assert_eq!(Material::from_entries(&own).unwrap().roots, "");
    for (cut, part) in [(CA_CERT, CA_CERT), (CA_KEY, CA_KEY)] {
        let mut lacking = istio.entries();
        lacking.remove(cut);
        assert_eq!(Material::from_entries(&lacking).unwrap_err(), MaterialError::Missing { part });
    }
}

#[test]
fn the_key_is_never_shown() {
    let material = Material::self_signed("td", time::Duration::days(1), now()).unwrap();
    let signer = material.signer(now()).unwrap();
    let body: String = material.key.lines().filter(|l| !l.starts_with('-')).collect();
    let shown = format!("{material:?}{signer:?}{:?}", signer.key);
    assert!(shown.contains("<secret>"));
    assert!(!shown.contains(&body[..24]) && !shown.contains("PRIVATE"), "{shown}");
    let der = signer.key.0.serialized_der();
    assert!(!shown.contains(&format!("{:?}", &der[der.len() - 16..])));
}
