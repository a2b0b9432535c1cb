//! Faults, resets and waits in any order, with books kept of every I/O and buffer.

use super::*;
use nvme_vfio_seeded::seeded;

/// What a round of the storm does.
#[derive(Debug, Clone)]
enum Step {
    /// Submits a read of so many pages, at an odd address within the buffer if it is to be misaligned.
    Read {
        pages: usize,
        misaligned: bool,
    },
    /// Submits a vectored read of buffers of so many pages.
    Vector(Vec<usize>),
    /// The next read but `skip` suffers.
    Fault {
        skip: u64,
        fault: CommandFault,
    },
    /// Lets the controller work.
    Work,
    /// Looks for completions, so many times.
    Poll(usize),
    /// Lets time pass.
    Pass(Duration),
    /// Lets hanging commands go on.
    Release,
    Recover,
    Rebuild,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let fault = prop_oneof![
        3 => Just(CommandFault::Hang(OnAbort::NotAborted)),
        2 => Just(CommandFault::Hang(OnAbort::Aborted)),
        2 => (1_u64..20).prop_map(CommandFault::Delay),
        2 => Just(CommandFault::Status(Status::UNRECOVERED_READ_ERROR)),
        1 => Just(CommandFault::DuplicateCompletion),
        1 => Just(CommandFault::WrongCid(0xfffe)),
        1 => Just(CommandFault::StalePhase),
        1 => any::<u16>().prop_map(CommandFault::WrongSqHead),
    ];
    let step = prop_oneof![
        6 => (1_usize..400, any::<bool>()).prop_map(|(pages, misaligned)| Step::Read { pages, misaligned }),
        3 => prop::collection::vec(1_usize..200, 1..5).prop_map(Step::Vector),
        3 => (0_u64..6, fault).prop_map(|(skip, fault)| Step::Fault { skip, fault }),
        5 => Just(Step::Work),
        5 => (1_usize..8).prop_map(Step::Poll),
        3 => prop_oneof![Just(2 * HOUR), Just(HOUR / 2), Just(Duration::from_secs(2))].prop_map(Step::Pass),
        1 => Just(Step::Release),
        1 => Just(Step::Recover),
        2 => Just(Step::Rebuild),
    ];
    prop::collection::vec(step, 1..60)
}

/// What was submitted, reported and given back.
#[derive(Default)]
struct Books {
    open: HashMap<u64, usize>,
    /// Bytes that were not given back with their report, less those that could be reclaimed (which may come first).
    kept: HashMap<u64, i64>,
    /// What was given back, filled with a pattern: nothing may write there any more.
    back: Vec<Buffer>,
}

const PATTERN: u8 = 0xa5;

impl Books {
    fn take(&mut self, mut buffer: Buffer) -> usize {
        buffer.fill(PATTERN);
        let length = buffer.len();
        self.back.push(buffer);
        length
    }

    fn reported(&mut self, completion: nvme_vfio::Completion) {
        let length = self
            .open
            .remove(&completion.token)
            .expect("reported once, and only what was submitted");
        let mut given = 0;
        for buffer in completion
            .buffer
            .into_iter()
            .chain(completion.vector.into_iter().flat_map(|vector| *vector))
        {
            given += self.take(buffer);
        }
        match completion.outcome {
            Outcome::Done | Outcome::Reset => assert_eq!(given, length),
            _ => {
                assert_eq!(given, 0, "memory given back without proof");
                *self.kept.entry(completion.token).or_default() += length as i64;
            }
        }
    }

    fn settle(&mut self, queue: &mut IoQueue) {
        let reclaimed: Vec<_> = queue.reclaim().collect();
        for (token, buffer) in reclaimed {
            let length = self.take(buffer);
            *self.kept.entry(token).or_default() -= length as i64;
        }
        assert_eq!(queue.in_flight(), self.open.len());
    }
}

/// Whatever happens in whatever order: every I/O is reported once, all memory comes back once, and nothing is written to what came back.
fn storm(
    way: Way,
    steps: Vec<Step>,
    depth: u32,
    function: bool,
    mild: bool,
) -> Result<(), TestCaseError> {
    let recovery = match (mild, function) {
        (true, _) => RecoveryLimit::Abort,
        (_, false) => RecoveryLimit::Controller,
        (_, true) => RecoveryLimit::Function,
    };
    let bench = bench(way, options(recovery));
    let mut queue = bench
        .controller
        .io_queue(QueueOptions {
            depth,
            max_transfer: 64 << 10,
            ..QueueOptions::default()
        })
        .unwrap();
    let mut books = Books::default();
    let mut now = Instant::now();
    let mut token = 0;
    for step in steps {
        match step {
            Step::Read { pages, misaligned } => {
                token += 1;
                let length = pages * 4096;
                let (head, buffer) = bench
                    .controller
                    .allocate(length + 4096)
                    .unwrap()
                    .split_at(if misaligned { 512 } else { 0 });
                let (buffer, tail) = buffer.split_at(length);
                drop((head, tail));
                match queue.read(&bench.namespace, 0, buffer, token) {
                    Ok(()) => drop(books.open.insert(token, length)),
                    Err(refused) => prop_assert_eq!(refused.buffer.unwrap().len(), length),
                }
            }
            Step::Vector(pages) => {
                token += 1;
                let buffers: Vec<_> = pages
                    .iter()
                    .map(|pages| bench.controller.allocate(pages * 4096).unwrap())
                    .collect();
                let length = buffers.iter().map(|buffer| buffer.len()).sum();
                match queue.read_vectored(&bench.namespace, 0, buffers, token) {
                    Ok(()) => drop(books.open.insert(token, length)),
                    Err(refused) => prop_assert_eq!(refused.vector.unwrap().len(), pages.len()),
                }
            }
            Step::Fault { skip, fault } => bench.emulator.inject(Fault::on(
                Matcher::io().opcode(READ).nth(skip + 1).times(1),
                fault,
            )),
            Step::Work => {
                queue.ring();
                for _ in 0..5 {
                    bench.emulator.step();
                }
            }
            Step::Poll(times) => (0..times)
                .filter_map(|_| queue.poll())
                .for_each(|completion| books.reported(completion)),
            Step::Pass(time) => {
                now += time;
                queue.check_deadlines(now).unwrap();
            }
            Step::Release => drop(bench.emulator.release()),
            Step::Recover => {
                let _ = bench.controller.recover();
            }
            Step::Rebuild => queue.rebuild().unwrap(),
        }
        books.settle(&mut queue);
    }
    // The end of the storm.
    bench.emulator.clear_faults();
    bench.emulator.release();
    for _ in 0..200 {
        queue.ring();
        bench.emulator.step();
        now += 2 * HOUR;
        queue.check_deadlines(now).unwrap();
        while let Some(completion) = queue.poll() {
            books.reported(completion);
        }
        books.settle(&mut queue);
    }
    prop_assert!(books.open.is_empty(), "never reported: {:?}", books.open);
    if recovery != RecoveryLimit::Abort {
        bench.controller.recover().unwrap();
        prop_assert!(queue.poll().is_none());
        books.settle(&mut queue);
        prop_assert!(
            books.kept.values().all(|kept| *kept == 0),
            "never given back: {:?}",
            books.kept
        );
        queue.rebuild().unwrap();
        bench.works(&mut queue);
    }
    drop(queue);
    while bench.emulator.step() > 0 {}
    for buffer in &books.back {
        prop_assert!(
            buffer.iter().all(|byte| *byte == PATTERN),
            "written after it was given back"
        );
    }
    prop_assert_eq!(bench.controller.quarantined(), 0);
    prop_assert_eq!(bench.emulator.iommu().fault_count(), 0);
    Ok(())
}

proptest! {
    #![proptest_config(seeded(96))]

    #[test]
    fn every_io_is_reported_once_in_a_storm(steps in steps(), depth in 1_u32..6, function in any::<bool>(), mild in any::<bool>()) {
        storm(Way::InProcess, steps, depth, function, mild)?;
    }
}

proptest! {
    #![proptest_config(seeded(24))]

    #[test]
    fn every_io_is_reported_once_in_a_storm_over_vfio_user(steps in steps(), depth in 1_u32..6, function in any::<bool>(), mild in any::<bool>()) {
        storm(Way::VfioUser, steps, depth, function, mild)?;
    }
}
