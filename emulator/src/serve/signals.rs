//! Signals to a client's eventfds, which are to take the thread that steps the controller no time.
//!
//! Whoever signals an eventfd also wakes all who wait for it, and a client can make these a hundred thousand, by registering it in as many places: one signal takes many
//! milliseconds then. It is measured, and what is slow is left to a thread of this client.
//!
//! That thread is told vectors, never eventfds: each vector is due or not, so that whatever a client asks for, what waits here is a bit for each vector, and each vector has one eventfd open (and
//! the thread that of the signal it is at).

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use nix::time::{ClockId, clock_gettime};
use nvme_vfio_user::Eventfd;

use crate::emulator::Emulator;
use crate::interrupts::InterruptSink;

/// A signal that takes this long wakes too many. One or two waiters take a few microseconds.
const SLOW: Duration = Duration::from_micros(50);
/// So many in a row, of which all but the first were measured in time of the processor, are no accident.
const STRIKES: u8 = 3;

/// The eventfds of a client's interrupt vectors, and the thread that gives slow signals, once there are some.
#[derive(Debug)]
pub(super) struct Signals {
    shared: Arc<Shared>,
}

impl Signals {
    /// For so many vectors, none of them connected.
    pub(super) fn new(vectors: u16) -> Signals {
        let vectors = usize::from(vectors);
        Signals {
            shared: Arc::new(Shared {
                lines: Mutex::new(vec![None; vectors]),
                due: (0..vectors.div_ceil(64))
                    .map(|_| AtomicU64::new(0))
                    .collect(),
                helper: OnceLock::new(),
                ended: AtomicBool::new(false),
            }),
        }
    }

    /// Has a vector of the controller signal this eventfd and no other, or none. What it signalled until now is closed.
    pub(super) fn connect(&self, emulator: &Emulator, vector: u16, eventfd: Option<Eventfd>) {
        let shared = &self.shared;
        let line = eventfd.map(|eventfd| {
            Arc::new(Line {
                eventfd,
                strikes: AtomicU8::new(0),
            })
        });
        let sink = line.clone().map(|line| -> InterruptSink {
            let shared = Arc::clone(shared);
            Arc::new(move || shared.signal(vector, &line))
        });
        let connected = line.is_some();
        let mut lines = shared.lines();
        let Some(place) = lines.get_mut(usize::from(vector)) else {
            return;
        };
        // Before the controller signals it, so that what the thread is told from then on is meant for it.
        let former = std::mem::replace(place, line);
        emulator.connect_interrupt(vector, sink);
        if !connected {
            shared.is_due(vector);
        }
        drop(lines);
        // Here and not with the sink, which goes while the controller is locked: where nobody else has the eventfd any more, its end takes the kernel the longer the more places it is registered in.
        drop(former);
    }
}

impl Drop for Signals {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::Release);
        if let Some(Some(thread)) = self.shared.helper.get() {
            thread.unpark();
        }
    }
}

/// One eventfd.
#[derive(Debug)]
struct Line {
    eventfd: Eventfd,
    /// The latest signals in a row that were slow.
    strikes: AtomicU8,
}

impl Line {
    fn give(&self) {
        if let Err(errno) = self.eventfd.signal() {
            tracing::warn!(%errno, "an interrupt could not be signalled");
        }
    }
}

#[derive(Debug)]
struct Shared {
    /// What each vector signals. Never locked by who signals, and by the thread for no longer than it takes to look.
    lines: Mutex<Vec<Option<Arc<Line>>>>,
    /// Vectors that the thread is to signal and has not begun to: bit `n % 64` of word `n / 64`.
    due: Box<[AtomicU64]>,
    helper: OnceLock<Option<Thread>>,
    /// Nobody is to be signalled any more.
    ended: AtomicBool,
}

impl Shared {
    fn lines(&self) -> MutexGuard<'_, Vec<Option<Arc<Line>>>> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Signals it, or has the thread do so. Interrupts that come while one waits to be signalled are one with it.
    fn signal(self: &Arc<Shared>, vector: u16, line: &Line) {
        if let Some(thread) = self.helper.get() {
            if let Some(thread) = thread
                && !self.make_due(vector)
            {
                thread.unpark();
            }
            return;
        }
        let strikes = line.strikes.load(Ordering::Relaxed);
        let elapsed = if strikes == 0 {
            let begun = Instant::now();
            line.give();
            begun.elapsed()
        } else {
            // The first may have been slow because another thread had the processor.
            let begun = processor_time();
            line.give();
            processor_time().saturating_sub(begun)
        };
        if elapsed > SLOW {
            line.strikes.store(strikes + 1, Ordering::Relaxed);
            if strikes + 1 >= STRIKES {
                self.start();
            }
        } else if strikes > 0 {
            line.strikes.store(0, Ordering::Relaxed);
        }
    }

    /// Notes that the thread is to signal a vector. True when it was to already.
    fn make_due(&self, vector: u16) -> bool {
        let bit = 1 << (vector % 64);
        self.due
            .get(usize::from(vector) / 64)
            .is_none_or(|word| word.fetch_or(bit, Ordering::AcqRel) & bit != 0)
    }

    /// Whether a vector was to be signalled. It is not any more.
    fn is_due(&self, vector: u16) -> bool {
        let bit = 1 << (vector % 64);
        self.due
            .get(usize::from(vector) / 64)
            .is_some_and(|word| word.fetch_and(!bit, Ordering::AcqRel) & bit != 0)
    }

    /// Starts the thread.
    #[cold]
    fn start(self: &Arc<Shared>) {
        self.helper.get_or_init(|| {
            let shared = Arc::clone(self);
            let started = thread::Builder::new()
                .name("nvme-signals".into())
                .spawn(move || shared.help());
            if let Err(error) = &started {
                tracing::warn!(%error, "no thread for slow interrupts: they are not signalled any more");
            }
            started.ok().map(|thread| thread.thread().clone())
        });
    }

    /// What the thread does: gives all signals that are due, over and over.
    fn help(&self) {
        let vectors = self.lines().len() as u16;
        while !self.ended.load(Ordering::Acquire) {
            let mut any = false;
            for vector in 0..vectors {
                // Before the signal: what is to be told from now on takes another.
                if self.is_due(vector) {
                    any = true;
                    let line = self.lines().get(usize::from(vector)).cloned().flatten();
                    if let Some(line) = line {
                        line.give();
                    }
                }
            }
            if !any {
                thread::park();
            }
        }
    }
}

/// What this thread has had of its processor.
fn processor_time() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map_or(Duration::ZERO, Duration::from)
}
