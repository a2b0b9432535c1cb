//! Bytes that somebody else chose, made safe to keep.

use std::fmt;

use serde::{Serialize, Serializer};

/// Bytes of a text that are kept.
const MOST_BYTES: usize = 1024;

/// Text of any origin: always UTF-8, never longer than 1,100 bytes. A byte that is not UTF-8 becomes `\xNN`; what is cut off is shown by three dots. Control characters are
/// kept: whoever writes it escapes them.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Text(Box<str>);

impl Text {
    /// Keeps what fits of `bytes`.
    #[must_use]
    pub fn new(bytes: impl AsRef<[u8]>) -> Text {
        let bytes = bytes.as_ref();
        let mut text = String::new();
        for chunk in bytes.utf8_chunks() {
            for character in chunk.valid().chars() {
                if text.len() >= MOST_BYTES {
                    return Text::cut(text);
                }
                text.push(character);
            }
            for byte in chunk.invalid() {
                if text.len() >= MOST_BYTES {
                    return Text::cut(text);
                }
                text.push_str(&format!("\\x{byte:02x}"));
            }
        }
        Text(text.into())
    }

    fn cut(mut text: String) -> Text {
        text.push_str("...");
        Text(text.into())
    }

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl<T: AsRef<[u8]>> From<T> for Text {
    fn from(bytes: T) -> Text {
        Text::new(bytes)
    }
}

impl fmt::Display for Text {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Serialize for Text {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}
