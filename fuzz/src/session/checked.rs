//! A device that holds a session to what the trait promises a device.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ops::Range;
use std::os::fd::{AsFd, OwnedFd};

use nvme_vfio_user::device::{
    Device, DeviceFlags, DeviceInfo, DmaAccess, Errno, Irq, IrqAction, IrqData, IrqFlags, Progress,
    Region, RegionFlags, RegionMapping, SparseArea,
};
use nvme_vfio_user::{ClientMemory, Eventfd};

use super::{Behind, Message, descriptors};
use crate::input::Input;

const PAGE: u64 = 4096;
const BAR: u32 = 0;
const ROM: u32 = 6;
const CONFIG: u32 = 7;
/// Can be written, and not read.
const SINK: u32 = 2;
/// Offsets with these last bits are refused.
const REFUSED: u64 = 0xc;

struct Map {
    length: u64,
    /// What the client lent; dropped with the mapping.
    _memory: Option<ClientMemory>,
    leaving: bool,
}

#[derive(Default)]
struct State {
    maps: BTreeMap<u64, Map>,
    vectors: BTreeMap<(u32, u32), Eventfd>,
    /// How often the device says that it has not let go yet.
    hold: u8,
    /// Whether it says once that it cannot.
    fail: bool,
    ended: bool,
}

pub(super) struct Checked {
    state: RefCell<State>,
    bar: OwnedFd,
    areas: [SparseArea; 1],
}

impl Checked {
    pub(super) fn new() -> Checked {
        Checked {
            state: RefCell::default(),
            bar: descriptors::memfd(2, false),
            areas: [SparseArea {
                offset: PAGE,
                size: PAGE,
            }],
        }
    }

    fn access(
        &self,
        index: u32,
        offset: u64,
        length: usize,
        needed: RegionFlags,
    ) -> Result<(), Errno> {
        assert!(!self.state.borrow().ended, "an access after the end");
        let region = self.region(index).expect("a region that exists");
        assert!(
            region.flags.contains(needed),
            "region {index} is not {needed:?}"
        );
        assert!(length > 0, "an access of nothing");
        let end = offset.checked_add(length as u64);
        assert!(
            end.is_some_and(|end| end <= region.size),
            "{offset:#x} + {length:#x}"
        );
        if offset & REFUSED == REFUSED {
            Err(Errno::EIO)
        } else {
            Ok(())
        }
    }

    fn let_go(&self, iova: u64, length: u64, first: bool) -> Result<Progress, Errno> {
        let mut state = self.state.borrow_mut();
        assert!(!state.ended, "a mapping after the end");
        let (hold, fail) = (state.hold, state.fail);
        let map = state.maps.get_mut(&iova).expect("a live mapping");
        assert_eq!(map.length, length);
        assert_eq!(map.leaving, !first, "asked for what does not leave");
        if fail {
            map.leaving = false;
            state.fail = false;
            return Err(Errno::EBUSY);
        }
        map.leaving = true;
        if hold > 0 {
            state.hold -= 1;
            return Ok(Progress::Pending);
        }
        state.maps.remove(&iova);
        Ok(Progress::Done)
    }
}

impl Behind for Checked {
    fn device(&self) -> &dyn Device {
        self
    }

    /// From now on, letting go takes some questions, and may fail first.
    fn act(&mut self, input: &mut Input<'_>) -> Option<Vec<Message>> {
        let hold = input.u8()?;
        let state = self.state.get_mut();
        (state.hold, state.fail) = (hold & 7, hold & 8 != 0);
        Some(Vec::new())
    }

    fn settle(&mut self) {
        let state = self.state.get_mut();
        (state.hold, state.fail) = (0, false);
    }

    fn leave(&mut self) {
        self.state.get_mut().hold = 3;
    }

    /// Nothing of a client that is gone is left.
    fn check_end(&self) {
        let state = self.state.borrow();
        assert!(state.ended, "the device was not told");
        assert!(state.maps.is_empty() && state.vectors.is_empty());
    }
}

impl Device for Checked {
    fn info(&self) -> DeviceInfo {
        DeviceInfo {
            flags: DeviceFlags::PCI | DeviceFlags::RESET,
            regions: 9,
            irqs: 5,
        }
    }

    fn region(&self, index: u32) -> Option<Region<'_>> {
        let (size, flags) = match index {
            BAR => (2 * PAGE, RegionFlags::READ | RegionFlags::WRITE),
            SINK => (64, RegionFlags::WRITE),
            ROM => (16, RegionFlags::READ),
            CONFIG => (PAGE, RegionFlags::READ | RegionFlags::WRITE),
            _ => return None,
        };
        let mapping = (index == BAR).then(|| RegionMapping {
            descriptor: self.bar.as_fd(),
            offset: 0,
            areas: &self.areas,
        });
        Some(Region {
            size,
            flags,
            mapping,
        })
    }

    fn irq(&self, index: u32) -> Option<Irq> {
        match index {
            0 => Some(Irq {
                flags: IrqFlags::EVENTFD | IrqFlags::MASKABLE | IrqFlags::AUTOMASKED,
                count: 1,
            }),
            2 => Some(Irq {
                flags: IrqFlags::EVENTFD,
                count: 40,
            }),
            _ => None,
        }
    }

    fn region_read(&self, index: u32, offset: u64, data: &mut [u8]) -> Result<(), Errno> {
        assert!(
            data.iter().all(|byte| *byte == 0),
            "old bytes in a buffer to read to"
        );
        self.access(index, offset, data.len(), RegionFlags::READ)?;
        data.fill(0x5a);
        Ok(())
    }

    fn region_write(&self, index: u32, offset: u64, data: &[u8]) -> Result<(), Errno> {
        self.access(index, offset, data.len(), RegionFlags::WRITE)?;
        if index == BAR {
            for eventfd in self.state.borrow().vectors.values() {
                // A client's eventfd may be of no use any more; what matters is that this does not wait.
                let _ = eventfd.signal();
            }
        }
        Ok(())
    }

    fn set_irqs(
        &self,
        index: u32,
        range: Range<u32>,
        action: IrqAction,
        data: IrqData,
    ) -> Result<(), Errno> {
        let irq = self.irq(index).expect("interrupts that exist");
        assert!(
            range.start <= range.end && range.end <= irq.count,
            "{range:?}"
        );
        let mut state = self.state.borrow_mut();
        assert!(!state.ended, "interrupts after the end");
        match data {
            IrqData::None if range.is_empty() => {
                assert_eq!(action, IrqAction::Trigger);
                state.vectors.retain(|(kind, _), _| *kind != index);
            }
            IrqData::None => {}
            IrqData::Bool(values) => assert_eq!(values.len(), range.len()),
            IrqData::Eventfds(eventfds) => {
                assert_eq!(eventfds.len(), range.len());
                if action != IrqAction::Trigger {
                    return Err(Errno::EINVAL);
                }
                for (vector, eventfd) in range.zip(eventfds) {
                    match eventfd {
                        Some(eventfd) => state.vectors.insert((index, vector), eventfd),
                        None => state.vectors.remove(&(index, vector)),
                    };
                }
            }
        }
        Ok(())
    }

    fn dma_map(
        &self,
        iova: u64,
        length: u64,
        access: DmaAccess,
        memory: Option<ClientMemory>,
    ) -> Result<(), Errno> {
        let mut state = self.state.borrow_mut();
        assert!(!state.ended, "a mapping after the end");
        assert!(length > 0 && length.is_multiple_of(PAGE) && iova.is_multiple_of(PAGE));
        let last = iova.checked_add(length - 1).expect("it does not wrap");
        let overlap = state
            .maps
            .iter()
            .any(|(start, map)| *start <= last && iova <= start + (map.length - 1));
        assert!(!overlap, "overlapping mappings");
        assert!(
            state.maps.len() < super::MAPS_MAX as usize,
            "more mappings than offered"
        );
        if let Some(memory) = &memory {
            assert_eq!((memory.len() as u64, memory.access()), (length, access));
        }
        if iova & 0xf000 == 0xf000 {
            return Err(Errno::ENOSPC);
        }
        let map = Map {
            length,
            _memory: memory,
            leaving: false,
        };
        state.maps.insert(iova, map);
        Ok(())
    }

    fn dma_unmap(&self, iova: u64, length: u64) -> Result<Progress, Errno> {
        self.let_go(iova, length, true)
    }

    fn unmapping(&self, iova: u64, length: u64) -> Result<Progress, Errno> {
        self.let_go(iova, length, false)
    }

    fn reset(&self) -> Result<(), Errno> {
        assert!(!self.state.borrow().ended, "a reset after the end");
        Ok(())
    }

    fn disconnected(&self) -> Progress {
        let mut state = self.state.borrow_mut();
        assert!(!state.ended, "the end comes twice");
        if state.hold > 0 {
            state.hold -= 1;
            return Progress::Pending;
        }
        state.maps.clear();
        state.vectors.clear();
        state.ended = true;
        Progress::Done
    }
}
