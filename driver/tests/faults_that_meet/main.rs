//! Faults that meet: resets that come while something else is under way, errors on the way out of errors. On the emulated
//! controller, behind a transport that can stop a register access where it is.

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use nvme_vfio::{
    AddressSpace, Buffer, CommandError, Controller, Error, IoQueue, Namespace, NotReady, Options,
    Outcome, QueueOptions, RecoveryLimit, Transport,
};
use nvme_vfio_emulator::{CommandFault, ControllerFault, Emulator, Fault, Matcher, OnAbort};
use nvme_vfio_queues::Status;
use nvme_vfio_queues::registers::offset::CC;
use nvme_vfio_queues::ring::Doorbell;
use proptest::prelude::*;

#[macro_use]
#[path = "../common/way.rs"]
mod way;

mod storm;

use way::{Device, Way};

ways![
    a_reset_just_before_a_queue_is_created_leaves_a_queue_that_works,
    a_completion_queue_left_behind_by_rebuild_is_taken_back_by_the_next,
    memory_of_a_completion_queue_left_behind_stays_mapped_until_a_reset,
    a_reset_frees_the_identifier_of_a_queue_left_behind,
    a_command_is_reported_although_its_abort_never_ends,
    a_blocking_read_whose_abort_never_ends_leaves_no_report_behind,
    registers_that_read_all_ones_during_a_reset_do_not_end_the_controller,
    a_reset_by_somebody_else_is_noticed,
    a_controller_that_does_not_start_again_is_reset_as_a_function,
    options_at_their_ends_are_brought_into_bounds,
    timeouts_at_their_ends_end_commands_once,
    a_transport_carries_one_controller_at_a_time,
];

const READ: u8 = 0x02;
const DELETE_SQ: u8 = 0x00;
const CREATE_SQ: u8 = 0x01;
const DELETE_CQ: u8 = 0x04;
const ABORT: u8 = 0x08;

/// An hour, so that no command's time is over by the clock: tests move the time themselves.
const HOUR: Duration = Duration::from_secs(3600);

/// Longer than anything here takes, whatever else the machine does.
const FAR: Duration = Duration::from_secs(60);

/// How long a test waits for registers that never say what they should. Where nothing keeps them from it they say so at once, and the driver's last look is after its time.
const IN_VAIN: Duration = Duration::from_secs(1);

/// How long a thread gets to do what it must not do.
const A_WHILE: Duration = Duration::from_millis(100);

type Hook = Box<dyn FnOnce() + Send>;

/// The emulated controller, with something to be done in the middle of an access.
struct Hooked {
    inner: Arc<dyn Transport>,
    /// What all registers read as, all ones or zero, as those of a function that is being reset can.
    blind: Mutex<Option<u8>>,
    /// Somebody else resets the function.
    resets: AtomicBool,
    doorbell: Mutex<Option<Hook>>,
    disable: Mutex<Option<Hook>>,
    reset: Mutex<Option<Hook>>,
}

impl Hooked {
    fn run(hook: &Mutex<Option<Hook>>) {
        let hook = hook.lock().unwrap().take();
        if let Some(hook) = hook {
            hook();
        }
    }

    fn at(hook: &Mutex<Option<Hook>>, what: impl FnOnce() + Send + 'static) {
        *hook.lock().unwrap() = Some(Box::new(what));
    }
}

impl fmt::Debug for Hooked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.fmt(f)
    }
}

#[allow(unsafe_code)] // passes on what the driver answers for
impl Transport for Hooked {
    fn address_space(&self) -> &AddressSpace {
        self.inner.address_space()
    }

    fn read32(&self, offset: usize) -> u32 {
        if let Some(byte) = *self.blind.lock().unwrap() {
            return u32::from_ne_bytes([byte; 4]);
        }
        self.inner.read32(offset)
    }

    fn read64(&self, offset: usize) -> u64 {
        if let Some(byte) = *self.blind.lock().unwrap() {
            return u64::from_ne_bytes([byte; 8]);
        }
        self.inner.read64(offset)
    }

    unsafe fn write32(&self, offset: usize, value: u32) {
        if offset == CC && value & 1 == 0 {
            Self::run(&self.disable);
        }
        // SAFETY: the caller answers for it.
        unsafe { self.inner.write32(offset, value) };
    }

    unsafe fn write64(&self, offset: usize, value: u64) {
        // SAFETY: the caller answers for it.
        unsafe { self.inner.write64(offset, value) };
    }

    unsafe fn doorbell(&self, offset: usize) -> Option<Doorbell> {
        Self::run(&self.doorbell);
        // SAFETY: the caller answers for it.
        unsafe { self.inner.doorbell(offset) }
    }

    fn set_bus_master(&self, on: bool) -> Result<(), Error> {
        self.inner.set_bus_master(on)
    }

    fn config_read(&self, offset: u64, data: &mut [u8]) -> Result<(), Error> {
        // As the kernel does: whoever asks waits for the end of a reset.
        if self.resets.load(Ordering::SeqCst) {
            *self.blind.lock().unwrap() = None;
        }
        self.inner.config_read(offset, data)
    }

    fn reset(&self) -> Result<(), Error> {
        Self::run(&self.reset);
        self.inner.reset()
    }

    fn relax(&self) {
        self.inner.relax();
    }

    fn name(&self) -> String {
        self.inner.name()
    }
}

struct Bench {
    emulator: Arc<Emulator>,
    transport: Arc<Hooked>,
    controller: Controller,
    namespace: Namespace,
    /// Goes after what drives it.
    _device: Device,
}

fn options(recovery: RecoveryLimit) -> Options {
    Options {
        admin_timeout: FAR,
        io_timeout: HOUR,
        abort_grace: HOUR,
        ready_timeout: Some(IN_VAIN),
        shutdown_timeout: IN_VAIN,
        recovery,
        ..Options::default()
    }
}

fn bench(way: Way, options: Options) -> Bench {
    configured(way, "size=64M", options)
}

fn configured(way: Way, config: &str, options: Options) -> Bench {
    let device = way.device(config);
    let transport = Arc::new(Hooked {
        inner: device.transport(),
        blind: Mutex::default(),
        resets: AtomicBool::new(false),
        doorbell: Mutex::default(),
        disable: Mutex::default(),
        reset: Mutex::default(),
    });
    let as_transport: Arc<dyn Transport> = transport.clone();
    let controller = Controller::with_transport(as_transport, options).unwrap();
    let namespace = controller.only_namespace().unwrap();
    Bench {
        emulator: Arc::clone(&device.emulator),
        transport,
        controller,
        namespace,
        _device: device,
    }
}

impl Bench {
    fn queue(&self) -> IoQueue {
        self.controller
            .io_queue(QueueOptions::with_depth(4))
            .unwrap()
    }

    fn read(&self, queue: &mut IoQueue, token: u64) {
        let buffer = self.controller.allocate(4096).unwrap();
        queue.read(&self.namespace, 0, buffer, token).unwrap();
        queue.ring();
        while self.emulator.step() > 0 {}
    }

    fn works(&self, queue: &mut IoQueue) {
        let buffer = self.controller.allocate(4096).unwrap();
        queue.read_blocking(&self.namespace, 0, buffer).unwrap();
    }

    /// A reset of the function that the driver has not asked for, not over yet: all bytes of its registers read as this one.
    fn reset_by_somebody_else(&self, byte: u8) {
        self.emulator.reset();
        self.transport.resets.store(true, Ordering::SeqCst);
        *self.transport.blind.lock().unwrap() = Some(byte);
    }

    fn admin(&self, opcode: u8, fault: CommandFault) {
        let matcher = Matcher::admin().opcode(opcode).times(1);
        self.emulator.inject(Fault::on(matcher, fault));
    }

    /// Every granted identifier can be used.
    fn all_identifiers_are_free(&self) {
        let queues: Vec<_> = (0..self.controller.io_queues())
            .map(|_| self.queue())
            .collect();
        assert!(!queues.is_empty());
    }
}

/// The error by which a queue cannot be created.
fn refused() -> CommandFault {
    CommandFault::Status(Status::INVALID_QUEUE_SIZE)
}

fn a_reset_just_before_a_queue_is_created_leaves_a_queue_that_works(way: Way) {
    let bench = bench(way, options(RecoveryLimit::Controller));
    let (started, starts) = mpsc::channel();
    let (reset, resets) = mpsc::channel();
    // The queue's identifier is taken, then the controller is reset by another thread; only then the queue is created.
    Hooked::at(&bench.transport.doorbell, move || {
        started.send(()).unwrap();
        resets.recv().unwrap();
    });
    Hooked::at(&bench.transport.disable, move || {
        reset.send(()).unwrap();
        thread::sleep(A_WHILE);
    });
    let controller = bench.controller.clone();
    let creator = thread::spawn(move || controller.io_queue(QueueOptions::with_depth(4)));
    starts.recv().unwrap();
    bench.controller.recover().unwrap();
    let mut queue = creator.join().unwrap().unwrap();
    while queue.poll().is_some() {}
    queue.rebuild().unwrap();
    bench.works(&mut queue);
    drop(queue);
    bench.all_identifiers_are_free();
}

fn a_completion_queue_left_behind_by_rebuild_is_taken_back_by_the_next(way: Way) {
    let bench = bench(way, options(RecoveryLimit::Controller));
    let mut queue = bench.queue();
    bench.controller.recover().unwrap();
    bench.admin(CREATE_SQ, refused());
    bench.admin(DELETE_CQ, refused());
    let error = queue.rebuild().unwrap_err();
    assert!(matches!(error, Error::LeftBehind { .. }), "{error}");
    assert!(queue.needs_rebuild());
    queue.rebuild().unwrap();
    bench.works(&mut queue);
}

fn memory_of_a_completion_queue_left_behind_stays_mapped_until_a_reset(way: Way) {
    let bench = bench(way, options(RecoveryLimit::Controller));
    let mut queue = bench.queue();
    let mappings = bench.emulator.iommu().mappings().len();
    bench.controller.recover().unwrap();
    bench.admin(CREATE_SQ, refused());
    bench.admin(DELETE_CQ, refused());
    queue.rebuild().unwrap_err();
    // The controller still has the completion queue, and refuses to give it up when the queue goes.
    bench.admin(DELETE_SQ, refused());
    drop(queue);
    assert_eq!(bench.emulator.iommu().mappings().len(), mappings);
    assert!(bench.controller.quarantined() > 0);
    bench.controller.recover().unwrap();
    assert_eq!(bench.controller.quarantined(), 0);
    assert_eq!(bench.emulator.iommu().mappings().len(), mappings - 2);
    bench.all_identifiers_are_free();
}

fn a_reset_frees_the_identifier_of_a_queue_left_behind(way: Way) {
    let bench = bench(way, options(RecoveryLimit::Controller));
    bench.admin(CREATE_SQ, refused());
    bench.admin(DELETE_CQ, refused());
    let error = bench
        .controller
        .io_queue(QueueOptions::default())
        .unwrap_err();
    assert!(matches!(error, Error::LeftBehind { .. }), "{error}");
    // And that of a queue that could not be deleted.
    let queue = bench.queue();
    bench.admin(DELETE_SQ, refused());
    drop(queue);
    bench.controller.recover().unwrap();
    assert_eq!(bench.controller.quarantined(), 0);
    bench.all_identifiers_are_free();
}

fn a_command_is_reported_although_its_abort_never_ends(way: Way) {
    let bench = bench(
        way,
        Options {
            admin_timeout: way.in_vain(),
            ..options(RecoveryLimit::Abort)
        },
    );
    let mut queue = bench.queue();
    let hang = CommandFault::Hang(OnAbort::NotAborted);
    bench
        .emulator
        .inject(Fault::on(Matcher::io().opcode(READ).times(2), hang.clone()));
    bench
        .emulator
        .inject(Fault::on(Matcher::admin().opcode(ABORT), hang));
    bench.read(&mut queue, 1);
    bench.read(&mut queue, 2);
    let now = Instant::now();
    queue.check_deadlines(now).unwrap();
    let error = queue.check_deadlines(now + 2 * HOUR).unwrap_err();
    assert!(
        matches!(
            error,
            Error::TimedOut {
                command: "Abort",
                ..
            }
        ),
        "{error}"
    );
    queue.check_deadlines(now + 4 * HOUR).unwrap();
    let mut seen: Vec<_> = std::iter::from_fn(|| queue.poll())
        .map(|completion| (completion.token, completion.outcome))
        .collect();
    seen.sort_by_key(|(token, _)| *token);
    assert_eq!(seen, [(1, Outcome::TimedOut), (2, Outcome::TimedOut)]);
    assert_eq!((queue.in_flight(), queue.overdue()), (0, 2));
}

/// As for a thread that is not scheduled before the time of its command is over. The controller works only when it is waited for.
#[test]
fn an_admin_command_whose_time_is_over_is_looked_for_once_more() {
    let bench = bench(
        Way::InProcess,
        Options {
            admin_timeout: Duration::ZERO,
            ..options(RecoveryLimit::Controller)
        },
    );
    assert_eq!(bench.controller.namespaces().unwrap(), [1]);
    bench.works(&mut bench.queue());
    assert_eq!(bench.controller.events(), Default::default());
}

fn a_blocking_read_whose_abort_never_ends_leaves_no_report_behind(way: Way) {
    let bench = bench(
        way,
        Options {
            admin_timeout: way.in_vain(),
            io_timeout: Duration::from_millis(50),
            abort_grace: Duration::from_millis(50),
            ..options(RecoveryLimit::Abort)
        },
    );
    let mut queue = bench.queue();
    let hang = CommandFault::Hang(OnAbort::NotAborted);
    bench
        .emulator
        .inject(Fault::on(Matcher::io().opcode(READ).times(1), hang.clone()));
    bench
        .emulator
        .inject(Fault::on(Matcher::admin().opcode(ABORT), hang));
    let buffer = bench.controller.allocate(4096).unwrap();
    let error = queue
        .read_blocking(&bench.namespace, 0, buffer)
        .unwrap_err();
    assert!(
        matches!(error, Error::Command(CommandError::TimedOut)),
        "{error}"
    );
    assert_eq!(queue.in_flight(), 0);
    assert!(queue.poll().is_none());
}

fn registers_that_read_all_ones_during_a_reset_do_not_end_the_controller(way: Way) {
    let bench = bench(way, options(RecoveryLimit::Function));
    let mut queue = bench.queue();
    bench
        .emulator
        .inject(Fault::of_controller(ControllerFault::NeverDisabled));
    let (looked, looks) = mpsc::channel::<()>();
    let transport = Arc::clone(&bench.transport);
    let (start, starts) = mpsc::channel();
    Hooked::at(&bench.transport.reset, move || {
        *transport.blind.lock().unwrap() = Some(0xff);
        start.send(()).unwrap();
        let _ = looks.recv_timeout(A_WHILE);
        *transport.blind.lock().unwrap() = None;
    });
    let owner = thread::spawn(move || {
        starts.recv().unwrap();
        let checked = queue.check_deadlines(Instant::now() + HOUR);
        let _ = looked.send(());
        (queue, checked)
    });
    bench.controller.recover().unwrap();
    let (mut queue, checked) = owner.join().unwrap();
    checked.unwrap();
    queue.rebuild().unwrap();
    bench.works(&mut queue);
}

fn a_reset_by_somebody_else_is_noticed(way: Way) {
    let bench = bench(way, options(RecoveryLimit::Controller));
    let mut queue = bench.queue();
    let hang = CommandFault::Hang(OnAbort::NotAborted);
    bench
        .emulator
        .inject(Fault::on(Matcher::io().opcode(READ).times(1), hang));
    bench.read(&mut queue, 1);
    bench.emulator.reset();
    // Long before the command's time is over.
    queue
        .check_deadlines(Instant::now() + Duration::from_secs(2))
        .unwrap();
    let completion = queue.poll().unwrap();
    assert_eq!((completion.token, completion.outcome), (1, Outcome::Reset));
    assert!(completion.buffer.is_some());
    queue.rebuild().unwrap();
    bench.works(&mut queue);

    for (round, byte) in (0..).zip([0xff, 0]) {
        // Also while it is under way.
        bench.reset_by_somebody_else(byte);
        queue
            .check_deadlines(Instant::now() + Duration::from_secs(4 + 2 * round))
            .unwrap();
        queue.rebuild().unwrap();
        bench.works(&mut queue);

        // And by an admin command, long before its time is over.
        bench.reset_by_somebody_else(byte);
        let before = Instant::now();
        let error = bench.controller.namespaces().unwrap_err();
        assert!(
            matches!(
                error,
                Error::NotReady {
                    what: NotReady::Stopped,
                    ..
                }
            ),
            "{error}"
        );
        assert!(before.elapsed() < FAR / 2);
        assert_eq!(bench.controller.namespaces().unwrap(), [1]);
        assert_eq!(bench.controller.events().resets, 3 + 3 * round);

        // And in the middle of recovery.
        bench.reset_by_somebody_else(byte);
        bench.controller.recover().unwrap();
        queue.rebuild().unwrap();
        bench.works(&mut queue);
    }
}

fn a_controller_that_does_not_start_again_is_reset_as_a_function(way: Way) {
    for (recovery, comes_back) in [
        (RecoveryLimit::Controller, false),
        (RecoveryLimit::Function, true),
    ] {
        let bench = bench(way, options(recovery));
        let mut queue = bench.queue();
        bench
            .emulator
            .inject(Fault::of_controller(ControllerFault::NeverReady));
        let recovered = bench.controller.recover();
        assert_eq!(recovered.is_ok(), comes_back, "{recovered:?}");
        if comes_back {
            queue.rebuild().unwrap();
            bench.works(&mut queue);
        }
    }
}

fn options_at_their_ends_are_brought_into_bounds(way: Way) {
    const ENDS: [u32; 3] = [0, 1, u32::MAX];
    for config in [
        "size=64M",
        "size=64M,mqes=2,dstrd=8,mdts=0",
        "size=64M,lba=4096,mdts=1",
    ] {
        for io_queues in [0, u16::MAX] {
            let bench = configured(
                way,
                config,
                Options {
                    io_queues,
                    ..options(RecoveryLimit::Controller)
                },
            );
            for depth in ENDS {
                for doorbell_batch in ENDS {
                    for max_transfer in ENDS {
                        let options = QueueOptions {
                            depth,
                            doorbell_batch,
                            max_transfer,
                        };
                        let mut queue = bench.controller.io_queue(options).unwrap();
                        assert!((1..=4095).contains(&queue.depth()));
                        for length in [4096, 7 * 4096] {
                            let buffer = bench.controller.allocate(length).unwrap();
                            let buffer = queue.write_blocking(&bench.namespace, 0, buffer).unwrap();
                            queue.read_blocking(&bench.namespace, 0, buffer).unwrap();
                        }
                    }
                }
            }
        }
    }
}

fn timeouts_at_their_ends_end_commands_once(way: Way) {
    for (io_timeout, abort_grace) in [
        (Duration::ZERO, Duration::ZERO),
        (Duration::MAX, Duration::ZERO),
        (Duration::ZERO, Duration::MAX),
    ] {
        let bench = bench(
            way,
            Options {
                io_timeout,
                abort_grace,
                ..options(RecoveryLimit::Controller)
            },
        );
        let mut queue = bench.queue();
        bench.emulator.inject(Fault::on(
            Matcher::io().opcode(READ).times(1),
            CommandFault::Hang(OnAbort::NotAborted),
        ));
        bench.read(&mut queue, 1);
        let now = Instant::now();
        for hours in 0..4 {
            queue.check_deadlines(now + hours * HOUR).unwrap();
        }
        let ends = io_timeout == Duration::ZERO && abort_grace == Duration::ZERO;
        assert_eq!(queue.poll().is_some(), ends);
        bench.controller.recover().unwrap();
        assert_eq!(queue.poll().is_some(), !ends);
        assert!(queue.poll().is_none() && queue.in_flight() == 0);
    }
}

fn a_transport_carries_one_controller_at_a_time(way: Way) {
    let bench = bench(way, options(RecoveryLimit::Controller));
    let mut queue = bench.queue();
    let again = || {
        let transport = Arc::clone(bench.controller.transport());
        Controller::with_transport(transport, options(RecoveryLimit::Controller))
    };
    for _ in 0..2 {
        let error = again().unwrap_err();
        assert!(matches!(error, Error::AlreadyOpen { .. }), "{error}");
        bench.works(&mut queue);
    }
    let transport: Arc<dyn Transport> = bench.transport.clone();
    let Bench {
        controller,
        _device: device,
        ..
    } = bench;
    drop((queue, controller));
    Controller::with_transport(transport, options(RecoveryLimit::Controller)).unwrap();
    drop(device);
}
