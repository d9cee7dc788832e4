//! A pod's redirection as a whole, laid, looked after and taken away in the calling thread's network namespace.
//!
//! ```text
//!   lay      policy rules, routes (without effect so far) → tables, in one transaction
//!   release  redirects only: what comes from now on goes past the proxy
//!   remove   tables, in one transaction → routes, policy rules
//! ```
//!
//! What is redirected already hangs on the tables: with the last NAT chain of a namespace the kernel stops translating
//! open connections too, and neither end hears of it. So the proxy ends them between `release` and `remove`.
//!
//! All may be repeated at any time: laying over what is there leaves no gap, removing what is gone is fine.

use crate::netlink::nft;
use crate::netlink::route::{Ip, LocalDefault};
use crate::netlink::socket::{Family, NetlinkError, Socket};
use crate::rules::pod::{NAT, PodRules, RETURN_RULE, RETURN_TABLE, TABLES};
use crate::rules::{Table, encode, fingerprint, pod};
use std::path::Path;

/// Lays the rules, or puts them right.
pub fn lay(rules: &PodRules) -> Result<(), NetlinkError> {
    let tables = rules.tables();
    let absent: Vec<&str> = TABLES.into_iter().filter(|name| tables.iter().all(|table| table.name != *name)).collect();
    lay_return_path().and_then(|()| encode::replace(&tables, &absent).commit_here()).inspect_err(|_| {
        // Half a redirection is none. What stood before this call, if anything, stands still: the transaction
        // changed nothing, and its return path must stay.
        if standing_tables().is_ok_and(|tables| tables.is_empty()) {
            let _ = remove_return_path();
        }
    })
}

/// What of the rules is not there, by name; empty when all is well.
pub fn missing(rules: &PodRules) -> Result<Vec<String>, NetlinkError> {
    let mut missing = missing_tables(&rules.tables())?;
    let socket = Socket::open(Family::Route)?;
    let route = return_route();
    for ip in families() {
        if !RETURN_RULE.present(&socket, ip)? {
            missing.push(format!("policy rule ({ip:?})"));
        }
        if routed(ip) && !route.present(&socket, ip)? {
            missing.push(format!("route table {RETURN_TABLE} ({ip:?})"));
        }
    }
    Ok(missing)
}

/// Has nothing new redirected. What is redirected already stays so, until [`remove`].
pub fn release() -> Result<(), NetlinkError> {
    let standing = standing_tables()?.into_iter().find(|table| *table == NAT);
    standing.map_or(Ok(()), |_| encode::replace(&[pod::without_redirects()], &[]).commit_here())
}

/// Takes away all that [`lay`] ever lays.
pub fn remove() -> Result<(), NetlinkError> {
    let mut batch = nft::Batch::new();
    for table in TABLES {
        batch.delete_table(table);
    }
    batch.commit_here()?;
    remove_return_path()
}

/// Which of these tables are not as they should be.
pub fn missing_tables(tables: &[Table]) -> Result<Vec<String>, NetlinkError> {
    let socket = Socket::open(Family::Netfilter)?;
    let mut missing = Vec::new();
    for table in tables {
        // Chain by chain: the kernel lists chains in the order of creation, which is ours.
        if nft::rules(&socket, table.name)? != fingerprint(table) {
            missing.push(format!("table inet {}", table.name));
        }
    }
    Ok(missing)
}

fn standing_tables() -> Result<Vec<&'static str>, NetlinkError> {
    let socket = Socket::open(Family::Netfilter)?;
    let mut standing = Vec::new();
    for table in TABLES {
        if !nft::rules(&socket, table)?.is_empty() {
            standing.push(table);
        }
    }
    Ok(standing)
}

fn lay_return_path() -> Result<(), NetlinkError> {
    let route = return_route();
    for ip in families() {
        RETURN_RULE.add(ip)?;
        if routed(ip) {
            route.add(ip)?;
        }
    }
    Ok(())
}

fn remove_return_path() -> Result<(), NetlinkError> {
    let route = return_route();
    for ip in families() {
        route.delete(ip)?;
        RETURN_RULE.delete(ip)?;
    }
    Ok(())
}

fn return_route() -> LocalDefault {
    // lo is the first interface of every namespace; ask anyway, since a restored namespace may differ.
    let loopback = nix::net::if_::if_nametoindex("lo").unwrap_or(1);
    LocalDefault { table: RETURN_TABLE, loopback }
}

/// The families that the kernel was started with.
fn families() -> Vec<Ip> {
    let v6 = Path::new("/proc/sys/net/ipv6").exists();
    if v6 { vec![Ip::V4, Ip::V6] } else { vec![Ip::V4] }
}

/// Whether lo takes addresses of the family: a route to it is refused otherwise.
fn routed(ip: Ip) -> bool {
    let disabled = || std::fs::read_to_string("/proc/sys/net/ipv6/conf/lo/disable_ipv6");
    match ip {
        Ip::V4 => true,
        Ip::V6 => disabled().is_ok_and(|value| value.trim() != "1"),
    }
}
