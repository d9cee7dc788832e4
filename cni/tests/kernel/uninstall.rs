//! A node that the agent leaves for good.

use crate::lay::ruleset;
use crate::namespace::sh;
use crate::node::{Node, labelled, manifest, migrate, redirected};
use aquifer_cni::agent::decision::{NOT_ENROLLED_REASON, REDIRECTION};
use aquifer_cni::redirection;
use nix::sys::signal::Signal;

#[test]
fn nothing_of_ours_stays_and_all_of_others() {
    let mut node = Node::new();
    let (web, db, stray) = (node.pod("uid-web"), node.pod("uid-db"), node.pod("uid-stray"));
    sh(&web, "nft add table inet theirs; ip rule add fwmark 5 lookup 200");
    sh(&node.host, "nft add table inet theirs");
    node.apply(&labelled("ambient"));
    node.apply(&manifest("web", "uid-web", "198.18.16.2", ""));
    node.apply(&manifest("db", "uid-db", "198.18.16.3", ""));
    node.apply(&manifest("sidecar", "uid-sidecar", "198.18.16.4", ", {name: istio-proxy, image: none}"));
    node.start();
    let _questions = node.proxy();
    node.until_marked("web", Some("enabled"));
    node.until_marked("db", Some("enabled"));
    node.until("the reason", || node.annotation("sidecar", NOT_ENROLLED_REASON).is_some());
    assert_eq!(migrate(&web), "1");

    let refused = node.uninstall();
    let line = String::from_utf8(refused.stderr).unwrap();
    assert!(!refused.status.success() && line.contains("an agent still answers at"), "{line}");
    assert!(redirected(&web) && node.annotation("web", REDIRECTION).is_some(), "nothing was touched");

    node.end(Signal::SIGTERM);
    // Rules that the agent's memory does not know, and a pod that is remembered and gone.
    stray.run(|| redirection::lay(&crate::lay::plain())).unwrap().unwrap();
    std::fs::remove_file(node.path("netns").join("uid-db")).unwrap();
    drop(db);
    // Twice: the second finds nothing to do.
    for _ in 0..2 {
        let done = node.uninstall();
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        for pod in ["web", "db", "sidecar"] {
            assert_eq!(node.annotation(pod, REDIRECTION), None);
            assert_eq!(node.annotation(pod, NOT_ENROLLED_REASON), None);
        }
        for namespace in [&web, &node.host] {
            assert_eq!(sh(namespace, "nft list ruleset").trim(), "table inet theirs {\n}");
        }
        assert!(ruleset(&stray).is_empty());
        assert_eq!(sh(&web, "ip rule | grep 0x111; ip route show table all | grep 'table 100'; true"), "");
        assert!(sh(&web, "ip rule").contains("fwmark 0x5 lookup 200"));
        assert_eq!(migrate(&web), "0");
        for file in ["enrolled", "ztunnel.sock", "pluginevent.sock"] {
            assert!(!node.path(file).exists(), "{file}");
        }
    }

    // The node can be taken into the mesh again.
    node.start();
    let _questions = node.proxy();
    node.until_marked("web", Some("enabled"));
    assert!(redirected(&web));
}

#[test]
fn an_unknown_argument_is_refused() {
    let output = Node::new().command(&["--unistall"]).output().unwrap();
    let line = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success() && line.contains("--uninstall"), "{line}");
}
