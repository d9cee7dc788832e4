//! HPACK (RFC 7541): writing as literals without indexing only, reading everything.

use std::collections::VecDeque;

use anyhow::{Context, Result, ensure};

use super::huffman;

/// Names and values in order, pseudo headers included.
pub(crate) type Headers = Vec<(String, String)>;

/// The first value of a header.
pub(crate) fn value<'a>(headers: &'a Headers, name: &str) -> Option<&'a str> {
    headers.iter().find(|(found, _)| found == name).map(|(_, value)| value.as_str())
}

const STATIC: [(&str, &str); 61] = [
    (":authority", ""),
    (":method", "GET"),
    (":method", "POST"),
    (":path", "/"),
    (":path", "/index.html"),
    (":scheme", "http"),
    (":scheme", "https"),
    (":status", "200"),
    (":status", "204"),
    (":status", "206"),
    (":status", "304"),
    (":status", "400"),
    (":status", "404"),
    (":status", "500"),
    ("accept-charset", ""),
    ("accept-encoding", "gzip, deflate"),
    ("accept-language", ""),
    ("accept-ranges", ""),
    ("accept", ""),
    ("access-control-allow-origin", ""),
    ("age", ""),
    ("allow", ""),
    ("authorization", ""),
    ("cache-control", ""),
    ("content-disposition", ""),
    ("content-encoding", ""),
    ("content-language", ""),
    ("content-length", ""),
    ("content-location", ""),
    ("content-range", ""),
    ("content-type", ""),
    ("cookie", ""),
    ("date", ""),
    ("etag", ""),
    ("expect", ""),
    ("expires", ""),
    ("from", ""),
    ("host", ""),
    ("if-match", ""),
    ("if-modified-since", ""),
    ("if-none-match", ""),
    ("if-range", ""),
    ("if-unmodified-since", ""),
    ("last-modified", ""),
    ("link", ""),
    ("location", ""),
    ("max-forwards", ""),
    ("proxy-authenticate", ""),
    ("proxy-authorization", ""),
    ("range", ""),
    ("referer", ""),
    ("refresh", ""),
    ("retry-after", ""),
    ("server", ""),
    ("set-cookie", ""),
    ("strict-transport-security", ""),
    ("transfer-encoding", ""),
    ("user-agent", ""),
    ("vary", ""),
    ("via", ""),
    ("www-authenticate", ""),
];

pub(crate) fn encode(headers: &[(&str, &str)]) -> Vec<u8> {
    let mut out = Vec::new();
    for (name, value) in headers {
        out.push(0);
        for text in [name, value] {
            write_integer(&mut out, 7, text.len());
            out.extend_from_slice(text.as_bytes());
        }
    }
    out
}

fn write_integer(out: &mut Vec<u8>, prefix: u8, mut value: usize) {
    let limit = (1usize << prefix) - 1;
    if value < limit {
        out.push(value as u8);
        return;
    }
    out.push(limit as u8);
    value -= limit;
    while value >= 128 {
        out.push((value % 128) as u8 | 0x80);
        value /= 128;
    }
    out.push(value as u8);
}

/// The reading side's table.
#[derive(Debug)]
pub(crate) struct Decoder {
    table: VecDeque<(String, String)>,
    limit: usize,
}

impl Decoder {
    pub(crate) fn new() -> Self {
        Self { table: VecDeque::new(), limit: 4096 }
    }

    pub(crate) fn decode(&mut self, mut block: &[u8]) -> Result<Headers> {
        let mut headers = Headers::new();
        while let Some(first) = block.first().copied() {
            if first & 0x80 != 0 {
                let index = read_integer(&mut block, 7)?;
                headers.push(self.entry(index)?);
            } else if first & 0x40 != 0 {
                let header = self.literal(&mut block, 6)?;
                self.insert(header.clone());
                headers.push(header);
            } else if first & 0x20 != 0 {
                self.limit = read_integer(&mut block, 5)?;
                self.evict();
            } else {
                headers.push(self.literal(&mut block, 4)?);
            }
        }
        Ok(headers)
    }

    fn literal(&self, block: &mut &[u8], prefix: u8) -> Result<(String, String)> {
        let index = read_integer(block, prefix)?;
        let name = if index == 0 { read_string(block)? } else { self.entry(index)?.0 };
        Ok((name, read_string(block)?))
    }

    fn entry(&self, index: usize) -> Result<(String, String)> {
        ensure!(index > 0, "index 0");
        if let Some((name, value)) = STATIC.get(index - 1) {
            return Ok(((*name).to_owned(), (*value).to_owned()));
        }
        self.table.get(index - 1 - STATIC.len()).cloned().with_context(|| format!("index {index}"))
    }

    fn insert(&mut self, header: (String, String)) {
        self.table.push_front(header);
        self.evict();
    }

    fn evict(&mut self) {
        let size =
            |table: &VecDeque<(String, String)>| table.iter().map(|(n, v)| n.len() + v.len() + 32).sum::<usize>();
        while size(&self.table) > self.limit {
            self.table.pop_back();
        }
    }
}

fn read_integer(block: &mut &[u8], prefix: u8) -> Result<usize> {
    let next = |block: &mut &[u8]| -> Result<u8> {
        let (first, rest) = block.split_first().context("a header block that ends too early")?;
        *block = rest;
        Ok(*first)
    };
    let limit = (1usize << prefix) - 1;
    let mut value = usize::from(next(block)?) & limit;
    if value < limit {
        return Ok(value);
    }
    for shift in (0..28).step_by(7) {
        let byte = next(block)?;
        value += usize::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Ok(value);
        }
    }
    anyhow::bail!("an integer that is too long")
}

fn read_string(block: &mut &[u8]) -> Result<String> {
    let huffman = block.first().context("a string")? & 0x80 != 0;
    let length = read_integer(block, 7)?;
    ensure!(block.len() >= length, "a string that ends too early");
    let (bytes, rest) = block.split_at(length);
    *block = rest;
    let bytes = if huffman { huffman::decode(bytes).context("a Huffman string")? } else { bytes.to_vec() };
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[test]
fn reads_the_recorded_blocks() -> Result<()> {
    // From ../recordings/ztunnel/hbone-client-to-ztunnel.json: the statuses 503 (literal, then indexed).
    let mut decoder = Decoder::new();
    let bytes = [0x48, 0x83, 0x6c, 0x0c, 0xff];
    assert_eq!(decoder.decode(&bytes)?, [(":status".to_owned(), "503".to_owned())]);
    assert_eq!(decoder.decode(&[0xbe])?, [(":status".to_owned(), "503".to_owned())]);
    let written = encode(&[(":status", "200"), ("x", &"y".repeat(200))]);
    assert_eq!(decoder.decode(&written)?[1].1.len(), 200);
    Ok(())
}
