//! Signals to a client's eventfds, which are to take the thread that steps the controller no time.
//!
//! Whoever signals an eventfd also wakes all who wait for it, and a client can make these a hundred thousand, by registering it in as many places: one signal takes many
//! milliseconds then. It is measured, and what is slow is left to a thread of this client.

use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::mpsc::{self, Sender};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use nix::time::{ClockId, clock_gettime};
use nvme_vfio_user::Eventfd;

/// A signal that takes this long wakes too many. One or two waiters take a few microseconds.
const SLOW: Duration = Duration::from_micros(50);
/// So many in a row, of which all but the first were measured in time of the processor, are no accident.
const STRIKES: u8 = 3;

/// The thread that gives slow signals, once there are some: for all eventfds that come after that as well.
#[derive(Clone, Debug, Default)]
pub(super) struct Helper(Arc<OnceLock<Option<Sender<Arc<Line>>>>>);

impl Helper {
    /// Starts the thread. It ends when nobody can give it anything any more.
    #[cold]
    fn start(&self) {
        self.0.get_or_init(|| {
            let (orders, taken) = mpsc::channel::<Arc<Line>>();
            let started = thread::Builder::new()
                .name("nvme-signals".into())
                .spawn(move || {
                    while let Ok(line) = taken.recv() {
                        // Before the signal: what is to be told from now on takes another.
                        line.ordered.store(false, Ordering::Release);
                        line.give();
                    }
                });
            if let Err(error) = &started {
                tracing::warn!(%error, "no thread for slow interrupts: they are not signalled any more");
            }
            started.ok().map(|_| orders)
        });
    }
}

/// One eventfd.
#[derive(Debug)]
pub(super) struct Line {
    eventfd: Eventfd,
    /// The latest signals in a row that were slow.
    strikes: AtomicU8,
    /// The thread is to signal it, and has not begun.
    ordered: AtomicBool,
}

impl Line {
    pub(super) fn new(eventfd: Eventfd) -> Arc<Line> {
        Arc::new(Line {
            eventfd,
            strikes: AtomicU8::new(0),
            ordered: AtomicBool::new(false),
        })
    }

    fn give(&self) {
        if let Err(errno) = self.eventfd.signal() {
            tracing::warn!(%errno, "an interrupt could not be signalled");
        }
    }

    /// Signals it, or has the thread do so. Interrupts that come while one waits to be signalled are one with it.
    pub(super) fn signal(self: &Arc<Line>, helper: &Helper) {
        if let Some(thread) = helper.0.get() {
            if let Some(thread) = thread
                && !self.ordered.swap(true, Ordering::AcqRel)
            {
                // The thread lives as long as it can be asked.
                let _ = thread.send(Arc::clone(self));
            }
            return;
        }
        let strikes = self.strikes.load(Ordering::Relaxed);
        let elapsed = if strikes == 0 {
            let begun = Instant::now();
            self.give();
            begun.elapsed()
        } else {
            // The first may have been slow because another thread had the processor.
            let begun = processor_time();
            self.give();
            processor_time().saturating_sub(begun)
        };
        if elapsed > SLOW {
            self.strikes.store(strikes + 1, Ordering::Relaxed);
            if strikes + 1 >= STRIKES {
                helper.start();
            }
        } else if strikes > 0 {
            self.strikes.store(0, Ordering::Relaxed);
        }
    }
}

/// What this thread has had of its processor.
fn processor_time() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map_or(Duration::ZERO, Duration::from)
}
