//! Submission entries as 16 numbers.

/// An entry as 16 numbers.
pub type Dwords = [u32; 16];

/// An entry of this opcode and namespace.
#[must_use]
pub fn command(opcode: u8, nsid: u32) -> Dwords {
    let mut entry = [0; 16];
    entry[0] = u32::from(opcode);
    entry[1] = nsid;
    entry
}

/// With these PRP entries.
#[must_use]
pub fn with_prps(mut entry: Dwords, prp1: u64, prp2: u64) -> Dwords {
    entry[6] = prp1 as u32;
    entry[7] = (prp1 >> 32) as u32;
    entry[8] = prp2 as u32;
    entry[9] = (prp2 >> 32) as u32;
    entry
}

/// With one dword set.
#[must_use]
pub fn with(mut entry: Dwords, dword: usize, value: u32) -> Dwords {
    entry[dword] = value;
    entry
}

/// With a starting block and a number of blocks (counted from 1).
#[must_use]
pub fn with_blocks(mut entry: Dwords, first: u64, blocks: u32) -> Dwords {
    entry[10] = first as u32;
    entry[11] = (first >> 32) as u32;
    entry[12] = entry[12] & 0xffff_0000 | (blocks.wrapping_sub(1) & 0xffff);
    entry
}
