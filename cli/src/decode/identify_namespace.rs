//! Identify Namespace of the NVM command set (NVM Command Set Specification 1.0, figure 97).

use std::fmt::Write as _;

use super::{Field, Item, Object, Show, b, d, lines, push_vendor_specific, x};

/// Size of the data structure in bytes.
pub const SIZE: usize = 4096;
const NSFEAT: usize = 24;
const NLBAF: usize = 25;
const FLBAS: usize = 26;
const NULBAF: usize = 91;
const FORMATS: usize = 128;
const FORMAT_SIZE: usize = 4;
const MAX_FORMATS: usize = 64;
const VENDOR_SPECIFIC: usize = 384;
/// NSFEAT bit 4: NPWG, NPWA, NPDG, NPDA and NOWS are defined.
const OPTPERF: u8 = 1 << 4;

/// Fields that are there only with OPTPERF.
const OPTIMAL: &[&str] = &["npwg", "npwa", "npdg", "npda", "nows"];

/// The fields before the LBA formats.
pub const FIELDS: &[Field] = &[
    x("nsze", 0, 8),
    x("ncap", 8, 8),
    x("nuse", 16, 8),
    x("nsfeat", NSFEAT, 1).bits(&[
        b(4, 4, "Optimal Performance Fields are Defined"),
        b(3, 3, "NGUID and EUI64 are Never Reused"),
        b(2, 2, "Deallocated or Unwritten Logical Block Error"),
        b(1, 1, "Namespace Atomic Write Fields are Defined"),
        b(0, 0, "Thin Provisioning"),
    ]),
    d("nlbaf", NLBAF, 1),
    x("flbas", FLBAS, 1).bits(&[
        b(6, 5, "LBA Format, Upper Bits"),
        b(4, 4, "Metadata at the End of the Data"),
        b(3, 0, "LBA Format, Lower Bits"),
    ]),
    x("mc", 27, 1).bits(&[
        b(1, 1, "Metadata in a Separate Buffer"),
        b(0, 0, "Metadata at the End of the Data"),
    ]),
    x("dpc", 28, 1).bits(&[
        b(4, 4, "Protection Information as the Last Bytes of Metadata"),
        b(
            3,
            3,
            "Protection Information as the First Bytes of Metadata",
        ),
        b(2, 2, "Protection Information Type 3"),
        b(1, 1, "Protection Information Type 2"),
        b(0, 0, "Protection Information Type 1"),
    ]),
    x("dps", 29, 1).bits(&[
        b(3, 3, "Protection Information in the First Bytes"),
        b(2, 0, "Protection Information Type"),
    ]),
    x("nmic", 30, 1).bits(&[b(0, 0, "May be Shared by Controllers")]),
    x("rescap", 31, 1).bits(&[
        b(7, 7, "Ignore Existing Key as of Version 1.3"),
        b(6, 6, "Exclusive Access - All Registrants"),
        b(5, 5, "Write Exclusive - All Registrants"),
        b(4, 4, "Exclusive Access - Registrants Only"),
        b(3, 3, "Write Exclusive - Registrants Only"),
        b(2, 2, "Exclusive Access"),
        b(1, 1, "Write Exclusive"),
        b(0, 0, "Persist Through Power Loss"),
    ]),
    x("fpi", 32, 1).bits(&[
        b(7, 7, "Format Progress Indicator"),
        b(6, 0, "Percentage that Remains to be Formatted"),
    ]),
    x("dlfeat", 33, 1).bits(&[
        b(4, 4, "Guard of Deallocated Blocks is the CRC"),
        b(3, 3, "Deallocate Bit in Write Zeroes"),
        b(2, 0, "Bytes Read from a Deallocated Block"),
    ]),
    d("nawun", 34, 2),
    d("nawupf", 36, 2),
    d("nacwu", 38, 2),
    d("nabsn", 40, 2),
    d("nabo", 42, 2),
    d("nabspf", 44, 2),
    d("noiob", 46, 2),
    d("nvmcap", 48, 16),
    x("nsattr", 99, 1).bits(&[b(0, 0, "Write Protected")]),
    d("nvmsetid", 100, 2),
    d("npwg", 64, 2),
    d("npwa", 66, 2),
    d("npdg", 68, 2),
    d("npda", 70, 2),
    d("nows", 72, 2),
    d("mssrl", 74, 2),
    d("mcl", 76, 4),
    d("msrc", 80, 1),
    d("nulbaf", NULBAF, 1),
    d("anagrpid", 92, 4),
    d("endgid", 102, 2),
    d("eui64", 120, 8).shown(Show::Bytes),
    d("nguid", 104, 16).shown(Show::Bytes),
];

const FORMAT: &[Field] = &[d("ms", 0, 2), d("ds", 2, 1)];
const RELATIVE_PERFORMANCE: Field = d("rp", 3, 1);

fn byte(data: &[u8], offset: usize) -> u8 {
    data.get(offset).copied().unwrap_or(0)
}

fn fields(data: &[u8]) -> Vec<Field> {
    let optimal = byte(data, NSFEAT) & OPTPERF != 0;
    FIELDS
        .iter()
        .filter(|field| optimal || !OPTIMAL.contains(&field.key))
        .copied()
        .collect()
}

fn formats(data: &[u8]) -> impl Iterator<Item = &[u8]> {
    let count = usize::from(byte(data, NLBAF)) + usize::from(byte(data, NULBAF)) + 1;
    data.get(FORMATS..)
        .unwrap_or_default()
        .chunks(FORMAT_SIZE)
        .take(count.min(MAX_FORMATS))
}

fn format_in_use(data: &[u8]) -> usize {
    let flbas = byte(data, FLBAS);
    // Bits 6:5 count only where there are more than sixteen formats.
    let upper = if byte(data, NLBAF) >= 16 {
        flbas >> 5 & 3
    } else {
        0
    };
    usize::from(upper << 4 | flbas & 0xf)
}

/// nvme-cli's JSON.
#[must_use]
pub fn json(data: &[u8]) -> Object {
    let mut object = Object::of(data, &fields(data));
    let formats = formats(data)
        .map(|format| {
            let mut object = Object::of(format, FORMAT);
            object.push(
                RELATIVE_PERFORMANCE.key,
                Item::Number(RELATIVE_PERFORMANCE.number(format) & 3),
            );
            object
        })
        .collect();
    object.push("lbafs", Item::List(formats));
    object
}

/// Text for people.
#[must_use]
pub fn text(nsid: u32, data: &[u8], explain: bool, vendor_specific: bool) -> String {
    let mut out = format!(
        "NVME Identify Namespace {nsid}:\n{}",
        lines(data, &fields(data), explain)
    );
    for (index, format) in formats(data).enumerate() {
        let metadata = Field::decimal("ms", 0, 2).number(format);
        let shift = byte(format, 2);
        let performance = byte(format, 3) & 3;
        let in_use = if index == format_in_use(data) {
            " (in use)"
        } else {
            ""
        };
        let _ = if explain {
            let word = ["Best", "Better", "Good", "Degraded"][usize::from(performance)];
            let size = 1_u128.checked_shl(u32::from(shift)).unwrap_or(0);
            writeln!(
                out,
                "LBA Format {index:>2} : Metadata Size: {metadata} bytes - Data Size: {size} bytes - Relative Performance: {performance:#x} {word}{in_use}"
            )
        } else {
            writeln!(
                out,
                "lbaf {index:>3} : ms:{metadata} lbads:{shift} rp:{performance:#x}{in_use}"
            )
        };
    }
    if vendor_specific {
        push_vendor_specific(&mut out, data, VENDOR_SPECIFIC);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Vec<u8> {
        let mut data = vec![0; SIZE];
        data[0..8].copy_from_slice(&0x20_0000_u64.to_le_bytes());
        data[NLBAF] = 1;
        data[FLBAS] = 0x61;
        data[FORMATS + 2] = 9;
        data[FORMATS + 4] = 8;
        data[FORMATS + 6] = 12;
        data[FORMATS + 7] = 0xfe;
        data[104] = 0xab;
        data
    }

    #[test]
    fn fields_do_not_overlap() {
        let mut ordered: Vec<_> = FIELDS.iter().collect();
        ordered.sort_by_key(|field| field.offset);
        for pair in ordered.windows(2) {
            assert!(
                pair[0].offset + pair[0].length <= pair[1].offset,
                "{} and {}",
                pair[0].key,
                pair[1].key
            );
        }
    }

    #[test]
    fn json_has_the_values() {
        let value = serde_json::to_value(json(&sample())).unwrap();
        assert_eq!(
            (&value["nsze"], &value["nlbaf"]),
            (&0x20_0000.into(), &1.into())
        );
        assert_eq!(value["nguid"], "ab000000000000000000000000000000");
        assert_eq!(
            value["lbafs"],
            serde_json::json!([{"ms": 0, "ds": 9, "rp": 0}, {"ms": 8, "ds": 12, "rp": 2}])
        );
        assert!(value.get("npwg").is_none());
        let mut data = sample();
        data[NSFEAT] = OPTPERF;
        assert_eq!(serde_json::to_value(json(&data)).unwrap()["npwg"], 0);
    }

    #[test]
    fn the_format_in_use_is_marked() {
        let plain = text(1, &sample(), false, false);
        assert!(
            plain.contains("lbaf   1 : ms:8 lbads:12 rp:0x2 (in use)"),
            "{plain}"
        );
        assert!(
            plain.contains("lbaf   0 : ms:0 lbads:9 rp:0x0\n"),
            "{plain}"
        );
        let human = text(1, &sample(), true, true);
        assert!(
            human.contains("Data Size: 4096 bytes - Relative Performance: 0x2 Good (in use)"),
            "{human}"
        );
    }

    #[test]
    fn nonsense_is_bounded() {
        let data = vec![0xff; SIZE];
        let Some(Item::List(formats)) = json(&data).get("lbafs").cloned() else {
            panic!("no formats")
        };
        assert_eq!(formats.len(), MAX_FORMATS);
        assert!(text(1, &data, true, true).contains("LBA Format 63"));
        assert!(text(1, &data[..3], true, true).contains("nsze"));
    }
}
