//! What the attacks need beside those who attack (`nvme-vfio-attacker`): a device that is lent, and a judge who shares no code with what is judged.
//!
//! Nothing here uses a decoder, a policy or an entry builder of the project: submission entries are 16 numbers, and what the device did is read from its own trace with
//! code of this module alone.
#![allow(dead_code, unused_imports)] // each test program uses its part

pub(crate) mod before;
pub(crate) mod judge;
pub(crate) mod medium;
pub(crate) mod oracle;
pub(crate) mod world;

pub(crate) use nvme_vfio_attacker::{
    Dwords, bodies, client, command, honest, learned, memory, random, siege, state, with,
    with_blocks, with_prps,
};
use random::Random;

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
    Random::new(nvme_vfio_seeded::seed(what, 0x5eed))
}
