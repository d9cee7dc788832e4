//! What is served on a plain byte stream.

use std::cell::RefCell;
use std::io::{ErrorKind, Result};
use std::time::Duration;

use tokio::net::TcpStream;

use super::{Kind, Page};
use crate::http1;

/// First bytes of a connection whose client only sends.
pub const SINK: &[u8] = b"SINK\n";
/// First bytes of a connection whose client only receives.
pub const SOURCE: &[u8] = b"SRCE\n";

const BUFFER: usize = 256 * 1024;
/// Until the rest of the first bytes should be there.
const REST: Duration = Duration::from_millis(1);

thread_local! {
    static BUFFER_OF_THREAD: RefCell<Box<[u8]>> = RefCell::new(vec![b'x'; BUFFER].into());
}

/// Finds out what the client wants, without taking its bytes. None when it goes before saying so.
pub(super) async fn sniff(stream: &TcpStream) -> Option<Kind> {
    const KNOWN: [(&[u8], Kind); 4] =
        [(b"GET ", Kind::Http), (b"PRI ", Kind::Grpc), (SINK, Kind::Sink), (SOURCE, Kind::Source)];
    let mut first = [0; 5];
    loop {
        let seen = stream.peek(&mut first).await.ok().filter(|seen| *seen > 0)?;
        let seen = &first[..seen];
        if let Some((_, kind)) = KNOWN.iter().find(|(known, _)| seen.starts_with(known)) {
            return Some(*kind);
        }
        if !KNOWN.iter().any(|(known, _)| known.starts_with(seen)) {
            return Some(Kind::Echo);
        }
        tokio::time::sleep(REST).await;
    }
}

pub(super) async fn echo(stream: &TcpStream) -> Result<()> {
    loop {
        stream.readable().await?;
        let rest = BUFFER_OF_THREAD.with_borrow_mut(|buffer| match stream.try_read(buffer) {
            Ok(0) => Ok(None),
            Ok(read) => try_write(stream, &buffer[..read]).map(Some),
            Err(error) => would_block(error).map(|()| Some(Vec::new())),
        })?;
        match rest {
            None => return Ok(()),
            Some(rest) => write_all(stream, &rest).await?,
        }
    }
}

pub(super) async fn sink(stream: &TcpStream) -> Result<()> {
    let mut taken: u64 = 0;
    loop {
        stream.readable().await?;
        match BUFFER_OF_THREAD.with_borrow_mut(|buffer| stream.try_read(buffer)) {
            Ok(0) => return write_all(stream, &taken.to_be_bytes()).await,
            Ok(read) => taken += read as u64,
            Err(error) => would_block(error)?,
        }
    }
}

pub(super) async fn source(stream: &TcpStream) -> Result<()> {
    loop {
        stream.writable().await?;
        // What of the buffer goes is all the same: the content is not looked at.
        match BUFFER_OF_THREAD.with_borrow(|buffer| stream.try_write(buffer)) {
            Ok(_) => {}
            Err(error) => would_block(error)?,
        }
    }
}

/// Answers every GET with the page. A request with a body is not read: its connection ends.
pub(super) async fn http(stream: &TcpStream, page: &Page) -> Result<()> {
    // Bytes of a head that is not whole.
    let mut begun: Vec<u8> = Vec::new();
    loop {
        stream.readable().await?;
        let answer = BUFFER_OF_THREAD.with_borrow_mut(|buffer| match stream.try_read(buffer) {
            Ok(0) => Ok(Answer { rest: Vec::new(), close: true }),
            Ok(read) if begun.is_empty() => answer(stream, &buffer[..read], &mut begun, page),
            Ok(read) => {
                begun.extend_from_slice(&buffer[..read]);
                let bytes = std::mem::take(&mut begun);
                answer(stream, &bytes, &mut begun, page)
            }
            Err(error) => would_block(error).map(|()| Answer { rest: Vec::new(), close: false }),
        })?;
        write_all(stream, &answer.rest).await?;
        if answer.close || begun.len() > BUFFER {
            return Ok(());
        }
    }
}

/// What follows from bytes that came.
struct Answer {
    /// What could not be sent at once.
    rest: Vec<u8>,
    close: bool,
}

/// Answers the whole requests among the bytes, and keeps the beginning of one that is not.
fn answer(stream: &TcpStream, mut bytes: &[u8], begun: &mut Vec<u8>, page: &Page) -> Result<Answer> {
    let (mut asked, mut close) = (0, false);
    while let Some(end) = http1::end_of_head(bytes, 0) {
        let head = &bytes[..end];
        if !head.starts_with(b"GET ") {
            return Ok(Answer {
                rest: b"HTTP/1.1 405 Only GET\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".to_vec(),
                close: true,
            });
        }
        bytes = &bytes[end..];
        asked += 1;
        close = http1::field(head, b"connection").is_some_and(|value| value.eq_ignore_ascii_case(b"close"));
        if close {
            break;
        }
    }
    if !close {
        begun.extend_from_slice(bytes);
    }
    let rest = match (asked, close) {
        (0, _) => Vec::new(),
        (1, false) => try_write(stream, &page.keep)?,
        (1, true) => try_write(stream, &page.close)?,
        // Several at once are answered at once.
        (many, close) => {
            let mut pages = page.keep.repeat(many - usize::from(close));
            if close {
                pages.extend_from_slice(&page.close);
            }
            try_write(stream, &pages)?
        }
    };
    Ok(Answer { rest, close })
}

/// Sends what goes at once; the rest.
fn try_write(stream: &TcpStream, bytes: &[u8]) -> Result<Vec<u8>> {
    match stream.try_write(bytes) {
        Ok(sent) => Ok(bytes[sent..].to_vec()),
        Err(error) => would_block(error).map(|()| bytes.to_vec()),
    }
}

async fn write_all(stream: &TcpStream, mut bytes: &[u8]) -> Result<()> {
    while !bytes.is_empty() {
        stream.writable().await?;
        match stream.try_write(bytes) {
            Ok(sent) => bytes = &bytes[sent..],
            Err(error) => would_block(error)?,
        }
    }
    Ok(())
}

fn would_block(error: std::io::Error) -> Result<()> {
    if error.kind() == ErrorKind::WouldBlock { Ok(()) } else { Err(error) }
}
