//! A served controller, and a client that may run it as well as it can.

use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::Duration;

use nix::sys::uio::pwrite;
use nvme_vfio_emulator::{Emulator, Patience, ServedController, served_domain};
use nvme_vfio_user::device::Device;
use nvme_vfio_user::message::Command;

use super::lent::Lent;
use super::{Behind, Message, descriptors};
use crate::input::Input;

/// Where the memory of each kind of descriptor stands when the client sets up the controller; its pages are the queues and data.
const MEMORY: u64 = 0x1_0000;
const PAGE: u64 = 4096;
const ENTRIES: u16 = 16;
/// The pages of the queues: admin and I/O, submission and completion.
const QUEUES: [u64; 4] = [0, 1, 2, 3];

struct Served {
    controller: ServedController,
    /// Where a handler carries out the commands.
    lent: Option<Lent>,
    tails: [u16; 2],
}

/// Runs an input on a session with a served controller.
///
/// # Panics
/// When the session or the controller did wrong.
pub fn served(data: &[u8]) {
    super::run(data, || {
        let text = "size=1M,mdts=2,queues=2,stepped=on,latency.read=1us..4us,latency.write=2us";
        let config = text.parse().expect("a good configuration");
        let shape = data.first().copied().unwrap_or(0);
        for kind in 0..3 {
            clear(descriptors::of_kind(kind), descriptors::pages(kind));
        }
        if shape & 0x20 != 0 {
            return lent(shape);
        }
        let emulator = Emulator::in_domain(config, served_domain(64)).expect("a controller");
        // Commands in flight are either given up at once, or waited for as long as they take.
        let time = if shape & 0x10 != 0 {
            Duration::ZERO
        } else {
            Duration::from_secs(3600)
        };
        let patience = Patience {
            abort: time,
            fatal: Some(time),
        };
        Served {
            controller: ServedController::new(emulator, patience).expect("descriptors"),
            lent: None,
            tails: [0; 2],
        }
    });
}

/// A controller whose commands go to a handler, and all of whose memory is lent on.
fn lent(shape: u8) -> Served {
    let text = if shape & 0x40 != 0 {
        "size=1M,mdts=2,queues=2,stepped=on,latency.read=1us..4us,latency.write=2us"
    } else {
        "size=1M,mdts=2,queues=2,stepped=on"
    };
    let config = text.parse().expect("a good configuration");
    let lent = Lent::default();
    let handler = Box::new(lent.clone());
    let emulator =
        Emulator::with_handler(config, handler, served_domain(64)).expect("a controller");
    let patience = Patience {
        abort: Duration::ZERO,
        fatal: (shape & 0x10 != 0).then_some(Duration::ZERO),
    };
    let lender = Arc::new(lent.clone());
    let controller = ServedController::with_lender(emulator, patience, lender);
    Served {
        controller: controller.expect("descriptors"),
        lent: Some(lent),
        tails: [0; 2],
    }
}

/// The memory is used for every input, and must not tell one of another.
fn clear(memory: BorrowedFd<'static>, pages: u64) {
    write(memory, 0, &vec![0; (pages * PAGE) as usize]);
}

fn write(memory: BorrowedFd<'static>, offset: u64, bytes: &[u8]) {
    let written = pwrite(memory, bytes, offset.cast_signed());
    assert_eq!(written, Ok(bytes.len()), "memory of the client's own");
}

/// A write of a register of BAR 0, or of configuration space.
fn register(region: u32, offset: u64, value: &[u8]) -> Message {
    let length = value.len() as u32;
    let mut payload = offset.to_le_bytes().to_vec();
    payload.extend(region.to_le_bytes());
    payload.extend(length.to_le_bytes());
    payload.extend(value);
    Message {
        command: Command::REGION_WRITE,
        payload,
        descriptor: None,
    }
}

impl Served {
    /// What a driver does first: memory, bus mastering, admin queues, CC.EN.
    fn set_up(&mut self, kind: u8) -> Vec<Message> {
        self.tails = [0; 2];
        let mut map = Vec::new();
        map.extend(32u32.to_le_bytes());
        map.extend(3u32.to_le_bytes());
        for value in [0, MEMORY, descriptors::pages(kind) * PAGE] {
            map.extend(value.to_le_bytes());
        }
        let last = u32::from(ENTRIES) - 1;
        vec![
            Message {
                command: Command::DMA_MAP,
                payload: map,
                descriptor: Some(descriptors::of_kind(kind)),
            },
            register(7, 4, &[6, 0]),
            register(0, 0x14, &0u32.to_le_bytes()),
            register(0, 0x24, &(last << 16 | last).to_le_bytes()),
            register(0, 0x28, &(MEMORY + QUEUES[0] * PAGE).to_le_bytes()),
            register(0, 0x30, &(MEMORY + QUEUES[1] * PAGE).to_le_bytes()),
            register(0, 0x14, &0x46_0001u32.to_le_bytes()),
        ]
    }

    /// Puts an entry into a submission queue, and rings.
    fn submit(&mut self, queue: usize, entry: [u32; 16]) -> Message {
        let slot = self.tails[queue];
        let page = QUEUES[queue * 2];
        let bytes: Vec<u8> = entry.iter().flat_map(|dword| dword.to_le_bytes()).collect();
        for kind in 0..2 {
            let offset = page * PAGE + u64::from(slot) * 64;
            write(descriptors::of_kind(kind), offset, &bytes);
        }
        self.tails[queue] = (slot + 1) % ENTRIES;
        let tail = u32::from(self.tails[queue]);
        register(0, 0x1000 + queue as u64 * 8, &tail.to_le_bytes())
    }

    fn entry(&self, input: &mut Input<'_>) -> Option<[u32; 16]> {
        let mut entry = [0; 16];
        let (opcode, given) = (input.u8()?, input.u8()?);
        entry[0] = u32::from(opcode) | u32::from(self.tails[0] ^ self.tails[1] << 8) << 16;
        entry[1] = 1;
        entry[6] = MEMORY as u32 + u32::from(input.u8()? & 0x1f) * PAGE as u32;
        if given & 1 != 0 {
            entry[8] = MEMORY as u32 + u32::from(input.u8()? & 0x1f) * PAGE as u32;
        }
        for (bit, dword) in (1..).zip([10, 11, 12, 13]) {
            if given >> bit & 1 != 0 {
                entry[dword] = input.u32()?;
            }
        }
        if given & 0x20 != 0 {
            entry[1] = input.u32()?;
        }
        Some(entry)
    }
}

impl Behind for Served {
    fn device(&self) -> &dyn Device {
        &self.controller
    }

    fn act(&mut self, input: &mut Input<'_>) -> Option<Vec<Message>> {
        Some(match input.below(6)? {
            0 => {
                for _ in 0..=input.below(8)? {
                    self.controller.emulator().step();
                }
                Vec::new()
            }
            1 => self.set_up(input.below(2)?),
            2 => {
                let size = (u32::from(ENTRIES) - 1) << 16 | 1;
                let mut create = [0; 16];
                (create[0], create[10], create[11]) = (0x05, size, 3);
                create[6] = (MEMORY + QUEUES[3] * PAGE) as u32;
                let completion = self.submit(0, create);
                (create[0], create[11]) = (0x01, 1 << 16 | 1);
                create[6] = (MEMORY + QUEUES[2] * PAGE) as u32;
                vec![completion, self.submit(0, create)]
            }
            3 | 4 => {
                let queue = usize::from(input.below(2)?);
                let entry = self.entry(input)?;
                vec![self.submit(queue, entry)]
            }
            _ => {
                let kind = input.below(3)?;
                let (offset, length) = (u64::from(input.u16()?), input.u8()?);
                let bytes = input.bytes(length.into())?;
                let room = descriptors::pages(kind) * PAGE - 256;
                write(descriptors::of_kind(kind), offset % room, bytes);
                Vec::new()
            }
        })
    }

    fn settle(&mut self) {
        for _ in 0..32 {
            self.pass();
        }
    }

    fn pass(&mut self) {
        if self.lent.is_some() {
            self.controller.emulator().turn(4);
        } else {
            self.controller.emulator().step();
        }
    }

    fn check_end(&self) {
        if let Some(lent) = &self.lent {
            lent.check_end();
        }
        let emulator = self.controller.emulator();
        let left = emulator.iommu().mappings();
        assert!(left.is_empty(), "mapped still: {left:?}");
        assert_eq!(emulator.register_read(0x14, 4) & 1, 0, "enabled still");
        emulator.step();
        // Memory that is not mapped is not touched: what is refused now would have been a use after the end.
        let refused = emulator.iommu().fault_count();
        emulator.step();
        assert_eq!(refused, emulator.iommu().fault_count());
    }
}
