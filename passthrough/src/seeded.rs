//! Seeds for randomised tests.

use proptest::test_runner::{Config, RngSeed};

/// A proptest configuration with a fixed seed, printed so that a failure tells it.
///
/// `NVME_VFIO_SEED` in the environment chooses another.
pub(crate) fn seeded(cases: u32) -> Config {
    let seed = std::env::var("NVME_VFIO_SEED")
        .ok()
        .and_then(|seed| seed.parse().ok())
        .unwrap_or(2_026);
    eprintln!("NVME_VFIO_SEED={seed}");
    Config {
        cases,
        rng_seed: RngSeed::Fixed(seed),
        failure_persistence: None,
        ..Config::default()
    }
}
