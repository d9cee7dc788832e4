//! DNS messages: which of them are questions to us, and what answers look like. Pure.
//!
//! What goes upstream and what comes back is passed on byte for byte, but for the id: so every record type, every EDNS
//! option and signatures pass, those too that nobody here has heard of.

use std::net::IpAddr;

use hickory_proto::op::{Edns, Header, Message, MessageType, Metadata, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::{A, AAAA, CNAME};
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};
use hickory_proto::serialize::binary::{BinDecodable, BinDecoder};

use super::resolve::{Family, Known};

/// Seconds that answers of ours may be kept.
const TTL: u32 = 30;

/// What a datagram may hold when nobody says otherwise (RFC 1035, 4.2.1).
const SMALLEST_LIMIT: u16 = 512;

/// The most that fits into an IPv4 datagram.
const LARGEST_DATAGRAM: u16 = 65_507;

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
    #[must_use]
    pub fn answer(&self, known: &Known) -> Vec<u8> {
        let mut message = self.reply(ResponseCode::NoError);
        message.metadata.authoritative = true;
        let mut owner = self.query.name().clone();
        let canonical = known.canonical.as_ref().and_then(|name| Name::from_ascii(format!("{name}.")).ok());
        if let Some(canonical) = canonical {
            message.answers.push(Record::from_rdata(owner, TTL, RData::CNAME(CNAME(canonical.clone()))));
            owner = canonical;
        }
        message.answers.extend(known.addresses.iter().map(|ip| {
            let data = match ip {
                IpAddr::V4(ip) => RData::A(A(*ip)),
                IpAddr::V6(ip) => RData::AAAA(AAAA(*ip)),
            };
            Record::from_rdata(owner.clone(), TTL, data)
        }));
        self.fitted(message)
    }

    /// An answer that is none.
    #[must_use]
    pub fn error(&self, code: ResponseCode) -> Vec<u8> {
        encode(&self.reply(code))
    }

    /// An upstream's answer, as the client gets it.
    #[must_use]
    pub fn relay(&self, mut answer: Vec<u8>) -> Vec<u8> {
        if answer.len() > usize::from(self.limit()) {
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

    fn limit(&self) -> u16 {
        match self.transport {
            Transport::Tcp => u16::MAX,
            Transport::Udp => {
                self.edns.as_ref().map_or(SMALLEST_LIMIT, Edns::max_payload).clamp(SMALLEST_LIMIT, LARGEST_DATAGRAM)
            }
        }
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

    fn fitted(&self, message: Message) -> Vec<u8> {
        let bytes = encode(&message);
        if bytes.len() <= usize::from(self.limit()) { bytes } else { self.cut(message) }
    }

    /// Nothing but the mark that there is more: clients ask again over TCP.
    fn cut(&self, mut message: Message) -> Vec<u8> {
        message.answers.clear();
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
