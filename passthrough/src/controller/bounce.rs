//! Buffers of the server that data goes through where clients' memory is not lent to real controllers.

use nvme_vfio::{Buffer, Controller, Error};
use nvme_vfio_emulator::{DeviceMemory, Segment};
use nvme_vfio_queues::{Status, prp};

/// One client's buffers, of a memory page each. They hold nobody else's data, ever.
#[derive(Debug)]
pub(super) struct Buffers {
    pages: Box<[Buffer]>,
    page: usize,
    free: Vec<u32>,
    /// The pages of each flight that has some, in order.
    taken: Vec<Vec<u32>>,
}

impl Buffers {
    /// `bytes` of buffers in the controller's domain, for flights with numbers below `flights`.
    pub(super) fn new(
        controller: &Controller,
        bytes: usize,
        flights: usize,
    ) -> Result<Self, Error> {
        let page = controller.page_size();
        let count = bytes.div_ceil(page).max(1);
        let mut rest = controller.allocate(count * page)?;
        let mut pages = Vec::with_capacity(count);
        while rest.len() > page {
            let (first, others) = rest.split_at(page);
            pages.push(first);
            rest = others;
        }
        pages.push(rest);
        Ok(Self {
            free: (0..pages.len() as u32).rev().collect(),
            pages: pages.into(),
            page,
            taken: vec![Vec::new(); flights],
        })
    }

    /// Takes buffers for `length` bytes, and says where real controllers see them; false, with nothing taken, while there are not enough.
    pub(super) fn take(
        &mut self,
        flight: u16,
        length: usize,
        data: &mut Vec<prp::Segment>,
    ) -> bool {
        let count = length.div_ceil(self.page);
        let Some(taken) = self.taken.get_mut(usize::from(flight)) else {
            return false;
        };
        let Some(first) = self.free.len().checked_sub(count) else {
            return false;
        };
        taken.clear();
        taken.extend(self.free.drain(first..).rev());
        data.clear();
        let mut left = length;
        for &index in taken.iter() {
            let Some(page) = self.pages.get(index as usize) else {
                continue;
            };
            let len = left.min(self.page);
            let iova = page.iova().0;
            match data.last_mut() {
                Some(last) if last.iova + last.len as u64 == iova => last.len += len,
                _ => data.push(prp::Segment { iova, len }),
            }
            left -= len;
        }
        true
    }

    /// Gives the flight's buffers back: no controller touches them any more.
    pub(super) fn give_back(&mut self, flight: u16) {
        if let Some(taken) = self.taken.get_mut(usize::from(flight)) {
            self.free.extend(taken.drain(..).rev());
        }
    }

    /// Copies data from the client's memory into the flight's buffers, before a controller is told of them.
    pub(super) fn copy_in(
        &mut self,
        flight: u16,
        length: usize,
        segments: &[Segment],
        memory: &DeviceMemory<'_>,
    ) -> Result<(), Status> {
        self.each(flight, length, segments, |segment, skip, bytes| {
            memory.read(segment, skip, bytes).is_ok()
        })
    }

    /// Copies data from the flight's buffers to the client's memory, after the controllers have let go of them.
    pub(super) fn copy_out(
        &mut self,
        flight: u16,
        length: usize,
        segments: &[Segment],
        memory: &DeviceMemory<'_>,
    ) -> Result<(), Status> {
        self.each(flight, length, segments, |segment, skip, bytes| {
            memory.write(segment, skip, bytes).is_ok()
        })
    }

    /// Walks over pages and segments side by side, as long as `copy` says that it went well.
    fn each(
        &mut self,
        flight: u16,
        length: usize,
        segments: &[Segment],
        mut copy: impl FnMut(&Segment, usize, &mut [u8]) -> bool,
    ) -> Result<(), Status> {
        let lost = Err(Status::DATA_TRANSFER_ERROR);
        let Some(taken) = self.taken.get(usize::from(flight)) else {
            return lost;
        };
        let (mut page, mut in_page, mut left) = (0, 0, length);
        for segment in segments {
            let mut skip = 0;
            let whole = segment.length as usize;
            while skip < whole && left > 0 {
                let count = (whole - skip).min(self.page - in_page).min(left);
                let index = taken.get(page).copied().unwrap_or(u32::MAX);
                let bytes = self
                    .pages
                    .get_mut(index as usize)
                    .and_then(|buffer| buffer.get_mut(in_page..in_page + count));
                let Some(bytes) = bytes else {
                    return lost;
                };
                if !copy(segment, skip, bytes) {
                    return lost;
                }
                skip += count;
                left -= count;
                in_page += count;
                if in_page == self.page {
                    (page, in_page) = (page + 1, 0);
                }
            }
        }
        if left == 0 { Ok(()) } else { lost }
    }

    /// Leaves all of it to the controller, which may still touch it.
    pub(super) fn keep(self, controller: &Controller) {
        for page in self.pages {
            controller.keep(page);
        }
    }
}
