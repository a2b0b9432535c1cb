//! The thread that gives all virtual controllers their turns.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle, Thread};
use std::time::Instant;

use nvme_vfio_emulator::Emulator;

use super::backoff::{Backoff, Rest, Round};
use super::rotation::Rotation;
use super::running::Summary;
use crate::controller::Clock;

/// Commands that one client may have fetched in one turn.
const TURN: u32 = 32;
/// Commands that an emulated controller may fetch in one turn: what several clients have handed to it.
const EMULATED_TURN: u32 = 4 * TURN;
/// Rounds without work between two looks at the clock, while nothing has been idle for long.
const ROUNDS: u32 = 64;

/// A virtual controller's place at the thread that polls.
#[derive(Debug)]
pub(crate) struct Seat {
    emulator: Arc<Emulator>,
    /// Whether a client is there, or something of its is still under way.
    taken: AtomicBool,
}

impl Seat {
    pub(crate) fn new(emulator: Arc<Emulator>) -> Arc<Seat> {
        Arc::new(Seat {
            emulator,
            taken: AtomicBool::new(false),
        })
    }

    /// A client has come, or has gone and left nothing under way.
    pub(crate) fn take(&self, taken: bool) {
        // Release: what was done for the client before is seen by the thread that polls.
        self.taken.store(taken, Ordering::Release);
    }
}

/// What the thread has done. It alone writes, so no locked instruction is needed.
#[derive(Debug, Default)]
struct Work {
    fetched: AtomicU64,
    posted: AtomicU64,
    /// Times that it went to sleep.
    sleeps: AtomicU64,
}

fn add(count: &AtomicU64, by: u64) {
    count.store(
        count.load(Ordering::Relaxed).wrapping_add(by),
        Ordering::Relaxed,
    );
}

/// The thread; it ends when this is dropped.
#[derive(Debug)]
pub(crate) struct Poller {
    stop: Arc<AtomicBool>,
    work: Arc<Work>,
    handle: Thread,
    thread: Option<JoinHandle<()>>,
}

impl Poller {
    /// `busy`: it never sleeps while a client is connected. `emulated`: controllers whose work it does besides.
    pub(crate) fn start(
        seats: Vec<Arc<Seat>>,
        emulated: Vec<Arc<Emulator>>,
        clock: Clock,
        busy: bool,
        cpu: Option<usize>,
    ) -> io::Result<Poller> {
        let stop = Arc::<AtomicBool>::default();
        let work = Arc::<Work>::default();
        let (theirs, stopped) = (Arc::clone(&work), Arc::clone(&stop));
        let (for_thread, device) = (seats.clone(), emulated.clone());
        let thread = thread::Builder::new()
            .name("nvme-serve".into())
            .spawn(move || {
                if let Some(id) = cpu
                    && !core_affinity::set_for_current(core_affinity::CoreId { id })
                {
                    tracing::warn!(
                        cpu = id,
                        "the thread that polls could not be kept on its processor"
                    );
                }
                poll(&for_thread, &device, &clock, &stopped, busy, &theirs);
            })?;
        let virtual_ones = seats.iter().map(|seat| &seat.emulator);
        for emulator in virtual_ones.chain(&emulated) {
            emulator.stepped_by(thread.thread());
        }
        Ok(Poller {
            stop,
            work,
            handle: thread.thread().clone(),
            thread: Some(thread),
        })
    }

    /// Ends it; what it has done. What it counts of a turn it counts after that, so that as long as it is there the last may be missing.
    pub(crate) fn finish(mut self) -> Summary {
        self.end();
        let read = |count: &AtomicU64| count.load(Ordering::Relaxed);
        Summary {
            commands: read(&self.work.fetched),
            completions: read(&self.work.posted),
            sleeps: read(&self.work.sleeps),
            ..Summary::default()
        }
    }

    /// Whether the thread is there: it ends only by a fault of its own.
    pub(crate) fn is_running(&self) -> bool {
        self.thread
            .as_ref()
            .is_some_and(|thread| !thread.is_finished())
    }

    /// For waking it.
    pub(crate) fn thread(&self) -> Thread {
        self.handle.clone()
    }

    fn end(&mut self) {
        self.stop.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            self.handle.unpark();
            if thread.join().is_err() {
                tracing::error!("the thread that polls panicked");
            }
        }
    }
}

impl Drop for Poller {
    fn drop(&mut self) {
        self.end();
    }
}

/// Has emulated controllers do some of what is pending; whether there was anything. One that somebody else waits for is that one's to step.
fn step(emulated: &[Arc<Emulator>]) -> bool {
    let mut worked = false;
    for emulator in emulated.iter().filter(|emulator| !emulator.is_wanted()) {
        let turn = emulator.turn(EMULATED_TURN);
        worked |= turn.fetched + turn.posted > 0 || turn.working;
    }
    worked
}

fn poll(
    seats: &[Arc<Seat>],
    emulated: &[Arc<Emulator>],
    clock: &Clock,
    stop: &AtomicBool,
    busy: bool,
    work: &Work,
) {
    let mut rotation = Rotation::new(seats.len());
    let mut backoff = Backoff::new(busy);
    let mut idle_rounds = 0;
    while !stop.load(Ordering::Acquire) {
        let now = Instant::now();
        clock.set(now);
        let (mut taken, mut in_flight) = (false, false);
        let (mut fetched, mut posted) = (0, 0);
        let stepped = step(emulated);
        // Those that had no work for long are left out only while others have some.
        let all = idle_rounds > 0;
        let worked = rotation.round(all, |index| {
            let Some(seat) = seats
                .get(index)
                .filter(|seat| seat.taken.load(Ordering::Acquire))
            else {
                return false;
            };
            taken = true;
            // A message is being answered: its thread has the controller, and this one does not wait for it.
            if seat.emulator.is_wanted() {
                in_flight = true;
                return false;
            }
            let turn = seat.emulator.turn(TURN);
            in_flight |= turn.in_flight > 0;
            fetched += turn.fetched;
            posted += turn.posted;
            turn.fetched + turn.posted > 0
        });
        if worked || stepped {
            idle_rounds = 0;
            add(&work.fetched, fetched);
            add(&work.posted, posted);
            backoff.after(Round::Worked, || now);
            continue;
        }
        idle_rounds += 1;
        // Nobody rests before everybody was looked at, and the first rounds without work cost no look at the clock.
        if !all || idle_rounds < ROUNDS && taken && !backoff.is_resting() {
            std::hint::spin_loop();
            continue;
        }
        let round = match (taken, in_flight) {
            (false, _) => Round::Alone,
            (true, true) => Round::InFlight,
            (true, false) => Round::Idle,
        };
        match backoff.after(round, || now) {
            Rest::None => std::hint::spin_loop(),
            Rest::Yield => thread::yield_now(),
            Rest::Sleep(time) => {
                add(&work.sleeps, 1);
                thread::park_timeout(time);
            }
        }
    }
}
