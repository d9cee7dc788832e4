use serde_json::json;

use super::*;
use crate::Event;

const POD: &str = "apiVersion: v1\nkind: Pod\nmetadata: {name: web, namespace: shop, labels: {app: web}}\n\
                   spec: {nodeName: node1, containers: [{name: web}]}\n";

async fn next(watch: &mut Watch) -> Event {
    let next = tokio::time::timeout(std::time::Duration::from_secs(10), watch.next());
    next.await.expect("an event within ten seconds").expect("no end")
}

#[test]
fn the_environment_chooses() {
    let choose = Settings::choose;
    assert_eq!(choose(Some("/m"), Some("/k"), Some("10.0.0.1")), Ok(Settings::Folder("/m".into())));
    assert_eq!(choose(Some(""), Some("/k"), Some("10.0.0.1")), Ok(Settings::Kubeconfig("/k".into())));
    assert_eq!(choose(None, None, Some("10.0.0.1")), Ok(Settings::InCluster));
    assert!(choose(None, Some(""), None).unwrap_err().contains("KUBECONFIG"));
}

#[tokio::test]
async fn what_cannot_be_opened_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let missing = folder.path().join("missing");
    for (settings, words) in [
        (Settings::Folder(missing.clone()), ["missing", "No such file"]),
        (Settings::Kubeconfig(missing), ["missing", "No such file"]),
        (Settings::InCluster, ["service account", "KUBECONFIG"]),
    ] {
        let error = settings.open().await.unwrap_err().to_string();
        assert!(words.iter().all(|word| error.contains(word)), "{error}");
        assert!(!error.contains('\n'), "{error}");
    }
}

#[tokio::test]
async fn a_folder_is_narrowed_as_an_api_server_is() {
    let folder = tempfile::tempdir().unwrap();
    let user = crate::folder::Writer::new(folder.path(), "user");
    user.apply_manifest(POD).unwrap();
    user.apply_manifest(&POD.replace("node1", "node2").replace("name: web, namespace", "name: far, namespace"))
        .unwrap();
    let source = Source::Folder(Folder::new(folder.path()));
    let here = Selection::from(Kind::Pod).on_node("node1").labelled("app", Some("web"));
    let mut watch = source.watch_selected(vec![here.clone()]).unwrap();
    let Event::Applied(object) = next(&mut watch).await else { panic!("a pod first") };
    assert_eq!(object.name(), "web");
    assert_eq!(next(&mut watch).await, Event::Synced);
    assert_eq!(source.read(&[here]).await.unwrap().0.len(), 1);

    // Selected no more is gone; not selected was never there.
    user.patch_labels(&object.key(), &[("app", Some("other"))]).unwrap();
    assert_eq!(next(&mut watch).await, Event::Deleted(object.key()));
    user.delete(&object.key()).unwrap();
    user.apply_manifest(&POD.replace("name: web, namespace", "name: third, namespace")).unwrap();
    let Event::Applied(third) = next(&mut watch).await else { panic!("another pod") };
    assert_eq!(third.name(), "third");
}

#[tokio::test]
async fn a_folder_is_written_as_an_api_server_is() {
    let folder = tempfile::tempdir().unwrap();
    let source = Source::Folder(Folder::new(folder.path()));
    let writer = source.writer("istiod");
    let policy = |action: &str| {
        json!({ "apiVersion": "security.istio.io/v1beta1", "kind": "AuthorizationPolicy",
                "metadata": { "name": "p", "namespace": "shop" }, "spec": { "action": action } })
    };
    let key = writer.apply(policy("DENY")).await.unwrap();
    let again = writer.create(policy("DENY")).await.unwrap_err();
    assert_eq!(again, WriteError::Conflict { key: key.clone(), message: "exists already".into() });
    let json = async || source.get(&key).await.unwrap().unwrap().to_json();

    let condition = json!({ "type": "A", "status": "True" });
    writer.apply_status(&key, json!({ "conditions": [condition], "observedGeneration": 1 })).await.unwrap();
    assert_eq!(json().await["status"]["observedGeneration"], 1);
    writer.apply_status(&key, json!({ "conditions": [] })).await.unwrap();
    assert_eq!(json().await["status"].get("observedGeneration"), None, "what is left out goes");
    assert_eq!(json().await["spec"]["action"], "DENY");

    writer.patch_annotations(&key, None, &[("a", Some("b"))]).await.unwrap();
    assert_eq!(json().await["metadata"]["annotations"]["a"], "b");
    let uid = json().await["metadata"]["uid"].as_str().unwrap().to_owned();
    for refused in [
        writer.patch_annotations(&key, Some("another"), &[("a", None)]).await.unwrap_err(),
        writer.delete(&key, Some("another")).await.unwrap_err(),
    ] {
        assert!(matches!(refused, WriteError::Conflict { .. }), "{refused}");
    }
    writer.delete(&key, Some(&uid)).await.unwrap();
    assert_eq!(source.get(&key).await.unwrap(), None);
    assert_eq!(writer.delete(&key, None).await, Err(WriteError::NotFound(key.clone())));
    assert_eq!(writer.apply_status(&key, json!({})).await, Err(WriteError::NotFound(key)));
}
