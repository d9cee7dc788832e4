use super::*;
use crate::config::{IdentityConfigs, TlsOptions};
use crate::reason_of;
use crate::testing::*;
use aquifer_core::reason::Reason;
use aquifer_runtime::{Cancel, Tracker};
use proptest::prelude::*;
use std::path::Path;
use std::time::Duration;

fn options() -> TlsOptions {
    TlsOptions::default()
}

fn publish(options: &TlsOptions, crls: &[Vec<u8>]) {
    let lists = crls.iter().flat_map(|der| parse(der).unwrap());
    options.revocations.publish(lists.map(|(list, _)| list).collect());
}

fn pem(der: &[u8]) -> String {
    let text = base64(der);
    let lines: Vec<&str> = text.as_bytes().chunks(64).map(|c| std::str::from_utf8(c).unwrap()).collect();
    format!("-----BEGIN X509 CRL-----\n{}\n-----END X509 CRL-----\n", lines.join("\n"))
}

fn base64(bytes: &[u8]) -> String {
    const SET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = String::new();
    for chunk in bytes.chunks(3) {
        let n = chunk.iter().fold(0u32, |n, b| n << 8 | u32::from(*b)) << (8 * (3 - chunk.len()));
        for i in 0..4 {
            let digit = SET[(n >> (18 - 6 * i) & 63) as usize];
            out.push(if i <= chunk.len() { char::from(digit) } else { '=' });
        }
    }
    out
}

struct Pair {
    client: IdentityConfigs,
    server: IdentityConfigs,
}

fn pair(client_ca: &TestCa, server_ca: &TestCa, options: &TlsOptions) -> Pair {
    Pair {
        client: client_ca.configs_with(&client_id(), 3600, options),
        server: server_ca.configs_with(&server_id(), 3600, options),
    }
}

impl Pair {
    async fn shake(&self) -> (std::io::Result<Client>, std::io::Result<Server>) {
        shake(self.client.client_config(&[server_id()]), self.server.server.clone()).await
    }
}

#[tokio::test]
async fn both_sides_refuse_whom_a_list_names() {
    let (ca, options) = (TestCa::new(), options());
    let pair = pair(&ca, &ca, &options);
    let (client, server) = (pair.client.leaf().pem.clone(), pair.server.leaf().pem.clone());
    let third = ca.configs(&id("spiffe://cluster.local/ns/shop/sa/third"), 3600).leaf().pem.clone();
    publish(&options, &[ca.crl(&[&third])]);
    let (near, far) = pair.shake().await;
    assert!(near.is_ok() && far.is_ok(), "somebody else is revoked");

    publish(&options, &[ca.crl(&[&third, &client])]);
    let (near, far) = pair.shake().await;
    assert_eq!(reason_of(&far.err().unwrap()), Reason::CertificateRevoked);
    assert!(crate::explain(&near.err().unwrap()).contains("our certificate is revoked"));

    publish(&options, &[ca.crl(&[&server])]);
    let (near, far) = pair.shake().await;
    let near = near.err().unwrap();
    assert_eq!(reason_of(&near), Reason::CertificateRevoked);
    assert!(crate::explain(&near).contains("the peer's certificate is revoked"));
    assert!(far.is_err());

    publish(&options, &[]);
    let (near, far) = pair.shake().await;
    assert!(near.is_ok() && far.is_ok(), "the list is withdrawn");
}

#[tokio::test]
async fn an_authority_in_the_chain_may_be_the_revoked_one() {
    let (root, options) = (TestCa::new(), options());
    let ca = root.intermediate();
    let pair = pair(&ca, &root, &options);
    publish(&options, &[ca.crl(&[])]);
    let (near, far) = pair.shake().await;
    assert!(near.is_ok() && far.is_ok());
    publish(&options, &[ca.crl(&[]), root.crl(&[&ca.pem()])]);
    assert_eq!(reason_of(&pair.shake().await.1.err().unwrap()), Reason::CertificateRevoked);
    // And one that it issued, by its own list.
    publish(&options, &[ca.crl(&[&pair.client.leaf().pem])]);
    assert_eq!(reason_of(&pair.shake().await.1.err().unwrap()), Reason::CertificateRevoked);
}

/// A list counts by its signature, not by the name in it: during a rotation two roots have the same name.
#[tokio::test]
async fn a_list_of_another_authority_of_the_same_name_says_nothing() {
    let (ca, namesake, options) = (TestCa::new(), TestCa::new(), options());
    let pair = pair(&ca, &ca, &options);
    publish(&options, &[namesake.crl(&[&pair.client.leaf().pem])]);
    let (near, far) = pair.shake().await;
    assert!(near.is_ok() && far.is_ok());
    // Nor does it hide the right one behind it.
    publish(&options, &[namesake.crl(&[&pair.client.leaf().pem]), ca.crl(&[&pair.client.leaf().pem])]);
    assert_eq!(reason_of(&pair.shake().await.1.err().unwrap()), Reason::CertificateRevoked);
}

#[tokio::test]
async fn a_list_past_its_time_still_counts() {
    let (ca, options) = (TestCa::new(), options());
    let pair = pair(&ca, &ca, &options);
    publish(&options, &[ca.crl_until(&[&pair.client.leaf().pem], time::Duration::days(-1))]);
    assert_eq!(reason_of(&pair.shake().await.1.err().unwrap()), Reason::CertificateRevoked);
}

#[tokio::test]
async fn open_connections_can_be_asked_about() {
    let (ca, options) = (TestCa::new(), options());
    let pair = pair(&ca, &ca, &options);
    let (near, far) = pair.shake().await;
    let (near, far) = (near.unwrap(), far.unwrap());
    let client = pair.server.client_of(far.get_ref().1).unwrap();
    let server = pair.client.server_of(near.get_ref().1).unwrap();
    let revocations = &options.revocations;
    let mut changes = revocations.subscribe();
    assert!(!revocations.is_revoked(&client) && !revocations.is_revoked(&server));

    publish(&options, &[ca.crl(&[&pair.client.leaf().pem])]);
    assert!(changes.has_changed().unwrap());
    assert_eq!(changes.borrow_and_update().generation(), 1);
    assert!(revocations.is_revoked(&client) && !revocations.is_revoked(&server));
    assert!(revocations.is_revoked(&client), "asked again, the same");

    publish(&options, &[ca.crl(&[&pair.server.leaf().pem])]);
    assert!(!revocations.is_revoked(&client) && revocations.is_revoked(&server), "what was cleared is asked anew");
}

fn roots(of: &[&TestCa]) -> Arc<RootCertStore> {
    let mut roots = RootCertStore::empty();
    of.iter().for_each(|ca| roots.add(der(&ca.pem())).unwrap());
    Arc::new(roots)
}

#[test]
fn a_certificate_that_expired_is_no_less_revoked() {
    let (ca, options) = (TestCa::new(), options());
    let key = rcgen::KeyPair::generate().unwrap();
    let leaf = ca.leaf(&key, vec![uri(&client_id().to_string())], -120, -60);
    let peer = PeerCertificate::new(vec![der(&leaf)], roots(&[&ca]));
    publish(&options, &[ca.crl(&[&leaf])]);
    assert!(options.revocations.is_revoked(&peer));
}

/// Its key says that the list is the authority's; that its certificate's usages don't name lists excuses nobody.
#[tokio::test]
async fn an_authority_that_may_not_sign_lists_is_believed_when_it_does() {
    let (root, options) = (TestCa::new(), options());
    let ca = root.intermediate_without_crl_sign();
    let pair = pair(&ca, &ca, &options);
    publish(&options, &[ca.crl(&[])]);
    let (near, far) = pair.shake().await;
    let (_near, far) = (near.unwrap(), far.unwrap());
    let open = pair.server.client_of(far.get_ref().1).unwrap();
    assert!(!options.revocations.is_revoked(&open));

    publish(&options, &[ca.crl(&[&pair.client.leaf().pem])]);
    assert!(options.revocations.is_revoked(&open), "the open connection");
    let (_, far) = pair.shake().await;
    assert_eq!(reason_of(&far.err().unwrap()), Reason::CertificateRevoked, "the next handshake");
}

/// A peer presents what it likes: nothing that lies beside its chain may hide what a list says of it.
#[test]
fn what_else_a_peer_presents_hides_nothing() {
    let (old, root, options) = (TestCa::new(), TestCa::new(), options());
    let key = rcgen::KeyPair::generate().unwrap();
    for ca in [root.intermediate(), root.intermediate_without_crl_sign()] {
        let leaf = ca.leaf(&key, vec![uri(&client_id().to_string())], -120, 3600);
        publish(&options, &[ca.crl(&[&leaf])]);
        // Another authority of the same name, one that expired, and what is no certificate at all.
        let (namesake, expired) = (old.intermediate(), root.expired_intermediate());
        let junk = CertificateDer::from(vec![0x30, 0x01, 0x00]);
        let beside = [der(&namesake.pem()), der(&expired.pem()), junk];
        for at in 1..=beside.len() + 1 {
            let mut chain = vec![der(&leaf)];
            chain.extend(beside.clone());
            chain.insert(at, der(&ca.pem()));
            // While roots are rotated there are two of one name.
            let peer = PeerCertificate::new(chain, roots(&[&old, &root]));
            assert!(options.revocations.is_revoked(&peer), "{at}");
        }
    }
}

/// Two roots of one name, both trusted: each speaks for what it issued itself.
#[test]
fn of_two_trusted_namesakes_each_speaks_for_its_own() {
    let (old, new, options) = (TestCa::new(), TestCa::new(), options());
    let key = rcgen::KeyPair::generate().unwrap();
    let leaf = new.leaf(&key, vec![uri(&client_id().to_string())], -120, 3600);
    let peer = PeerCertificate::new(vec![der(&leaf)], roots(&[&old, &new]));
    publish(&options, &[old.crl(&[&leaf])]);
    assert!(!options.revocations.is_revoked(&peer));
    publish(&options, &[old.crl(&[&leaf]), new.crl(&[&leaf])]);
    assert!(options.revocations.is_revoked(&peer));
}

fn write(path: &Path, bytes: impl AsRef<[u8]>) {
    // As a mounted ConfigMap changes: by rename.
    let new = path.with_extension("new~");
    std::fs::write(&new, bytes).unwrap();
    std::fs::rename(new, path).unwrap();
}

struct Watched {
    files: CrlFiles,
    peer: PeerCertificate,
    revocations: Revocations,
}

impl Watched {
    fn new(ca: &TestCa, path: &Path) -> (Self, String) {
        let revocations = Revocations::new();
        let leaf = ca.configs(&client_id(), 3600).leaf().pem.clone();
        let mut roots = RootCertStore::empty();
        roots.add(der(&ca.pem())).unwrap();
        let peer = PeerCertificate::new(vec![der(&leaf)], Arc::new(roots));
        (Self { files: CrlFiles::new(path, revocations.clone()), peer, revocations }, leaf)
    }

    /// Whether the file had changed, and whether the peer is revoked then.
    fn poll(&mut self) -> (bool, bool) {
        (self.files.poll(), self.revocations.is_revoked(&self.peer))
    }
}

#[test]
fn a_file_is_followed_and_a_bad_one_changes_nothing() {
    let (ca, dir) = (TestCa::new(), tempfile::tempdir().unwrap());
    let path = dir.path().join("ca-crl.pem");
    let (mut w, leaf) = Watched::new(&ca, &path);
    assert_eq!(w.poll(), (false, false), "there is none yet");
    write(&path, pem(&ca.crl(&[])));
    assert_eq!(w.poll(), (true, false));
    assert_eq!(w.poll(), (false, false), "unchanged");
    // Both forms, and several in one file.
    write(&path, ca.crl(&[&leaf]));
    assert_eq!(w.poll(), (true, true));
    write(&path, [pem(&ca.crl(&[])), pem(&TestCa::named("other").crl(&[&leaf]))].concat());
    assert_eq!(w.poll(), (true, false));
    write(&path, [pem(&TestCa::named("other").crl(&[])), pem(&ca.crl(&[&leaf]))].concat());
    assert_eq!(w.poll(), (true, true));
    let good = pem(&ca.crl(&[]));
    let half = &good[..good.len() / 2];
    let no_list = ca.pem();
    for bad in ["", "\n", "junk", half, &no_list, "-----BEGIN X509 CRL-----\nAAAA\n-----END X509 CRL-----\n"] {
        write(&path, bad);
        assert_eq!(w.poll(), (false, true), "{bad:?} keeps the last good list");
    }
    std::fs::remove_file(&path).unwrap();
    assert_eq!(w.poll(), (false, true), "nor does a file that is gone lift anything");
    write(&path, good);
    assert_eq!(w.poll(), (true, false), "mended");
}

#[test]
fn a_folder_is_all_its_files() {
    let (ca, other, dir) = (TestCa::new(), TestCa::named("other"), tempfile::tempdir().unwrap());
    let (mut w, leaf) = Watched::new(&ca, dir.path());
    assert_eq!(w.poll(), (false, false));
    write(&dir.path().join("other.pem"), pem(&other.crl(&[])));
    write(&dir.path().join(".hidden"), ca.crl(&[&leaf]));
    std::fs::create_dir(dir.path().join("sub")).unwrap();
    assert_eq!(w.poll(), (true, false));
    write(&dir.path().join("mine.crl"), ca.crl(&[&leaf]));
    assert_eq!(w.poll(), (true, true));
    write(&dir.path().join("other.pem"), "junk");
    assert_eq!(w.poll(), (false, true), "one bad file harms no other");
    std::fs::remove_file(dir.path().join("mine.crl")).unwrap();
    assert_eq!(w.poll(), (true, false), "taken out of the folder");
}

/// The kubelet's way: the name stays a symbolic link, the folder behind it is swapped.
#[test]
fn a_mounted_config_map_is_followed() {
    let (ca, dir) = (TestCa::new(), tempfile::tempdir().unwrap());
    let at = |name: &str| dir.path().join(name);
    let (mut w, leaf) = Watched::new(&ca, &at("ca-crl.pem"));
    for (version, crl) in [("..1", ca.crl(&[])), ("..2", ca.crl(&[&leaf]))] {
        std::fs::create_dir(at(version)).unwrap();
        std::fs::write(at(version).join("ca-crl.pem"), pem(&crl)).unwrap();
        std::os::unix::fs::symlink(version, at("..data_tmp")).unwrap();
        std::fs::rename(at("..data_tmp"), at("..data")).unwrap();
        let _ = std::os::unix::fs::symlink("..data/ca-crl.pem", at("ca-crl.pem"));
        assert_eq!(w.poll(), (true, version == "..2"));
    }
}

#[tokio::test(start_paused = true)]
async fn the_watcher_looks_every_second() {
    let (ca, dir) = (TestCa::new(), tempfile::tempdir().unwrap());
    let path = dir.path().join("crl");
    let (w, leaf) = Watched::new(&ca, &path);
    let cancel = Cancel::new();
    let ends = cancel.clone();
    let tracker = Tracker::new();
    tracker.spawn("crl-files", async move { w.files.run(ends).await });
    let mut changes = w.revocations.subscribe();
    write(&path, ca.crl(&[&leaf]));
    tokio::time::timeout(Duration::from_secs(2), changes.changed()).await.unwrap().unwrap();
    assert!(w.revocations.is_revoked(&w.peer));
    cancel.drain();
    tracker.close();
    tokio::time::timeout(Duration::from_secs(2), tracker.wait()).await.unwrap();
}

proptest! {
    #[test]
    fn no_file_makes_the_reader_panic(
        mut bytes in proptest::collection::vec(any::<u8>(), 0..200),
        flip in any::<prop::sample::Index>(),
        value in any::<u8>(),
        framed in any::<bool>(),
    ) {
        let _ = parse(&bytes);
        if framed {
            bytes.splice(0..0, *b"-----BEGIN X509 CRL-----\n");
            let _ = parse(&bytes);
        }
        thread_local!(static GOOD: Vec<u8> = TestCa::new().crl(&[]));
        let mut good = GOOD.with(Vec::clone);
        let at = flip.index(good.len());
        good[at] = value;
        let _ = parse(&good);
    }
}
