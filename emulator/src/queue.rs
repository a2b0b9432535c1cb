//! Submission and completion queues as the controller keeps them.

/// A doorbell value that cannot be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct InvalidDoorbell;

/// One submission queue.
#[derive(Debug)]
pub(crate) struct SubmissionQueue {
    pub(crate) base: u64,
    /// Entries.
    pub(crate) size: u32,
    /// The next entry that the controller fetches.
    pub(crate) head: u32,
    /// The last accepted value of the tail doorbell.
    pub(crate) tail: u32,
    /// The completion queue it reports to.
    pub(crate) cqid: u16,
    /// Commands that are with the back end.
    pub(crate) in_flight: u32,
    /// No more is fetched: its deletion waits for the commands in flight.
    pub(crate) deleting: bool,
}

impl SubmissionQueue {
    pub(crate) fn new(base: u64, size: u32, cqid: u16) -> SubmissionQueue {
        SubmissionQueue {
            base,
            size,
            head: 0,
            tail: 0,
            cqid,
            in_flight: 0,
            deleting: false,
        }
    }

    /// Entries that wait to be fetched.
    pub(crate) fn waiting(&self) -> u32 {
        if self.tail >= self.head {
            self.tail - self.head
        } else {
            self.size - self.head + self.tail
        }
    }

    /// Takes a new value of the tail doorbell. It is invalid outside the queue, or when it goes back over entries that
    /// were already submitted.
    pub(crate) fn accept_tail(&mut self, value: u32) -> Result<(), InvalidDoorbell> {
        if value >= self.size {
            return Err(InvalidDoorbell);
        }
        let added = if value >= self.tail {
            value - self.tail
        } else {
            self.size - self.tail + value
        };
        if added > self.size - 1 - self.waiting() {
            return Err(InvalidDoorbell);
        }
        self.tail = value;
        Ok(())
    }

    /// Moves on by `count` fetched entries, which were waiting.
    pub(crate) fn fetched(&mut self, count: u32) {
        self.head += count;
        if self.head >= self.size {
            self.head -= self.size;
        }
    }
}

/// One completion queue.
#[derive(Debug)]
pub(crate) struct CompletionQueue {
    pub(crate) base: u64,
    /// Entries.
    pub(crate) size: u32,
    /// The last accepted value of the head doorbell.
    pub(crate) head: u32,
    /// Where the next entry goes.
    pub(crate) tail: u32,
    /// Phase bit of the next entry.
    pub(crate) phase: bool,
    /// Entries promised to commands that were fetched.
    pub(crate) reserved: u32,
    /// Submission queues that report here.
    pub(crate) users: u16,
    /// The interrupt vector of its entries; `None` while interrupts are not enabled for it.
    pub(crate) vector: Option<u16>,
}

impl CompletionQueue {
    pub(crate) fn new(base: u64, size: u32) -> CompletionQueue {
        CompletionQueue {
            base,
            size,
            head: 0,
            tail: 0,
            phase: true,
            reserved: 0,
            users: 0,
            vector: None,
        }
    }

    /// Entries that the host has not taken yet.
    fn occupied(&self) -> u32 {
        if self.tail >= self.head {
            self.tail - self.head
        } else {
            self.size - self.head + self.tail
        }
    }

    /// Entries that are neither occupied nor promised; one always stays empty.
    pub(crate) fn room(&self) -> u32 {
        (self.size - 1)
            .saturating_sub(self.occupied())
            .saturating_sub(self.reserved)
    }

    /// Takes a new value of the head doorbell. It is invalid outside the queue, or when it goes past what was posted.
    pub(crate) fn accept_head(&mut self, value: u32) -> Result<(), InvalidDoorbell> {
        if value >= self.size {
            return Err(InvalidDoorbell);
        }
        let taken = if value >= self.head {
            value - self.head
        } else {
            self.size - self.head + value
        };
        if taken > self.occupied() {
            return Err(InvalidDoorbell);
        }
        self.head = value;
        Ok(())
    }

    /// Moves on by one posted entry.
    pub(crate) fn posted(&mut self) {
        self.tail += 1;
        if self.tail >= self.size {
            self.tail = 0;
            self.phase = !self.phase;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tail_wraps_and_never_goes_back() {
        let mut queue = SubmissionQueue::new(0, 4, 0);
        assert_eq!(queue.accept_tail(4), Err(InvalidDoorbell));
        queue.accept_tail(3).unwrap();
        assert_eq!(queue.waiting(), 3);
        assert_eq!(
            queue.accept_tail(2),
            Err(InvalidDoorbell),
            "would pass the head"
        );
        queue.fetched(3);
        assert_eq!((queue.head, queue.waiting()), (3, 0));
        queue.accept_tail(2).unwrap();
        assert_eq!(queue.waiting(), 3);
        queue.fetched(3);
        assert_eq!(queue.head, 2);
    }

    #[test]
    fn head_follows_what_was_posted() {
        let mut queue = CompletionQueue::new(0, 4);
        assert_eq!(queue.room(), 3);
        assert_eq!(
            queue.accept_head(1),
            Err(InvalidDoorbell),
            "nothing was posted"
        );
        for _ in 0..3 {
            queue.posted();
        }
        assert_eq!((queue.room(), queue.phase), (0, true));
        queue.accept_head(2).unwrap();
        queue.reserved = 1;
        assert_eq!(queue.room(), 1);
        queue.posted();
        assert_eq!((queue.tail, queue.phase), (0, false));
        assert_eq!(queue.accept_head(1), Err(InvalidDoorbell));
        queue.accept_head(0).unwrap();
    }
}
