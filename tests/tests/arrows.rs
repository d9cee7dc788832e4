//! The dependency graph is a promise: docs/architecture.md draws it, this test holds us to it.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::path::Path;

use cargo_metadata::{DependencyKind, Metadata, MetadataCommand, Package};

/// The allowed arrows between our crates, and nothing else. The tests may depend on anything.
const ARROWS: &[(&str, &[&str])] = &[
    ("aquifer-proto", &[]),
    ("aquifer-runtime", &[]),
    ("aquifer-objects", &[]),
    ("aquifer-core", &["aquifer-proto"]),
    ("aquifer-xds", &["aquifer-proto", "aquifer-runtime"]),
    ("aquifer-tls", &["aquifer-core", "aquifer-proto", "aquifer-runtime"]),
    ("aquifer-hbone", &["aquifer-core", "aquifer-runtime"]),
    ("ztunnel", &["aquifer-core", "aquifer-xds", "aquifer-tls", "aquifer-hbone", "aquifer-runtime", "aquifer-proto"]),
    (
        "aquifer-istiod-lite",
        &["aquifer-core", "aquifer-xds", "aquifer-tls", "aquifer-objects", "aquifer-runtime", "aquifer-proto"],
    ),
    ("aquifer-cni", &["aquifer-objects", "aquifer-runtime", "aquifer-proto"]),
    ("aquifer-lab", &["aquifer-objects", "aquifer-runtime"]),
    ("aquifer-load", &[]),
    ("aquifer-icount", &["aquifer-core", "aquifer-hbone", "aquifer-proto", "aquifer-runtime"]),
    ("aquifer-perf", &["aquifer-lab", "aquifer-runtime"]),
    (
        "aquifer",
        &[
            "aquifer-core",
            "aquifer-objects",
            "aquifer-lab",
            "aquifer-perf",
            "aquifer-istiod-lite",
            "aquifer-runtime",
            "aquifer-proto",
        ],
    ),
];

/// What ships: every entry of [`CARD`] is linked into at least one of these.
const SHIPPING: &[&str] = &["ztunnel", "aquifer-istiod-lite", "aquifer-cni", "aquifer"];

/// The libraries that the product is built on. One that no shipping binary uses any more is a rewrite in disguise.
const CARD: &[&str] =
    &["tokio", "hyper", "h2", "rustls", "kube", "prost", "tonic", "socket2", "nix", "tracing", "prometheus-client"];

/// Libraries that a feature of a shipping binary brings, and those that it takes the place of: (binary, feature,
/// brings, instead of).
const BY_FEATURE: &[(&str, &str, &str, &str)] =
    &[("ztunnel", "boring", "boring", "aws-lc-rs"), ("ztunnel", "aws-lc", "aws-lc-rs", "boring")];

fn metadata() -> Metadata {
    MetadataCommand::new()
        .manifest_path(concat!(env!("CARGO_MANIFEST_DIR"), "/../Cargo.toml"))
        .exec()
        .expect("cargo metadata of this workspace")
}

#[test]
fn crates_depend_only_along_the_arrows() {
    let metadata = metadata();
    let allowed: BTreeMap<&str, BTreeSet<&str>> =
        ARROWS.iter().map(|(from, to)| (*from, to.iter().copied().collect())).collect();
    let ours: HashSet<&str> = metadata.workspace_packages().iter().map(|p| p.name.as_str()).collect();
    let mut wrong = Vec::new();
    for package in metadata.workspace_packages() {
        if matches!(package.name.as_str(), "aquifer-tests" | "aquifer-api-tests") {
            continue;
        }
        let Some(may) = allowed.get(package.name.as_str()) else {
            wrong.push(format!("{} is not in the table of arrows", package.name));
            continue;
        };
        for dependency in &package.dependencies {
            let name = dependency.name.as_str();
            if ours.contains(name) && !may.contains(name) {
                wrong.push(format!("{} → {name} ({:?}) is not an allowed arrow", package.name, dependency.kind));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_library_of_the_card_is_in_a_shipping_binary() {
    let metadata = metadata();
    let ours: HashMap<&str, &Package> =
        metadata.workspace_packages().into_iter().map(|p| (p.name.as_str(), p)).collect();
    // The crates of ours that a shipping binary is made of.
    let mut reached: HashSet<&str> = HashSet::new();
    let mut todo: Vec<&str> = SHIPPING.to_vec();
    while let Some(name) = todo.pop() {
        if reached.insert(name) {
            let normal = ours[name].dependencies.iter().filter(|d| d.kind == DependencyKind::Normal);
            todo.extend(normal.map(|d| d.name.as_str()).filter(|name| ours.contains_key(name)));
        }
    }
    // Named in a manifest and in the sources: a library that only others bring along is not used.
    let used = |library: &str| {
        let path = format!("{}::", library.replace('-', "_"));
        reached.iter().any(|name| {
            let package = ours[name];
            let direct = package.dependencies.iter().any(|d| d.kind == DependencyKind::Normal && d.name == library);
            direct
                && sources(package.manifest_path.parent().expect("a folder").as_std_path())
                    .any(|text| text.contains(&path))
        })
    };
    let missing: Vec<_> = CARD.iter().filter(|name| !used(name)).collect();
    assert!(missing.is_empty(), "no shipping binary uses: {missing:?}");
}

/// The texts of all Rust files under a crate's `src`.
fn sources(package: &Path) -> impl Iterator<Item = String> {
    let mut folders = vec![package.join("src")];
    let mut files = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).expect("a source folder").flatten() {
            let path = entry.path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|ext| ext == "rs") {
                files.push(path);
            }
        }
    }
    files.into_iter().map(|file| std::fs::read_to_string(file).expect("a readable source"))
}

#[test]
fn a_feature_brings_its_library_and_leaves_out_the_other() {
    for (binary, feature, brings, instead_of) in BY_FEATURE {
        let tree = std::process::Command::new(env!("CARGO"))
            .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
            .args(["tree", "--locked", "-p", binary, "--no-default-features", "--features", feature])
            .args(["--edges", "normal", "--prefix", "none", "--format", "{p}"])
            .output()
            .expect("cargo tree runs");
        let text = String::from_utf8_lossy(&tree.stdout);
        assert!(tree.status.success(), "{}", String::from_utf8_lossy(&tree.stderr));
        let linked: HashSet<&str> = text.lines().filter_map(|line| line.split(' ').next()).collect();
        assert!(linked.contains(brings), "{binary} with {feature} does not use {brings}");
        assert!(!linked.contains(instead_of), "{binary} with {feature} links {instead_of} all the same");
    }
}

#[test]
fn no_lint_is_switched_off_by_a_crate_for_itself() {
    for package in metadata().workspace_packages() {
        let manifest = std::fs::read_to_string(&package.manifest_path).expect("a readable manifest");
        assert!(
            manifest.contains("[lints]\nworkspace = true"),
            "{} does not take its lints from the workspace",
            package.name
        );
    }
}
