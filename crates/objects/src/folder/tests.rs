use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::Duration;

use proptest::prelude::*;
use serde_json::{Value, json};

use super::store::Store;
use super::{Folder, Watch, Writer};
use crate::Event;
use crate::kinds::{Kind, Object, ObjectKey};

/// Ten times what the slowest machine needed to tell of a change.
const DEADLINE: Duration = Duration::from_secs(10);

fn pod(name: &str) -> ObjectKey {
    ObjectKey::new(Kind::Pod, "shop", name)
}

fn pod_json(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": "shop"}, "spec": {"containers": []}})
}

async fn next(watch: &mut Watch) -> Event {
    tokio::time::timeout(DEADLINE, watch.next()).await.expect("an event in time").expect("the watch lives")
}

async fn applied(watch: &mut Watch) -> Object {
    match next(watch).await {
        Event::Applied(object) => object,
        other => panic!("expected an object, got {other:?}"),
    }
}

#[tokio::test]
async fn watch_sends_what_is_there_then_synced_then_changes() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("a.yaml"), "apiVersion: v1\nkind: Namespace\nmetadata: {name: shop}\n---\napiVersion: v1\nkind: ServiceAccount\nmetadata: {name: web, namespace: shop}\n").unwrap();
    fs::write(dir.path().join("notes.txt"), "not a manifest").unwrap();
    let mut watch = Folder::new(dir.path()).watch(&[Kind::Namespace, Kind::Pod]).unwrap();
    assert_eq!(applied(&mut watch).await.name(), "shop");
    assert_eq!(next(&mut watch).await, Event::Synced);

    let lab = Writer::new(dir.path(), "lab");
    lab.apply_json(pod_json("web-1")).unwrap();
    let born = applied(&mut watch).await;
    assert_eq!(born.key(), pod("web-1"));
    assert!(born.meta().uid.as_ref().is_some_and(|uid| uid.len() == 36));
    assert!(born.meta().creation_timestamp.is_some());

    // Equal content is no event: the next one is the annotation.
    lab.apply_json(pod_json("web-1")).unwrap();
    let cni = Writer::new(dir.path(), "istio-cni");
    cni.patch_annotations(&pod("web-1"), &[("ambient.istio.io/redirection", Some("enabled"))]).unwrap();
    let annotated = applied(&mut watch).await;
    assert_eq!(annotated.annotation("ambient.istio.io/redirection"), Some("enabled"));
    assert_eq!(annotated.meta().uid, born.meta().uid);
    assert_ne!(annotated.meta().resource_version, born.meta().resource_version);

    cni.patch_annotations(&pod("web-1"), &[("ambient.istio.io/redirection", None)]).unwrap();
    let bare = applied(&mut watch).await;
    assert_eq!(bare, born, "the annotation's file is gone, and the content is what it was");

    // A folder that comes into being is watched, and what it holds is read.
    fs::create_dir(dir.path().join("more")).unwrap();
    fs::write(dir.path().join("more/b.yaml"), "apiVersion: v1\nkind: Namespace\nmetadata: {name: second}\n").unwrap();
    assert_eq!(applied(&mut watch).await.name(), "second");
    fs::remove_dir_all(dir.path().join("more")).unwrap();
    assert_eq!(next(&mut watch).await, Event::Deleted(ObjectKey::new(Kind::Namespace, "", "second")));

    lab.delete(&pod("web-1")).unwrap();
    assert_eq!(next(&mut watch).await, Event::Deleted(pod("web-1")));
    assert!(lab.delete(&pod("web-1")).is_err());
}

#[tokio::test]
async fn a_malformed_file_changes_nothing_and_is_reported_with_its_place() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("a.yaml");
    fs::write(&file, "apiVersion: v1\nkind: Namespace\nmetadata: {name: shop}\n").unwrap();
    let mut watch = Folder::new(dir.path()).watch(Kind::ALL).unwrap();
    applied(&mut watch).await;
    assert_eq!(next(&mut watch).await, Event::Synced);
    fs::write(&file, "apiVersion: v1\nkind: Namespace\nmetadata: {name: 7}\n").unwrap();
    fs::write(dir.path().join("b.yaml"), "apiVersion: v1\nkind: Namespace\nmetadata: {name: other}\n").unwrap();
    assert_eq!(applied(&mut watch).await.name(), "other", "the bad file sent nothing");

    let (objects, problems) = Folder::new(dir.path()).read(Kind::ALL);
    assert_eq!(objects.len(), 1);
    assert_eq!(problems.len(), 1);
    let message = problems[0].to_string();
    assert!(message.contains("a.yaml: line 3: metadata.name: ") && message.contains("expected a string"), "{message}");

    fs::write(&file, "apiVersion: v1\nkind: Namespace\nmetadata: {name: shop, labels: {a: b}}\n").unwrap();
    assert_eq!(applied(&mut watch).await.label("a"), Some("b"));
}

#[test]
fn several_managers_make_one_object() {
    let dir = tempfile::tempdir().unwrap();
    let user = Writer::new(dir.path(), "user");
    user.apply_manifest("apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: web, namespace: shop}\nspec: {replicas: 2, selector: {matchLabels: {app: web}}, template: {}}\n").unwrap();
    let key = ObjectKey::new(Kind::Deployment, "shop", "web");
    assert!(dir.path().join("shop_deployment_web.yaml").exists());
    let lab = Writer::new(dir.path(), "lab");
    lab.patch_status(&key, json!({"replicas": 2, "conditions": [{"type": "Available", "status": "True"}]})).unwrap();
    lab.patch_status(&key, json!({"readyReplicas": 1, "conditions": []})).unwrap();
    let istiod = Writer::new(dir.path(), "istiod");
    istiod.patch_labels(&key, &[("seen", Some("yes"))]).unwrap();

    let folder = Folder::new(dir.path());
    let Some(Object::Deployment(web)) = folder.get(&key) else { panic!("there") };
    let status = web.status.clone().unwrap();
    assert_eq!((status.replicas, status.ready_replicas), (Some(2), Some(1)));
    assert!(status.conditions.unwrap_or_default().is_empty(), "a manager's list is replaced");
    assert_eq!(web.spec.replicas, Some(2));

    istiod.release(&key).unwrap();
    assert_eq!(folder.get(&key).unwrap().label("seen"), None);

    // Who deletes the manifest deletes the object, whatever others had added.
    user.delete(&key).unwrap();
    assert_eq!(folder.get(&key), None);
    assert!(matches!(lab.patch_status(&key, json!({"replicas": 1})), Err(super::WriteError::NotFound(_))));
}

#[test]
fn fields_do_not_outlive_the_object() {
    let dir = tempfile::tempdir().unwrap();
    let folder = Folder::new(dir.path());
    let (lab, cni) = (Writer::new(dir.path(), "lab"), Writer::new(dir.path(), "istio-cni"));
    lab.apply_json(pod_json("web-1")).unwrap();
    cni.patch_annotations(&pod("web-1"), &[("a", Some("1")), ("b", Some("1"))]).unwrap();
    // The creator's file goes and comes back, as after a crash between two steps.
    lab.release(&pod("web-1")).unwrap();
    assert_eq!(folder.get(&pod("web-1")), None, "fields alone are no object");
    lab.apply_json(pod_json("web-1")).unwrap();
    let again = folder.get(&pod("web-1")).unwrap();
    assert_eq!(again.annotation("a"), None, "another life");
    cni.patch_annotations(&pod("web-1"), &[("b", Some("2"))]).unwrap();
    let annotated = folder.get(&pod("web-1")).unwrap();
    assert_eq!((annotated.annotation("a"), annotated.annotation("b")), (None, Some("2")));

    // The sweep of a new process removes what belongs to nothing.
    lab.release(&pod("web-1")).unwrap();
    let file = super::managed_path(dir.path(), "istio-cni", &pod("web-1"));
    assert!(file.exists());
    let next = Writer::new(dir.path(), "istio-cni");
    assert!(next.patch_annotations(&pod("other"), &[("a", None)]).is_err());
    assert!(!file.exists());
}

#[test]
fn the_user_changes_an_object_where_it_stands() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("shop.yaml");
    fs::write(&file, "# head\n---\napiVersion: v1\nkind: Namespace\nmetadata: {name: shop} # ours\n---\napiVersion: v1\nkind: Namespace\nmetadata:\n  name: outside # not ours\n").unwrap();
    let user = Writer::new(dir.path(), "user");
    let shop = ObjectKey::new(Kind::Namespace, "", "shop");
    user.patch_labels(&shop, &[("istio.io/dataplane-mode", Some("ambient"))]).unwrap();
    let folder = Folder::new(dir.path());
    assert_eq!(folder.get(&shop).unwrap().label("istio.io/dataplane-mode"), Some("ambient"));
    let text = fs::read_to_string(&file).unwrap();
    assert!(text.starts_with("# head\n---\n") && text.contains("name: outside # not ours"), "{text}");
    user.patch_labels(&shop, &[("istio.io/dataplane-mode", None)]).unwrap();
    assert_eq!(folder.get(&shop).unwrap().label("istio.io/dataplane-mode"), None);

    user.apply_manifest("apiVersion: v1\nkind: Namespace\nmetadata: {name: shop, labels: {team: a}}\n").unwrap();
    assert_eq!(folder.get(&shop).unwrap().label("team"), Some("a"), "applied into the same file");
    assert_eq!(folder.read(Kind::ALL).0.len(), 2);
    user.delete(&shop).unwrap();
    assert_eq!(folder.read(Kind::ALL).0.len(), 1);
    user.delete(&ObjectKey::new(Kind::Namespace, "", "outside")).unwrap();
    assert!(!file.exists());
}

#[test]
fn nothing_of_a_wrong_manifest_is_written() {
    let dir = tempfile::tempdir().unwrap();
    let user = Writer::new(dir.path(), "user");
    let error = user.apply_manifest("apiVersion: v1\nkind: Namespace\nmetadata: {name: a}\n---\napiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: b}\nspec: {mtls: {mode: STRCT}}\n");
    assert_eq!(error.unwrap_err().to_string().split(':').take(2).collect::<Vec<_>>(), ["line 8", " spec.mtls.mode"]);
    assert!(Folder::new(dir.path()).read(Kind::ALL).0.is_empty());
}

#[test]
fn of_two_manifests_with_one_object_the_first_path_counts() {
    let dir = tempfile::tempdir().unwrap();
    for (file, label) in [("b.yaml", "second"), ("a.yaml", "first")] {
        let text = format!("apiVersion: v1\nkind: Namespace\nmetadata: {{name: shop, labels: {{from: {label}}}}}\n");
        fs::write(dir.path().join(file), text).unwrap();
    }
    let (objects, problems) = Folder::new(dir.path()).read(Kind::ALL);
    assert_eq!(objects.len(), 1);
    assert_eq!(objects[0].label("from"), Some("first"));
    assert!(problems[0].to_string().contains("b.yaml: Namespace/shop stands in "), "{problems:?}");
}

/// Folders come into being while they are being watched: whatever the kernel tells and whenever, the events add up to
/// what is there.
#[tokio::test]
async fn a_busy_writer_is_followed() {
    let dir = tempfile::tempdir().unwrap();
    let mut watch = Folder::new(dir.path()).watch(&[Kind::Pod]).unwrap();
    assert_eq!(next(&mut watch).await, Event::Synced);
    let root = dir.path().to_owned();
    let writing = std::thread::spawn(move || {
        let (lab, cni) = (Writer::new(&root, "lab"), Writer::new(&root, "istio-cni"));
        for number in 0..60 {
            let (namespace, name) = (format!("ns-{}", number % 12), format!("p-{number}"));
            let key = ObjectKey::new(Kind::Pod, &namespace, &name);
            let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": namespace}});
            lab.apply_json(pod).unwrap();
            cni.patch_annotations(&key, &[("a", Some("1"))]).unwrap();
            lab.patch_status(&key, json!({"podIP": format!("10.0.0.{number}")})).unwrap();
            if number % 3 == 0 {
                lab.delete(&key).unwrap();
            }
        }
    });
    let folder = Folder::new(dir.path());
    let mut view: BTreeMap<ObjectKey, Object> = BTreeMap::new();
    let everything = |view: &BTreeMap<ObjectKey, Object>| {
        view.len() == 40 && view.values().cloned().collect::<Vec<_>>() == folder.read(&[Kind::Pod]).0
    };
    while !everything(&view) {
        match next(&mut watch).await {
            Event::Applied(object) => drop(view.insert(object.key(), object)),
            Event::Deleted(key) => drop(view.remove(&key)),
            Event::Synced => panic!("comes once"),
        }
    }
    writing.join().unwrap();
    assert!(view.values().all(|object| object.annotation("a") == Some("1")));
}

/// One thing that happens to the folder.
#[derive(Clone, Debug)]
enum Step {
    /// A manifest file with these objects (name, label).
    Manifest(usize, Vec<(usize, usize)>),
    Remove(usize),
    /// A managed file: manager, object, label; and whether it creates.
    Managed(usize, usize, usize, bool),
    RemoveManaged(usize, usize),
    MoveFolder,
}

const FILES: [&str; 4] = ["a.yaml", "b.yaml", "sub/a.yaml", "sub/deep/b.yaml"];
const MANAGERS: [&str; 2] = ["cni", "lab"];

fn step() -> impl Strategy<Value = Step> {
    let object = || (0..4usize, 0..3usize);
    prop_oneof![
        4 => (0..FILES.len(), prop::collection::vec(object(), 0..3)).prop_map(|(file, objects)| Step::Manifest(file, objects)),
        2 => (0..FILES.len()).prop_map(Step::Remove),
        4 => (0..2usize, 0..4usize, 0..3usize, any::<bool>()).prop_map(|(manager, name, label, creates)| Step::Managed(manager, name, label, creates)),
        2 => (0..2usize, 0..4usize).prop_map(|(manager, name)| Step::RemoveManaged(manager, name)),
        1 => Just(Step::MoveFolder),
    ]
}

/// Takes the step and tells which paths a notification would name.
fn take(root: &Path, step: &Step) -> Vec<std::path::PathBuf> {
    let write = |path: &Path, text: &str| {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    };
    match step {
        Step::Manifest(file, objects) => {
            let text: Vec<String> = objects
                .iter()
                .map(|(name, label)| {
                    format!("apiVersion: v1\nkind: Namespace\nmetadata: {{name: n{name}, labels: {{l: v{label}}}}}\n")
                })
                .collect();
            write(&root.join(FILES[*file]), &text.join("---\n"));
            vec![root.join(FILES[*file])]
        }
        Step::Remove(file) => {
            let _ = fs::remove_file(root.join(FILES[*file]));
            vec![root.join(FILES[*file])]
        }
        Step::Managed(manager, name, label, creates) => {
            let key = ObjectKey::new(Kind::Namespace, "", &format!("n{name}"));
            let path = super::managed_path(root, MANAGERS[*manager], &key);
            let birth = if *creates {
                format!(", uid: u{manager}, creationTimestamp: '2026-01-01T00:00:00Z'")
            } else {
                String::new()
            };
            write(
                &path,
                &format!(
                    "apiVersion: v1\nkind: Namespace\nmetadata: {{name: n{name}, annotations: {{a{manager}: v{label}}}{birth}}}\n"
                ),
            );
            vec![path]
        }
        Step::RemoveManaged(manager, name) => {
            let path = super::managed_path(
                root,
                MANAGERS[*manager],
                &ObjectKey::new(Kind::Namespace, "", &format!("n{name}")),
            );
            let _ = fs::remove_file(&path);
            vec![path]
        }
        Step::MoveFolder => {
            let (from, to) = (root.join("sub"), root.join("sub2"));
            let _ = fs::remove_dir_all(&to);
            let _ = fs::rename(&from, &to);
            vec![from, to]
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever happens to the files, and in whatever portions it is noticed, the events that were sent add up to
    /// what a fresh reader finds.
    #[test]
    fn following_equals_reading(steps in prop::collection::vec((step(), any::<bool>()), 1..24)) {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        let mut store = Store::new(root.to_owned(), Kind::ALL);
        store.refresh(root, &mut |_| {});
        let mut view: BTreeMap<ObjectKey, Object> = BTreeMap::new();
        let follow = |events: Vec<Event>, view: &mut BTreeMap<ObjectKey, Object>| {
            for event in events {
                match event {
                    Event::Applied(object) => {
                        let old = view.insert(object.key(), object.clone());
                        assert_ne!(old.as_ref(), Some(&object), "sent twice");
                    }
                    Event::Deleted(key) => assert!(view.remove(&key).is_some(), "{key} was never sent"),
                    Event::Synced => {}
                }
            }
        };
        let mut noticed = Vec::new();
        for (step, look) in &steps {
            noticed.extend(take(root, step));
            if *look {
                for path in noticed.drain(..) {
                    store.refresh(&path, &mut |_| {});
                }
                follow(store.changes(), &mut view);
            }
        }
        for path in noticed {
            store.refresh(&path, &mut |_| {});
        }
        follow(store.changes(), &mut view);
        let (fresh, problems) = Folder::new(root).read(Kind::ALL);
        prop_assert!(problems.iter().all(|problem| problem.message.contains("which counts")), "{problems:?}");
        prop_assert_eq!(view.into_values().collect::<Vec<_>>(), fresh);
    }
}
