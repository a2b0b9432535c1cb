//! Memory that a client takes back while its commands are at the device: it is let go of when nothing touches it any more, and not before.
#![allow(unsafe_code)] // Maps a file, and lends it on.

mod common;

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::os::fd::OwnedFd;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use common::client::pages;
use common::judge::Piece;
use common::memory::PAGE;
use common::world::{Lent, World};
use common::{command, seeded, whole, with_blocks, with_prps};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};
use nvme_vfio::AddressSpace;
use nvme_vfio_dma::{Access, Iova, Memory, SharedMemory};
use nvme_vfio_emulator::{Lender, Patience, ServedController};
use nvme_vfio_user::ClientMemory;
use nvme_vfio_user::device::{Device, DmaAccess, Progress};

const PAGES: usize = 16;
const BYTES: usize = PAGES * PAGE;
/// Where the client sees the memory that comes and goes.
const PLACE: u64 = 7 << 32;
const MARK: u64 = 0xa5a5_5a5a_a5a5_5a5a;
const DEVICE: &str = "nsids=1/2M,latency.read=0us..60us,latency.write=0us..60us,latency.other=0us..60us,latency.step=1us,stepped";

/// A file in memory, mapped by the client.
struct Shared {
    file: OwnedFd,
    pointer: NonNull<std::ffi::c_void>,
}

impl Shared {
    fn new() -> Shared {
        let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
        let file = memfd_create(c"client", flags).unwrap();
        nix::unistd::ftruncate(&file, BYTES as i64).unwrap();
        fcntl(
            &file,
            FcntlArg::F_ADD_SEALS(SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW),
        )
        .unwrap();
        let both = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        let length = NonZeroUsize::new(BYTES).unwrap();
        // SAFETY: a new mapping of a file of that length, wherever there is room.
        let pointer = unsafe { mmap(None, length, both, MapFlags::MAP_SHARED, &file, 0) }.unwrap();
        Shared { file, pointer }
    }

    fn word(&self, index: usize) -> &AtomicU64 {
        assert!(index < BYTES / 8);
        // SAFETY: inside the mapping, which lives as long as `self`, and aligned.
        unsafe { AtomicU64::from_ptr(self.pointer.as_ptr().cast::<u64>().add(index)) }
    }

    fn fill(&self, value: u64) {
        (0..BYTES / 8).for_each(|index| self.word(index).store(value, Ordering::Relaxed));
    }

    fn is_all(&self, value: u64) -> bool {
        (0..BYTES / 8).all(|index| self.word(index).load(Ordering::Relaxed) == value)
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        // SAFETY: nobody else has the pointer.
        unsafe { munmap(self.pointer, BYTES) }.unwrap();
    }
}

/// Lends memory on to the device, and counts.
#[derive(Debug)]
struct Loans {
    space: AddressSpace,
    live: Mutex<BTreeMap<Iova, SharedMemory>>,
}

impl Lender for Loans {
    fn lend(&self, memory: &ClientMemory, access: Access) -> Result<Iova, Errno> {
        // SAFETY: whoever lends keeps a handle until `take_back`.
        let lent = unsafe { Memory::from_raw_parts(memory.pointer(), memory.len(), PAGE) };
        let mapped = self.space.map(lent, access).map_err(|_| Errno::EINVAL)?;
        let iova = mapped.iova();
        self.live.lock().unwrap().insert(iova, mapped);
        Ok(iova)
    }

    fn take_back(&self, iova: Iova, _memory: ClientMemory) {
        assert!(self.live.lock().unwrap().remove(&iova).is_some());
    }
}

#[test]
fn memory_goes_when_nothing_touches_it_any_more() {
    let rounds = whole("NVME_VFIO_SOAK", 20_000);
    let mut random = seeded("unmapped in flight");
    let lent = Lent {
        name: "hasty",
        namespaces: vec![(
            1,
            vec![Piece {
                nsid: 1,
                first: 100,
                blocks: 1000,
            }],
            vec!["read", "write", "compare"],
        )],
        bounce: false,
        more: "",
    };
    let mut world = World::new(DEVICE, &[lent]);
    let emulator = Arc::clone(&world.seats[0].emulator);
    let loans = Arc::new(Loans {
        space: world.controller.address_space().clone(),
        live: Mutex::default(),
    });
    let patience = Patience {
        abort: Duration::from_secs(3600),
        fatal: None,
    };
    let lender: Arc<dyn Lender> = loans.clone();
    let served = ServedController::with_lender(Arc::clone(&emulator), patience, lender).unwrap();
    let mut step = world.stepper(&emulator);
    let (mut waited, mut refused, mut moved) = (0u64, 0u64, 0u64);
    for round in 0..rounds {
        let shared = Shared::new();
        shared.fill(round);
        let both = DmaAccess::READ | DmaAccess::WRITE;
        let memory =
            ClientMemory::map(shared.file.try_clone().unwrap(), 0, BYTES as u64, both).unwrap();
        served
            .dma_map(PLACE, BYTES as u64, both, Some(memory))
            .unwrap();
        let iova = *loans.live.lock().unwrap().keys().next().unwrap();
        let is_mapped = |world: &World| {
            world
                .judge
                .mappings()
                .iter()
                .any(|(first, _)| *first == iova.0)
        };
        let client = &mut world.seats[0].client;
        let list = client.page(pages::LISTS);
        for entry in 0..PAGES as u64 {
            client
                .memory
                .store(list + entry * 8, PLACE + entry * PAGE as u64);
        }
        let mut send = |client: &mut common::client::Client, count: u64| {
            for _ in 0..count {
                let opcode = random.one(&[0x01, 0x02, 0x02, 0x05]);
                let blocks = random.one(&[1, 8, 16, 40]);
                let page = |random: &mut common::random::Random| {
                    PLACE + random.below(PAGES as u64) * PAGE as u64
                };
                let prp1 = page(&mut random);
                let prp2 = match blocks {
                    16 => page(&mut random),
                    40 => list,
                    _ => 0,
                };
                let entry = with_blocks(command(opcode, 1), random.below(900), blocks);
                client.push(1, with_prps(entry, prp1, prp2));
            }
            client.ring(1);
            random.below(40)
        };
        let steps = send(client, 24);
        (0..steps).for_each(|_| step());
        // It is wanted back in the middle of all that.
        let mut progress = served.dma_unmap(PLACE, BYTES as u64).unwrap();
        // What comes from now on does not reach it.
        send(client, 8);
        let mut patience = 0;
        while progress == Progress::Pending {
            assert!(
                is_mapped(&world),
                "round {round}: unmapped before the commands had ended"
            );
            step();
            waited += 1;
            patience += 1;
            assert!(patience < 100_000, "round {round}: it is never let go of");
            progress = served.unmapping(PLACE, BYTES as u64).unwrap();
        }
        assert!(
            !is_mapped(&world),
            "round {round}: still mapped for the device"
        );
        assert!(loans.live.lock().unwrap().is_empty());
        // It is the client's own again: nobody writes to it.
        shared.fill(MARK);
        for done in world.seats[0].client.drain(1, &mut step) {
            match done.status {
                0x000 | 0x285 => moved += 1,
                0x004 => refused += 1,
                status => panic!("round {round}: status {status:#x}"),
            }
        }
        assert_eq!(
            world.seats[0].client.in_flight(1),
            0,
            "round {round}: commands are lost"
        );
        (0..80).for_each(|_| step());
        assert!(
            shared.is_all(MARK),
            "round {round}: written after it was given back"
        );
        let breaches = world.judge.look(&[0]);
        assert!(
            breaches.is_empty(),
            "round {round}:\n{}",
            breaches.join("\n")
        );
    }
    println!(
        "{rounds} regions taken back: {moved} commands had done their work, {refused} came too late, {waited} steps were waited"
    );
    assert!(moved > rounds && refused > rounds && waited > rounds);
}
