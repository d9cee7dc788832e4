//! The processes: an API server with proxies, and the control plane between them.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::Value;
use tempfile::TempDir;

use crate::measure::cpu::Cpu;
use crate::measure::memory;

/// What the control plane may take to read everything.
const READY: Duration = Duration::from_secs(60);

/// Dropped, the processes end.
pub(super) struct World {
    /// Seconds from the control plane's start until it was ready.
    pub(super) ready_s: f64,
    load: Ended,
    commands: ChildStdin,
    answers: BufReader<ChildStdout>,
    istiod: Ended,
    ports: Ports,
    folder: TempDir,
}

struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

struct Ports {
    plaintext: SocketAddr,
    secure: SocketAddr,
    monitoring: SocketAddr,
    http: SocketAddr,
}

impl World {
    /// Services, pods and nodes. Returns when the control plane is ready.
    pub(super) fn start(load: &Path, istiod: &Path, [services, pods, nodes]: [u32; 3]) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let kubeconfig = folder.path().join("kubeconfig");
        let mut child = Command::new(load)
            .args(["control-plane", "--services", &services.to_string(), "--pods", &pods.to_string()])
            .args(["--nodes", &nodes.to_string(), "--kubeconfig"])
            .arg(&kubeconfig)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("starting {}", load.display()))?;
        let commands = child.stdin.take().context("no standard input")?;
        let answers = BufReader::new(child.stdout.take().context("no standard output")?);
        let load = Ended(child);
        let ports = Ports { plaintext: free()?, secure: free()?, monitoring: free()?, http: free()? };
        let log = std::fs::File::create(folder.path().join("istiod.log"))?;
        let mut world =
            Self { ready_s: 0.0, load, commands, answers, istiod: Ended(Command::new("true").spawn()?), ports, folder };
        world.answer().context("the API server")?;
        let begin = Instant::now();
        let mut command = Command::new(istiod);
        let addresses = [
            ("GRPC_ADDR", world.ports.plaintext),
            ("SECURE_GRPC_ADDR", world.ports.secure),
            ("MONITORING_ADDR", world.ports.monitoring),
            ("HTTP_ADDR", world.ports.http),
        ];
        command.env_clear().envs(addresses.map(|(name, address)| (name, address.to_string())));
        command.env("KUBECONFIG", &kubeconfig).env("AQUIFER_DATA_DIR", world.folder.path().join("data"));
        command.env("POD_NAMESPACE", "istio-system").env("POD_NAME", "istiod-0");
        command.stdout(log.try_clone()?).stderr(log);
        world.istiod = Ended(command.spawn().with_context(|| format!("starting {}", istiod.display()))?);
        while !is_ready(world.ports.http) {
            if begin.elapsed() > READY || world.istiod.0.try_wait()?.is_some() {
                bail!("istiod-lite is not ready after {:?}:\n{}", begin.elapsed(), world.log());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        world.ready_s = begin.elapsed().as_secs_f64();
        Ok(world)
    }

    /// Where proxies connect.
    pub(super) fn discovery(&self) -> SocketAddr {
        self.ports.secure
    }

    /// Gives a command and waits for its answer.
    pub(super) fn ask(&mut self, command: &str) -> Result<Value> {
        writeln!(self.commands, "{command}")?;
        let answer = self.answer();
        answer.with_context(|| format!("{command:?}; istiod-lite said:\n{}", self.log()))
    }

    fn answer(&mut self) -> Result<Value> {
        let mut line = String::new();
        if self.answers.read_line(&mut line)? == 0 {
            bail!("aquifer-load ended: {:?}", self.load.0.try_wait()?);
        }
        serde_json::from_str(&line).with_context(|| format!("aquifer-load answered {line:?}"))
    }

    /// The end of the control plane's log.
    fn log(&self) -> String {
        let text = std::fs::read_to_string(self.folder.path().join("istiod.log")).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(10)..].join("\n")
    }

    fn process(&self) -> [PathBuf; 1] {
        [PathBuf::from(format!("/proc/{}", self.istiod.0.id()))]
    }

    /// The control plane's PSS in MiB, after a while in which nothing happens.
    pub(super) fn settled(&self, after: Duration) -> f64 {
        std::thread::sleep(after);
        memory::pss(&self.process()) as f64 / super::super::MIB
    }

    /// The control plane's CPU since its start, seconds.
    pub(super) fn cpu(&self) -> f64 {
        Cpu::of_processes(&self.process()).total()
    }
}

/// A port of loopback that nobody has at the moment.
fn free() -> Result<SocketAddr> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?)
}

fn is_ready(address: SocketAddr) -> bool {
    let Ok(mut stream) = TcpStream::connect_timeout(&address, Duration::from_secs(1)) else { return false };
    let _ = stream.set_read_timeout(Some(Duration::from_secs(1)));
    let mut answer = [0; 12];
    let asked = stream.write_all(b"GET /ready HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
    asked.and_then(|()| stream.read_exact(&mut answer)).is_ok() && answer.ends_with(b"200")
}
