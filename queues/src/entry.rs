//! Queue entries: what the host submits and what the controller answers
//! (Base Specification 2.0, 3.3.3).

use core::mem::{align_of, offset_of, size_of};

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::opcode::Direction;
use crate::prp::DataPointer;
use crate::status::Status;

#[cfg(target_endian = "big")]
compile_error!("queue entries are stored in native integers, which NVMe wants little-endian");

/// Command Dword 0 bits 15:14: the data pointer holds PRPs or an SGL.
const PSDT_MASK: u8 = 0b1100_0000;
/// Command Dword 0 bits 9:8: place in a fused operation.
const FUSE_MASK: u8 = 0b0000_0011;

/// A submission queue entry: one command, 64 bytes (3.3.3.1, figure "Common
/// Command Format").
///
/// The constructors in [`command`](crate::command) fill it; every field is public for
/// commands that have none.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C, align(64))]
pub struct Command {
    /// CDW0 bits 7:0, see [`AdminOpcode`](crate::AdminOpcode) and [`NvmOpcode`](crate::NvmOpcode).
    pub opcode: u8,
    /// CDW0 bits 15:8: FUSE in bits 1:0, PSDT in bits 7:6.
    pub flags: u8,
    /// CDW0 bits 31:16: the identifier that the completion entry repeats. FFFFh is not to be used.
    pub cid: u16,
    /// Namespace identifier; FFFFFFFFh means all namespaces where a command allows that.
    pub nsid: u32,
    /// Command Dword 2.
    pub cdw2: u32,
    /// Command Dword 3.
    pub cdw3: u32,
    /// Metadata Pointer: an address as the device sees it.
    pub mptr: u64,
    /// PRP Entry 1: an address as the device sees it.
    pub prp1: u64,
    /// PRP Entry 2: the second page, or the first page of the PRP list.
    pub prp2: u64,
    /// Command Dword 10.
    pub cdw10: u32,
    /// Command Dword 11.
    pub cdw11: u32,
    /// Command Dword 12.
    pub cdw12: u32,
    /// Command Dword 13.
    pub cdw13: u32,
    /// Command Dword 14.
    pub cdw14: u32,
    /// Command Dword 15.
    pub cdw15: u32,
}

const _: () = {
    assert!(size_of::<Command>() == 64);
    assert!(align_of::<Command>() == 64);
    assert!(offset_of!(Command, flags) == 1);
    assert!(offset_of!(Command, cid) == 2);
    assert!(offset_of!(Command, nsid) == 4);
    assert!(offset_of!(Command, cdw2) == 8);
    assert!(offset_of!(Command, cdw3) == 12);
    assert!(offset_of!(Command, mptr) == 16);
    assert!(offset_of!(Command, prp1) == 24);
    assert!(offset_of!(Command, prp2) == 32);
    assert!(offset_of!(Command, cdw10) == 40);
    assert!(offset_of!(Command, cdw15) == 60);
};

impl Command {
    /// Every word zero.
    pub const ZERO: Self = Self {
        opcode: 0,
        flags: 0,
        cid: 0,
        nsid: 0,
        cdw2: 0,
        cdw3: 0,
        mptr: 0,
        prp1: 0,
        prp2: 0,
        cdw10: 0,
        cdw11: 0,
        cdw12: 0,
        cdw13: 0,
        cdw14: 0,
        cdw15: 0,
    };

    /// Sets the command identifier.
    #[inline]
    #[must_use]
    pub const fn with_cid(mut self, cid: u16) -> Self {
        self.cid = cid;
        self
    }

    /// Sets PRP1 and PRP2.
    #[inline]
    #[must_use]
    pub const fn with_data(mut self, data: DataPointer) -> Self {
        self.prp1 = data.prp1;
        self.prp2 = data.prp2;
        self
    }

    /// Sets the metadata pointer, an address as the device sees it.
    #[inline]
    #[must_use]
    pub const fn with_metadata(mut self, mptr: u64) -> Self {
        self.mptr = mptr;
        self
    }

    /// PRP1 and PRP2.
    #[inline]
    #[must_use]
    pub const fn data_pointer(&self) -> DataPointer {
        DataPointer {
            prp1: self.prp1,
            prp2: self.prp2,
        }
    }

    /// Which way the opcode says that data goes. Some commands without a data
    /// transfer carry addresses all the same (Doorbell Buffer Config).
    #[inline]
    #[must_use]
    pub const fn direction(&self) -> Direction {
        Direction::of(self.opcode)
    }

    /// PSDT (CDW0 bits 15:14): 0 when the data pointer holds PRPs, 1 or 2 for an SGL.
    #[inline]
    #[must_use]
    pub const fn psdt(&self) -> u8 {
        (self.flags & PSDT_MASK) >> 6
    }

    /// FUSE (CDW0 bits 9:8): 0 for a normal command, 1 the first, 2 the second of a fused operation.
    #[inline]
    #[must_use]
    pub const fn fuse(&self) -> u8 {
        self.flags & FUSE_MASK
    }
}

/// A completion queue entry, 16 bytes (3.3.3.2, figure "Common Completion
/// Queue Entry Layout").
///
/// A copy in host memory proper: the ring reads the entry that the device writes,
/// and hands out this.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C, align(16))]
pub struct CompletionEntry {
    /// Dword 0: command specific.
    pub dw0: u32,
    /// Dword 1: command specific.
    pub dw1: u32,
    /// Submission Queue Head Pointer at the time the entry was created. From the
    /// device: bound it before use.
    pub sqhd: u16,
    /// Submission Queue Identifier. From the device: compare it before use.
    pub sqid: u16,
    /// Command Identifier. From the device: look it up, never index with it unchecked.
    pub cid: u16,
    /// Bit 0 is the phase tag, bits 15:1 are the status field.
    pub status_word: u16,
}

const _: () = {
    assert!(size_of::<CompletionEntry>() == 16);
    assert!(align_of::<CompletionEntry>() == 16);
    assert!(offset_of!(CompletionEntry, dw1) == 4);
    assert!(offset_of!(CompletionEntry, sqhd) == 8);
    assert!(offset_of!(CompletionEntry, sqid) == 10);
    assert!(offset_of!(CompletionEntry, cid) == 12);
    assert!(offset_of!(CompletionEntry, status_word) == 14);
};

impl CompletionEntry {
    /// The phase tag, which the controller inverts on each pass through the queue.
    #[inline]
    #[must_use]
    pub const fn phase(&self) -> bool {
        self.status_word & 1 != 0
    }

    /// The status field.
    #[inline]
    #[must_use]
    pub const fn status(&self) -> Status {
        Status::from_status_word(self.status_word)
    }

    /// Dword 0, where most commands put their answer.
    #[inline]
    #[must_use]
    pub const fn result(&self) -> u32 {
        self.dw0
    }

    /// Dwords 0 and 1 as one number, for commands that answer in 64 bits (Zone Append).
    #[inline]
    #[must_use]
    pub const fn result64(&self) -> u64 {
        (self.dw1 as u64) << 32 | self.dw0 as u64
    }

    /// Sets status and phase tag, as a controller does.
    #[inline]
    #[must_use]
    pub const fn with_status(mut self, status: Status, phase: bool) -> Self {
        self.status_word = status.to_status_word(phase);
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_reads_back_from_its_bytes_at_the_specified_positions() {
        let bytes: [u8; 64] = core::array::from_fn(|i| u8::try_from(i).unwrap());
        let command = Command::read_from_bytes(&bytes).unwrap();
        assert_eq!(command.opcode, 0x00);
        assert_eq!(command.flags, 0x01);
        assert_eq!(command.cid, 0x0302);
        assert_eq!(command.nsid, 0x0706_0504);
        assert_eq!(command.cdw2, 0x0b0a_0908);
        assert_eq!(command.mptr, 0x1716_1514_1312_1110);
        assert_eq!(command.prp1, 0x1f1e_1d1c_1b1a_1918);
        assert_eq!(command.prp2, 0x2726_2524_2322_2120);
        assert_eq!(command.cdw10, 0x2b2a_2928);
        assert_eq!(command.cdw11, 0x2f2e_2d2c);
        assert_eq!(command.cdw12, 0x3332_3130);
        assert_eq!(command.cdw13, 0x3736_3534);
        assert_eq!(command.cdw14, 0x3b3a_3938);
        assert_eq!(command.cdw15, 0x3f3e_3d3c);
        assert_eq!(command.as_bytes(), bytes);
    }

    #[test]
    fn flags_decode() {
        let command = Command {
            flags: 0b0100_0010,
            ..Command::ZERO
        };
        assert_eq!(command.psdt(), 1);
        assert_eq!(command.fuse(), 2);
    }

    #[test]
    fn a_completion_reads_back_from_its_bytes() {
        let bytes = [
            0x78, 0x56, 0x34, 0x12, 0xef, 0xcd, 0xab, 0x90, 0x11, 0x22, 0x33, 0x44, 0x55, 0x66,
            0x01, 0x81,
        ];
        let entry = CompletionEntry::read_from_bytes(&bytes).unwrap();
        assert_eq!(entry.result(), 0x1234_5678);
        assert_eq!(entry.result64(), 0x90ab_cdef_1234_5678);
        assert_eq!(entry.sqhd, 0x2211);
        assert_eq!(entry.sqid, 0x4433);
        assert_eq!(entry.cid, 0x6655);
        assert!(entry.phase());
        assert_eq!(entry.status().sc(), 0x80);
        assert_eq!(entry.status().sct(), 0);
        assert!(entry.status().dnr());
        assert!(entry.status().is(Status::LBA_OUT_OF_RANGE));
    }

    #[test]
    fn status_and_phase_round_trip() {
        for phase in [false, true] {
            for raw in 0..=0x7fff {
                let entry = CompletionEntry::default().with_status(Status::from_raw(raw), phase);
                assert_eq!(entry.phase(), phase);
                assert_eq!(entry.status().to_raw(), raw);
            }
        }
    }
}
