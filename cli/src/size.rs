//! Numbers as fio and nvme-cli users write them: sizes with a suffix, durations with a unit.

use std::time::Duration;

/// Parses a count or a size in bytes: decimal, or hexadecimal after `0x`, then an optional suffix
/// `k`, `m`, `g`, `t`, `p` (either case, `b` or `ib` may follow). Every suffix is a power of 1024,
/// as in both tools.
///
/// # Errors
/// What is wrong with the text, in words fit for a usage error.
pub fn parse_size(text: &str) -> Result<u64, String> {
    let (digits, radix) = match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        Some(rest) => (rest, 16),
        None => (text, 10),
    };
    let end = digits
        .find(|c: char| !c.is_digit(radix))
        .unwrap_or(digits.len());
    // A hexadecimal digit `b` is never a suffix: 0x1b is 27.
    let (number, suffix) = digits.split_at(end);
    let number =
        u64::from_str_radix(number, radix).map_err(|_| format!("'{text}' is not a number"))?;
    let shift = match suffix.to_ascii_lowercase().as_str() {
        "" | "b" => 0,
        "k" | "kb" | "ki" | "kib" => 10,
        "m" | "mb" | "mi" | "mib" => 20,
        "g" | "gb" | "gi" | "gib" => 30,
        "t" | "tb" | "ti" | "tib" => 40,
        "p" | "pb" | "pi" | "pib" => 50,
        _ => {
            return Err(format!(
                "'{suffix}' is no suffix of a size; use k, M, G, T or P (powers of 1024)"
            ));
        }
    };
    number
        .checked_mul(1 << shift)
        .ok_or_else(|| format!("'{text}' is more than 64 bits hold"))
}

/// Like [`parse_size`], and not zero.
///
/// # Errors
/// As [`parse_size`].
pub fn parse_positive_size(text: &str) -> Result<u64, String> {
    match parse_size(text)? {
        0 => Err("must be more than 0".into()),
        size => Ok(size),
    }
}

/// Parses a 32-bit number such as a namespace identifier, decimal or hexadecimal after `0x`.
///
/// # Errors
/// What is wrong with the text.
pub fn parse_u32(text: &str) -> Result<u32, String> {
    u32::try_from(parse_size(text)?).map_err(|_| format!("'{text}' is more than 32 bits hold"))
}

/// Parses a 16-bit number, decimal or hexadecimal after `0x`.
///
/// # Errors
/// What is wrong with the text.
pub fn parse_u16(text: &str) -> Result<u16, String> {
    u16::try_from(parse_size(text)?).map_err(|_| format!("'{text}' is more than 16 bits hold"))
}

/// Parses an 8-bit number such as an opcode, decimal or hexadecimal after `0x`.
///
/// # Errors
/// What is wrong with the text.
pub fn parse_u8(text: &str) -> Result<u8, String> {
    u8::try_from(parse_size(text)?).map_err(|_| format!("'{text}' is more than 8 bits hold"))
}

/// Parses a duration: a whole number of seconds, or with a unit `us`, `ms`, `s`, `m`, `h` or `d`.
///
/// # Errors
/// What is wrong with the text, zero included.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let end = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let number: u64 = number
        .parse()
        .map_err(|_| format!("'{text}' is not a time"))?;
    let microseconds: u64 = match unit.to_ascii_lowercase().as_str() {
        "us" | "usec" => 1,
        "ms" | "msec" => 1_000,
        "" | "s" | "sec" => 1_000_000,
        "m" | "min" => 60_000_000,
        "h" | "hr" => 3_600_000_000,
        "d" => 86_400_000_000,
        fraction if fraction.starts_with('.') => {
            return Err(format!(
                "'{text}' is no whole number; use a smaller unit, such as 500ms"
            ));
        }
        _ => {
            return Err(format!(
                "'{unit}' is no unit of time; use us, ms, s, m, h or d"
            ));
        }
    };
    match number.checked_mul(microseconds) {
        Some(0) => Err("must be more than 0".into()),
        Some(total) => Ok(Duration::from_micros(total)),
        None => Err(format!("'{text}' is longer than can be counted")),
    }
}

/// A size in bytes for people: the largest binary unit that leaves at least 1, two decimals at most.
#[must_use]
pub fn binary(bytes: u64) -> String {
    scaled(
        bytes as f64,
        1024.0,
        &["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"],
    )
}

/// A size in bytes for people in powers of 1000, as drives are sold.
#[must_use]
pub fn decimal(bytes: u128) -> String {
    scaled(
        bytes as f64,
        1000.0,
        &["B", "kB", "MB", "GB", "TB", "PB", "EB"],
    )
}

/// A count for people in powers of 1000: `559k`, `1.24M`.
#[must_use]
pub fn count(value: f64) -> String {
    scaled(value, 1000.0, &["", "k", "M", "G"])
}

fn scaled(mut value: f64, base: f64, units: &[&str]) -> String {
    let mut unit = units.first().copied().unwrap_or_default();
    for next in units.iter().skip(1) {
        if value < base {
            break;
        }
        value /= base;
        unit = next;
    }
    let decimals = match value {
        v if v >= 100.0 || v.fract() == 0.0 => 0,
        v if v >= 10.0 => 1,
        _ => 2,
    };
    format!("{value:.decimals$}{unit}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_powers_of_1024() {
        for (text, value) in [
            ("0", 0),
            ("4096", 4096),
            ("4k", 4096),
            ("4K", 4096),
            ("4kb", 4096),
            ("4KiB", 4096),
            ("0x1000", 4096),
            ("0x1b", 27),
            ("1M", 1 << 20),
            ("3g", 3 << 30),
            ("2T", 2 << 40),
            ("1P", 1 << 50),
            ("512b", 512),
        ] {
            assert_eq!(parse_size(text), Ok(value), "{text}");
        }
    }

    #[test]
    fn what_is_no_size_is_refused() {
        for text in [
            "",
            "k",
            "4x",
            "-1",
            "4 k",
            "0x",
            "1.5k",
            "18446744073709551616",
            "16384P",
            "4kk",
        ] {
            assert!(parse_size(text).is_err(), "{text}");
        }
        assert!(parse_positive_size("0k").is_err());
        assert!(parse_u32("0x100000000").is_err());
        assert!(parse_u16("65536").is_err() && parse_u8("0x100").is_err());
        assert_eq!(
            (parse_u16("0xffff"), parse_u8("255")),
            (Ok(u16::MAX), Ok(u8::MAX))
        );
        assert_eq!(parse_u32("0xffffffff"), Ok(u32::MAX));
    }

    #[test]
    fn durations_default_to_seconds() {
        assert_eq!(parse_duration("5"), Ok(Duration::from_secs(5)));
        assert_eq!(parse_duration("250ms"), Ok(Duration::from_millis(250)));
        assert_eq!(parse_duration("10us"), Ok(Duration::from_micros(10)));
        assert_eq!(parse_duration("2m"), Ok(Duration::from_secs(120)));
        for fraction in ["0.5", "1.5s"] {
            let refused = parse_duration(fraction).unwrap_err();
            assert!(refused.contains("no whole number"), "{refused}");
        }
        for text in [
            "",
            "s",
            "0",
            "1x",
            "-1",
            "1.5",
            "999999999999999999999",
            "99999999999999999d",
        ] {
            assert!(parse_duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn sizes_for_people_are_short() {
        assert_eq!(binary(0), "0B");
        assert_eq!(binary(1 << 30), "1GiB");
        assert_eq!(binary(1536), "1.50KiB");
        assert_eq!(decimal(1_000_204_886_016), "1.00TB");
        assert_eq!(count(559_321.0), "559k");
        assert_eq!(count(4_469_995.0), "4.47M");
        assert_eq!(count(12.0), "12");
    }

    proptest::proptest! {
        #![proptest_config(nvme_vfio_seeded::seeded(256))]

        #[test]
        fn any_text_is_parsed_without_panic(text in "\\PC{0,12}") {
            let _ = parse_size(&text);
            let _ = parse_duration(&text);
        }

        #[test]
        fn a_plain_number_is_itself(number: u64) {
            proptest::prop_assert_eq!(parse_size(&number.to_string()), Ok(number));
            proptest::prop_assert_eq!(parse_size(&format!("{number:#x}")), Ok(number));
        }
    }
}
