//! A client inside a pod's network namespace, without a process of its own: starting one would be measured too.

use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sched::{CloneFlags, setns};

/// How long anything may take before the measurement has failed.
pub(super) const LIMIT: Duration = Duration::from_secs(10);

const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nHost: bench\r\n\r\n";

/// Runs a closure on a thread that has entered a network namespace. Sockets made there stay there.
pub(super) async fn inside<T: Send + 'static>(
    netns: &Path,
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    let file = File::open(netns).with_context(|| format!("opening {}", netns.display()))?;
    let (send, receive) = tokio::sync::oneshot::channel();
    std::thread::spawn(move || {
        let entered = setns(&file, CloneFlags::CLONE_NEWNET).context("entering a network namespace");
        // Nobody listens if the measurement was given up meanwhile.
        let _ = send.send(entered.and_then(|()| work()));
    });
    receive.await.context("the thread in the pod's network namespace ended early")?
}

/// A connection on which a request was answered.
pub(super) fn open(to: SocketAddr) -> Result<TcpStream> {
    try_open(to, LIMIT)?.with_context(|| format!("{to} refused a connection that nothing forbids"))
}

/// The same; nothing if it was refused: not accepted, or closed without an answer. Fails if that isn't known `within`.
pub(super) fn try_open(to: SocketAddr, within: Duration) -> Result<Option<TcpStream>> {
    let mut stream = match TcpStream::connect_timeout(&to, within) {
        Ok(stream) => stream,
        Err(error) if is_refusal(error.kind()) => return Ok(None),
        Err(error) => return Err(error).with_context(|| format!("connecting to {to}")),
    };
    stream.set_read_timeout(Some(within))?;
    match stream.write_all(REQUEST) {
        Ok(()) => {}
        Err(error) if is_refusal(error.kind()) => return Ok(None),
        Err(error) => return Err(error).with_context(|| format!("sending to {to}")),
    }
    let mut answer = Vec::new();
    loop {
        let mut buffer = [0; 4096];
        match stream.read(&mut buffer) {
            Ok(0) => return Ok(None),
            Ok(read) => answer.extend_from_slice(&buffer[..read]),
            Err(error) if is_refusal(error.kind()) => return Ok(None),
            Err(error) => return Err(error).with_context(|| format!("waiting for the answer of {to}")),
        }
        if is_whole(&answer) {
            stream.set_read_timeout(Some(LIMIT))?;
            return Ok(Some(stream));
        }
    }
}

/// Returns when the connection, on which nobody sends, was closed by the other side.
pub(super) fn wait_cut(mut stream: &TcpStream) -> Result<()> {
    match stream.read(&mut [0; 64]) {
        Ok(0) => Ok(()),
        Ok(_) => bail!("the server said more than was asked"),
        Err(error) if is_refusal(error.kind()) => Ok(()),
        Err(error) => Err(error).with_context(|| format!("the open connection was not cut within {LIMIT:?}")),
    }
}

fn is_refusal(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::ConnectionRefused | ErrorKind::ConnectionReset | ErrorKind::BrokenPipe)
}

/// Whether the answer is there with as many bytes as its head says.
fn is_whole(answer: &[u8]) -> bool {
    let text = String::from_utf8_lossy(answer);
    let Some((head, body)) = text.split_once("\r\n\r\n") else { return false };
    let length = head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse::<usize>().ok())?
    });
    length.is_none_or(|length| body.len() >= length)
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    /// A server that does this with each connection.
    fn server(with: impl Fn(TcpStream) + Send + 'static) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        std::thread::spawn(move || listener.incoming().flatten().for_each(with));
        address
    }

    #[test]
    fn an_answer_is_read_whole_and_the_end_of_its_connection_is_seen() {
        let (send, receive) = std::sync::mpsc::channel();
        let address = server(move |mut stream| {
            stream.read_exact(&mut [0; REQUEST.len()]).unwrap();
            for part in ["HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nab", "cd"] {
                stream.write_all(part.as_bytes()).unwrap();
            }
            send.send(stream).unwrap();
        });
        let stream = open(address).unwrap();
        drop(receive.recv().unwrap());
        wait_cut(&stream).unwrap();
    }

    #[test]
    fn connections_that_are_closed_or_not_accepted_are_refused() {
        assert!(try_open(server(drop), LIMIT).unwrap().is_none());
        // Held, so that nobody else gets its port, and not listening.
        let held = tokio::net::TcpSocket::new_v4().unwrap();
        held.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let closed = held.local_addr().unwrap();
        assert!(try_open(closed, LIMIT).unwrap().is_none());
        assert!(open(closed).unwrap_err().to_string().contains("refused"));
    }
}
