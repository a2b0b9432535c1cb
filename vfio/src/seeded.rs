//! Property tests that repeat.

use proptest::test_runner::{Config, RngSeed};

/// A configuration with a fixed seed, printed so that a failure tells it. `PROPTEST_RNG_SEED` in the environment chooses another.
pub(crate) fn config() -> Config {
    let seed = std::env::var("PROPTEST_RNG_SEED")
        .ok()
        .and_then(|seed| seed.parse().ok())
        .unwrap_or(0x6e76_6d65);
    eprintln!("PROPTEST_RNG_SEED={seed}");
    Config {
        rng_seed: RngSeed::Fixed(seed),
        failure_persistence: None,
        ..Config::default()
    }
}
