//! From the arguments to the report.

use std::{sync::Arc, thread, time::SystemTime};

use nvme_vfio::{Address, Buffer, IoQueue, Options, QueueOptions, Transport};
use nvme_vfio_emulator::Config;

use super::{
    Plan, civil,
    clock::Clock,
    interrupt,
    pattern::{Pattern, Random},
    progress,
    report::Report,
    statistics::JobResult,
    summary::summary,
    worker::{Control, Hook, Job, Spin, run_worker},
};
use crate::{
    args::{BenchArgs, Format},
    error::{Error, Kind},
    guard,
    output::{print_json, print_text},
    session::Session,
};

/// How far the clock of the latencies may be from the system's over the whole run before the user is told.
const CLOCK_TOLERANCE: f64 = 0.01;

/// Empty polls before a job gives way to the thread of a controller of this process, which may wait for its core: some ten microseconds.
/// To give way at every one would leave a busy machine's processors to others for most of the time.
const PATIENCE: u32 = 1024;

/// Lets a controller of this process work.
struct Relax {
    transport: Arc<dyn Transport>,
    patience: u32,
    idle: u32,
}

impl Hook for Relax {
    fn idle(&mut self) {
        self.idle += 1;
        if self.idle >= self.patience {
            self.idle = 0;
            self.transport.relax();
        } else {
            std::hint::spin_loop();
        }
    }
}

/// How long to wait for a controller of this process before it is given way; `None` if it is no such controller.
fn patience(address: &Address) -> Option<u32> {
    let Address::Emulated(config) = address else {
        return None;
    };
    // A controller without a thread works only when it is given way.
    let stepped = config.parse::<Config>().is_ok_and(|config| config.stepped);
    Some(if stepped { 1 } else { PATIENCE })
}

/// Runs a benchmark and prints its result.
///
/// # Errors
/// Wrong options, whatever keeps the controller from being opened, and the first I/O that failed.
pub fn run(args: &BenchArgs) -> Result<(), Error> {
    let options = Options {
        io_queues: args.numjobs.max(1),
        ..Options::default()
    };
    let session = Session::open_with(&args.address, options)?;
    let namespace = session.namespace(args.namespace_id)?;
    let mut plan = Plan::new(args, u64::from(namespace.block_size()), namespace.blocks())?;
    let granted = session.controller.io_queues();
    if plan.numjobs > granted {
        return Err(Error::usage(
            format!(
                "--numjobs={} needs as many I/O queues, and {} granted {granted}",
                plan.numjobs, session.address
            ),
            format!("Use: --numjobs={granted}"),
        ));
    }
    if plan.rw.writes() && !args.force {
        guard::refuse(&session, &namespace, &format!("--rw={}", plan.rw.word()))?;
    }
    let mut seeds = Random::new(u64::MAX, plan.randseed);
    let mut jobs = Vec::new();
    for number in 0..usize::from(plan.numjobs) {
        let job = Job {
            number,
            namespace,
            rw: plan.rw,
            first_lba: plan.first_lba,
            blocks_per_io: plan.blocks_per_io,
            places: plan.places,
            limit: plan.limit,
            seed: seeds.next(),
        };
        jobs.push((job, Lane::new(&session, &plan, seeds.next())?));
    }
    if let Some((_, lane)) = jobs.first()
        && lane.buffers.len() < usize::from(plan.iodepth)
    {
        eprintln!(
            "The controller's queues are shorter: --iodepth={} is used",
            lane.buffers.len()
        );
        plan.iodepth = u16::try_from(lane.buffers.len()).unwrap_or(plan.iodepth);
    }
    let results = match patience(&session.address) {
        Some(patience) => {
            let transport = session.controller.transport();
            run_jobs(&plan, jobs, || Relax {
                transport: Arc::clone(transport),
                patience,
                idle: 0,
            })?
        }
        None => run_jobs(&plan, jobs, || Spin)?,
    };
    tell(&plan, &results, args.output.output_format)
}

/// What a job owns: its queue and its buffers.
struct Lane {
    queue: IoQueue,
    buffers: Vec<Buffer>,
}

impl Lane {
    fn new(session: &Session, plan: &Plan, seed: u64) -> Result<Self, Error> {
        let length = usize::try_from(plan.bs)
            .map_err(|_| Error::usage("--bs is larger than memory", "Make --bs smaller"))?;
        // An I/O that is split takes a slot for each of its commands.
        let commands = session
            .controller
            .max_transfer()
            .map_or(1, |limit| length.div_ceil(limit.max(1)));
        let depth = u32::try_from(commands)
            .unwrap_or(u32::MAX)
            .saturating_mul(u32::from(plan.iodepth));
        let queue = session
            .controller
            .io_queue(QueueOptions::with_depth(depth))?;
        let mut noise = Random::new(u64::MAX, seed);
        let buffers = (0..usize::from(plan.iodepth).min(queue.depth()))
            .map(|_| {
                let mut buffer = session.controller.allocate(length)?;
                if plan.rw.writes() {
                    // Drives and hypervisors treat zeros and repetitions in their own ways.
                    for chunk in buffer.chunks_mut(size_of::<u64>()) {
                        let bytes = noise.next().to_le_bytes();
                        chunk.copy_from_slice(bytes.get(..chunk.len()).unwrap_or_default());
                    }
                }
                Ok(buffer)
            })
            .collect::<Result<_, Error>>()?;
        Ok(Self { queue, buffers })
    }
}

/// Runs every job on a thread of its own.
fn run_jobs<H: Hook>(
    plan: &Plan,
    jobs: Vec<(Job, Lane)>,
    hook: impl Fn() -> H + Sync,
) -> Result<Vec<JobResult>, Error> {
    interrupt::watch();
    let clock = Clock::calibrated();
    let control = Control::new(jobs.len());
    let watcher = thread::current();
    let (began, stamp) = clock.moment();
    let results = thread::scope(|scope| {
        let mut handles = Vec::new();
        for (job, lane) in jobs {
            let (control, clock, watcher, hook) = (&control, &clock, &watcher, &hook);
            let thread = thread::Builder::new().name(format!("job {}", job.number + 1));
            let handle = thread
                .spawn_scoped(scope, move || {
                    let Lane { mut queue, buffers } = lane;
                    let result = run_worker(&mut queue, &job, buffers, clock, control, &mut hook());
                    watcher.unpark();
                    result
                })
                .map_err(|error| {
                    control
                        .stop
                        .store(true, std::sync::atomic::Ordering::Relaxed);
                    Error::new(Kind::Environment, format!("cannot start a thread: {error}"))
                })?;
            handles.push(handle);
        }
        let samples = progress::watch(plan, &control, || {
            handles.iter().all(thread::ScopedJoinHandle::is_finished)
        });
        let mut results = Vec::new();
        for (handle, samples) in handles.into_iter().zip(samples) {
            let result = handle
                .join()
                .map_err(|_| Error::new(Kind::Environment, "a job's thread panicked"))?;
            results.push(result.map(|result| JobResult { samples, ..result }));
        }
        Ok::<_, Error>(results)
    })?;
    let (ended, last) = clock.moment();
    let elapsed = ended.duration_since(began).as_secs_f64();
    let measured = clock.nanoseconds(stamp, last) as f64 * 1e-9;
    if (measured / elapsed - 1.0).abs() > CLOCK_TOLERANCE {
        eprintln!(
            "The clock of the latencies ({}) went {measured:.3} s in {elapsed:.3} s: they are off by as much",
            clock.name()
        );
    }
    results.into_iter().collect()
}

fn tell(plan: &Plan, results: &[JobResult], format: Format) -> Result<(), Error> {
    let Some((first, others)) = results.split_first() else {
        return Ok(());
    };
    let mut merged = first.clone();
    for result in others {
        merged.merge(result)?;
    }
    let ended = civil::since_epoch(SystemTime::now());
    match format {
        Format::Json if plan.group_reporting => {
            print_json(&Report::new(plan, std::slice::from_ref(&merged), ended))
        }
        Format::Json => print_json(&Report::new(plan, results, ended)),
        Format::Normal => print_text(&summary(
            plan,
            &merged,
            results,
            &civil::date_and_time(ended),
        )),
    }
}
