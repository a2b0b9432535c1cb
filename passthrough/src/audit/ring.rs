//! A bounded queue whose records are numbered before they are put in.

use std::sync::atomic::{AtomicU64, Ordering};

use crossbeam_queue::ArrayQueue;

/// Bytes that the queue keeps beside each of its entries.
const STAMP: usize = size_of::<usize>();

/// A bounded queue of numbered records. One end numbers and puts them in, the other takes them out; a record that finds no room is dropped, and its number is missing.
#[derive(Debug)]
pub(super) struct Ring<T> {
    queue: ArrayQueue<(u64, T)>,
    /// Numbers given so far.
    numbered: AtomicU64,
}

/// What the taking end found.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Taken<T> {
    /// A record and its number.
    Record(u64, T),
    /// The records with these numbers (the second excluded) were dropped. `Option`: the record that showed it.
    Missing(u64, u64, Option<(u64, T)>),
    /// Nothing, and nothing was dropped since.
    Empty,
}

impl<T> Ring<T> {
    /// A ring of about that many bytes, and of at least `least` records.
    pub(super) fn new(bytes: usize, least: usize) -> Ring<T> {
        let entry = size_of::<(u64, T)>() + STAMP;
        Ring {
            queue: ArrayQueue::new((bytes / entry).max(least).max(1)),
            numbered: AtomicU64::new(0),
        }
    }

    /// Numbers a record and puts it in, or drops it. Called by one thread at a time.
    pub(super) fn put(&self, record: T) {
        let number = self.numbered.load(Ordering::Relaxed);
        // A full ring drops it: the number is given all the same, and missed at the other end.
        let _ = self.queue.push((number, record));
        // Release: whoever sees the number also finds the record, unless it was dropped.
        self.numbered.store(number + 1, Ordering::Release);
    }

    /// Whether the next record would be dropped.
    pub(super) fn is_full(&self) -> bool {
        self.queue.is_full()
    }

    /// Whether it is time to take some out.
    pub(super) fn is_half_full(&self) -> bool {
        self.queue.len() * 2 >= self.queue.capacity()
    }

    /// Gives a number to a record that could not even be made.
    pub(super) fn skip(&self) {
        let number = self.numbered.load(Ordering::Relaxed);
        self.numbered.store(number + 1, Ordering::Release);
    }

    /// Numbers given so far: records that were put in, and those that were dropped.
    pub(super) fn numbered(&self) -> u64 {
        self.numbered.load(Ordering::Acquire)
    }

    /// Takes the next record. `expected` is the number after the last one accounted for, and is moved on. Called by one thread at a time.
    pub(super) fn take(&self, expected: &mut u64) -> Taken<T> {
        // Read before the queue is: every number below it was put in before, so if the queue is empty then, the rest of them were dropped.
        let numbered = self.numbered.load(Ordering::Acquire);
        let from = *expected;
        match self.queue.pop() {
            Some((number, record)) if number == from => {
                *expected = number + 1;
                Taken::Record(number, record)
            }
            Some((number, record)) => {
                *expected = number + 1;
                Taken::Missing(from, number, Some((number, record)))
            }
            None if numbered > from => {
                *expected = numbered;
                Taken::Missing(from, numbered, None)
            }
            None => Taken::Empty,
        }
    }
}
