//! The whole agent as a process on a node of its own, with pods that already run and a proxy that says yes.

use crate::lay::ruleset;
use crate::namespace::{fresh, sh};
use aquifer_cni::agent::decision::{NOT_ENROLLED_REASON, REDIRECTION};
use aquifer_cni::netns::NetNs;
use aquifer_objects::folder::Writer;
use aquifer_objects::{Folder, Kind, Object};
use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// What takes longer hangs.
pub(crate) const DEADLINE: Duration = Duration::from_secs(30);

pub(crate) struct Node {
    folder: tempfile::TempDir,
    pub(crate) host: NetNs,
    agent: Option<Child>,
}

impl Node {
    pub(crate) fn new() -> Self {
        Self::on(fresh())
    }

    /// A node whose own namespace is this one.
    pub(crate) fn on(host: NetNs) -> Self {
        let node = Self { folder: tempfile::tempdir().unwrap(), host, agent: None };
        std::fs::create_dir(node.path("netns")).unwrap();
        node
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A pod's namespace under its uid. A symbolic link to our own handle does what a bind mount does elsewhere.
    pub(crate) fn pod(&self, uid: &str) -> NetNs {
        let pod = fresh();
        let handle = format!("/proc/{}/fd/{}", std::process::id(), pod.as_fd().as_raw_fd());
        std::os::unix::fs::symlink(handle, self.path("netns").join(uid)).unwrap();
        pod
    }

    pub(crate) fn apply(&self, yaml: &str) {
        Writer::new(self.path("manifests"), "user").apply_manifest(yaml).unwrap();
    }

    pub(crate) fn start(&mut self) {
        self.start_by(&[]);
    }

    /// The agent, started by way of another program.
    pub(crate) fn start_by(&mut self, wrapper: &[String]) {
        let agent = self.command(&[]);
        let mut command = match wrapper {
            [] => agent,
            [program, arguments @ ..] => {
                let mut command = Command::new(program);
                command.args(arguments).arg(agent.get_program());
                command.envs(agent.get_envs().filter_map(|(key, value)| Some((key, value?))));
                command
            }
        };
        // Its lines go to a file that a failing test may show.
        let log = std::fs::File::options().append(true).create(true).open(self.path("log")).unwrap();
        command.stdout(Stdio::from(log));
        self.agent = Some(self.host.run(|| command.spawn().unwrap()).unwrap());
        self.until("ready", || self.get("127.0.0.1:8000", "/healthz/ready").starts_with("HTTP/1.1 200"));
    }

    /// The agent's program with this node's settings.
    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_istio-cni-node"));
        command
            .args(arguments)
            .env_clear()
            .env("NODE_NAME", "node1")
            .env("AQUIFER_MANIFESTS", self.path("manifests"))
            .env("AQUIFER_NETNS_DIR", self.path("netns"))
            .env("ZTUNNEL_UDS", self.path("ztunnel.sock"))
            .env("CNI_EVENT_SOCKET", self.path("pluginevent.sock"));
        command
    }

    pub(crate) fn uninstall(&self) -> std::process::Output {
        let mut command = self.command(&["--uninstall"]);
        self.host.run(|| command.output().unwrap()).unwrap()
    }

    pub(crate) fn end(&mut self, signal: Signal) {
        let mut agent = self.agent.take().unwrap();
        kill(nix::unistd::Pid::from_raw(agent.id() as i32), signal).unwrap();
        agent.wait().unwrap();
    }

    pub(crate) fn get(&self, address: &str, path: &str) -> String {
        let ask = || {
            let mut stream = std::net::TcpStream::connect(address)?;
            write!(stream, "GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer)?;
            Ok::<_, std::io::Error>(answer)
        };
        self.host.run(ask).unwrap().unwrap_or_default()
    }

    fn cmdadd(&self, body: &str) -> String {
        let mut stream = UnixStream::connect(self.path("pluginevent.sock")).unwrap();
        let length = body.len();
        write!(
            stream,
            "POST /cmdadd HTTP/1.1\r\nhost: unix\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{body}"
        )
        .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }

    pub(crate) fn annotation(&self, name: &str, key: &str) -> Option<String> {
        let (objects, _) = Folder::new(self.path("manifests")).read(&[Kind::Pod]);
        let pod = objects.iter().find(|object| object.name() == name)?;
        Object::annotation(pod, key).map(str::to_owned)
    }

    pub(crate) fn until(&self, what: &str, mut holds: impl FnMut() -> bool) -> Duration {
        let start = Instant::now();
        while !holds() {
            if start.elapsed() > DEADLINE {
                panic!("{what}\n{}", std::fs::read_to_string(self.path("log")).unwrap_or_default());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        start.elapsed()
    }

    pub(crate) fn until_marked(&self, name: &str, mark: Option<&str>) -> Duration {
        self.until(&format!("{name} {mark:?}"), || self.annotation(name, REDIRECTION).as_deref() == mark)
    }

    /// A proxy that accepts everything; what it was asked, as (kind, uid).
    pub(crate) fn proxy(&self) -> std::sync::mpsc::Receiver<Vec<u8>> {
        let fd = socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None).unwrap();
        connect(fd.as_raw_fd(), &UnixAddr::new(&self.path("ztunnel.sock")).unwrap()).unwrap();
        let (asked, questions) = std::sync::mpsc::channel();
        std::thread::spawn(move || say_yes(&fd, &asked));
        questions
    }
}

fn say_yes(fd: &OwnedFd, asked: &std::sync::mpsc::Sender<Vec<u8>>) {
    nix::unistd::write(fd, &[0x08, 0x01]).unwrap();
    let mut buffer = [0; 1024];
    loop {
        // `read` lets descriptors go.
        match nix::unistd::read(fd, &mut buffer) {
            Ok(0) | Err(_) => return,
            Ok(length) => {
                let _ = asked.send(buffer[..length].to_vec());
                let _ = nix::unistd::write(fd, &[0x0a, 0x00]);
            }
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if self.agent.is_some() {
            self.end(Signal::SIGKILL);
        }
    }
}

pub(crate) fn manifest(name: &str, uid: &str, ip: &str, extra: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: shop, uid: {uid}}}\n\
         spec: {{nodeName: node1, serviceAccountName: {name}, containers: [{{name: app, image: none}}{extra}]}}\n\
         status: {{phase: Running, podIP: {ip}, podIPs: [{{ip: {ip}}}]}}\n"
    )
}

pub(crate) fn labelled(mode: &str) -> String {
    format!("apiVersion: v1\nkind: Namespace\nmetadata: {{name: shop, labels: {{istio.io/dataplane-mode: {mode}}}}}\n")
}

pub(crate) fn redirected(pod: &NetNs) -> bool {
    !ruleset(pod).is_empty()
}

pub(crate) fn migrate(pod: &NetNs) -> String {
    sh(pod, "cat /proc/sys/net/ipv4/tcp_migrate_req").trim().to_owned()
}

#[test]
fn a_running_pod_gets_in_survives_the_agent_and_gets_out() {
    let mut node = Node::new();
    let web = node.pod("uid-web");
    node.apply(&labelled("none"));
    node.apply(&manifest("web", "uid-web", "198.18.16.2", ""));
    node.apply(&manifest("sidecar", "uid-sidecar", "198.18.16.3", ", {name: linkerd-proxy, image: none}"));
    node.start();
    let questions = node.proxy();
    assert_eq!(questions.recv_timeout(DEADLINE).unwrap(), [0x1a, 0x00], "an empty snapshot");

    // In, within a second of the label.
    node.apply(&labelled("ambient"));
    let took = node.until_marked("web", Some("enabled"));
    assert!(took < Duration::from_secs(5), "{took:?} (bound 1 s)");
    assert!(redirected(&web));
    assert_eq!(migrate(&web), "1");
    assert!(sh(&node.host, "nft list ruleset").contains("198.18.16.2"));
    assert_eq!(questions.recv_timeout(DEADLINE).unwrap()[0], 0x0a, "an Add");
    node.until("the sidecar's reason", || {
        node.annotation("sidecar", NOT_ENROLLED_REASON).is_some_and(|reason| reason.contains("linkerd-proxy"))
    });
    for line in ["ztunnel_connected 1", "nodeagent_enrolled_pods 1", "nodeagent_reconcile_events_total{type="] {
        node.until(line, || node.get("127.0.0.1:15014", "/metrics").contains(line));
    }

    // Rules stay.
    sh(&web, "nft flush ruleset");
    node.until("repaired", || redirected(&web));
    node.until("counted", || node.get("127.0.0.1:15014", "/metrics").contains("nodeagent_rules_repaired_total 1"));

    // The agent dies and comes back; nothing changes for the pod.
    let before = ruleset(&web);
    node.end(Signal::SIGKILL);
    assert_eq!(ruleset(&web), before);
    node.start();
    let questions = node.proxy();
    assert_eq!(questions.recv_timeout(DEADLINE).unwrap()[0], 0x0a, "the pod is in the snapshot");
    assert_eq!(questions.recv_timeout(DEADLINE).unwrap(), [0x1a, 0x00]);
    assert_eq!(node.annotation("web", REDIRECTION).as_deref(), Some("enabled"));
    assert_eq!(ruleset(&web), before);
    node.until("probes", || sh(&node.host, "nft list ruleset").contains("198.18.16.2"));

    // Out, even though the label goes while no agent runs.
    node.end(Signal::SIGTERM);
    node.apply(&labelled("none"));
    assert!(redirected(&web));
    node.start();
    let _questions = node.proxy();
    node.until_marked("web", None);
    node.until("the rules are gone", || !redirected(&web));
    assert_eq!(
        sh(&web, "nft list ruleset; ip rule | grep 0x111; ip route show table all | grep 'table 100'; true"),
        ""
    );
    node.until("the own value is back", || migrate(&web) == "0");
    node.until("no probes", || !sh(&node.host, "nft list ruleset").contains("198.18.16.2"));
    node.until("forgotten", || std::fs::read_dir(node.path("enrolled")).unwrap().count() == 0);
    node.until("no reason any more", || node.annotation("sidecar", NOT_ENROLLED_REASON).is_none());
}

#[test]
fn the_plugin_holds_a_pod_until_it_is_in() {
    let mut node = Node::new();
    node.apply(&labelled("ambient"));
    node.start();
    let _questions = node.proxy();
    let pod = fresh();
    let netns = format!("/proc/{}/fd/{}", std::process::id(), pod.as_fd().as_raw_fd());
    let body = format!(r#"{{"Netns":"{netns}","PodName":"web","PodNamespace":"shop","IPs":["198.18.16.2"]}}"#);
    node.apply(
        "apiVersion: v1\nkind: Pod\nmetadata: {name: web, namespace: shop, uid: uid-web}\n\
         spec: {nodeName: node1, containers: [{name: app, image: none}]}\n",
    );
    let answer = node.cmdadd(&body);
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert!(redirected(&pod));
    node.until_marked("web", Some("enabled"));

    // Gone: its address is no longer a probed pod's.
    Writer::new(node.path("manifests"), "user")
        .delete(&aquifer_objects::ObjectKey::new(Kind::Pod, "shop", "web"))
        .unwrap();
    node.until("no probes", || !sh(&node.host, "nft list ruleset").contains("198.18.16.2"));

    let refused = node.cmdadd(r#"{"Netns": 5}"#);
    assert!(refused.starts_with("HTTP/1.1 400"), "{refused}");
}

#[test]
fn a_missing_privilege_is_one_line_that_says_what_to_do() {
    let node = Node::new();
    let mut command = Command::new(env!("CARGO_BIN_EXE_istio-cni-node"));
    command.env_clear().env("NODE_NAME", "node1").env("AQUIFER_MANIFESTS", node.path("manifests")).uid(65534);
    let output = command.output().unwrap();
    let line = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success());
    assert_eq!(line.lines().count(), 1, "{line}");
    assert!(line.contains("CAP_NET_ADMIN") && line.contains("run as root, or add NET_ADMIN"), "{line}");
}
