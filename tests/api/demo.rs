//! The whole walk of the demo, in a lab whose objects lie in a real API server. Alone, since what it shows has bounds.

#![allow(clippy::disallowed_methods, dead_code)] // a test, with a part of the harness

#[path = "harness/process.rs"]
mod process;

use std::process::Command;

use self::process::binary;

#[test]
fn the_demo_holds_with_an_api_server() {
    let demo = Command::new(binary("aquifer")).args(["demo", "--api-server"]).output().expect("the demo");
    let said = String::from_utf8_lossy(&demo.stdout);
    println!("{said}");
    assert!(demo.status.success(), "{said}\n{}", String::from_utf8_lossy(&demo.stderr));
}
