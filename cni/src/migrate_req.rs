//! `net.ipv4.tcp_migrate_req` of the pod: 1 while it is enrolled.
//!
//! When one proxy takes over from another, connections that wait in the closing listener's queue move to the new
//! listener instead of being reset. The pod's own value comes back when it leaves the mesh.

use std::io;

/// `/proc/sys/net` shows the namespace of the thread that looks.
const PATH: &str = "/proc/sys/net/ipv4/tcp_migrate_req";
const ON: &str = "1";

/// The value in the calling thread's namespace; None on kernels without it (before 5.14).
pub fn current() -> io::Result<Option<String>> {
    match std::fs::read_to_string(PATH) {
        Ok(value) => Ok(Some(value.trim().to_owned())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Turns it on.
pub fn turn_on() -> io::Result<()> {
    match current()? {
        Some(value) if value != ON => std::fs::write(PATH, ON),
        _ => Ok(()),
    }
}

/// Puts the pod's own value back.
pub fn restore(value: &str) -> io::Result<()> {
    match current()? {
        Some(now) if now != value => std::fs::write(PATH, value),
        _ => Ok(()),
    }
}
