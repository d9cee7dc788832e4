use std::path::Path;

use super::{Unread, parse_each, parse_manifest};
use crate::kinds::{Kind, Object};

fn error_of(text: &str) -> String {
    parse_manifest(Path::new("x.yaml"), text).expect_err("must be refused").to_string()
}

#[test]
fn several_documents_with_defaults_filled_in() {
    let text = "# a comment\n---\napiVersion: v1\nkind: Namespace\nmetadata: {name: shop}\n---\n\n---\napiVersion: v1\nkind: ServiceAccount\nmetadata:\n  name: web\n";
    let objects = parse_manifest(Path::new("x.yaml"), text).unwrap();
    assert_eq!(objects.len(), 2);
    assert_eq!(objects[0].label("kubernetes.io/metadata.name"), Some("shop"));
    assert_eq!(objects[1].namespace(), "default");
}

#[test]
fn older_api_version_is_read_as_the_current_one() {
    let text = "apiVersion: security.istio.io/v1beta1\nkind: PeerAuthentication\nmetadata: {name: a, namespace: b}\nspec:\n  selector: {matchLabels: {a: b}}\n  portLevelMtls:\n    8080: {mode: STRICT}\n";
    let objects = parse_manifest(Path::new("x.yaml"), text).unwrap();
    let Object::PeerAuthentication(policy) = &objects[0] else { panic!("kind") };
    assert_eq!(policy.spec.port_level_mtls.keys().copied().collect::<Vec<_>>(), [8080]);
    assert_eq!(objects[0].to_json()["apiVersion"], "security.istio.io/v1");
}

#[test]
fn policy_without_spec_is_an_empty_one() {
    let text = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: allow-nothing}\n";
    assert_eq!(parse_manifest(Path::new("x.yaml"), text).unwrap()[0].kind(), Kind::AuthorizationPolicy);
}

#[test]
fn errors_name_file_line_and_field() {
    let policy = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata:\n  name: a\nspec:\n";
    let cases = [
        // (manifest, start of the message, some part of it)
        (format!("{policy}  rules:\n  - from:\n    - source:\n        principals: [a]\n        prinzipals: [b]\n"), "x.yaml: line 10: spec.rules[0].from[0].source.prinzipals: ", "unknown field `prinzipals`"),
        (format!("{policy}  rules:\n  - {{}}\n  - to:\n    - operation: {{ports: [80]}}\n"), "x.yaml: line 9: spec.rules[1].to[0].operation.ports[0]: ", "expected a string"),
        (format!("{policy}  action: PERMIT\n"), "x.yaml: line 6: spec.action: ", "unknown variant `PERMIT`"),
        (format!("---\n{policy}  rules: 3\n"), "x.yaml: line 7: spec.rules: ", "expected a sequence"),
        ("apiVersion: v1\nkind: Service\nmetadata: {name: a}\nspec:\n  ports:\n  - port: 80\n  - name: x\n    port: eighty\n".to_owned(), "x.yaml: line 8: spec.ports[1].port: ", "expected"),
        ("apiVersion: v1\nkind: Potato\nmetadata: {name: a}\n".to_owned(), "x.yaml: line 2: kind: ", "unknown kind \"Potato\"; known kinds: Namespace (v1)"),
        ("apiVersion: v2\nkind: Pod\nmetadata: {name: a}\n".to_owned(), "x.yaml: line 1: apiVersion: ", "Pod is not known in v2"),
        ("apiVersion: v1\nkind: Pod\nmetadata:\n  labels: {}\n".to_owned(), "x.yaml: line 3: metadata.name: ", "is missing"),
        ("apiVersion: v1\nkind: Pod\nmetadata: {name: ../x}\n".to_owned(), "x.yaml: line 3: metadata.name: ", "is not a name"),
        ("apiVersion: v1\nkind: Node\nmetadata:\n  name: n\n  namespace: x\n".to_owned(), "x.yaml: line 5: metadata.namespace: ", "has no namespace"),
        ("apiVersion: v1\nkind: Pod\nmetadata: {name: a\n".to_owned(), "x.yaml: line ", ""),
        ("a: 1\n---\n\nb: [\n".to_owned(), "x.yaml: line 1: kind: ", "is missing"),
        ("apiVersion: v1\nkind: Pod\nkind: Pod\nmetadata: {name: a}\n".to_owned(), "x.yaml: ", "duplicate entry"),
        ("- 1\n".to_owned(), "x.yaml: line 1: ", "is not an object"),
    ];
    for (text, start, part) in cases {
        let error = error_of(&text);
        assert!(error.starts_with(start) && error.contains(part), "{error}\nexpected {start} … {part}\nfor\n{text}");
    }
}

#[test]
fn each_document_is_read_for_itself() {
    let text = "# one\napiVersion: v1\nkind: Namespace\nmetadata: {name: a}\n---\napiVersion: apps/v1\nkind: StatefulSet\nmetadata: {name: b}\n---\nkind: [\n---\n---\napiVersion: v1\nkind: List\nitems:\n- apiVersion: v1\n  kind: ServiceAccount\n  metadata: {name: c}\n- apiVersion: example.org/v1\n  kind: Thing\n---\napiVersion: networking.istio.io/v1\nkind: VirtualServise\nmetadata: {name: d}\n---\napiVersion: v1\nkind: Pod\nmetadata: {}\n";
    let found = parse_each(Path::new("x.yaml"), text);
    let told: Vec<String> = found
        .iter()
        .map(|found| match &found.object {
            Ok(object) => format!("{} {}", found.line, object.key()),
            Err(Unread::Foreign { api_version, kind, .. }) => format!("{} foreign {api_version} {kind}", found.line),
            Err(Unread::Wrong(error)) => format!("{} wrong {}", found.line, error.field),
        })
        .collect();
    assert_eq!(
        told,
        [
            "2 Namespace/a",
            "6 foreign apps/v1 StatefulSet",
            "10 wrong ",
            "13 ServiceAccount/default/c",
            "13 foreign example.org/v1 Thing",
            "22 wrong kind",
            "26 wrong metadata.name"
        ]
    );
}
