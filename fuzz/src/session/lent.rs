//! A handler that keeps commands for as long as the input says, and a real device that knows only what was lent to it: both see to it that no memory goes while a
//! command names it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nvme_vfio_dma::{Access, Iova};
use nvme_vfio_emulator::{
    CommandHandler, DeviceMemory, FetchedCommand, HandlerCompletion, Handling, Lender, Segment,
};
use nvme_vfio_queues::Status;
use nvme_vfio_user::ClientMemory;
use nvme_vfio_user::device::Errno;

/// Where the first memory is lent; each next is this much further on.
const LENT: u64 = 1 << 40;
/// Commands with this in dword 13 end only when they are cancelled.
const FOR_EVER: u32 = 15;

#[derive(Debug)]
struct Held {
    tag: u32,
    segments: Vec<Segment>,
    /// Where the real device sees them.
    places: Vec<(u64, u64)>,
    /// Polls until it is reported.
    left: u32,
}

#[derive(Debug, Default)]
struct State {
    held: Vec<Held>,
    /// What is lent, by address: bytes.
    lent: BTreeMap<u64, u64>,
    lends: u64,
}

impl State {
    fn is_lent(&self, place: u64, length: u64) -> bool {
        let found = self.lent.range(..=place).next_back();
        found.is_some_and(|(start, bytes)| place + length <= start + bytes)
    }
}

/// What the handler and the lender know together.
#[derive(Clone, Debug, Default)]
pub(super) struct Lent(Arc<Mutex<State>>);

impl Lent {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn check_end(&self) {
        let state = self.state();
        assert!(state.held.is_empty(), "in flight still: {:?}", state.held);
        assert!(state.lent.is_empty(), "lent still: {:x?}", state.lent);
    }
}

impl CommandHandler for Lent {
    fn credit(&mut self) -> u32 {
        // Few, so that queues wait.
        12u32.saturating_sub(self.state().held.len() as u32)
    }

    fn command(&mut self, command: &FetchedCommand, memory: &DeviceMemory<'_>) -> Handling {
        let opcode = command.entry[0] as u8;
        if command.sqid == 0 && opcode < 0xc0 {
            return Handling::Execute;
        }
        let (dword12, dword13) = (command.entry[6] as u32, (command.entry[6] >> 32) as u32);
        let length = (u64::from(dword12 & 0x1f) + 1) * 512;
        let access = if opcode & 2 != 0 {
            Access::DEVICE_WRITE
        } else {
            Access::DEVICE_READ
        };
        let mut segments = Vec::new();
        if let Err(status) = memory.data(command, length, access, &mut segments) {
            assert!(segments.is_empty());
            return Handling::Complete { status, result: 0 };
        }
        let found: u64 = segments.iter().map(|one| u64::from(one.length)).sum();
        assert_eq!(found, length);
        let mut state = self.state();
        let place = |segment: &Segment| {
            let place = memory.lent(segment).expect("all memory is lent");
            (place.0, u64::from(segment.length))
        };
        let places: Vec<(u64, u64)> = segments.iter().map(place).collect();
        for (place, length) in &places {
            assert!(state.is_lent(*place, *length), "{place:#x} is not lent");
        }
        if dword13 & 0x10 != 0 {
            return Handling::Complete {
                status: Status::from_raw(dword13 as u16 >> 5),
                result: 0,
            };
        }
        assert!(
            state
                .held
                .iter()
                .all(|held| held.tag as u16 != command.slot())
        );
        state.held.push(Held {
            tag: command.tag,
            segments,
            places,
            left: dword13 & 0xf,
        });
        Handling::Taken
    }

    fn flush(&mut self, _memory: &DeviceMemory<'_>) {}

    fn poll(&mut self, memory: &DeviceMemory<'_>, done: &mut Vec<HandlerCompletion>) {
        let mut state = self.state();
        for held in &mut state.held {
            for segment in &held.segments {
                assert!(
                    memory.lent(segment).is_some(),
                    "its memory has gone: {segment:?}"
                );
            }
            if held.left != FOR_EVER {
                held.left = held.left.saturating_sub(1);
            }
        }
        let (ended, held) = std::mem::take(&mut state.held)
            .into_iter()
            .partition::<Vec<Held>, _>(|held| held.left == 0);
        state.held = held;
        // The last first, some of them twice, and some that never were.
        for held in ended.iter().rev() {
            let mut completion = HandlerCompletion {
                tag: held.tag,
                status: Status::SUCCESS,
                result: held.tag.into(),
            };
            done.push(completion);
            if held.tag & 1 != 0 {
                done.push(completion);
                completion.tag ^= 1 << 20;
                done.push(completion);
            }
        }
    }

    fn cancel(&mut self, tags: &[u32]) {
        for held in &mut self.state().held {
            if tags.contains(&held.tag) {
                held.left = held.left.min(2);
            }
        }
    }

    fn shut_down(&mut self, tag: u32, _memory: &DeviceMemory<'_>) -> Handling {
        self.state().held.push(Held {
            tag,
            segments: Vec::new(),
            places: Vec::new(),
            left: 3,
        });
        Handling::Taken
    }

    fn restarted(&mut self) {
        let state = self.state();
        assert!(state.held.is_empty(), "restarted with {:?}", state.held);
    }
}

impl Lender for Lent {
    fn lend(&self, memory: &ClientMemory, _access: Access) -> Result<Iova, Errno> {
        let mut state = self.state();
        state.lends += 1;
        if state.lends.is_multiple_of(7) {
            return Err(Errno::ENOMEM);
        }
        let place = LENT + (state.lends << 32);
        state.lent.insert(place, memory.len() as u64);
        Ok(Iova(place))
    }

    fn take_back(&self, iova: Iova, memory: ClientMemory) {
        let mut state = self.state();
        let bytes = state.lent.remove(&iova.0).expect("lent");
        assert_eq!(bytes, memory.len() as u64);
        for held in &state.held {
            for (place, length) in &held.places {
                let apart = place + length <= iova.0 || iova.0 + bytes <= *place;
                assert!(apart, "taken back under {held:?}");
            }
        }
    }
}
