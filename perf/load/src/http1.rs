//! As much of HTTP/1.1 as a load needs: one request text, and where a response ends.

use std::net::SocketAddr;

use crate::tally::Failure;

/// A head longer than this is not one of the servers that are measured here.
const LONGEST_HEAD: usize = 16 * 1024;
const END_OF_HEAD: &[u8] = b"\r\n\r\n";

/// A GET request.
pub(crate) fn request(target: SocketAddr, path: &str, close: bool) -> Vec<u8> {
    let connection = if close { "Connection: close\r\n" } else { "" };
    format!("GET {path} HTTP/1.1\r\nHost: {target}\r\n{connection}\r\n").into_bytes()
}

/// One response as it arrives. Holds memory only while a head is in pieces.
#[derive(Debug, Default)]
pub(crate) struct Response {
    head: Vec<u8>,
    /// Bytes of the body that are still to come, once the head is there.
    left: Option<u64>,
    good: bool,
}

impl Response {
    /// Takes bytes in. True when the response is whole; the next one may then begin.
    ///
    /// # Errors
    /// A status that is not 2xx, once its body is whole; a response that does not say its length, or goes on beyond it.
    pub(crate) fn feed(&mut self, bytes: &[u8]) -> Result<bool, Failure> {
        let body = match self.left {
            Some(left) => left.checked_sub(bytes.len() as u64),
            None if self.head.is_empty() => match end_of_head(bytes, 0) {
                Some(end) => self.begin(bytes, end)?,
                None => return self.keep(bytes),
            },
            None => {
                let seen = self.head.len();
                self.keep(bytes)?;
                let Some(end) = end_of_head(&self.head, seen) else { return Ok(false) };
                let head = std::mem::take(&mut self.head);
                self.begin(&head, end)?
            }
        };
        match body {
            None => Err(Failure::Protocol),
            Some(0) => {
                self.left = None;
                if self.good { Ok(true) } else { Err(Failure::Status) }
            }
            left => {
                self.left = left;
                Ok(false)
            }
        }
    }

    fn keep(&mut self, bytes: &[u8]) -> Result<bool, Failure> {
        self.head.extend_from_slice(bytes);
        if self.head.len() > LONGEST_HEAD { Err(Failure::Protocol) } else { Ok(false) }
    }

    /// Reads the head; what of the body is still to come, or none when there is more than the body.
    fn begin(&mut self, bytes: &[u8], end: usize) -> Result<Option<u64>, Failure> {
        let head = &bytes[..end];
        self.good = head.starts_with(b"HTTP/1.1 2") || head.starts_with(b"HTTP/1.0 2");
        if !head.starts_with(b"HTTP/1.") {
            return Err(Failure::Protocol);
        }
        let length = field(head, b"content-length").and_then(|value| std::str::from_utf8(value).ok()?.parse().ok());
        let length: u64 = length.ok_or(Failure::Protocol)?;
        Ok(length.checked_sub((bytes.len() - end) as u64))
    }
}

/// Where the head ends that bytes begin with, of which `seen` were looked at before.
pub(crate) fn end_of_head(bytes: &[u8], seen: usize) -> Option<usize> {
    let from = seen.saturating_sub(END_OF_HEAD.len() - 1);
    // Far fewer line feeds than bytes: one in each line.
    let mut at = from;
    while let Some(found) = bytes[at..].iter().position(|byte| *byte == b'\n') {
        at += found + 1;
        if at >= END_OF_HEAD.len() && bytes[..at].ends_with(END_OF_HEAD) {
            return Some(at);
        }
    }
    None
}

/// The value of a field of a head, by its name in lower case.
pub(crate) fn field<'a>(head: &'a [u8], name: &[u8]) -> Option<&'a [u8]> {
    head.split(|byte| *byte == b'\n').skip(1).find_map(|line| {
        let (key, value) = line.split_at_checked(name.len())?;
        (key.eq_ignore_ascii_case(name) && value.first() == Some(&b':')).then(|| value[1..].trim_ascii())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: &[u8] = b"HTTP/1.1 200 OK\r\nServer: x\r\ncontent-Length: 5\r\nConnection: close\r\n\r\nhello";

    #[test]
    fn a_response_ends_where_it_says_however_it_is_cut() {
        for first in 1..PAGE.len() {
            for second in first..PAGE.len() {
                let mut response = Response::default();
                let parts = [&PAGE[..first], &PAGE[first..second], &PAGE[second..]];
                let ends: Vec<_> =
                    parts.iter().filter(|part| !part.is_empty()).map(|part| response.feed(part)).collect();
                let (last, before) = ends.split_last().unwrap();
                assert!(*last == Ok(true) && before.iter().all(|end| *end == Ok(false)), "{first} {second}: {ends:?}");
                assert_eq!(response.feed(PAGE), Ok(true), "the next one begins");
            }
        }
    }

    #[test]
    fn what_is_no_good_response_fails() {
        let check = |bytes: &[u8], expect| assert_eq!(Response::default().feed(bytes), expect);
        check(b"HTTP/1.1 204 No Content\r\nContent-Length: 0\r\n\r\n", Ok(true));
        check(b"HTTP/1.1 503 No\r\nContent-Length: 2\r\n\r\nno", Err(Failure::Status));
        check(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nmore", Err(Failure::Protocol));
        check(b"HTTP/1.1 200 OK\r\n\r\nwithout a length", Err(Failure::Protocol));
        check(b"SSH-2.0\r\n\r\n", Err(Failure::Protocol));
        check(&[b'x'; LONGEST_HEAD + 1], Err(Failure::Protocol));
    }
}
