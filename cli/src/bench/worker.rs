//! The loop that is measured: take a completion, record its latency, submit the next I/O with the same buffer.
//!
//! Per I/O it reads the clock once: the stamp ends one latency and begins the next. Whatever is needed less often (the
//! end of the run, deadlines, the progress counter) hangs on one comparison of that stamp.

use std::{
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    time::{Duration, Instant},
};

use nvme_vfio::{
    Buffer, CommandError, Completion, IoQueue, Namespace, Outcome, Refused, SubmitError,
};

use nvme_vfio_queues::Status;

use super::{
    clock::{Clock, Source, Stamps},
    latency::Latencies,
    pattern::{Pattern, Random, Sequential},
    plan::Limit,
    statistics::{Batches, CpuUse, DEPTHS, JobResult, Samples, depth_class},
};
use crate::{
    args::Rw,
    error::{Error, Kind},
};

/// How often a job looks at deadlines and at whether it is to stop, and tells its progress.
const CHORES: Duration = Duration::from_millis(50);
/// How many empty polls go by between two looks at the clock.
const IDLE_POLLS: u32 = 128;

/// What is done when no completion is there.
pub trait Hook {
    /// Called after each empty poll.
    fn idle(&mut self);
}

/// Nothing: the device works by itself.
#[derive(Clone, Copy, Debug, Default)]
pub struct Spin;

impl Hook for Spin {
    // Not even a pause: it makes each look at the queue later, and in an emulated machine it takes the lock that the device's emulation needs.
    #[inline]
    fn idle(&mut self) {}
}

/// What a job is to do.
#[derive(Clone, Copy, Debug)]
pub struct Job {
    /// Which of the jobs it is, from 0.
    pub number: usize,
    /// The namespace.
    pub namespace: Namespace,
    /// Direction and pattern.
    pub rw: Rw,
    /// The first logical block of the part that is used.
    pub first_lba: u64,
    /// Logical blocks of one I/O.
    pub blocks_per_io: u64,
    /// How many I/Os lie side by side in that part.
    pub places: u64,
    /// When it ends.
    pub limit: Limit,
    /// Seed of the random offsets.
    pub seed: u64,
}

/// What running jobs and their watcher tell each other.
#[derive(Debug)]
pub struct Control {
    /// I/Os that each job has completed so far, brought up to date now and then.
    pub completed: Vec<AtomicU64>,
    /// Set to end all jobs early.
    pub stop: AtomicBool,
}

impl Control {
    /// For `jobs` jobs.
    #[must_use]
    pub fn new(jobs: usize) -> Self {
        Self {
            completed: (0..jobs).map(|_| AtomicU64::new(0)).collect(),
            stop: AtomicBool::new(false),
        }
    }
}

/// Runs a job on `queue` with one I/O in flight per buffer; each buffer has the length of one I/O.
///
/// # Errors
/// The first I/O that did not succeed. Those in flight were waited for, and the other jobs are told to stop.
pub fn run_worker<H: Hook>(
    queue: &mut IoQueue,
    job: &Job,
    buffers: Vec<Buffer>,
    clock: &Clock,
    control: &Control,
    hook: &mut H,
) -> Result<JobResult, Error> {
    // Each of the eight loops is compiled for its own clock, pattern and direction.
    match clock.source() {
        Source::Counter(counter) => run_with(queue, job, buffers, (clock, counter), control, hook),
        Source::Monotonic(monotonic) => {
            run_with(queue, job, buffers, (clock, monotonic), control, hook)
        }
    }
}

fn run_with<S: Stamps, H: Hook>(
    queue: &mut IoQueue,
    job: &Job,
    buffers: Vec<Buffer>,
    clock: (&Clock, S),
    control: &Control,
    hook: &mut H,
) -> Result<JobResult, Error> {
    let depth = buffers.len();
    let sequential = Sequential::new(job.places);
    let random = Random::new(job.places, job.seed);
    match job.rw {
        Rw::Read => Worker::<S, _, false>::new(job, sequential, depth, clock, control)
            .run(queue, job.limit, buffers, hook),
        Rw::Write => Worker::<S, _, true>::new(job, sequential, depth, clock, control)
            .run(queue, job.limit, buffers, hook),
        Rw::RandRead => Worker::<S, _, false>::new(job, random, depth, clock, control)
            .run(queue, job.limit, buffers, hook),
        Rw::RandWrite => Worker::<S, _, true>::new(job, random, depth, clock, control)
            .run(queue, job.limit, buffers, hook),
    }
}

/// What the loop keeps.
struct Worker<'a, S, P, const WRITE: bool> {
    clock: Clock,
    stamps: S,
    /// The stamp at which chores are due.
    due: u64,
    /// I/Os still to be submitted.
    remaining: u64,
    first_lba: u64,
    blocks_per_io: u64,
    pattern: P,
    namespace: Namespace,
    latencies: Latencies,
    /// I/Os that succeeded before that.
    done: u64,
    /// Completions since the last empty poll.
    batch: u64,
    batches: Batches,
    /// Buffers that the queue had no slot for.
    parked: Vec<Buffer>,
    /// The stamp at which no more is submitted.
    end: u64,
    number: usize,
    depth: usize,
    control: &'a Control,
    error: Option<Error>,
}

impl<'a, S: Stamps, P: Pattern, const WRITE: bool> Worker<'a, S, P, WRITE> {
    fn new(
        job: &Job,
        pattern: P,
        depth: usize,
        (clock, stamps): (&Clock, S),
        control: &'a Control,
    ) -> Self {
        Self {
            clock: *clock,
            stamps,
            due: u64::MAX,
            remaining: u64::MAX,
            first_lba: job.first_lba,
            blocks_per_io: job.blocks_per_io,
            pattern,
            namespace: job.namespace,
            latencies: Latencies::default(),
            done: 0,
            batch: 0,
            batches: Batches::default(),
            parked: Vec::with_capacity(depth),
            end: u64::MAX,
            number: job.number,
            depth,
            control,
            error: None,
        }
    }

    fn run<H: Hook>(
        mut self,
        queue: &mut IoQueue,
        limit: Limit,
        buffers: Vec<Buffer>,
        hook: &mut H,
    ) -> Result<JobResult, Error> {
        let cpu = CpuUse::of_this_thread();
        let begun = Instant::now();
        // The time that is granted begins after the one that is reported, which is thus no shorter.
        self.start(limit);
        for buffer in buffers {
            let now = self.stamps.stamp();
            self.submit_first(queue, buffer, now);
        }
        self.turn(queue, hook);
        let runtime = begun.elapsed();
        let cpu = CpuUse::of_this_thread().since(&cpu);
        self.tell();
        if let Some(error) = self.error {
            return Err(error);
        }
        let latency = self.latencies.histogram(&self.clock)?;
        let ios = latency.len();
        let bytes_per_io = self
            .blocks_per_io
            .saturating_mul(u64::from(self.namespace.block_size()));
        Ok(JobResult {
            jobs: 1,
            ios,
            bytes: ios.saturating_mul(bytes_per_io),
            runtime,
            depths: depths(self.depth as u64, ios),
            latency,
            batches: self.batches,
            cpu,
            samples: Samples::default(),
        })
    }

    /// From now on the limit counts.
    fn start(&mut self, limit: Limit) {
        let now = self.stamps.stamp();
        match limit {
            Limit::Ios(ios) => self.remaining = ios,
            Limit::Time(time) => self.end = now.saturating_add(self.clock.ticks(time)),
        }
        self.due = now.saturating_add(self.clock.ticks(CHORES)).min(self.end);
    }

    /// Runs until everything that was submitted has been reported.
    #[inline(never)]
    fn turn<H: Hook>(&mut self, queue: &mut IoQueue, hook: &mut H) {
        let mut idle = 0_u32;
        loop {
            let Some(completion) = queue.poll() else {
                if queue.in_flight() == 0 && !self.unpark(queue) {
                    return;
                }
                self.batches.record(self.batch);
                self.done += self.batch;
                self.batch = 0;
                hook.idle();
                idle += 1;
                if idle == IDLE_POLLS {
                    idle = 0;
                    self.unpark(queue);
                    let now = self.stamps.stamp();
                    if now >= self.due {
                        self.chores(queue, now);
                    }
                }
                continue;
            };
            let now = self.stamps.stamp();
            // Taken apart test by test: taken together, they cost twice as much.
            let Completion {
                token,
                entry,
                outcome,
                buffer,
                vector: _,
            } = completion;
            if outcome != Outcome::Done {
                self.lost(outcome);
                continue;
            }
            let status = entry.status();
            if !status.is_success() {
                self.failed(status);
                continue;
            }
            let Some(buffer) = buffer else {
                self.kept();
                continue;
            };
            self.batch += 1;
            self.latencies.record(now.wrapping_sub(token));
            if now >= self.due {
                self.chores(queue, now);
            }
            self.submit(queue, buffer, now);
        }
    }

    /// Outside of the loop, which has its own copy of `submit`.
    #[inline(never)]
    fn submit_first(&mut self, queue: &mut IoQueue, buffer: Buffer, now: u64) {
        self.submit(queue, buffer, now);
    }

    /// Submits the next I/O, if there is one; else the buffer goes back to its pool.
    #[inline(always)]
    fn submit(&mut self, queue: &mut IoQueue, buffer: Buffer, now: u64) {
        if self.remaining == 0 {
            return;
        }
        let lba = self.first_lba + self.pattern.next() * self.blocks_per_io;
        let submitted = if WRITE {
            queue.write(&self.namespace, lba, buffer, now)
        } else {
            queue.read(&self.namespace, lba, buffer, now)
        };
        match submitted {
            Ok(()) => self.remaining -= 1,
            Err(refused) => self.refused(refused),
        }
    }

    /// An I/O that is split takes several slots, so that the queue may be full before all buffers are with it.
    #[cold]
    fn refused(&mut self, refused: Refused) {
        match refused {
            Refused {
                error: SubmitError::QueueFull,
                buffer: Some(buffer),
                ..
            } => self.parked.push(buffer),
            Refused { error, .. } => self.give_up(error.into()),
        }
    }

    /// Submits a buffer that was parked; whether there was one.
    #[cold]
    fn unpark(&mut self, queue: &mut IoQueue) -> bool {
        let Some(buffer) = self.parked.pop() else {
            return false;
        };
        let now = self.stamps.stamp();
        self.submit_first(queue, buffer, now);
        true
    }

    #[cold]
    fn failed(&mut self, status: Status) {
        self.give_up(CommandError::Status(status).into());
    }

    #[cold]
    fn lost(&mut self, outcome: Outcome) {
        self.give_up(match outcome {
            Outcome::TimedOut => CommandError::TimedOut.into(),
            Outcome::Gone => CommandError::Gone.into(),
            _ => CommandError::Reset.into(),
        });
    }

    #[cold]
    fn kept(&mut self) {
        self.give_up(Error::new(
            Kind::Reset,
            "an I/O came back without its buffer",
        ));
    }

    fn give_up(&mut self, error: Error) {
        let doing = if WRITE { "a write" } else { "a read" };
        self.error.get_or_insert_with(|| {
            error.context(format!("job {}: {doing} failed", self.number + 1))
        });
        self.remaining = 0;
        self.control.stop.store(true, Ordering::Relaxed);
    }

    /// What is done now and then.
    #[cold]
    fn chores(&mut self, queue: &mut IoQueue, now: u64) {
        if now >= self.end || self.control.stop.load(Ordering::Relaxed) {
            self.remaining = 0;
            self.end = u64::MAX;
        }
        self.tell();
        // What was in flight is reported by the queue all the same.
        if let Err(error) = queue.check_deadlines(Instant::now()) {
            self.give_up(error.into());
        }
        self.due = now.saturating_add(self.clock.ticks(CHORES)).min(self.end);
    }

    fn tell(&self) {
        if let Some(completed) = self.control.completed.get(self.number) {
            completed.store(self.done + self.batch, Ordering::Relaxed);
        }
    }
}

/// How many I/Os were submitted at each depth: the first ones while the queue was filled, all others when one had just ended.
fn depths(depth: u64, ios: u64) -> [u64; DEPTHS] {
    let mut counts = [0; DEPTHS];
    let first = depth.min(ios);
    for at in 1..=first {
        if let Some(count) = counts.get_mut(depth_class(at)) {
            *count += 1;
        }
    }
    if let Some(count) = counts.get_mut(depth_class(depth)) {
        *count += ios - first;
    }
    counts
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use nvme_vfio::{Address, Controller, Options, QueueOptions, transport::EmulatedTransport};
    use nvme_vfio_emulator::{Config, Emulator};

    use super::*;

    fn controller(config: &str) -> Controller {
        Controller::open(&format!("emulated:{config}").parse::<Address>().unwrap()).unwrap()
    }

    fn job(namespace: Namespace, rw: Rw, blocks_per_io: u64, limit: Limit) -> Job {
        Job {
            number: 0,
            namespace,
            rw,
            first_lba: 0,
            blocks_per_io,
            places: namespace.blocks() / blocks_per_io,
            limit,
            seed: 7,
        }
    }

    fn run(
        controller: &Controller,
        job: &Job,
        depth: usize,
        queue_depth: u32,
        hook: &mut impl Hook,
    ) -> Result<JobResult, Error> {
        let mut queue = controller
            .io_queue(QueueOptions::with_depth(queue_depth))
            .unwrap();
        let length = (job.blocks_per_io * u64::from(job.namespace.block_size())) as usize;
        let buffers = (0..depth)
            .map(|_| controller.allocate(length).unwrap())
            .collect();
        run_worker(
            &mut queue,
            job,
            buffers,
            &Clock::monotonic(),
            &Control::new(1),
            hook,
        )
    }

    struct Yield;

    impl Hook for Yield {
        fn idle(&mut self) {
            std::thread::yield_now();
        }
    }

    #[test]
    fn a_size_is_moved_exactly() {
        let controller = controller("size=64M");
        let namespace = controller.only_namespace().unwrap();
        for rw in [Rw::Read, Rw::Write, Rw::RandRead, Rw::RandWrite] {
            for depth in [1, 7, 32] {
                let result = run(
                    &controller,
                    &job(namespace, rw, 8, Limit::Ios(1000)),
                    depth,
                    32,
                    &mut Yield,
                )
                .unwrap();
                assert_eq!(
                    (result.ios, result.bytes, result.latency.len()),
                    (1000, 4_096_000, 1000),
                    "{rw:?} at depth {depth}"
                );
                assert_eq!(result.depths.iter().sum::<u64>(), 1000);
                assert!(result.latency.max() > 0);
            }
        }
    }

    #[test]
    fn fewer_ios_than_depth_are_not_multiplied() {
        let controller = controller("size=64M");
        let namespace = controller.only_namespace().unwrap();
        let result = run(
            &controller,
            &job(namespace, Rw::Read, 8, Limit::Ios(3)),
            32,
            32,
            &mut Yield,
        )
        .unwrap();
        assert_eq!((result.ios, result.depths), (3, [1, 2, 0, 0, 0, 0, 0]));
    }

    #[test]
    fn a_time_is_kept() {
        let controller = controller("size=64M,backend=null");
        let namespace = controller.only_namespace().unwrap();
        let result = run(
            &controller,
            &job(
                namespace,
                Rw::RandRead,
                8,
                Limit::Time(Duration::from_millis(300)),
            ),
            8,
            8,
            &mut Yield,
        )
        .unwrap();
        assert!(result.ios > 0);
        assert!(
            (Duration::from_millis(300)..Duration::from_secs(60)).contains(&result.runtime),
            "{:?}",
            result.runtime
        );
    }

    #[test]
    fn ios_larger_than_a_transfer_run_on_a_queue_with_fewer_slots() {
        let controller = controller("size=64M,mdts=1,mqes=4");
        let namespace = controller.only_namespace().unwrap();
        let result = run(
            &controller,
            &job(namespace, Rw::RandRead, 128, Limit::Ios(200)),
            8,
            3,
            &mut Yield,
        )
        .unwrap();
        assert_eq!((result.ios, result.bytes), (200, 200 << 16));
    }

    #[test]
    fn writes_land_where_they_belong() {
        let controller = controller("size=1M");
        let namespace = controller.only_namespace().unwrap();
        let mut queue = controller.io_queue(QueueOptions::with_depth(4)).unwrap();
        let buffers = (0..4)
            .map(|_| {
                let mut buffer = controller.allocate(4096).unwrap();
                buffer.fill(0xa5);
                buffer
            })
            .collect();
        let job = Job {
            first_lba: 16,
            places: 3,
            ..job(namespace, Rw::Write, 8, Limit::Ios(9))
        };
        run_worker(
            &mut queue,
            &job,
            buffers,
            &Clock::monotonic(),
            &Control::new(1),
            &mut Yield,
        )
        .unwrap();
        let all = queue
            .read_blocking(&namespace, 0, controller.allocate(1 << 20).unwrap())
            .unwrap();
        let written = |lba: usize| all[lba * 512..][..512].iter().all(|byte| *byte == 0xa5);
        let lbas: Vec<_> = (0..2048).filter(|lba| written(*lba)).collect();
        assert_eq!(lbas, (16..40).collect::<Vec<_>>());
    }

    #[test]
    fn an_error_ends_the_run_and_is_told() {
        let controller = controller("size=1M");
        let namespace = controller.only_namespace().unwrap();
        let job = Job {
            first_lba: 2047,
            ..job(namespace, Rw::Read, 8, Limit::Ios(10))
        };
        let error = run(&controller, &job, 4, 4, &mut Yield).unwrap_err();
        assert_eq!(
            (error.kind(), error.exit_status()),
            (Kind::LbaOutOfRange, 1)
        );
        assert!(
            error.to_string().starts_with("job 1: a read failed: "),
            "{error}"
        );
    }

    #[test]
    fn a_stop_is_obeyed() {
        let controller = controller("size=64M,backend=null");
        let namespace = controller.only_namespace().unwrap();
        let job = job(
            namespace,
            Rw::RandRead,
            8,
            Limit::Time(Duration::from_secs(600)),
        );
        let control = Control::new(1);
        let mut queue = controller.io_queue(QueueOptions::with_depth(8)).unwrap();
        let buffers = (0..8).map(|_| controller.allocate(4096).unwrap()).collect();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while control.completed[0].load(Ordering::Relaxed) == 0 {
                    std::thread::sleep(Duration::from_millis(5));
                }
                control.stop.store(true, Ordering::Relaxed);
            });
            let result = run_worker(
                &mut queue,
                &job,
                buffers,
                &Clock::monotonic(),
                &control,
                &mut Yield,
            )
            .unwrap();
            assert!(result.runtime < Duration::from_secs(60));
            assert_eq!(control.completed[0].load(Ordering::Relaxed), result.ios);
        });
    }

    #[test]
    fn a_stepped_controller_is_driven_by_the_hook() {
        struct Step(Arc<Emulator>);
        impl Hook for Step {
            fn idle(&mut self) {
                self.0.step();
            }
        }
        let emulator = Emulator::new("size=64M,backend=null".parse::<Config>().unwrap()).unwrap();
        let transport = Arc::new(EmulatedTransport::stepped(Arc::clone(&emulator)));
        let controller = Controller::with_transport(transport, Options::default()).unwrap();
        let namespace = controller.only_namespace().unwrap();
        let result = run(
            &controller,
            &job(namespace, Rw::RandRead, 8, Limit::Ios(1280)),
            32,
            32,
            &mut Step(emulator),
        )
        .unwrap();
        assert_eq!(result.ios, 1280);
    }
}
