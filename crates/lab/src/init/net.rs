//! Interfaces, routes and neighbours, as batches for `ip`. The texts are pure.
//!
//! Everything is routed: a veth a pod, /32 and /128 addresses, the node's own address as the gateway. Neighbours are
//! permanent and IPv6 has no duplicate detection, so that nothing waits and a capture shows the pods' packets only.
//! A bridge would carry replies between pods of one node past the node's DNAT.

use std::fmt::Write;
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use super::reaper::{Place, Reaper, proc_path};
use super::sandbox::Namespaces;
use crate::addresses::Plan;
use crate::error::Result;

/// rp_filter off: packets with spoofed sources (ztunnel keeps the client's address) come in by any interface.
pub(super) const POD_SYSCTLS: [(&str, &str); 3] = [
    ("net.ipv4.conf.all.rp_filter", "0"),
    ("net.ipv4.conf.default.rp_filter", "0"),
    // As container runtimes set it.
    ("net.ipv4.ip_unprivileged_port_start", "0"),
];

pub(super) const ROUTER_SYSCTLS: [(&str, &str); 5] = [
    ("net.ipv4.conf.all.rp_filter", "0"),
    ("net.ipv4.conf.default.rp_filter", "0"),
    ("net.ipv4.ip_forward", "1"),
    ("net.ipv6.conf.all.forwarding", "1"),
    ("net.ipv6.conf.default.forwarding", "1"),
];

pub(super) const NO_IPV6_LOOPBACK: (&str, &str) = ("net.ipv6.conf.lo.disable_ipv6", "1");
pub(super) const NO_IPV6: [(&str, &str); 3] =
    [("net.ipv6.conf.all.disable_ipv6", "1"), ("net.ipv6.conf.default.disable_ipv6", "1"), NO_IPV6_LOOPBACK];

/// The MTU of every interface.
const MTU: u16 = 1500;

/// Connects a node to the wire.
pub(super) fn connect_node(reaper: &Reaper, plan: Plan, node: u8, net: &Arc<OwnedFd>) -> Result<()> {
    ip(reaper, &wire_batch(plan, node, &proc_path(net)), &Place::default())?;
    ip(reaper, &node_batch(plan, node), &Place::of(&Namespaces::net_only(Arc::clone(net))))
}

/// Connects a pod to its node. An address of a family that the pod lacks is not in `ips`.
pub(super) fn connect_pod(reaper: &Reaper, link: &PodLink<'_>, node: &Arc<OwnedFd>, pod: &Arc<OwnedFd>) -> Result<()> {
    ip(reaper, &link.node_batch(&proc_path(pod)), &Place::of(&Namespaces::net_only(Arc::clone(node))))?;
    ip(reaper, &link.pod_batch(), &Place::of(&Namespaces::net_only(Arc::clone(pod))))
}

/// Takes a pod's veth away, both ends, whoever still holds its namespace.
pub(super) fn disconnect_pod(reaper: &Reaper, number: u8, node: &Arc<OwnedFd>) -> Result<()> {
    let batch = format!("link del veth{number}\n");
    ip(reaper, &batch, &Place::of(&Namespaces::net_only(Arc::clone(node))))
}

/// Brings the wire itself up.
pub(super) fn wire_up(reaper: &Reaper, plan: Plan) -> Result<()> {
    let mut batch = "link set lo up\n".to_owned();
    for address in plan.wire() {
        add_address(&mut batch, address, "lo");
    }
    ip(reaper, &batch, &Place::default())
}

fn ip(reaper: &Reaper, batch: &str, place: &Place) -> Result<()> {
    reaper.run("ip", &["-batch", "-"], batch, place).map(drop)
}

/// A pod and its node.
#[derive(Debug)]
pub(super) struct PodLink<'a> {
    pub(super) number: u8,
    pub(super) pod: &'a [IpAddr],
    pub(super) node: &'a [IpAddr],
}

impl PodLink<'_> {
    fn node_batch(&self, pod_netns: &str) -> String {
        let (link, near, far) =
            (format!("veth{}", self.number), mac(Side::Router, self.pod[0]), mac(Side::End, self.pod[0]));
        let mut batch = add_veth(&link, &near, &far, pod_netns);
        for (pod, node) in self.pairs() {
            add_neighbour(&mut batch, pod, &far, &link);
            line(&mut batch, format_args!("route replace {} dev {link} src {node}", prefix(pod)));
        }
        batch
    }

    fn pod_batch(&self) -> String {
        let mut batch = "link set lo up\nlink set eth0 addrgenmode none up\n".to_owned();
        let router = mac(Side::Router, self.pod[0]);
        for (pod, node) in self.pairs() {
            add_address(&mut batch, pod, "eth0");
            add_neighbour(&mut batch, node, &router, "eth0");
            line(&mut batch, format_args!("route add {} dev eth0", prefix(node)));
            line(&mut batch, format_args!("route add {} via {node} dev eth0", everywhere(node)));
        }
        batch
    }

    fn pairs(&self) -> impl Iterator<Item = (IpAddr, IpAddr)> {
        let of_family = |pod: &IpAddr| self.node.iter().copied().find(|node| node.is_ipv4() == pod.is_ipv4());
        self.pod.iter().filter_map(move |pod| Some((*pod, of_family(pod)?)))
    }
}

/// The wire's end of a node's link, made from the wire.
fn wire_batch(plan: Plan, node: u8, node_netns: &str) -> String {
    let (link, ips) = (format!("node{node}"), plan.node(node));
    let (near, far) = (mac(Side::Router, ips[0]), mac(Side::End, ips[0]));
    let mut batch = add_veth(&link, &near, &far, node_netns);
    for (ip, wire) in ips.iter().zip(plan.wire()) {
        add_neighbour(&mut batch, *ip, &far, &link);
        line(&mut batch, format_args!("route add {} dev {link} src {wire}", prefix(*ip)));
    }
    for (range, ip) in plan.pod_ranges(node).iter().zip(ips) {
        line(&mut batch, format_args!("route add {range} via {ip} dev {link}"));
    }
    batch
}

/// The node's end, made from the node.
fn node_batch(plan: Plan, node: u8) -> String {
    let mut batch = "link set lo up\nlink set eth0 addrgenmode none up\n".to_owned();
    let ips = plan.node(node);
    let router = mac(Side::Router, ips[0]);
    for (ip, wire) in ips.iter().zip(plan.wire()) {
        add_address(&mut batch, *ip, "eth0");
        add_neighbour(&mut batch, wire, &router, "eth0");
        line(&mut batch, format_args!("route add {} dev eth0", prefix(wire)));
        line(&mut batch, format_args!("route add {} via {wire} dev eth0 src {ip}", everywhere(wire)));
    }
    // A pod that is not there is told so, instead of its packets going round between node and wire.
    for range in plan.pod_ranges(node) {
        line(&mut batch, format_args!("route add unreachable {range}"));
    }
    batch
}

fn add_veth(link: &str, near: &str, far: &str, far_netns: &str) -> String {
    format!(
        "link add {link} address {near} mtu {MTU} type veth peer name eth0 address {far} mtu {MTU} netns {far_netns}\n\
         link set {link} addrgenmode none up\n"
    )
}

fn add_address(batch: &mut String, ip: IpAddr, link: &str) {
    let nodad = if ip.is_ipv6() { " nodad" } else { "" };
    line(batch, format_args!("addr add {} dev {link}{nodad}", prefix(ip)));
}

fn add_neighbour(batch: &mut String, ip: IpAddr, mac: &str, link: &str) {
    line(batch, format_args!("neigh replace {ip} lladdr {mac} nud permanent dev {link}"));
}

fn line(batch: &mut String, line: std::fmt::Arguments<'_>) {
    writeln!(batch, "{line}").expect("a String takes everything");
}

fn prefix(ip: IpAddr) -> String {
    format!("{ip}/{}", if ip.is_ipv4() { 32 } else { 128 })
}

fn everywhere(like: IpAddr) -> &'static str {
    if like.is_ipv4() { "0.0.0.0/0" } else { "::/0" }
}

#[derive(Clone, Copy)]
enum Side {
    Router,
    End,
}

/// A MAC address that says whose link it is: locally administered, then the IPv4 address.
fn mac(side: Side, ip: IpAddr) -> String {
    let IpAddr::V4(v4) = ip else { unreachable!("the first address of the plan is IPv4") };
    let [a, b, c, d] = v4.octets();
    let side = match side {
        Side::Router => 0x20,
        Side::End => 0x10,
    };
    format!("02:{side:02x}:{a:02x}:{b:02x}:{c:02x}:{d:02x}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pods_link() {
        let plan = Plan::new(true);
        let (pod, node) = (plan.pod(1, 7), plan.node(1));
        let link = PodLink { number: 7, pod: &pod, node: &node };
        assert_eq!(
            link.node_batch("/proc/1/fd/9"),
            "link add veth7 address 02:20:c6:12:11:07 mtu 1500 type veth peer name eth0 address 02:10:c6:12:11:07 mtu 1500 netns /proc/1/fd/9\n\
             link set veth7 addrgenmode none up\n\
             neigh replace 198.18.17.7 lladdr 02:10:c6:12:11:07 nud permanent dev veth7\n\
             route replace 198.18.17.7/32 dev veth7 src 198.18.0.1\n\
             neigh replace fd00:18:0:1::7 lladdr 02:10:c6:12:11:07 nud permanent dev veth7\n\
             route replace fd00:18:0:1::7/128 dev veth7 src fd00:18::1\n"
        );
        assert_eq!(
            link.pod_batch(),
            "link set lo up\n\
             link set eth0 addrgenmode none up\n\
             addr add 198.18.17.7/32 dev eth0\n\
             neigh replace 198.18.0.1 lladdr 02:20:c6:12:11:07 nud permanent dev eth0\n\
             route add 198.18.0.1/32 dev eth0\n\
             route add 0.0.0.0/0 via 198.18.0.1 dev eth0\n\
             addr add fd00:18:0:1::7/128 dev eth0 nodad\n\
             neigh replace fd00:18::1 lladdr 02:20:c6:12:11:07 nud permanent dev eth0\n\
             route add fd00:18::1/128 dev eth0\n\
             route add ::/0 via fd00:18::1 dev eth0\n"
        );
    }

    #[test]
    fn a_pod_without_ipv6_gets_no_line_of_it() {
        let (pod, node) = (Plan::new(false).pod(2, 3), Plan::new(true).node(2));
        let link = PodLink { number: 3, pod: &pod, node: &node };
        assert!(!link.node_batch("x").contains("fd00") && !link.pod_batch().contains("fd00"));
    }

    #[test]
    fn a_nodes_link() {
        let plan = Plan::new(false);
        assert_eq!(
            wire_batch(plan, 2, "/proc/1/fd/5"),
            "link add node2 address 02:20:c6:12:00:02 mtu 1500 type veth peer name eth0 address 02:10:c6:12:00:02 mtu 1500 netns /proc/1/fd/5\n\
             link set node2 addrgenmode none up\n\
             neigh replace 198.18.0.2 lladdr 02:10:c6:12:00:02 nud permanent dev node2\n\
             route add 198.18.0.2/32 dev node2 src 198.18.0.254\n\
             route add 198.18.18.0/24 via 198.18.0.2 dev node2\n"
        );
        assert_eq!(
            node_batch(plan, 2),
            "link set lo up\n\
             link set eth0 addrgenmode none up\n\
             addr add 198.18.0.2/32 dev eth0\n\
             neigh replace 198.18.0.254 lladdr 02:20:c6:12:00:02 nud permanent dev eth0\n\
             route add 198.18.0.254/32 dev eth0\n\
             route add 0.0.0.0/0 via 198.18.0.254 dev eth0 src 198.18.0.2\n\
             route add unreachable 198.18.18.0/24\n"
        );
    }
}
