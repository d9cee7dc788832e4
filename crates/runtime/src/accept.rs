//! Accepting connections, with each kind of error met as it deserves.

use std::future::Future;
use std::io;
use std::time::Duration;

use futures_util::FutureExt;
use nix::libc;

use crate::Cancel;

/// What an error of `accept` says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AcceptError {
    /// Of one connection that is already gone: the next one may be fine.
    Connection,
    /// Of the machine, which lacks descriptors or memory: waiting may help, trying at once does not.
    Exhausted,
    /// Of the listener itself: no connection will ever come.
    Dead,
}

impl AcceptError {
    /// Classifies an error of `accept(2)`.
    pub fn of(error: &io::Error) -> Self {
        match error.raw_os_error() {
            Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM) => Self::Exhausted,
            Some(libc::EBADF | libc::EINVAL | libc::ENOTSOCK | libc::EOPNOTSUPP | libc::EFAULT) => Self::Dead,
            // accept(2): Linux passes pending network errors of the new socket on, to be retried.
            _ => Self::Connection,
        }
    }
}

const EXHAUSTED_PAUSE: Duration = Duration::from_millis(100);

/// Hands each connection that `accept` brings to `serve`, until the drain or the death of the listener.
///
/// At the drain it takes what already waits in the listener's queue, since those callers were told that they
/// are connected. `Ok` is the drain; an error is the listener's death.
///
/// `accept` is a function and not a listener, so that callers choose what comes out of it
/// (`|| listener.accept()`), and tests choose the errors.
pub async fn accept_loop<A, F, C, S>(name: &'static str, mut accept: A, mut serve: S, cancel: &Cancel) -> io::Result<()>
where
    A: FnMut() -> F,
    F: Future<Output = io::Result<C>>,
    S: FnMut(C),
{
    loop {
        let accepted = tokio::select! {
            biased; // The drain first: under steady load the accept arm is always ready.
            () = cancel.drained() => return drain_queue(&mut accept, &mut serve, cancel).await,
            accepted = accept() => accepted,
        };
        let error = match accepted {
            Ok(connection) => {
                serve(connection);
                continue;
            }
            Err(error) => error,
        };
        match AcceptError::of(&error) {
            AcceptError::Connection => tracing::debug!(listener = name, %error, "accept failed"),
            AcceptError::Exhausted => {
                tracing::warn!(listener = name, %error, "accept must wait");
                tokio::select! {
                    biased;
                    () = cancel.drained() => {}
                    () = tokio::time::sleep(EXHAUSTED_PAUSE) => {}
                }
            }
            AcceptError::Dead => return Err(error),
        }
    }
}

async fn drain_queue<A, F, C, S>(accept: &mut A, serve: &mut S, cancel: &Cancel) -> io::Result<()>
where
    A: FnMut() -> F,
    F: Future<Output = io::Result<C>>,
    S: FnMut(C),
{
    // Two rounds: after the yield the runtime has asked the kernel for readiness that it did not know yet.
    for _ in 0..2 {
        while !cancel.is_forced() {
            // Outside of tokio's cooperative budget, whose end would look like an empty queue.
            match tokio::task::coop::unconstrained(accept()).now_or_never() {
                Some(Ok(connection)) => serve(connection),
                Some(Err(error)) if AcceptError::of(&error) == AcceptError::Connection => {}
                Some(Err(_)) | None => break,
            }
        }
        tokio::task::yield_now().await;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::VecDeque;

    #[test]
    fn classification() {
        let table = [
            (libc::EMFILE, AcceptError::Exhausted),
            (libc::ENFILE, AcceptError::Exhausted),
            (libc::ENOBUFS, AcceptError::Exhausted),
            (libc::ENOMEM, AcceptError::Exhausted),
            (libc::ECONNABORTED, AcceptError::Connection),
            (libc::ECONNRESET, AcceptError::Connection),
            (libc::EPERM, AcceptError::Connection),
            (libc::ENETDOWN, AcceptError::Connection),
            (libc::EPROTO, AcceptError::Connection),
            (libc::EHOSTUNREACH, AcceptError::Connection),
            (libc::ETIMEDOUT, AcceptError::Connection),
            (libc::EINTR, AcceptError::Connection),
            (libc::EBADF, AcceptError::Dead),
            (libc::EINVAL, AcceptError::Dead),
            (libc::ENOTSOCK, AcceptError::Dead),
        ];
        for (errno, expect) in table {
            let error = io::Error::from_raw_os_error(errno);
            assert_eq!(AcceptError::of(&error), expect, "{error}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn goes_on_waits_and_stops() {
        let fail = |errno| Err(io::Error::from_raw_os_error(errno));
        let mut script = VecDeque::from([
            Ok(1),
            fail(libc::ECONNABORTED),
            Ok(2),
            fail(libc::EMFILE),
            Ok(3),
            fail(libc::EBADF),
            Ok(4),
        ]);
        let started = tokio::time::Instant::now();
        let mut served = Vec::new();
        let result = accept_loop(
            "test",
            || std::future::ready(script.pop_front().expect("the loop has stopped")),
            |n| served.push(n),
            &Cancel::new(),
        )
        .await;
        assert_eq!(result.unwrap_err().raw_os_error(), Some(libc::EBADF));
        assert_eq!(served, [1, 2, 3]);
        assert_eq!(started.elapsed(), EXHAUSTED_PAUSE);
    }

    #[tokio::test]
    async fn a_drain_takes_what_waits_in_the_queue() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let clients: Vec<_> = (0..100).map(|_| std::net::TcpStream::connect(address).unwrap()).collect();
        let cancel = Cancel::new();
        cancel.drain();
        let mut served = 0;
        accept_loop("test", || listener.accept(), |_| served += 1, &cancel).await.unwrap();
        assert_eq!(served, clients.len());
    }
}
