use aquifer_objects::Folder;
use aquifer_objects::parse::parse_manifest;
use clap::Parser;

use super::*;

#[derive(Parser)]
struct Cli {
    #[command(flatten)]
    command: Command,
}

/// Runs as a person would type it, on this folder.
fn typed(root: &std::path::Path, words: &str) -> Result<u8> {
    let manifests = root.display().to_string();
    let all = ["waypoint", "--manifests", &manifests].into_iter().chain(words.split_whitespace());
    run(&Cli::try_parse_from(all)?.command)
}

fn folder(yaml: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("all.yaml"), yaml).unwrap();
    dir
}

fn read(dir: &tempfile::TempDir, namespace: &str, name: &str) -> Option<Gateway> {
    match Folder::new(dir.path()).get(&ObjectKey::new(Kind::Gateway, namespace, name)) {
        Some(Object::Gateway(gateway)) => Some((*gateway).clone()),
        _ => None,
    }
}

#[test]
fn what_is_generated_is_what_is_applied() {
    let wish = Wish { traffic: Some(Traffic::All), revision: Some("1.30".into()) };
    let text = generated("shop", "wp", &wish).unwrap();
    let objects = parse_manifest(std::path::Path::new("x"), &text).unwrap();
    let [Object::Gateway(printed)] = objects.as_slice() else { panic!("{text}") };
    let dir = folder("apiVersion: v1\nkind: Namespace\nmetadata: {name: shop}\n");
    assert_eq!(typed(dir.path(), "-n shop --name wp apply --for all --revision 1.30").unwrap(), 0);
    let applied = read(&dir, "shop", "wp").unwrap();
    assert_eq!((&applied.spec, &applied.metadata.labels), (&printed.spec, &printed.metadata.labels));
    assert_eq!(applied.metadata.labels.unwrap()[TRAFFIC], "all");
    assert_eq!(
        generated("default", "waypoint", &Wish { traffic: None, revision: None }).unwrap(),
        "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata:\n  name: \"waypoint\"\n  namespace: \"default\"\nspec:\n  \
         gatewayClassName: istio-waypoint\n  listeners:\n  - name: mesh\n    port: 15008\n    protocol: HBONE\n"
    );
}

#[test]
fn a_namespace_is_enrolled_and_not_taken_from_another() {
    let dir = folder("apiVersion: v1\nkind: Namespace\nmetadata: {name: shop, labels: {istio.io/use-waypoint: old}}\n");
    let error = typed(dir.path(), "-n shop apply --enroll-namespace").unwrap_err();
    assert!(error.to_string().contains("uses waypoint \"old\" already: add --overwrite"), "{error}");
    assert!(read(&dir, "shop", "waypoint").is_none(), "nothing is done by halves");
    typed(dir.path(), "-n shop apply --enroll-namespace --overwrite").unwrap();
    let namespace = Folder::new(dir.path()).get(&ObjectKey::new(Kind::Namespace, "", "shop")).unwrap();
    assert_eq!(namespace.label(USE_WAYPOINT), Some("waypoint"));
    assert!(
        typed(dir.path(), "-n nowhere apply --enroll-namespace").unwrap_err().to_string().contains("nowhere not found")
    );
}

#[test]
fn waiting_says_why_it_was_in_vain() {
    let dir = folder("apiVersion: v1\nkind: Namespace\nmetadata: {name: shop}\n");
    let error = typed(dir.path(), "-n shop apply --wait --waypoint-timeout 0s").unwrap_err().to_string();
    assert!(error.contains("not ready") && error.contains("no control plane has looked at it yet"), "{error}");
    assert_eq!(typed(dir.path(), "-n shop status --waypoint-timeout 0s").unwrap(), 1);
}

#[test]
fn listed_and_deleted() {
    let one = |name: &str, labels: &str, class: &str| {
        format!(
            "---\napiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {{name: {name}, namespace: shop, labels: {{{labels}}}}}\n\
             spec: {{gatewayClassName: {class}, listeners: [{{name: mesh, port: 15008, protocol: HBONE}}]}}\n\
             status: {{conditions: [{{type: Programmed, status: 'True', reason: Programmed, message: m, lastTransitionTime: '2026-01-01T00:00:00Z'}}]}}\n"
        )
    };
    let dir = folder(
        &[
            one("a", "istio.io/waypoint-for: workload", CLASS),
            one("b", "istio.io/rev: canary", CLASS),
            one("c", "", CLASS),
            one("ingress", "", "istio"),
        ]
        .concat(),
    );
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let all = runtime.block_on(waypoints(&Source::Folder(Folder::new(dir.path())), None)).unwrap();
    assert_eq!(
        show::list(&all, false),
        "NAME     REVISION     TRAFFIC TYPE     PROGRAMMED\n\
         a        default      workload         True\n\
         b        canary       service          True\n\
         c        default      service          True\n"
    );
    assert_eq!(show::list(&[], true), "No waypoints found.\n");
    assert_eq!(typed(dir.path(), "-n shop delete --revision canary").unwrap(), 0);
    assert!(read(&dir, "shop", "b").is_none() && read(&dir, "shop", "a").is_some());
    assert_eq!(typed(dir.path(), "-n shop delete a ingress").unwrap(), 1, "an ingress is no waypoint");
    assert!(read(&dir, "shop", "a").is_none() && read(&dir, "shop", "ingress").is_some());
    assert_eq!(typed(dir.path(), "-n shop delete --all").unwrap(), 0);
    assert!(read(&dir, "shop", "c").is_none() && read(&dir, "shop", "ingress").is_some());
    assert!(typed(dir.path(), "-n shop delete").is_err());
    assert!(typed(dir.path(), "-n shop delete --all x").is_err());
}

#[test]
fn bad_words_are_refused() {
    let dir = folder("");
    for words in ["--name none apply", "apply --for some", "apply --waypoint-timeout soon"] {
        assert!(typed(dir.path(), words).is_err(), "{words}");
    }
    assert_eq!(duration("2m").unwrap(), Duration::from_secs(120));
}
