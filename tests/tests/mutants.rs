//! The list of mutants is usable: `make mutants` itself takes too long to run with every change.

use std::collections::BTreeSet;

use aquifer_tests::mutants::{read, root};

#[test]
fn every_mutant_finds_its_line_once() {
    let mutants = read(&root()).expect("a list that can be read");
    let faults: Vec<String> = mutants.iter().filter_map(|m| m.texts(&root()).err()).map(|e| e.to_string()).collect();
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn the_list_covers_the_product() {
    let mutants = read(&root()).expect("a list that can be read");
    assert!(mutants.len() >= 20, "{}", mutants.len());
    let names: BTreeSet<&str> = mutants.iter().map(|m| &*m.name).collect();
    assert_eq!(names.len(), mutants.len(), "names are unique");
    for mutant in &mutants {
        assert!(mutant.test.starts_with("-p "), "{}: the test names its package", mutant.name);
    }
    for part in ["crates/core/", "crates/hbone/", "crates/tls/", "crates/xds/", "ztunnel/", "cni/", "istiod-lite/"] {
        assert!(mutants.iter().any(|m| m.file.starts_with(part)), "nothing of {part}");
    }
}
