//! Text that a controller returned.

use core::fmt::{self, Write};

/// An ASCII field of fixed length, padded with spaces (some controllers pad with zeroes).
///
/// [`Display`](fmt::Display) leaves the padding out on both sides, and is safe to print: every byte
/// that is no printable ASCII character comes out as `\xNN`, a backslash as `\\`.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Ascii<'a>(&'a [u8]);

impl<'a> Ascii<'a> {
    /// Of a whole field, padding included.
    #[must_use]
    pub fn new(field: &'a [u8]) -> Self {
        let is_text = |byte: &u8| !matches!(byte, b' ' | 0);
        let start = field.iter().position(is_text).unwrap_or(field.len());
        let end = field
            .iter()
            .rposition(is_text)
            .map_or(start, |last| last + 1);
        Self(field.get(start..end).unwrap_or_default())
    }

    /// Of a field that ends at its first zero byte (NVMe Qualified Names).
    #[must_use]
    pub fn zero_terminated(field: &'a [u8]) -> Self {
        Self(field.split(|byte| *byte == 0).next().unwrap_or_default())
    }

    /// The bytes without padding, as the controller sent them: not safe to print.
    #[must_use]
    pub fn as_bytes(&self) -> &'a [u8] {
        self.0
    }

    /// Whether there is nothing but padding.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl fmt::Display for Ascii<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // `pad` honours width and alignment, which count what is printed.
        f.pad(&self.escaped())
    }
}

impl Ascii<'_> {
    fn escaped(&self) -> String {
        let mut text = String::with_capacity(self.0.len());
        for byte in self.0 {
            match byte {
                b'\\' => text.push_str(r"\\"),
                b' '..=b'~' => text.push(char::from(*byte)),
                // Writing to a String does not fail.
                _ => _ = write!(text, r"\x{byte:02x}"),
            }
        }
        text
    }
}

impl fmt::Debug for Ascii<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{self}\"")
    }
}
