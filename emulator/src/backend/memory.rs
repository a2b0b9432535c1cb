//! The back end that keeps data in memory.

mod medium;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, VecDeque};
use std::io;

use super::{Backend, BackendCompletion, Immediate, Operation, Outcome, Request};
use crate::iommu::{DeviceMemory, Segment};
use medium::Medium;

/// Bytes that are compared or copied at once.
const CHUNK: usize = 64 << 10;
/// Bytes of requests without data that are done in a turn at once, and as many again of those that wait: such a request names up to 65,536 blocks with a few bytes, a range of one
/// as many, and other commands, registers and other controllers of the same thread wait meanwhile.
const PIECE: u64 = 512 << 10;
/// Bytes that a request without data counts for at least.
const LEAST: u64 = 4096;

/// What a request counts for, so much of which is done in a turn. Those with data are done at once.
fn cost(request: &Request) -> u64 {
    match request.operation {
        Operation::WriteZeroes | Operation::Deallocate | Operation::Copy { .. } => {
            request.length.max(LEAST)
        }
        _ => 0,
    }
}

/// A request without data that waits, or is done in pieces.
#[derive(Debug)]
struct Long {
    request: Request,
    done: u64,
}

impl Long {
    /// The next piece, as a request of its own.
    fn piece(&self) -> Request {
        let mut piece = self.request.clone();
        piece.length = PIECE.min(self.request.length - self.done);
        let mut at = self.done;
        if let Operation::Copy { namespace, offset } = &mut piece.operation {
            // From the end where the beginning would overwrite what is still to be read.
            if *namespace == piece.namespace && *offset < piece.offset {
                at = self.request.length - self.done - piece.length;
            }
            *offset += at;
        }
        piece.offset += at;
        piece
    }
}

/// Keeps each namespace in anonymous memory, of which the system gives a page when it is first written: a namespace costs what was
/// written to it, not its size.
#[derive(Debug)]
pub struct MemoryBackend {
    media: BTreeMap<u32, Medium>,
    done: Vec<BackendCompletion>,
    /// In turn.
    long: VecDeque<Long>,
    /// Bytes of requests without data that may still be done at once in this turn.
    left: u64,
    /// The next poll belongs to a batch, and is no new turn.
    submitted: bool,
    buffer: Box<[u8]>,
}

impl Default for MemoryBackend {
    fn default() -> MemoryBackend {
        MemoryBackend {
            media: BTreeMap::new(),
            done: Vec::new(),
            long: VecDeque::new(),
            left: PIECE,
            submitted: false,
            buffer: vec![0; CHUNK].into_boxed_slice(),
        }
    }
}

impl MemoryBackend {
    /// Moves the data of a plain read or write.
    fn transfer(&mut self, command: &Immediate, memory: &DeviceMemory<'_>) -> Outcome {
        let read = !command.write;
        let failed = if read {
            Outcome::ReadError
        } else {
            Outcome::WriteError
        };
        let medium = self.media.get_mut(&command.namespace);
        let Some(blocks) =
            medium.and_then(|medium| medium.range(command.offset, u64::from(command.length)))
        else {
            return failed;
        };
        let [first, second] = &command.segments;
        let Some((head, tail)) = blocks.split_at_mut_checked(first.length as usize) else {
            return failed;
        };
        if tail.len() != second.length as usize {
            return failed;
        }
        for (segment, blocks) in [(first, head), (second, tail)] {
            if blocks.is_empty() {
                continue;
            }
            let moved = if read {
                memory.write(segment, 0, blocks)
            } else {
                memory.read(segment, 0, blocks)
            };
            if moved.is_err() {
                return Outcome::MemoryLost;
            }
        }
        Outcome::Done
    }

    fn execute(
        &mut self,
        request: &Request,
        segments: &[Segment],
        memory: &DeviceMemory<'_>,
    ) -> Outcome {
        let (offset, length) = (request.offset, request.length);
        let failed = match request.operation {
            Operation::Flush => return Outcome::Done,
            Operation::Copy {
                namespace: from,
                offset: from_offset,
            } => return self.copy(from, from_offset, request),
            Operation::Read | Operation::Compare | Operation::Verify => Outcome::ReadError,
            _ => Outcome::WriteError,
        };
        let Some(medium) = self.media.get_mut(&request.namespace) else {
            return failed;
        };
        let zeroed = match request.operation {
            Operation::Deallocate => Some(medium.discard(offset, length)),
            Operation::WriteZeroes => Some(medium.zero(offset, length)),
            _ => None,
        };
        if let Some(zeroed) = zeroed {
            return zeroed.map_or(failed, |()| Outcome::Done);
        }
        let Some(blocks) = medium.range(offset, length) else {
            return failed;
        };
        if request.operation == Operation::Verify {
            return Outcome::Done;
        }
        let mut rest = blocks;
        for segment in segments {
            let Some((now, later)) = rest.split_at_mut_checked(segment.length as usize) else {
                return failed;
            };
            rest = later;
            let moved = match request.operation {
                Operation::Read => memory.write(segment, 0, now),
                Operation::Write => memory.read(segment, 0, now),
                _ => {
                    for (index, expected) in now.chunks(CHUNK).enumerate() {
                        let Some(actual) = self.buffer.get_mut(..expected.len()) else {
                            return failed;
                        };
                        if memory.read(segment, index * CHUNK, actual).is_err() {
                            return Outcome::MemoryLost;
                        }
                        if actual != expected {
                            return Outcome::Different;
                        }
                    }
                    Ok(())
                }
            };
            if moved.is_err() {
                return Outcome::MemoryLost;
            }
        }
        if rest.is_empty() {
            Outcome::Done
        } else {
            failed
        }
    }

    /// Goes on with the requests that wait, for one turn.
    fn go_on(&mut self, memory: &DeviceMemory<'_>) {
        let mut left = PIECE;
        while let Some(mut long) = self.long.pop_front() {
            let piece = long.piece();
            let Some(rest) = left.checked_sub(cost(&piece)) else {
                return self.long.push_front(long);
            };
            left = rest;
            let outcome = self.execute(&piece, &[], memory);
            long.done += piece.length;
            if outcome == Outcome::Done && long.done < long.request.length {
                self.long.push_back(long);
            } else {
                let tag = long.request.tag;
                self.done.push(BackendCompletion { tag, outcome });
            }
        }
    }

    fn copy(&mut self, from: u32, from_offset: u64, request: &Request) -> Outcome {
        let (to, to_offset, length) = (request.namespace, request.offset, request.length);
        if from == to {
            let copied = self
                .media
                .get_mut(&to)
                .and_then(|medium| medium.copy(from_offset, to_offset, length));
            return copied.map_or(Outcome::WriteError, |()| Outcome::Done);
        }
        let mut done = 0;
        while done < length {
            let count = (length - done).min(CHUNK as u64);
            let Some(buffer) = self.buffer.get_mut(..count as usize) else {
                return Outcome::WriteError;
            };
            let source = self.media.get_mut(&from);
            let Some(source) = source.and_then(|medium| medium.range(from_offset + done, count))
            else {
                return Outcome::ReadError;
            };
            buffer.copy_from_slice(source);
            let target = self.media.get_mut(&to);
            let Some(target) = target.and_then(|medium| medium.range(to_offset + done, count))
            else {
                return Outcome::WriteError;
            };
            target.copy_from_slice(buffer);
            done += count;
        }
        Outcome::Done
    }
}

impl Backend for MemoryBackend {
    fn submit(&mut self, requests: &[Request], segments: &[Segment], memory: &DeviceMemory<'_>) {
        self.submitted = true;
        for request in requests {
            let own = segments
                .get(request.segments.start as usize..request.segments.end as usize)
                .unwrap_or_default();
            let Some(left) = self.left.checked_sub(cost(request)) else {
                self.long.push_back(Long {
                    request: request.clone(),
                    done: 0,
                });
                continue;
            };
            self.left = left;
            let outcome = self.execute(request, own, memory);
            self.done.push(BackendCompletion {
                tag: request.tag,
                outcome,
            });
        }
    }

    fn poll(&mut self, memory: &DeviceMemory<'_>, completions: &mut Vec<BackendCompletion>) {
        // The controller polls after each batch, and once in a turn without one.
        if !std::mem::take(&mut self.submitted) {
            self.left = PIECE;
            self.go_on(memory);
        }
        completions.append(&mut self.done);
    }

    fn is_working(&self) -> bool {
        !self.long.is_empty()
    }

    fn cancel(&mut self, tags: &[u32]) {
        let done = &mut self.done;
        self.long.retain(|long| {
            let tag = long.request.tag;
            let cancelled = tags.contains(&tag);
            if cancelled {
                done.push(BackendCompletion {
                    tag,
                    outcome: Outcome::Cancelled,
                });
            }
            !cancelled
        });
    }

    fn open(&mut self, namespace: u32, bytes: u64) -> io::Result<()> {
        self.create(namespace, bytes)
    }

    fn create(&mut self, namespace: u32, bytes: u64) -> io::Result<()> {
        self.media.insert(namespace, Medium::new(bytes)?);
        Ok(())
    }

    fn delete(&mut self, namespace: u32) {
        self.media.remove(&namespace);
    }

    fn erase(&mut self, namespace: u32) -> io::Result<()> {
        let medium = self.media.get_mut(&namespace);
        medium
            .and_then(Medium::clear)
            .ok_or(io::ErrorKind::NotFound.into())
    }

    fn is_immediate(&self) -> bool {
        true
    }

    fn immediate(&mut self, commands: &mut [Immediate], memory: &DeviceMemory<'_>) -> bool {
        let mut all_done = true;
        for command in commands {
            command.outcome = self.transfer(command, memory);
            all_done &= command.outcome == Outcome::Done;
        }
        all_done
    }

    fn reset(&mut self) {
        self.done.clear();
        self.long.clear();
    }
}
