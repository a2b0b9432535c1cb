//! Where the next I/O goes.

/// Picks the next I/O's place among `0..count`, in units of one I/O.
pub trait Pattern {
    /// The next place.
    fn next(&mut self) -> u64;
}

/// One after the other, from the first again after the last.
#[derive(Clone, Debug)]
pub struct Sequential {
    next: u64,
    count: u64,
}

impl Sequential {
    /// Over `count` places; 0 counts as 1.
    #[must_use]
    pub const fn new(count: u64) -> Self {
        Self { next: 0, count }
    }
}

impl Pattern for Sequential {
    #[inline]
    fn next(&mut self) -> u64 {
        let place = self.next;
        let following = place + 1;
        self.next = if following < self.count { following } else { 0 };
        place
    }
}

/// Independent and uniform, as fio's `norandommap`: a place may come twice before another comes once.
#[derive(Clone, Debug)]
pub struct Random {
    state: u64,
    count: u64,
}

impl Random {
    /// Over `count` places; 0 counts as 1. The same seed gives the same places.
    #[must_use]
    pub const fn new(count: u64, seed: u64) -> Self {
        Self {
            state: seed,
            count: if count == 0 { 1 } else { count },
        }
    }
}

impl Pattern for Random {
    #[inline]
    fn next(&mut self) -> u64 {
        // wyrand: one addition of state, so that nothing waits for the previous draw, and one product.
        self.state = self.state.wrapping_add(0xa076_1d64_78bd_642f);
        let product = u128::from(self.state) * u128::from(self.state ^ 0xe703_7ed1_a0b4_28db);
        let z = (product >> 64) as u64 ^ product as u64;
        // The high half of the product is uniform in 0..count up to count / 2^64: no division.
        ((u128::from(z) * u128::from(self.count)) >> 64) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sequential_wraps() {
        let mut pattern = Sequential::new(3);
        let places: Vec<_> = (0..7).map(|_| pattern.next()).collect();
        assert_eq!(places, [0, 1, 2, 0, 1, 2, 0]);
        let mut single = Sequential::new(0);
        assert_eq!((single.next(), single.next()), (0, 0));
    }

    #[test]
    fn random_is_repeatable_and_depends_on_the_seed() {
        let draw = |seed| {
            let mut pattern = Random::new(1 << 40, seed);
            (0..32).map(|_| pattern.next()).collect::<Vec<_>>()
        };
        assert_eq!(draw(1), draw(1));
        assert_ne!(draw(1), draw(2));
    }

    #[test]
    fn random_is_uniform() {
        const PLACES: usize = 64;
        const DRAWS: u64 = 64_000;
        let mut pattern = Random::new(PLACES as u64, 42);
        let mut hits = [0_u64; PLACES];
        for _ in 0..DRAWS {
            hits[pattern.next() as usize] += 1;
        }
        let expected = DRAWS as f64 / PLACES as f64;
        let chi_square: f64 = hits
            .iter()
            .map(|&hit| (hit as f64 - expected).powi(2) / expected)
            .sum();
        // 63 degrees of freedom: 99.99 % of fair draws lie below 113.
        assert!(chi_square < 113.0, "{chi_square}");
    }

    proptest::proptest! {
        #![proptest_config(nvme_vfio_seeded::seeded(256))]

        #[test]
        fn random_stays_inside(count: u64, seed: u64) {
            let mut pattern = Random::new(count, seed);
            for _ in 0..64 {
                proptest::prop_assert!(pattern.next() < count.max(1));
            }
        }
    }
}
