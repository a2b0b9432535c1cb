//! A record of what the controller does: every register write, doorbell, command, completion, access to memory and fault.

mod event;

pub use event::{DmaDirection, TraceEvent, TracePurpose, TraceRecord};

use std::collections::VecDeque;
use std::io::{self, Write};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// How often a trace that goes to a file is emptied.
const PERIOD: Duration = Duration::from_millis(2);

#[derive(Debug, Default)]
struct Ring {
    records: VecDeque<TraceRecord>,
    capacity: usize,
    sequence: u64,
    lost: u64,
    /// When the trace began, where a thread steps the controller.
    origin: Option<Instant>,
}

/// Where the controller writes down what it does.
#[derive(Debug, Default)]
pub(crate) struct Tracer {
    on: AtomicBool,
    step: AtomicU64,
    /// Whether time is that of the clock rather than that of the steps.
    clock: AtomicBool,
    ring: Mutex<Ring>,
}

impl Tracer {
    /// Itself, while somebody reads it.
    pub(crate) fn when_on(&self) -> Option<&Tracer> {
        self.is_on().then_some(self)
    }

    pub(crate) fn is_on(&self) -> bool {
        self.on.load(Ordering::Relaxed)
    }

    /// The controller's step that is under way.
    pub(crate) fn at_step(&self, step: u64) {
        self.step.store(step, Ordering::Relaxed);
    }

    /// Whether records bear the time of the clock.
    pub(crate) fn use_clock(&self, real: bool) {
        self.clock.store(real, Ordering::Relaxed);
    }

    /// Writes down what `event` makes, if somebody reads it. The oldest record goes where there is no room.
    pub(crate) fn record(&self, event: impl FnOnce() -> TraceEvent) {
        if !self.is_on() {
            return;
        }
        let real = self.clock.load(Ordering::Relaxed);
        let mut ring = self.ring.lock().unwrap_or_else(PoisonError::into_inner);
        let time = real.then(|| {
            let elapsed = ring.origin.get_or_insert_with(Instant::now).elapsed();
            u64::try_from(elapsed.as_nanos()).unwrap_or(u64::MAX)
        });
        let record = TraceRecord {
            sequence: ring.sequence,
            step: self.step.load(Ordering::Relaxed),
            time,
            event: event(),
        };
        ring.sequence += 1;
        if ring.records.len() >= ring.capacity {
            ring.records.pop_front();
            ring.lost += 1;
        }
        ring.records.push_back(record);
    }

    fn start(&self, capacity: usize) {
        let mut ring = self.ring.lock().unwrap_or_else(PoisonError::into_inner);
        *ring = Ring {
            capacity: capacity.max(1),
            ..Ring::default()
        };
        drop(ring);
        self.on.store(true, Ordering::Relaxed);
    }
}

/// The reading end of a trace; tracing ends when it is dropped.
///
/// At most so many records are kept as [`Emulator::trace`](crate::Emulator::trace) was told; where they are not taken in time, the oldest
/// are lost and counted.
#[derive(Debug)]
pub struct Trace {
    tracer: Arc<Tracer>,
}

impl Trace {
    /// Starts a trace; `None` while another one is being read.
    pub(crate) fn start(tracer: &Arc<Tracer>, capacity: usize) -> Option<Trace> {
        if tracer.is_on() {
            return None;
        }
        tracer.start(capacity);
        Some(Trace {
            tracer: Arc::clone(tracer),
        })
    }

    /// Takes all records that are there, oldest first.
    #[must_use]
    pub fn take(&self) -> Vec<TraceRecord> {
        let mut ring = self
            .tracer
            .ring
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        // The ring's own memory stays where it is: the controller goes on writing there.
        ring.records.drain(..).collect()
    }

    /// How many records were lost since the start because nobody took them.
    #[must_use]
    pub fn lost(&self) -> u64 {
        self.tracer
            .ring
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .lost
    }

    /// Takes all records and writes each as one line of JSON; how many there were.
    ///
    /// # Errors
    /// What writing answered; the records taken are lost then.
    pub fn write_json(&self, out: &mut impl Write) -> io::Result<usize> {
        let records = self.take();
        for record in &records {
            serde_json::to_writer(&mut *out, record)?;
            out.write_all(b"\n")?;
        }
        Ok(records.len())
    }

    /// Starts a thread that writes the trace to `out`, one line of JSON a record, until the returned value is dropped or ended. A
    /// last line tells how many records were lost, if any were.
    ///
    /// # Errors
    /// The system gave no thread.
    pub fn write_to(self, out: impl Write + Send + 'static) -> io::Result<TraceWriter> {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = thread::Builder::new()
            .name("nvme-trace".into())
            .spawn(move || self.write_until(out, &stopped))?;
        Ok(TraceWriter {
            stop,
            thread: Some(thread),
        })
    }

    fn write_until(self, mut out: impl Write, stop: &AtomicBool) -> io::Result<()> {
        loop {
            // Read first: what was recorded before the end was asked for is written.
            let last = stop.load(Ordering::Acquire);
            let written = self.write_json(&mut out)?;
            if last {
                break;
            }
            if written == 0 {
                out.flush()?;
                thread::park_timeout(PERIOD);
            }
        }
        let lost = self.lost();
        if lost > 0 {
            writeln!(
                out,
                "{}",
                serde_json::json!({ "event": "lost", "records": lost })
            )?;
        }
        out.flush()
    }
}

impl Drop for Trace {
    fn drop(&mut self) {
        self.tracer.on.store(false, Ordering::Relaxed);
    }
}

/// The thread that writes a trace.
#[derive(Debug)]
pub struct TraceWriter {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<io::Result<()>>>,
}

impl TraceWriter {
    /// Ends the trace, and waits until all of it is written.
    ///
    /// # Errors
    /// What writing answered.
    pub fn end(mut self) -> io::Result<()> {
        self.join()
    }

    fn join(&mut self) -> io::Result<()> {
        self.stop.store(true, Ordering::Release);
        match self.thread.take() {
            Some(thread) => {
                thread.thread().unpark();
                thread.join().unwrap_or_else(|_| {
                    Err(io::Error::other(
                        "the thread that writes the trace panicked",
                    ))
                })
            }
            None => Ok(()),
        }
    }
}

impl Drop for TraceWriter {
    fn drop(&mut self) {
        if let Err(error) = self.join() {
            tracing::error!(%error, "the trace could not be written");
        }
    }
}
