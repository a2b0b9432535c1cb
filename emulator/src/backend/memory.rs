//! The back end that keeps data in memory.

use std::io;

use memmap2::{MmapMut, MmapOptions};

use super::{Backend, BackendCompletion, Operation, Outcome, Request};
use crate::iommu::{DeviceMemory, Segment};

/// Bytes that are compared or zeroed at once.
const CHUNK: usize = 64 << 10;

/// Keeps each namespace in anonymous memory, of which the system gives a page when it is first written: a namespace costs what was
/// written to it, not its size.
#[derive(Debug)]
pub struct MemoryBackend {
    media: Vec<MmapMut>,
    done: Vec<BackendCompletion>,
    buffer: Box<[u8]>,
}

impl MemoryBackend {
    /// Reserves `namespaces` media of `size` bytes.
    ///
    /// # Errors
    /// What the system says when it cannot reserve that much address space.
    pub fn new(namespaces: usize, size: u64) -> io::Result<MemoryBackend> {
        let length =
            usize::try_from(size).map_err(|_| io::Error::from(io::ErrorKind::OutOfMemory))?;
        let media = (0..namespaces)
            .map(|_| MmapOptions::new().len(length).no_reserve_swap().map_anon())
            .collect::<io::Result<_>>()?;
        Ok(MemoryBackend {
            media,
            done: Vec::new(),
            buffer: vec![0; CHUNK].into_boxed_slice(),
        })
    }

    fn execute(
        &mut self,
        request: &Request,
        segments: &[Segment],
        memory: &DeviceMemory<'_>,
    ) -> Outcome {
        if request.operation == Operation::Flush {
            return Outcome::Done;
        }
        let failed = match request.operation {
            Operation::Read | Operation::Compare => Outcome::ReadError,
            _ => Outcome::WriteError,
        };
        let range = usize::try_from(request.offset)
            .ok()
            .zip(usize::try_from(request.length).ok());
        let Some(blocks) = range.and_then(|(offset, length)| {
            let medium = self.media.get_mut(request.namespace as usize)?;
            medium.get_mut(offset..offset.checked_add(length)?)
        }) else {
            return failed;
        };
        if request.operation == Operation::WriteZeroes {
            for chunk in blocks.chunks_mut(CHUNK) {
                // A page that was never written is zero already and stays untouched.
                if chunk.iter().any(|&byte| byte != 0) {
                    chunk.fill(0);
                }
            }
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
}

impl Backend for MemoryBackend {
    fn submit(&mut self, requests: &[Request], segments: &[Segment], memory: &DeviceMemory<'_>) {
        for request in requests {
            let own = segments
                .get(request.segments.start as usize..request.segments.end as usize)
                .unwrap_or_default();
            let outcome = self.execute(request, own, memory);
            self.done.push(BackendCompletion {
                tag: request.tag,
                outcome,
            });
        }
    }

    fn poll(&mut self, _memory: &DeviceMemory<'_>, completions: &mut Vec<BackendCompletion>) {
        completions.append(&mut self.done);
    }

    fn reset(&mut self) {
        self.done.clear();
    }
}
