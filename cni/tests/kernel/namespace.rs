//! A private network namespace and programs run in it.

use aquifer_cni::netns::NetNs;
use nix::sched::{CloneFlags, unshare};
use std::process::Command;

/// A network namespace that ends with its last handle, with lo up.
pub(crate) fn fresh() -> NetNs {
    let namespace = std::thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNET).expect("these tests make network namespaces: run them as root");
        NetNs::current().unwrap()
    })
    .join()
    .unwrap();
    sh(&namespace, "ip link set lo up");
    namespace
}

/// Runs a shell line inside; its output, which must be a success.
pub(crate) fn sh(namespace: &NetNs, line: &str) -> String {
    let output = namespace.run(|| Command::new("sh").args(["-c", line]).output().unwrap()).unwrap();
    assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}
