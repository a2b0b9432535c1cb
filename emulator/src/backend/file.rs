//! The back end that keeps data in files.

mod medium;
mod workers;

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::{Backend, BackendCompletion, Operation, Outcome, Request};
use crate::iommu::{DeviceMemory, Segment};
use medium::Medium;
use workers::{Finished, Job, Work, Workers};

/// Bytes that requests under way may hold in buffers together; one request may have more, alone.
const BUFFERED_MAX: usize = 64 << 20;

/// The file that a namespace is kept in.
pub(crate) fn file_of(path: &Path, namespace: u32) -> PathBuf {
    if namespace == 1 {
        return path.to_owned();
    }
    let mut name = path.to_owned().into_os_string();
    name.push(format!(".{namespace}"));
    name.into()
}

/// Keeps each namespace in a file: namespace 1 in the file that was named, namespace `n` in one with `.n` after its name. A file that does not
/// exist is made as large as its namespace, without taking room for what was not written.
///
/// Files are read and written by threads of this back end, into and out of buffers of its own: they never touch memory of the host. Flush and Force
/// Unit Access mean fdatasync(2). An error of the file is an error of the medium.
#[derive(Debug)]
pub struct FileBackend {
    path: PathBuf,
    media: BTreeMap<u32, Arc<Medium>>,
    workers: Workers,
    /// Requests that wait for room in the buffers.
    waiting: VecDeque<Waiting>,
    /// By number of the job: what becomes of it when a worker is done.
    under_way: HashMap<u64, Pending>,
    /// The number of the next job. Tags are used again as soon as a request was reported, which may be before a worker has ended.
    next_job: u64,
    buffered: usize,
    finished: Vec<Finished>,
    done: Vec<BackendCompletion>,
}

#[derive(Debug)]
struct Waiting {
    request: Request,
    segments: Vec<Segment>,
}

#[derive(Debug)]
struct Pending {
    tag: u32,
    /// Where the data goes that was read; empty for everything else.
    segments: Vec<Segment>,
    buffer: usize,
}

impl FileBackend {
    /// Workers: as many requests are with the system at once.
    const WORKERS: usize = 4;

    /// For namespaces in `path` and beside it. Files are opened as namespaces come.
    ///
    /// # Errors
    /// The system gave no thread.
    pub fn new(path: &Path) -> io::Result<FileBackend> {
        Ok(FileBackend {
            path: path.to_owned(),
            media: BTreeMap::new(),
            workers: Workers::start(Self::WORKERS)?,
            waiting: VecDeque::new(),
            under_way: HashMap::new(),
            next_job: 0,
            buffered: 0,
            finished: Vec::new(),
            done: Vec::new(),
        })
    }

    /// The work that a request is; `None` when its namespace has no file.
    fn work(&self, request: &Request, buffer: Vec<u8>) -> Option<Work> {
        let (offset, length) = (request.offset, request.length);
        if request.operation == Operation::Flush {
            let media = match request.namespace {
                0 => self.media.values().cloned().collect(),
                namespace => vec![Arc::clone(self.media.get(&namespace)?)],
            };
            return Some(Work::Flush { media });
        }
        let medium = Arc::clone(self.media.get(&request.namespace)?);
        Some(match request.operation {
            Operation::Read => Work::Read {
                medium,
                offset,
                buffer,
            },
            Operation::Write => Work::Write {
                medium,
                offset,
                buffer,
                durable: request.force_unit_access,
            },
            Operation::Compare => Work::Compare {
                medium,
                offset,
                buffer,
            },
            Operation::Verify => Work::Verify {
                medium,
                offset,
                length,
            },
            Operation::WriteZeroes => Work::Zero {
                medium,
                offset,
                length,
                deallocate: false,
                durable: request.force_unit_access,
            },
            Operation::Deallocate => Work::Zero {
                medium,
                offset,
                length,
                deallocate: true,
                durable: request.force_unit_access,
            },
            Operation::Copy {
                namespace,
                offset: from,
            } => Work::Copy {
                source: Arc::clone(self.media.get(&namespace)?),
                from,
                medium,
                offset,
                length,
                durable: request.force_unit_access,
            },
            Operation::Flush => return None,
        })
    }

    /// Bytes of buffer that a request needs.
    fn needs(request: &Request) -> usize {
        match request.operation {
            Operation::Read | Operation::Write | Operation::Compare => {
                usize::try_from(request.length).unwrap_or(usize::MAX)
            }
            _ => 0,
        }
    }

    fn fits(&self, bytes: usize) -> bool {
        self.buffered == 0 || self.buffered.saturating_add(bytes) <= BUFFERED_MAX
    }

    /// Gives a request to the workers.
    fn start(&mut self, request: &Request, segments: &[Segment], memory: &DeviceMemory<'_>) {
        let bytes = Self::needs(request);
        let mut buffer = vec![0; bytes];
        if matches!(request.operation, Operation::Write | Operation::Compare)
            && !gather(segments, &mut buffer, memory)
        {
            return self.finish(request.tag, Outcome::MemoryLost);
        }
        let Some(work) = self.work(request, buffer) else {
            let failed = if request.operation == Operation::Write {
                Outcome::WriteError
            } else {
                Outcome::ReadError
            };
            return self.finish(request.tag, failed);
        };
        let segments = match request.operation {
            Operation::Read => segments.to_vec(),
            _ => Vec::new(),
        };
        self.buffered += bytes;
        let number = self.next_job;
        self.next_job += 1;
        self.under_way.insert(
            number,
            Pending {
                tag: request.tag,
                segments,
                buffer: bytes,
            },
        );
        self.workers.give(Job { number, work });
    }

    fn finish(&mut self, tag: u32, outcome: Outcome) {
        self.done.push(BackendCompletion { tag, outcome });
    }

    /// Takes what the workers have done.
    fn collect(&mut self, memory: &DeviceMemory<'_>) {
        let mut finished = std::mem::take(&mut self.finished);
        self.workers.take(&mut finished);
        for done in finished.drain(..) {
            let Some(pending) = self.under_way.remove(&done.number) else {
                // It was given up.
                continue;
            };
            self.buffered -= pending.buffer;
            let mut outcome = done.outcome;
            if outcome == Outcome::Done && !scatter(&pending.segments, &done.data, memory) {
                outcome = Outcome::MemoryLost;
            }
            self.finish(pending.tag, outcome);
        }
        self.finished = finished;
        while let Some(next) = self.waiting.front()
            && self.fits(Self::needs(&next.request))
            && let Some(Waiting { request, segments }) = self.waiting.pop_front()
        {
            self.start(&request, &segments, memory);
        }
    }
}

/// Copies from the host's memory; false when a mapping is gone.
fn gather(segments: &[Segment], buffer: &mut [u8], memory: &DeviceMemory<'_>) -> bool {
    let mut rest = buffer;
    for segment in segments {
        let Some((now, later)) = rest.split_at_mut_checked(segment.length as usize) else {
            return false;
        };
        if memory.read(segment, 0, now).is_err() {
            return false;
        }
        rest = later;
    }
    rest.is_empty()
}

/// Copies to the host's memory; false when a mapping is gone.
fn scatter(segments: &[Segment], data: &[u8], memory: &DeviceMemory<'_>) -> bool {
    let mut rest = data;
    for segment in segments {
        let Some((now, later)) = rest.split_at_checked(segment.length as usize) else {
            return false;
        };
        if memory.write(segment, 0, now).is_err() {
            return false;
        }
        rest = later;
    }
    true
}

impl Backend for FileBackend {
    fn submit(&mut self, requests: &[Request], segments: &[Segment], memory: &DeviceMemory<'_>) {
        for request in requests {
            let own = segments
                .get(request.segments.start as usize..request.segments.end as usize)
                .unwrap_or_default();
            if self.waiting.is_empty() && self.fits(Self::needs(request)) {
                self.start(request, own, memory);
            } else {
                self.waiting.push_back(Waiting {
                    request: request.clone(),
                    segments: own.to_vec(),
                });
            }
        }
    }

    fn poll(&mut self, memory: &DeviceMemory<'_>, completions: &mut Vec<BackendCompletion>) {
        self.collect(memory);
        completions.append(&mut self.done);
    }

    fn open(&mut self, namespace: u32, bytes: u64) -> io::Result<()> {
        let medium = Medium::open(&file_of(&self.path, namespace), bytes)?;
        self.media.insert(namespace, Arc::new(medium));
        Ok(())
    }

    fn create(&mut self, namespace: u32, bytes: u64) -> io::Result<()> {
        self.open(namespace, bytes)?;
        self.erase(namespace)
    }

    fn delete(&mut self, namespace: u32) {
        // The file stays: somebody named it, or may want what was in it.
        self.media.remove(&namespace);
    }

    fn erase(&mut self, namespace: u32) -> io::Result<()> {
        let medium = self.media.get(&namespace);
        medium.ok_or(io::ErrorKind::NotFound)?.erase()
    }

    fn wakes(&self) -> bool {
        true
    }

    fn cancel(&mut self, tags: &[u32]) {
        // What a worker has begun ends when the file lets it, and has its data in a buffer: it needs the host's memory no more.
        // Both may be as many as all queues have entries.
        let tags: HashSet<u32> = tags.iter().copied().collect();
        let mut given_up = Vec::new();
        self.under_way.retain(|_, pending| {
            let goes = tags.contains(&pending.tag);
            if goes {
                self.buffered -= pending.buffer;
                given_up.push(pending.tag);
            }
            !goes
        });
        self.workers
            .withdraw(|number| !self.under_way.contains_key(&number));
        self.waiting.retain(|waiting| {
            let goes = tags.contains(&waiting.request.tag);
            if goes {
                given_up.push(waiting.request.tag);
            }
            !goes
        });
        for tag in given_up {
            self.finish(tag, Outcome::Cancelled);
        }
    }

    fn reset(&mut self) {
        self.waiting.clear();
        self.done.clear();
        // A write that was begun must not land on one of the time after the reset.
        self.workers.drain();
        self.finished.clear();
        self.under_way.clear();
        self.buffered = 0;
    }
}

#[cfg(test)]
mod tests;
