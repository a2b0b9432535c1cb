//! Commands of the NVM command set (NVM Command Set Specification 1.0, 3).

use bitflags::bitflags;
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::entry::Command;
use crate::opcode::NvmOpcode;
use crate::prp::DataPointer;

/// CDW12: limited retry.
const LR: u32 = 1 << 31;
/// CDW12: force unit access.
const FUA: u32 = 1 << 30;
/// CDW12 of Write Zeroes: deallocate.
const DEAC: u32 = 1 << 25;

/// How many logical blocks a command covers: 1..=65536.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BlockCount(u16);

impl BlockCount {
    /// One block.
    pub const ONE: Self = Self(0);
    /// The most that a command can name, 65536.
    pub const MAX: Self = Self(u16::MAX);

    /// `None` unless 1..=65536.
    #[inline]
    #[must_use]
    pub const fn new(blocks: u32) -> Option<Self> {
        let zero_based = blocks.wrapping_sub(1);
        if zero_based > u16::MAX as u32 {
            return None;
        }
        Some(Self(zero_based as u16))
    }

    /// In blocks, 1..=65536.
    #[inline]
    #[must_use]
    pub const fn get(self) -> u32 {
        self.0 as u32 + 1
    }

    /// NLB as commands have it: one less.
    #[inline]
    #[must_use]
    pub const fn zero_based(self) -> u16 {
        self.0
    }
}

/// One range of Dataset Management (3.2.3.1), 16 bytes.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    FromBytes,
    IntoBytes,
    Immutable,
    KnownLayout,
    Unaligned,
)]
#[repr(C)]
pub struct DsmRange {
    /// Context attributes: hints.
    pub cattr: U32,
    /// Length in logical blocks, counted from one (unlike NLB of a command).
    pub nlb: U32,
    /// Starting LBA.
    pub slba: U64,
}

bitflags! {
    /// What Dataset Management asks for all its ranges (CDW11).
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
    pub struct DsmAttributes: u32 {
        /// IDR: an integral dataset for read.
        const INTEGRAL_READ = 1 << 0;
        /// IDW: an integral dataset for write.
        const INTEGRAL_WRITE = 1 << 1;
        /// AD: deallocate.
        const DEALLOCATE = 1 << 2;
    }
}

#[inline]
const fn ranged(opcode: NvmOpcode, nsid: u32, slba: u64, blocks: BlockCount) -> Command {
    let mut command = Command::ZERO;
    command.opcode = opcode.0;
    command.nsid = nsid;
    command.cdw10 = slba as u32;
    command.cdw11 = (slba >> 32) as u32;
    command.cdw12 = blocks.zero_based() as u32;
    command
}

impl Command {
    /// Read (3.2.4): `blocks` logical blocks from `slba` on, into the memory that `data` describes.
    #[inline]
    #[must_use]
    pub const fn read(nsid: u32, slba: u64, blocks: BlockCount, data: DataPointer) -> Self {
        ranged(NvmOpcode::READ, nsid, slba, blocks).with_data(data)
    }

    /// Write (3.2.6).
    #[inline]
    #[must_use]
    pub const fn write(nsid: u32, slba: u64, blocks: BlockCount, data: DataPointer) -> Self {
        ranged(NvmOpcode::WRITE, nsid, slba, blocks).with_data(data)
    }

    /// Compare (3.2.1): a difference is [`Status::COMPARE_FAILURE`](crate::Status::COMPARE_FAILURE).
    #[inline]
    #[must_use]
    pub const fn compare(nsid: u32, slba: u64, blocks: BlockCount, data: DataPointer) -> Self {
        ranged(NvmOpcode::COMPARE, nsid, slba, blocks).with_data(data)
    }

    /// Flush (Base Specification 2.0, 7.1): data already completed becomes durable.
    #[inline]
    #[must_use]
    pub const fn flush(nsid: u32) -> Self {
        let mut command = Self::ZERO;
        command.opcode = NvmOpcode::FLUSH.0;
        command.nsid = nsid;
        command
    }

    /// Write Zeroes (3.2.8); `deallocate` lets the controller free the blocks.
    #[must_use]
    pub const fn write_zeroes(nsid: u32, slba: u64, blocks: BlockCount, deallocate: bool) -> Self {
        let mut command = ranged(NvmOpcode::WRITE_ZEROES, nsid, slba, blocks);
        if deallocate {
            command.cdw12 |= DEAC;
        }
        command
    }

    /// Write Uncorrectable (3.2.7): the blocks answer an error until written again.
    #[must_use]
    pub const fn write_uncorrectable(nsid: u32, slba: u64, blocks: BlockCount) -> Self {
        ranged(NvmOpcode::WRITE_UNCORRECTABLE, nsid, slba, blocks)
    }

    /// Verify (3.2.5): reads without transferring.
    #[must_use]
    pub const fn verify(nsid: u32, slba: u64, blocks: BlockCount) -> Self {
        ranged(NvmOpcode::VERIFY, nsid, slba, blocks)
    }

    /// Dataset Management (3.2.3) of `ranges` [`DsmRange`]s, which `data` describes. `None` unless 1..=256.
    #[must_use]
    pub const fn dataset_management(
        nsid: u32,
        ranges: u16,
        attributes: DsmAttributes,
        data: DataPointer,
    ) -> Option<Self> {
        if ranges == 0 || ranges > 256 {
            return None;
        }
        let mut command = Self::ZERO.with_data(data);
        command.opcode = NvmOpcode::DATASET_MANAGEMENT.0;
        command.nsid = nsid;
        command.cdw10 = ranges as u32 - 1;
        command.cdw11 = attributes.bits();
        Some(command)
    }

    /// Sets Force Unit Access: the data is on non-volatile media before the completion.
    #[inline]
    #[must_use]
    pub const fn with_force_unit_access(mut self) -> Self {
        self.cdw12 |= FUA;
        self
    }

    /// Sets Limited Retry.
    #[inline]
    #[must_use]
    pub const fn with_limited_retry(mut self) -> Self {
        self.cdw12 |= LR;
        self
    }

    /// CDW10 and CDW11 as a starting LBA.
    #[inline]
    #[must_use]
    pub const fn slba(&self) -> u64 {
        (self.cdw11 as u64) << 32 | self.cdw10 as u64
    }

    /// CDW12 bits 15:0 as a number of logical blocks.
    #[inline]
    #[must_use]
    pub const fn blocks(&self) -> BlockCount {
        BlockCount(self.cdw12 as u16)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DATA: DataPointer = DataPointer {
        prp1: 0x1000,
        prp2: 0x2000,
    };
    const SLBA: u64 = 0x0123_4567_89ab_cdef;

    #[test]
    fn block_counts_are_bounded() {
        assert_eq!(BlockCount::new(0), None);
        assert_eq!(BlockCount::new(1), Some(BlockCount::ONE));
        assert_eq!(BlockCount::new(65_536), Some(BlockCount::MAX));
        assert_eq!(BlockCount::new(65_537), None);
        assert_eq!(BlockCount::MAX.get(), 65_536);
    }

    #[test]
    fn ranged_commands_place_each_field() {
        let blocks = BlockCount::new(0x1235).unwrap();
        let expected = |opcode, data: DataPointer, cdw12| Command {
            opcode,
            nsid: 3,
            prp1: data.prp1,
            prp2: data.prp2,
            cdw10: 0x89ab_cdef,
            cdw11: 0x0123_4567,
            cdw12,
            ..Command::ZERO
        };
        assert_eq!(
            Command::read(3, SLBA, blocks, DATA),
            expected(0x02, DATA, 0x1234)
        );
        assert_eq!(
            Command::write(3, SLBA, blocks, DATA),
            expected(0x01, DATA, 0x1234)
        );
        assert_eq!(
            Command::compare(3, SLBA, blocks, DATA),
            expected(0x05, DATA, 0x1234)
        );
        assert_eq!(
            Command::write(3, SLBA, blocks, DATA).with_force_unit_access(),
            expected(0x01, DATA, 0x4000_1234)
        );
        assert_eq!(
            Command::read(3, SLBA, blocks, DATA).with_limited_retry(),
            expected(0x02, DATA, 0x8000_1234)
        );
        let none = DataPointer::NONE;
        assert_eq!(
            Command::write_zeroes(3, SLBA, blocks, false),
            expected(0x08, none, 0x1234)
        );
        assert_eq!(
            Command::write_zeroes(3, SLBA, blocks, true),
            expected(0x08, none, 0x0200_1234)
        );
        assert_eq!(
            Command::write_uncorrectable(3, SLBA, blocks),
            expected(0x04, none, 0x1234)
        );
        assert_eq!(
            Command::verify(3, SLBA, blocks),
            expected(0x0c, none, 0x1234)
        );
        assert_eq!(Command::read(3, SLBA, blocks, DATA).slba(), SLBA);
        assert_eq!(Command::read(3, SLBA, blocks, DATA).blocks(), blocks);
        assert_eq!(
            Command::flush(3),
            Command {
                opcode: 0,
                nsid: 3,
                ..Command::ZERO
            }
        );
    }

    #[test]
    fn dataset_management_counts_ranges_from_zero() {
        let dsm = |ranges| Command::dataset_management(1, ranges, DsmAttributes::DEALLOCATE, DATA);
        assert_eq!(dsm(0), None);
        assert_eq!(dsm(257), None);
        let command = dsm(256).unwrap();
        assert_eq!(
            (command.opcode, command.cdw10, command.cdw11),
            (0x09, 255, 4)
        );
        let range = DsmRange {
            cattr: U32::new(1),
            nlb: U32::new(2),
            slba: U64::new(3),
        };
        assert_eq!(
            range.as_bytes(),
            [1, 0, 0, 0, 2, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0]
        );
    }
}
