//! MSI-X: which vectors are to be signalled, and BAR 4 with the table and the pending bits (PCI Express base specification 5.0, 7.7.2).

use std::fmt;
use std::sync::Arc;

/// Signals one interrupt vector. It is called with the controller's lock held, so it must neither block nor call the controller.
pub type InterruptSink = Arc<dyn Fn() + Send + Sync>;

/// Most vectors that MSI-X has.
pub(crate) const VECTORS_MAX: u16 = 2048;
/// Bytes of a table entry: address, upper address, data, vector control.
const ENTRY: usize = 16;
/// The vector control dword of an entry, in which bit 0 masks the vector.
const CONTROL: usize = 12;
const PAGE: usize = 4096;

/// The controller's interrupt vectors.
pub(crate) struct Interrupts {
    sinks: Vec<Option<InterruptSink>>,
    /// Vectors to be signalled: bit `n % 64` of word `n / 64`.
    raised: Vec<u64>,
    /// Signals are lost, by a fault.
    pub(crate) lost: bool,
    any: bool,
    /// BAR 4. Whoever owns the vectors does what the table says; here it is storage.
    table: Vec<u8>,
}

impl fmt::Debug for Interrupts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Interrupts")
            .field("vectors", &self.sinks.len())
            .field("sinks", &self.sinks.iter().flatten().count())
            .field("raised", &self.raised)
            .finish_non_exhaustive()
    }
}

impl Interrupts {
    /// `vectors` of them, none with a sink.
    pub(crate) fn new(vectors: u16) -> Interrupts {
        let count = usize::from(vectors);
        let mut interrupts = Interrupts {
            sinks: vec![None; count],
            raised: vec![0; count.div_ceil(64)],
            lost: false,
            any: false,
            table: vec![0; bar_size(vectors) as usize],
        };
        interrupts.reset();
        interrupts
    }

    /// How many vectors there are.
    pub(crate) fn vectors(&self) -> u16 {
        // As many as `new` was told.
        self.sinks.len() as u16
    }

    /// Sets what is called for a vector; false when there is no such vector.
    pub(crate) fn connect(&mut self, vector: u16, sink: Option<InterruptSink>) -> bool {
        match self.sinks.get_mut(usize::from(vector)) {
            Some(place) => {
                *place = sink;
                true
            }
            None => false,
        }
    }

    /// Notes that a vector is to be signalled at the end of the step.
    pub(crate) fn raise(&mut self, vector: u16) {
        if let Some(word) = self.raised.get_mut(usize::from(vector) / 64) {
            *word |= 1 << (vector % 64);
            self.any = true;
        }
    }

    /// Signals every vector that was raised, once.
    #[inline]
    pub(crate) fn deliver(&mut self) {
        if self.any {
            self.deliver_all();
        }
    }

    fn deliver_all(&mut self) {
        self.any = false;
        for (index, word) in self.raised.iter_mut().enumerate() {
            let mut bits = std::mem::take(word);
            while bits != 0 {
                let vector = index * 64 + bits.trailing_zeros() as usize;
                bits &= bits - 1;
                if let Some(Some(sink)) = self.sinks.get(vector)
                    && !self.lost
                {
                    sink();
                }
            }
        }
    }

    /// A function-level reset: every vector masked, nothing to be signalled. Sinks stay: they belong to whoever set them.
    pub(crate) fn reset(&mut self) {
        self.raised.fill(0);
        self.any = false;
        self.table.fill(0);
        let entries = self.sinks.len() * ENTRY;
        for entry in self
            .table
            .get_mut(..entries)
            .unwrap_or_default()
            .chunks_exact_mut(ENTRY)
        {
            if let Some(control) = entry.get_mut(CONTROL) {
                *control = 1;
            }
        }
    }

    /// Reads BAR 4; false when the range is not all inside.
    pub(crate) fn read(&self, offset: u64, into: &mut [u8]) -> bool {
        let place = usize::try_from(offset)
            .ok()
            .and_then(|offset| self.table.get(offset..offset.checked_add(into.len())?));
        match place {
            Some(bytes) => {
                into.copy_from_slice(bytes);
                true
            }
            None => false,
        }
    }

    /// Writes BAR 4; false when the range is not all inside. Only table entries change: the pending bits are read-only.
    pub(crate) fn write(&mut self, offset: u64, from: &[u8]) -> bool {
        let Some((offset, end)) = usize::try_from(offset)
            .ok()
            .and_then(|offset| Some((offset, offset.checked_add(from.len())?)))
        else {
            return false;
        };
        if end > self.table.len() {
            return false;
        }
        let entries = self.sinks.len() * ENTRY;
        let writable = self.table.get_mut(..entries).unwrap_or_default();
        for (place, &byte) in writable.iter_mut().skip(offset).zip(from) {
            *place = byte;
        }
        true
    }
}

/// Where the pending bits begin in BAR 4.
pub(crate) fn pending_offset(vectors: u16) -> u32 {
    (usize::from(vectors) * ENTRY).next_multiple_of(PAGE) as u32
}

/// Bytes of BAR 4, a power of two.
pub(crate) fn bar_size(vectors: u16) -> u64 {
    let pending = usize::from(vectors).div_ceil(64) * 8;
    (u64::from(pending_offset(vectors)) + pending as u64).next_power_of_two()
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    #[test]
    fn a_vector_is_signalled_once_however_often_it_is_raised() {
        let mut interrupts = Interrupts::new(130);
        let count = Arc::new(AtomicU32::new(0));
        let counter = Arc::clone(&count);
        let sink: InterruptSink = Arc::new(move || {
            counter.fetch_add(1, Ordering::Relaxed);
        });
        assert!(interrupts.connect(129, Some(sink)));
        assert!(!interrupts.connect(130, None), "there is no such vector");
        interrupts.raise(129);
        interrupts.raise(129);
        interrupts.raise(5);
        interrupts.raise(u16::MAX);
        interrupts.deliver();
        interrupts.deliver();
        assert_eq!(count.load(Ordering::Relaxed), 1);
        interrupts.raise(129);
        interrupts.reset();
        interrupts.deliver();
        assert_eq!(count.load(Ordering::Relaxed), 1, "a reset forgets");
    }

    #[test]
    fn table_is_storage_and_pending_bits_are_not() {
        let mut interrupts = Interrupts::new(17);
        assert_eq!((pending_offset(17), bar_size(17)), (4096, 8192));
        let mut entry = [0; 16];
        assert!(interrupts.read(256, &mut entry));
        assert_eq!(entry[12], 1, "masked at first");
        assert!(interrupts.write(256, &[0xa5; 16]));
        assert!(interrupts.read(256, &mut entry));
        assert_eq!(entry, [0xa5; 16]);
        assert!(interrupts.write(272, &[0xff; 16]), "past the table");
        assert!(interrupts.write(4096, &[0xff; 8]), "the pending bits");
        for offset in [272, 4096] {
            let mut word = [1; 8];
            assert!(interrupts.read(offset, &mut word));
            assert_eq!(word, [0; 8]);
        }
        assert!(!interrupts.read(8185, &mut [0; 8]));
        assert!(!interrupts.write(8185, &[0; 8]));
        assert!(!interrupts.write(u64::MAX, &[0; 8]));
        assert_eq!(pending_offset(2048), 32768);
    }
}
