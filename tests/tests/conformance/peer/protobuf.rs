//! Protobuf by field number: enough to write and read the messages of the contract without their definitions.

use anyhow::{Context, Result, bail, ensure};

/// A message being written.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Message(pub(crate) Vec<u8>);

impl Message {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    /// A number; zero is left out, as proto3 does.
    #[must_use]
    pub(crate) fn uint(self, field: u32, value: u64) -> Self {
        if value == 0 { self } else { self.uint_always(field, value) }
    }

    /// A number, zero included.
    #[must_use]
    pub(crate) fn uint_always(mut self, field: u32, value: u64) -> Self {
        varint(&mut self.0, u64::from(field << 3));
        varint(&mut self.0, value);
        self
    }

    /// A string; an empty one is left out.
    #[must_use]
    pub(crate) fn string(self, field: u32, value: &str) -> Self {
        if value.is_empty() { self } else { self.bytes(field, value.as_bytes()) }
    }

    #[must_use]
    pub(crate) fn bytes(mut self, field: u32, value: &[u8]) -> Self {
        varint(&mut self.0, u64::from(field << 3 | 2));
        varint(&mut self.0, value.len() as u64);
        self.0.extend_from_slice(value);
        self
    }

    #[must_use]
    pub(crate) fn message(self, field: u32, value: &Self) -> Self {
        self.bytes(field, &value.0)
    }

    #[must_use]
    pub(crate) fn messages(self, field: u32, values: impl IntoIterator<Item = Self>) -> Self {
        values.into_iter().fold(self, |message, value| message.message(field, &value))
    }

    #[must_use]
    pub(crate) fn strings<S: AsRef<str>>(self, field: u32, values: impl IntoIterator<Item = S>) -> Self {
        values.into_iter().fold(self, |message, value| message.bytes(field, value.as_ref().as_bytes()))
    }

    #[must_use]
    pub(crate) fn strings_raw(self, field: u32, values: impl IntoIterator<Item = Vec<u8>>) -> Self {
        values.into_iter().fold(self, |message, value| message.bytes(field, &value))
    }

    /// Repeated numbers in the packed form.
    #[must_use]
    pub(crate) fn packed(self, field: u32, values: &[u64]) -> Self {
        if values.is_empty() {
            return self;
        }
        let mut body = Vec::new();
        values.iter().for_each(|value| varint(&mut body, *value));
        self.bytes(field, &body)
    }
}

fn varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// One field's value as it stood on the wire.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Value {
    Number(u64),
    Bytes(Vec<u8>),
}

/// A message that was read: its fields in order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Fields(pub(crate) Vec<(u32, Value)>);

impl Fields {
    pub(crate) fn read(mut bytes: &[u8]) -> Result<Self> {
        let mut fields = Vec::new();
        while !bytes.is_empty() {
            let key = read_varint(&mut bytes)?;
            let field = u32::try_from(key >> 3).context("a field number")?;
            let value = match key & 7 {
                0 => Value::Number(read_varint(&mut bytes)?),
                1 => Value::Number(u64::from_le_bytes(take(&mut bytes, 8)?.try_into()?)),
                2 => {
                    let length = usize::try_from(read_varint(&mut bytes)?)?;
                    Value::Bytes(take(&mut bytes, length)?.to_vec())
                }
                5 => Value::Number(u32::from_le_bytes(take(&mut bytes, 4)?.try_into()?).into()),
                other => bail!("wire type {other} in field {field}"),
            };
            fields.push((field, value));
        }
        Ok(Self(fields))
    }

    /// The field numbers that occur, sorted, each once.
    pub(crate) fn numbers(&self) -> Vec<u32> {
        let mut numbers: Vec<u32> = self.0.iter().map(|(number, _)| *number).collect();
        numbers.sort_unstable();
        numbers.dedup();
        numbers
    }

    pub(crate) fn has(&self, field: u32) -> bool {
        self.0.iter().any(|(number, _)| *number == field)
    }

    pub(crate) fn number(&self, field: u32) -> u64 {
        let last = self.0.iter().rev().find_map(|(number, value)| match value {
            Value::Number(value) if *number == field => Some(*value),
            _ => None,
        });
        last.unwrap_or(0)
    }

    pub(crate) fn all(&self, field: u32) -> Vec<&[u8]> {
        let of_it = self.0.iter().filter_map(|(number, value)| match value {
            Value::Bytes(bytes) if *number == field => Some(bytes.as_slice()),
            _ => None,
        });
        of_it.collect()
    }

    pub(crate) fn bytes(&self, field: u32) -> &[u8] {
        self.all(field).last().copied().unwrap_or_default()
    }

    pub(crate) fn string(&self, field: u32) -> String {
        String::from_utf8_lossy(self.bytes(field)).into_owned()
    }

    pub(crate) fn strings(&self, field: u32) -> Vec<String> {
        self.all(field).into_iter().map(|bytes| String::from_utf8_lossy(bytes).into_owned()).collect()
    }

    pub(crate) fn message(&self, field: u32) -> Result<Self> {
        Self::read(self.bytes(field)).with_context(|| format!("field {field}"))
    }

    pub(crate) fn messages(&self, field: u32) -> Result<Vec<Self>> {
        self.all(field).into_iter().map(Self::read).collect()
    }

    /// A `map<string, string>` field.
    pub(crate) fn map(&self, field: u32) -> Result<Vec<(String, String)>> {
        let entries = self.messages(field)?;
        Ok(entries.iter().map(|entry| (entry.string(1), entry.string(2))).collect())
    }

    /// A google.protobuf.Struct as JSON.
    pub(crate) fn json(&self) -> Result<serde_json::Value> {
        let mut object = serde_json::Map::new();
        for entry in self.messages(1)? {
            object.insert(entry.string(1), json_value(&entry.message(2)?)?);
        }
        Ok(object.into())
    }
}

/// A google.protobuf.Value as JSON.
fn json_value(value: &Fields) -> Result<serde_json::Value> {
    Ok(match value.0.last() {
        Some((2, Value::Number(bits))) => f64::from_bits(*bits).into(),
        Some((3, Value::Bytes(text))) => String::from_utf8(text.clone())?.into(),
        Some((4, Value::Number(truth))) => (*truth != 0).into(),
        Some((5, Value::Bytes(inner))) => Fields::read(inner)?.json()?,
        Some((6, Value::Bytes(list))) => {
            let list = Fields::read(list)?;
            list.messages(1)?.iter().map(json_value).collect::<Result<Vec<_>>>()?.into()
        }
        _ => serde_json::Value::Null,
    })
}

fn read_varint(bytes: &mut &[u8]) -> Result<u64> {
    let mut value = 0u64;
    for shift in (0..64).step_by(7) {
        let (first, rest) = bytes.split_first().context("a number that ends too early")?;
        *bytes = rest;
        value |= u64::from(first & 0x7f) << shift;
        if first & 0x80 == 0 {
            return Ok(value);
        }
    }
    bail!("a number of more than ten bytes")
}

fn take<'a>(bytes: &mut &'a [u8], length: usize) -> Result<&'a [u8]> {
    ensure!(bytes.len() >= length, "{length} bytes announced, {} there", bytes.len());
    let (taken, rest) = bytes.split_at(length);
    *bytes = rest;
    Ok(taken)
}

#[test]
fn a_recorded_packet_is_written_and_read() -> Result<()> {
    // The Add of ../recordings/zds/add.json, shortened.
    let info = Message::new().string(1, "n").string(2, "amb").string(3, "server");
    let packet = Message::new().message(1, &Message::new().string(1, "uid").message(2, &info));
    assert_eq!(packet.0, b"\x0a\x17\x0a\x03uid\x12\x10\x0a\x01n\x12\x03amb\x1a\x06server");
    let read = Fields::read(&packet.0)?.message(1)?;
    assert_eq!((read.string(1), read.message(2)?.string(3)), ("uid".into(), "server".into()));
    assert_eq!(Message::new().packed(9, &[80, 300]).0, [0x4a, 3, 80, 0xac, 2]);
    Ok(())
}
