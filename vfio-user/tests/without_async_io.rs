//! Servers in a system that has no room for asynchronous I/O, and has some later. One test: what signals eventfds is the process's.

mod common;

use std::collections::BTreeMap;
use std::os::fd::AsFd;
use std::path::Path;
use std::time::{Duration, Instant};

use common::{BAR, Client, MSIX, TestDevice, VERSION};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nvme_vfio_user::device::{Errno, IrqAction};
use nvme_vfio_user::message::{IrqSetData, RegionAccess, Request, SetIrqs};
use nvme_vfio_user::{Eventfd, Server, ServerOptions, SignalThreads, Stop};
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, apply_filter};

/// Has io_setup(2) fail in this thread and those that it starts, as where `fs.aio-max-nr` is used up.
fn no_room() {
    let filter = SeccompFilter::new(
        BTreeMap::from([(libc::SYS_io_setup, vec![])]),
        SeccompAction::Allow,
        SeccompAction::Errno(libc::EAGAIN as u32),
        std::env::consts::ARCH.try_into().expect("an architecture"),
    );
    let program: BpfProgram = filter.and_then(TryInto::try_into).expect("a program");
    apply_filter(&program).expect("applied");
}

fn eventfds(count: usize) -> Vec<EventFd> {
    (0..count)
        .map(|_| EventFd::from_flags(EfdFlags::EFD_NONBLOCK).expect("an eventfd"))
        .collect()
}

fn connect(client: &mut Client, eventfds: &[EventFd]) -> Result<(), Errno> {
    let descriptors: Vec<_> = eventfds.iter().map(|eventfd| eventfd.as_fd()).collect();
    let count = u32::try_from(eventfds.len()).expect("few");
    let request = Request::DeviceSetIrqs(SetIrqs {
        index: MSIX,
        start: 0,
        count,
        action: IrqAction::Trigger,
        data: IrqSetData::Eventfd,
    });
    client.ask(&request, &descriptors).map(|_| ())
}

/// Has the device signal vector 0.
fn interrupt(client: &mut Client) {
    let access = RegionAccess {
        offset: 0,
        region: BAR,
        count: 1,
    };
    client
        .ask(&Request::RegionWrite(access, &[1]), &[])
        .expect("written");
}

fn soon(what: &str, mut happened: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !happened() {
        assert!(begun.elapsed() < Duration::from_secs(60), "{what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Threads of this process that signal eventfds.
fn signalling() -> usize {
    std::fs::read_dir("/proc/self/task")
        .expect("listed")
        .filter_map(|entry| std::fs::read_to_string(entry.ok()?.path().join("comm")).ok())
        .filter(|name| name.trim() == "eventfd")
        .count()
}

fn open(path: &Path) -> Client {
    let mut client = Client::connect(path);
    client.ask(&VERSION, &[]).expect("agreed");
    client
}

/// Ends the servers, when the test fails too.
struct Ends<'a>(&'a [Stop]);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.iter().for_each(Stop::set);
    }
}

#[test]
fn each_client_has_threads_of_its_own_until_there_is_room() {
    let folder = tempfile::tempdir().expect("a directory");
    std::thread::scope(|scope| {
        let filtered = scope.spawn(|| {
            no_room();
            assert_eq!(Eventfd::prepare(), Err(Errno::EAGAIN));
            let mut options = ServerOptions::default();
            options.session.signal_threads = SignalThreads::new(4);
            let greedy = Server::bind(&folder.path().join("greedy"), options).expect("bound");
            let other = Server::bind(&folder.path().join("other"), ServerOptions::default());
            let other = other.expect("bound");
            let (its, others) = (TestDevice::new(), TestDevice::new());
            let stop = [Stop::new().expect("made"), Stop::new().expect("made")];
            std::thread::scope(|scope| {
                let running = [
                    scope.spawn(|| greedy.run(&its, &stop[0])),
                    scope.spawn(|| other.run(&others, &stop[1])),
                ];
                let ends = Ends(&stop);
                let mut client = open(greedy.path());
                // It gets what it may have, and no more; not by coming again, either.
                assert_eq!(connect(&mut client, &eventfds(5)), Err(Errno::EAGAIN));
                // Those that it was given end, each a moment after its eventfd.
                let four = eventfds(4);
                soon("four threads", || connect(&mut client, &four).is_ok());
                assert_eq!(connect(&mut client, &eventfds(1)), Err(Errno::EAGAIN));
                interrupt(&mut client);
                soon("an interrupt", || four[0].read() == Ok(1));
                // Another has its own.
                let mut another = open(other.path());
                let eight = eventfds(8);
                connect(&mut another, &eight).expect("connected");
                interrupt(&mut another);
                soon("an interrupt", || eight[0].read() == Ok(1));
                soon("twelve threads with a name", || signalling() == 12);
                drop(ends);
                for running in running {
                    running.join().expect("it ran").expect("it stopped");
                }
            });
        });
        filtered.join().expect("it ran");
    });
    // This thread was never without: what failed is not kept for ever.
    soon("asynchronous I/O", || Eventfd::prepare().is_ok());
    soon("the threads' end", || signalling() == 0);
    let client = &eventfds(1)[0];
    let duplicate = client.as_fd().try_clone_to_owned().expect("a duplicate");
    let server = Eventfd::new(duplicate).expect("taken");
    server.signal().expect("signalled");
    assert_eq!(client.read(), Ok(1), "at once");
    assert_eq!(signalling(), 0);
}
