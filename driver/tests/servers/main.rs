//! What the driver does when the process that serves its controller dies, hangs, or has somebody else: each server is a process of its own.

mod lies;
#[path = "../common/served.rs"]
mod served;

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use nvme_vfio::transport::VfioUserTransport;
use nvme_vfio::{
    CommandError, Controller, DmaError, Error, IoQueue, Namespace, Options, QueueOptions,
    SubmitError,
};
use nvme_vfio_dma::{Access, MapError, Memory};
use nvme_vfio_user::device::Errno;
use nvme_vfio_user::{ClientError, ClientOptions};
use served::{Doorbells, ServedProcess};

/// Longer than anything here takes, also on a busy machine.
const FAR: Duration = Duration::from_secs(60);

/// Not a test by itself: what `ServedProcess` runs in a process of its own.
#[test]
fn serving_process() {
    served::serve_if_asked();
}

fn works(controller: &Controller) {
    let namespace = controller.only_namespace().unwrap();
    let mut queue = controller.io_queue(QueueOptions::with_depth(4)).unwrap();
    let mut buffer = controller.allocate(4096).unwrap();
    buffer.fill(0x5a);
    queue.write_blocking(&namespace, 8, buffer).unwrap();
    let buffer = controller.allocate(4096).unwrap();
    let buffer = queue.read_blocking(&namespace, 8, buffer).unwrap();
    assert!(buffer.iter().all(|byte| *byte == 0x5a));
}

/// What became of every command that a queue took.
struct Load {
    queue: IoQueue,
    /// By token: `None` until it was reported.
    reports: HashMap<u64, Option<Result<u32, CommandError>>>,
    with_buffer: u64,
    without_buffer: u64,
}

impl Load {
    fn new(controller: &Controller) -> Self {
        Self {
            queue: controller.io_queue(QueueOptions::with_depth(32)).unwrap(),
            reports: HashMap::new(),
            with_buffer: 0,
            without_buffer: 0,
        }
    }

    fn poll(&mut self) {
        while let Some(completion) = self.queue.poll() {
            let report = self
                .reports
                .get_mut(&completion.token)
                .expect("it was submitted");
            assert!(report.is_none(), "{} was reported twice", completion.token);
            *report = Some(completion.result());
            if completion.buffer.is_some() {
                self.with_buffer += 1;
            } else {
                self.without_buffer += 1;
            }
        }
    }

    /// Submits and polls until the controller is gone.
    fn run(&mut self, controller: &Controller, namespace: &Namespace, done: &AtomicU64) {
        let start = Instant::now();
        let mut token = 0;
        while !self.queue.needs_rebuild() {
            assert!(
                start.elapsed() < FAR,
                "the end of the server was not noticed"
            );
            while !self.queue.is_full() {
                let buffer = controller.allocate(4096).unwrap();
                match self.queue.read(namespace, token % 1000, buffer, token) {
                    Ok(()) => self.reports.insert(token, None),
                    Err(refused) => {
                        assert_eq!(refused.error, SubmitError::Gone);
                        assert!(refused.buffer.is_some());
                        break;
                    }
                };
                token += 1;
            }
            self.poll();
            done.fetch_add(1, Ordering::Relaxed);
            // Its error says what the polls report.
            let _ = self.queue.check_deadlines(Instant::now());
        }
        self.poll();
    }

    /// Every command was reported, those after the first that was gone as gone.
    fn check(&self) -> u64 {
        let mut gone = 0;
        for (token, report) in &self.reports {
            match report {
                Some(Ok(_)) => {}
                Some(Err(CommandError::Gone)) => gone += 1,
                other => panic!("{token}: {other:?}"),
            }
        }
        assert_eq!(
            self.with_buffer + self.without_buffer,
            self.reports.len() as u64
        );
        gone
    }
}

fn killed_under_load(doorbells: Doorbells) {
    for _ in 0..3 {
        let mut server = ServedProcess::start("size=16M", doorbells);
        let controller = server.open(Options::default()).unwrap();
        let space = controller.address_space().clone();
        let namespace = controller.only_namespace().unwrap();
        let done = AtomicU64::new(0);
        let mut loads: Vec<Load> = (0..2).map(|_| Load::new(&controller)).collect();
        let start = thread::scope(|scope| {
            for load in &mut loads {
                scope.spawn(|| load.run(&controller, &namespace, &done));
            }
            while done.load(Ordering::Relaxed) < 1000 {
                thread::yield_now();
            }
            server.kill();
            Instant::now()
        });
        assert!(start.elapsed() < FAR, "{:?}", start.elapsed());
        for load in &loads {
            load.check();
            // Its process has ended, so all memory came back.
            assert_eq!(load.without_buffer, 0);
        }
        assert!(matches!(
            controller.io_queue(QueueOptions::default()),
            Err(Error::Gone)
        ));
        assert_eq!(controller.quarantined(), 0);
        drop((loads, controller));
        assert_eq!(space.leaked_bytes(), 0);
    }
}

#[test]
fn a_server_that_is_killed_ends_every_command_once() {
    killed_under_load(Doorbells::Mapped);
}

#[test]
fn a_server_that_is_killed_ends_every_command_once_with_doorbells_by_message() {
    killed_under_load(Doorbells::ByMessage);
}

#[test]
fn a_server_that_was_restarted_takes_a_new_open() {
    let mut server = ServedProcess::start("size=16M", Doorbells::Mapped);
    let before = server.open(Options::default()).unwrap();
    works(&before);
    for _ in 0..3 {
        server.kill();
        let refused = server.open(Options::default()).unwrap_err();
        assert!(
            matches!(refused, Error::VfioUser(ClientError::Connect { .. })),
            "{refused}"
        );
        server.restart();
        works(&server.open(Options::default()).unwrap());
    }
    // The first one does not come back to life.
    let mut data = [0; 1];
    before.transport().config_read(0, &mut data).unwrap();
    assert_eq!(data, [0xff]);
    assert!(matches!(before.recover(), Err(Error::Gone)));
}

/// A controller over a connection with little patience.
fn impatient(server: &ServedProcess) -> Controller {
    let options = ClientOptions {
        timeout: Duration::from_secs(5),
    };
    let transport = VfioUserTransport::open(&server.path(), &options).unwrap();
    Controller::with_transport(Arc::new(transport), Options::default()).unwrap()
}

/// Commands that a stopped server never answers, until they are reported as gone.
fn hang(server: &ServedProcess, controller: &Controller) -> Load {
    let namespace = controller.only_namespace().unwrap();
    let mut load = Load::new(controller);
    server.signal(Signal::SIGSTOP);
    load.run(controller, &namespace, &AtomicU64::new(0));
    assert!(load.check() > 0);
    load
}

#[test]
fn the_memory_of_a_server_that_hangs_is_kept_until_it_has_ended() {
    let mut server = ServedProcess::start("size=16M", Doorbells::Mapped);
    let controller = impatient(&server);
    let space = controller.address_space().clone();
    let load = hang(&server, &controller);
    // It may still touch it, whenever it wakes up.
    assert!(load.without_buffer > 0);
    assert!(controller.quarantined() >= load.without_buffer as usize * 4096);
    server.kill();
    drop((load, controller));
    assert_eq!(space.leaked_bytes(), 0, "what has ended touches nothing");
}

#[test]
fn the_memory_of_a_server_that_hangs_to_the_end_is_never_used_again() {
    let server = ServedProcess::start("size=16M", Doorbells::Mapped);
    let controller = impatient(&server);
    let space = controller.address_space().clone();
    let load = hang(&server, &controller);
    let quarantined = controller.quarantined() as u64;
    drop((load, controller));
    assert!(space.leaked_bytes() >= quarantined);
    // It wakes up, finds its client gone, and takes the next.
    server.signal(Signal::SIGCONT);
    works(&server.open(Options::default()).unwrap());
}

#[test]
fn a_second_client_is_told_that_there_is_one() {
    let server = ServedProcess::start("size=16M", Doorbells::Mapped);
    let first = server.open(Options::default()).unwrap();
    let refused = server.open(Options::default()).unwrap_err();
    assert!(
        matches!(&refused, Error::VfioUser(error) if error.errno() == Some(Errno::EBUSY)),
        "{refused}"
    );
    works(&first);
    drop(first);
    works(&server.open(Options::default()).unwrap());
}

#[test]
fn an_owner_that_was_forgotten_leaves_a_controller_for_the_next() {
    let server = ServedProcess::start("size=16M", Doorbells::Mapped);
    for _ in 0..5 {
        let transport =
            Arc::new(VfioUserTransport::open(&server.path(), &ClientOptions::default()).unwrap());
        let controller =
            Controller::with_transport(Arc::clone(&transport) as _, Options::default()).unwrap();
        let namespace = controller.only_namespace().unwrap();
        let mut load = Load::new(&controller);
        for token in 0..32 {
            let buffer = controller.allocate(4096).unwrap();
            load.queue.read(&namespace, token, buffer, token).unwrap();
        }
        load.queue.ring();
        // As the end of a process would: the connection is closed, and nothing shut down.
        transport.client().close();
        drop((load, controller));
    }
    works(&server.open(Options::default()).unwrap());
}

#[test]
fn doorbells_are_mapped_where_that_is_offered() {
    for doorbells in [Doorbells::Mapped, Doorbells::ByMessage] {
        let server = ServedProcess::start("size=16M", doorbells);
        let transport = VfioUserTransport::open(&server.path(), &ClientOptions::default()).unwrap();
        assert_eq!(
            transport.has_mapped_doorbells(),
            doorbells == Doorbells::Mapped
        );
    }
}

#[test]
fn only_memory_with_a_descriptor_is_lent() {
    let server = ServedProcess::start("size=16M", Doorbells::Mapped);
    let controller = server.open(Options::default()).unwrap();
    let space = controller.address_space();
    let page = space.page_size();
    let mut own = vec![0_u8; 3 * page];
    let start = own.as_mut_ptr().align_offset(page);
    let memory = Memory::from_owned(Aligned { own, start, page });
    let rejected = space
        .register_owned(memory, Access::READ_WRITE)
        .unwrap_err();
    assert!(
        matches!(rejected.error, DmaError::Map(MapError::NotShareable)),
        "{}",
        rejected.error
    );
    works(&controller);
}

/// A page inside a vector.
struct Aligned {
    own: Vec<u8>,
    start: usize,
    page: usize,
}

#[allow(unsafe_code)]
// SAFETY: the vector owns its bytes, on the heap, and is not reached again before it is dropped.
unsafe impl nvme_vfio_dma::OwnedMemory for Aligned {
    fn region(&mut self) -> std::ptr::NonNull<[u8]> {
        std::ptr::NonNull::from(&mut self.own[self.start..self.start + self.page])
    }
}

#[test]
fn no_more_is_lent_than_the_server_takes() {
    let server = ServedProcess::start("size=16M,mappings=8", Doorbells::Mapped);
    let controller = server.open(Options::default()).unwrap();
    let space = controller.address_space();
    let mut lent = Vec::new();
    let refused = loop {
        match space.shared(4096, Access::READ_WRITE) {
            Ok(memory) => lent.push(memory),
            Err(error) => break error,
        }
        assert!(lent.len() < 8);
    };
    assert!(
        matches!(refused, DmaError::Map(MapError::TooManyMappings)),
        "{refused}"
    );
    drop(lent);
    works(&controller);
    // All addresses are inside what is offered, and none is given out twice.
    let limits = space.domain().limits();
    for (iova, length) in space.mappings() {
        limits.contains(iova.0, iova.0 + length as u64 - 1).unwrap();
    }
}

#[test]
fn a_reset_of_the_function_is_recovered_from() {
    let server = ServedProcess::start("size=16M", Doorbells::Mapped);
    let controller = server.open(Options::default()).unwrap();
    let namespace = controller.only_namespace().unwrap();
    let mut queue = controller.io_queue(QueueOptions::with_depth(8)).unwrap();
    controller.transport().reset().unwrap();
    let buffer = controller.allocate(4096).unwrap();
    queue.read(&namespace, 0, buffer, 1).unwrap();
    let completion = queue.wait().unwrap().unwrap();
    assert_eq!(completion.result(), Err(CommandError::Reset));
    assert!(completion.buffer.is_some());
    queue.rebuild().unwrap();
    let buffer = controller.allocate(4096).unwrap();
    queue.read_blocking(&namespace, 0, buffer).unwrap();
}

#[test]
fn many_opens_leave_nothing_behind() {
    let server = ServedProcess::start("size=16M", Doorbells::Mapped);
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        // Others that try to get in meanwhile are turned away, or are first.
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                let _ = VfioUserTransport::open(&server.path(), &ClientOptions::default());
            }
        });
        let mut opened = 0;
        let start = Instant::now();
        while opened < 30 {
            assert!(start.elapsed() < FAR);
            match server.open(Options::default()) {
                Ok(controller) => {
                    works(&controller);
                    opened += 1;
                }
                Err(Error::VfioUser(error)) if error.errno() == Some(Errno::EBUSY) => {}
                Err(error) => panic!("{error}"),
            }
        }
        stop.store(true, Ordering::Relaxed);
    });
}

#[test]
fn nobody_at_a_path_is_an_error_at_once() {
    let options = ClientOptions { timeout: FAR };
    let start = Instant::now();
    let refused = VfioUserTransport::open(Path::new("/nowhere/socket"), &options);
    assert!(matches!(
        refused,
        Err(Error::VfioUser(ClientError::Connect { .. }))
    ));
    assert!(start.elapsed() < FAR / 2);
}
