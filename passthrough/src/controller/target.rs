//! A queue on a real controller, and what is in flight in it.
#![allow(unsafe_code)] // submits entries that were built here, with addresses that were looked up here

use nvme_vfio::{Completion, Controller, Error, IoQueue, QueueOptions, SubmitError};
use nvme_vfio_dma::Access;
use nvme_vfio_queues::Command;
use nvme_vfio_queues::prp::PageSize;

use super::data::{Pages, SlotPage};
use super::ranges::DeallocateLimits;
use crate::server::Repair;

/// What one real controller takes in one command. Limits that it does not have are the largest number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TargetLimits {
    /// Bytes that move (MDTS).
    pub transfer: usize,
    /// Blocks of a Write Zeroes (WZSL); at most 65,536, as of all commands.
    pub write_zeroes: u32,
    /// Blocks of a Write Uncorrectable (WUSL).
    pub write_uncorrectable: u32,
    /// Blocks of a Verify (VSL).
    pub verify: u32,
    /// Ranges of a Dataset Management.
    pub deallocate: DeallocateLimits,
}

/// One command on a real controller.
#[derive(Debug, Clone, Copy)]
pub(super) struct Part {
    /// The client's command that it is a part of; [`FREE`] where there is none.
    pub(super) flight: u32,
    /// Its place among that command's parts.
    pub(super) order: u32,
    /// When it was submitted.
    pub(super) since: u64,
    /// Whether it makes the controller work on blocks without moving data of the client.
    pub(super) heavy: bool,
}

const FREE: u32 = u32::MAX;

/// Commands that make a controller work on blocks without moving data of the client, and that one client may have in flight in a queue. Each may name 65,536 blocks, so a full queue
/// of them would be more than a controller does in the time that a command has, and its end would be a reset that all clients notice.
const HEAVY: u16 = 8;

/// An I/O queue pair on a real controller that belongs to one client, with a slot and a page for each command that can be in flight.
#[derive(Debug)]
pub(super) struct Target {
    /// `None` while it is being mended.
    pub(super) queue: Option<IoQueue>,
    /// The controller's place in the server's list.
    pub(super) number: usize,
    /// The way back of the queue that is being mended.
    pub(super) repair: Option<Repair>,
    /// Whether the controller is there; no queue is made on it any more where it is gone.
    pub(super) usable: bool,
    pub(super) controller: Controller,
    pub(super) limits: TargetLimits,
    pub(super) page: PageSize,
    /// Something was submitted since the doorbell was rung.
    pub(super) unrung: bool,
    parts: Box<[Part]>,
    /// How many of them are `heavy`.
    heavy: u16,
    free: Vec<u16>,
    pages: Option<Pages>,
}

impl Target {
    /// A queue for `depth` commands, as many as the controller takes.
    pub(super) fn new(
        (number, controller): (usize, &Controller),
        limits: TargetLimits,
        depth: u16,
    ) -> Result<Self, Error> {
        let queue = controller.io_queue(QueueOptions {
            depth: u32::from(depth),
            // Doorbells are rung when a batch is over.
            doorbell_batch: u32::MAX,
            ..QueueOptions::default()
        })?;
        let slots = u16::try_from(queue.depth()).unwrap_or(u16::MAX);
        let bytes = controller.page_size();
        let page = PageSize::new(bytes)
            .ok_or_else(|| Error::Length(format!("{bytes} bytes are no memory page")))?;
        let memory = controller
            .address_space()
            .shared(usize::from(slots) * bytes, Access::DEVICE_READ)?;
        let part = Part {
            flight: FREE,
            order: 0,
            since: 0,
            heavy: false,
        };
        Ok(Self {
            limits: TargetLimits {
                transfer: limits.transfer.min(queue.max_transfer()),
                ..limits
            },
            queue: Some(queue),
            number,
            repair: None,
            usable: true,
            controller: controller.clone(),
            page,
            unrung: false,
            parts: vec![part; usize::from(slots)].into(),
            heavy: 0,
            free: (0..slots).rev().collect(),
            pages: Some(Pages::new(memory, page)),
        })
    }

    /// The slot that the next command would have, and its page; `None` while there is none, or the queue is being mended.
    #[inline]
    pub(super) fn next_slot(&self) -> Option<(u16, SlotPage<'_>)> {
        self.queue.as_ref().filter(|_| self.usable)?;
        let slot = *self.free.last()?;
        Some((slot, self.pages.as_ref()?.of(slot)))
    }

    /// Whether so much work without data is in flight that more of it has to wait.
    #[inline]
    pub(super) fn is_laden(&self) -> bool {
        self.heavy >= HEAVY
    }

    /// Submits a command in the slot that [`next_slot`](Self::next_slot) told.
    ///
    /// # Errors
    /// Why the queue does not take it; nothing has changed then.
    ///
    /// # Safety
    /// Every address in `command` leads to memory that is mapped for the controller and that it may touch as the command says: a page or buffer of this server that nothing else
    /// uses, or memory that the client has lent and that is kept until the part has ended.
    #[inline]
    pub(super) unsafe fn submit(
        &mut self,
        command: Command,
        part: Part,
    ) -> Result<(), SubmitError> {
        let (Some(queue), Some(&slot)) = (&mut self.queue, self.free.last()) else {
            return Err(SubmitError::QueueFull);
        };
        // SAFETY: the caller's promise. The slot's page is used by nobody else until the part has ended, and `abandon` keeps it where that is never proven.
        unsafe { queue.submit_raw(command, u64::from(slot)) }.map_err(|refused| refused.error)?;
        self.free.pop();
        self.heavy += u16::from(part.heavy);
        if let Some(place) = self.parts.get_mut(usize::from(slot)) {
            *place = part;
        }
        self.unrung = true;
        Ok(())
    }

    /// The next report of the queue.
    #[inline]
    pub(super) fn poll(&mut self) -> Option<Completion> {
        self.queue.as_mut()?.poll()
    }

    /// Frees the slot of a part that has provably ended; `None` for a token that names none.
    #[inline]
    pub(super) fn end(&mut self, token: u64) -> Option<Part> {
        let slot = u16::try_from(token).ok()?;
        let place = self.parts.get_mut(usize::from(slot))?;
        if place.flight == FREE {
            return None;
        }
        let part = std::mem::replace(
            place,
            Part {
                flight: FREE,
                ..*place
            },
        );
        self.free.push(slot);
        self.heavy -= u16::from(part.heavy);
        Some(part)
    }

    /// Tells the controller of what was submitted.
    #[inline]
    pub(super) fn ring(&mut self) {
        if self.unrung
            && let Some(queue) = &mut self.queue
        {
            self.unrung = false;
            queue.ring();
        }
    }

    /// How many commands are in flight.
    pub(super) fn in_flight(&self) -> usize {
        self.parts.len() - self.free.len()
    }

    /// The tokens of the parts in flight that `which` says.
    pub(super) fn tokens(&self, which: impl Fn(&Part) -> bool) -> Vec<u64> {
        let used = self.parts.iter().enumerate();
        used.filter(|(_, part)| part.flight != FREE && which(part))
            .map(|(slot, _)| slot as u64)
            .collect()
    }

    /// Ends what is in flight by deleting the queue, and says whether it is proven that the controller has let go; where it is not, the slots' pages are left to it.
    pub(super) fn close(&mut self) -> bool {
        if self.in_flight() == 0 {
            return true;
        }
        let proven = match &mut self.queue {
            Some(queue) => queue.delete().is_ok(),
            // Whoever mends it will delete it, some time.
            None => false,
        };
        if !proven && let Some(pages) = self.pages.take() {
            self.controller.keep(pages.into_memory());
        }
        proven
    }
}
