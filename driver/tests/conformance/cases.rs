//! What the driver does on any controller that works. Whoever takes this in says with `open` and `open_with` which one that is; its data
//! is overwritten.

use std::collections::HashSet;
use std::error::Error as StdError;
use std::thread;
use std::time::Instant;

use nvme_vfio::{
    Controller, Error, IoQueue, Namespace, Options, Outcome, QueueOptions, SubmitError,
};
use nvme_vfio_queues::command::LogPageId;
use nvme_vfio_queues::features::Select;
use nvme_vfio_queues::{BlockCount, Command, DataPointer, FeatureId, Status};

use super::common::Random;
use super::{open, open_with};

type Result = std::result::Result<(), Box<dyn StdError>>;

pub(crate) fn first(controller: &Controller) -> Namespace {
    let nsid = controller.namespaces().unwrap()[0];
    controller.namespace(nsid).unwrap()
}

/// Writes a pattern of `length` bytes at `lba`, reads it into another buffer, and compares, also the blocks around it.
fn round_trip(
    controller: &Controller,
    queue: &mut IoQueue,
    namespace: &Namespace,
    lba: u64,
    length: usize,
    random: &mut Random,
) {
    let block = namespace.block_size() as usize;
    let around = 2 * block;
    let mut whole = controller.allocate(length + around).unwrap();
    whole.fill(0xee);
    queue.write_blocking(namespace, lba - 1, whole).unwrap();

    let mut data = controller.allocate(length).unwrap();
    random.fill(&mut data);
    let expected = data.to_vec();
    queue.write_blocking(namespace, lba, data).unwrap();

    let mut whole = controller.allocate(length + around).unwrap();
    whole.fill(0x11);
    let whole = queue.read_blocking(namespace, lba - 1, whole).unwrap();
    assert!(
        whole[..block].iter().all(|byte| *byte == 0xee),
        "the block before LBA {lba} was changed by {length} bytes"
    );
    assert!(
        whole[block..block + length] == expected,
        "{length} bytes at LBA {lba} differ"
    );
    assert!(
        whole[block + length..].iter().all(|byte| *byte == 0xee),
        "the block after {length} bytes at {lba} was changed"
    );
}

#[test]
fn opens_and_tells_what_it_is() -> Result {
    let controller = open();
    assert!(!controller.identify().model_number().to_string().is_empty());
    assert!(controller.io_queues() >= 1);
    assert!(controller.capabilities().mqes() >= 2);
    let smart = controller.log_page(LogPageId::SMART_HEALTH, u32::MAX, 512)?;
    assert_eq!(smart.len(), 512);
    // SPDK's target has nothing to say about health. That Identify and Read are supported every controller says, in whole words.
    let effects = controller.log_page(LogPageId::COMMANDS_SUPPORTED_AND_EFFECTS, 0, 4096)?;
    let supported = |place: usize| effects[place * 4] & 1 == 1;
    assert!(supported(0x06) && supported(256 + 0x02));
    controller.feature(FeatureId::TEMPERATURE_THRESHOLD, Select::Current, 0)?;
    Ok(())
}

#[test]
fn every_size_comes_back_as_it_was_written() {
    let controller = open();
    let namespace = first(&controller);
    let mut queue = controller.io_queue(QueueOptions::with_depth(32)).unwrap();
    let block = namespace.block_size() as usize;
    let mut random = Random::seeded("every_size");
    let longest = (8 << 20) / block;
    let mut counts: Vec<usize> = Vec::new();
    let mut power = 1;
    while power <= longest {
        counts.extend([power - 1, power, power + 1]);
        power *= 2;
    }
    counts.extend((0..200).map(|_| {
        let scale = random.below(12);
        1 + random.below(1 << scale) as usize
    }));
    for count in counts
        .into_iter()
        .filter(|count| (1..=longest).contains(count))
    {
        let lba = 1 + random.below(namespace.blocks() - count as u64 - 2);
        round_trip(
            &controller,
            &mut queue,
            &namespace,
            lba,
            count * block,
            &mut random,
        );
    }
}

#[test]
fn buffers_may_begin_at_any_dword() {
    let controller = open();
    let namespace = first(&controller);
    let mut queue = controller.io_queue(QueueOptions::with_depth(4)).unwrap();
    let block = namespace.block_size() as usize;
    let mut random = Random::seeded("any_dword");
    for offset in [4, 8, 508, 512, 516, 2048, 4092] {
        for count in [1, 2, 4096 / block + 1, 40] {
            let mut data = controller.allocate(count * block).unwrap();
            random.fill(&mut data);
            let expected = data.to_vec();
            queue.write_blocking(&namespace, 7, data).unwrap();
            let (_, rest) = controller
                .allocate(offset + count * block)
                .unwrap()
                .split_at(offset);
            let rest = queue.read_blocking(&namespace, 7, rest).unwrap();
            assert!(rest[..] == expected, "offset {offset}, {count} blocks");
        }
    }
}

#[test]
fn vectors_are_joined_and_cut() {
    let controller = open();
    let namespace = first(&controller);
    let mut queue = controller.io_queue(QueueOptions::with_depth(8)).unwrap();
    let block = namespace.block_size() as usize;
    let mut random = Random::seeded("vectors");
    // Whole pages, which PRPs join; blocks, which each take a command; and one that is longer than a transfer may be.
    let big = controller.max_transfer().unwrap_or(1 << 20).min(1 << 20) * 2;
    for lengths in [
        vec![4096; 5],
        vec![block; 5],
        vec![4096.max(block), 8192.max(block), block, big, 3 * block],
    ] {
        let total: usize = lengths.iter().sum();
        let mut written = Vec::new();
        let buffers = lengths.iter().map(|length| {
            let mut buffer = controller.allocate(*length).unwrap();
            random.fill(&mut buffer);
            written.extend_from_slice(&buffer);
            buffer
        });
        let buffers: Vec<_> = buffers.collect();
        if !total.is_multiple_of(block) {
            continue;
        }
        queue.write_vectored(&namespace, 100, buffers, 5).unwrap();
        let completion = queue.wait().unwrap().unwrap();
        completion.result().unwrap();
        assert_eq!(
            (
                completion.token,
                completion.vector.as_ref().map(|vector| vector.len())
            ),
            (5, Some(lengths.len()))
        );

        let whole = queue
            .read_blocking(&namespace, 100, controller.allocate(total).unwrap())
            .unwrap();
        assert!(whole[..] == written, "{lengths:?}");
        let buffers = lengths
            .iter()
            .map(|length| controller.allocate(*length).unwrap())
            .collect();
        queue.read_vectored(&namespace, 100, buffers, 6).unwrap();
        let completion = queue.wait().unwrap().unwrap();
        completion.result().unwrap();
        let read: Vec<u8> = completion
            .vector
            .unwrap()
            .iter()
            .flat_map(|buffer| buffer.to_vec())
            .collect();
        assert!(read == written, "{lengths:?}");
    }
}

#[test]
fn vectors_that_prps_cannot_carry_are_refused() {
    let controller = open();
    let namespace = first(&controller);
    let mut queue = controller.io_queue(QueueOptions::with_depth(8)).unwrap();
    let block = namespace.block_size() as usize;
    // Each piece ends in the middle of a block, and not on a page.
    let piece = || controller.allocate(block).unwrap().split_at(block / 2).0;
    let refused = queue
        .read_vectored(&namespace, 0, vec![piece(), piece()], 1)
        .unwrap_err();
    assert!(
        matches!(refused.error, SubmitError::Segment { .. }),
        "{refused:?}"
    );
    assert_eq!(refused.vector.map(|vector| vector.len()), Some(2));
    assert_eq!(queue.in_flight(), 0);
}

#[test]
fn what_cannot_be_right_is_refused_with_the_buffer() {
    let controller = open();
    let namespace = first(&controller);
    let mut queue = controller.io_queue(QueueOptions::with_depth(4)).unwrap();
    let block = namespace.block_size() as usize;
    let end = namespace.blocks();
    let buffer = |length| controller.allocate(length).unwrap();

    for (lba, blocks) in [
        (end, 1),
        (end - 1, 2),
        (u64::MAX, 1),
        (u64::MAX - 1, 4),
        (0, 0),
    ] {
        let length = (blocks as usize * block).max(1);
        let refused = queue.read(&namespace, lba, buffer(length), 1).unwrap_err();
        let expected = match blocks {
            0 => matches!(refused.error, SubmitError::Length { .. }),
            _ => matches!(refused.error, SubmitError::OutOfRange { size, .. } if size == end),
        };
        assert!(expected, "LBA {lba}, {blocks} blocks: {}", refused.error);
        assert_eq!(refused.buffer.map(|buffer| buffer.len()), Some(length));
    }
    let refused = queue
        .write(&namespace, 0, buffer(block + 4), 1)
        .unwrap_err();
    assert!(matches!(refused.error, SubmitError::Length { .. }));
    let (_, odd) = buffer(block + 2).split_at(2);
    let refused = queue.write(&namespace, 0, odd, 1).unwrap_err();
    assert!(
        matches!(refused.error, SubmitError::Misaligned { .. }),
        "{}",
        refused.error
    );
    // Nothing of it has reached the controller, and the last block can still be read.
    assert_eq!(queue.in_flight(), 0);
    queue
        .read_blocking(&namespace, end - 1, buffer(block))
        .unwrap();
}

#[test]
fn a_queue_takes_as_many_as_it_has_slots() {
    for depth in [1, 3, 31] {
        let controller = open();
        let namespace = first(&controller);
        let mut queue = controller
            .io_queue(QueueOptions::with_depth(depth))
            .unwrap();
        let block = namespace.block_size() as usize;
        let depth = queue.depth();
        for round in 0..5 {
            for token in 0..depth as u64 {
                queue
                    .read(
                        &namespace,
                        token,
                        controller.allocate(block).unwrap(),
                        round * 1000 + token,
                    )
                    .unwrap();
            }
            let refused = queue
                .read(&namespace, 0, controller.allocate(block).unwrap(), 9)
                .unwrap_err();
            assert_eq!(refused.error, SubmitError::QueueFull);
            assert!(refused.buffer.is_some());
            let mut seen = HashSet::new();
            while let Some(completion) = queue.wait().unwrap() {
                completion.result().unwrap();
                assert!(completion.buffer.is_some());
                assert!(
                    seen.insert(completion.token),
                    "{} was reported twice",
                    completion.token
                );
            }
            assert_eq!(
                seen,
                (0..depth as u64)
                    .map(|token| round * 1000 + token)
                    .collect()
            );
        }
    }
}

#[test]
fn large_io_runs_on_the_smallest_queue() {
    let controller = open();
    let namespace = first(&controller);
    let mut queue = controller
        .io_queue(QueueOptions {
            max_transfer: 8192,
            ..QueueOptions::with_depth(1)
        })
        .unwrap();
    let mut random = Random::seeded("large_on_small");
    round_trip(&controller, &mut queue, &namespace, 9, 3 << 20, &mut random);
    // Two at once on three slots, with a small one between them.
    drop(queue);
    let mut queue = controller
        .io_queue(QueueOptions {
            max_transfer: 8192,
            ..QueueOptions::with_depth(3)
        })
        .unwrap();
    let block = namespace.block_size() as usize;
    queue
        .read(&namespace, 0, controller.allocate(block).unwrap(), 1)
        .unwrap();
    queue
        .read(&namespace, 0, controller.allocate(1 << 20).unwrap(), 2)
        .unwrap();
    let mut seen = Vec::new();
    while let Some(completion) = queue.wait().unwrap() {
        completion.result().unwrap();
        seen.push((
            completion.token,
            completion.buffer.map(|buffer| buffer.len()),
        ));
    }
    seen.sort_unstable();
    assert_eq!(seen, [(1, Some(block)), (2, Some(1 << 20))]);
}

#[test]
fn raw_entries_answer_as_the_controller_does() {
    let controller = open();
    let namespace = first(&controller);
    let mut queue = controller.io_queue(QueueOptions::with_depth(4)).unwrap();
    let mut buffer = controller
        .allocate(namespace.block_size() as usize)
        .unwrap();
    buffer.fill(0xa5);
    let buffer = queue.write_blocking(&namespace, 3, buffer).unwrap();
    let mut target = controller
        .allocate(namespace.block_size() as usize)
        .unwrap();
    target.fill(0);
    let pointer = DataPointer {
        prp1: target.iova().0,
        prp2: 0,
    };
    let read = Command::read(namespace.id(), 3, BlockCount::ONE, pointer);
    // SAFETY: the entry's only address is that of `target`, which lives until the completion was polled.
    #[allow(unsafe_code)]
    unsafe { queue.submit_raw(read, 77) }.unwrap();
    let completion = queue.wait().unwrap().unwrap();
    assert_eq!(completion.token, 77);
    completion.result().unwrap();
    assert!(target[..] == buffer[..]);

    let beyond = Command::read(namespace.id(), namespace.blocks(), BlockCount::ONE, pointer);
    // SAFETY: as above.
    #[allow(unsafe_code)]
    unsafe { queue.submit_raw(beyond, 78) }.unwrap();
    let completion = queue.wait().unwrap().unwrap();
    assert_eq!(completion.outcome, Outcome::Done);
    assert!(
        completion.entry.status().is(Status::LBA_OUT_OF_RANGE),
        "{}",
        completion.entry.status()
    );
}

#[test]
fn a_completion_of_a_flush_has_no_buffer() {
    let controller = open();
    let namespace = first(&controller);
    let mut queue = controller.io_queue(QueueOptions::default()).unwrap();
    queue.flush(&namespace, 4).unwrap();
    let completion = queue.wait().unwrap().unwrap();
    completion.result().unwrap();
    assert!(completion.buffer.is_none() && completion.token == 4);
    queue.flush_blocking(&namespace).unwrap();
}

#[test]
fn queues_run_side_by_side_and_move_between_threads() {
    let controller = open();
    let namespace = first(&controller);
    let count = controller.io_queues().min(4);
    let mut queues: Vec<IoQueue> = (0..count)
        .map(|_| controller.io_queue(QueueOptions::with_depth(16)).unwrap())
        .collect();
    let ids: HashSet<u16> = queues.iter().map(IoQueue::id).collect();
    assert_eq!(ids.len(), usize::from(count));
    for round in 0..3_u64 {
        let threads: Vec<_> = queues
            .drain(..)
            .enumerate()
            .map(|(index, mut queue)| {
                let controller = controller.clone();
                thread::spawn(move || {
                    let mut random = Random::seeded("side_by_side");
                    let share = namespace.blocks() / 8;
                    for _ in 0..50 {
                        let lba = 1 + index as u64 * share + random.below(share - 64);
                        let length =
                            (1 + random.below(16) as usize) * namespace.block_size() as usize;
                        round_trip(
                            &controller,
                            &mut queue,
                            &namespace,
                            lba,
                            length,
                            &mut random,
                        );
                    }
                    queue
                })
            })
            .collect();
        queues = threads
            .into_iter()
            .map(|thread| thread.join().unwrap())
            .collect();
        // Another order, so that each queue meets another thread and place.
        queues.rotate_left(round as usize % usize::from(count));
    }
}

#[test]
fn queue_identifiers_are_used_again() {
    let controller = open_with(Options {
        io_queues: 2,
        ..Options::default()
    });
    let granted = controller.io_queues();
    for _ in 0..10 {
        let queues: Vec<_> = (0..granted)
            .map(|_| controller.io_queue(QueueOptions::with_depth(2)).unwrap())
            .collect();
        assert!(matches!(
            controller.io_queue(QueueOptions::default()),
            Err(Error::NoQueue { .. })
        ));
        drop(queues);
    }
}

#[test]
fn a_queue_may_be_dropped_with_commands_in_flight() {
    let controller = open();
    let namespace = first(&controller);
    for _ in 0..20 {
        let mut queue = controller.io_queue(QueueOptions::with_depth(16)).unwrap();
        for token in 0..16 {
            queue
                .read(
                    &namespace,
                    token,
                    controller
                        .allocate(4096.max(namespace.block_size() as usize))
                        .unwrap(),
                    token,
                )
                .unwrap();
        }
        queue.ring();
    }
    assert_eq!(controller.quarantined(), 0);
    let mut queue = controller.io_queue(QueueOptions::default()).unwrap();
    queue
        .read_blocking(
            &namespace,
            0,
            controller
                .allocate(namespace.block_size() as usize)
                .unwrap(),
        )
        .unwrap();
}

#[test]
fn a_reset_ends_every_command_once_and_the_queue_is_rebuilt() {
    let controller = open();
    let namespace = first(&controller);
    let block = namespace.block_size() as usize;
    let mut queue = controller.io_queue(QueueOptions::with_depth(8)).unwrap();
    for round in 0..10 {
        for token in 0..8 {
            queue
                .read(
                    &namespace,
                    token,
                    controller.allocate(block).unwrap(),
                    token,
                )
                .unwrap();
        }
        if round % 2 == 0 {
            queue.ring();
        }
        controller.recover().unwrap();
        assert!(queue.needs_rebuild());
        let refused = queue
            .read(&namespace, 0, controller.allocate(block).unwrap(), 99)
            .unwrap_err();
        assert_eq!(refused.error, SubmitError::Reset);
        if round % 3 == 0 {
            queue.rebuild().unwrap();
        }
        let mut seen = HashSet::new();
        while let Some(completion) = queue.poll() {
            // What the controller was told of may have ended before it was reset.
            let ended = round % 2 == 0 && completion.outcome == Outcome::Done;
            assert!(
                ended || completion.outcome == Outcome::Reset,
                "{:?} in round {round}",
                completion.outcome
            );
            assert!(
                completion.buffer.is_some(),
                "after a reset the memory is given back"
            );
            assert!(seen.insert(completion.token));
        }
        assert_eq!(seen.len(), 8);
        queue.rebuild().unwrap();
        queue
            .read_blocking(&namespace, 0, controller.allocate(block).unwrap())
            .unwrap();
    }
    assert_eq!(controller.events().resets, 10);
}

#[test]
fn deadlines_do_not_disturb_commands_that_are_in_time() {
    let controller = open();
    let namespace = first(&controller);
    let mut queue = controller.io_queue(QueueOptions::with_depth(16)).unwrap();
    let mut done = 0;
    for token in 0..2000 {
        while queue.is_full() {
            queue.check_deadlines(Instant::now()).unwrap();
            done += u64::from(
                queue
                    .poll()
                    .map(|completion| completion.result().unwrap())
                    .is_some(),
            );
        }
        queue
            .read(
                &namespace,
                token % 100,
                controller
                    .allocate(namespace.block_size() as usize)
                    .unwrap(),
                token,
            )
            .unwrap();
    }
    while let Some(completion) = queue.wait().unwrap() {
        completion.result().unwrap();
        done += 1;
    }
    assert_eq!(done, 2000);
    assert_eq!(controller.events(), Default::default());
}
