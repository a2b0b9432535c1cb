//! From the 64 bytes of a submission queue entry to what they mean.
//!
//! [`table`](mod@table) holds a row for every opcode that anybody defines: its fields, each with what becomes of it, and the rule that reads them. A bit in no field is
//! reserved, and refused before the rule is asked. `io` and `admin` are the rows; `blocks`, `lists`, `information`, `features` and `owner` their rules.

mod admin;
mod blocks;
#[cfg(test)]
mod cases;
mod features;
mod field;
mod information;
mod io;
mod lists;
mod owner;
mod request;
mod table;
#[cfg(test)]
mod tests;

use crate::command::{
    Access, CommandSet, DecodedCommand, Direction, Extent, Flags, Geometry, QueueKind, Scope,
};
use crate::reason::{Reason, Refusal};
use blocks::Blocks;
use field::WORDS;
use request::{BROADCAST, EXTENTS, Meaning, Request, View};
use table::{Row, Rule};

/// Bytes that a block may have at most, as a power of two.
const BLOCK_SHIFT_MAX: u8 = 32;

/// The name of an opcode, whether or not a command with it can be decoded.
pub(crate) fn name(queue: QueueKind, opcode: u8) -> &'static str {
    let table = match queue {
        QueueKind::Io => &io::TABLE,
        QueueKind::Admin => &admin::TABLE,
    };
    table[usize::from(opcode)].name
}

/// Opcode of Read.
const READ: u8 = io::READ.opcode;
/// Opcode of Write.
const WRITE: u8 = io::WRITE.opcode;

/// Flags that lie in CDW12, from its bit 25 on.
const OF_DWORD_12: Flags = Flags::DEALLOCATE
    .union(Flags::FORCE_UNIT_ACCESS)
    .union(Flags::LIMITED_RETRY);

/// Decodes commands, one at a time; it keeps the memory for their extents, so that decoding allocates nothing.
///
/// ```
/// use nvme_vfio_passthrough::{Class, CommandSet, Decoder, Geometry, QueueKind, Reason};
///
/// let geometry = Geometry {
///     command_set: CommandSet::NVM,
///     blocks: 1000,
///     block_shift: 12,
///     max_transfer: 1 << 20,
///     max_blocks: 65_536,
///     copy_ranges: 128,
///     copy_range_blocks: 128,
///     copy_blocks: 512,
/// };
/// let mut decoder = Decoder::new();
/// let mut read = [0; 16];
/// (read[0], read[1], read[10], read[12]) = (0x02, 1, 992, 7);
/// let command = decoder.decode(QueueKind::Io, Some(&geometry), &read, &[]).unwrap();
/// assert_eq!((command.class, command.length), (Class::Read, 8 * 4096));
/// assert_eq!((command.extents[0].first, command.extents[0].blocks), (992, 8));
/// read[12] = 8;
/// let refusal = decoder.decode(QueueKind::Io, Some(&geometry), &read, &[]).unwrap_err();
/// assert_eq!(refusal.reason, Reason::OutOfRange);
/// ```
#[derive(Debug)]
pub struct Decoder {
    view: View,
    format_attributes: u8,
    extents: Box<[Extent; EXTENTS]>,
}

impl Default for Decoder {
    fn default() -> Self {
        Decoder::new()
    }
}

impl Decoder {
    /// For the commands of a client that has a virtual controller: what that controller answers by itself is of the class [`Virtual`](crate::Class::Virtual).
    #[must_use]
    pub fn new() -> Decoder {
        Decoder::with_view(View::Client)
    }

    /// For the commands of the process that holds the group: there is no virtual controller, so what would be of the class [`Virtual`](crate::Class::Virtual) is
    /// [`Information`](crate::Class::Information) or [`Owner`](crate::Class::Owner), or is refused because the driver keeps it to itself. Vendors' commands are decoded, as far as that
    /// goes, and the namespace identifier FFFFFFFFh is known where the specification has a meaning for it.
    #[must_use]
    pub fn for_owner() -> Decoder {
        Decoder::with_view(View::Owner)
    }

    fn with_view(view: View) -> Decoder {
        let nowhere = Extent {
            nsid: 0,
            first: 0,
            blocks: 0,
            access: Access::Hint,
        };
        Decoder {
            view,
            format_attributes: u8::MAX,
            extents: Box::new([nowhere; EXTENTS]),
        }
    }

    /// Sets the controller's Format NVM Attributes (FNA, Identify Controller byte 524), which say whether formatting one namespace formats all. Until then the worst is
    /// taken to be so.
    #[must_use]
    pub fn with_format_attributes(mut self, attributes: u8) -> Decoder {
        self.format_attributes = attributes;
        self
    }

    /// Bytes of the range list that the command points to, which has to be copied before it is decoded; 0 for a command without one. At most 8 KiB.
    ///
    /// # Errors
    /// A list in a format that is not offered, or in the entry a bit that may not be set.
    #[inline]
    pub fn list_bytes(
        queue: QueueKind,
        set: CommandSet,
        entry: &[u32; WORDS],
    ) -> Result<usize, Refusal> {
        match (queue, entry[0] as u8) {
            (QueueKind::Io, lists::DATASET_MANAGEMENT | lists::COPY) if set == CommandSet::NVM => {
                lists::bytes(entry).map_err(Reason::refusal)
            }
            _ => Ok(0),
        }
    }

    /// Decodes one command: `entry` is its submission queue entry, `list` the copy of its range list, and `geometry` the namespace that it names, `None` where the
    /// client has no such namespace.
    ///
    /// The extents are the client's, all inside the geometry.
    ///
    /// # Errors
    /// Everything that keeps the command from being understood whole: an opcode without a decoder, a command that never passes, a bit that is reserved or not offered, a
    /// namespace that is not there, blocks outside of it, a length beyond its limits, or a list of another length than [`list_bytes`](Self::list_bytes) said.
    #[inline(always)]
    pub fn decode(
        &mut self,
        queue: QueueKind,
        geometry: Option<&Geometry>,
        entry: &[u32; WORDS],
        list: &[u8],
    ) -> Result<DecodedCommand<'_>, Refusal> {
        // Rows that are known when compiled fold into what is done with them.
        match (queue, entry[0] as u8, geometry) {
            (QueueKind::Io, READ, Some(geometry)) => {
                self.decode_row(queue, const { &io::READ }, geometry, entry, list)
            }
            (QueueKind::Io, WRITE, Some(geometry)) => {
                self.decode_row(queue, const { &io::WRITE }, geometry, entry, list)
            }
            _ => self.decode_any(queue, geometry, entry, list),
        }
    }

    /// By the table.
    #[inline(never)]
    fn decode_any(
        &mut self,
        queue: QueueKind,
        geometry: Option<&Geometry>,
        entry: &[u32; WORDS],
        list: &[u8],
    ) -> Result<DecodedCommand<'_>, Refusal> {
        let table = match queue {
            QueueKind::Io => &io::TABLE,
            QueueKind::Admin => &admin::TABLE,
        };
        let row = table[usize::from(entry[0] as u8)];
        match geometry {
            Some(geometry) => self.decode_row(queue, row, geometry, entry, list),
            None if row.layout.forbids(entry) => Err(row.layout.objection(entry)),
            None => self.decode_other(queue, row, None, entry, list),
        }
    }

    #[inline(always)]
    fn decode_row(
        &mut self,
        queue: QueueKind,
        row: &'static Row,
        geometry: &Geometry,
        entry: &[u32; WORDS],
        list: &[u8],
    ) -> Result<DecodedCommand<'_>, Refusal> {
        if row.layout.forbids(entry) {
            return Err(row.layout.objection(entry));
        }
        match &row.rule {
            Rule::Blocks(blocks) => self.decode_blocks(queue, row, blocks, geometry, entry),
            _ => self.decode_other(queue, row, Some(geometry), entry, list),
        }
    }

    /// The commands that name blocks by SLBA and NLB: the way of every read and write.
    #[inline(always)]
    fn decode_blocks(
        &mut self,
        queue: QueueKind,
        row: &'static Row,
        blocks: &Blocks,
        geometry: &Geometry,
        entry: &[u32; WORDS],
    ) -> Result<DecodedCommand<'_>, Refusal> {
        let nsid = entry[1];
        if nsid.wrapping_sub(1) >= 0xffff_fffd {
            return Err(no_namespace(nsid).refusal());
        }
        if geometry.command_set != CommandSet::NVM {
            return Err(Reason::UnknownCommandSet.refusal());
        }
        let first = u64::from(entry[10]) | u64::from(entry[11]) << 32;
        let count = u64::from(entry[12] & 0xffff) + 1;
        if !request::holds(geometry, first, count) {
            return Err(Reason::OutOfRange.refusal());
        }
        if geometry.block_shift > BLOCK_SHIFT_MAX {
            return Err(Reason::Unavailable.refusal());
        }
        let length = if blocks.direction == Direction::None {
            if count > u64::from(geometry.max_blocks) {
                return Err(Reason::TooLong.refusal());
            }
            0
        } else {
            let length = count << geometry.block_shift;
            if length > u64::from(geometry.max_transfer) {
                return Err(Reason::TooLong.refusal());
            }
            length
        };
        let flags = (entry[12] >> 25) as u16 & OF_DWORD_12.bits();
        let extents = &mut self.extents[..1];
        extents[0] = Extent {
            nsid,
            first,
            blocks: count,
            access: blocks.access,
        };
        Ok(DecodedCommand {
            queue,
            opcode: row.opcode,
            name: row.name,
            class: blocks.class,
            direction: blocks.direction,
            nsid,
            extents,
            scope: Scope::Extents,
            persistence: blocks.persistence,
            length,
            flags: Flags::from_bits_retain(flags),
            selector: 0,
            detail: "",
            operands: [0; 8],
        })
    }

    /// Everything else.
    #[inline(never)]
    fn decode_other(
        &mut self,
        queue: QueueKind,
        row: &'static Row,
        geometry: Option<&Geometry>,
        entry: &[u32; WORDS],
        list: &[u8],
    ) -> Result<DecodedCommand<'_>, Refusal> {
        let mut request = Request {
            view: self.view,
            queue,
            format_attributes: self.format_attributes,
            geometry,
            entry,
            list,
            extents: &mut self.extents,
            count: 0,
        };
        let meaning = request.meaning(row).map_err(Reason::refusal)?;
        let count = request.count;
        let extents = self.extents.get(..count).unwrap_or(&[]);
        let made_anew = !extents.is_empty();
        let [_, _, cdw2, cdw3, _, _, _, _, _, _, rest @ ..] = *entry;
        let [cdw10, cdw11, cdw12, cdw13, cdw14, cdw15] = rest;
        Ok(DecodedCommand {
            queue,
            opcode: entry[0] as u8,
            name: row.name,
            class: meaning.class,
            direction: meaning.direction,
            nsid: entry[1],
            extents,
            scope: meaning.scope,
            persistence: meaning.persistence,
            length: meaning.length,
            flags: meaning.flags,
            selector: meaning.selector,
            detail: meaning.detail,
            operands: if made_anew {
                [0; 8]
            } else {
                [cdw2, cdw3, cdw10, cdw11, cdw12, cdw13, cdw14, cdw15]
            },
        })
    }
}

impl Request<'_> {
    fn meaning(&mut self, row: &Row) -> Result<Meaning, Reason> {
        match &row.rule {
            Rule::Unknown => Err(Reason::UnknownOpcode),
            Rule::Never => Err(Reason::NeverPasses),
            Rule::VirtualOnly => match self.view {
                View::Client => Ok(Meaning::virtual_controller()),
                View::Owner => Err(Reason::NeverPasses),
            },
            Rule::Vendor => owner::vendor(self),
            // With a namespace it is decoded elsewhere.
            Rule::Blocks(_) => Err(no_namespace(self.nsid())),
            Rule::Decode(decode) => {
                let set = self.geometry.map(|geometry| geometry.command_set);
                if self.queue == QueueKind::Io && set.is_some_and(|set| set != CommandSet::NVM) {
                    return Err(Reason::UnknownCommandSet);
                }
                decode(self)
            }
        }
    }
}

/// Why a command that names blocks has no namespace to find them in.
#[cold]
fn no_namespace(nsid: u32) -> Reason {
    match nsid {
        BROADCAST => Reason::AllNamespaces,
        _ => Reason::NamespaceNotGranted,
    }
}
