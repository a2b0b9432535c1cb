//! The threads that read and write files.

use std::collections::VecDeque;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle, Thread};

use super::medium::{Compared, Medium};
use crate::backend::Outcome;

/// One request, as a worker executes it.
#[derive(Debug)]
pub(super) enum Work {
    Read {
        medium: Arc<Medium>,
        offset: u64,
        buffer: Vec<u8>,
    },
    Write {
        medium: Arc<Medium>,
        offset: u64,
        buffer: Vec<u8>,
        durable: bool,
    },
    Compare {
        medium: Arc<Medium>,
        offset: u64,
        buffer: Vec<u8>,
    },
    Verify {
        medium: Arc<Medium>,
        offset: u64,
        length: u64,
    },
    Zero {
        medium: Arc<Medium>,
        offset: u64,
        length: u64,
        deallocate: bool,
        durable: bool,
    },
    Copy {
        source: Arc<Medium>,
        from: u64,
        medium: Arc<Medium>,
        offset: u64,
        length: u64,
        durable: bool,
    },
    Flush {
        media: Vec<Arc<Medium>>,
    },
}

impl Work {
    /// Does it; how it ended, and what was read.
    fn execute(self) -> (Outcome, Vec<u8>) {
        let reads = matches!(
            self,
            Work::Read { .. } | Work::Compare { .. } | Work::Verify { .. }
        );
        let done = match self {
            Work::Read {
                medium,
                offset,
                mut buffer,
            } => match medium.read(offset, &mut buffer) {
                Ok(()) => return (Outcome::Done, buffer),
                Err(error) => Err(error),
            },
            Work::Compare {
                medium,
                offset,
                buffer,
            } => match medium.compare(offset, &buffer) {
                Ok(Compared::Different) => return (Outcome::Different, Vec::new()),
                Ok(Compared::Same) => Ok(()),
                Err(error) => Err(error),
            },
            Work::Write {
                medium,
                offset,
                buffer,
                durable,
            } => medium.write(offset, &buffer, durable),
            Work::Verify {
                medium,
                offset,
                length,
            } => medium.verify(offset, length),
            Work::Zero {
                medium,
                offset,
                length,
                deallocate,
                durable,
            } => medium.zero(offset, length, deallocate, durable),
            Work::Copy {
                source,
                from,
                medium,
                offset,
                length,
                durable,
            } => medium.copy(&source, from, offset, length, durable),
            Work::Flush { media } => media.iter().try_for_each(|medium| medium.flush()),
        };
        let outcome = match done {
            Ok(()) => Outcome::Done,
            Err(error) => {
                tracing::error!(%error, reads, "the file behind a namespace failed");
                if reads {
                    Outcome::ReadError
                } else {
                    Outcome::WriteError
                }
            }
        };
        (outcome, Vec::new())
    }
}

#[derive(Debug)]
pub(super) struct Job {
    pub(super) number: u64,
    pub(super) work: Work,
}

#[derive(Debug)]
pub(super) struct Finished {
    pub(super) number: u64,
    pub(super) outcome: Outcome,
    pub(super) data: Vec<u8>,
}

#[derive(Debug, Default)]
struct State {
    jobs: VecDeque<Job>,
    /// Jobs that a worker has begun and not ended.
    busy: usize,
    finished: Vec<Finished>,
    /// Who gave the last job: it polls for what has ended, and may be asleep.
    giver: Option<Thread>,
    end: bool,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    /// Whether `finished` has something, so that whoever polls needs no lock while it has not.
    any_finished: AtomicBool,
    /// There is a job, or the end.
    work: Condvar,
    /// A job has ended.
    rest: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run(&self) {
        let mut state = self.lock();
        loop {
            if state.end {
                return;
            }
            let Some(job) = state.jobs.pop_front() else {
                state = self
                    .work
                    .wait(state)
                    .unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            state.busy += 1;
            drop(state);
            let (outcome, data) = job.work.execute();
            state = self.lock();
            state.busy -= 1;
            state.finished.push(Finished {
                number: job.number,
                outcome,
                data,
            });
            self.any_finished.store(true, Ordering::Release);
            if let Some(giver) = &state.giver {
                giver.unpark();
            }
            self.rest.notify_all();
        }
    }
}

/// The workers; they end when this is dropped.
#[derive(Debug)]
pub(super) struct Workers {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

impl Workers {
    pub(super) fn start(count: usize) -> io::Result<Workers> {
        let mut workers = Workers {
            shared: Arc::default(),
            threads: Vec::new(),
        };
        for _ in 0..count {
            let shared = Arc::clone(&workers.shared);
            let thread = thread::Builder::new()
                .name("nvme-file".into())
                .spawn(move || shared.run())?;
            workers.threads.push(thread);
        }
        Ok(workers)
    }

    pub(super) fn give(&self, job: Job) {
        let mut state = self.shared.lock();
        state.jobs.push_back(job);
        let current = thread::current();
        if state.giver.as_ref().map(Thread::id) != Some(current.id()) {
            state.giver = Some(current);
        }
        drop(state);
        self.shared.work.notify_one();
    }

    /// Appends what has ended since the last call.
    pub(super) fn take(&self, into: &mut Vec<Finished>) {
        // What is set after this look is seen at the next.
        if self.shared.any_finished.load(Ordering::Acquire) {
            let mut state = self.shared.lock();
            self.shared.any_finished.store(false, Ordering::Relaxed);
            into.append(&mut state.finished);
        }
    }

    /// Takes the jobs back that `which` names and none has begun yet.
    pub(super) fn withdraw(&self, which: impl Fn(u64) -> bool) {
        self.shared.lock().jobs.retain(|job| !which(job.number));
    }

    /// Forgets what nobody has begun, and waits for the rest.
    pub(super) fn drain(&self) {
        let mut state = self.shared.lock();
        state.jobs.clear();
        while state.busy > 0 {
            state = self
                .shared
                .rest
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
        state.finished.clear();
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        // What was promised to be written is written: jobs that wait are dropped only by a reset.
        let mut state = self.shared.lock();
        while state.busy > 0 || !state.jobs.is_empty() {
            state = self
                .shared
                .rest
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
        state.end = true;
        drop(state);
        self.shared.work.notify_all();
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                tracing::error!("a thread of the file back end panicked");
            }
        }
    }
}
