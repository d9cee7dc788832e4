//! The whole walk of the demo, in a lab whose objects lie in a real API server.

use std::process::Command;

use crate::harness::binary;

#[test]
fn the_demo_holds_with_an_api_server() {
    let demo = Command::new(binary("aquifer")).args(["demo", "--api-server"]).output().expect("the demo");
    let said = String::from_utf8_lossy(&demo.stdout);
    println!("{said}");
    assert!(demo.status.success(), "{said}\n{}", String::from_utf8_lossy(&demo.stderr));
}
