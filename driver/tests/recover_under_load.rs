//! `recover()` while four threads keep their queues full, again and again: every command is reported once, and every queue works
//! after it.

mod common;
#[path = "common/served.rs"]
mod served;

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use nvme_vfio::{Controller, IoQueue, Namespace, Options, Outcome, QueueOptions};
use served::{Doorbells, ServedProcess};

const THREADS: u64 = 4;
const DEPTH: u32 = 64;

/// Keeps a queue full until told to stop, and tells how many commands it reported.
fn load(
    controller: &Controller,
    mut queue: IoQueue,
    namespace: &Namespace,
    stop: &AtomicBool,
    rounds: &AtomicU64,
) -> u64 {
    let mut in_flight = HashSet::new();
    let mut token = 0;
    let mut reported = 0;
    let mut spare: Vec<_> = (0..DEPTH)
        .map(|_| controller.allocate(4096).unwrap())
        .collect();
    loop {
        let stopping = stop.load(Ordering::Relaxed);
        while !stopping && let Some(buffer) = spare.pop() {
            token += 1;
            match queue.read(namespace, token % 1000 * 8, buffer, token) {
                Ok(()) => assert!(in_flight.insert(token)),
                Err(refused) => {
                    spare.extend(refused.buffer);
                    break;
                }
            }
        }
        match queue.poll() {
            Some(completion) => {
                assert!(
                    in_flight.remove(&completion.token),
                    "{} was reported twice",
                    completion.token
                );
                assert!(
                    matches!(completion.outcome, Outcome::Done | Outcome::Reset),
                    "{:?}",
                    completion.outcome
                );
                if completion.outcome == Outcome::Done {
                    completion.result().unwrap();
                    rounds.fetch_add(1, Ordering::Relaxed);
                }
                spare.push(
                    completion
                        .buffer
                        .expect("a buffer comes back after success and after a reset"),
                );
                reported += 1;
            }
            None if queue.needs_rebuild() => {
                // Another reset may come while the queue is rebuilt; the next round tries again.
                let _ = queue.rebuild();
            }
            None if stopping && in_flight.is_empty() => break,
            None => thread::yield_now(),
        }
    }
    assert_eq!(spare.len(), DEPTH as usize);
    let buffer = queue
        .read_blocking(namespace, 0, spare.swap_remove(0))
        .unwrap();
    assert_eq!(buffer.len(), 4096);
    reported
}

/// Not a test by itself: what `ServedProcess` runs in a process of its own.
#[test]
fn serving_process() {
    served::serve_if_asked();
}

#[test]
fn every_command_is_reported_once_and_every_queue_works_after() {
    resets_under_load(&common::open(), 1000);
}

#[test]
fn so_it_is_with_a_controller_in_another_process() {
    for doorbells in [Doorbells::Mapped, Doorbells::ByMessage] {
        let server = ServedProcess::start("size=64M", doorbells);
        resets_under_load(&server.open(Options::default()).unwrap(), 100);
    }
}

fn resets_under_load(controller: &Controller, resets: u64) {
    let namespace = controller.only_namespace().unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let rounds = Arc::new(AtomicU64::new(0));
    let threads: Vec<_> = (0..THREADS)
        .map(|_| {
            let queue = controller
                .io_queue(QueueOptions::with_depth(DEPTH))
                .unwrap();
            let (controller, stop, rounds) =
                (controller.clone(), Arc::clone(&stop), Arc::clone(&rounds));
            thread::spawn(move || load(&controller, queue, &namespace, &stop, &rounds))
        })
        .collect();
    for _ in 0..resets {
        // Between two resets the load gets going again, so that each reset meets commands in flight.
        let seen = rounds.load(Ordering::Relaxed);
        while rounds.load(Ordering::Relaxed) < seen + 2 * u64::from(DEPTH) {
            thread::yield_now();
        }
        controller.recover().unwrap();
    }
    stop.store(true, Ordering::Relaxed);
    let reported: u64 = threads
        .into_iter()
        .map(|thread| thread.join().unwrap())
        .sum();
    println!("{resets} resets, {reported} commands reported");
    assert_eq!(controller.events().resets, resets);
    assert_eq!(controller.quarantined(), 0);
}
