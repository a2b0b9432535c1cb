//! A driver in front of an emulated controller.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nvme_vfio::transport::{EmulatedTransport, VfioUserTransport};
use nvme_vfio::{
    CommandError, Controller, Error, IoQueue, Namespace, Options, QueueOptions, RecoveryLimit,
    Transport,
};
use nvme_vfio_emulator::{
    CommandFault, Config, Emulator, EmulatorThread, Fault, Matcher, OnAbort, Patience,
    ServedController, served_domain,
};
use nvme_vfio_user::{ClientOptions, Server, ServerOptions, Stop};

pub(crate) const READ: u8 = 2;
pub(crate) const IDENTIFY: u8 = 6;

/// An hour, so that no command's time is over by the clock: tests move the time themselves.
pub(crate) const HOUR: Duration = Duration::from_secs(3600);

/// How long something that happens in another thread may take.
const SOON: Duration = Duration::from_secs(10);

/// Where the controller is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// In this process, stepped.
    InProcess,
    /// Behind a socket, with threads of its own.
    VfioUser,
}

/// What serves a controller; it ends when this is dropped.
struct Served {
    stop: Arc<Stop>,
    server: Option<JoinHandle<()>>,
    path: std::path::PathBuf,
    _thread: EmulatorThread,
}

impl Served {
    fn new(emulator: &Arc<Emulator>) -> Served {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("nvme-vfio-faults-{}-{number}", std::process::id());
        let path = std::env::temp_dir().join(name);
        let server = Server::bind(&path, ServerOptions::default()).unwrap();
        let stop = Arc::new(Stop::new().unwrap());
        let device = ServedController::new(Arc::clone(emulator), Patience::default()).unwrap();
        let stopped = Arc::clone(&stop);
        let server = thread::spawn(move || server.run(&device, &stopped).unwrap());
        Served {
            stop,
            server: Some(server),
            path,
            _thread: emulator.spawn().unwrap(),
        }
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.stop.set();
        if let Some(server) = self.server.take() {
            let ended = server.join();
            // A test that has failed already says why.
            assert!(ended.is_ok() || thread::panicking());
        }
    }
}

/// A controller that nobody drives yet.
pub(crate) struct Device {
    pub(crate) emulator: Arc<Emulator>,
    served: Option<Served>,
}

impl Device {
    pub(crate) fn transport(&self) -> Arc<dyn Transport> {
        let Some(served) = &self.served else {
            return Arc::new(EmulatedTransport::stepped(Arc::clone(&self.emulator)));
        };
        // The connection of an earlier driver may not have ended yet.
        let start = Instant::now();
        loop {
            match VfioUserTransport::open(&served.path, &ClientOptions::default()) {
                Ok(transport) => return Arc::new(transport),
                Err(error) => assert!(start.elapsed() < SOON, "{error}"),
            }
            thread::sleep(Duration::from_millis(1));
        }
    }

    pub(crate) fn open(&self, options: Options) -> Result<Controller, Error> {
        Controller::with_transport(self.transport(), options)
    }
}

/// Registers answer at once here, so that short waits for them are met by faults only.
pub(crate) fn options(recovery: RecoveryLimit) -> Options {
    Options {
        io_timeout: HOUR,
        abort_grace: HOUR,
        ready_timeout: Some(Duration::from_millis(100)),
        shutdown_timeout: Duration::from_millis(100),
        recovery,
        ..Options::default()
    }
}

impl Way {
    pub(crate) fn device(self, config: &str) -> Device {
        let config: Config = config.parse().unwrap();
        let emulator = match self {
            Way::InProcess => Emulator::new(config).unwrap(),
            Way::VfioUser => {
                let domain = served_domain(config.mappings);
                Emulator::in_domain(config, domain).unwrap()
            }
        };
        let served = (self == Way::VfioUser).then(|| Served::new(&emulator));
        Device { emulator, served }
    }

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
