use super::*;

const TYPE: &str = "type.googleapis.com/test";

fn resource(name: &str, body: &[u8]) -> Resource {
    Resource::from_bytes(TYPE, name, body.to_vec())
}

fn set(resources: impl IntoIterator<Item = Resource>) -> ResourceSet {
    let mut set = ResourceSet::of_types([TYPE]);
    for resource in resources {
        assert!(set.upsert(resource));
    }
    set
}

fn names<'a>(resources: impl IntoIterator<Item = &'a Arc<Resource>>) -> Vec<&'a str> {
    resources.into_iter().map(|r| &*r.name).collect()
}

#[test]
fn versions_are_bare_hex() {
    // xxhash64 of nothing with seed 0; leading zeros are left out, as Go's FormatUint does.
    assert_eq!(Version::of(b"").to_string(), "ef46db3751d8e999");
    let short = (0..100_u32).map(|n| Version::of(&n.to_be_bytes()).to_string()).find(|v| v.len() < 16);
    assert!(short.is_some_and(|v| !v.starts_with('0')));
}

#[test]
fn a_snapshot_does_not_change() {
    let mut set = set([resource("a", b"1")]);
    let before = set.clone();
    assert!(before.of_type(TYPE).unwrap().same(set.of_type(TYPE).unwrap()));
    assert!(!set.upsert(resource("a", b"1")), "an equal resource is no change");
    assert!(before.of_type(TYPE).unwrap().same(set.of_type(TYPE).unwrap()));
    assert!(set.upsert(resource("a", b"2")));
    assert!(set.upsert(resource("b", b"1")));
    assert_eq!(before.get(TYPE, "a").unwrap().body[..], b"1"[..]);
    assert_eq!(before.of_type(TYPE).unwrap().len(), 1);
    let forth = set.of_type(TYPE).unwrap().since(before.of_type(TYPE).unwrap());
    assert_eq!((names(&forth.upserts), names(&forth.removed)), (vec!["a", "b"], vec![]));
    let again = set.clone().of_type(TYPE).unwrap().since(before.of_type(TYPE).unwrap());
    assert!(Arc::ptr_eq(&forth, &again), "worked out once for all who ask");
    let back = before.of_type(TYPE).unwrap().since(set.of_type(TYPE).unwrap());
    assert_eq!((names(&back.upserts), names(&back.removed)), (vec!["a"], vec!["b"]));
}

#[test]
fn two_may_share_an_alias() {
    let alias = || vec!["/10.0.0.1".to_owned()];
    let mut set = set([resource("pod", b"1").with_aliases(alias()), resource("entry", b"2").with_aliases(alias())]);
    assert_eq!(names(set.of_type(TYPE).unwrap().by_alias("/10.0.0.1")), ["entry", "pod"]);
    set.remove(TYPE, "entry");
    assert_eq!(names(set.of_type(TYPE).unwrap().by_alias("/10.0.0.1")), ["pod"]);
    set.upsert(resource("pod", b"1"));
    assert!(set.of_type(TYPE).unwrap().by_alias("/10.0.0.1").is_empty());
}

#[test]
fn unknown_types_are_told_apart_from_empty_ones() {
    let mut set = ResourceSet::of_types([TYPE]);
    assert!(set.of_type(TYPE).is_some_and(TypeSet::is_empty));
    assert!(set.of_type("type.googleapis.com/other").is_none());
    assert!(!set.remove(TYPE, "a") && !set.remove("type.googleapis.com/other", "a"));
    assert_eq!(set.types().collect::<Vec<_>>(), [TYPE]);
}
