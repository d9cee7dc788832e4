//! A resource as it stands in a response, written without a copy of its body on the way.

use bytes::{BufMut, BytesMut};
use prost::encoding::{WireType, encode_key, encode_varint, encoded_len_varint, key_len};

use super::{Resource, Version};

// Fields of DeltaDiscoveryResponse, Resource and Any.
const RESOURCES: u32 = 2;
const VERSION: u32 = 1;
const ANY: u32 = 2;
const NAME: u32 = 3;
const ALIASES: u32 = 4;
const TYPE_URL: u32 = 1;
const VALUE: u32 = 2;

/// A resource under a name, which for on-demand clients may be one of its aliases; they get all aliases, too.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Entry<'a> {
    pub(crate) resource: &'a Resource,
    pub(crate) name: &'a str,
    pub(crate) with_aliases: bool,
}

impl<'a> Entry<'a> {
    /// As every wildcard client gets it.
    pub(crate) fn plain(resource: &'a Resource) -> Self {
        Self { resource, name: &resource.name, with_aliases: false }
    }

    /// Bytes that it takes in a response.
    pub(crate) fn len(&self) -> usize {
        field_len(RESOURCES, self.inner_len())
    }

    /// Appends it to a response.
    pub(crate) fn put(&self, buf: &mut BytesMut) {
        let Self { resource, name, .. } = self;
        put_head(RESOURCES, self.inner_len(), buf);
        let version = resource.version.hex();
        put_field(VERSION, version.as_bytes(), buf);
        put_head(ANY, self.any_len(), buf);
        put_field(TYPE_URL, resource.type_url.as_bytes(), buf);
        if !resource.body.is_empty() {
            put_field(VALUE, &resource.body, buf);
        }
        put_field(NAME, name.as_bytes(), buf);
        for alias in self.aliases() {
            put_field(ALIASES, alias.as_bytes(), buf);
        }
    }

    fn aliases(&self) -> impl Iterator<Item = &'a str> + use<'a> {
        let aliases: &[Box<str>] = if self.with_aliases { &self.resource.aliases } else { &[] };
        aliases.iter().map(|alias| &**alias)
    }

    fn inner_len(&self) -> usize {
        let aliases: usize = self.aliases().map(|alias| field_len(ALIASES, alias.len())).sum();
        field_len(VERSION, self.resource.version.hex_len())
            + field_len(ANY, self.any_len())
            + field_len(NAME, self.name.len())
            + aliases
    }

    fn any_len(&self) -> usize {
        let Resource { type_url, body, .. } = self.resource;
        let body = if body.is_empty() { 0 } else { field_len(VALUE, body.len()) };
        field_len(TYPE_URL, type_url.len()) + body
    }
}

/// A field of that many bytes, with its key and length.
pub(crate) fn field_len(tag: u32, len: usize) -> usize {
    key_len(tag) + encoded_len_varint(len as u64) + len
}

/// A whole field.
pub(crate) fn put_field(tag: u32, bytes: &[u8], buf: &mut BytesMut) {
    put_head(tag, bytes.len(), buf);
    buf.put_slice(bytes);
}

fn put_head(tag: u32, len: usize, buf: &mut BytesMut) {
    encode_key(tag, WireType::LengthDelimited, buf);
    encode_varint(len as u64, buf);
}

/// A version's digits, without an allocation.
pub(crate) struct Hex {
    digits: [u8; 16],
    from: usize,
}

impl Hex {
    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.digits[self.from..]
    }
}

impl Version {
    fn hex_len(self) -> usize {
        (u64::BITS - self.0.leading_zeros()).div_ceil(4).max(1) as usize
    }

    pub(crate) fn hex(self) -> Hex {
        let mut digits = [0; 16];
        for (at, digit) in digits.iter_mut().enumerate() {
            *digit = b"0123456789abcdef"[(self.0 >> (60 - 4 * at)) as usize & 0xf];
        }
        Hex { digits, from: 16 - self.hex_len() }
    }
}

#[cfg(test)]
mod tests {
    use aquifer_proto::xds;
    use prost::Message;
    use prost_types::Any;

    use super::*;

    #[test]
    fn bytes_are_those_of_the_generated_code() {
        for (body, aliases) in
            [(vec![], vec![]), (vec![7; 300], vec!["/10.0.0.1".to_owned(), "net/fd00::1".to_owned()])]
        {
            let resource =
                Resource::from_bytes("type.googleapis.com/t", "name", body.clone()).with_aliases(aliases.clone());
            for (name, with_aliases) in [("name", false), ("/10.0.0.1", true)] {
                let entry = Entry { resource: &resource, name, with_aliases };
                let mut ours = BytesMut::new();
                entry.put(&mut ours);
                assert_eq!(ours.len(), entry.len());
                let theirs = xds::DeltaDiscoveryResponse {
                    resources: vec![xds::Resource {
                        version: resource.version.to_string(),
                        resource: Some(Any { type_url: "type.googleapis.com/t".into(), value: body.clone() }),
                        name: name.to_owned(),
                        aliases: if with_aliases { aliases.clone() } else { Vec::new() },
                    }],
                    ..Default::default()
                };
                assert_eq!(ours, theirs.encode_to_vec());
            }
        }
    }

    #[test]
    fn versions_are_bare_hex() {
        for (version, text) in
            [(0, "0"), (0xf, "f"), (0x10, "10"), (u64::MAX, "ffffffffffffffff"), (1 << 59, "800000000000000")]
        {
            assert_eq!(Version(version).hex().as_bytes(), text.as_bytes());
            assert_eq!(Version(version).to_string(), text);
            assert_eq!(Version::parse(text), Some(Version(version)));
        }
        for text in ["", "00", "F", "+1", "0x1", "old", "10000000000000000"] {
            assert_eq!(Version::parse(text), None, "{text}");
        }
    }
}
