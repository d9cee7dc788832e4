//! rtnetlink: the policy rule and the route table that bring replies back into the proxy.
//!
//! ```text
//!   ip rule add fwmark 0x111/0xfff priority 32764 lookup 100
//!   ip route add local default dev lo table 100
//! ```

use super::message::{self, Message};
use super::socket::{ACK, CREATE, DUMP, EXCL, Family, Frame, NetlinkError, REPLACE, REQUEST, Request, Socket};
use nix::errno::Errno;

const RTM_NEWROUTE: u16 = 24;
const RTM_DELROUTE: u16 = 25;
const RTM_GETROUTE: u16 = 26;
const RTM_NEWRULE: u16 = 32;
const RTM_DELRULE: u16 = 33;
const RTM_GETRULE: u16 = 34;

const FRA_PRIORITY: u16 = 6;
const FRA_FWMARK: u16 = 10;
const FRA_TABLE: u16 = 15;
const FRA_FWMASK: u16 = 16;
const FR_ACT_TO_TBL: u8 = 1;

const RTA_OIF: u16 = 4;
const RTA_TABLE: u16 = 15;
/// `ip route` calls this protocol "static": set up by an administrator's program.
const RTPROT_STATIC: u8 = 4;
const RT_SCOPE_HOST: u8 = 254;
const RTN_LOCAL: u8 = 2;

/// `RTNLGRP_LINK`, `_IPV4_ROUTE`, `_IPV4_RULE`, `_IPV6_ROUTE`, `_IPV6_RULE`.
pub const EVENTS: [u32; 5] = [1, 7, 8, 11, 19];

/// Which addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ip {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Ip {
    fn number(self) -> u8 {
        match self {
            Self::V4 => libc::AF_INET as u8,
            Self::V6 => libc::AF_INET6 as u8,
        }
    }

    fn words(self) -> &'static str {
        match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        }
    }
}

/// "Packets with this mark look here."
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PolicyRule {
    /// The mark.
    pub mark: u32,
    /// Which of its bits count.
    pub mask: u32,
    /// Order among the policy rules.
    pub priority: u32,
    /// The route table.
    pub table: u8,
}

impl PolicyRule {
    /// Adds the rule; one that is already there is fine.
    pub fn add(&self, ip: Ip) -> Result<(), NetlinkError> {
        let request = self.request(RTM_NEWRULE, ACK | CREATE | EXCL, ip, "add");
        accept(Errno::EEXIST, send(request))
    }

    /// Removes the rule; one that is not there is fine.
    pub fn delete(&self, ip: Ip) -> Result<(), NetlinkError> {
        let request = self.request(RTM_DELRULE, ACK, ip, "delete");
        accept(Errno::ENOENT, send(request))
    }

    /// Whether the rule is there.
    pub fn present(&self, socket: &Socket, ip: Ip) -> Result<bool, NetlinkError> {
        let mut request = Message::new(RTM_GETRULE, REQUEST | DUMP);
        request.raw(&rule_header(ip, 0, 0));
        let mut present = false;
        socket.dump("list policy rules", &request, |part| {
            let attributes = part.payload.get(12..).unwrap_or_default();
            let value = |kind| message::attribute(attributes, kind).and_then(|value| message::u32_at(value, 0));
            present |= part.kind == RTM_NEWRULE
                && part.payload.first() == Some(&ip.number())
                && value(FRA_PRIORITY) == Some(self.priority)
                && value(FRA_FWMARK) == Some(self.mark)
                && value(FRA_FWMASK) == Some(self.mask)
                && value(FRA_TABLE) == Some(u32::from(self.table));
        })?;
        Ok(present)
    }

    fn request(&self, kind: u16, flags: u16, ip: Ip, verb: &str) -> Request {
        let mut message = Message::new(kind, REQUEST | flags);
        message
            .raw(&rule_header(ip, self.table, FR_ACT_TO_TBL))
            .ne32(FRA_PRIORITY, self.priority)
            .ne32(FRA_FWMARK, self.mark)
            .ne32(FRA_FWMASK, self.mask)
            .ne32(FRA_TABLE, u32::from(self.table));
        Request { message, what: format!("{verb} the {} policy rule for mark {:#x}", ip.words(), self.mark) }
    }
}

/// `local default dev lo` in a table of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LocalDefault {
    /// The route table.
    pub table: u8,
    /// Interface index of lo in the namespace.
    pub loopback: u32,
}

impl LocalDefault {
    /// Adds the route or puts it right.
    pub fn add(&self, ip: Ip) -> Result<(), NetlinkError> {
        send(self.request(RTM_NEWROUTE, ACK | CREATE | REPLACE, ip, "add"))
    }

    /// Removes the route; one that is not there is fine.
    pub fn delete(&self, ip: Ip) -> Result<(), NetlinkError> {
        accept(Errno::ESRCH, send(self.request(RTM_DELROUTE, ACK, ip, "delete")))
    }

    /// Whether the route is there.
    pub fn present(&self, socket: &Socket, ip: Ip) -> Result<bool, NetlinkError> {
        let mut request = Message::new(RTM_GETROUTE, REQUEST | DUMP);
        request.raw(&[ip.number(), 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        let mut present = false;
        socket.dump("list routes", &request, |part| {
            let Some(header) = part.payload.get(..12) else { return };
            let value =
                |kind| message::attribute(&part.payload[12..], kind).and_then(|value| message::u32_at(value, 0));
            present |= part.kind == RTM_NEWROUTE
                && header[0] == ip.number()
                && header[1] == 0
                && header[7] == RTN_LOCAL
                && value(RTA_TABLE) == Some(u32::from(self.table))
                && value(RTA_OIF) == Some(self.loopback);
        })?;
        Ok(present)
    }

    fn request(&self, kind: u16, flags: u16, ip: Ip, verb: &str) -> Request {
        let mut message = Message::new(kind, REQUEST | flags);
        // struct rtmsg: family, dst_len, src_len, tos, table, protocol, scope, type, flags.
        let header = [ip.number(), 0, 0, 0, self.table, RTPROT_STATIC, RT_SCOPE_HOST, RTN_LOCAL, 0, 0, 0, 0];
        message.raw(&header).ne32(RTA_OIF, self.loopback);
        Request { message, what: format!("{verb} the {} local route in table {}", ip.words(), self.table) }
    }
}

/// struct fib_rule_hdr: family, dst_len, src_len, tos, table, res1, res2, action, flags.
fn rule_header(ip: Ip, table: u8, action: u8) -> [u8; 12] {
    [ip.number(), 0, 0, 0, table, 0, 0, action, 0, 0, 0, 0]
}

fn send(request: Request) -> Result<(), NetlinkError> {
    Socket::open(Family::Route)?.transact(vec![request], Frame::default())
}

fn accept(fine: Errno, result: Result<(), NetlinkError>) -> Result<(), NetlinkError> {
    match result {
        Err(error) if error.errno() == fine => Ok(()),
        other => other,
    }
}
