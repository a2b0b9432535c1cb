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

#[derive(Debug)]
struct Slot<T> {
    payload: Option<T>,
    /// The identifier of the command in this slot, or of the next one where the slot is free.
    identifier: u16,
}

/// A fixed number of slots, each with room for what is to be remembered of a command in flight.
///
/// A command's identifier is its slot's index in the low bits and a generation in the others. The generation moves on when the
/// slot is freed, so that an answer that comes twice or too late is recognised (up to the width of the generation) and never
/// given to another command. Free slots are taken last in, first out, since the last one is the one still in the cache.
/// The identifier FFFFh, which the specification gives a meaning of its own in error logs and the Cancel command, is never used.
#[derive(Debug)]
pub struct SlotTable<T> {
    slots: Box<[Slot<T>]>,
    free: Box<[u16]>,
    free_count: usize,
    mask: u16,
}

impl<T> SlotTable<T> {
    /// A table of `capacity` slots, all free. `capacity` is brought into 1 to [`MAX_SLOTS`].
    #[must_use]
    pub fn new(capacity: u32) -> Self {
        let capacity = capacity.clamp(1, MAX_SLOTS) as u16;
        // One value of the index bits stays unused, so that no identifier is FFFFh.
        let mask = (capacity + 1).next_power_of_two() - 1;
        let slots = (0..capacity)
            .map(|index| Slot {
                payload: None,
                identifier: index,
            })
            .collect();
        let free = (0..capacity).rev().collect();
        Self {
            slots,
            free,
            free_count: usize::from(capacity),
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
        self.free_count == 0
    }

    /// The index of the slot that the next [`insert`](Self::insert) takes; `None` where all are taken.
    #[inline]
    #[must_use]
    pub fn peek(&self) -> Option<(usize, u16)> {
        let index = usize::from(*self.free.get(self.free_count.wrapping_sub(1))?);
        Some((index, self.slots.get(index)?.identifier))
    }

    /// Takes a free slot for `payload` and tells its identifier; gives `payload` back where all are taken.
    ///
    /// # Errors
    /// The payload, where no slot is free.
    #[inline]
    pub fn insert(&mut self, payload: T) -> Result<u16, T> {
        let top = self.free_count.wrapping_sub(1);
        let Some(slot) = self
            .free
            .get(top)
            .and_then(|&index| self.slots.get_mut(usize::from(index)))
        else {
            return Err(payload);
        };
        self.free_count = top;
        // A free slot holds nothing, so there is nothing to drop; saying so saves the check.
        mem::forget(slot.payload.replace(payload));
        Ok(slot.identifier)
    }

    /// What is remembered of the command `identifier`.
    ///
    /// # Errors
    /// [`IdentifierError`] where no command in flight has it.
    #[inline]
    pub fn get_mut(&mut self, identifier: u16) -> Result<&mut T, IdentifierError> {
        let Some(slot) = self.slots.get_mut(usize::from(identifier & self.mask)) else {
            return Err(IdentifierError::Unknown(identifier));
        };
        match &mut slot.payload {
            Some(payload) if slot.identifier == identifier => Ok(payload),
            _ => Err(IdentifierError::Stale(identifier)),
        }
    }

    /// Frees the slot of the command `identifier` and returns what was remembered of it.
    ///
    /// # Errors
    /// [`IdentifierError`] where no command in flight has it.
    #[inline]
    pub fn remove(&mut self, identifier: u16) -> Result<T, IdentifierError> {
        let index = identifier & self.mask;
        let Some(slot) = self.slots.get_mut(usize::from(index)) else {
            return Err(IdentifierError::Unknown(identifier));
        };
        if slot.identifier != identifier {
            return Err(IdentifierError::Stale(identifier));
        }
        let Some(payload) = slot.payload.take() else {
            return Err(IdentifierError::Stale(identifier));
        };
        slot.identifier = identifier.wrapping_add(self.mask).wrapping_add(1);
        if let Some(top) = self.free.get_mut(self.free_count) {
            *top = index;
            self.free_count += 1;
        }
        Ok(payload)
    }

    /// The commands in flight, by identifier.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = (u16, &mut T)> {
        self.slots
            .iter_mut()
            .filter_map(|slot| Some((slot.identifier, slot.payload.as_mut()?)))
    }

    /// What is remembered of all commands in flight, when the table is no longer needed.
    pub fn into_payloads(self) -> impl Iterator<Item = T> {
        self.slots.into_iter().filter_map(|slot| slot.payload)
    }
}

#[cfg(test)]
mod tests;
