//! Amounts with a unit: `2GiB`, `200MiB/s`.

/// Units, largest first, with the power of two that each is.
const UNITS: [(&str, u32); 5] = [("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10), ("B", 0)];

/// Reads a whole number with a unit and then `suffix` (`""` for bytes, `"/s"` for bytes per second).
///
/// The units are powers of 1024 and are written so; `GB` is refused, as it means 1000³ to one reader and 1024³ to the next.
pub(super) fn parse(text: &str, suffix: &str) -> Result<u64, String> {
    let example = match suffix {
        "" | "B" => "\"2GiB\"",
        _ => "\"200MiB/s\"",
    };
    let suffix = if suffix == "B" { "" } else { suffix };
    let shape = || {
        format!(
            "\"{text}\" is no amount: write a whole number and B, KiB, MiB, GiB or TiB, as in {example}"
        )
    };
    let body = text.strip_suffix(suffix).ok_or_else(shape)?;
    let end = body
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(body.len());
    let (digits, unit) = body.split_at(end);
    let (_, shift) = UNITS
        .iter()
        .find(|(name, _)| *name == unit.trim_start_matches(' '))
        .ok_or_else(shape)?;
    if digits.is_empty() {
        return Err(shape());
    }
    digits
        .parse::<u64>()
        .ok()
        .and_then(|number| number.checked_mul(1 << shift))
        .ok_or_else(|| format!("\"{text}\" is more than 64 bits hold"))
}

/// Writes an amount in the largest unit that gives a whole number. `suffix` as for [`parse`].
pub(super) fn show(number: u64, suffix: &str) -> String {
    let suffix = if suffix == "B" { "" } else { suffix };
    let (unit, shift) = UNITS
        .iter()
        .find(|(_, shift)| number != 0 && number.trailing_zeros() >= *shift)
        .copied()
        .unwrap_or(("B", 0));
    format!("{}{unit}{suffix}", number >> shift)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts() {
        for (text, suffix, value) in [
            ("2GiB", "B", 2 << 30),
            ("2 GiB", "B", 2 << 30),
            ("1TiB", "B", 1 << 40),
            ("4096B", "B", 4096),
            ("200MiB/s", "/s", 200 << 20),
            ("0KiB/s", "/s", 0),
            ("16777215TiB", "B", 16_777_215 << 40),
        ] {
            assert_eq!(parse(text, suffix), Ok(value), "{text}");
        }
    }

    #[test]
    fn what_is_no_amount() {
        for (text, suffix) in [
            ("", "B"),
            ("GiB", "B"),
            ("2GB", "B"),
            ("2G", "B"),
            ("2gib", "B"),
            ("2", "B"),
            ("-2GiB", "B"),
            ("1.5GiB", "B"),
            ("2GiB/s", "B"),
            ("2GiB", "/s"),
            ("/s", "/s"),
            ("2GiBx", "B"),
            ("2 GiB ", "B"),
            ("16777216TiB", "B"),
            ("99999999999999999999B", "B"),
        ] {
            assert!(parse(text, suffix).is_err(), "{text}");
        }
    }

    proptest::proptest! {
        #![proptest_config(nvme_vfio_seeded::seeded(256))]

        #[test]
        fn what_is_shown_is_read_back(number: u64) {
            for suffix in ["B", "/s"] {
                proptest::prop_assert_eq!(parse(&show(number, suffix), suffix), Ok(number));
            }
        }

        #[test]
        fn no_text_is_too_odd(text in ".{0,24}") {
            let _ = parse(&text, "B");
            let _ = parse(&text, "/s");
        }
    }
}
