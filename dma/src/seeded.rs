//! Property tests that repeat: a fixed seed, printed, that PROPTEST_RNG_SEED overrides.

use proptest::test_runner::{Config, RngSeed};

/// Configuration of a property test with `cases` cases, few under Miri.
pub(crate) fn config(cases: u32) -> Config {
    let seed = std::env::var("PROPTEST_RNG_SEED")
        .ok()
        .and_then(|seed| seed.parse().ok())
        .unwrap_or(0x6e76_6d65);
    // Shown by the test harness when the test fails.
    eprintln!("PROPTEST_RNG_SEED={seed}");
    Config {
        cases: if cfg!(miri) { 4 } else { cases },
        rng_seed: RngSeed::Fixed(seed),
        failure_persistence: None,
        ..Config::default()
    }
}
