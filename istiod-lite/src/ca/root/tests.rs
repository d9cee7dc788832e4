use rcgen::{BasicConstraints, CertificateParams, IsCa, KeyUsagePurpose, PKCS_ED25519};
use tempfile::TempDir;

use super::*;
use crate::ca::material::Signer;

fn now() -> OffsetDateTime {
    OffsetDateTime::now_utc()
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o7777
}

fn chmod(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

fn open(dir: &Path) -> Result<Signer, RootError> {
    super::open(dir, "cluster.local", now()).map(|material| material.signer(now()).unwrap())
}

/// A folder that holds a root made by us.
fn made() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    open(dir.path()).unwrap();
    dir
}

#[test]
fn made_once_with_tight_permissions_and_adopted_after() {
    let parent = tempfile::tempdir().unwrap();
    let dir = parent.path().join("new/data");
    let first = open(&dir).unwrap();
    assert_eq!(mode(&dir), 0o700);
    assert_eq!(mode(&dir.join(KEY_FILE)), 0o600);
    let published = fs::read_to_string(dir.join(CERT_FILE)).unwrap();
    assert_eq!(published, first.bundle());
    assert!(first.not_after() - now() > Duration::days(3649));
    let second = open(&dir).unwrap();
    assert_eq!(first.cert, second.cert);
    // Nothing else is left behind.
    let mut names: Vec<_> =
        fs::read_dir(&dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    assert_eq!(names, [CERT_FILE, KEY_FILE]);
}

#[test]
fn starters_at_once_agree_on_one_root() {
    let dir = tempfile::tempdir().unwrap();
    let roots: Vec<_> = std::thread::scope(|scope| {
        let starters: Vec<_> = (0..8).map(|_| scope.spawn(|| open(dir.path()))).collect();
        starters.into_iter().map(|s| s.join().unwrap()).collect()
    });
    let certs: Vec<_> = roots.into_iter().map(|r| r.unwrap().cert).collect();
    assert!(certs.windows(2).all(|w| w[0] == w[1]));
}

#[test]
fn a_crash_between_the_two_writes_heals() {
    let dir = made();
    let key = fs::read(dir.path().join(KEY_FILE)).unwrap();
    fs::remove_file(dir.path().join(CERT_FILE)).unwrap();
    open(dir.path()).unwrap();
    assert_eq!(fs::read(dir.path().join(KEY_FILE)).unwrap(), key);
}

#[test]
fn permissions_of_the_key() {
    let dir = made();
    let key = dir.path().join(KEY_FILE);
    for (bits, fine) in [(0o600, true), (0o400, true), (0o440, true), (0o644, false), (0o660, false), (0o602, false)] {
        chmod(&key, bits);
        match open(dir.path()) {
            Ok(_) => assert!(fine, "{bits:o}"),
            Err(error) => {
                let text = error.to_string();
                assert!(!fine, "{bits:o}: {text}");
                assert!(text.contains(&format!("mode {bits:04o}")) && text.contains("chmod 600"), "{text}");
            }
        }
    }
}

#[test]
fn a_folder_that_all_may_write_is_refused() {
    let dir = made();
    chmod(dir.path(), 0o777);
    let text = open(dir.path()).err().unwrap().to_string();
    assert!(text.contains("chmod 700"), "{text}");
}

#[test]
fn pairs_that_cannot_sign() {
    type Edit = fn(&mut CertificateParams);
    let certificate = |edit: Edit, key: &KeyPair| {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        edit(&mut params);
        params.self_signed(key).unwrap().pem()
    };
    let table: [(&str, Edit); 3] = [
        ("not a CA certificate", |p| p.is_ca = IsCa::ExplicitNoCa),
        ("lacks keyCertSign", |p| p.key_usages = vec![KeyUsagePurpose::DigitalSignature]),
        ("expired at", |p| p.not_after = rcgen::date_time_ymd(2001, 1, 1)),
    ];
    for (expect, edit) in table {
        let dir = made();
        let key = KeyPair::from_pem(&fs::read_to_string(dir.path().join(KEY_FILE)).unwrap()).unwrap();
        fs::write(dir.path().join(CERT_FILE), certificate(edit, &key)).unwrap();
        let text = open(dir.path()).err().unwrap().to_string();
        assert!(text.contains(expect) && text.contains(CERT_FILE), "{text}");
    }
}

#[test]
fn files_that_do_not_belong() {
    let dir = made();
    let other = made();
    fs::copy(other.path().join(CERT_FILE), dir.path().join(CERT_FILE)).unwrap();
    assert!(matches!(open(dir.path()), Err(RootError::Mismatch { .. })));

    fs::remove_file(dir.path().join(KEY_FILE)).unwrap();
    let text = open(dir.path()).err().unwrap().to_string();
    assert!(matches!(open(dir.path()), Err(RootError::KeyMissing { .. })), "{text}");

    let dir = made();
    fs::write(dir.path().join(CERT_FILE), "nonsense").unwrap();
    assert!(matches!(open(dir.path()), Err(RootError::Invalid { .. })));

    let dir = made();
    fs::write(dir.path().join(KEY_FILE), "nonsense").unwrap();
    assert!(matches!(open(dir.path()), Err(RootError::Invalid { .. })));

    let file = tempfile::NamedTempFile::new().unwrap();
    assert!(matches!(open(file.path()), Err(RootError::Io { .. })));
}

#[test]
fn an_operators_own_pair_and_bundle_are_adopted() {
    let dir = tempfile::tempdir().unwrap();
    let key = KeyPair::generate_for(&PKCS_ED25519).unwrap();
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let own = params.self_signed(&key).unwrap();
    let second = open(made().path()).unwrap().bundle();
    fs::write(dir.path().join(KEY_FILE), key.serialize_pem()).unwrap();
    chmod(&dir.path().join(KEY_FILE), 0o600);
    fs::write(dir.path().join(CERT_FILE), format!("{}{second}", own.pem())).unwrap();
    let root = open(dir.path()).unwrap();
    assert_eq!(root.cert, *own.der());
    assert_eq!(root.bundle().matches("BEGIN CERTIFICATE").count(), 2);
}

#[test]
fn a_plugged_in_signer_comes_first() {
    let dir = made();
    let own = open(dir.path()).unwrap().cert;
    let plugged = Material::self_signed("plugged", Duration::days(1), now()).unwrap();
    let folder = dir.path().join(CACERTS);
    fs::create_dir(&folder).unwrap();
    assert_eq!(open(dir.path()).unwrap().cert, own, "an empty folder is none");
    for (name, content) in plugged.entries() {
        fs::write(folder.join(&name), content).unwrap();
        chmod(&folder.join(&name), 0o600);
    }
    assert_eq!(open(dir.path()).unwrap().cert, plugged.signer(now()).unwrap().cert);
    chmod(&folder.join(CA_KEY), 0o644);
    assert!(matches!(open(dir.path()), Err(RootError::Permissions { .. })));
    chmod(&folder.join(CA_KEY), 0o600);
    fs::remove_file(folder.join(CA_CERT)).unwrap();
    let text = open(dir.path()).err().unwrap().to_string();
    assert!(text.contains("cacerts") && text.contains("ca-cert.pem is missing"), "{text}");
}

#[test]
fn a_pair_is_replaced_so_that_a_crash_anywhere_leaves_one_that_works() {
    let dir = made();
    let next = Material::self_signed("cluster.local", LIFETIME, now()).unwrap();
    // As after a crash before the key, and before the last write.
    let both = format!("{}{}", fs::read_to_string(dir.path().join(CERT_FILE)).unwrap(), next.cert);
    publish(dir.path(), &both).unwrap();
    assert_eq!(open(dir.path()).unwrap().roots.len(), 2);
    overwrite(&dir.path().join(KEY_FILE), next.key.as_bytes(), 0o600).unwrap();
    let signer = open(dir.path()).unwrap();
    assert_eq!((signer.id(), signer.roots.len()), (next.signer(now()).unwrap().id(), 2));

    replace(dir.path(), &next).unwrap();
    let signer = open(dir.path()).unwrap();
    assert_eq!((signer.id(), signer.roots.len()), (next.signer(now()).unwrap().id(), 1));
    assert_eq!(mode(&dir.path().join(KEY_FILE)), 0o600);
}
