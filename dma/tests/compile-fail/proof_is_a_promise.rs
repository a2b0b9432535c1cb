//! Memory leaves quarantine by a statement that somebody answers for, once.

use nvme_vfio_dma::{LetGo, Proof, Quarantine};

fn made_up(quarantine: &mut Quarantine) {
    let _ = quarantine.release(Proof::new(LetGo::Reset));
}

fn twice(quarantine: &mut Quarantine, proof: Proof) {
    let _ = quarantine.release(proof);
    let _ = quarantine.release(proof);
}

fn main() {}
