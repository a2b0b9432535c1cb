//! What a client's entry means, worked out here once more from its 16 dwords and the bytes of its list: what a decoder must say.

use super::Dwords;
use super::medium::How;

/// What a command of a client may at most touch, as the client numbers blocks; `None` where no client may send it at all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Meaning {
    /// First block and blocks, and how.
    pub(crate) extents: Vec<(u64, u64, How)>,
    /// Bytes that move.
    pub(crate) bytes: u64,
}

fn number(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .rev()
        .fold(0, |sum, byte| sum << 8 | u64::from(*byte))
}

/// Reads an entry of an I/O queue on a namespace of `blocks` blocks of 512 bytes, with the list that its PRP1 points to. `Err` tells what is wrong with it.
pub(crate) fn io(entry: &Dwords, blocks: u64, list: &[u8]) -> Result<Meaning, &'static str> {
    let opcode = entry[0] as u8;
    if entry[0] >> 8 & 3 != 0 {
        return Err("fused");
    }
    if entry[0] >> 14 & 3 != 0 {
        return Err("not PRPs");
    }
    if entry[0] >> 10 & 0xf != 0 {
        return Err("reserved bits of CDW0");
    }
    if entry[4] != 0 || entry[5] != 0 {
        return Err("a metadata pointer");
    }
    if entry[2] != 0 || entry[3] != 0 || entry[14] != 0 || entry[15] != 0 {
        return Err("tags, or reserved dwords");
    }
    let first = u64::from(entry[10]) | u64::from(entry[11]) << 32;
    let count = u64::from(entry[12] & 0xffff) + 1;
    let fits = |first: u64, count: u64| u128::from(first) + u128::from(count) <= u128::from(blocks);
    let one = |how, bytes| {
        if !fits(first, count) {
            return Err("out of range");
        }
        Ok(Meaning {
            extents: vec![(first, count, how)],
            bytes,
        })
    };
    // Directive, key tag and placement, protection, storage tag check.
    let kept_from_clients = entry[12] & 0x3dff_0000;
    match opcode {
        0x00 => {
            if entry[10..16].iter().any(|dword| *dword != 0) {
                return Err("reserved dwords");
            }
            Ok(Meaning {
                extents: Vec::new(),
                bytes: 0,
            })
        }
        0x01 | 0x02 | 0x05 | 0x0c => {
            if kept_from_clients != 0 || entry[12] & 1 << 25 != 0 {
                return Err("CDW12");
            }
            // Access frequency and latency hints may be there, and go no further.
            let hints = if matches!(opcode, 0x01 | 0x02) {
                0xff
            } else {
                0
            };
            if entry[13] & !hints != 0 {
                return Err("CDW13");
            }
            let how = if opcode == 0x01 {
                How::Changed
            } else {
                How::Read
            };
            one(how, if opcode == 0x0c { 0 } else { count * 512 })
        }
        0x04 | 0x08 => {
            let allowed = if opcode == 0x08 { 0xc200_ffff } else { 0xffff };
            if entry[12] & !allowed != 0 || entry[13] != 0 {
                return Err("CDW12 or CDW13");
            }
            one(How::Changed, 0)
        }
        0x09 => {
            if entry[10] & !0xff != 0 || entry[11] & !7 != 0 || entry[12] != 0 || entry[13] != 0 {
                return Err("reserved bits of Dataset Management");
            }
            let ranges = entry[10] as usize + 1;
            let mut extents = Vec::new();
            for range in list.get(..ranges * 16).ok_or("a short list")?.chunks(16) {
                let (count, first) = (number(&range[4..8]), number(&range[8..]));
                if !fits(first, count) {
                    return Err("out of range");
                }
                extents.push((first, count, How::Changed));
            }
            Ok(Meaning {
                extents,
                bytes: ranges as u64 * 16,
            })
        }
        0x19 => {
            if entry[12] & 0x3fff_f000 != 0 || entry[13] != 0 {
                return Err("CDW12 or CDW13 of Copy");
            }
            if entry[12] >> 8 & 0xf != 0 {
                return Err("a format that reaches other namespaces, or has protection");
            }
            let ranges = (entry[12] & 0xff) as usize + 1;
            let mut sources = Vec::new();
            let mut total = 0;
            for range in list.get(..ranges * 32).ok_or("a short list")?.chunks(32) {
                let (first, count) = (number(&range[8..16]), number(&range[16..18]) + 1);
                let rest = [&range[..8], &range[18..]].concat();
                if rest.iter().any(|byte| *byte != 0) {
                    return Err("fields of a source range that nobody was granted");
                }
                if !fits(first, count) {
                    return Err("out of range");
                }
                total += count;
                sources.push((first, count, How::Read));
            }
            if !fits(first, total) {
                return Err("out of range");
            }
            let mut extents = vec![(first, total, How::Changed)];
            extents.extend(sources);
            Ok(Meaning {
                extents,
                bytes: ranges as u64 * 32,
            })
        }
        _ => Err("an opcode that no client may send"),
    }
}
