//! The few messages of delta discovery that a proxy needs, by hand.

use bytes::{Buf, BufMut, Bytes, BytesMut};

pub(super) const ADDRESS: &str = "type.googleapis.com/istio.workload.Address";
pub(super) const AUTHORIZATION: &str = "type.googleapis.com/istio.security.Authorization";

// Fields of DeltaDiscoveryRequest, of its Node, and of DeltaDiscoveryResponse.
const NODE: u64 = 1;
const TYPE_URL: u64 = 2;
const RESPONSE_NONCE: u64 = 6;
const NODE_ID: u64 = 1;
const NODE_METADATA: u64 = 3;
const RESOURCES: u64 = 2;
const RESPONSE_TYPE_URL: u64 = 4;
const NONCE: u64 = 5;

/// Asks for all of a type, as a proxy of that node.
pub(super) fn first_request(type_url: &str, id: &str, metadata: &[(&str, &str)]) -> Bytes {
    let mut fields = BytesMut::new();
    for (key, value) in metadata {
        let (mut entry, mut text) = (BytesMut::new(), BytesMut::new());
        put(&mut text, 3, value.as_bytes());
        put(&mut entry, 1, key.as_bytes());
        put(&mut entry, 2, &text);
        put(&mut fields, 1, &entry);
    }
    let mut node = BytesMut::new();
    put(&mut node, NODE_ID, id.as_bytes());
    put(&mut node, NODE_METADATA, &fields);
    let mut message = BytesMut::new();
    put(&mut message, NODE, &node);
    put(&mut message, TYPE_URL, type_url.as_bytes());
    framed(&message)
}

pub(super) fn acknowledgement(type_url: &str, nonce: &str) -> Bytes {
    let mut message = BytesMut::new();
    put(&mut message, TYPE_URL, type_url.as_bytes());
    put(&mut message, RESPONSE_NONCE, nonce.as_bytes());
    framed(&message)
}

fn framed(message: &[u8]) -> Bytes {
    let mut frame = BytesMut::with_capacity(5 + message.len());
    frame.put_u8(0);
    frame.put_u32(message.len() as u32);
    frame.put_slice(message);
    frame.freeze()
}

fn put(buf: &mut BytesMut, tag: u64, bytes: &[u8]) {
    varint(buf, tag << 3 | 2);
    varint(buf, bytes.len() as u64);
    buf.put_slice(bytes);
}

fn varint(buf: &mut BytesMut, mut number: u64) {
    while number >= 0x80 {
        buf.put_u8(number as u8 | 0x80);
        number >>= 7;
    }
    buf.put_u8(number as u8);
}

/// A response, read while it comes: of a large one the resources are counted and dropped.
#[derive(Debug, Default)]
pub(super) struct Reader {
    /// Bytes that no whole field begins with yet.
    pending: BytesMut,
    /// Bytes of the message that are still to come, those in `pending` among them.
    left: usize,
    /// Bytes of a resource that are passed over.
    skip: usize,
    response: Response,
}

/// What a proxy wants to know of it.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct Response {
    pub(super) type_url: String,
    pub(super) nonce: String,
    pub(super) resources: u32,
    pub(super) bytes: usize,
    /// The first resources, while they are few.
    pub(super) text: BytesMut,
}

/// Resources are looked into up to this much.
const LOOKED_AT: usize = 64 * 1024;

impl Reader {
    /// Takes bytes in; gives the responses that are whole now.
    pub(super) fn feed(&mut self, bytes: &[u8]) -> Vec<Response> {
        self.pending.extend_from_slice(bytes);
        let mut whole = Vec::new();
        loop {
            if self.left == 0 {
                if self.pending.len() < 5 {
                    return whole;
                }
                self.pending.advance(1);
                self.left = self.pending.get_u32() as usize;
                self.response = Response { bytes: self.left, ..Response::default() };
            }
            if !self.field() && self.left > 0 {
                return whole;
            }
            if self.left == 0 {
                whole.push(std::mem::take(&mut self.response));
            }
        }
    }

    /// Takes a field, or what there is of one that is passed over; says whether it came any further.
    fn field(&mut self) -> bool {
        if self.skip > 0 {
            let now = self.skip.min(self.pending.len());
            self.pending.advance(now);
            self.skip -= now;
            self.left -= now;
            return now > 0;
        }
        if self.left == 0 {
            return false;
        }
        let mut rest = &self.pending[..self.pending.len().min(self.left)];
        let before = rest.len();
        let (Some(key), Some(length)) = (take_varint(&mut rest), take_varint(&mut rest)) else { return false };
        let (head, length) = (before - rest.len(), length as usize);
        if key >> 3 == RESOURCES && self.response.text.len() + length > LOOKED_AT {
            self.response.resources += 1;
            self.pending.advance(head);
            self.left -= head;
            self.skip = length;
            return true;
        }
        if rest.len() < length {
            return false;
        }
        self.pending.advance(head);
        let value = self.pending.split_to(length);
        self.left -= head + length;
        let text = || String::from_utf8_lossy(&value).into_owned();
        match key >> 3 {
            RESOURCES => {
                self.response.resources += 1;
                self.response.text.extend_from_slice(&value);
            }
            RESPONSE_TYPE_URL => self.response.type_url = text(),
            NONCE => self.response.nonce = text(),
            _ => {}
        }
        true
    }
}

fn take_varint(bytes: &mut &[u8]) -> Option<u64> {
    let (mut number, mut shift) = (0, 0);
    loop {
        let (byte, rest) = bytes.split_first()?;
        *bytes = rest;
        number |= u64::from(byte & 0x7f) << shift;
        shift += 7;
        if byte & 0x80 == 0 || shift > 63 {
            return Some(number);
        }
    }
}
