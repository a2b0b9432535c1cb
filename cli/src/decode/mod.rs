//! Data structures of the controller, field by field, under nvme-cli's names.
//!
//! A structure is a table of [`Field`]s over its raw bytes, so that a field can be shown as text,
//! as JSON and bit by bit from one line of source.

use std::fmt::Write as _;

use serde::{Serialize, Serializer, ser::SerializeMap};

pub mod identify_controller;
pub mod identify_namespace;
pub mod registers;
pub mod smart;

/// How a field is shown as text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Show {
    /// A decimal number.
    Decimal,
    /// A hexadecimal number after `0x`.
    Hex,
    /// ASCII text, padded with blanks or zeros.
    Text,
    /// The bytes in hexadecimal, in their order.
    Bytes,
    /// Sixteen bytes as a UUID.
    Uuid,
}

/// Some bits of a field.
#[derive(Clone, Copy, Debug)]
pub struct Bits {
    /// The highest bit.
    pub high: u8,
    /// The lowest bit.
    pub low: u8,
    /// What they mean, in the specification's words.
    pub name: &'static str,
}

/// A field of a data structure.
#[derive(Clone, Copy, Debug)]
pub struct Field {
    /// nvme-cli's name, which is the specification's in lower case.
    pub key: &'static str,
    /// The first byte.
    pub offset: usize,
    /// Number of bytes: 1 to 16 for a number.
    pub length: usize,
    /// How it is shown as text.
    pub show: Show,
    /// Its bits.
    pub bits: &'static [Bits],
}

/// A decimal number, for tables.
const fn d(key: &'static str, offset: usize, length: usize) -> Field {
    Field::decimal(key, offset, length)
}

/// A hexadecimal number, for tables.
const fn x(key: &'static str, offset: usize, length: usize) -> Field {
    Field::hex(key, offset, length)
}

/// Bits, for tables.
const fn b(high: u8, low: u8, name: &'static str) -> Bits {
    Bits { high, low, name }
}

/// Adds what the vendor keeps in a data structure from `offset` on.
fn push_vendor_specific(out: &mut String, data: &[u8], offset: usize) {
    let _ = write!(
        out,
        "vs[]:\n{}",
        dump(data.get(offset..).unwrap_or_default())
    );
}

impl Field {
    /// A decimal number.
    #[must_use]
    pub const fn decimal(key: &'static str, offset: usize, length: usize) -> Self {
        Self {
            key,
            offset,
            length,
            show: Show::Decimal,
            bits: &[],
        }
    }

    /// A hexadecimal number.
    #[must_use]
    pub const fn hex(key: &'static str, offset: usize, length: usize) -> Self {
        Self {
            key,
            offset,
            length,
            show: Show::Hex,
            bits: &[],
        }
    }

    /// Another way to show it.
    #[must_use]
    pub const fn shown(mut self, show: Show) -> Self {
        self.show = show;
        self
    }

    /// With its bits explained.
    #[must_use]
    pub const fn bits(mut self, bits: &'static [Bits]) -> Self {
        self.bits = bits;
        self
    }

    /// Its bytes; fewer if the structure ends before.
    fn bytes<'a>(&self, data: &'a [u8]) -> &'a [u8] {
        let end = data.len().min(self.offset + self.length);
        data.get(self.offset..end).unwrap_or_default()
    }

    /// Its number, little-endian.
    #[must_use]
    pub fn number(&self, data: &[u8]) -> u128 {
        self.bytes(data)
            .iter()
            .take(16)
            .rev()
            .fold(0, |number, &byte| number << 8 | u128::from(byte))
    }

    fn item(&self, data: &[u8]) -> Item {
        match self.show {
            Show::Decimal | Show::Hex => Item::Number(self.number(data)),
            Show::Text => Item::Text(text(self.bytes(data))),
            Show::Bytes => Item::Text(
                self.bytes(data)
                    .iter()
                    .fold(String::new(), |text, byte| text + &format!("{byte:02x}")),
            ),
            Show::Uuid => Item::Text(uuid(self.bytes(data))),
        }
    }

    fn write(&self, out: &mut String, data: &[u8], width: usize, explain: bool) {
        let key = self.key;
        let _ = match (self.show, self.item(data)) {
            (Show::Hex, Item::Number(number)) => writeln!(out, "{key:width$}: {number:#x}"),
            (_, Item::Number(number)) => writeln!(out, "{key:width$}: {number}"),
            (_, Item::Text(text)) => writeln!(out, "{key:width$}: {text}"),
            (_, Item::Object(_) | Item::List(_)) => Ok(()),
        };
        if explain {
            explain_bits(out, self.number(data), self.bits);
        }
    }
}

/// Writes a line for each run of bits.
pub fn explain_bits(out: &mut String, number: u128, bits: &[Bits]) {
    for Bits { high, low, name } in bits {
        let mask = (1_u128 << (high - low + 1)) - 1;
        let place = format!("[{high}:{low}]");
        let _ = writeln!(out, "  {place:>7} : {:#x}\t{name}", number >> low & mask);
    }
}

/// ASCII without its padding; whatever is not printable becomes a dot.
#[must_use]
pub fn text(bytes: &[u8]) -> String {
    let end = bytes
        .iter()
        .position(|&byte| byte == 0)
        .unwrap_or(bytes.len());
    let text: String = bytes
        .iter()
        .take(end)
        .map(|&byte| {
            if (b' '..=b'~').contains(&byte) {
                char::from(byte)
            } else {
                '.'
            }
        })
        .collect();
    text.trim_end().to_owned()
}

fn uuid(bytes: &[u8]) -> String {
    let mut text = String::new();
    for (index, byte) in bytes.iter().enumerate() {
        if matches!(index, 4 | 6 | 8 | 10) {
            text.push('-');
        }
        let _ = write!(text, "{byte:02x}");
    }
    text
}

/// A JSON value; numbers of the controller have up to 128 bits.
#[derive(Clone, Debug, PartialEq)]
pub enum Item {
    /// A number.
    Number(u128),
    /// A string.
    Text(String),
    /// An object.
    Object(Object),
    /// An array of objects.
    List(Vec<Object>),
}

impl Serialize for Item {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Number(number) => match u64::try_from(*number) {
                Ok(small) => serializer.serialize_u64(small),
                Err(_) => serializer.serialize_u128(*number),
            },
            Self::Text(text) => serializer.serialize_str(text),
            Self::Object(object) => object.serialize(serializer),
            Self::List(list) => serializer.collect_seq(list),
        }
    }
}

/// A JSON object that keeps the order of its keys.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Object(Vec<(String, Item)>);

impl Object {
    /// The fields of `data`.
    #[must_use]
    pub fn of<'a>(data: &[u8], fields: impl IntoIterator<Item = &'a Field>) -> Self {
        Self(
            fields
                .into_iter()
                .map(|field| (field.key.to_owned(), field.item(data)))
                .collect(),
        )
    }

    /// Adds a value.
    pub fn push(&mut self, key: impl Into<String>, item: Item) {
        self.0.push((key.into(), item));
    }

    /// Adds the values of another.
    pub fn extend(&mut self, other: Self) {
        self.0.extend(other.0);
    }

    /// The value of a key.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&Item> {
        self.0
            .iter()
            .find_map(|(name, item)| (name == key).then_some(item))
    }
}

impl Serialize for Object {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for (key, item) in &self.0 {
            map.serialize_entry(key, item)?;
        }
        map.end()
    }
}

/// The fields of `data` as lines `key : value`, each with its bits if `explain`.
#[must_use]
pub fn lines(data: &[u8], fields: &[Field], explain: bool) -> String {
    let width = fields
        .iter()
        .map(|field| field.key.len())
        .max()
        .unwrap_or(0)
        .max(8)
        + 1;
    let mut out = String::new();
    for field in fields {
        field.write(&mut out, data, width, explain);
    }
    out
}

/// A hexadecimal dump, sixteen bytes to a line.
#[must_use]
pub fn dump(bytes: &[u8]) -> String {
    let mut out = String::new();
    for (index, row) in bytes.chunks(16).enumerate() {
        let _ = write!(out, "{:04x}:", index * 16);
        for byte in row {
            let _ = write!(out, " {byte:02x}");
        }
        let ascii: String = row
            .iter()
            .map(|&byte| {
                if (b' '..=b'~').contains(&byte) {
                    char::from(byte)
                } else {
                    '.'
                }
            })
            .collect();
        let _ = writeln!(out, " \"{ascii}\"");
    }
    out
}

/// A hexadecimal dump under a line that numbers its columns, as nvme-cli shows data that it does not know; empty for no bytes.
#[must_use]
pub fn hex_dump(bytes: &[u8]) -> String {
    let mut out = String::new();
    if !bytes.is_empty() {
        out.push_str("       0  1  2  3  4  5  6  7  8  9  a  b  c  d  e  f\n");
    }
    for (index, row) in bytes.chunks(16).enumerate() {
        let shown = dump(row);
        // The texts of all rows begin in one column.
        let (numbers, text) = shown.split_once(" \"").unwrap_or((&shown, "\n"));
        let numbers = numbers.get(5..).unwrap_or_default();
        let _ = write!(out, "{:04x}:{numbers:<48} \"{text}", index * 16);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_of_unknown_data_end_in_one_column() {
        let text = hex_dump(b"0123456789abcdef \"x");
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines[0].starts_with("       0  1  2"));
        assert!(lines[1].ends_with("\"0123456789abcdef\""));
        assert!(lines[2].starts_with("0010: 20 22 78 ") && lines[2].ends_with("\" \"x\""));
        assert_eq!(lines[1].find('"'), lines[2].find('"'));
        assert_eq!(hex_dump(&[]), "");
    }

    #[test]
    fn numbers_are_little_endian_and_bounded() {
        let data = [1, 2, 3, 4];
        assert_eq!(Field::hex("x", 0, 4).number(&data), 0x0403_0201);
        assert_eq!(Field::hex("x", 2, 4).number(&data), 0x0403);
        assert_eq!(Field::hex("x", 9, 4).number(&data), 0);
    }

    #[test]
    fn large_numbers_stay_numbers_in_json() {
        let mut object = Object::default();
        object.push("n", Item::Number(u128::MAX));
        assert_eq!(
            serde_json::to_string(&object).unwrap(),
            format!("{{\"n\":{}}}", u128::MAX)
        );
    }

    #[test]
    fn text_of_the_device_is_made_printable() {
        assert_eq!(text(b"QEMU \x1b[31m  \0junk"), "QEMU .[31m");
        assert_eq!(text(b""), "");
    }

    #[test]
    fn bits_are_cut_out() {
        let mut out = String::new();
        explain_bits(
            &mut out,
            0xa5,
            &[
                Bits {
                    high: 7,
                    low: 4,
                    name: "upper",
                },
                Bits {
                    high: 0,
                    low: 0,
                    name: "last",
                },
            ],
        );
        assert_eq!(out, "    [7:4] : 0xa\tupper\n    [0:0] : 0x1\tlast\n");
    }

    #[test]
    fn a_dump_shows_bytes_and_letters() {
        assert_eq!(dump(b"AB\n"), "0000: 41 42 0a \"AB.\"\n");
    }
}
