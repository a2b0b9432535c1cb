//! TOML with the place of everything, so that every error can say where.

use std::fmt;
use std::ops::Range;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::error::{Fault, PolicyError};

/// Where something is in a policy file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Place {
    /// Line, from 1.
    pub line: usize,
    /// Column in characters, from 1.
    pub column: usize,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.line, self.column)
    }
}

/// A value and its place.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) place: Place,
    /// The key that it belongs to, for errors.
    pub(super) key: String,
    value: Value,
}

#[derive(Debug)]
enum Value {
    Text(String),
    Number(u64),
    Switch(bool),
    List(Vec<Node>),
    Table(Table),
    /// What no key takes: a date, a fraction, a number below 0 or beyond 64 bits.
    Other(&'static str),
}

impl Value {
    fn kind(&self) -> &'static str {
        match self {
            Value::Text(_) => "a string",
            Value::Number(_) => "a number",
            Value::Switch(_) => "true or false",
            Value::List(_) => "a list",
            Value::Table(_) => "a table",
            Value::Other(kind) => kind,
        }
    }
}

impl Node {
    /// An error about this value.
    pub(super) fn fault(&self, fault: Fault) -> PolicyError {
        PolicyError::at(self.place, fault)
    }

    fn wrong(&self, wanted: &'static str) -> PolicyError {
        self.fault(Fault::Kind {
            key: self.key.clone(),
            wanted,
            found: self.value.kind(),
        })
    }

    pub(super) fn text(&self) -> Result<&str, PolicyError> {
        match &self.value {
            Value::Text(text) => Ok(text),
            _ => Err(self.wrong("a string")),
        }
    }

    pub(super) fn switch(&self) -> Result<bool, PolicyError> {
        match self.value {
            Value::Switch(on) => Ok(on),
            _ => Err(self.wrong("true or false")),
        }
    }

    /// A whole number from `least` to `most`.
    pub(super) fn number(&self, least: u64, most: u64) -> Result<u64, PolicyError> {
        match self.value {
            Value::Number(number) if (least..=most).contains(&number) => Ok(number),
            Value::Number(number) => Err(self.range(&number.to_string(), least, most, "")),
            _ => Err(self.wrong("a whole number")),
        }
    }

    /// An amount with a unit, or a whole number, from `least` to `most`.
    pub(super) fn amount(
        &self,
        least: u64,
        most: u64,
        unit: &'static str,
    ) -> Result<u64, PolicyError> {
        let (number, written) = match &self.value {
            Value::Number(number) => (*number, number.to_string()),
            Value::Text(text) => match super::quantity::parse(text, unit) {
                Ok(number) => (number, text.clone()),
                Err(reason) => {
                    return Err(self.fault(Fault::Quantity {
                        key: self.key.clone(),
                        reason,
                    }));
                }
            },
            _ => return Err(self.wrong("an amount such as \"2GiB\", or a whole number")),
        };
        if (least..=most).contains(&number) {
            Ok(number)
        } else {
            Err(self.range(&written, least, most, unit))
        }
    }

    fn range(&self, value: &str, least: u64, most: u64, unit: &str) -> PolicyError {
        let bound = |number| match unit {
            "" => format!("{number}"),
            unit => super::quantity::show(number, unit),
        };
        self.fault(Fault::Range {
            key: self.key.clone(),
            value: value.to_owned(),
            least: bound(least),
            most: bound(most),
        })
    }

    /// A list of `1..=most` values.
    pub(super) fn list(self, most: usize) -> Result<Vec<Node>, PolicyError> {
        let place = self.place;
        match self.value {
            Value::List(list) if list.is_empty() || list.len() > most => Err(PolicyError::at(
                place,
                Fault::Count {
                    key: self.key,
                    count: list.len(),
                    most,
                },
            )),
            Value::List(list) => Ok(list),
            _ => Err(self.wrong("a list")),
        }
    }

    pub(super) fn table(self) -> Result<Table, PolicyError> {
        match self.value {
            Value::Table(table) => Ok(table),
            _ => Err(self.wrong("a table")),
        }
    }
}

/// A table whose entries are taken one by one.
#[derive(Debug)]
pub(super) struct Table {
    pub(super) place: Place,
    /// How the table is called in errors.
    name: String,
    entries: Vec<(Place, Node)>,
}

impl Table {
    /// The value of a key that may be left out.
    pub(super) fn take(&mut self, key: &str) -> Option<Node> {
        let at = self.entries.iter().position(|(_, node)| node.key == key)?;
        Some(self.entries.remove(at).1)
    }

    /// The value of a key that may not be left out.
    pub(super) fn need(&mut self, key: &'static str) -> Result<Node, PolicyError> {
        self.take(key).ok_or_else(|| {
            PolicyError::at(
                self.place,
                Fault::Missing {
                    key,
                    table: self.name.clone(),
                },
            )
        })
    }

    /// Refuses the first key that has no meaning. It is asked before any is taken: a key that is missing may be there, misspelt.
    pub(super) fn only(self, known: &'static [&'static str]) -> Result<Self, PolicyError> {
        let unknown = |(_, node): &&(Place, Node)| !known.contains(&node.key.as_str());
        match self.entries.iter().find(unknown) {
            None => Ok(self),
            Some((place, node)) => Err(PolicyError::at(
                *place,
                Fault::UnknownKey {
                    key: node.key.clone(),
                    table: self.name.clone(),
                    known: known.join(", "),
                },
            )),
        }
    }
}

/// Finds lines and columns in a text.
struct Places<'a>(&'a str);

impl Places<'_> {
    fn at(&self, span: Range<usize>) -> Place {
        let mut start = span.start.min(self.0.len());
        while !self.0.is_char_boundary(start) {
            start -= 1;
        }
        let (before, _) = self.0.split_at(start);
        let line = before.rfind('\n').map_or(before, |at| &before[at + 1..]); // INVARIANT: a line feed is one byte
        Place {
            line: 1 + before.bytes().filter(|byte| *byte == b'\n').count(),
            column: 1 + line.chars().count(),
        }
    }

    fn table(&self, place: Place, name: String, table: &DeTable<'_>) -> Table {
        let mut entries: Vec<(Place, Node)> = table
            .iter()
            .map(|(key, value)| {
                let name = key.get_ref().to_string();
                (self.at(key.span()), self.node(name, value))
            })
            .collect();
        entries.sort_by_key(|(place, _)| *place);
        Table {
            place,
            name,
            entries,
        }
    }

    fn node(&self, key: String, value: &Spanned<DeValue<'_>>) -> Node {
        let place = self.at(value.span());
        let value = match value.get_ref() {
            DeValue::String(text) => Value::Text(text.to_string()),
            DeValue::Integer(number) => {
                let digits = number.as_str();
                let digits = digits.strip_prefix('+').unwrap_or(digits);
                match u64::from_str_radix(digits, number.radix()) {
                    Ok(number) => Value::Number(number),
                    Err(_) if digits.starts_with('-') => Value::Other("a number below 0"),
                    Err(_) => Value::Other("a number beyond 64 bits"),
                }
            }
            DeValue::Boolean(on) => Value::Switch(*on),
            DeValue::Array(list) => Value::List(
                list.iter()
                    .map(|value| self.node(key.clone(), value))
                    .collect(),
            ),
            DeValue::Table(table) => Value::Table(self.table(place, key.clone(), table)),
            DeValue::Float(_) => Value::Other("a fraction"),
            DeValue::Datetime(_) => Value::Other("a date"),
        };
        Node { place, key, value }
    }
}

/// Reads TOML.
pub(super) fn read(text: &str) -> Result<Table, PolicyError> {
    let places = Places(text);
    match DeTable::parse(text) {
        Ok(table) => {
            let start = Place { line: 1, column: 1 };
            Ok(places.table(start, "the policy".to_owned(), table.get_ref()))
        }
        Err(error) => Err(PolicyError::at(
            places.at(error.span().unwrap_or(0..0)),
            Fault::Toml(error.message().to_owned()),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_has_its_line_and_column() {
        let mut table =
            read("a = 1\n\nb = { c = 0x10,\n  d = 'x' }\n[[e]]\nf = [1,\n'ü', 'x']\n").unwrap();
        let place = |line, column| Place { line, column };
        assert_eq!(table.need("a").unwrap().place, place(1, 5));
        let mut inner = table.need("b").unwrap().table().unwrap();
        assert_eq!(inner.place, place(3, 5));
        assert_eq!(inner.need("c").unwrap().number(0, 99).unwrap(), 16);
        assert_eq!(inner.need("d").unwrap().place, place(4, 7));
        let list = table.need("e").unwrap().list(1).unwrap();
        let mut first = list.into_iter().next().unwrap().table().unwrap();
        let list = first.need("f").unwrap().list(3).unwrap();
        // The character before it has two bytes and one column.
        assert_eq!(list[2].place, place(7, 6));
    }

    #[test]
    fn what_has_no_meaning_is_refused_where_it_stands() {
        let table = read("a = 1\nzz = 2\nb = 3\n").unwrap();
        let error = table.only(&["a", "b"]).unwrap_err();
        assert_eq!(error.place().line, 2);
        assert!(error.to_string().contains("zz"), "{error}");
        assert!(read("b = 3\n").unwrap().only(&["a", "b"]).is_ok());
    }

    #[test]
    fn what_is_not_toml_is_refused_with_its_line() {
        for (text, line) in [("a = 1\nb = = 2\n", 2), ("a = 1\na = 2\n", 2), ("\n\n[", 3)] {
            assert_eq!(read(text).unwrap_err().place().line, line, "{text:?}");
        }
    }

    #[test]
    fn numbers_beyond_64_bits_and_below_0_are_no_numbers() {
        for text in ["a = 99999999999999999999", "a = -1", "a = 1.5", "a = '1'"] {
            let node = read(text).unwrap().need("a").unwrap();
            assert!(node.number(0, u64::MAX).is_err(), "{text}");
        }
    }
}
