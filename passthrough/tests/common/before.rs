//! What an attacker can have no part in, as it was before.

use nvme_vfio_attacker::state::differences;

use super::judge::Breach;
use super::world::World;

/// The device's state, and that of a client that does nothing.
#[derive(Debug)]
pub(crate) struct Before {
    device: Vec<(String, Vec<u8>)>,
    seat: usize,
    bystander: Vec<(String, Vec<u8>)>,
}

impl Before {
    /// As it is now. Asking must not change it.
    pub(crate) fn of(world: &mut World, seat: usize) -> Before {
        let device = world.device_state();
        let bystander = world.seat_state(seat);
        let again = world.seat_state(seat);
        assert!(
            bystander == again,
            "asking changes what is asked for: {}",
            differences(&bystander, &again)
        );
        Before {
            device,
            seat,
            bystander,
        }
    }

    /// What has changed of it, of the media but for what `acting` may change, and of memory around the bystander's.
    pub(crate) fn changes(&self, world: &mut World, acting: usize) -> Vec<Breach> {
        let mut breaches = world.judge.compare_media(&[acting]);
        let device = world.device_state();
        if device != self.device {
            breaches.push(format!(
                "the device's state: {}",
                differences(&self.device, &device)
            ));
        }
        let bystander = world.seat_state(self.seat);
        if bystander != self.bystander {
            breaches.push(format!(
                "the other client's state: {}",
                differences(&self.bystander, &bystander)
            ));
        }
        breaches.extend(world.learned(self.seat));
        breaches.extend(world.judge.look(&[]));
        if !world.seats[self.seat].client.guards_live() {
            breaches.push("memory around the other client's has changed".to_owned());
        }
        breaches
    }
}
