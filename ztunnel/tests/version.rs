//! The binary before it serves anything: what it says of itself, and what it refuses to start with.

#![allow(clippy::unwrap_used)] // Helpers of tests are tests.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, unshare};

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

/// Without a control plane. Needs root: the ports are those of a network namespace of the test's own.
#[test]
fn the_log_does_not_say_ready_while_the_mesh_is_not_known() {
    const BOUND: Duration = Duration::from_secs(30);
    unshare(CloneFlags::CLONE_NEWNET).expect("this test makes a network namespace: run it as root");
    assert!(Command::new("ip").args(["link", "set", "lo", "up"]).status().unwrap().success());
    let folder = tempfile::tempdir().unwrap();
    let agent = folder.path().join("ztunnel.sock");
    let variables = [
        ("NODE_NAME", "n"),
        ("XDS_ADDRESS", "https://127.0.0.1:1"),
        ("CA_ADDRESS", ""),
        ("INPOD_UDS", agent.to_str().unwrap()),
    ];
    let mut child = Command::new(env!("CARGO_BIN_EXE_ztunnel"))
        .args(["proxy", "ztunnel"])
        .env_clear()
        .envs(variables)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let ready = || -> std::io::Result<String> {
        let mut stream = TcpStream::connect("127.0.0.1:15021")?;
        stream.write_all(b"GET /healthz/ready HTTP/1.1\r\nhost: n\r\nconnection: close\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    };
    let begin = Instant::now();
    let answer = loop {
        match ready() {
            Ok(answer) => break answer,
            Err(error) => assert!(begin.elapsed() < BOUND, "{error}"),
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(child.id() as i32), nix::sys::signal::Signal::SIGTERM).unwrap();
    let mut log = String::new();
    child.stdout.take().unwrap().read_to_string(&mut log).unwrap();
    child.stderr.take().unwrap().read_to_string(&mut log).unwrap();
    assert!(child.wait().unwrap().success(), "{log}");
    assert!(answer.contains("not ready, pending: state manager, workload proxy manager\n"), "{answer}");
    assert!(log.contains("open files") && !log.contains("all tasks are ready"), "{log}");
}
