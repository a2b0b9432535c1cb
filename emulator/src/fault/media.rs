//! Blocks that cannot be read or written.

use std::ops::RangeInclusive;

use nvme_vfio_queues::Status;

use crate::command::Entry;

const WRITE: u8 = 0x01;
const READ: u8 = 0x02;
const WRITE_UNCORRECTABLE: u8 = 0x04;
const COMPARE: u8 = 0x05;
const WRITE_ZEROES: u8 = 0x08;
const VERIFY: u8 = 0x0c;
const COPY: u8 = 0x19;

/// Which commands a bad block fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MediaOperation {
    /// Read, Compare and Verify, with Unrecovered Read Error.
    Read,
    /// Write and Write Zeroes, with Write Fault.
    Write,
    /// Verify alone, with Unrecovered Read Error: as for blocks that are about to go bad.
    Verify,
}

/// How long bad blocks stay bad.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MediaUntil {
    /// A block is good again once a Write or Write Zeroes of it succeeded.
    #[default]
    Rewritten,
    /// Until [`clear_faults`](crate::Emulator::clear_faults).
    Cleared,
}

/// Blocks that went bad. A command that touches one of them fails as a whole and moves no data. The sources of a Copy are not looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MediaFault {
    /// Of which namespace; `None` for all.
    pub nsid: Option<u32>,
    /// Which blocks.
    pub lbas: RangeInclusive<u64>,
    /// What fails.
    pub operation: MediaOperation,
    /// For how long.
    pub until: MediaUntil,
}

impl MediaFault {
    fn is_in(&self, nsid: u32) -> bool {
        self.nsid.is_none_or(|wanted| wanted == nsid)
    }

    fn overlaps(&self, lbas: &RangeInclusive<u64>) -> bool {
        self.lbas.start() <= lbas.end() && lbas.start() <= self.lbas.end()
    }
}

/// The logical blocks that an I/O command names in dwords 10 to 12; of a Copy, its first destination block.
pub(super) fn touched(entry: &Entry) -> Option<RangeInclusive<u64>> {
    let first = entry.slba();
    match entry.opcode() {
        WRITE | READ | WRITE_UNCORRECTABLE | COMPARE | WRITE_ZEROES | VERIFY => {
            Some(first..=first.saturating_add(u64::from(entry.blocks()) - 1))
        }
        COPY => Some(first..=first),
        _ => None,
    }
}

/// The bad blocks.
#[derive(Debug, Default)]
pub(super) struct Media {
    bad: Vec<MediaFault>,
}

impl Media {
    pub(super) fn is_empty(&self) -> bool {
        self.bad.is_empty()
    }

    pub(super) fn clear(&mut self) {
        self.bad.clear();
    }

    pub(super) fn add(&mut self, fault: MediaFault) {
        if !fault.lbas.is_empty() {
            self.bad.push(fault);
        }
    }

    /// The status that an I/O command fails with, if it touches a bad block.
    pub(super) fn fails(&self, entry: &Entry) -> Option<Status> {
        let lbas = touched(entry)?;
        self.bad.iter().find_map(|bad| {
            let status = match (bad.operation, entry.opcode()) {
                (MediaOperation::Read, READ | COMPARE | VERIFY)
                | (MediaOperation::Verify, VERIFY) => Status::UNRECOVERED_READ_ERROR,
                (MediaOperation::Write, WRITE | WRITE_ZEROES) => Status::WRITE_FAULT,
                _ => return None,
            };
            (bad.is_in(entry.nsid()) && bad.overlaps(&lbas)).then_some(status)
        })
    }

    /// The blocks that a command makes good again if it succeeds, when some of them are bad.
    pub(super) fn rewrites(&self, entry: &Entry) -> Option<RangeInclusive<u64>> {
        if !matches!(entry.opcode(), WRITE | WRITE_ZEROES) {
            return None;
        }
        let lbas = touched(entry)?;
        self.bad
            .iter()
            .any(|bad| {
                bad.until == MediaUntil::Rewritten && bad.is_in(entry.nsid()) && bad.overlaps(&lbas)
            })
            .then_some(lbas)
    }

    /// Blocks of a namespace were written. What is left of a fault stays: before them, behind them, and in other namespaces.
    pub(super) fn rewritten(&mut self, nsid: u32, lbas: &RangeInclusive<u64>) {
        let mut left = Vec::new();
        for bad in self.bad.drain(..) {
            let hit = bad.until == MediaUntil::Rewritten && bad.is_in(nsid) && bad.overlaps(lbas);
            if !hit {
                left.push(bad);
                continue;
            }
            // A fault of all namespaces is cured in all: how many there are is not known here.
            if bad.lbas.start() < lbas.start() {
                left.push(MediaFault {
                    lbas: *bad.lbas.start()..=lbas.start() - 1,
                    ..bad.clone()
                });
            }
            if bad.lbas.end() > lbas.end() {
                left.push(MediaFault {
                    lbas: lbas.end() + 1..=*bad.lbas.end(),
                    ..bad
                });
            }
        }
        self.bad = left;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(opcode: u8, nsid: u32, first: u64, blocks: u64) -> Entry {
        let mut words = [0; 8];
        words[0] = u64::from(opcode) | u64::from(nsid) << 32;
        words[5] = first;
        words[6] = blocks - 1;
        Entry(words)
    }

    #[test]
    fn bad_blocks_fail_what_touches_them_until_they_are_written() {
        let mut media = Media::default();
        media.add(MediaFault {
            nsid: Some(1),
            lbas: 10..=20,
            operation: MediaOperation::Read,
            until: MediaUntil::Rewritten,
        });
        for opcode in [READ, COMPARE, VERIFY] {
            assert!(media.fails(&entry(opcode, 1, 3, 8)).is_some());
            assert!(media.fails(&entry(opcode, 1, 2, 8)).is_none(), "ends at 9");
            assert!(media.fails(&entry(opcode, 1, 20, 1)).is_some());
            assert!(media.fails(&entry(opcode, 1, 21, 1)).is_none());
            assert!(media.fails(&entry(opcode, 2, 10, 1)).is_none());
        }
        assert!(media.fails(&entry(WRITE, 1, 10, 1)).is_none());
        assert!(media.rewrites(&entry(READ, 1, 10, 1)).is_none());
        let written = media.rewrites(&entry(WRITE, 1, 12, 3)).unwrap();
        media.rewritten(1, &written);
        assert!(media.fails(&entry(READ, 1, 12, 3)).is_none());
        assert!(media.fails(&entry(READ, 1, 11, 1)).is_some());
        assert!(media.fails(&entry(READ, 1, 15, 1)).is_some());
        media.rewritten(1, &(0..=u64::MAX));
        assert!(media.is_empty());
    }

    #[test]
    fn the_last_block_of_all_does_not_wrap() {
        let mut media = Media::default();
        media.add(MediaFault {
            nsid: None,
            lbas: u64::MAX..=u64::MAX,
            operation: MediaOperation::Write,
            until: MediaUntil::Cleared,
        });
        assert!(media.fails(&entry(WRITE, 9, u64::MAX, 65_536)).is_some());
        assert!(media.fails(&entry(READ, 9, u64::MAX, 1)).is_none());
        assert!(media.rewrites(&entry(WRITE, 9, u64::MAX, 1)).is_none());
        media.rewritten(9, &(0..=u64::MAX));
        assert!(!media.is_empty());
    }
}
