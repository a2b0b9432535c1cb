//! A thread that steps a controller.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::emulator::Emulator;

/// How long an idle controller is polled without a pause. No longer: its client may wait for the same processor.
const SPIN: Duration = Duration::from_micros(20);
/// How long it then yields between polls, before it sleeps.
const YIELD: Duration = Duration::from_millis(2);
/// How long it sleeps instead while a back end works that will wake it; doorbells wait as long.
const NAP: Duration = Duration::from_micros(50);
/// The first and the longest sleep; each is twice the one before.
const SLEEP: (Duration, Duration) = (Duration::from_micros(20), Duration::from_millis(1));
/// Empty steps between two looks at the clock.
const STEPS: u32 = 256;
/// The same, while nothing has happened for a while already.
const IDLE_STEPS: u32 = 32;

/// How the thread of a controller behaves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ThreadOptions {
    /// It polls all the time, and never yields or sleeps.
    pub busy: bool,
    /// It stays on the processor with this number, if the system lets it.
    pub cpu: Option<usize>,
}

/// The thread of an emulated controller; it ends when this is dropped.
#[derive(Debug)]
pub struct EmulatorThread {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Emulator {
    /// Starts a thread that steps the controller until the returned value is dropped. Busy, it polls; idle, it yields after 0.02 ms and
    /// sleeps after 2 ms, at most 1 ms at a time: that is the longest that a doorbell waits which is written as memory (a register write wakes it).
    ///
    /// # Errors
    /// The system gave no thread.
    pub fn spawn(self: &Arc<Emulator>) -> io::Result<EmulatorThread> {
        self.spawn_with(ThreadOptions::default())
    }

    /// As [`Emulator::spawn`], with a thread that behaves as the options say.
    ///
    /// # Errors
    /// The system gave no thread.
    pub fn spawn_with(self: &Arc<Emulator>, options: ThreadOptions) -> io::Result<EmulatorThread> {
        let stop = Arc::new(AtomicBool::new(false));
        let (emulator, stopped) = (Arc::clone(self), Arc::clone(&stop));
        let thread = thread::Builder::new()
            .name("nvme-emulator".into())
            .spawn(move || poll(&emulator, &stopped, options))?;
        self.stepped_by(thread.thread());
        Ok(EmulatorThread {
            stop,
            thread: Some(thread),
        })
    }
}

fn poll(emulator: &Emulator, stop: &AtomicBool, options: ThreadOptions) {
    if let Some(id) = options.cpu
        && !core_affinity::set_for_current(core_affinity::CoreId { id })
    {
        tracing::warn!(
            cpu = id,
            "the thread of the emulated controller could not be kept on its processor"
        );
    }
    let mut idle_since = None;
    let mut sleep = SLEEP.0;
    emulator.tell_time(true);
    // Acquire pairs with the Release of `drop`; nothing but the flag itself is passed on.
    while !stop.load(Ordering::Acquire) {
        let patience = match idle_since {
            // A controller that sleeps anyway is not polled for long when it wakes.
            Some(_) if sleep > SLEEP.0 => 1,
            Some(_) => IDLE_STEPS,
            None => STEPS,
        };
        if emulator.work(patience) > 0 {
            (idle_since, sleep) = (None, SLEEP.0);
            give_way(emulator);
            continue;
        }
        give_way(emulator);
        if options.busy {
            continue;
        }
        let idle = idle_since.get_or_insert_with(Instant::now).elapsed();
        if idle < SPIN {
            std::hint::spin_loop();
        } else if idle < YIELD && emulator.will_be_woken() {
            // The threads of the back end may need this very processor.
            thread::park_timeout(NAP);
        } else if idle < YIELD {
            thread::yield_now();
        } else {
            thread::park_timeout(emulator.rest(sleep));
            sleep = (sleep * 2).min(SLEEP.1);
        }
    }
    emulator.tell_time(false);
}

/// The lock is not fair: without this a polling thread would hardly ever let a register access in.
fn give_way(emulator: &Emulator) {
    while emulator.is_wanted() {
        thread::yield_now();
    }
}

impl Drop for EmulatorThread {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            if thread.join().is_err() {
                tracing::error!("the thread of the emulated controller panicked");
            }
        }
    }
}
