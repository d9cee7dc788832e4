//! The record layer (RFC 8446, 5 and 4.6.3; RFC 5246, 6.2 for TLS 1.2), with the crypto of rustls's provider.

use bytes::{Buf, Bytes, BytesMut};
use rustls::client::ClientConnectionData;
use rustls::crypto::cipher::{
    InboundOpaqueMessage, MessageDecrypter, MessageEncrypter, OutboundChunks, OutboundPlainMessage,
};
use rustls::kernel::KernelConnection;
use rustls::server::ServerConnectionData;
use rustls::{
    AlertDescription, ConnectionTrafficSecrets, ContentType, Error, HandshakeType, InvalidMessage, PeerMisbehaved,
    ProtocolVersion, SupportedCipherSuite,
};

/// Type, version, length.
const HEADER: usize = 5;
/// A full record with what encryption adds at most (RFC 8446, 5.2: 256 bytes; TLS 1.2 allows more, and no AEAD needs it).
const LONGEST: usize = (16 << 10) + 256;
/// Records of one type without meaning that are suffered in a row.
const EMPTY_RECORDS: u32 = 32;
/// Keys are renewed this many records before the suite's limit.
const MARGIN: u64 = 1 << 16;
const UPDATE_NOT_REQUESTED: u8 = 0;
const UPDATE_REQUESTED: u8 = 1;

/// What is left of rustls's connection: it makes new keys.
pub(super) enum Keys {
    Client(KernelConnection<ClientConnectionData>),
    Server(KernelConnection<ServerConnectionData>),
}

impl Keys {
    pub(super) fn suite(&self) -> SupportedCipherSuite {
        match self {
            Self::Client(c) => c.negotiated_cipher_suite(),
            Self::Server(c) => c.negotiated_cipher_suite(),
        }
    }

    fn next_sending(&mut self) -> Result<(u64, ConnectionTrafficSecrets), Error> {
        match self {
            Self::Client(c) => c.update_tx_secret(),
            Self::Server(c) => c.update_tx_secret(),
        }
    }

    fn next_receiving(&mut self) -> Result<(u64, ConnectionTrafficSecrets), Error> {
        match self {
            Self::Client(c) => c.update_rx_secret(),
            Self::Server(c) => c.update_rx_secret(),
        }
    }
}

/// Key and IV of either AES-GCM suite; we offer no others.
fn split(
    secrets: ConnectionTrafficSecrets,
) -> Result<(rustls::crypto::cipher::AeadKey, rustls::crypto::cipher::Iv), Error> {
    match secrets {
        ConnectionTrafficSecrets::Aes128Gcm { key, iv }
        | ConnectionTrafficSecrets::Aes256Gcm { key, iv }
        | ConnectionTrafficSecrets::Chacha20Poly1305 { key, iv } => Ok((key, iv)),
        _ => Err(Error::General("a cipher suite without known keys".into())),
    }
}

fn decrypter(
    suite: SupportedCipherSuite,
    secrets: ConnectionTrafficSecrets,
) -> Result<Box<dyn MessageDecrypter>, Error> {
    let (key, iv) = split(secrets)?;
    match suite {
        SupportedCipherSuite::Tls13(suite) => Ok(suite.aead_alg.decrypter(key, iv)),
        SupportedCipherSuite::Tls12(suite) => Ok(suite.aead_alg.decrypter(key, &iv.as_ref()[..4])),
    }
}

fn encrypter(
    suite: SupportedCipherSuite,
    secrets: ConnectionTrafficSecrets,
) -> Result<Box<dyn MessageEncrypter>, Error> {
    let (key, iv) = split(secrets)?;
    match suite {
        SupportedCipherSuite::Tls13(suite) => Ok(suite.aead_alg.encrypter(key, iv)),
        SupportedCipherSuite::Tls12(suite) => {
            let (fixed, explicit) = iv.as_ref().split_at(4);
            Ok(suite.aead_alg.encrypter(key, fixed, explicit))
        }
    }
}

/// What a record held.
pub(super) enum Received {
    Data(Bytes),
    /// close_notify.
    Closed,
    KeyUpdate {
        /// Ours must follow.
        asked: bool,
    },
    /// A session ticket: there is no resumption.
    Ignored,
}

/// The receiving direction.
pub(super) struct Opener {
    suite: SupportedCipherSuite,
    cipher: Box<dyn MessageDecrypter>,
    sequence: u64,
    idle_records: u32,
}

impl Opener {
    pub(super) fn new(
        suite: SupportedCipherSuite,
        (sequence, secrets): (u64, ConnectionTrafficSecrets),
    ) -> Result<Self, Error> {
        Ok(Self { suite, cipher: decrypter(suite, secrets)?, sequence, idle_records: 0 })
    }

    /// Bytes without which there is no record to open; 0 when there is one, or an error to report.
    pub(super) fn missing(&self, inbox: &[u8]) -> usize {
        match length(inbox) {
            Some(Ok(length)) => (HEADER + length).saturating_sub(inbox.len()),
            Some(Err(_)) => 0,
            None => HEADER - inbox.len(),
        }
    }

    /// Takes the first record off `inbox` and decrypts it where it lies. `None` while it isn't whole.
    pub(super) fn open(&mut self, inbox: &mut BytesMut) -> Result<Option<Received>, Error> {
        let Some(length) = length(inbox).transpose()? else { return Ok(None) };
        if inbox.len() < HEADER + length {
            return Ok(None);
        }
        let mut record = inbox.split_to(HEADER + length);
        let outer = ContentType::from(record[0]);
        let mut body = record.split_off(HEADER);
        let start = body.as_ptr() as usize;
        let opaque = InboundOpaqueMessage::new(outer, ProtocolVersion::TLSv1_2, &mut body);
        let message = self.cipher.decrypt(opaque, self.sequence)?;
        self.sequence += 1;
        let (typ, offset, size) = (message.typ, message.payload.as_ptr() as usize - start, message.payload.len());
        let tls13 = matches!(self.suite, SupportedCipherSuite::Tls13(_));
        match typ {
            ContentType::ApplicationData => {
                self.idle_records = if size == 0 { self.idle_records + 1 } else { 0 };
                if self.idle_records > EMPTY_RECORDS {
                    return Err(PeerMisbehaved::TooManyEmptyFragments.into());
                }
                if size == 0 {
                    return Ok(Some(Received::Ignored));
                }
                body.truncate(offset + size);
                body.advance(offset);
                Ok(Some(Received::Data(body.freeze())))
            }
            ContentType::Alert => self.alert(&body[offset..offset + size]).map(Some),
            ContentType::Handshake if tls13 => self.handshake(&body[offset..offset + size]).map(Some),
            _ => Err(InvalidMessage::InvalidContentType.into()),
        }
    }

    fn alert(&mut self, alert: &[u8]) -> Result<Received, Error> {
        match *alert {
            // RFC 8446, 6.1: sent by itself it means nothing; a close_notify follows.
            [_, level] if AlertDescription::from(level) == AlertDescription::UserCanceled => self.idle(),
            [_, what] => match AlertDescription::from(what) {
                AlertDescription::CloseNotify => Ok(Received::Closed),
                other => Err(Error::AlertReceived(other)),
            },
            _ => Err(InvalidMessage::MessageTooShort.into()),
        }
    }

    /// After the handshake: whole messages only, and never one beside a key update (RFC 8446, 5.1).
    fn handshake(&mut self, mut messages: &[u8]) -> Result<Received, Error> {
        while let [typ, a, b, c, rest @ ..] = messages {
            let length = u32::from_be_bytes([0, *a, *b, *c]) as usize;
            let Some((body, rest)) = rest.split_at_checked(length) else { break };
            match (HandshakeType::from(*typ), body) {
                (HandshakeType::KeyUpdate, [UPDATE_NOT_REQUESTED | UPDATE_REQUESTED]) if rest.is_empty() => {
                    self.idle()?;
                    return Ok(Received::KeyUpdate { asked: body[0] == UPDATE_REQUESTED });
                }
                (HandshakeType::KeyUpdate, [_]) if !rest.is_empty() => {
                    return Err(PeerMisbehaved::KeyEpochWithPendingFragment.into());
                }
                (HandshakeType::KeyUpdate, _) => return Err(InvalidMessage::InvalidKeyUpdate.into()),
                (HandshakeType::NewSessionTicket, _) => messages = rest,
                _ => {
                    return Err(Error::InappropriateHandshakeMessage {
                        expect_types: vec![HandshakeType::NewSessionTicket, HandshakeType::KeyUpdate],
                        got_type: HandshakeType::from(*typ),
                    });
                }
            }
        }
        if !messages.is_empty() {
            return Err(InvalidMessage::MessageTooShort.into());
        }
        self.idle()
    }

    fn idle(&mut self) -> Result<Received, Error> {
        self.idle_records += 1;
        if self.idle_records > EMPTY_RECORDS {
            return Err(PeerMisbehaved::TooManyKeyUpdateRequests.into());
        }
        Ok(Received::Ignored)
    }

    /// The peer goes on with its next keys.
    pub(super) fn renew(&mut self, keys: &mut Keys) -> Result<(), Error> {
        let (sequence, secrets) = keys.next_receiving()?;
        self.cipher = decrypter(self.suite, secrets)?;
        self.sequence = sequence;
        Ok(())
    }
}

/// The length that a header announces.
fn length(inbox: &[u8]) -> Option<Result<usize, Error>> {
    let [_, major, _, high, low] = *inbox.first_chunk::<HEADER>()?;
    let length = usize::from(u16::from_be_bytes([high, low]));
    Some(match (major, length) {
        (3, 1..=LONGEST) => Ok(length),
        (3, 0) => Err(InvalidMessage::InvalidEmptyPayload.into()),
        (3, _) => Err(InvalidMessage::MessageTooLarge.into()),
        _ => Err(InvalidMessage::UnknownProtocolVersion.into()),
    })
}

/// The sending direction.
pub(super) struct Sealer {
    suite: SupportedCipherSuite,
    cipher: Box<dyn MessageEncrypter>,
    sequence: u64,
    limit: u64,
}

impl Sealer {
    pub(super) fn new(
        suite: SupportedCipherSuite,
        (sequence, secrets): (u64, ConnectionTrafficSecrets),
    ) -> Result<Self, Error> {
        let common = match suite {
            SupportedCipherSuite::Tls13(suite) => &suite.common,
            SupportedCipherSuite::Tls12(suite) => &suite.common,
        };
        let limit = common.confidentiality_limit.saturating_sub(MARGIN);
        let mut sealer = Self { suite, cipher: encrypter(suite, secrets)?, sequence: 0, limit };
        if sequence > 0 {
            // AWS-LC reckons that the first record under a key has number 0. This one is sent to nobody: in TLS 1.2
            // rustls used the number for its Finished.
            sealer.seal(ContentType::ApplicationData, &[&[]])?;
            sealer.sequence = sequence;
        }
        Ok(sealer)
    }

    /// Whether these keys have sealed all that they may.
    pub(super) fn is_worn(&self) -> bool {
        self.sequence >= self.limit
    }

    #[cfg(test)]
    pub(super) fn wears_after(&mut self, records: u64) {
        self.limit = records;
    }

    /// At most 16 KiB of data as one record.
    pub(super) fn data(&mut self, chunks: &[&[u8]]) -> Result<Vec<u8>, Error> {
        self.seal(ContentType::ApplicationData, chunks)
    }

    pub(super) fn close_notify(&mut self) -> Result<Vec<u8>, Error> {
        const WARNING: u8 = 1;
        self.seal(ContentType::Alert, &[&[WARNING, u8::from(AlertDescription::CloseNotify)]])
    }

    /// The record that announces our next keys, which are in use from then on.
    pub(super) fn renew(&mut self, keys: &mut Keys) -> Result<Vec<u8>, Error> {
        // TLS 1.2 has no other keys: rustls says so, and the connection ends.
        let (sequence, secrets) = keys.next_sending()?;
        let message = [u8::from(HandshakeType::KeyUpdate), 0, 0, 1, UPDATE_NOT_REQUESTED];
        let record = self.seal(ContentType::Handshake, &[&message])?;
        self.cipher = encrypter(self.suite, secrets)?;
        self.sequence = sequence;
        Ok(record)
    }

    fn seal(&mut self, typ: ContentType, chunks: &[&[u8]]) -> Result<Vec<u8>, Error> {
        let payload = match chunks {
            [one] => OutboundChunks::Single(one),
            several => OutboundChunks::new(several),
        };
        let message = OutboundPlainMessage { typ, version: ProtocolVersion::TLSv1_2, payload };
        let record = self.cipher.encrypt(message, self.sequence)?.encode();
        self.sequence += 1;
        Ok(record)
    }
}
