use super::*;

#[test]
fn settings_name_a_policy_or_say_why_not() {
    let of = TlsPolicy::from_settings;
    assert_eq!(of("", false), Ok(TlsPolicy::Tls13));
    assert_eq!(of("", true), Ok(TlsPolicy::Tls12));
    assert_eq!(of("pqc", false), Ok(TlsPolicy::PostQuantum));
    assert_eq!(of("pqc", true), Err(PolicyError::Tls12WithPostQuantum));
    for wrong in ["PQC", "fips-140-2", " "] {
        let error = of(wrong, false).unwrap_err();
        assert!(error.to_string().contains(&format!("{wrong:?}")) && error.to_string().contains("\"pqc\""));
    }
}

/// Whatever the library: everything that we list is there, in our order, and nothing else.
#[test]
fn each_policy_has_exactly_its_algorithms() {
    let all = [&SUITES[..], &SUITES_TLS12].concat();
    let cases = [
        (TlsPolicy::Tls13, &SUITES[..], &GROUPS[..]),
        (TlsPolicy::Tls12, &all, &GROUPS),
        (TlsPolicy::PostQuantum, &SUITES, &[NamedGroup::X25519MLKEM768]),
    ];
    for (policy, suites, groups) in cases {
        let provider = provider(policy);
        assert_eq!(provider.cipher_suites.iter().map(|s| s.suite()).collect::<Vec<_>>(), suites, "{policy:?}");
        assert_eq!(provider.kx_groups.iter().map(|g| g.name()).collect::<Vec<_>>(), groups, "{policy:?}");
        assert!(Arc::ptr_eq(&provider, &super::provider(policy)), "made once");
    }
}

#[test]
fn the_name_is_that_of_the_feature() {
    assert_eq!(NAME, if cfg!(feature = "boring") { "tls-boring" } else { "tls-aws-lc" });
}

#[test]
fn keys_that_are_none_are_refused() {
    use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
    for junk in [&b""[..], b"junk", &[0x30, 0x03, 0x02, 0x01, 0x00]] {
        assert!(signing_key(&PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(junk))).is_err());
    }
}
