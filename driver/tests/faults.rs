//! What the driver does when the controller misbehaves, on the emulated controller with injected faults.

mod common;

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nvme_vfio::transport::EmulatedTransport;
use nvme_vfio::{
    CommandError, Controller, Error, IoQueue, Namespace, NotReady, Options, Outcome, QueueOptions,
    RecoveryLimit, SubmitError,
};
use nvme_vfio_emulator::{CommandFault, ControllerFault, Emulator, Fault, Matcher, OnAbort, Until};
use nvme_vfio_queues::Status;
use proptest::prelude::*;

const READ: u8 = 2;
const IDENTIFY: u8 = 6;

struct Bench {
    emulator: Arc<Emulator>,
    controller: Controller,
    namespace: Namespace,
}

/// An hour, so that no command's time is over by the clock: tests move the time themselves.
const HOUR: Duration = Duration::from_secs(3600);

/// Registers answer at once here, so that short waits for them are met by faults only.
fn options(recovery: RecoveryLimit) -> Options {
    Options {
        io_timeout: HOUR,
        abort_grace: HOUR,
        ready_timeout: Some(Duration::from_millis(100)),
        shutdown_timeout: Duration::from_millis(100),
        recovery,
        ..Options::default()
    }
}

fn emulator(config: &str) -> Arc<Emulator> {
    Emulator::new(config.parse().unwrap()).unwrap()
}

fn bench(recovery: RecoveryLimit) -> Bench {
    with_options(options(recovery))
}

fn with_options(options: Options) -> Bench {
    let emulator = emulator("size=64M");
    let controller = open(&emulator, options).unwrap();
    let namespace = controller.only_namespace().unwrap();
    Bench {
        emulator,
        controller,
        namespace,
    }
}

fn open(emulator: &Arc<Emulator>, options: Options) -> Result<Controller, Error> {
    Controller::with_transport(
        Arc::new(EmulatedTransport::stepped(Arc::clone(emulator))),
        options,
    )
}

impl Bench {
    fn queue(&self, depth: u32) -> IoQueue {
        self.controller
            .io_queue(QueueOptions::with_depth(depth))
            .unwrap()
    }

    fn read(&self, queue: &mut IoQueue, token: u64) {
        let mut buffer = self.controller.allocate(4096).unwrap();
        buffer.fill(0x77);
        queue
            .read(&self.namespace, token * 8, buffer, token)
            .unwrap();
    }

    fn hang(&self, on_abort: OnAbort) {
        self.emulator.inject(Fault::on(
            Matcher::io().opcode(READ).times(1),
            CommandFault::Hang(on_abort),
        ));
    }

    /// Lets the controller do all that it can.
    fn settle(&self, queue: &mut IoQueue) {
        queue.ring();
        while self.emulator.step() > 0 {}
    }

    /// Lets hours pass: the deadlines of what is in flight, and those after the Abort.
    fn let_hours_pass(&self, queue: &mut IoQueue) {
        self.settle(queue);
        let now = Instant::now();
        for hours in [0, 2, 4] {
            queue.check_deadlines(now + hours * HOUR).unwrap();
            self.settle(queue);
        }
    }

    /// A read must work now.
    fn works(&self, queue: &mut IoQueue) {
        queue.rebuild().unwrap();
        let buffer = self.controller.allocate(4096).unwrap();
        queue.read_blocking(&self.namespace, 0, buffer).unwrap();
    }
}

fn result_of(queue: &mut IoQueue) -> (u64, Result<u32, CommandError>, bool) {
    let completion = queue.wait().unwrap().unwrap();
    (
        completion.token,
        completion.result(),
        completion.buffer.is_some(),
    )
}

#[test]
fn a_read_that_never_ends_times_out_and_the_reset_frees_it() {
    let bench = bench(RecoveryLimit::Controller);
    let mut queue = bench.queue(4);
    bench.hang(OnAbort::NotAborted);
    bench.read(&mut queue, 1);
    bench.let_hours_pass(&mut queue);
    assert_eq!(
        result_of(&mut queue),
        (1, Err(CommandError::TimedOut), false)
    );
    assert!(queue.wait().unwrap().is_none(), "reported once");
    assert!(queue.needs_rebuild());
    assert_eq!(queue.poll().map(|completion| completion.token), None);
    let reclaimed: Vec<_> = queue
        .reclaim()
        .map(|(token, buffer)| (token, buffer.len()))
        .collect();
    assert_eq!(reclaimed, [(1, 4096)]);
    let events = bench.controller.events();
    assert_eq!(
        (
            events.timeouts,
            events.aborts,
            events.not_aborted,
            events.resets
        ),
        (1, 1, 1, 1)
    );
    bench.works(&mut queue);
}

#[test]
fn late_data_lands_in_quarantine() {
    let bench = bench(RecoveryLimit::Abort);
    let mut queue = bench.queue(4);
    // What the late data will be.
    let mut data = bench.controller.allocate(4096).unwrap();
    data.fill(0x99);
    queue.write_blocking(&bench.namespace, 8, data).unwrap();

    bench.hang(OnAbort::NotAborted);
    bench.read(&mut queue, 1);
    bench.let_hours_pass(&mut queue);
    assert_eq!(
        result_of(&mut queue),
        (1, Err(CommandError::TimedOut), false)
    );
    assert_eq!(
        (queue.overdue(), queue.reclaim().count()),
        (1, 0),
        "nothing has proven that the controller let go"
    );
    // The queue goes on with the slots that it has left, on other memory.
    for token in 10..20 {
        bench.read(&mut queue, token);
        assert_eq!(result_of(&mut queue), (token, Ok(0), true));
    }
    bench.emulator.release();
    bench.settle(&mut queue);
    assert!(
        queue.poll().is_none(),
        "a late completion is not reported again"
    );
    let reclaimed = queue.reclaim().next().unwrap();
    assert_eq!(reclaimed.0, 1);
    assert!(
        reclaimed.1.iter().all(|byte| *byte == 0x99),
        "the late data is in the quarantined memory"
    );
    assert_eq!((queue.overdue(), bench.controller.events().late), (0, 1));
    assert_eq!(bench.emulator.iommu().fault_count(), 0);
    bench.works(&mut queue);
}

#[test]
fn an_aborted_read_is_reported_with_the_controllers_status() {
    let bench = bench(RecoveryLimit::Controller);
    let mut queue = bench.queue(4);
    bench.hang(OnAbort::Aborted);
    bench.read(&mut queue, 1);
    bench.let_hours_pass(&mut queue);
    let (token, result, buffer) = result_of(&mut queue);
    let Err(CommandError::Status(status)) = result else {
        panic!("{result:?}")
    };
    assert!(status.is(Status::ABORT_REQUESTED), "{status}");
    assert!(token == 1 && buffer);
    assert_eq!(bench.controller.events().resets, 0);
    bench.works(&mut queue);
}

#[test]
fn a_large_read_with_a_part_that_hangs_is_reported_once() {
    for recovery in [RecoveryLimit::Abort, RecoveryLimit::Controller] {
        let bench = bench(recovery);
        let mut queue = bench.queue(8);
        bench.emulator.inject(Fault::on(
            Matcher::io().opcode(READ).nth(2).times(1),
            CommandFault::Hang(OnAbort::NotAborted),
        ));
        let length = 5 * bench.controller.max_transfer().unwrap();
        queue
            .read(
                &bench.namespace,
                0,
                bench.controller.allocate(length).unwrap(),
                3,
            )
            .unwrap();
        bench.let_hours_pass(&mut queue);
        assert_eq!(
            result_of(&mut queue),
            (3, Err(CommandError::TimedOut), false)
        );
        assert!(queue.wait().unwrap().is_none());
        if recovery == RecoveryLimit::Abort {
            assert_eq!(queue.reclaim().count(), 0);
            bench.emulator.release();
        }
        bench.settle(&mut queue);
        assert!(queue.poll().is_none());
        let reclaimed: Vec<_> = queue
            .reclaim()
            .map(|(token, buffer)| (token, buffer.len()))
            .collect();
        assert_eq!(reclaimed, [(3, length)]);
        bench.works(&mut queue);
    }
}

#[test]
fn an_error_in_one_part_of_a_large_read_is_its_result() {
    let bench = bench(RecoveryLimit::Controller);
    let mut queue = bench.queue(2);
    let fault = CommandFault::Status(Status::UNRECOVERED_READ_ERROR);
    bench
        .emulator
        .inject(Fault::on(Matcher::io().opcode(READ).nth(3).times(1), fault));
    let length = 6 * bench.controller.max_transfer().unwrap();
    queue
        .read(
            &bench.namespace,
            0,
            bench.controller.allocate(length).unwrap(),
            3,
        )
        .unwrap();
    let (token, result, buffer) = result_of(&mut queue);
    let Err(CommandError::Status(status)) = result else {
        panic!("{result:?}")
    };
    assert!(status.is(Status::UNRECOVERED_READ_ERROR), "{status}");
    assert!(token == 3 && buffer && queue.in_flight() == 0);
    assert_eq!(
        bench.controller.events().resets,
        0,
        "a media error is no reason for a reset"
    );
    bench.works(&mut queue);
}

#[test]
fn answers_for_commands_that_are_not_in_flight_are_not_believed() {
    for fault in [
        CommandFault::WrongCid(0xfffe),
        CommandFault::WrongCid(0x7ff0),
        CommandFault::DuplicateCompletion,
    ] {
        let bench = bench(RecoveryLimit::Controller);
        let mut queue = bench.queue(8);
        bench.emulator.inject(Fault::on(
            Matcher::io().opcode(READ).times(1),
            fault.clone(),
        ));
        for token in 0..4 {
            bench.read(&mut queue, token);
        }
        let mut seen = HashSet::new();
        while let Some(completion) = queue.wait().unwrap() {
            assert!(
                seen.insert(completion.token),
                "{fault:?}: {} was reported twice",
                completion.token
            );
        }
        assert_eq!(seen.len(), 4, "{fault:?}");
        bench.settle(&mut queue);
        assert!(queue.poll().is_none());
        queue.check_deadlines(Instant::now()).unwrap();
        let events = bench.controller.events();
        assert!(events.unknown + events.stale >= 1, "{fault:?}: {events:?}");
        assert_eq!(
            events.resets, 1,
            "{fault:?}: integrity of the queue is lost, so the controller is reset"
        );
        while queue.poll().is_some() {}
        bench.works(&mut queue);
    }
}

#[test]
fn a_wrong_submission_queue_head_does_no_harm() {
    let bench = bench(RecoveryLimit::Controller);
    let mut queue = bench.queue(4);
    bench
        .emulator
        .inject(Fault::on(Matcher::io(), CommandFault::WrongSqHead(0xfedc)));
    for token in 0..20 {
        bench.read(&mut queue, token);
        assert_eq!(result_of(&mut queue), (token, Ok(0), true));
    }
}

#[test]
fn a_controller_that_is_gone_ends_everything_and_keeps_the_memory() {
    let bench = bench(RecoveryLimit::Function);
    let mut queue = bench.queue(4);
    bench.hang(OnAbort::NotAborted);
    bench.read(&mut queue, 1);
    bench.settle(&mut queue);
    bench
        .emulator
        .inject(Fault::of_controller(ControllerFault::Gone));
    bench.read(&mut queue, 2);
    let error = queue.check_deadlines(Instant::now() + HOUR).unwrap_err();
    assert!(matches!(error, Error::Gone), "{error}");
    let mut seen = Vec::new();
    while let Some(completion) = queue.poll() {
        assert!(
            completion.buffer.is_none(),
            "nothing has proven that the controller let go"
        );
        seen.push((completion.token, completion.outcome));
    }
    seen.sort_by_key(|(token, _)| *token);
    assert_eq!(seen, [(1, Outcome::Gone), (2, Outcome::Gone)]);
    let refused = queue
        .read(
            &bench.namespace,
            0,
            bench.controller.allocate(4096).unwrap(),
            3,
        )
        .unwrap_err();
    assert_eq!(refused.error, SubmitError::Gone);
    assert!(matches!(queue.rebuild(), Err(Error::Gone)));
    assert!(matches!(bench.controller.namespaces(), Err(Error::Gone)));
    assert!(bench.controller.quarantined() >= 2 * 4096);
}

#[test]
fn a_fatal_status_is_noticed_and_cured() {
    let bench = bench(RecoveryLimit::Controller);
    let mut queue = bench.queue(4);
    bench
        .emulator
        .inject(Fault::of_controller(ControllerFault::Fatal));
    bench.read(&mut queue, 1);
    queue.check_deadlines(Instant::now() + HOUR).unwrap();
    assert_eq!(result_of(&mut queue), (1, Err(CommandError::Reset), true));
    assert!(queue.wait().unwrap().is_none());
    assert_eq!(bench.controller.events().resets, 1);
    bench.works(&mut queue);
}

#[test]
fn a_controller_that_is_fatal_at_enable_or_never_ready_is_refused_with_its_registers() {
    let emulator = emulator("size=16M");
    emulator.inject(Fault::Controller(
        ControllerFault::NeverReady,
        Until::Cleared,
    ));
    let error = open(&emulator, options(RecoveryLimit::Function)).unwrap_err();
    let Error::NotReady {
        what: NotReady::Enable(_),
        registers,
    } = error
    else {
        panic!("{error}")
    };
    assert_eq!(registers.cc & 1, 1);
    assert_ne!(registers.asq, 0);
    emulator.clear_faults();
    open(&emulator, options(RecoveryLimit::Function)).unwrap();
}

#[test]
fn a_controller_that_does_not_stop_needs_a_function_reset() {
    for (recovery, comes_back) in [
        (RecoveryLimit::Controller, false),
        (RecoveryLimit::Function, true),
    ] {
        let bench = bench(recovery);
        let mut queue = bench.queue(4);
        bench.hang(OnAbort::NotAborted);
        bench.read(&mut queue, 1);
        bench.settle(&mut queue);
        bench
            .emulator
            .inject(Fault::of_controller(ControllerFault::NeverDisabled));
        assert_eq!(bench.controller.recover().is_ok(), comes_back);
        let completion = queue.wait().unwrap().unwrap();
        let expected = if comes_back {
            Outcome::Reset
        } else {
            Outcome::Gone
        };
        assert_eq!(
            (completion.outcome, completion.buffer.is_some()),
            (expected, comes_back)
        );
        if comes_back {
            bench.works(&mut queue);
        }
    }
}

#[test]
fn a_shutdown_that_never_completes_does_not_hold_up_the_end() {
    let bench = bench(RecoveryLimit::Controller);
    bench.emulator.inject(Fault::of_controller(
        ControllerFault::ShutdownNeverCompletes,
    ));
    let emulator = Arc::clone(&bench.emulator);
    drop(bench);
    assert_eq!(emulator.iommu().mappings(), [], "everything was unmapped");
}

#[test]
fn an_admin_command_that_hangs_leads_to_a_reset() {
    let bench = with_options(Options {
        admin_timeout: Duration::from_millis(200),
        ..options(RecoveryLimit::Controller)
    });
    let mut queue = bench.queue(4);
    bench.emulator.inject(Fault::on(
        Matcher::admin().opcode(IDENTIFY).times(1),
        CommandFault::Hang(OnAbort::NotAborted),
    ));
    assert!(matches!(
        bench.controller.namespaces(),
        Err(Error::TimedOut { .. })
    ));
    assert_eq!(bench.controller.events().resets, 1);
    assert_eq!(bench.controller.namespaces().unwrap(), [1]);
    bench.works(&mut queue);
}

#[test]
fn few_queues_or_none_are_granted() {
    let emulator = emulator("size=16M,queues=1");
    let controller = open(&emulator, Options::default()).unwrap();
    assert_eq!(controller.io_queues(), 1);
    let queue = controller.io_queue(QueueOptions::default()).unwrap();
    assert!(matches!(
        controller.io_queue(QueueOptions::default()),
        Err(Error::NoQueue { granted: 1 })
    ));
    drop((queue, controller));

    emulator.inject(Fault::Controller(
        ControllerFault::QueueGrant(0),
        Until::Cleared,
    ));
    let controller = open(&emulator, Options::default()).unwrap();
    assert_eq!(controller.io_queues(), 0);
    assert!(matches!(
        controller.io_queue(QueueOptions::default()),
        Err(Error::NoQueue { granted: 0 })
    ));
    assert_eq!(
        controller.namespaces().unwrap(),
        [1],
        "it can still be administered"
    );
}

#[test]
fn a_queue_that_cannot_be_created_leaves_nothing_behind() {
    let bench = bench(RecoveryLimit::Controller);
    let mappings = bench.emulator.iommu().mappings().len();
    const CREATE_SQ: u8 = 1;
    const CREATE_CQ: u8 = 5;
    for opcode in [CREATE_CQ, CREATE_SQ] {
        let fault = CommandFault::Status(Status::INVALID_QUEUE_SIZE);
        bench
            .emulator
            .inject(Fault::on(Matcher::admin().opcode(opcode).times(1), fault));
        let error = bench
            .controller
            .io_queue(QueueOptions::default())
            .unwrap_err();
        assert!(matches!(error, Error::Status { .. }), "{error}");
        assert_eq!(bench.emulator.iommu().mappings().len(), mappings);
    }
    // All identifiers are free, and no completion queue is in the way.
    let queues: Vec<_> = (0..bench.controller.io_queues())
        .map(|_| bench.queue(2))
        .collect();
    assert_eq!(queues.len(), usize::from(bench.controller.io_queues()));
}

#[test]
fn namespaces_of_odd_formats_are_refused_and_the_controller_stays() {
    let bench = bench(RecoveryLimit::Controller);
    for byte in [0x00, 0xff, 0x3f] {
        let fault = CommandFault::JunkData(vec![byte]);
        bench.emulator.inject(Fault::on(
            Matcher::admin().opcode(IDENTIFY).dword10(0).times(1),
            fault,
        ));
        assert!(
            matches!(
                bench.controller.namespace(1),
                Err(Error::Namespace { nsid: 1, .. })
            ),
            "{byte:#x}"
        );
        bench.controller.namespace(1).unwrap();
    }
    for nsid in [0, 2, u32::MAX, u32::MAX - 1] {
        assert!(
            matches!(
                bench.controller.namespace(nsid),
                Err(Error::Namespace { .. })
            ),
            "{nsid}"
        );
    }
}

#[test]
fn a_buffer_or_namespace_of_another_controller_is_refused() {
    let (one, two) = (
        bench(RecoveryLimit::Controller),
        bench(RecoveryLimit::Controller),
    );
    assert_ne!(
        one.controller.address_space().id(),
        two.controller.address_space().id()
    );
    let mut queue = one.queue(4);
    let foreign = two.controller.allocate(4096).unwrap();
    let refused = queue.read(&one.namespace, 0, foreign, 1).unwrap_err();
    assert_eq!(refused.error, SubmitError::ForeignBuffer);
    let refused = queue
        .read(&two.namespace, 0, one.controller.allocate(4096).unwrap(), 1)
        .unwrap_err();
    assert_eq!(refused.error, SubmitError::ForeignNamespace);
    assert_eq!(
        queue.flush(&two.namespace, 1).unwrap_err().error,
        SubmitError::ForeignNamespace
    );
    let vector = vec![
        one.controller.allocate(4096).unwrap(),
        two.controller.allocate(4096).unwrap(),
    ];
    assert_eq!(
        queue
            .read_vectored(&one.namespace, 0, vector, 1)
            .unwrap_err()
            .error,
        SubmitError::ForeignBuffer
    );
}

#[test]
fn a_wrong_prp_is_a_fault_and_an_error_and_nothing_else() {
    use nvme_vfio_queues::{BlockCount, Command, DataPointer};
    let (one, two) = (
        bench(RecoveryLimit::Controller),
        bench(RecoveryLimit::Controller),
    );
    let (mut queue, mut other) = (one.queue(4), two.queue(4));
    let nowhere = DataPointer {
        prp1: 0x7_0000_0000,
        prp2: 0,
    };
    let command = Command::read(one.namespace.id(), 0, BlockCount::ONE, nowhere);
    // SAFETY: nothing is mapped there, which is the point: the software IOMMU refuses the access.
    #[allow(unsafe_code)]
    unsafe { queue.submit_raw(command, 1) }.unwrap();
    let (_, result, _) = result_of(&mut queue);
    let Err(CommandError::Status(status)) = result else {
        panic!("{result:?}")
    };
    assert!(status.is(Status::DATA_TRANSFER_ERROR), "{status}");
    let faults = one.emulator.iommu().faults();
    assert_eq!(faults.len(), 1);
    assert_eq!(faults[0].iova.0, 0x7_0000_0000);
    assert_eq!(two.emulator.iommu().fault_count(), 0);
    one.works(&mut queue);
    two.works(&mut other);
}

#[test]
fn memory_that_the_kernel_maps_no_more_of_is_an_error_and_nothing_is_lost() {
    let emulator = emulator("size=16M,mappings=5");
    let controller = open(&emulator, Options::default()).unwrap();
    let namespace = controller.only_namespace().unwrap();
    let mut queue = controller.io_queue(QueueOptions::with_depth(4)).unwrap();
    let buffer = queue
        .read_blocking(&namespace, 0, controller.allocate(4096).unwrap())
        .unwrap();
    let error = controller.io_queue(QueueOptions::default()).unwrap_err();
    assert!(matches!(error, Error::Dma(_)), "{error}");
    queue.read_blocking(&namespace, 0, buffer).unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    /// Identify data of any kind leads to a controller or an error, never to a panic.
    #[test]
    fn junk_in_identify_is_survived(pattern in prop::collection::vec(any::<u8>(), 1..64), cns in 0_u32..3) {
        let emulator = emulator("size=16M,stepped=on");
        let transport = Arc::new(EmulatedTransport::stepped(Arc::clone(&emulator)));
        emulator.inject(Fault::on(Matcher::admin().opcode(IDENTIFY).dword10(cns), CommandFault::JunkData(pattern)));
        if let Ok(controller) = Controller::with_transport(transport, options(RecoveryLimit::Controller)) {
            for nsid in controller.namespaces().into_iter().flatten().take(4) {
                let _ = controller.namespace(nsid);
            }
            let _ = controller.namespace(1);
            let _ = format!("{:?}", controller.identify());
        }
    }
}
