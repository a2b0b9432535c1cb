//! The medium of the device under attack: it keeps account of every byte that is touched.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nvme_vfio_emulator::{
    Backend, BackendCompletion, DeviceMemory, Operation, Outcome, Request, Segment,
};

/// How bytes of the medium were touched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum How {
    /// Their contents, or something that depends on it, left the medium.
    Read,
    /// They were changed.
    Changed,
}

/// One touch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Touch {
    pub(crate) nsid: u32,
    pub(crate) first: u64,
    pub(crate) length: u64,
    pub(crate) how: How,
}

#[derive(Debug, Default)]
pub(crate) struct Contents {
    pub(crate) namespaces: BTreeMap<u32, Vec<u8>>,
    pub(crate) touches: Vec<Touch>,
    /// Namespaces that were flushed; 0 for all.
    pub(crate) flushes: Vec<u32>,
    /// Namespaces that were made, taken away or erased: nobody may.
    pub(crate) managed: Vec<(&'static str, u32)>,
}

/// The medium, shared by the device and the judge.
#[derive(Clone, Debug, Default)]
pub(crate) struct Medium(Arc<Mutex<Contents>>);

impl Medium {
    pub(crate) fn lock(&self) -> MutexGuard<'_, Contents> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A back end on this medium.
    pub(crate) fn backend(&self) -> Box<dyn Backend> {
        Box::new(Recording {
            medium: self.clone(),
            done: Vec::new(),
        })
    }
}

#[derive(Debug)]
struct Recording {
    medium: Medium,
    done: Vec<BackendCompletion>,
}

fn execute(
    contents: &mut Contents,
    request: &Request,
    segments: &[Segment],
    memory: &DeviceMemory<'_>,
) -> Outcome {
    let nsid = request.namespace;
    let mut touch = |nsid, first, length, how| {
        contents.touches.push(Touch {
            nsid,
            first,
            length,
            how,
        });
    };
    let (first, length) = (request.offset, request.length);
    match request.operation {
        Operation::Flush => {
            contents.flushes.push(nsid);
            return Outcome::Done;
        }
        Operation::Read | Operation::Compare | Operation::Verify => {
            touch(nsid, first, length, How::Read)
        }
        Operation::Write | Operation::WriteZeroes | Operation::Deallocate => {
            touch(nsid, first, length, How::Changed);
        }
        Operation::Copy { namespace, offset } => {
            touch(namespace, offset, length, How::Read);
            touch(nsid, first, length, How::Changed);
        }
    }
    let range = first as usize..(first + length) as usize;
    let source = match request.operation {
        Operation::Copy { namespace, offset } => contents
            .namespaces
            .get(&namespace)
            .and_then(|bytes| bytes.get(offset as usize..(offset + length) as usize))
            .map(<[u8]>::to_vec),
        _ => None,
    };
    let Some(bytes) = contents
        .namespaces
        .get_mut(&nsid)
        .and_then(|bytes| bytes.get_mut(range))
    else {
        return Outcome::ReadError;
    };
    match request.operation {
        Operation::WriteZeroes | Operation::Deallocate => bytes.fill(0),
        Operation::Copy { .. } => match source {
            Some(source) => bytes.copy_from_slice(&source),
            None => return Outcome::ReadError,
        },
        Operation::Verify | Operation::Flush => {}
        Operation::Read | Operation::Write | Operation::Compare => {
            let mut rest = bytes;
            let mut different = false;
            for segment in segments {
                let (now, later) = rest.split_at_mut(segment.length as usize);
                rest = later;
                let moved = match request.operation {
                    Operation::Read => memory.write(segment, 0, now),
                    Operation::Write => memory.read(segment, 0, now),
                    _ => {
                        let mut theirs = vec![0; now.len()];
                        let read = memory.read(segment, 0, &mut theirs);
                        different |= theirs != now;
                        read
                    }
                };
                if moved.is_err() {
                    return Outcome::MemoryLost;
                }
            }
            if different {
                return Outcome::Different;
            }
        }
    }
    Outcome::Done
}

impl Backend for Recording {
    fn submit(&mut self, requests: &[Request], segments: &[Segment], memory: &DeviceMemory<'_>) {
        let medium = self.medium.clone();
        let mut contents = medium.lock();
        for request in requests {
            let pieces = request.segments.start as usize..request.segments.end as usize;
            let outcome = execute(&mut contents, request, &segments[pieces], memory);
            self.done.push(BackendCompletion {
                tag: request.tag,
                outcome,
            });
        }
    }

    fn poll(&mut self, _memory: &DeviceMemory<'_>, completions: &mut Vec<BackendCompletion>) {
        completions.append(&mut self.done);
    }

    fn open(&mut self, namespace: u32, bytes: u64) -> io::Result<()> {
        let mut contents = self.medium.lock();
        contents
            .namespaces
            .entry(namespace)
            .or_insert_with(|| vec![0; bytes as usize]);
        Ok(())
    }

    fn create(&mut self, namespace: u32, bytes: u64) -> io::Result<()> {
        let mut contents = self.medium.lock();
        contents.managed.push(("created", namespace));
        contents
            .namespaces
            .insert(namespace, vec![0; bytes as usize]);
        Ok(())
    }

    fn delete(&mut self, namespace: u32) {
        let mut contents = self.medium.lock();
        contents.managed.push(("deleted", namespace));
        contents.namespaces.remove(&namespace);
    }

    fn erase(&mut self, namespace: u32) -> io::Result<()> {
        let mut contents = self.medium.lock();
        contents.managed.push(("erased", namespace));
        if let Some(bytes) = contents.namespaces.get_mut(&namespace) {
            bytes.fill(0);
        }
        Ok(())
    }

    fn reset(&mut self) {
        self.done.clear();
    }
}
