//! For tests: random input that is the same in every run.
//!
//! Each test has a fixed seed and prints it, which the test harness shows where the test fails. `NVME_VFIO_SEED` in the environment
//! chooses another for all of them.

use proptest::test_runner::{Config, RngSeed};

/// What the seed is called in the environment.
const NAME: &str = "NVME_VFIO_SEED";
/// The seed of property tests.
const SEED: u64 = 2_026;

/// The seed that was chosen in the environment, if one was.
#[must_use]
pub fn chosen() -> Option<u64> {
    std::env::var(NAME).ok()?.parse().ok()
}

/// The seed of a test called `what`: the one that was chosen, or else `default`. It is printed.
#[must_use]
pub fn seed(what: &str, default: u64) -> u64 {
    let seed = chosen().unwrap_or(default);
    println!("{what}: {NAME}={seed}");
    seed
}

/// The configuration of a property test with `cases` cases, of which Miri, for which each takes long, runs four.
#[must_use]
pub fn seeded(cases: u32) -> Config {
    Config {
        cases: if cfg!(miri) { 4 } else { cases },
        rng_seed: RngSeed::Fixed(seed("property test", SEED)),
        failure_persistence: None,
        ..Config::default()
    }
}
