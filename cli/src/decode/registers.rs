//! Controller registers (Base Specification 2.0, chapter 3.1.3; PCIe Transport 1.0, chapter 3.1.1).

use std::fmt::Write as _;

use super::{Bits, Item, Object, b, explain_bits};

/// A register.
#[derive(Clone, Copy, Debug)]
pub struct Register {
    /// nvme-cli's name, which is the specification's in lower case.
    pub key: &'static str,
    /// Offset into BAR 0 in bytes.
    pub offset: u32,
    /// Size in bytes, 4 or 8.
    pub size: u8,
    /// Its bits.
    pub bits: &'static [Bits],
}

const fn r(key: &'static str, offset: u32, size: u8, bits: &'static [Bits]) -> Register {
    Register {
        key,
        offset,
        size,
        bits,
    }
}

/// The registers that nvme-cli shows, in its order.
pub const REGISTERS: &[Register] = &[
    r(
        "cap",
        0x00,
        8,
        &[
            b(60, 59, "CRMS, Controller Ready Modes Supported"),
            b(58, 58, "NSSS, NVM Subsystem Shutdown Supported"),
            b(57, 57, "CMBS, Controller Memory Buffer Supported"),
            b(56, 56, "PMRS, Persistent Memory Region Supported"),
            b(55, 52, "MPSMAX, Memory Page Size Maximum (2^(12+n))"),
            b(51, 48, "MPSMIN, Memory Page Size Minimum (2^(12+n))"),
            b(47, 46, "CPS, Controller Power Scope"),
            b(45, 45, "BPS, Boot Partition Support"),
            b(44, 37, "CSS, Command Sets Supported"),
            b(36, 36, "NSSRS, NVM Subsystem Reset Supported"),
            b(35, 32, "DSTRD, Doorbell Stride (2^(2+n))"),
            b(31, 24, "TO, Timeout (500 ms units)"),
            b(18, 17, "AMS, Arbitration Mechanism Supported"),
            b(16, 16, "CQR, Contiguous Queues Required"),
            b(15, 0, "MQES, Maximum Queue Entries Supported (from 0)"),
        ],
    ),
    r(
        "vs",
        0x08,
        4,
        &[
            b(31, 16, "MJR, Major Version"),
            b(15, 8, "MNR, Minor Version"),
            b(7, 0, "TER, Tertiary Version"),
        ],
    ),
    r(
        "intms",
        0x0c,
        4,
        &[b(31, 0, "IVMS, Interrupt Vector Mask Set")],
    ),
    r(
        "intmc",
        0x10,
        4,
        &[b(31, 0, "IVMC, Interrupt Vector Mask Clear")],
    ),
    r(
        "cc",
        0x14,
        4,
        &[
            b(
                24,
                24,
                "CRIME, Controller Ready Independent of Media Enable",
            ),
            b(23, 20, "IOCQES, I/O Completion Queue Entry Size (2^n)"),
            b(19, 16, "IOSQES, I/O Submission Queue Entry Size (2^n)"),
            b(15, 14, "SHN, Shutdown Notification"),
            b(13, 11, "AMS, Arbitration Mechanism Selected"),
            b(10, 7, "MPS, Memory Page Size (2^(12+n))"),
            b(6, 4, "CSS, I/O Command Set Selected"),
            b(0, 0, "EN, Enable"),
        ],
    ),
    r(
        "csts",
        0x1c,
        4,
        &[
            b(6, 6, "ST, Shutdown Type"),
            b(5, 5, "PP, Processing Paused"),
            b(4, 4, "NSSRO, NVM Subsystem Reset Occurred"),
            b(3, 2, "SHST, Shutdown Status"),
            b(1, 1, "CFS, Controller Fatal Status"),
            b(0, 0, "RDY, Ready"),
        ],
    ),
    r(
        "nssr",
        0x20,
        4,
        &[b(31, 0, "NSSRC, NVM Subsystem Reset Control")],
    ),
    r(
        "crto",
        0x68,
        4,
        &[
            b(
                31,
                16,
                "CRIMT, Controller Ready Independent of Media Timeout (500 ms units)",
            ),
            b(
                15,
                0,
                "CRWMT, Controller Ready With Media Timeout (500 ms units)",
            ),
        ],
    ),
    r(
        "aqa",
        0x24,
        4,
        &[
            b(27, 16, "ACQS, Admin Completion Queue Size (from 0)"),
            b(11, 0, "ASQS, Admin Submission Queue Size (from 0)"),
        ],
    ),
    r(
        "asq",
        0x28,
        8,
        &[b(63, 12, "ASQB, Admin Submission Queue Base")],
    ),
    r(
        "acq",
        0x30,
        8,
        &[b(63, 12, "ACQB, Admin Completion Queue Base")],
    ),
    r(
        "cmbloc",
        0x38,
        4,
        &[
            b(31, 12, "OFST, Offset"),
            b(8, 8, "CQDA, Queue Dword Alignment"),
            b(7, 7, "CDMMMS, Data Metadata Mixed Memory Support"),
            b(
                6,
                6,
                "CDPCILS, Data Pointer and Command Independent Locations Support",
            ),
            b(5, 5, "CDPMLS, Data Pointer Mixed Locations Support"),
            b(4, 4, "CQPDS, Queue Physically Discontiguous Support"),
            b(3, 3, "CQMMS, Queue Mixed Memory Support"),
            b(2, 0, "BIR, Base Indicator Register"),
        ],
    ),
    r(
        "cmbsz",
        0x3c,
        4,
        &[
            b(31, 12, "SZ, Size"),
            b(11, 8, "SZU, Size Units (4 KiB * 16^n)"),
            b(4, 4, "WDS, Write Data Support"),
            b(3, 3, "RDS, Read Data Support"),
            b(2, 2, "LISTS, PRP and SGL List Support"),
            b(1, 1, "CQS, Completion Queue Support"),
            b(0, 0, "SQS, Submission Queue Support"),
        ],
    ),
    r(
        "bpinfo",
        0x40,
        4,
        &[
            b(31, 31, "ABPID, Active Boot Partition ID"),
            b(25, 24, "BRS, Boot Read Status"),
            b(14, 0, "BPSZ, Boot Partition Size (128 KiB units)"),
        ],
    ),
    r(
        "bprsel",
        0x44,
        4,
        &[
            b(31, 31, "BPID, Boot Partition Identifier"),
            b(29, 10, "BPROF, Boot Partition Read Offset"),
            b(9, 0, "BPRSZ, Boot Partition Read Size"),
        ],
    ),
    r(
        "bpmbl",
        0x48,
        8,
        &[b(
            63,
            12,
            "BMBBA, Boot Partition Memory Buffer Base Address",
        )],
    ),
    r(
        "cmbmsc",
        0x50,
        8,
        &[
            b(63, 12, "CBA, Controller Base Address"),
            b(1, 1, "CMSE, Memory Space Enable"),
            b(0, 0, "CRE, Capabilities Registers Enabled"),
        ],
    ),
    r(
        "cmbsts",
        0x58,
        4,
        &[b(0, 0, "CBAI, Controller Base Address Invalid")],
    ),
    r(
        "pmrcap",
        0xe00,
        4,
        &[
            b(24, 24, "CMSS, Controller Memory Space Supported"),
            b(23, 16, "PMRTO, Timeout"),
            b(13, 10, "PMRWBM, Write Barrier Mechanisms"),
            b(9, 8, "PMRTU, Time Units"),
            b(7, 5, "BIR, Base Indicator Register"),
            b(4, 4, "WDS, Write Data Support"),
            b(3, 3, "RDS, Read Data Support"),
        ],
    ),
    r("pmrctl", 0xe04, 4, &[b(0, 0, "EN, Enable")]),
    r(
        "pmrsts",
        0xe08,
        4,
        &[
            b(12, 12, "CBAI, Controller Base Address Invalid"),
            b(11, 9, "HSTS, Health Status"),
            b(8, 8, "NRDY, Not Ready"),
            b(7, 0, "ERR, Error"),
        ],
    ),
    r(
        "pmrebs",
        0xe0c,
        4,
        &[
            b(31, 8, "PMRWBZ, Elasticity Buffer Size Base"),
            b(4, 4, "Read Bypass Behavior"),
            b(3, 0, "PMRSZU, Size Units"),
        ],
    ),
    r(
        "pmrswtp",
        0xe10,
        4,
        &[
            b(31, 8, "PMRSWTV, Sustained Write Throughput"),
            b(3, 0, "PMRSWTU, Throughput Units"),
        ],
    ),
    r(
        "pmrmscl",
        0xe14,
        4,
        &[
            b(31, 12, "CBA, Controller Base Address, Lower"),
            b(1, 1, "CMSE, Memory Space Enable"),
        ],
    ),
    r(
        "pmrmscu",
        0xe18,
        4,
        &[b(31, 0, "CBA, Controller Base Address, Upper")],
    ),
];

/// nvme-cli's JSON: a number for each register.
#[must_use]
pub fn json(values: &[(Register, u64)]) -> Object {
    let mut object = Object::default();
    for (register, value) in values {
        object.push(register.key, Item::Number(u128::from(*value)));
    }
    object
}

/// Text for people.
#[must_use]
pub fn text(values: &[(Register, u64)], explain: bool) -> String {
    let mut out = String::new();
    for (register, value) in values {
        let _ = writeln!(out, "{:<8}: {value:x}", register.key);
        if explain {
            explain_bits(&mut out, u128::from(*value), register.bits);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn registers_are_aligned_apart_and_their_bits_fit() {
        let mut ordered: Vec<_> = REGISTERS.iter().collect();
        ordered.sort_by_key(|register| register.offset);
        for pair in ordered.windows(2) {
            assert!(
                pair[0].offset + u32::from(pair[0].size) <= pair[1].offset,
                "{}",
                pair[0].key
            );
        }
        for register in REGISTERS {
            assert_eq!(
                register.offset % u32::from(register.size),
                0,
                "{}",
                register.key
            );
            for pair in register.bits.windows(2) {
                assert!(
                    pair[0].low > pair[1].high,
                    "{}: {}",
                    register.key,
                    pair[1].name
                );
            }
            assert!(
                register
                    .bits
                    .iter()
                    .all(|bits| bits.high < register.size * 8 && bits.low <= bits.high)
            );
        }
    }

    #[test]
    fn values_are_shown() {
        let values: Vec<_> = REGISTERS
            .iter()
            .take(2)
            .copied()
            .zip([0x0040_0030_ff03_ffff, 0x0001_0400])
            .collect();
        let object = serde_json::to_value(json(&values)).unwrap();
        assert_eq!(
            object,
            serde_json::json!({"cap": 0x0040_0030_ff03_ffff_u64, "vs": 66560})
        );
        assert_eq!(
            text(&values, false),
            "cap     : 400030ff03ffff\nvs      : 10400\n"
        );
        assert!(text(&values, true).contains("[15:8] : 0x4\tMNR, Minor Version"));
    }
}
