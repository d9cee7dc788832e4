//! As much of an HTTP client as probes and admin pages need: one request, HTTP/1.0 so that nothing is chunked.

use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::time::Duration;

use crate::error::{During, LabError, Result};

const PATIENCE: Duration = Duration::from_secs(10);

/// One request to localhost in the caller's network namespace. Blocks.
pub(super) fn local(method: &str, port: u16, path: &str) -> Result<(u16, String)> {
    let to = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];
    let mut refused = None;
    for ip in to {
        match TcpStream::connect_timeout(&SocketAddr::new(ip, port), PATIENCE) {
            Ok(stream) => return exchange(&stream, method, path).during(|| format!("{method} localhost:{port}{path}")),
            Err(error) => refused = refused.or(Some(error)),
        }
    }
    let error = refused.unwrap_or_else(|| io::ErrorKind::ConnectionRefused.into());
    Err(LabError::io(format!("connecting to localhost:{port}"), error))
}

fn exchange(mut stream: &TcpStream, method: &str, path: &str) -> io::Result<(u16, String)> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(request(method, path, "localhost", &[], "").as_bytes())?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    let text = String::from_utf8_lossy(&answer);
    let status = status(&answer).ok_or_else(|| io::Error::other("the answer is no HTTP"))?;
    let body = text.split_once("\r\n\r\n").map(|(_, body)| body.to_owned()).unwrap_or_default();
    Ok((status, body))
}

/// The text of a request.
pub(super) fn request(method: &str, path: &str, host: &str, headers: &[(String, String)], body: &str) -> String {
    let mut text =
        format!("{method} {path} HTTP/1.0\r\nHost: {host}\r\nUser-Agent: kube-probe/1.37\r\nConnection: close\r\n");
    for (name, value) in headers {
        text.push_str(&format!("{name}: {value}\r\n"));
    }
    if !body.is_empty() || method == "POST" {
        text.push_str(&format!("Content-Type: application/json\r\nContent-Length: {}\r\n", body.len()));
    }
    text.push_str("\r\n");
    text.push_str(body);
    text
}

/// The status in the first line of an answer, once it is there.
pub(super) fn status(answer: &[u8]) -> Option<u16> {
    let line = answer.split(|byte| *byte == b'\n').next()?;
    let rest = line.strip_prefix(b"HTTP/1.")?;
    std::str::from_utf8(rest.get(2..5)?).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_status_lines() {
        let cases: [(&[u8], Option<u16>); 5] = [
            (b"HTTP/1.1 200 OK\r\n", Some(200)),
            (b"HTTP/1.0 503 x", Some(503)),
            (b"HTTP/1.1 20", None),
            (b"220 mail.example ESMTP", None),
            (b"", None),
        ];
        for (answer, expect) in cases {
            assert_eq!(status(answer), expect);
        }
    }
}
