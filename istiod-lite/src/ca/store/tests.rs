use super::*;
use crate::ca::root::LIFETIME;

fn now() -> OffsetDateTime {
    OffsetDateTime::now_utc()
}

fn made() -> (Material, Fingerprint) {
    let material = Material::self_signed("cluster.local", LIFETIME, now()).unwrap();
    let id = material.signer(now()).unwrap().id();
    (material, id)
}

fn kept() -> Kept {
    let ((old, from), (new, to)) = (made(), made());
    let rotation = Rotation::begin("r".into(), from.clone(), to.clone(), 100);
    Kept { rotation, signers: [(from, old), (to.clone(), new)].into(), newcomer: to, place: Place::SelfSigned }
}

fn folder() -> (tempfile::TempDir, Store) {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::Folder(FolderStore::new(dir.path().to_owned()));
    (dir, store)
}

#[test]
fn states_are_read_as_they_were_written() {
    let done = Done { id: "r".into(), at: 7, refused: Some("why".into()), aborted: false };
    for state in [State::Rotating(kept()), State::Done(done)] {
        assert_eq!(State::from_json(&state.to_json()).unwrap(), Some(state));
    }
    assert_eq!(State::from_json("{}").unwrap(), None);
    assert!(State::from_json("[").is_err());
    // What is logged of it holds no key.
    assert!(!format!("{:?}", State::Rotating(kept())).contains("PRIVATE"));
}

#[tokio::test]
async fn a_rotation_survives_in_the_folder_from_beginning_to_end() {
    let (dir, store) = folder();
    let load = || store.load("cluster.local", now());
    let first = load().await.unwrap();
    let Signing::Plain(own, Place::SelfSigned) = first.signing.clone() else { panic!("{first:?}") };
    assert_eq!((first.done, first.version), (None, None));

    let kept = kept();
    store.keep(&State::Rotating(kept.clone()), None).await.unwrap();
    let rotating = load().await.unwrap();
    assert_eq!(rotating.signing, Signing::Rotating(kept.clone()));
    use std::os::unix::fs::PermissionsExt as _;
    let mode = std::fs::metadata(dir.path().join("root-rotation.json")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);

    let new = &kept.signers[&kept.newcomer];
    store.settle(new, Place::SelfSigned).await.unwrap();
    let done = Done { id: "r".into(), at: 200, refused: None, aborted: false };
    store.keep(&State::Done(done.clone()), rotating.version.as_deref()).await.unwrap();
    let settled = load().await.unwrap();
    let Signing::Plain(material, _) = settled.signing else { panic!() };
    assert_eq!(material.signer(now()).unwrap().id(), kept.newcomer);
    assert_ne!(material.cert, own.cert);
    assert_eq!(settled.done, Some(done));
    let published = std::fs::read_to_string(dir.path().join("root-cert.pem")).unwrap();
    assert_eq!(published, new.cert);
}

#[tokio::test]
async fn a_signer_that_was_laid_ready_takes_the_plugged_in_ones_place() {
    let (dir, store) = folder();
    let (next, id) = made();
    let ready = dir.path().join(CACERTS_NEXT);
    std::fs::create_dir(&ready).unwrap();
    for (name, content) in next.entries() {
        crate::ca::root::overwrite(&ready.join(name), &content, 0o600).unwrap();
    }
    let stored = store.load("cluster.local", now()).await.unwrap();
    assert_eq!(stored.next, Some(next.clone()));
    store.settle(&next, Place::PluggedIn).await.unwrap();
    let stored = store.load("cluster.local", now()).await.unwrap();
    let Signing::Plain(material, Place::PluggedIn) = stored.signing else { panic!() };
    assert_eq!(material.signer(now()).unwrap().id(), id);
    assert_eq!(stored.next, None);
}
