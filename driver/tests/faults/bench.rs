//! A driver in front of an emulated controller.

use std::sync::Arc;
use std::time::{Duration, Instant};

use nvme_vfio::{
    CommandError, Controller, Error, IoQueue, Namespace, Options, QueueOptions, RecoveryLimit,
};
use nvme_vfio_emulator::{CommandFault, Emulator, Fault, Matcher, OnAbort};

pub(crate) use crate::way::{Device, Way};

pub(crate) const READ: u8 = 2;
pub(crate) const IDENTIFY: u8 = 6;

/// An hour, so that no command's time is over by the clock: tests move the time themselves.
pub(crate) const HOUR: Duration = Duration::from_secs(3600);

/// How long a test waits for registers that never say what they should. Where nothing keeps them from it they say so at once, and the driver's last look is after its time.
const IN_VAIN: Duration = Duration::from_secs(1);

/// Waits for registers are met by faults only here.
pub(crate) fn options(recovery: RecoveryLimit) -> Options {
    Options {
        io_timeout: HOUR,
        abort_grace: HOUR,
        ready_timeout: Some(IN_VAIN),
        shutdown_timeout: IN_VAIN,
        recovery,
        ..Options::default()
    }
}

/// The same, for a test in which an admin command never ends.
pub(crate) fn impatient(way: Way, recovery: RecoveryLimit) -> Options {
    Options {
        admin_timeout: way.in_vain(),
        ..options(recovery)
    }
}

impl Device {
    pub(crate) fn open(&self, options: Options) -> Result<Controller, Error> {
        Controller::with_transport(self.transport(), options)
    }
}

impl Way {
    pub(crate) fn bench(self, recovery: RecoveryLimit) -> Bench {
        self.with_options(options(recovery))
    }

    pub(crate) fn with_options(self, options: Options) -> Bench {
        let device = self.device("size=64M");
        let controller = device.open(options).unwrap();
        let namespace = controller.only_namespace().unwrap();
        Bench {
            emulator: Arc::clone(&device.emulator),
            controller,
            namespace,
            _device: device,
        }
    }
}

/// A controller that is driven. The driver goes before what serves it.
pub(crate) struct Bench {
    pub(crate) emulator: Arc<Emulator>,
    pub(crate) controller: Controller,
    pub(crate) namespace: Namespace,
    _device: Device,
}

impl Bench {
    pub(crate) fn queue(&self, depth: u32) -> IoQueue {
        self.controller
            .io_queue(QueueOptions::with_depth(depth))
            .unwrap()
    }

    pub(crate) fn read(&self, queue: &mut IoQueue, token: u64) {
        let mut buffer = self.controller.allocate(4096).unwrap();
        buffer.fill(0x77);
        queue
            .read(&self.namespace, token * 8, buffer, token)
            .unwrap();
    }

    pub(crate) fn inject(&self, matcher: Matcher, fault: CommandFault) {
        self.emulator.inject(Fault::on(matcher, fault));
    }

    pub(crate) fn hang(&self, on_abort: OnAbort) {
        self.inject(
            Matcher::io().opcode(READ).times(1),
            CommandFault::Hang(on_abort),
        );
    }

    /// Lets the controller do all that it can.
    pub(crate) fn settle(&self, queue: &mut IoQueue) {
        queue.ring();
        while self.emulator.step() > 0 {}
    }

    /// Lets hours pass: the deadlines of what is in flight, and those after the Abort.
    pub(crate) fn let_hours_pass(&self, queue: &mut IoQueue) {
        self.settle(queue);
        let now = Instant::now();
        for hours in [0, 2, 4] {
            queue.check_deadlines(now + hours * HOUR).unwrap();
            self.settle(queue);
        }
    }

    /// A read must work now.
    pub(crate) fn works(&self, queue: &mut IoQueue) {
        queue.rebuild().unwrap();
        let buffer = self.controller.allocate(4096).unwrap();
        queue.read_blocking(&self.namespace, 0, buffer).unwrap();
    }
}

pub(crate) fn result_of(queue: &mut IoQueue) -> (u64, Result<u32, CommandError>, bool) {
    let completion = queue.wait().unwrap().unwrap();
    (
        completion.token,
        completion.result(),
        completion.buffer.is_some(),
    )
}
