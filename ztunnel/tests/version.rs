//! The binary before it serves anything: what it says of itself, and what it refuses to start with.

#![allow(clippy::unwrap_used)] // Helpers of tests are tests.

use std::process::{Command, Output};

fn ztunnel(arguments: &[&str], variables: &[(&str, &str)]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ztunnel"));
    command.args(arguments).env_clear().envs(variables.iter().copied()).output().unwrap()
}

#[test]
fn the_version_names_the_crypto_library() {
    let said = String::from_utf8(ztunnel(&["--version"], &[]).stdout).unwrap();
    assert!(said.contains(env!("CARGO_PKG_VERSION")) && said.contains(aquifer_tls::provider::NAME), "{said}");
}

#[test]
fn a_compliance_policy_that_is_not_known_stops_the_start() {
    let output = ztunnel(&["proxy", "ztunnel"], &[("NODE_NAME", "n"), ("COMPLIANCE_POLICY", "fips-140-2")]);
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(
        said.contains("COMPLIANCE_POLICY") && said.contains("\"fips-140-2\"") && said.contains("\"pqc\""),
        "{said}"
    );
}
