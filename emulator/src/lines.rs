//! TOML with the line of everything, so that every error can say where.

use std::ops::Range;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// A text that is not TOML.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct NotToml {
    /// Line, from 1.
    pub(crate) line: usize,
    pub(crate) message: String,
}

/// A table as it is written: names and values with their lines, in the order of the lines.
#[derive(Clone, Debug)]
pub(crate) struct Table {
    /// The line where it begins.
    pub(crate) line: usize,
    pub(crate) entries: Vec<Item>,
}

/// One entry of a table.
#[derive(Clone, Debug)]
pub(crate) struct Item {
    pub(crate) line: usize,
    pub(crate) name: String,
    pub(crate) value: Value,
}

/// A value.
#[derive(Clone, Debug)]
pub(crate) enum Value {
    /// A string, a number, `true` or `false`, as text. Numbers are decimal here, however they were written.
    Scalar(String),
    List(Vec<(usize, Value)>),
    Table(Table),
    /// What nothing here takes: a date, a fraction, a number beyond 64 bits.
    Odd,
}

impl Value {
    pub(crate) fn scalar(&self) -> Option<&str> {
        match self {
            Value::Scalar(text) => Some(text),
            _ => None,
        }
    }
}

struct Lines<'a>(&'a str);

impl Lines<'_> {
    fn at(&self, span: Range<usize>) -> usize {
        let before = self.0.as_bytes().get(..span.start).unwrap_or_default();
        1 + before.iter().filter(|byte| **byte == b'\n').count()
    }

    fn table(&self, line: usize, table: &DeTable<'_>) -> Table {
        let mut entries: Vec<Item> = table
            .iter()
            .map(|(name, value)| Item {
                line: self.at(name.span()),
                name: name.get_ref().to_string(),
                value: self.value(value),
            })
            .collect();
        entries.sort_by_key(|item| item.line);
        Table { line, entries }
    }

    fn value(&self, value: &Spanned<DeValue<'_>>) -> Value {
        match value.get_ref() {
            DeValue::String(text) => Value::Scalar(text.to_string()),
            DeValue::Integer(number) => {
                let digits = number.as_str();
                let (sign, digits) = match digits.strip_prefix('-') {
                    Some(digits) => ("-", digits),
                    None => ("", digits.trim_start_matches('+')),
                };
                match u64::from_str_radix(digits, number.radix()) {
                    Ok(number) => Value::Scalar(format!("{sign}{number}")),
                    Err(_) => Value::Odd,
                }
            }
            DeValue::Boolean(on) => Value::Scalar(if *on { "on" } else { "off" }.into()),
            DeValue::Array(list) => Value::List(
                list.iter()
                    .map(|value| (self.at(value.span()), self.value(value)))
                    .collect(),
            ),
            DeValue::Table(table) => Value::Table(self.table(self.at(value.span()), table)),
            _ => Value::Odd,
        }
    }
}

/// Reads TOML.
pub(crate) fn read(text: &str) -> Result<Table, NotToml> {
    let lines = Lines(text);
    match DeTable::parse(text) {
        Ok(table) => Ok(lines.table(1, table.get_ref())),
        Err(error) => Err(NotToml {
            line: error.span().map_or(1, |span| lines.at(span)),
            message: error.message().to_string(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_has_its_line() {
        let table =
            read("a = 1\n\nb = { c = 0x10, d = true }\n[[e]]\nf = [1,\n'x']\n[[e]]\n").unwrap();
        let lines: Vec<(usize, &str)> = table
            .entries
            .iter()
            .map(|item| (item.line, item.name.as_str()))
            .collect();
        assert_eq!(lines, [(1, "a"), (3, "b"), (4, "e")]);
        assert_eq!(table.entries[0].value.scalar(), Some("1"));
        let Value::Table(inner) = &table.entries[1].value else {
            panic!("{table:?}")
        };
        assert_eq!(inner.entries[0].value.scalar(), Some("16"));
        assert_eq!(inner.entries[1].value.scalar(), Some("on"));
        let Value::List(tables) = &table.entries[2].value else {
            panic!("{table:?}")
        };
        assert_eq!(
            tables.iter().map(|(line, _)| *line).collect::<Vec<_>>(),
            [4, 7]
        );
    }

    #[test]
    fn what_is_not_toml_is_refused_with_its_line() {
        assert_eq!(read("a = 1\nb = = 2\n").unwrap_err().line, 2);
        assert_eq!(read("a = 1\na = 2\n").unwrap_err().line, 2);
        assert!(matches!(
            read("a = 99999999999999999999").unwrap().entries[0].value,
            Value::Odd
        ));
        assert!(matches!(
            read("a = 1.5").unwrap().entries[0].value,
            Value::Odd
        ));
    }
}
