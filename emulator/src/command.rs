//! A submission entry as the controller reads it: 64 raw bytes, and the fields it takes from them.
//!
//! The extraction is the emulator's own. It shares nothing with the decoders of the crates that build or judge commands, so
//! that one misread field cannot hide in both.

/// One submission queue entry (NVMe base specification 2.0, figure 87), as eight little-endian quadwords.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Entry(pub(crate) [u64; 8]);

impl Entry {
    /// Command dword `index`, 0 to 15.
    pub(crate) fn dword(&self, index: usize) -> u32 {
        let word = self.0.get(index / 2).copied().unwrap_or(0);
        if index.is_multiple_of(2) {
            word as u32
        } else {
            (word >> 32) as u32
        }
    }

    pub(crate) fn opcode(&self) -> u8 {
        self.0[0] as u8
    }

    /// FUSE, bits 9:8 of dword 0.
    pub(crate) fn fuse(&self) -> u8 {
        (self.0[0] >> 8) as u8 & 0b11
    }

    /// PSDT, bits 15:14 of dword 0.
    pub(crate) fn psdt(&self) -> u8 {
        (self.0[0] >> 14) as u8 & 0b11
    }

    pub(crate) fn cid(&self) -> u16 {
        (self.0[0] >> 16) as u16
    }

    pub(crate) fn nsid(&self) -> u32 {
        (self.0[0] >> 32) as u32
    }

    pub(crate) fn prp1(&self) -> u64 {
        self.0[3]
    }

    pub(crate) fn prp2(&self) -> u64 {
        self.0[4]
    }

    /// Starting LBA of the commands that address blocks: dwords 10 and 11.
    pub(crate) fn slba(&self) -> u64 {
        self.0[5]
    }

    /// Number of logical blocks, 1 to 65,536: the field is 0's based.
    pub(crate) fn blocks(&self) -> u32 {
        u32::from(self.dword(12) as u16) + 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_come_from_their_bytes() {
        let bytes: [u8; 64] = std::array::from_fn(|index| index as u8 + 0x80);
        let words = std::array::from_fn(|index| {
            let mut word = [0; 8];
            word.copy_from_slice(&bytes[index * 8..][..8]);
            u64::from_le_bytes(word)
        });
        let entry = Entry(words);
        assert_eq!(entry.opcode(), 0x80);
        assert_eq!(entry.fuse(), 0x81 & 3);
        assert_eq!(entry.psdt(), 0x81 >> 6);
        assert_eq!(entry.cid(), 0x8382);
        assert_eq!(entry.nsid(), 0x8786_8584);
        assert_eq!(entry.prp1(), 0x9f9e_9d9c_9b9a_9998);
        assert_eq!(entry.prp2(), 0xa7a6_a5a4_a3a2_a1a0);
        assert_eq!(entry.slba(), 0xafae_adac_abaa_a9a8);
        assert_eq!(entry.dword(10), 0xabaa_a9a8);
        assert_eq!(entry.dword(12), 0xb3b2_b1b0);
        assert_eq!(entry.blocks(), 0xb1b1);
        assert_eq!(entry.dword(15), 0xbfbe_bdbc);
        assert_eq!(entry.dword(16), 0, "there is no such dword");
    }
}
