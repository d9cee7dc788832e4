//! DNS messages: which of them are questions to us, and what answers look like. Pure.
//!
//! What goes upstream and what comes back is passed on byte for byte, but for the id: so every record type, every EDNS
//! option and signatures pass, those too that nobody here has heard of.

use std::net::IpAddr;

use hickory_proto::op::{Edns, Header, Message, MessageType, Metadata, OpCode, Query, ResponseCode};
use hickory_proto::rr::{DNSClass, Name, Record, RecordType};
use hickory_proto::serialize::binary::{BinDecodable, BinDecoder, BinEncodable};

use super::resolve::{Family, Known};

/// Seconds that answers of ours may be kept.
const TTL: u32 = 30;

/// What a datagram may hold when nobody says otherwise (RFC 1035, 4.2.1).
const SMALLEST_LIMIT: u16 = 512;

/// The most that fits into an IPv4 datagram.
const LARGEST_DATAGRAM: u16 = 65_507;

/// Where a message counts its records, and where its question begins (RFC 1035, 4.1.1).
const ANSWERS: std::ops::Range<usize> = 6..8;
const ADDITIONALS: std::ops::Range<usize> = 10..12;
const POINTER: u16 = 0xc000;
const QUESTION_NAME: u16 = POINTER | 12;

/// How a query came, and goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Transport {
    /// Datagrams.
    Udp,
    /// A connection.
    Tcp,
}

impl Transport {
    /// As in metrics.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Udp => "udp",
            Self::Tcp => "tcp",
        }
    }
}

/// A well-formed question.
#[derive(Clone, Debug)]
pub struct Question {
    metadata: Metadata,
    query: Query,
    edns: Option<Edns>,
    transport: Transport,
}

/// A message that isn't worth a thought.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// No question at all: an answer would only make noise.
    Silence,
    /// This answer, encoded.
    Reply(Vec<u8>),
}

impl Question {
    /// Reads a message.
    pub fn read(bytes: &[u8], transport: Transport) -> Result<Self, Refusal> {
        let Ok(header) = Header::read(&mut BinDecoder::new(bytes)) else { return Err(Refusal::Silence) };
        if header.metadata.message_type != MessageType::Query {
            return Err(Refusal::Silence);
        }
        let refuse = |code| Refusal::Reply(encode(&reply_to(&header.metadata, code)));
        if header.metadata.op_code != OpCode::Query {
            return Err(refuse(ResponseCode::NotImp));
        }
        let Ok(mut message) = Message::from_vec(bytes) else { return Err(refuse(ResponseCode::FormErr)) };
        let (Some(query), true) = (message.queries.pop(), message.queries.is_empty()) else {
            return Err(refuse(ResponseCode::FormErr));
        };
        let question = Self { metadata: header.metadata, query, edns: message.edns, transport };
        if question.edns.as_ref().is_some_and(|edns| edns.version() > 0) {
            return Err(Refusal::Reply(question.error(ResponseCode::BADVERS)));
        }
        if matches!(question.query.query_type(), RecordType::AXFR | RecordType::IXFR) {
            return Err(Refusal::Reply(question.error(ResponseCode::NotImp)));
        }
        Ok(question)
    }

    /// The record type that is asked for.
    #[must_use]
    pub fn record_type(&self) -> RecordType {
        self.query.query_type()
    }

    /// The host and family, if addresses of a host are asked for.
    #[must_use]
    pub fn host(&self) -> Option<(String, Family)> {
        let family = match self.query.query_type() {
            RecordType::A => Family::V4,
            RecordType::AAAA => Family::V6,
            _ => return None,
        };
        if self.query.query_class() != DNSClass::IN {
            return None;
        }
        Some((host_name(self.query.name())?, family))
    }

    /// How it came.
    #[must_use]
    pub fn transport(&self) -> Transport {
        self.transport
    }

    /// The answer that the mesh knows.
    ///
    /// Records are written by hand: each names its owner by a pointer (RFC 1035, 4.1.4), which the library does for the
    /// first names only, and a large headless service would not fit.
    #[must_use]
    pub fn answer(&self, known: &Known) -> Vec<u8> {
        let mut message = self.authoritative();
        let edns = message.edns.take();
        let mut bytes = encode(&message);
        let mut owner = QUESTION_NAME;
        let mut records = 0_u16;
        if let Some(name) = known.canonical.as_deref().and_then(wire_name) {
            let at = record(&mut bytes, owner, RecordType::CNAME, &name);
            owner = POINTER | at;
            records += 1;
        }
        for ip in &known.addresses {
            match ip {
                IpAddr::V4(ip) => record(&mut bytes, owner, RecordType::A, &ip.octets()),
                IpAddr::V6(ip) => record(&mut bytes, owner, RecordType::AAAA, &ip.octets()),
            };
            records += 1;
        }
        bytes[ANSWERS].copy_from_slice(&records.to_be_bytes());
        if let Some(edns) = edns.as_ref().and_then(|edns| Record::from(edns).to_bytes().ok()) {
            bytes.extend(edns);
            bytes[ADDITIONALS].copy_from_slice(&1_u16.to_be_bytes());
        }
        if bytes.len() <= self.limit() { bytes } else { self.cut(self.authoritative()) }
    }

    /// An answer that is none.
    #[must_use]
    pub fn error(&self, code: ResponseCode) -> Vec<u8> {
        encode(&self.reply(code))
    }

    /// An upstream's answer, as the client gets it.
    #[must_use]
    pub fn relay(&self, mut answer: Vec<u8>) -> Vec<u8> {
        if answer.len() > self.limit() {
            let code = Header::read(&mut BinDecoder::new(&answer))
                .map_or(ResponseCode::ServFail, |h| h.metadata.response_code);
            return self.cut(self.reply(code));
        }
        set_id(&mut answer, self.metadata.id);
        answer
    }

    /// Whether `bytes` is what an upstream that was asked under `id` says to this question.
    #[must_use]
    pub fn is_answer(&self, bytes: &[u8], id: u16) -> bool {
        let mut decoder = BinDecoder::new(bytes);
        let Ok(header) = Header::read(&mut decoder) else { return false };
        if header.metadata.id != id || header.metadata.message_type != MessageType::Response {
            return false;
        }
        match header.counts.queries {
            // Some servers leave the question out when they refuse it.
            0 => header.metadata.response_code != ResponseCode::NoError,
            1 => Query::read(&mut decoder).is_ok_and(|query| {
                let own = &self.query;
                query.name().eq_ignore_root(own.name())
                    && (query.query_type(), query.query_class()) == (own.query_type(), own.query_class())
            }),
            _ => false,
        }
    }

    /// The longest answer that the client takes.
    #[must_use]
    pub fn limit(&self) -> usize {
        usize::from(match self.transport {
            Transport::Tcp => u16::MAX,
            Transport::Udp => {
                self.edns.as_ref().map_or(SMALLEST_LIMIT, Edns::max_payload).clamp(SMALLEST_LIMIT, LARGEST_DATAGRAM)
            }
        })
    }

    fn reply(&self, code: ResponseCode) -> Message {
        let mut message = reply_to(&self.metadata, code);
        message.queries.push(self.query.clone());
        // RFC 6891, 6.1.1: who sends one gets one.
        message.edns = self.edns.as_ref().map(|asked| {
            let mut edns = Edns::new();
            edns.set_version(0)
                .set_max_payload(asked.max_payload().max(SMALLEST_LIMIT))
                .set_dnssec_ok(asked.flags().dnssec_ok);
            edns
        });
        message
    }

    fn authoritative(&self) -> Message {
        let mut message = self.reply(ResponseCode::NoError);
        message.metadata.authoritative = true;
        message
    }

    /// Nothing but the mark that there is more: clients ask again over TCP.
    fn cut(&self, mut message: Message) -> Vec<u8> {
        message.metadata.truncation = true;
        encode(&message)
    }
}

/// Whether a server says that it cannot help, so that another may be asked.
#[must_use]
pub fn is_failure(answer: &[u8]) -> bool {
    answer.get(3).is_none_or(|flags| {
        matches!(
            ResponseCode::from_low(flags & 0x0f),
            ResponseCode::ServFail | ResponseCode::Refused | ResponseCode::NotImp
        )
    })
}

/// Puts an id into a message.
pub fn set_id(message: &mut [u8], id: u16) {
    if let Some(place) = message.get_mut(..2) {
        place.copy_from_slice(&id.to_be_bytes());
    }
}

fn reply_to(asked: &Metadata, code: ResponseCode) -> Message {
    let mut message = Message::response(asked.id, asked.op_code);
    message.metadata = Metadata::response_from_request(asked);
    message.metadata.recursion_available = true;
    message.metadata.authentic_data = false;
    message.metadata.response_code = code;
    message
}

fn encode(message: &Message) -> Vec<u8> {
    message.to_vec().unwrap_or_else(|error| {
        // Cannot be for messages of our own making; a client that gets nothing asks again.
        tracing::error!(%error, "DNS answer cannot be encoded");
        Vec::new()
    })
}

/// Adds a record, and says where its data begins.
fn record(bytes: &mut Vec<u8>, owner: u16, kind: RecordType, data: &[u8]) -> u16 {
    bytes.extend(owner.to_be_bytes());
    bytes.extend(u16::from(kind).to_be_bytes());
    bytes.extend(u16::from(DNSClass::IN).to_be_bytes());
    bytes.extend(TTL.to_be_bytes());
    bytes.extend((data.len() as u16).to_be_bytes());
    let at = bytes.len() as u16;
    bytes.extend(data);
    at
}

/// A name as a message holds it, uncompressed.
fn wire_name(name: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(name.len() + 2);
    for label in name.split('.') {
        let length = u8::try_from(label.len()).ok().filter(|length| (1..=63).contains(length))?;
        bytes.push(length);
        bytes.extend(label.bytes());
    }
    bytes.push(0);
    (bytes.len() <= 255).then_some(bytes)
}

/// A name as text in lower case without the final dot, if it can be a host's at all.
fn host_name(name: &Name) -> Option<String> {
    let mut text = String::with_capacity(name.len());
    for label in name.iter() {
        let plain = |b: &u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'*');
        if label.is_empty() || !label.iter().all(plain) {
            return None;
        }
        if !text.is_empty() {
            text.push('.');
        }
        text.extend(label.iter().map(|b| char::from(b.to_ascii_lowercase())));
    }
    (!text.is_empty()).then_some(text)
}

#[cfg(test)]
#[path = "message/tests.rs"]
mod tests;
