//! A pod's trouble stays its own: it is tried again and told of, and the others get in meanwhile.

use crate::namespace::{fresh, sh};
use crate::node::{DEADLINE, Node, labelled, manifest, redirected};
use aquifer_cni::agent::decision::REDIRECTION;
use aquifer_cni::netns::NetNs;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

#[test]
fn pods_in_trouble_are_told_of_and_tried_again_and_the_others_get_in() {
    let mut node = Node::new();
    // Pods that lack something and get in all the same.
    let well = [
        ("web", node.pod("uid-web")),
        ("no-ipv6", node.pod("uid-no-ipv6")),
        ("no-ipv6-lo", node.pod("uid-no-ipv6-lo")),
        ("no-loopback6", node.pod("uid-no-loopback6")),
        ("no-lo", node.pod("uid-no-lo")),
        ("strict", node.pod("uid-strict")),
    ];
    sh(&well[1].1, "sysctl -qw net.ipv6.conf.all.disable_ipv6=1");
    sh(&well[2].1, "sysctl -qw net.ipv6.conf.lo.disable_ipv6=1");
    sh(&well[3].1, "ip -6 addr del ::1/128 dev lo");
    sh(&well[5].1, "sysctl -qw net.ipv4.conf.all.rp_filter=1 net.ipv4.ip_forward=0 net.ipv4.conf.all.accept_local=0");
    // Pods that cannot get in: the namespace vanished, is not one, is of another kind, or never came.
    std::fs::write(node.path("netns").join("uid-vanished"), "").unwrap();
    std::os::unix::fs::symlink("/proc/self/ns/mnt", node.path("netns").join("uid-wrong")).unwrap();
    let sick = ["vanished", "wrong", "late"];

    node.apply(&labelled("ambient"));
    let names = sick.into_iter().chain(well.iter().map(|(name, _)| *name));
    for (number, name) in names.enumerate() {
        node.apply(&manifest(name, &format!("uid-{name}"), &format!("198.18.16.{}", number + 2), ""));
    }
    node.apply(
        "apiVersion: v1\nkind: Pod\nmetadata:\n  name: talks\n  namespace: shop\n  uid: uid-talks\n  annotations:\n    \
         ambient.istio.io/dns-capture: perhaps\nspec: {nodeName: node1, containers: [{name: app, image: none}]}\n\
         status: {phase: Running, podIP: 198.18.16.99}\n",
    );
    let talks = node.pod("uid-talks");
    node.start();
    let _questions = node.proxy();
    for (name, pod) in &well {
        node.until_marked(name, Some("enabled"));
        assert!(redirected(pod), "{name}");
    }
    // An annotation that means nothing is told of, and the pod gets in.
    node.until_marked("talks", Some("enabled"));
    assert!(redirected(&talks));
    let log = || std::fs::read_to_string(node.path("log")).unwrap();
    node.until("the warning", || log().contains("annotation ignored"));
    let warning = log().lines().find(|line| line.contains("annotation ignored")).unwrap().to_owned();
    for part in ["shop/talks", "ambient.istio.io/dns-capture", "perhaps"] {
        assert!(warning.contains(part), "{part} in {warning}");
    }

    for name in sick {
        node.until_marked(name, Some("pending"));
        node.until(name, || {
            log().lines().any(|l| l.contains("not enrolled yet") && l.contains(&format!("shop/{name}")))
        });
    }
    let counts = |text: &str| node.get("127.0.0.1:15014", "/metrics").contains(text);
    node.until("seven are in", || counts("nodeagent_enrolled_pods 7"));
    for step in ["rules", "netns"] {
        node.until(step, || counts(&format!("nodeagent_step_failures_total{{step=\"{step}\"}}")));
    }
    assert!(node.get("127.0.0.1:8000", "/healthz/ready").starts_with("HTTP/1.1 200"), "the agent is well");

    // What was in the way is gone: they get in without anybody's help.
    for name in sick {
        let path = node.path("netns").join(format!("uid-{name}"));
        let _ = std::fs::remove_file(&path);
        let pod = node.pod(&format!("uid-{name}"));
        node.until_marked(name, Some("enabled"));
        assert!(redirected(&pod), "{name}");
    }
}

/// An agent whose privileges end at its own user namespace, and pods on either side of that border.
#[test]
fn a_pod_that_the_agent_may_not_enter_is_told_of_and_the_others_get_in() {
    let border = Held::new(&["unshare", "--user", "--map-root-user", "--net"]);
    let enter = ["nsenter", "--preserve-credentials", "--user", "--target", &border.0.id().to_string()];
    let enter: Vec<String> = enter.iter().map(|part| (*part).to_owned()).collect();
    let parts: Vec<&str> = enter.iter().map(String::as_str).chain(["unshare", "--net"]).collect();
    let inside = Held::new(&parts);
    let (within, beyond) = (inside.netns(), fresh());
    sh(&within, "ip link set lo up");

    let mut node = Node::on(border.netns());
    sh(&node.host, "ip link set lo up");
    for (uid, pod) in [("uid-within", &within), ("uid-beyond", &beyond)] {
        // The agent inherits the handle: a way in that needs no right to look into our /proc.
        fcntl(pod, FcntlArg::F_SETFD(FdFlag::empty())).unwrap();
        let handle = format!("/proc/self/fd/{}", pod.as_fd().as_raw_fd());
        std::os::unix::fs::symlink(handle, node.path("netns").join(uid)).unwrap();
    }
    node.apply(&labelled("ambient"));
    node.apply(&manifest("beyond", "uid-beyond", "198.18.16.3", ""));
    node.apply(&manifest("within", "uid-within", "198.18.16.2", ""));
    node.start_by(&enter);
    let _questions = node.proxy();
    node.until_marked("within", Some("enabled"));
    assert!(redirected(&within));
    node.until_marked("beyond", Some("pending"));
    assert!(!redirected(&beyond));
    node.until("the log says why", || {
        let log = std::fs::read_to_string(node.path("log")).unwrap();
        log.lines().any(|line| line.contains("shop/beyond") && line.contains("not permitted"))
    });
    assert!(node.get("127.0.0.1:8000", "/healthz/ready").starts_with("HTTP/1.1 200"));
    assert_eq!(node.annotation("within", REDIRECTION).as_deref(), Some("enabled"));
}

/// A process that does nothing but hold its namespaces open.
struct Held(Child);

impl Held {
    fn new(wrapper: &[&str]) -> Self {
        let mut command = Command::new(wrapper[0]);
        command.args(&wrapper[1..]).args(["sleep", "infinity"]).stdout(Stdio::null());
        let held = Self(command.spawn().unwrap());
        // The namespaces are there when the wrapper has become `sleep`.
        let start = Instant::now();
        while std::fs::read_to_string(format!("/proc/{}/comm", held.0.id())).unwrap().trim() != "sleep" {
            assert!(start.elapsed() < DEADLINE, "{wrapper:?}");
            std::thread::sleep(Duration::from_millis(2));
        }
        held
    }

    fn netns(&self) -> NetNs {
        let path = format!("/proc/{}/ns/net", self.0.id());
        assert!(File::open(&path).is_ok());
        NetNs::open(Path::new(&path)).unwrap()
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
