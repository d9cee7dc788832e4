use std::path::Path;

use super::manifests::Read;
use super::*;

const BAD: &str = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: a, namespace: shop}\nspec: {action: DENY, rules: [{to: [{operation: {methods: [GET]}}]}]}\n";
const ODD: &str = "---\napiVersion: networking.istio.io/v1alpha3\nkind: EnvoyFilter\nmetadata: {name: b, namespace: shop}\nspec: {}\n";
const WRONG: &str = "---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: c, namespace: shop}\nspec:\n  acton: DENY\n";
const FOREIGN: &str = "---\napiVersion: apps/v1\nkind: ControllerRevision\nmetadata: {name: d}\n";

fn lines(text: &str) -> Vec<Line> {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("x.yaml");
    std::fs::write(&file, text).unwrap();
    of_files(&[file], View::default()).unwrap()
}

#[test]
fn findings_say_where_and_what() {
    let found = lines(&format!("{BAD}{ODD}{WRONG}{FOREIGN}"));
    let text = print::text(&found);
    let rows: Vec<&str> = text.lines().collect();
    assert_eq!(rows.len(), 4, "{text}");
    assert!(rows[0].starts_with("error AQ0050 ") && rows[0].contains("x.yaml:15: spec.acton: unknown field"), "{text}");
    assert!(
        rows[1].starts_with("error AQ0010 AuthorizationPolicy/shop/a (") && rows[1].contains("x.yaml:1): "),
        "{text}"
    );
    assert!(rows[2].starts_with("warning AQ0001 EnvoyFilter/shop/b (") && rows[2].contains("x.yaml:6): "), "{text}");
    assert_eq!(rows[3], "2 errors, 1 warnings");

    let json = print::json(&found);
    let envoy = json.as_array().unwrap().iter().find(|line| line["code"] == "AQ0001").unwrap();
    for (key, value) in [
        ("name", "NotSupported"),
        ("level", "warning"),
        ("apiVersion", "networking.istio.io/v1alpha3"),
        ("kind", "EnvoyFilter"),
        ("namespace", "shop"),
        ("object", "b"),
    ] {
        assert_eq!(envoy[key], value, "{envoy}");
    }
    assert_eq!(envoy["line"], 6, "{envoy}");
}

#[test]
fn exit_codes_are_for_ci() {
    let cases = [("", false, 0), ("", true, 0), (ODD, false, 0), (ODD, true, 2), (BAD, false, 2), (WRONG, false, 2)];
    for (text, strict, expect) in cases {
        assert_eq!(exit_code(&lines(text), strict), expect, "{text:?} {strict}");
    }
    assert_eq!(print::text(&lines("")), "nothing found\n");
}

#[test]
fn what_is_applied_last_stays() {
    let mut read = Read::default();
    read.take(Path::new("a.yaml"), BAD);
    read.take(Path::new("b.yaml"), &BAD.replace("[GET]", "[PUT]"));
    assert_eq!(read.objects.len(), 1);
    assert_eq!(read.places.values().next().unwrap().file, Path::new("b.yaml"));
}

/// A namespace of the mesh with two Services, a waypoint and one that is attached to it.
const SHOP: &str = "apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {istio.io/dataplane-mode: ambient}}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {clusterIP: 10.0.0.1, ports: [{port: 80}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: waypoint, namespace: shop}
spec: {gatewayClassName: istio-waypoint, listeners: [{name: mesh, port: 15008, protocol: HBONE}]}
---
";

fn entry(name: &str, rest: &str) -> String {
    format!(
        "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {{name: {name}, namespace: shop}}\n\
         spec: {{addresses: [10.1.0.1], ports: [{{number: 80, name: http}}], resolution: STATIC, {rest}}}\n---\n"
    )
}

#[test]
fn codes_that_statuses_have_come_out_of_the_command() {
    let policy = |spec: &str| {
        format!(
            "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: a, namespace: shop}}\nspec: {spec}\n"
        )
    };
    let class = "{group: gateway.networking.k8s.io, kind: GatewayClass, name: istio-waypoint}";
    let canary = "{istio.io/use-waypoint: waypoint, istio.io/use-waypoint-canary: absent}";
    let cases = [
        (
            entry("a", "hosts: [x.example]") + &entry("b", "hosts: [x.example]"),
            "error AQ0007 ServiceEntry/shop/b",
            "x.example is that of",
        ),
        (
            entry("a", "hosts: [x.example]") + &entry("b", "hosts: [x.example, y.example]"),
            "error AQ0007 ServiceEntry/shop/b",
            "x.example is that of",
        ),
        (entry("a", "hosts: [web.shop.svc.cluster.local]"), "error AQ0007 ServiceEntry/shop/a", "is that of"),
        (
            policy(&format!("{{targetRefs: [{class}], rules: [{{}}]}}")),
            "error AQ0008 AuthorizationPolicy/shop/a",
            "must be in the root namespace `istio-system`",
        ),
        (
            entry("a", "hosts: [x.example], exportTo: ['.']"),
            "warning AQ0009 ServiceEntry/shop/a",
            "exportTo has no effect",
        ),
        (
            format!(
                "apiVersion: v1\nkind: Service\nmetadata: {{name: api, namespace: shop, labels: {canary}}}\nspec: {{clusterIP: 10.0.0.2, ports: [{{port: 80}}]}}\n"
            ),
            "warning AQ0014 Service/shop/api",
            "Canary waypoint not attached: waypoint \"shop/absent\" is not ready",
        ),
    ];
    for (manifest, beginning, part) in cases {
        let text = print::text(&lines(&format!("{SHOP}{manifest}")));
        let is_it = |row: &str| row.starts_with(&format!("{beginning} (")) && row.contains(part);
        assert!(text.lines().any(is_it), "{beginning} …{part}… not in\n{text}");
    }
}

/// An API server takes what a manifest is refused for: only what comes from there has this.
#[test]
fn a_value_that_an_api_server_took_is_named() {
    let spec = r#"{"rules": [{"from": [{"source": {"ipBlocks": ["10.0.0.0/33"]}}]}]}"#;
    let manifest = format!(
        r#"{{"apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy", "metadata": {{"name": "a", "namespace": "shop"}}, "spec": {spec}}}"#
    );
    let policy = aquifer_objects::parse::parse_object(serde_json::from_str(&manifest).unwrap()).unwrap();
    let text = print::text(&judged(vec![policy], View::default(), Origin::Cluster));
    let row = text.lines().next().unwrap();
    assert!(row.starts_with("error AQ0016 AuthorizationPolicy/shop/a: ") && row.contains("10.0.0.0/33"), "{text}");

    let text = print::text(&lines(&manifest));
    assert!(text.starts_with("error AQ0050 ") && text.contains("10.0.0.0/33"), "{text}");
}

#[test]
fn a_tag_means_its_revision() {
    let namespace = "apiVersion: v1\nkind: Namespace\nmetadata: {name: shop, labels: {istio.io/rev: prod}}\n---\n";
    let labelled = BAD.replace("{name: a", "{labels: {istio.io/rev: prod}, name: a");
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("x.yaml"), format!("{namespace}{labelled}")).unwrap();
    let objects = || manifests::read(&[folder.path().to_owned()]).unwrap().objects;
    let found = |arguments: &[&str]| {
        let view = View::of(&command(arguments).unwrap());
        let notes = notes::of_other_revisions(&objects(), &view.revision);
        (judged(objects(), view, Origin::Cluster).len(), notes)
    };

    let (count, notes) = found(&["--revision", "1-30"]);
    assert_eq!((count, notes.len()), (0, 2), "{notes:?}");
    assert!(notes[0].contains("1 objects labelled istio.io/rev: prod are not looked at"), "{notes:?}");
    assert!(notes[1].contains("1-30 writes no status in shop"), "{notes:?}");
    assert!(notes.iter().all(|note| note.contains("--revision-tags prod")), "{notes:?}");
    for view in [&["--revision", "1-30", "--revision-tags", "stable, prod"][..], &["--revision", "prod"]] {
        assert_eq!(found(view), (1, Vec::new()), "{view:?}");
    }
    assert!(command(&["--revision-tags", "prod/x"]).unwrap_err().to_string().contains("must be 1 to 63"));
}

fn command(arguments: &[&str]) -> Result<Command, clap::Error> {
    #[derive(clap::Parser)]
    struct Only {
        #[command(flatten)]
        command: Command,
    }
    use clap::Parser as _;
    Only::try_parse_from(["analyze"].iter().chain(arguments)).map(|only| only.command)
}

#[test]
fn options_say_whose_view_is_meant() {
    let view = View::of(&command(&[]).unwrap());
    assert_eq!((&*view.mesh.domain, &*view.mesh.config_map), ("cluster.local", "istio"));
    let view = View::of(&command(&["--cluster-domain", "example.org", "--revision", "1-30"]).unwrap());
    assert_eq!((&*view.mesh.domain, &*view.mesh.config_map), ("example.org", "istio-1-30"));
    let selected = selections(&view.mesh);
    let config = Selection::from(Kind::ConfigMap).in_namespace("istio-system").named("istio-1-30");
    assert!(selected.contains(&config), "{selected:?}");
    for wrong in
        [["--cluster-domain", "example.org."], ["--cluster-domain", ""], ["--revision", "1.30"], ["--revision", ""]]
    {
        let error = command(&wrong).unwrap_err().to_string();
        assert!(error.contains("must be ") && error.contains("such as"), "{error}");
    }
}

#[test]
fn folders_are_read_to_the_bottom_and_once() {
    let folder = tempfile::tempdir().unwrap();
    let deep = folder.path().join("a/b");
    std::fs::create_dir_all(&deep).unwrap();
    std::fs::create_dir(folder.path().join(".git")).unwrap();
    std::fs::write(deep.join("bad.yml"), BAD).unwrap();
    std::fs::write(folder.path().join("odd.json"), r#"{"apiVersion": "networking.istio.io/v1alpha3", "kind": "EnvoyFilter", "metadata": {"name": "b"}, "spec": {}}"#).unwrap();
    std::fs::write(folder.path().join(".git/x.yaml"), WRONG).unwrap();
    std::fs::write(folder.path().join("README.md"), "no: [manifest").unwrap();
    std::os::unix::fs::symlink(folder.path(), deep.join("loop")).unwrap();
    std::os::unix::fs::symlink("nowhere", deep.join("dangling.yaml.d")).unwrap();
    let found = of_files(&[folder.path().to_owned()], View::default()).unwrap();
    let codes: Vec<&str> = found.iter().map(|line| line.code.code).collect();
    assert_eq!(codes, ["AQ0010", "AQ0001"], "{found:#?}");
}

#[test]
fn hostile_files_have_one_clear_message() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    std::fs::create_dir(at("none")).unwrap();
    std::fs::write(at("empty.yaml"), "").unwrap();
    std::fs::write(at("binary.yaml"), b"\x7fELF\x02\xff\xfe").unwrap();
    std::fs::write(at("template.yaml"), "{{ if .Values.x }}\n").unwrap();
    let huge = std::fs::File::create(at("huge.yaml")).unwrap();
    huge.set_len(files::LARGEST + 1).unwrap();
    std::fs::write(at("set.yaml"), "\n---\napiVersion: apps/v1\nkind: StatefulSet\nmetadata: {name: d}\nspec: {selector: {}, replicas: two, template: {}}\n").unwrap();
    let list = format!(
        "apiVersion: v1\nkind: List\nitems:\n- {}\n- 3\n",
        "{apiVersion: networking.istio.io/v1alpha3, kind: EnvoyFilter, metadata: {name: b}, spec: {}}"
    );
    std::fs::write(at("list.yaml"), list).unwrap();

    let failed = |name: &str| format!("{:#}", of_files(&[at(name)], View::default()).unwrap_err());
    assert!(failed("none").contains("none holds no .yaml, .yml or .json file"), "{}", failed("none"));
    assert!(failed("absent").contains("absent: No such file"), "{}", failed("absent"));
    let said = |name: &str| print::text(&of_files(&[at(name)], View::default()).unwrap());
    assert_eq!(said("empty.yaml"), "nothing found\n");
    for (name, part) in [
        ("binary.yaml", "is not text: byte 6 is not UTF-8"),
        ("huge.yaml", "larger than 64 MiB"),
        ("set.yaml", "set.yaml:3: spec.replicas: invalid type: string"),
        ("template.yaml", "template.yaml:"),
        ("list.yaml", "kind: is missing"),
    ] {
        let text = said(name);
        assert!(
            text.lines().filter(|line| line.starts_with("error AQ0050")).count() == 1 && text.contains(part),
            "{name}: {text}"
        );
    }
    assert!(said("list.yaml").contains("AQ0001 EnvoyFilter/default/b"), "{}", said("list.yaml"));
}

#[test]
fn what_we_hand_out_has_no_errors() {
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples");
    let found = of_files(&[examples], View::default()).unwrap();
    assert!(found.iter().all(|line| line.code.level != Level::Error), "{}", print::text(&found));
    let ours = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/mesh");
    assert_eq!(print::text(&of_files(&[ours], View::default()).unwrap()), "nothing found\n");
}
