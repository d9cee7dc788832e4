//! The committed code is what the .proto files generate, so that a build needs neither protoc nor a build script.
//! `UPDATE_PROTO=1 cargo test -p aquifer-proto` rewrites it.

use std::{fs, path::Path};

#[test]
fn generated_code_is_current() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let out = tempfile::tempdir().expect("a temporary folder");
    let mut protos: Vec<_> = fs::read_dir(root.join("protos"))
        .expect("proto/protos")
        .map(|entry| entry.expect("a readable entry").path())
        .collect();
    protos.sort();
    let descriptors = protox::compile(&protos, [root.join("protos")]).expect("valid .proto files");
    tonic_prost_build::configure()
        // Ordered maps: equal messages encode to equal bytes, so that a version can be a hash.
        .btree_map(".")
        .bytes(".")
        .out_dir(out.path())
        .emit_rerun_if_changed(false)
        .compile_fds(descriptors)
        .expect("code generation");

    let committed = root.join("src/gen");
    let update = std::env::vars().any(|(key, _)| key == "UPDATE_PROTO");
    if update {
        fs::remove_dir_all(&committed).ok();
        fs::create_dir_all(&committed).expect("proto/src/gen");
    }
    let mut names: Vec<_> = fs::read_dir(out.path())
        .expect("generated files")
        .map(|entry| entry.expect("a readable entry").file_name())
        .collect();
    names.sort();
    for name in &names {
        let fresh = fs::read_to_string(out.path().join(name)).expect("generated text");
        if update {
            fs::write(committed.join(name), &fresh).expect("a writable tree");
        }
        let held = fs::read_to_string(committed.join(name)).unwrap_or_default();
        assert!(
            fresh == held,
            "proto/src/gen/{} is stale: run UPDATE_PROTO=1 cargo test -p aquifer-proto",
            name.display()
        );
    }
    let committed = fs::read_dir(&committed).expect("proto/src/gen").count();
    assert_eq!(committed, names.len(), "proto/src/gen holds files that nothing generates");
}
