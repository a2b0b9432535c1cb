//! QEMU's comma-separated `-device` texts: just enough to see what is in one.

/// The value of `key` in a `-device` text, or `None`. A doubled comma is a comma inside a value.
pub(super) fn value<'a>(spec: &'a str, key: &str) -> Option<&'a str> {
    let mut rest = spec;
    loop {
        let end = end_of_part(rest);
        let part = &rest[..end];
        if let Some((name, value)) = part.split_once('=')
            && name == key
        {
            return Some(value);
        }
        rest = rest.get(end + 1..)?;
    }
}

/// The device's driver name: the first part, or the value of `driver`.
pub(super) fn driver(spec: &str) -> &str {
    value(spec, "driver").unwrap_or(&spec[..end_of_part(spec)])
}

fn end_of_part(text: &str) -> usize {
    let mut from = 0;
    while let Some(comma) = text[from..].find(',') {
        let at = from + comma;
        if text[at + 1..].starts_with(',') {
            from = at + 2;
        } else {
            return at;
        }
    }
    text.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_found() {
        assert_eq!(driver("nvme,serial=a,drive=d1"), "nvme");
        assert_eq!(driver("serial=a,driver=nvme"), "nvme");
        assert_eq!(value("nvme,serial=a,drive=d1", "drive"), Some("d1"));
        assert_eq!(value("nvme,serial=a", "drive"), None);
        assert_eq!(value("nvme", "drive"), None);
        assert_eq!(value("nvme,", "drive"), None);
    }

    #[test]
    fn a_doubled_comma_is_part_of_a_value() {
        assert_eq!(value("nvme,serial=a,,drive=b,x=1", "drive"), None);
        assert_eq!(value("nvme,serial=a,,drive=b,x=1", "x"), Some("1"));
    }
}
