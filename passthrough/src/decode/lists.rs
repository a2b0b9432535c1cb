//! Flush, which names no blocks, and the commands whose blocks are in a list (NVM command set specification 1.0, 3.2.2 and 3.2.3).

use super::field::{Field, WORDS, field};
use super::io;
use super::request::{Meaning, Request};
use crate::command::{Access, Class, Flags, Geometry, Persistence, Scope};
use crate::reason::Reason;

/// Opcode of Dataset Management.
pub(super) const DATASET_MANAGEMENT: u8 = 0x09;
/// Opcode of Copy.
pub(super) const COPY: u8 = 0x19;

/// Bytes of a range of Dataset Management.
const RANGE: usize = 16;
/// Bytes of a source range of Copy in descriptor format 0, that of namespaces without protection information or with a guard of 16 bits.
const SOURCE: usize = 32;

pub(super) const DATASET_MANAGEMENT_FIELDS: &[Field] = &[
    field("NR", 10, 7, 0),
    field("IDR", 11, 0, 0),
    field("IDW", 11, 1, 1),
    field("AD", 11, 2, 2),
];

pub(super) const COPY_FIELDS: &[Field] = &[
    field("EILBRT", 2, 31, 0).refused(Reason::Protection),
    field("EILBRT", 3, 31, 0).refused(Reason::Protection),
    field("SDLBA", 10, 31, 0),
    field("SDLBA", 11, 31, 0),
    field("NR", 12, 7, 0),
    field("CDFRMT", 12, 11, 8),
    field("PRINFOR", 12, 15, 12).refused(Reason::Protection),
    field("CETYPE", 12, 19, 16).refused(Reason::Directive),
    field("DTYPE", 12, 23, 20).refused(Reason::Directive),
    field("STCW", 12, 24, 24).refused(Reason::Protection),
    field("STCR", 12, 25, 25).refused(Reason::Protection),
    field("PRINFOW", 12, 29, 26).refused(Reason::Protection),
    field("FUA", 12, 30, 30),
    field("LR", 12, 31, 31),
    field("CEV", 13, 15, 0).refused(Reason::Directive),
    field("DSPEC", 13, 31, 16).refused(Reason::Directive),
    field("ILBRT", 14, 31, 0).refused(Reason::Protection),
    field("LBATM, LBAT", 15, 31, 0).refused(Reason::Protection),
];

/// Bytes of the list that a Dataset Management or Copy command has.
pub(super) fn bytes(entry: &[u32; WORDS]) -> Result<usize, Reason> {
    let opcode = entry[0] as u8;
    let layout = &io::TABLE[usize::from(opcode)].layout;
    if layout.forbids(entry) {
        return Err(layout.objection(entry).reason);
    }
    if opcode == DATASET_MANAGEMENT {
        return Ok(((entry[10] & 0xff) as usize + 1) * RANGE);
    }
    // Formats 1 and 3 are for larger guards, 2 and 3 name other namespaces.
    if entry[12] >> 8 & 0xf != 0 {
        return Err(Reason::IllegalValue);
    }
    Ok(((entry[12] & 0xff) as usize + 1) * SOURCE)
}

/// Flush: makes durable what was written to a namespace, by whomever.
pub(super) fn flush(request: &mut Request<'_>) -> Result<Meaning, Reason> {
    Ok(Meaning::new(Class::Flush, request.namespaces()?))
}

/// Dataset Management.
pub(super) fn dataset_management(request: &mut Request<'_>) -> Result<Meaning, Reason> {
    let geometry = *request.namespace()?;
    let list = whole(request)?;
    let deallocate = request.bits::<11>(2, 2) != 0;
    let access = if deallocate {
        Access::Deallocate
    } else {
        Access::Hint
    };
    let (ranges, _) = list.as_chunks::<RANGE>();
    for range in ranges {
        // The context attributes in bytes 3:0 are hints about the future, and are not passed on.
        let [_, _, _, _, b0, b1, b2, b3, slba @ ..] = *range;
        let blocks = u32::from_le_bytes([b0, b1, b2, b3]);
        request.touch(
            &geometry,
            u64::from_le_bytes(slba),
            u64::from(blocks),
            access,
        )?;
    }
    let attributes = request.word::<11>();
    let mut flags = Flags::empty();
    flags.set(Flags::DEALLOCATE, deallocate);
    flags.set(Flags::INTEGRAL_READ, attributes & 1 != 0);
    flags.set(Flags::INTEGRAL_WRITE, attributes & 2 != 0);
    let persistence = if deallocate {
        Persistence::Media
    } else {
        Persistence::None
    };
    let mut meaning = Meaning::new(Class::Deallocate, Scope::Extents)
        .sends(list.len() as u64)
        .lasts(persistence);
    meaning.flags = flags;
    Ok(meaning)
}

/// Copy within one namespace.
pub(super) fn copy(request: &mut Request<'_>) -> Result<Meaning, Reason> {
    let geometry = *request.namespace()?;
    let list = whole(request)?;
    let (sources, _) = list.as_chunks::<SOURCE>();
    if sources.len() > usize::from(geometry.copy_ranges) {
        return Err(Reason::CopyTooLong);
    }
    let blocks = copied(&geometry, sources)?;
    request.touch(&geometry, request.long::<10, 11>(), blocks, Access::Write)?;
    for source in sources {
        let (slba, blocks) = source_range(source);
        request.touch(&geometry, slba, blocks, Access::Read)?;
    }
    let mut meaning = Meaning::new(Class::Copy, Scope::Extents)
        .sends(list.len() as u64)
        .lasts(Persistence::Media);
    meaning
        .flags
        .set(Flags::FORCE_UNIT_ACCESS, request.bits::<12>(30, 30) != 0);
    meaning
        .flags
        .set(Flags::LIMITED_RETRY, request.bits::<12>(31, 31) != 0);
    Ok(meaning)
}

/// The list, if it is as long as the command says.
fn whole<'a>(request: &Request<'a>) -> Result<&'a [u8], Reason> {
    let list = request.list;
    if list.len() == bytes(request.entry)? {
        Ok(list)
    } else {
        Err(Reason::RangeList)
    }
}

/// SLBA and number of blocks of a source range.
fn source_range(source: &[u8; SOURCE]) -> (u64, u64) {
    let [
        _,
        _,
        _,
        _,
        _,
        _,
        _,
        _,
        s0,
        s1,
        s2,
        s3,
        s4,
        s5,
        s6,
        s7,
        n0,
        n1,
        ..,
    ] = *source;
    (
        u64::from_le_bytes([s0, s1, s2, s3, s4, s5, s6, s7]),
        u64::from(u16::from_le_bytes([n0, n1])) + 1,
    )
}

/// Blocks of all source ranges, each within its limits and with nothing else in it.
fn copied(geometry: &Geometry, sources: &[[u8; SOURCE]]) -> Result<u64, Reason> {
    let mut total = 0;
    for source in sources {
        let [
            reserved @ ..,
            _,
            _,
            _,
            _,
            _,
            _,
            _,
            _,
            _,
            _,
            _,
            _,
            _,
            _,
            _,
            _,
            _,
            _,
            _,
            _,
            _,
            _,
            _,
            _,
        ] = source;
        let [.., k0, k1, k2, k3, o0, o1, t0, t1, t2, t3, t4, t5, t6, t7] = source;
        if reserved.iter().any(|byte| *byte != 0) {
            return Err(Reason::ReservedBit);
        }
        // Key tag type and value, and the source options.
        if [k0, k1, k2, k3, o0, o1].iter().any(|byte| **byte != 0) {
            return Err(Reason::ReservedBit);
        }
        if [t0, t1, t2, t3, t4, t5, t6, t7]
            .iter()
            .any(|byte| **byte != 0)
        {
            return Err(Reason::Protection);
        }
        let (_, blocks) = source_range(source);
        if blocks > u64::from(geometry.copy_range_blocks) {
            return Err(Reason::CopyTooLong);
        }
        total += blocks;
    }
    if total > u64::from(geometry.copy_blocks) {
        return Err(Reason::CopyTooLong);
    }
    Ok(total)
}
