//! Who waits for which command: slots, and the identifiers that name them.

use core::mem;

use thiserror::Error;

/// The most slots that a table may have, so that at least four bits of an identifier are left for its generation.
pub const MAX_SLOTS: u32 = 4095;

/// Why an identifier that the device returned names no command in flight.
#[derive(Debug, Error, Clone, Copy, PartialEq, Eq)]
pub enum IdentifierError {
    /// No slot has that index.
    #[error("identifier {0:#06x} names no slot")]
    Unknown(u16),
    /// The slot is free, or a later command has it: the answer came twice, or too late.
    #[error("identifier {0:#06x} is stale")]
    Stale(u16),
}

/// What [`Slot::state`] has beside the identifier of a command that was marked.
const MARKED: u32 = 1 << 16;

/// What [`Slot::state`] has beside the next command's identifier where the slot is free.
const FREE: u32 = 1 << 17;

#[derive(Debug)]
struct Slot<T> {
    /// The default value where the slot is free.
    payload: T,
    /// The identifier, with [`MARKED`] or [`FREE`]. So one comparison tells whether an identifier is that of a command in flight that
    /// is not marked.
    state: u32,
    /// The index of the free slot below this one, while it is free.
    next_free: u32,
}

/// A fixed number of slots, each with room for what is to be remembered of a command in flight.
///
/// A command's identifier is its slot's index in the low bits and a generation in the others: as few as four bits in a table of
/// 2,048 slots or more, sixteen less the index bits in others. The generation moves on when the
/// slot is freed, so that an answer that comes twice or too late is recognised (up to the width of the generation) and never
/// given to another command. Free slots are taken last in, first out, since the last one is the one still in the cache.
/// The identifier FFFFh, which the specification gives a meaning of its own in error logs and the Cancel command, is never used.
#[derive(Debug)]
pub struct SlotTable<T> {
    slots: Box<[Slot<T>]>,
    /// The index of the slot that was freed last; the number of slots where none is free.
    first_free: u32,
    /// The index bits of an identifier.
    mask: u32,
}

/// A slot that is free.
#[derive(Debug)]
pub struct Vacant<'a, T> {
    slot: &'a mut Slot<T>,
    first_free: &'a mut u32,
}

impl<T> Vacant<'_, T> {
    /// The payload, to be filled before the slot is taken. It has the default value, or what
    /// [`free_emptied`](Occupied::free_emptied) left of another.
    #[inline(always)]
    pub fn payload(&mut self) -> &mut T {
        &mut self.slot.payload
    }

    /// Takes the slot, and tells the command's identifier.
    #[inline(always)]
    pub fn take(self) -> u16 {
        *self.first_free = self.slot.next_free;
        // Neither free nor marked.
        self.slot.state &= 0xffff;
        self.slot.state as u16
    }
}

/// A slot whose command is in flight.
#[derive(Debug)]
pub struct Occupied<'a, T> {
    slot: &'a mut Slot<T>,
    first_free: &'a mut u32,
    /// The identifier, and its index bits.
    identifier: u32,
    mask: u32,
}

impl<T: Default> Occupied<'_, T> {
    /// What is remembered of the command.
    #[inline(always)]
    pub fn payload(&mut self) -> &mut T {
        &mut self.slot.payload
    }

    /// The index of the slot in the table.
    #[inline(always)]
    #[must_use]
    pub fn index(&self) -> usize {
        (self.identifier & self.mask) as usize
    }

    /// Marks the command as one that wants more than the common treatment: [`SlotTable::common`] does not find it any more.
    pub fn mark(&mut self) {
        self.slot.state |= MARKED;
    }

    /// Frees the slot and tells what was remembered.
    #[inline]
    pub fn free(self) -> T {
        let payload = mem::take(&mut self.slot.payload);
        self.free_emptied();
        payload
    }

    /// Frees a slot whose payload the caller has emptied of all that must be dropped. What is left is in the way of nobody but the next
    /// command's submitter.
    #[inline(always)]
    pub fn free_emptied(self) {
        self.slot.state = self.next_identifier() | FREE;
        self.slot.next_free = *self.first_free;
        *self.first_free = self.identifier & self.mask;
    }

    /// Uses the slot again at once for another command: tells its identifier. What is remembered is the caller's to change.
    #[inline(always)]
    pub fn renew(self) -> u16 {
        self.slot.state = self.next_identifier();
        self.slot.state as u16
    }

    /// The same index in the next generation.
    #[inline(always)]
    fn next_identifier(&self) -> u32 {
        (self.identifier + self.mask + 1) & 0xffff
    }
}

impl<T: Default> SlotTable<T> {
    /// A table of `capacity` slots, all free. `capacity` is brought into 1 to [`MAX_SLOTS`].
    #[must_use]
    pub fn new(capacity: u32) -> Self {
        let capacity = capacity.clamp(1, MAX_SLOTS);
        // One value of the index bits stays unused, so that no identifier is FFFFh.
        let mask = (capacity + 1).next_power_of_two() - 1;
        let slot = |index: u32| Slot {
            payload: T::default(),
            state: index | FREE,
            next_free: index + 1,
        };
        Self {
            slots: (0..capacity).map(slot).collect(),
            first_free: 0,
            mask,
        }
    }

    /// How many slots there are.
    #[inline]
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.slots.len()
    }

    /// Whether every slot is taken.
    #[inline]
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.first_free as usize >= self.slots.len()
    }

    /// Takes every slot that is free out of use, for good: the table is full until all its slots are freed, and those that are freed
    /// from now on are the only ones used again.
    pub fn close(&mut self) {
        self.first_free = self.slots.len() as u32;
    }

    /// The index and the identifier that the next [`insert`](Self::insert) takes; `None` where all slots are taken.
    #[inline]
    #[must_use]
    pub fn peek(&self) -> Option<(usize, u16)> {
        let index = self.first_free as usize;
        Some((index, self.slots.get(index)?.state as u16))
    }

    /// The free slot that was freed last, and its index; `None` where all are taken.
    #[inline(always)]
    pub fn vacant(&mut self) -> Option<(usize, Vacant<'_, T>)> {
        let index = self.first_free as usize;
        // The end of the list is no index, so one check tells a full table from a free slot.
        let slot = self.slots.get_mut(index)?;
        let first_free = &mut self.first_free;
        Some((index, Vacant { slot, first_free }))
    }

    /// Takes a free slot for `payload` and tells its identifier; gives `payload` back where all are taken.
    ///
    /// # Errors
    /// The payload, where no slot is free.
    #[inline]
    pub fn insert(&mut self, payload: T) -> Result<u16, T> {
        let Some((_, mut vacant)) = self.vacant() else {
            return Err(payload);
        };
        *vacant.payload() = payload;
        Ok(vacant.take())
    }

    /// The slot of the command `identifier`.
    ///
    /// # Errors
    /// [`IdentifierError`] where no command in flight has it.
    #[inline]
    pub fn occupied(&mut self, identifier: u16) -> Result<Occupied<'_, T>, IdentifierError> {
        let (mask, wide) = (self.mask, u32::from(identifier));
        let Some(slot) = self.slots.get_mut((wide & mask) as usize) else {
            return Err(IdentifierError::Unknown(identifier));
        };
        if slot.state & !MARKED != wide {
            return Err(IdentifierError::Stale(identifier));
        }
        let first_free = &mut self.first_free;
        Ok(Occupied {
            slot,
            first_free,
            identifier: wide,
            mask,
        })
    }

    /// The slot of the command `identifier`, where it is in flight and was not marked.
    #[inline(always)]
    pub fn common(&mut self, identifier: u16) -> Option<Occupied<'_, T>> {
        let (mask, wide) = (self.mask, u32::from(identifier));
        let slot = self.slots.get_mut((wide & mask) as usize)?;
        if slot.state != wide {
            return None;
        }
        let first_free = &mut self.first_free;
        Some(Occupied {
            slot,
            first_free,
            identifier: wide,
            mask,
        })
    }

    /// What is remembered of the command `identifier`.
    ///
    /// # Errors
    /// [`IdentifierError`] where no command in flight has it.
    #[inline]
    pub fn get_mut(&mut self, identifier: u16) -> Result<&mut T, IdentifierError> {
        Ok(&mut self.occupied(identifier)?.slot.payload)
    }

    /// Frees the slot of the command `identifier` and returns what was remembered of it.
    ///
    /// # Errors
    /// [`IdentifierError`] where no command in flight has it.
    #[inline]
    pub fn remove(&mut self, identifier: u16) -> Result<T, IdentifierError> {
        Ok(self.occupied(identifier)?.free())
    }

    /// The commands in flight, by identifier.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = (u16, &mut T)> {
        self.slots
            .iter_mut()
            .filter(|slot| slot.state & FREE == 0)
            .map(|slot| (slot.state as u16, &mut slot.payload))
    }

    /// What is remembered of all commands in flight, when the table is no longer needed.
    pub fn into_payloads(self) -> impl Iterator<Item = T> {
        self.slots
            .into_iter()
            .filter(|slot| slot.state & FREE == 0)
            .map(|slot| slot.payload)
    }
}

#[cfg(test)]
mod tests;
