//! A pod's /etc/hosts, resolv.conf and gai.conf. Pure.

use std::fmt::Write;
use std::net::IpAddr;

use crate::addresses::DNS;

/// A Service's name and the addresses that stand for it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct HostEntry {
    pub(super) namespace: String,
    pub(super) service: String,
    pub(super) addresses: Vec<IpAddr>,
}

/// Getaddrinfo's preference: IPv4 first, so that plain names behave alike on machines with and without IPv6.
pub(super) const GAI_CONF: &str = "precedence ::ffff:0:0/96 100\n";

/// What of the Services stands in a hosts file. With DNS that is nothing, but in the mesh's own pods, which must not wait
/// for the resolver.
pub(super) fn listed(services: &[HostEntry], dns: bool, component: bool) -> &[HostEntry] {
    if dns && !component { &[] } else { services }
}

/// The hosts file of a pod in `namespace`.
pub(super) fn render(hostname: &str, ips: &[IpAddr], namespace: &str, services: &[HostEntry]) -> String {
    let mut text = "127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n".to_owned();
    let mut line = |ip: &IpAddr, names: std::fmt::Arguments<'_>| {
        writeln!(text, "{ip} {names}").expect("a String takes everything");
    };
    for ip in ips {
        line(ip, format_args!("{hostname}"));
    }
    for HostEntry { namespace: of, service, addresses } in services {
        let short = if of == namespace { format!("{service} ") } else { String::new() };
        for ip in addresses {
            line(ip, format_args!("{short}{service}.{of} {service}.{of}.svc {service}.{of}.svc.cluster.local"));
        }
    }
    text
}

/// The resolv.conf of a pod in `namespace`, as a kubelet writes it. A lost query costs a second, not five.
pub(super) fn resolv_conf(namespace: &str, dns: bool) -> String {
    let attempts = if dns { 4 } else { 1 };
    format!(
        "nameserver {DNS}\nsearch {namespace}.svc.cluster.local svc.cluster.local cluster.local\noptions ndots:5 timeout:1 attempts:{attempts}\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_names_are_for_the_own_namespace() {
        let entry = |namespace: &str, service: &str, ips: &[&str]| HostEntry {
            namespace: namespace.into(),
            service: service.into(),
            addresses: ips.iter().map(|ip| ip.parse().unwrap()).collect(),
        };
        let services =
            [entry("outside", "web", &["198.19.0.17"]), entry("shop", "web", &["198.19.0.16", "fd00:19::10"])];
        assert_eq!(
            render("web-1", &["198.18.17.2".parse().unwrap()], "shop", &services),
            "127.0.0.1 localhost\n\
             ::1 localhost ip6-localhost ip6-loopback\n\
             198.18.17.2 web-1\n\
             198.19.0.17 web.outside web.outside.svc web.outside.svc.cluster.local\n\
             198.19.0.16 web web.shop web.shop.svc web.shop.svc.cluster.local\n\
             fd00:19::10 web web.shop web.shop.svc web.shop.svc.cluster.local\n"
        );
    }
}
