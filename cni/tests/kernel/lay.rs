//! What we lay is what nft reads back, and it goes away without a trace.

use crate::namespace::{fresh, sh};
use aquifer_cni::netlink::nft::Batch;
use aquifer_cni::netns::NetNs;
use aquifer_cni::redirection;
use aquifer_cni::rules::host;
use aquifer_cni::rules::pod::{PodRules, ProbeAddresses};
use aquifer_cni::rules::{Table, encode};
use serde_json::Value;
use std::net::IpAddr;

pub(crate) fn plain() -> PodRules {
    PodRules {
        probe_addresses: ProbeAddresses::default(),
        capture_dns: false,
        ingress: false,
        virtual_interfaces: Vec::new(),
    }
}

fn variants() -> Vec<(&'static str, PodRules)> {
    vec![
        ("plain", plain()),
        ("dns", PodRules { capture_dns: true, ..plain() }),
        ("ingress", PodRules { ingress: true, ..plain() }),
        ("virtual-interfaces", PodRules { virtual_interfaces: vec!["vm0".into(), "vm1".into()], ..plain() }),
    ]
}

/// `nft -j list ruleset` without what differs between equal rulesets: handles, and the order of tables.
pub(crate) fn ruleset(namespace: &NetNs) -> Vec<Value> {
    let mut listing: Value = serde_json::from_str(&sh(namespace, "nft -j list ruleset")).unwrap();
    let mut items: Vec<Value> = listing["nftables"].as_array_mut().unwrap().drain(1..).collect();
    for item in &mut items {
        for object in item.as_object_mut().unwrap().values_mut() {
            object.as_object_mut().unwrap().remove("handle");
        }
    }
    items
}

fn text(tables: &[Table]) -> String {
    tables.iter().map(Table::to_string).collect()
}

/// Lets nft itself read the listing, in a namespace of its own.
fn by_nft(listing: &str) -> Vec<Value> {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), listing).unwrap();
    let oracle = fresh();
    sh(&oracle, &format!("nft -f {}", file.path().display()));
    ruleset(&oracle)
}

#[test]
fn a_listing_is_as_recorded() {
    let update = std::env::var_os("UPDATE_GOLDEN").is_some();
    for (name, rules) in variants() {
        let path = format!("{}/tests/golden/{name}.nft", env!("CARGO_MANIFEST_DIR"));
        let listing = text(&rules.tables());
        if update {
            std::fs::write(&path, &listing).unwrap();
        }
        assert_eq!(listing, std::fs::read_to_string(&path).unwrap(), "{name}: UPDATE_GOLDEN=1 rewrites");
    }
}

#[test]
fn the_kernel_holds_what_nft_reads_from_the_listing() {
    for (name, rules) in variants() {
        let pod = fresh();
        pod.run(|| redirection::lay(&rules)).unwrap().unwrap();
        let laid = ruleset(&pod);
        assert!(!laid.is_empty());
        assert_eq!(laid, by_nft(&text(&rules.tables())), "{name}");
        assert_eq!(pod.run(|| redirection::missing(&rules)).unwrap().unwrap(), Vec::<String>::new(), "{name}");
    }
}

#[test]
fn replies_are_routed_to_lo() {
    let pod = fresh();
    pod.run(|| redirection::lay(&plain())).unwrap().unwrap();
    for family in ["-4", "-6"] {
        let rules = sh(&pod, &format!("ip {family} rule"));
        assert!(rules.contains("32764:\tfrom all fwmark 0x111/0xfff lookup 100"), "{rules}");
        let routes = sh(&pod, &format!("ip {family} route show table 100"));
        assert!(routes.starts_with("local default dev lo"), "{routes}");
    }
}

#[test]
fn without_ipv6_on_lo_there_is_no_route_for_it() {
    let pod = fresh();
    sh(&pod, "sysctl -qw net.ipv6.conf.lo.disable_ipv6=1");
    pod.run(|| redirection::lay(&plain())).unwrap().unwrap();
    assert_eq!(sh(&pod, "ip -6 route show table all | grep 'table 100' || true"), "");
    assert!(sh(&pod, "ip -4 route show table 100").starts_with("local default dev lo"));
    assert_eq!(pod.run(|| redirection::missing(&plain())).unwrap().unwrap(), Vec::<String>::new());
}

#[test]
fn laying_again_changes_nothing_and_a_change_of_options_takes_effect() {
    let pod = fresh();
    let with_dns = PodRules { capture_dns: true, ..plain() };
    pod.run(|| redirection::lay(&plain())).unwrap().unwrap();
    let first = ruleset(&pod);
    pod.run(|| redirection::lay(&plain())).unwrap().unwrap();
    assert_eq!(ruleset(&pod), first);
    pod.run(|| redirection::lay(&with_dns)).unwrap().unwrap();
    assert_eq!(ruleset(&pod), by_nft(&text(&with_dns.tables())));
    pod.run(|| redirection::lay(&plain())).unwrap().unwrap();
    assert_eq!(ruleset(&pod), first);
}

#[test]
fn removal_leaves_nothing_of_ours_and_all_of_others() {
    let pod = fresh();
    let rules_before = sh(&pod, "ip rule; ip -6 rule");
    sh(&pod, "nft add table inet theirs; ip rule add fwmark 5 lookup 200");
    pod.run(|| redirection::lay(&PodRules { capture_dns: true, ..plain() })).unwrap().unwrap();
    for _ in 0..2 {
        pod.run(redirection::remove).unwrap().unwrap();
        assert_eq!(sh(&pod, "nft list ruleset").trim(), "table inet theirs {\n}");
    }
    assert!(sh(&pod, "ip rule").contains("fwmark 0x5 lookup 200"));
    sh(&pod, "ip rule del fwmark 5; nft delete table inet theirs");
    assert_eq!(sh(&pod, "ip rule; ip -6 rule"), rules_before);
    assert_eq!(sh(&pod, "ip route show table all | grep 'table 100' || true"), "");
    assert_eq!(sh(&pod, "ip -6 route show table all | grep 'table 100' || true"), "");
    assert_eq!(sh(&pod, "nft list ruleset"), "");
}

#[test]
fn what_is_missing_is_named() {
    let check = |line: &str, expected: &[&str]| {
        let pod = fresh();
        pod.run(|| redirection::lay(&plain())).unwrap().unwrap();
        sh(&pod, line);
        assert_eq!(pod.run(|| redirection::missing(&plain())).unwrap().unwrap(), expected, "{line}");
        pod.run(|| redirection::lay(&plain())).unwrap().unwrap();
        assert_eq!(pod.run(|| redirection::missing(&plain())).unwrap().unwrap(), Vec::<String>::new());
    };
    check("nft flush ruleset", &["table inet istio-ambient-nat", "table inet istio-ambient-mangle"]);
    check("nft flush chain inet istio-ambient-nat istio-output", &["table inet istio-ambient-nat"]);
    check("nft delete table inet istio-ambient-mangle", &["table inet istio-ambient-mangle"]);
    check("nft insert rule inet istio-ambient-nat istio-output accept", &["table inet istio-ambient-nat"]);
    check("ip rule del priority 32764", &["policy rule (V4)"]);
    check("ip -6 rule del priority 32764", &["policy rule (V6)"]);
    check("ip route flush table 100", &["route table 100 (V4)"]);
    check("ip -6 route flush table 100", &["route table 100 (V6)"]);
}

#[test]
fn a_batch_is_all_or_nothing_and_the_error_names_the_part() {
    let pod = fresh();
    let error = pod
        .run(|| {
            let mut batch = Batch::new();
            batch.add_table("ours").add_chain("ours", "a", None).add_rule("ours", "nowhere", &[], "x");
            batch.commit_here()
        })
        .unwrap()
        .unwrap_err();
    assert!(error.to_string().starts_with("add rule \"x\" to inet ours nowhere: No such file"), "{error}");
    assert_eq!(sh(&pod, "nft list ruleset"), "");
}

#[test]
fn the_host_table_and_its_sets() {
    let node = fresh();
    let ips: Vec<IpAddr> = vec!["198.18.16.2".parse().unwrap(), "fd00:18:0:1::2".parse().unwrap()];
    let table = host::table(ProbeAddresses::default(), 0, &ips);
    node.run(|| encode::replace(std::slice::from_ref(&table), &[]).commit_here()).unwrap().unwrap();
    assert_eq!(ruleset(&node), by_nft(&table.to_string()));

    let more: IpAddr = "198.18.16.3".parse().unwrap();
    node.run(|| {
        let mut batch = Batch::new();
        batch.add_elements(host::TABLE, host::PROBES_V4, &[more, ips[0]]);
        batch.commit_here()?;
        let mut batch = Batch::new();
        batch.delete_elements(host::TABLE, host::PROBES_V4, &ips[..1]);
        batch.commit_here()
    })
    .unwrap()
    .unwrap();
    assert!(sh(&node, "nft list set inet istio-ambient-nat istio-inpod-probes-v4").contains("{ 198.18.16.3 }"));
}
