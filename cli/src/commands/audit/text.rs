//! Strings of the file on their way to a terminal.

use std::fmt::Write as _;

/// Characters of one string that are shown.
const MOST: usize = 1200;

/// `text` in printable ASCII: everything else is escaped, so that nothing moves a cursor, changes a colour or runs from right to left. The file is as good as whoever could
/// write to it.
pub(super) fn printable(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for (index, character) in text.chars().enumerate() {
        if index == MOST {
            shown.push_str("...");
            break;
        }
        if matches!(character, ' '..='~') {
            shown.push(character);
        } else {
            // A string takes everything.
            let _ = write!(shown, "{}", character.escape_unicode());
        }
    }
    shown
}

/// The beginning of a line that is no record.
pub(super) fn shortened(line: &[u8]) -> String {
    let end = line.len().min(200);
    String::from_utf8_lossy(line.get(..end).unwrap_or(line)).into_owned()
}

/// Nanoseconds as people read them.
pub(super) fn duration(nanoseconds: u64) -> String {
    let value = nanoseconds as f64;
    match nanoseconds {
        0..1_000 => format!("{nanoseconds} ns"),
        1_000..1_000_000 => format!("{:.1} us", value / 1e3),
        1_000_000..1_000_000_000 => format!("{:.1} ms", value / 1e6),
        _ => format!("{:.1} s", value / 1e9),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn durations_have_a_fitting_unit() {
        let shown = [0, 999, 1_000, 999_999, 1_500_000, u64::MAX].map(duration);
        assert_eq!(
            shown,
            [
                "0 ns",
                "999 ns",
                "1.0 us",
                "1000.0 us",
                "1.5 ms",
                "18446744073.7 s"
            ]
        );
    }

    proptest! {
        #![proptest_config(nvme_vfio_seeded::seeded(256))]

        #[test]
        fn nothing_but_printable_ascii_comes_out(text in any::<String>(), bytes in any::<Vec<u8>>()) {
            for shown in [printable(&text), printable(&shortened(&bytes))] {
                prop_assert!(shown.bytes().all(|byte| matches!(byte, b' '..=b'~')), "{shown:?}");
            }
        }
    }
}
