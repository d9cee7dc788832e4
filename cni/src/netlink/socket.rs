//! A netlink socket: transactions and requests that wait for their acks, dumps, and event subscriptions.

use super::message::{self, Message, Received};
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, sendto, setsockopt, socket,
    sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};
use std::os::fd::{AsRawFd, OwnedFd};

/// `NLM_F_REQUEST`.
pub const REQUEST: u16 = 0x1;
/// `NLM_F_ACK`.
pub const ACK: u16 = 0x4;
/// `NLM_F_DUMP`.
pub const DUMP: u16 = 0x300;
/// `NLM_F_REPLACE`.
pub const REPLACE: u16 = 0x100;
/// `NLM_F_EXCL`.
pub const EXCL: u16 = 0x200;
/// `NLM_F_CREATE`.
pub const CREATE: u16 = 0x400;
/// `NLM_F_APPEND`.
pub const APPEND: u16 = 0x800;

const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLM_F_DUMP_INTR: u16 = 0x10;
const NLM_F_CAPPED: u16 = 0x100;
const NLM_F_ACK_TLVS: u16 = 0x200;
const NLMSGERR_ATTR_MSG: u16 = 1;

/// The kernel answers within microseconds, a loaded nf_tables commit within tens of milliseconds.
const ANSWER_SECONDS: i64 = 5;
/// A dump is retried when the kernel says that it changed meanwhile.
const DUMP_ATTEMPTS: usize = 8;

/// Which netlink family a socket speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// NETLINK_ROUTE.
    Route,
    /// NETLINK_NETFILTER.
    Netfilter,
}

/// What went wrong, as one sentence.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NetlinkError {
    /// The kernel wants a capability that this process lacks.
    #[error(
        "{what}: not permitted: CAP_NET_ADMIN over the network namespace is missing; \
         run as root, or give the container NET_ADMIN and SYS_ADMIN (securityContext.capabilities.add)"
    )]
    MissingPrivilege {
        /// What was attempted.
        what: String,
    },
    /// The kernel refused a message.
    #[error("{what}: {}{}", .errno.desc(), .detail.as_ref().map(|text| format!(" ({text})")).unwrap_or_default())]
    Refused {
        /// What the refused message asked for.
        what: String,
        /// The kernel's error number.
        errno: Errno,
        /// The kernel's own words (extended ack), when it gave any.
        detail: Option<String>,
    },
    /// The socket itself failed.
    #[error("{what}: netlink socket: {}", .errno.desc())]
    Socket {
        /// What was attempted.
        what: String,
        /// The error number.
        errno: Errno,
    },
}

impl NetlinkError {
    /// The kernel's error number.
    pub fn errno(&self) -> Errno {
        match self {
            Self::MissingPrivilege { .. } => Errno::EPERM,
            Self::Refused { errno, .. } | Self::Socket { errno, .. } => *errno,
        }
    }
}

/// A message and the words for it in an error.
#[derive(Debug, Clone)]
pub struct Request {
    /// The message, without its number.
    pub message: Message,
    /// For example: "add rule `inbound` to inet istio-ambient-nat".
    pub what: String,
}

/// A netlink socket, bound in the network namespace of the thread that opened it.
#[derive(Debug)]
pub struct Socket {
    fd: OwnedFd,
}

impl Socket {
    /// A socket for requests, in the calling thread's network namespace.
    pub fn open(family: Family) -> Result<Self, NetlinkError> {
        Self::create(family, 0, SockFlag::empty())
            .map_err(|errno| NetlinkError::Socket { what: "open a netlink socket".into(), errno })
    }

    /// A non-blocking socket that receives the events of these multicast groups.
    pub fn subscribe(family: Family, groups: &[u32]) -> Result<Self, NetlinkError> {
        let mask = groups.iter().fold(0, |mask, group| mask | (1 << (group - 1)));
        Self::create(family, mask, SockFlag::SOCK_NONBLOCK).map_err(|errno| match errno {
            Errno::EPERM => NetlinkError::MissingPrivilege { what: "follow netlink events".into() },
            errno => NetlinkError::Socket { what: "follow netlink events".into(), errno },
        })
    }

    fn create(family: Family, groups: u32, flags: SockFlag) -> Result<Self, Errno> {
        let protocol = match family {
            Family::Route => SockProtocol::NetlinkRoute,
            Family::Netfilter => SockProtocol::NetlinkNetFilter,
        };
        let fd = socket(AddressFamily::Netlink, SockType::Raw, flags | SockFlag::SOCK_CLOEXEC, protocol)?;
        // Ask for the kernel's words and spare us the echo of our own request. Both are conveniences: a kernel
        // without them still answers.
        let _ = set_netlink_option(&fd, libc::NETLINK_EXT_ACK);
        let _ = set_netlink_option(&fd, libc::NETLINK_CAP_ACK);
        setsockopt(&fd, sockopt::ReceiveTimeout, &TimeVal::seconds(ANSWER_SECONDS))?;
        bind(fd.as_raw_fd(), &NetlinkAddr::new(0, groups))?;
        Ok(Self { fd })
    }

    /// Sends all requests as one datagram and waits for an ack of each. The first refusal is the result; the
    /// socket is used up then, since further answers may be under way.
    pub fn transact(self, requests: Vec<Request>, frame: Frame) -> Result<(), NetlinkError> {
        let Some(first) = requests.first() else { return Ok(()) };
        let whole = first.what.clone();
        let mut wire = Vec::new();
        let mut names = Vec::with_capacity(requests.len());
        let mut sequence = 1;
        if let Some(begin) = frame.begin {
            wire.extend(begin.finish(0));
        }
        for request in requests {
            wire.extend(request.message.finish(sequence));
            names.push(request.what);
            sequence += 1;
        }
        if let Some(end) = frame.end {
            wire.extend(end.finish(sequence));
        }
        let broken = |errno| NetlinkError::Socket { what: whole.clone(), errno };
        self.send(&wire).map_err(broken)?;

        let mut missing = names.len();
        let mut buffer = vec![0; 64 * 1024];
        while missing > 0 {
            let length = self.receive(&mut buffer).map_err(broken)?;
            for message in message::messages(&buffer[..length]).filter(|message| message.kind == NLMSG_ERROR) {
                let what =
                    (message.sequence as usize).checked_sub(1).and_then(|index| names.get(index)).unwrap_or(&whole);
                outcome(&message, what)?;
                missing = missing.saturating_sub(1);
            }
        }
        Ok(())
    }

    /// Sends a dump request and hands each part to `part`.
    pub fn dump(&self, what: &str, request: &Message, mut part: impl FnMut(&Received<'_>)) -> Result<(), NetlinkError> {
        for attempt in 1..=DUMP_ATTEMPTS {
            let mut parts: Vec<(u16, Vec<u8>)> = Vec::new();
            let interrupted = self.dump_once(what, request, attempt as u32, &mut parts)?;
            if interrupted && attempt < DUMP_ATTEMPTS {
                continue;
            }
            for (kind, payload) in &parts {
                part(&Received { kind: *kind, flags: 0, sequence: 0, payload });
            }
            break;
        }
        Ok(())
    }

    fn dump_once(
        &self,
        what: &str,
        request: &Message,
        sequence: u32,
        parts: &mut Vec<(u16, Vec<u8>)>,
    ) -> Result<bool, NetlinkError> {
        let broken = |errno| NetlinkError::Socket { what: what.to_owned(), errno };
        self.send(&request.clone().finish(sequence)).map_err(broken)?;
        let mut buffer = vec![0; 64 * 1024];
        let mut interrupted = false;
        loop {
            let length = self.receive(&mut buffer).map_err(broken)?;
            for message in message::messages(&buffer[..length]).filter(|message| message.sequence == sequence) {
                interrupted |= message.flags & NLM_F_DUMP_INTR != 0;
                match message.kind {
                    NLMSG_DONE => return Ok(interrupted),
                    NLMSG_ERROR => {
                        outcome(&message, what)?;
                        return Ok(interrupted);
                    }
                    kind => parts.push((kind, message.payload.to_vec())),
                }
            }
        }
    }

    /// The descriptor alone, for an event loop.
    pub fn into_fd(self) -> OwnedFd {
        self.fd
    }

    fn send(&self, wire: &[u8]) -> Result<(), Errno> {
        sendto(self.fd.as_raw_fd(), wire, &NetlinkAddr::new(0, 0), MsgFlags::empty()).map(drop)
    }

    fn receive(&self, buffer: &mut [u8]) -> Result<usize, Errno> {
        loop {
            match recv(self.fd.as_raw_fd(), buffer, MsgFlags::empty()) {
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => return Err(Errno::ETIMEDOUT),
                other => return other,
            }
        }
    }
}

/// What encloses a transaction: nf_tables' batch messages, or nothing.
#[derive(Debug, Default)]
pub struct Frame {
    /// Sent before the requests.
    pub begin: Option<Message>,
    /// Sent after them.
    pub end: Option<Message>,
}

/// An ack or a refusal, with the kernel's words.
fn outcome(message: &Received<'_>, what: &str) -> Result<(), NetlinkError> {
    let code = message::u32_at(message.payload, 0).unwrap_or_default() as i32;
    if code == 0 {
        return Ok(());
    }
    let what = what.to_owned();
    match Errno::from_raw(-code) {
        Errno::EPERM => Err(NetlinkError::MissingPrivilege { what }),
        errno => Err(NetlinkError::Refused { what, errno, detail: kernel_words(message) }),
    }
}

/// The text of an extended ack, which lies behind the echoed header (and the echoed request, unless capped).
fn kernel_words(message: &Received<'_>) -> Option<String> {
    if message.flags & NLM_F_ACK_TLVS == 0 {
        return None;
    }
    let echoed = if message.flags & NLM_F_CAPPED == 0 {
        (message::u32_at(message.payload, 4)? as usize).next_multiple_of(4)
    } else {
        message::HEADER
    };
    let extended = message.payload.get(4 + echoed..)?;
    message::attribute(extended, NLMSGERR_ATTR_MSG).map(message::text)
}

#[allow(unsafe_code)] // nix has no name for these two options
fn set_netlink_option(fd: &OwnedFd, option: libc::c_int) -> Result<(), Errno> {
    let on: libc::c_int = 1;
    // SAFETY: the descriptor is open and owned; the value is a c_int that outlives the call, and its size is given.
    let result = unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            libc::SOL_NETLINK,
            option,
            (&raw const on).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    Errno::result(result).map(drop)
}
