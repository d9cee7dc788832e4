use super::*;
use crate::testing::*;
use rcgen::KeyPair;

fn read(elements: &[String], key: &KeyPair) -> Result<CertBundle, BundleError> {
    CertBundle::from_chain(&server_id(), private(key), elements, OffsetDateTime::now_utc())
}

fn refused(elements: &[String], key: &KeyPair) -> BundleError {
    read(elements, key).err().expect("refused")
}

#[test]
fn layouts() {
    let (ca, other) = (TestCa::new(), TestCa::new());
    let key = KeyPair::generate().unwrap();
    let sans = || vec![uri(&server_id().to_string())];
    let leaf = ca.leaf(&key, sans(), -60, 600);
    let middle = ca.intermediate();
    let below = middle.leaf(&key, sans(), -60, 600);
    let roots = format!("# two roots\n{}\n{}", ca.pem(), other.pem());

    let bundle = read(&[leaf.clone(), ca.pem()], &key).unwrap();
    assert_eq!((bundle.chain_info.len(), bundle.root_info.len()), (1, 1));
    let bundle = read(&[below, middle.pem(), roots], &key).unwrap();
    assert_eq!((bundle.chain_info.len(), bundle.root_info.len(), bundle.roots.len()), (2, 2, 2));
    assert_eq!(bundle.root_info[1].pem.replace("\r\n", "\n"), other.pem().replace("\r\n", "\n"));

    assert_eq!(refused(&[], &key), BundleError::TooShort(0));
    assert_eq!(refused(std::slice::from_ref(&leaf), &key), BundleError::TooShort(1));
    let both = format!("{leaf}{}", ca.pem());
    assert_eq!(refused(&[both.clone(), ca.pem()], &key), BundleError::Layout { index: 0, found: 2 });
    let together = format!("{}{}", middle.pem(), other.pem());
    let bundle = read(&[middle.leaf(&key, sans(), -60, 600), together, ca.pem()], &key).unwrap();
    assert_eq!((bundle.chain_info.len(), bundle.key.cert.len(), bundle.root_info.len()), (3, 3, 1));
    assert_eq!(refused(&[leaf.clone(), "text".into(), ca.pem()], &key), BundleError::Layout { index: 1, found: 0 });
    assert_eq!(refused(&[leaf.clone(), String::new()], &key), BundleError::Layout { index: 1, found: 0 });
    assert_eq!(refused(&["text".into(), ca.pem()], &key), BundleError::Layout { index: 0, found: 0 });
    let torn = leaf.replace("MII", "!!!");
    assert_eq!(refused(&[torn, ca.pem()], &key), BundleError::Malformed(0));
}

#[test]
fn the_leaf_must_be_what_was_asked_for() {
    let ca = TestCa::new();
    let key = KeyPair::generate().unwrap();
    let right = server_id().to_string();
    for sans in
        [vec![], vec![uri("spiffe://cluster.local/ns/shop/sa/evil")], vec![uri(&right), uri("spiffe://a/ns/b/sa/c")]]
    {
        let chain = ca.chain(ca.leaf(&key, sans, -60, 600));
        assert!(matches!(refused(&chain, &key), BundleError::WrongIdentity { .. }));
    }
    let chain = ca.chain(ca.leaf(&key, vec![uri(&right)], -60, 600));
    assert_eq!(refused(&chain, &KeyPair::generate().unwrap()), BundleError::WrongKey);
    let chain = ca.chain(ca.leaf(&key, vec![uri(&right)], -600, -60));
    assert!(matches!(refused(&chain, &key), BundleError::Expired(_)));
}

/// Real istiod's answers: all of them are read, and told apart by whom they are for.
#[test]
fn recorded_answers() {
    let mut seen = 0;
    for name in ["ca-real-ztunnel.json", "ca-cases.json"] {
        let path = format!("{}/../../tests/recordings/ca/{name}", env!("CARGO_MANIFEST_DIR"));
        let recording: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
        let entries = recording["entries"].as_array().unwrap();
        let mut asked = None;
        for entry in entries {
            if let Some(id) = entry["json"]["metadata"]["ImpersonatedIdentity"].as_str() {
                asked = id.parse::<Identity>().ok();
            } else if entry["message"] == "IstioCertificateRequest" {
                asked = None;
            }
            let Some(chain) = entry["json"]["certChain"].as_array() else { continue };
            let chain: Vec<String> = chain.iter().map(|c| c.as_str().unwrap().to_owned()).collect();
            let key = KeyPair::generate().unwrap();
            let recorded = time::macros::datetime!(2026-11-20 23:30 UTC);
            let elsewhere = Identity::new("cluster.local", "amb", "somebody-else");
            let read = |who: &Identity| CertBundle::from_chain(who, private(&key), &chain, recorded).err().unwrap();
            assert!(matches!(read(&elsewhere), BundleError::WrongIdentity { .. }));
            if let Some(asked) = &asked {
                // All but the key, which the recording does not have.
                assert_eq!(read(asked), BundleError::WrongKey);
                seen += 1;
            }
        }
    }
    assert!(seen >= 5, "{seen}");
}

#[test]
fn the_dumps_details_are_the_references() {
    let path = format!("{}/../../tests/recordings/ztunnel/config_dump.json", env!("CARGO_MANIFEST_DIR"));
    let dump: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    for cert in dump["certificates"].as_array().unwrap() {
        let shown = &cert["certChain"][0];
        let pem = unbase64(shown["pem"].as_str().unwrap());
        let parsed = certificates(0, &pem).unwrap();
        let info = &parsed[0].1;
        assert_eq!(info.serial, shown["serialNumber"].as_str().unwrap());
        let text = |t: OffsetDateTime| t.format(&time::format_description::well_known::Rfc3339).unwrap();
        assert_eq!(text(info.not_before), shown["validFrom"].as_str().unwrap());
        assert_eq!(text(info.not_after), shown["expirationTime"].as_str().unwrap());
        assert_eq!(info.pem, pem);
    }
}

fn unbase64(text: &str) -> String {
    const ALPHABET: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let digits: Vec<u32> =
        text.bytes().filter_map(|b| ALPHABET.iter().position(|a| *a == b)).map(|d| d as u32).collect();
    let group = |c: &[u32]| {
        let n = c.iter().fold(0, |n, d| n << 6 | d) << (6 * (4 - c.len()));
        n.to_be_bytes()[1..c.len()].to_vec()
    };
    String::from_utf8(digits.chunks(4).flat_map(group).collect()).unwrap()
}
