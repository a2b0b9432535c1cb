//! Numbers that come again with their seed.

/// SplitMix64, or the bytes of an input as long as there are any.
#[derive(Clone, Debug)]
pub struct Random(Source);

#[derive(Clone, Debug)]
enum Source {
    Seed(u64),
    /// What is left of an input.
    Bytes(Vec<u8>),
}

impl Random {
    /// The same numbers for the same seed.
    #[must_use]
    pub fn new(seed: u64) -> Random {
        Random(Source::Seed(seed))
    }

    /// Numbers that an input says, first byte first, each of no more bytes than it needs; zeros after its end.
    #[must_use]
    pub fn of_bytes(bytes: &[u8]) -> Random {
        Random(Source::Bytes(bytes.iter().rev().copied().collect()))
    }

    /// Whether all of an input has been used.
    #[must_use]
    pub fn is_at_end(&self) -> bool {
        matches!(&self.0, Source::Bytes(bytes) if bytes.is_empty())
    }

    /// Any number.
    #[expect(
        clippy::should_implement_trait,
        reason = "it never ends, and nobody wants it as an iterator"
    )]
    pub fn next(&mut self) -> u64 {
        self.below_power(64)
    }

    /// Any number of so many bits, at least.
    fn below_power(&mut self, bits: u32) -> u64 {
        match &mut self.0 {
            Source::Seed(seed) => {
                *seed = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
                let mut value = *seed;
                value = (value ^ value >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
                value = (value ^ value >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
                value ^ value >> 31
            }
            Source::Bytes(bytes) => {
                let mut value = 0;
                for _ in 0..bits.div_ceil(8) {
                    value = value << 8 | u64::from(bytes.pop().unwrap_or(0));
                }
                value
            }
        }
    }

    /// Below `end`, which is not 0.
    pub fn below(&mut self, end: u64) -> u64 {
        self.below_power(u64::BITS - (end - 1).leading_zeros()) % end
    }

    /// True so many times in a hundred.
    pub fn percent(&mut self, of: u64) -> bool {
        self.below(100) < of
    }

    /// One of them.
    pub fn one<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len() as u64) as usize]
    }

    /// A number of any size: small ones, powers of two and their neighbours, all ones, and anything.
    pub fn odd(&mut self) -> u64 {
        match self.below(5) {
            0 => self.below(300),
            1 => (1u64 << self.below(64))
                .wrapping_add(self.below(3))
                .wrapping_sub(1),
            2 => u64::MAX - self.below(4),
            3 => self.next() >> self.below(64),
            _ => self.next(),
        }
    }

    /// A generator of its own for another part of a run.
    pub fn fork(&mut self) -> Random {
        Random::new(self.next())
    }
}
