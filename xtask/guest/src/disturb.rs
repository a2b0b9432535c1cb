//! A controller that is taken down under load, by us or by others, and works again.

use std::collections::HashSet;
use std::fs;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, sleep};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::ValueEnum;
use nvme_vfio::{Controller, IoQueue, Namespace, Options, Outcome, QueueOptions};
use nvme_vfio_pci::PciAddress;

use crate::pattern::{Found, SECTOR, found, mark, vfio};

/// What is done to the controller.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum How {
    /// `Controller::recover`.
    Recover,
    /// The function is reset through sysfs, without a word to the driver.
    FunctionReset,
    /// Bus mastering is switched off, so that the controller fails at its next access to memory.
    BusMaster,
}

const QUEUES: usize = 2;
const DEPTH: u32 = 64;
const LENGTH: usize = 4096;
const PLACES: u64 = 1024;
const ROUND: u64 = 9;
/// How long a disturbance may take until I/O flows again.
const PATIENCE: Duration = Duration::from_secs(60);

/// What the threads tell each other.
#[derive(Default)]
struct Watch {
    stop: AtomicBool,
    /// I/Os that succeeded, by queue.
    done: [AtomicU64; QUEUES],
}

impl Watch {
    /// Waits until every queue has done `more` I/Os from now on.
    fn flow(&self, more: u64) -> Result<()> {
        let start = Instant::now();
        let before: Vec<u64> = self.read();
        while self
            .read()
            .iter()
            .zip(&before)
            .any(|(now, then)| now - then < more)
        {
            ensure!(
                start.elapsed() < PATIENCE && !self.stop.load(Ordering::Relaxed),
                "no I/O flows"
            );
            sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    fn read(&self) -> Vec<u64> {
        self.done
            .iter()
            .map(|done| done.load(Ordering::Relaxed))
            .collect()
    }
}

/// What a queue's owner has seen.
#[derive(Debug, Default)]
struct Seen {
    done: u64,
    timed_out: u64,
    reset: u64,
    /// How often the queue was created anew.
    rebuilt: u64,
}

pub(crate) fn disturb(address: PciAddress, how: How, times: u32) -> Result<()> {
    // A controller that has failed or was reset says so in its status, which is looked at once in a second: long before these deadlines, which a
    // busy machine must not reach, since a command that is too late has the controller reset once more.
    let options = Options {
        io_timeout: PATIENCE,
        admin_timeout: PATIENCE,
        ..Options::default()
    };
    let controller = Controller::open_with(&vfio(address), options)?;
    let namespace = controller.only_namespace()?;
    let mut queues = Vec::new();
    for _ in 0..QUEUES {
        queues.push(controller.io_queue(QueueOptions::with_depth(DEPTH))?);
    }
    let whole = PLACES as usize * LENGTH;
    let mut buffer = controller.allocate(whole)?;
    mark(&mut buffer, 0, ROUND);
    queues[0].write_blocking(&namespace, 0, buffer)?;

    let watch = Watch::default();
    let seen = thread::scope(|scope| -> Result<Vec<Seen>> {
        let mut threads = Vec::new();
        for (number, mut queue) in queues.drain(..).enumerate() {
            let (controller, watch) = (&controller, &watch);
            threads.push(scope.spawn(move || {
                let seen = load(controller, &namespace, &mut queue, watch, number);
                if seen.is_err() {
                    watch.stop.store(true, Ordering::Relaxed);
                }
                seen
            }));
        }
        let result = (0..times).try_for_each(|_| {
            watch.flow(200)?;
            // Before, since the queues' owners may have noticed and recovered by the time that this thread goes on.
            let resets = controller.events().resets;
            match how {
                How::Recover => controller.recover()?,
                How::FunctionReset => {
                    fs::write(format!("/sys/bus/pci/devices/{address}/reset"), "1")?
                }
                How::BusMaster => controller.transport().set_bus_master(false)?,
            }
            watch.flow(200)?;
            ensure!(controller.events().resets > resets);
            Ok(())
        });
        watch.stop.store(true, Ordering::Relaxed);
        let seen = threads
            .into_iter()
            .map(|thread| match thread.join() {
                Ok(seen) => seen,
                Err(_) => bail!("a thread panicked"),
            })
            .collect::<Result<Vec<_>>>();
        // What a queue's owner has found is the cause where both have failed.
        let seen = seen?;
        result?;
        Ok(seen)
    })?;
    let events = controller.events();
    println!("{seen:?}, {events:?}");
    ensure!(events.resets == u64::from(times), "{events:?}");
    ensure!((events.unknown, events.stale) == (0, 0), "{events:?}");
    for seen in &seen {
        ensure!(seen.rebuilt == u64::from(times), "{seen:?} was not told");
        // Where the controller fails, what was in flight is lost. Where it is stopped, all of it may have ended before.
        let lost = how == How::Recover || seen.reset + seen.timed_out >= u64::from(times);
        ensure!(lost, "{seen:?} has lost nothing");
    }
    ensure!(events.timeouts == 0, "{events:?}");
    ensure!(controller.quarantined() == 0);
    println!("works again");
    Ok(())
}

/// Reads at full depth until told to stop. Every command is reported once, and every successful read is right.
fn load(
    controller: &Controller,
    namespace: &Namespace,
    queue: &mut IoQueue,
    watch: &Watch,
    number: usize,
) -> Result<Seen> {
    let blocks = LENGTH as u64 / u64::from(namespace.block_size());
    let sectors = (LENGTH / SECTOR) as u64;
    let mut spare = Vec::new();
    for _ in 0..queue.depth() {
        spare.push(controller.allocate(LENGTH)?);
    }
    let mut seen = Seen::default();
    let mut out = HashSet::new();
    let mut token = 0;
    let mut checked = Instant::now();
    let mut heard = checked;
    loop {
        let stop = watch.stop.load(Ordering::Relaxed);
        if stop && out.is_empty() {
            return Ok(seen);
        }
        if !stop && !queue.needs_rebuild() {
            while let Some(mut buffer) = spare.pop() {
                buffer.fill(0x11);
                let place = token % PLACES;
                match queue.read(namespace, place * blocks, buffer, token) {
                    Ok(()) => {
                        out.insert(token);
                        token += 1;
                    }
                    Err(refused) => {
                        spare.extend(refused.buffer);
                        break;
                    }
                }
            }
        }
        let now = Instant::now();
        if now.duration_since(checked) > Duration::from_millis(10) {
            checked = now;
            // An Abort that got no answer is an error, and no harm where the reset that followed has helped.
            if let Err(error) = queue.check_deadlines(now) {
                ensure!(queue.needs_rebuild(), "check_deadlines: {error}");
            }
        }
        match queue.poll() {
            Some(completion) => {
                heard = now;
                ensure!(
                    out.remove(&completion.token),
                    "{} was reported twice",
                    completion.token
                );
                match completion.outcome {
                    Outcome::Done => {
                        completion.result()?;
                        let buffer = completion.buffer.as_ref().context("no buffer")?;
                        let first = completion.token % PLACES * sectors;
                        let right = found(buffer, first).all(|found| found == Found::Round(ROUND));
                        ensure!(right, "wrong data from sector {first} on");
                        seen.done += 1;
                        watch.done[number].fetch_add(1, Ordering::Relaxed);
                    }
                    Outcome::Reset => seen.reset += 1,
                    Outcome::TimedOut => seen.timed_out += 1,
                    other => bail!("a read ended with {other:?}"),
                }
                spare.extend(completion.buffer);
            }
            // A reset after this `poll` is seen by the next.
            None if queue.needs_rebuild() && out.is_empty() => {
                queue.rebuild()?;
                seen.rebuilt += 1;
                spare.extend(queue.reclaim().map(|(_, buffer)| buffer));
            }
            None => ensure!(
                now.duration_since(heard) < PATIENCE,
                "{} commands were never reported",
                out.len()
            ),
        }
    }
}
