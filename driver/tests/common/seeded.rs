//! Property tests that repeat.

use proptest::test_runner::{Config, RngSeed};

/// A configuration with `cases` cases and a fixed seed, printed so that a failure tells it. `NVME_VFIO_TEST_SEED` chooses another.
pub(crate) fn seeded(cases: u32) -> Config {
    let seed = std::env::var("NVME_VFIO_TEST_SEED")
        .ok()
        .and_then(|seed| seed.parse().ok())
        .unwrap_or(0x5eed_0001);
    eprintln!("NVME_VFIO_TEST_SEED={seed}");
    Config {
        cases,
        rng_seed: RngSeed::Fixed(seed),
        failure_persistence: None,
        ..Config::default()
    }
}
