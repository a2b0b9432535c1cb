//! A server that may have no more descriptors open. One test: the limit is the process's.

mod common;

use std::os::fd::{AsFd, AsRawFd};
use std::sync::{Arc, Mutex};

use common::*;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nvme_vfio_user::device::Errno;
use nvme_vfio_user::message::Request;
use nvme_vfio_user::{Doorkeeper, Peer, Server, ServerOptions, SessionEnd, Stop};

/// Writes down why clients have left.
#[derive(Debug, Default)]
struct Ends(Mutex<Vec<String>>);

impl Doorkeeper for Ends {
    fn admit(&self, _: &Peer) -> Result<(), Errno> {
        Ok(())
    }

    fn left(&self, _: &Peer, why: &SessionEnd) {
        self.0.lock().expect("a list").push(why.to_string());
    }
}

#[test]
fn whose_descriptors_the_server_could_not_have_is_not_blamed() {
    let ends = Arc::<Ends>::default();
    let options = ServerOptions {
        doorkeeper: Some(Arc::clone(&ends) as _),
        ..ServerOptions::default()
    };
    let folder = tempfile::tempdir().expect("a directory");
    let server = Server::bind(&folder.path().join("socket"), options).expect("bound");
    let (device, stop) = (TestDevice::new(), Stop::new().expect("descriptors"));
    let null = std::fs::File::open("/dev/null").expect("open");
    std::thread::scope(|scope| {
        let running = scope.spawn(|| server.run(&device, &stop));
        let stopping = StopAtEnd(&stop);
        let mut client = Client::connect(server.path());
        client.ask(&VERSION, &[]).expect("let in");
        let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).expect("a limit");
        // From the lowest number that is free, no more than two.
        let limit = null.try_clone().expect("a duplicate").as_raw_fd() as u64 + 2;
        setrlimit(Resource::RLIMIT_NOFILE, limit, hard).expect("set");
        client.send(&Request::DeviceGetInfo, &[null.as_fd(); 4]);
        assert!(client.receive().is_err());
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard).expect("set");
        // Let in only when the end of the one before has been told.
        let mut next = Client::connect(server.path());
        next.ask(&VERSION, &[]).expect("let in");
        let told = ends.0.lock().expect("a list").clone();
        assert!(
            matches!(told.as_slice(), [why] if why.starts_with("descriptors beside a message were lost")),
            "{told:?}"
        );
        drop(stopping);
        running.join().expect("it ran").expect("it stopped");
    });
}
