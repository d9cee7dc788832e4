//! The pages of all replicas.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpStream, ToSocketAddrs as _};
use std::path::Path;
use std::process::{Child, ChildStdout, Command as Process, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use super::Command;

const PAGE: &str = "/debug/proxies";
const PORT: &str = "8080";
/// For each step of asking a replica.
const PATIENCE: Duration = Duration::from_secs(10);
/// A page of ten thousand proxies is a tenth of this.
const LARGEST: u64 = 64 * 1024 * 1024;

/// The page of each replica, by its address or the name of its pod.
pub(super) fn pages(command: &Command) -> Result<Vec<(String, String)>> {
    if command.addresses.is_empty() {
        return of_cluster(command);
    }
    let token = command.token_file.as_deref().map(read_token).transpose()?;
    let page = |address: &String| Ok((address.clone(), get(address, token.as_deref())?));
    command.addresses.iter().map(page).collect()
}

fn read_token(file: &Path) -> Result<String> {
    let text = std::fs::read_to_string(file).with_context(|| format!("reading {}", file.display()))?;
    Ok(text.trim().to_owned())
}

/// Asks one replica.
pub(super) fn get(address: &str, token: Option<&str>) -> Result<String> {
    let ask = || -> Result<String> {
        let addresses: Vec<_> = address.to_socket_addrs()?.collect();
        let first = addresses.first().context("the name has no address")?;
        let mut stream = TcpStream::connect_timeout(first, PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        let token = token.map(|token| format!("Authorization: Bearer {token}\r\n")).unwrap_or_default();
        // Of HTTP/1.0 the answer ends with the connection.
        write!(stream, "GET {PAGE} HTTP/1.0\r\nHost: {address}\r\n{token}\r\n")?;
        let mut answer = Vec::new();
        stream.take(LARGEST).read_to_end(&mut answer)?;
        body(&String::from_utf8_lossy(&answer))
    };
    ask().with_context(|| format!("asking istiod-lite at {address}"))
}

/// The body of an answer that says 200.
pub(super) fn body(answer: &str) -> Result<String> {
    let Some((head, body)) = answer.split_once("\r\n\r\n") else { bail!("the answer ends too early") };
    let status = head.split(' ').nth(1).unwrap_or_default();
    if status != "200" {
        bail!("the answer is {status}: {}", body.trim());
    }
    Ok(body.to_owned())
}

fn of_cluster(command: &Command) -> Result<Vec<(String, String)>> {
    let kubectl = || {
        let mut process = Process::new("kubectl");
        if let Some(file) = &command.kubeconfig {
            process.arg("--kubeconfig").arg(file);
        }
        process.args(["--namespace", &command.root_namespace]);
        process
    };
    let output = kubectl()
        .args([
            "get",
            "pods",
            "--selector",
            "app=istiod",
            "--field-selector",
            "status.phase=Running",
            "--output",
            "name",
        ])
        .output()
        .context("running kubectl, which finds the replicas: install it, or say --address")?;
    if !output.status.success() {
        // The last line says it; those before are its attempts.
        let said = String::from_utf8_lossy(&output.stderr).trim().lines().last().unwrap_or_default().to_owned();
        bail!("kubectl get pods: {said}. Say --kubeconfig, or --address");
    }
    let names = String::from_utf8_lossy(&output.stdout).into_owned();
    let mut pages = Vec::new();
    for pod in names.split_whitespace() {
        let forward = Forward::start(kubectl(), pod)?;
        pages.push((pod.trim_start_matches("pod/").to_owned(), get(&forward.address, None)?));
    }
    if pages.is_empty() {
        bail!(
            "no pod of istiod-lite (label app=istiod) runs in namespace {}: say --root-namespace or --address",
            command.root_namespace
        );
    }
    Ok(pages)
}

/// `kubectl port-forward`, as long as it is held.
pub(super) struct Forward {
    child: Child,
    address: String,
    /// It says each connection there, and dies of it when nobody can read that.
    _said: Option<BufReader<ChildStdout>>,
}

impl Forward {
    pub(super) fn start(mut kubectl: Process, pod: &str) -> Result<Self> {
        let mut child = kubectl
            .args(["port-forward", "--address", "127.0.0.1", pod, &format!(":{PORT}")])
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .context("running kubectl port-forward")?;
        let mut said = child.stdout.take().map(BufReader::new);
        let mut line = String::new();
        let read = said.as_mut().map(|said| said.read_line(&mut line));
        // Dropped, it ends.
        let mut forward = Self { child, address: String::new(), _said: said };
        read.transpose().context("reading from kubectl port-forward")?;
        // Forwarding from 127.0.0.1:40123 -> 8080
        let address = line.split_whitespace().find(|word| word.starts_with("127.0.0.1:"));
        forward.address = address.with_context(|| format!("kubectl port-forward {pod} said {line:?}"))?.to_owned();
        Ok(forward)
    }
}

impl Drop for Forward {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
