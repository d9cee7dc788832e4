use std::path::Path;

use super::manifests::Read;
use super::*;

const BAD: &str = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: a, namespace: shop}\nspec: {action: DENY, rules: [{to: [{operation: {methods: [GET]}}]}]}\n";
const ODD: &str = "---\napiVersion: networking.istio.io/v1alpha3\nkind: EnvoyFilter\nmetadata: {name: b, namespace: shop}\nspec: {}\n";
const WRONG: &str = "---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: c, namespace: shop}\nspec:\n  acton: DENY\n";
const FOREIGN: &str = "---\napiVersion: apps/v1\nkind: StatefulSet\nmetadata: {name: d}\n";

fn lines(text: &str) -> Vec<Line> {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("x.yaml");
    std::fs::write(&file, text).unwrap();
    of_files(&[file], Mesh::default()).unwrap()
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
