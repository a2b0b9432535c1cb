//! Identify Controller (Base Specification 2.0, figure 275).

use std::fmt::Write as _;

use super::{Field, Item, Object, Show, b, d, lines, push_vendor_specific, x};

/// Size of the data structure in bytes.
pub const SIZE: usize = 4096;
const POWER_STATES: usize = 2048;
const POWER_STATE_SIZE: usize = 32;
const MAX_POWER_STATES: usize = 32;
const NPSS: usize = 263;
const VENDOR_SPECIFIC: usize = 3072;

/// The fields before the power states.
pub const FIELDS: &[Field] = &[
    x("vid", 0, 2),
    x("ssvid", 2, 2),
    d("sn", 4, 20).shown(Show::Text),
    d("mn", 24, 40).shown(Show::Text),
    d("fr", 64, 8).shown(Show::Text),
    d("rab", 72, 1),
    x("ieee", 73, 3),
    x("cmic", 76, 1).bits(&[
        b(3, 3, "Asymmetric Namespace Access Reporting"),
        b(2, 2, "SR-IOV Virtual Function"),
        b(1, 1, "Multiple Controllers"),
        b(0, 0, "Multiple Ports"),
    ]),
    d("mdts", 77, 1),
    x("cntlid", 78, 2),
    x("ver", 80, 4).bits(&[
        b(31, 16, "Major Version"),
        b(15, 8, "Minor Version"),
        b(7, 0, "Tertiary Version"),
    ]),
    x("rtd3r", 84, 4),
    x("rtd3e", 88, 4),
    x("oaes", 92, 4).bits(&[
        b(31, 31, "Discovery Log Page Change Notices"),
        b(27, 27, "Zone Descriptor Changed Notices"),
        b(15, 15, "Normal NVM Subsystem Shutdown"),
        b(14, 14, "Endurance Group Event Aggregate Log Change Notices"),
        b(13, 13, "LBA Status Information Alert Notices"),
        b(
            12,
            12,
            "Predictable Latency Event Aggregate Log Change Notices",
        ),
        b(11, 11, "Asymmetric Namespace Access Change Notices"),
        b(9, 9, "Firmware Activation Notices"),
        b(8, 8, "Namespace Attribute Notices"),
    ]),
    x("ctratt", 96, 4).bits(&[
        b(15, 15, "Extended LBA Formats"),
        b(14, 14, "Delete NVM Set"),
        b(13, 13, "Delete Endurance Group"),
        b(12, 12, "Variable Capacity Management"),
        b(11, 11, "Fixed Capacity Management"),
        b(10, 10, "Multi-Domain Subsystem"),
        b(9, 9, "UUID List"),
        b(8, 8, "SQ Associations"),
        b(7, 7, "Namespace Granularity"),
        b(6, 6, "Traffic Based Keep Alive"),
        b(5, 5, "Predictable Latency Mode"),
        b(4, 4, "Endurance Groups"),
        b(3, 3, "Read Recovery Levels"),
        b(2, 2, "NVM Sets"),
        b(1, 1, "Non-Operational Power State Permissive Mode"),
        b(0, 0, "128-bit Host Identifier"),
    ]),
    x("rrls", 100, 2),
    d("cntrltype", 111, 1),
    d("fguid", 112, 16).shown(Show::Uuid),
    d("crdt1", 128, 2),
    d("crdt2", 130, 2),
    d("crdt3", 132, 2),
    x("nvmsr", 253, 1).bits(&[b(1, 1, "NVMe Enclosure"), b(0, 0, "NVMe Storage Device")]),
    d("vwci", 254, 1),
    d("mec", 255, 1),
    x("oacs", 256, 2).bits(&[
        b(10, 10, "Command and Feature Lockdown"),
        b(9, 9, "Get LBA Status"),
        b(8, 8, "Doorbell Buffer Config"),
        b(7, 7, "Virtualization Management"),
        b(6, 6, "NVMe-MI Send and Receive"),
        b(5, 5, "Directives"),
        b(4, 4, "Device Self-test"),
        b(3, 3, "Namespace Management and Attachment"),
        b(2, 2, "Firmware Commit and Image Download"),
        b(1, 1, "Format NVM"),
        b(0, 0, "Security Send and Receive"),
    ]),
    d("acl", 258, 1),
    d("aerl", 259, 1),
    x("frmw", 260, 1).bits(&[
        b(5, 5, "Multiple Update Detection"),
        b(4, 4, "Activation Without Reset"),
        b(3, 1, "Number of Firmware Slots"),
        b(0, 0, "Slot 1 Read Only"),
    ]),
    x("lpa", 261, 1).bits(&[
        b(6, 6, "Telemetry Data Area 4"),
        b(
            5,
            5,
            "Supported Log Pages, Feature Identifiers and Commands",
        ),
        b(4, 4, "Persistent Event"),
        b(3, 3, "Telemetry"),
        b(2, 2, "Extended Data for Get Log Page"),
        b(1, 1, "Commands Supported and Effects"),
        b(0, 0, "SMART Log per Namespace"),
    ]),
    d("elpe", 262, 1),
    d("npss", NPSS, 1),
    x("avscc", 264, 1).bits(&[b(
        0,
        0,
        "Admin Vendor Specific Commands use the NVMe Format",
    )]),
    x("apsta", 265, 1).bits(&[b(0, 0, "Autonomous Power State Transitions")]),
    d("wctemp", 266, 2),
    d("cctemp", 268, 2),
    d("mtfa", 270, 2),
    d("hmpre", 272, 4),
    d("hmmin", 276, 4),
    d("tnvmcap", 280, 16),
    d("unvmcap", 296, 16),
    x("rpmbs", 312, 4).bits(&[
        b(31, 24, "Access Size"),
        b(23, 16, "Total Size"),
        b(5, 3, "Authentication Method"),
        b(2, 0, "Number of RPMB Units"),
    ]),
    d("edstt", 316, 2),
    d("dsto", 318, 1),
    d("fwug", 319, 1),
    d("kas", 320, 2),
    x("hctma", 322, 2).bits(&[b(0, 0, "Host Controlled Thermal Management")]),
    d("mntmt", 324, 2),
    d("mxtmt", 326, 2),
    x("sanicap", 328, 4).bits(&[
        b(31, 30, "No-Deallocate Modifies Media After Sanitize"),
        b(29, 29, "No-Deallocate Inhibited"),
        b(2, 2, "Overwrite"),
        b(1, 1, "Block Erase"),
        b(0, 0, "Crypto Erase"),
    ]),
    d("hmminds", 332, 4),
    d("hmmaxd", 336, 2),
    d("nsetidmax", 338, 2),
    d("endgidmax", 340, 2),
    d("anatt", 342, 1),
    x("anacap", 343, 1),
    d("anagrpmax", 344, 4),
    d("nanagrpid", 348, 4),
    d("pels", 352, 4),
    d("domainid", 356, 2),
    d("megcap", 368, 16),
    x("sqes", 512, 1).bits(&[
        b(7, 4, "Maximum Submission Queue Entry Size (2^n)"),
        b(3, 0, "Required Submission Queue Entry Size (2^n)"),
    ]),
    x("cqes", 513, 1).bits(&[
        b(7, 4, "Maximum Completion Queue Entry Size (2^n)"),
        b(3, 0, "Required Completion Queue Entry Size (2^n)"),
    ]),
    d("maxcmd", 514, 2),
    d("nn", 516, 4),
    x("oncs", 520, 2).bits(&[
        b(8, 8, "Copy"),
        b(7, 7, "Verify"),
        b(6, 6, "Timestamp"),
        b(5, 5, "Reservations"),
        b(4, 4, "Save and Select of Features"),
        b(3, 3, "Write Zeroes"),
        b(2, 2, "Dataset Management"),
        b(1, 1, "Write Uncorrectable"),
        b(0, 0, "Compare"),
    ]),
    x("fuses", 522, 2).bits(&[b(0, 0, "Fused Compare and Write")]),
    x("fna", 524, 1).bits(&[
        b(3, 3, "Format NVM Refuses the Broadcast NSID"),
        b(2, 2, "Cryptographic Erase"),
        b(1, 1, "Secure Erase Reaches All Namespaces"),
        b(0, 0, "Format Reaches All Namespaces"),
    ]),
    x("vwc", 525, 1).bits(&[
        b(2, 1, "Flush with the Broadcast NSID"),
        b(0, 0, "Volatile Write Cache Present"),
    ]),
    d("awun", 526, 2),
    d("awupf", 528, 2),
    x("icsvscc", 530, 1).bits(&[b(0, 0, "NVM Vendor Specific Commands use the NVMe Format")]),
    x("nwpc", 531, 1).bits(&[
        b(2, 2, "Permanent Write Protect"),
        b(1, 1, "Write Protect Until Power Cycle"),
        b(0, 0, "No Write Protect and Write Protect"),
    ]),
    d("acwu", 532, 2),
    x("ocfs", 534, 2),
    x("sgls", 536, 4).bits(&[
        b(21, 21, "Transport SGL Data Block"),
        b(20, 20, "Address as Offset"),
        b(19, 19, "Metadata Pointer May Hold an SGL"),
        b(18, 18, "SGL Longer Than the Data"),
        b(17, 17, "Byte Aligned Metadata Buffer"),
        b(16, 16, "SGL Bit Bucket"),
        b(2, 2, "Keyed SGL Data Block"),
        b(1, 0, "SGL Support"),
    ]),
    d("mnan", 540, 4),
    d("maxdna", 544, 16),
    d("maxcna", 560, 4),
    d("subnqn", 768, 256).shown(Show::Text),
    d("ioccsz", 1792, 4),
    d("iorcsz", 1796, 4),
    d("icdoff", 1800, 2),
    x("fcatt", 1802, 1),
    d("msdbd", 1803, 1),
    x("ofcs", 1804, 2),
];

const POWER_STATE: &[Field] = &[
    d("max_power", 0, 2),
    d("flags", 3, 1),
    d("entry_lat", 4, 4),
    d("exit_lat", 8, 4),
    d("read_tput", 12, 1),
    d("read_lat", 13, 1),
    d("write_tput", 14, 1),
    d("write_lat", 15, 1),
    d("idle_power", 16, 2),
];
const IDLE_SCALE: Field = d("idle_scale", 18, 1);
const ACTIVE_POWER: Field = d("active_power", 20, 2);
const ACTIVE_SCALE: Field = d("active_scale", 22, 1);
/// Bit 0 of the flags: the power is in units of 0.1 mW instead of 10 mW.
const MAX_POWER_SCALE: u128 = 1;
/// Bit 1 of the flags: the state does not process I/O commands.
const NON_OPERATIONAL: u128 = 2;

fn power_states(data: &[u8]) -> impl Iterator<Item = &[u8]> {
    let count = usize::from(data.get(NPSS).copied().unwrap_or(0)) + 1;
    data.get(POWER_STATES..)
        .unwrap_or_default()
        .chunks(POWER_STATE_SIZE)
        .take(count.min(MAX_POWER_STATES))
}

/// nvme-cli's JSON.
#[must_use]
pub fn json(data: &[u8]) -> Object {
    let mut object = Object::of(
        data,
        FIELDS
            .iter()
            .filter(|field| field.key != "subnqn" || field.number(data) != 0),
    );
    let states = power_states(data)
        .map(|state| {
            let mut object = Object::of(state, POWER_STATE);
            object.push(IDLE_SCALE.key, Item::Number(IDLE_SCALE.number(state) >> 6));
            object.push(ACTIVE_POWER.key, Item::Number(ACTIVE_POWER.number(state)));
            object.push(
                "active_power_work",
                Item::Number(ACTIVE_SCALE.number(state) & 7),
            );
            object.push(
                ACTIVE_SCALE.key,
                Item::Number(ACTIVE_SCALE.number(state) >> 6),
            );
            object
        })
        .collect();
    object.push("psds", Item::List(states));
    object
}

/// Text for people.
#[must_use]
pub fn text(data: &[u8], explain: bool, vendor_specific: bool) -> String {
    let mut out = format!(
        "NVME Identify Controller:\n{}",
        lines(data, FIELDS, explain)
    );
    for (index, state) in power_states(data).enumerate() {
        let value = |key: &str| {
            POWER_STATE
                .iter()
                .find(|field| field.key == key)
                .map_or(0, |field| field.number(state))
        };
        let scale = if value("flags") & MAX_POWER_SCALE != 0 {
            1e-4
        } else {
            1e-2
        };
        let kind = if value("flags") & NON_OPERATIONAL != 0 {
            "non-operational"
        } else {
            "operational"
        };
        let _ = writeln!(
            out,
            "ps {index:>6}: mp:{}W {kind} enlat:{} exlat:{} rrt:{} rrl:{} rwt:{} rwl:{}",
            value("max_power") as f64 * scale,
            value("entry_lat"),
            value("exit_lat"),
            value("read_tput"),
            value("read_lat"),
            value("write_tput"),
            value("write_lat")
        );
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
        data[0..2].copy_from_slice(&0x1b36_u16.to_le_bytes());
        data[4..8].copy_from_slice(b"S1  ");
        data[24..28].copy_from_slice(b"QEMU");
        data[73..76].copy_from_slice(&[0, 0x54, 0x52]);
        data[77] = 7;
        data[NPSS] = 1;
        data[280..296].copy_from_slice(&u128::MAX.to_le_bytes());
        data[768..771].copy_from_slice(b"nqn");
        data[POWER_STATES..POWER_STATES + 2].copy_from_slice(&2500_u16.to_le_bytes());
        data[POWER_STATES + POWER_STATE_SIZE + 3] = 3;
        data[POWER_STATES + 18] = 0x80;
        data[VENDOR_SPECIFIC] = 0xab;
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
        assert!(FIELDS.iter().all(|field| {
            field
                .bits
                .iter()
                .all(|bits| usize::from(bits.high) < field.length * 8 && bits.low <= bits.high)
        }));
    }

    #[test]
    fn json_has_the_values() {
        let value: serde_json::Value = serde_json::from_str(
            &serde_json::to_string(&json(&sample()))
                .unwrap()
                .replace(&u128::MAX.to_string(), "1"),
        )
        .unwrap();
        assert_eq!(
            (&value["vid"], &value["sn"], &value["mn"]),
            (&0x1b36.into(), &"S1".into(), &"QEMU".into())
        );
        assert_eq!(
            (&value["ieee"], &value["mdts"], &value["subnqn"]),
            (&0x52_5400.into(), &7.into(), &"nqn".into())
        );
        assert_eq!(value["fguid"], "00000000-0000-0000-0000-000000000000");
        assert_eq!(value["psds"].as_array().unwrap().len(), 2);
        assert_eq!(value["psds"][0]["max_power"], 2500);
        assert_eq!(value["psds"][0]["idle_scale"], 2);
        assert_eq!(value["psds"][1]["flags"], 3);
    }

    #[test]
    fn an_absurd_number_of_power_states_is_bounded() {
        let mut data = sample();
        data[NPSS] = 255;
        let Some(Item::List(states)) = json(&data).get("psds").cloned() else {
            panic!("no power states")
        };
        assert_eq!(states.len(), MAX_POWER_STATES);
        assert!(json(&data[..100]).get("psds").is_some());
    }

    #[test]
    fn text_explains_and_dumps_when_asked() {
        let plain = text(&sample(), false, false);
        assert!(
            plain.contains("mn        : QEMU\n") && plain.contains("mp:25W operational"),
            "{plain}"
        );
        assert!(!plain.contains("Write Zeroes") && !plain.contains("vs[]"));
        let full = text(&sample(), true, true);
        assert!(full.contains("[3:3] : 0x0\tWrite Zeroes") && full.contains("0000: ab 00"));
    }
}
