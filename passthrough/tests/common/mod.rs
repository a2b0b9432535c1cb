//! What the attacks need: a client that keeps to no rule, commands that nobody should send, and a judge who shares no code with what is judged.
//!
//! Nothing here uses a decoder, a policy or an entry builder of the project: submission entries are 16 numbers, and what the device did is read from its own trace with
//! code of this module alone.
#![allow(dead_code)] // each test program uses its part

pub(crate) mod bodies;
pub(crate) mod client;
pub(crate) mod honest;
pub(crate) mod judge;
pub(crate) mod medium;
pub(crate) mod memory;
pub(crate) mod oracle;
pub(crate) mod random;
pub(crate) mod world;

use random::Random;

/// An entry as 16 numbers.
pub(crate) type Dwords = [u32; 16];

/// The whole count where the environment's variable `soak` asks for it, else a hundredth.
pub(crate) fn whole(soak: &str, count: u64) -> u64 {
    if std::env::var_os(soak).is_some_and(|value| value == "1") {
        count
    } else {
        count.div_ceil(100)
    }
}

/// The seed of a run: `NVME_VFIO_SEED`, or always the same one. It is printed.
pub(crate) fn seeded(what: &str) -> Random {
    let seed = std::env::var("NVME_VFIO_SEED")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(0x5eed);
    println!("{what}: NVME_VFIO_SEED={seed}");
    Random::new(seed)
}

/// An entry of this opcode and namespace.
pub(crate) fn command(opcode: u8, nsid: u32) -> Dwords {
    let mut entry = [0; 16];
    entry[0] = u32::from(opcode);
    entry[1] = nsid;
    entry
}

/// With these PRP entries.
pub(crate) fn with_prps(mut entry: Dwords, prp1: u64, prp2: u64) -> Dwords {
    entry[6] = prp1 as u32;
    entry[7] = (prp1 >> 32) as u32;
    entry[8] = prp2 as u32;
    entry[9] = (prp2 >> 32) as u32;
    entry
}

/// With one dword set.
pub(crate) fn with(mut entry: Dwords, dword: usize, value: u32) -> Dwords {
    entry[dword] = value;
    entry
}

/// With a starting block and a number of blocks (counted from 1).
pub(crate) fn with_blocks(mut entry: Dwords, first: u64, blocks: u32) -> Dwords {
    entry[10] = first as u32;
    entry[11] = (first >> 32) as u32;
    entry[12] = entry[12] & 0xffff_0000 | (blocks.wrapping_sub(1) & 0xffff);
    entry
}
