//! The signals that ask the process to end.

use std::io;

use tokio::signal::unix::{SignalKind, signal};

/// Ends at the first SIGTERM or SIGINT, and names it.
pub async fn wait() -> io::Result<&'static str> {
    Signals::new()?.next().await
}

/// Both signals, caught from the moment of construction: one that comes before `next` is called is not lost.
pub struct Signals {
    terminate: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
}

impl Signals {
    /// Takes over SIGTERM and SIGINT from their default action.
    pub fn new() -> io::Result<Self> {
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    /// Ends at the next of them, and names it.
    pub async fn next(&mut self) -> io::Result<&'static str> {
        let (received, name) = tokio::select! {
            received = self.terminate.recv() => (received, "SIGTERM"),
            received = self.interrupt.recv() => (received, "SIGINT"),
        };
        received.map(|()| name).ok_or_else(|| io::Error::other("the signal driver is gone"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::signal::{Signal, raise};

    #[tokio::test]
    async fn names_the_signal() {
        let mut signals = Signals::new().unwrap();
        raise(Signal::SIGTERM).unwrap();
        assert_eq!(signals.next().await.unwrap(), "SIGTERM");
        raise(Signal::SIGINT).unwrap();
        assert_eq!(signals.next().await.unwrap(), "SIGINT");
    }
}
