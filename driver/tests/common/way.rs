//! An emulated controller, in this process or behind a vfio-user socket, with its emulator at hand in both cases.

use std::path::PathBuf;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nvme_vfio::Transport;
use nvme_vfio::transport::{EmulatedTransport, VfioUserTransport};
use nvme_vfio_emulator::{
    Config, Emulator, EmulatorThread, Patience, ServedController, served_domain,
};
use nvme_vfio_user::{ClientOptions, Server, ServerOptions, Stop};
use tempfile::TempDir;

/// Makes two tests of each function: one on a controller in this process, one on a served controller.
macro_rules! ways {
    [$($name:ident),* $(,)?] => {
        mod in_process {
            $(
                #[test]
                fn $name() {
                    super::$name($crate::way::Way::InProcess);
                }
            )*
        }

        mod over_vfio_user {
            $(
                #[test]
                fn $name() {
                    super::$name($crate::way::Way::VfioUser);
                }
            )*
        }
    };
}

/// How long something that happens in another thread may take.
const SOON: Duration = Duration::from_secs(60);

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
    folder: TempDir,
    _thread: EmulatorThread,
}

/// Where a server listens.
fn socket(folder: &TempDir) -> PathBuf {
    folder.path().join("socket")
}

impl Served {
    fn new(emulator: &Arc<Emulator>) -> Served {
        let folder = tempfile::tempdir().unwrap();
        let server = Server::bind(&socket(&folder), ServerOptions::default()).unwrap();
        let stop = Arc::new(Stop::new().unwrap());
        let device = ServedController::new(Arc::clone(emulator), Patience::default()).unwrap();
        let stopped = Arc::clone(&stop);
        let server = thread::spawn(move || server.run(&device, &stopped).unwrap());
        Served {
            stop,
            server: Some(server),
            folder,
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
            match VfioUserTransport::open(&socket(&served.folder), &ClientOptions::default()) {
                Ok(transport) => return Arc::new(transport),
                Err(error) => assert!(start.elapsed() < SOON, "{error}"),
            }
            thread::sleep(Duration::from_millis(1));
        }
    }
}

impl Way {
    /// How long a test waits for an admin command that never ends. Those that do end take less, whatever else the machine does: here whoever waits steps the controller, and looks once
    /// more when the time is over, there three other threads must have run.
    pub(crate) fn in_vain(self) -> Duration {
        match self {
            Way::InProcess => Duration::from_secs(1),
            Way::VfioUser => Duration::from_secs(5),
        }
    }

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
}
