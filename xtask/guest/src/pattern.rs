//! Content that tells where it belongs, and the places where it is put.

use nvme_vfio::{Address, Way};
use nvme_vfio_pci::PciAddress;

/// The driver's address of a PCI function.
pub(crate) fn vfio(function: PciAddress) -> Address {
    Address::Pci {
        function,
        way: Way::Vfio,
    }
}

/// A small seeded generator (xorshift64*).
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        // Neighbouring seeds must not begin alike.
        let mut random = Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        for _ in 0..4 {
            random.next();
        }
        random
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// Below `end`, which is not zero.
    pub(crate) fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    pub(crate) fn fill(&mut self, bytes: &mut [u8]) {
        for chunk in bytes.chunks_mut(size_of::<u64>()) {
            let word = self.next().to_le_bytes();
            chunk.copy_from_slice(&word[..chunk.len()]);
        }
    }
}

/// The smallest block there is. Marks are made per sector, whatever the block size.
pub(crate) const SECTOR: usize = 512;

/// Marks each sector of `bytes`, which go to `first` (in sectors) and after, with its place and `round`.
pub(crate) fn mark(bytes: &mut [u8], first: u64, round: u64) {
    for (sector, chunk) in (first..).zip(bytes.chunks_exact_mut(SECTOR)) {
        for (index, word) in (0u32..).zip(chunk.chunks_exact_mut(size_of::<u64>())) {
            word.copy_from_slice(&word_of(sector, round, index).to_le_bytes());
        }
    }
}

/// What a sector that was read holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Found {
    /// Nothing: it was never written.
    Empty,
    /// The whole mark of this round.
    Round(u64),
    /// Anything else.
    Other,
}

/// What each sector of `bytes` holds, which were read from `first` (in sectors) on.
pub(crate) fn found(bytes: &[u8], first: u64) -> impl Iterator<Item = Found> {
    (first..)
        .zip(bytes.chunks_exact(SECTOR))
        .map(|(sector, chunk)| {
            if chunk.iter().all(|byte| *byte == 0) {
                return Found::Empty;
            }
            let (words, _) = chunk.as_chunks::<{ size_of::<u64>() }>();
            let mut words = (0u32..).zip(words.iter().map(|word| u64::from_le_bytes(*word)));
            let round = words.clone().nth(1).map_or(0, |(_, word)| word);
            if words.all(|(index, word)| word == word_of(sector, round, index)) {
                Found::Round(round)
            } else {
                Found::Other
            }
        })
}

/// The first word is the place (never zero), the second the round, and the others both together.
fn word_of(sector: u64, round: u64, index: u32) -> u64 {
    match index {
        0 => !sector,
        1 => round,
        _ => (!sector).rotate_left(index) ^ round,
    }
}

/// A piece of the drive.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Extent {
    /// Its place in the list, which chooses its content.
    pub(crate) number: u64,
    /// The first block; the one before belongs to no extent.
    pub(crate) lba: u64,
    /// How many blocks.
    pub(crate) blocks: u64,
    /// Where in memory the data begins, in bytes from a page's beginning.
    pub(crate) offset: usize,
}

/// Powers of two and their neighbours from one block to 8 MiB, and 200 seeded sizes, in seeded order, side by side with gaps of
/// one to seven blocks, so that places are odd as often as even.
pub(crate) fn extents(block: u64) -> Vec<Extent> {
    const SEED: u64 = 0x5eed_0002;
    println!("the places come from seed {SEED:#x}");
    let mut random = Random::new(SEED);
    let longest = (8 << 20) / block;
    let powers = (0..=longest.ilog2()).flat_map(|power| {
        let power = 1 << power;
        [power - 1, power, power + 1]
    });
    let mut sizes: Vec<u64> = powers
        .filter(|blocks| (1..=longest).contains(blocks))
        .collect();
    for _ in 0..200 {
        let scale = random.below(u64::from(longest.ilog2()) + 1);
        sizes.push(1 + random.below(1 << scale));
    }
    for index in (1..sizes.len()).rev() {
        sizes.swap(index, random.below(index as u64 + 1) as usize);
    }
    let mut lba = 0;
    (0..)
        .zip(sizes)
        .map(|(number, blocks)| {
            lba += 1 + random.below(7);
            let extent = Extent {
                number,
                lba,
                blocks,
                // PRPs begin at any multiple of four bytes.
                offset: random.below(1024) as usize * 4,
            };
            lba += blocks;
            extent
        })
        .collect()
}

impl Extent {
    /// The content of the extent.
    pub(crate) fn fill(&self, seed: u64, bytes: &mut [u8]) {
        Random::new(seed << 32 | self.number).fill(bytes);
    }
}
