//! Signals to a client's eventfds, which are to take the thread that steps the controller no time.
//!
//! Whoever signals an eventfd also wakes all who wait for it, and a client can make these millions, by waiting in as many places: one signal takes hundreds of
//! milliseconds then. It is measured, in time of the processor, and a client whose signals have taken too much (the [`Account`]) has a thread of its own give them: so the first slow one is
//! still the controller's thread's, and nothing here bounds it.
//!
//! That thread is told vectors, never eventfds: each vector is due or not, so that whatever a client asks for, what waits here is a bit for each vector, and each vector has one eventfd open (and
//! the thread that of the signal it is at).

mod account;

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use nix::time::{ClockId, clock_gettime};
use nvme_vfio_user::Eventfd;

use crate::emulator::Emulator;
use crate::interrupts::InterruptSink;
use account::{Account, ORDINARY};

/// The eventfds of a client's interrupt vectors, and the thread that gives slow signals.
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
                account: Account::new(Instant::now()),
                helper: OnceLock::new(),
                ended: AtomicBool::new(false),
            }),
        }
    }

    /// Starts the thread, where there is none. It is to be there before an eventfd is connected, and ends with this.
    ///
    /// # Errors
    /// The system has no thread.
    pub(super) fn prepare(&self) -> io::Result<()> {
        // One at a time.
        let _lines = self.shared.lines();
        if self.shared.helper.get().is_none() {
            let shared = Arc::clone(&self.shared);
            let started = thread::Builder::new()
                .name("nvme-signals".into())
                .spawn(move || shared.help())?;
            self.shared.helper.get_or_init(|| started.thread().clone());
        }
        Ok(())
    }

    /// Has a vector of the controller signal this eventfd and no other, or none. What it signalled until now is closed.
    pub(super) fn connect(&self, emulator: &Emulator, vector: u16, eventfd: Option<Eventfd>) {
        let shared = &self.shared;
        let line = eventfd.map(Arc::new);
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
        if let Some(thread) = self.shared.helper.get() {
            thread.unpark();
        }
    }
}

#[derive(Debug)]
struct Shared {
    /// What each vector signals. Never locked by who signals, and by the thread for no longer than it takes to look.
    lines: Mutex<Vec<Option<Arc<Eventfd>>>>,
    /// Vectors that the thread is to signal and has not begun to: bit `n % 64` of word `n / 64`.
    due: Box<[AtomicU64]>,
    account: Account,
    /// The thread. It is there before the first eventfd.
    helper: OnceLock<Thread>,
    /// Nobody is to be signalled any more.
    ended: AtomicBool,
}

impl Shared {
    fn lines(&self) -> MutexGuard<'_, Vec<Option<Arc<Eventfd>>>> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Signals it, or has the thread do so. Interrupts that come while one waits to be signalled are one with it.
    fn signal(&self, vector: u16, line: &Eventfd) {
        if self.account.is_relieved()
            && let Some(thread) = self.helper.get()
        {
            if !self.make_due(vector) {
                thread.unpark();
            }
            return;
        }
        self.give(line);
    }

    /// Signals it, and charges what it took of this thread's processor. Returns that, where it is more than the ordinary.
    fn give(&self, line: &Eventfd) -> Option<Duration> {
        let (begun, had) = (Instant::now(), processor_time());
        if let Err(errno) = line.signal() {
            tracing::warn!(%errno, "an interrupt could not be signalled");
        }
        let now = Instant::now();
        if now - begun <= ORDINARY {
            return None;
        }
        // Another thread may have had the processor for a while.
        let took = processor_time().saturating_sub(had);
        self.account.charge(took, now);
        (took > ORDINARY).then_some(took)
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
                    if let Some(took) = line.and_then(|line| self.give(&line)) {
                        // So that it takes no more than half of a processor from all others.
                        thread::sleep(took);
                    }
                }
            }
            self.account.settle(Instant::now());
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
