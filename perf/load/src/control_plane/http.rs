//! HTTP/1.1 for one client: a thread a connection, which is as many as there are watches.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;

use anyhow::{Context, Result};

use super::api::Api;

/// Serves on a port that the system chooses.
pub(super) fn serve(api: Arc<Api>) -> Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0").context("listening on loopback")?;
    let address = listener.local_addr()?;
    std::thread::Builder::new().name("api".into()).spawn(move || {
        for stream in listener.incoming().flatten() {
            let api = Arc::clone(&api);
            let served = std::thread::Builder::new().name("api client".into()).spawn(move || {
                // A client that goes is no error.
                let _ = connection(stream, &api);
            });
            if served.is_err() {
                return;
            }
        }
    })?;
    Ok(address)
}

struct Request {
    method: String,
    path: String,
    query: BTreeMap<String, String>,
    body: String,
}

fn connection(stream: TcpStream, api: &Api) -> Result<()> {
    stream.set_nodelay(true)?;
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut writer = stream;
    while let Some(request) = read(&mut reader)? {
        let number = |name: &str| request.query.get(name).and_then(|v| v.parse::<u64>().ok());
        let is_collection =
            request.method == "GET" && (request.query.contains_key("limit") || request.query.contains_key("watch"));
        if is_collection && request.query.get("watch").is_some_and(|v| v != "false" && v != "0") {
            return watch(&mut writer, api, &request.path, Api::seen_at(number("resourceVersion").unwrap_or(0)));
        }
        let (status, body) = if is_collection {
            let (from, limit) = (number("continue").unwrap_or(0), number("limit").unwrap_or(500));
            (200, api.list(&request.path, from as u32, limit as u32))
        } else {
            api.other(&request.method, &request.path, &request.body)
        };
        let head =
            format!("HTTP/1.1 {status} X\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n", body.len());
        writer.write_all(head.as_bytes())?;
        writer.write_all(body.as_bytes())?;
    }
    Ok(())
}

fn watch(writer: &mut TcpStream, api: &Api, path: &str, mut seen: u64) -> Result<()> {
    writer.write_all(b"HTTP/1.1 200 X\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n")?;
    loop {
        let (lines, now) = api.watch(path, seen);
        seen = now;
        let chunk = format!("{:x}\r\n{lines}\r\n", lines.len());
        writer.write_all(chunk.as_bytes())?;
    }
}

fn read(reader: &mut impl BufRead) -> Result<Option<Request>> {
    let mut line = String::new();
    if reader.read_line(&mut line)? == 0 {
        return Ok(None);
    }
    let mut words = line.split_whitespace();
    let (method, target) = (words.next().unwrap_or_default().to_owned(), words.next().unwrap_or_default().to_owned());
    let mut length = 0;
    loop {
        let mut header = String::new();
        reader.read_line(&mut header)?;
        let header = header.trim_end().to_ascii_lowercase();
        if header.is_empty() {
            break;
        }
        if let Some(value) = header.strip_prefix("content-length:") {
            length = value.trim().parse().context("no length")?;
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    let (path, query) = target.split_once('?').unwrap_or((&target, ""));
    let pairs = query.split('&').filter_map(|pair| pair.split_once('='));
    Ok(Some(Request {
        method,
        path: path.to_owned(),
        query: pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).collect(),
        body: String::from_utf8(body).context("no text")?,
    }))
}
