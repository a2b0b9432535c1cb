//! The emulated controller in a process of its own, which this test program starts: itself, asked to serve.
#![allow(dead_code)] // each test binary uses its part of it

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;
use nvme_vfio::{Address, Controller, Error, Options};
use nvme_vfio_emulator::{Config, Emulator, Patience, ServedController, served_domain};
use nvme_vfio_user::device::{
    Device, DeviceInfo, DmaAccess, Errno, Irq, IrqAction, IrqData, Progress, Region,
};
use nvme_vfio_user::{ClientMemory, Server, ServerOptions, Stop};

/// Names the test that a process is to run to be the server.
const SERVING: &str = "serving_process";
const SOCKET: &str = "NVME_VFIO_TEST_SERVE";
const CONFIG: &str = "NVME_VFIO_TEST_SERVE_CONFIG";
const DOORBELLS: &str = "NVME_VFIO_TEST_SERVE_DOORBELLS";

/// How long a process gets to begin or to end.
const A_WHILE: Duration = Duration::from_secs(60);

/// Whether the server lets doorbells be mapped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Doorbells {
    Mapped,
    ByMessage,
}

/// A process that serves a controller, killed when this is dropped.
#[derive(Debug)]
pub(crate) struct ServedProcess {
    child: Child,
    config: String,
    doorbells: Doorbells,
    folder: tempfile::TempDir,
}

impl ServedProcess {
    pub(crate) fn start(config: &str, doorbells: Doorbells) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        Self {
            child: spawn(&path, config, doorbells),
            config: config.to_owned(),
            doorbells,
            folder,
        }
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.folder.path().join("socket")
    }

    pub(crate) fn address(&self) -> Address {
        format!("vfio-user:{}", self.path().display())
            .parse()
            .unwrap()
    }

    pub(crate) fn open(&self, options: Options) -> Result<Controller, Error> {
        Controller::open_with(&self.address(), options)
    }

    pub(crate) fn signal(&self, signal: Signal) {
        let pid = nix::unistd::Pid::from_raw(self.child.id() as i32);
        nix::sys::signal::kill(pid, signal).unwrap();
    }

    /// Ends the process as `kill -9` does.
    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Another process in the place of one that was killed.
    pub(crate) fn restart(&mut self) {
        // What the last one left behind is no sign that the next one listens. (The next one takes its socket's place.)
        std::fs::remove_file(ready(&self.path())).unwrap();
        self.child = spawn(&self.path(), &self.config, self.doorbells);
    }
}

impl Drop for ServedProcess {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What is there once the socket is listened on.
fn ready(path: &Path) -> PathBuf {
    path.with_extension("ready")
}

fn spawn(path: &Path, config: &str, doorbells: Doorbells) -> Child {
    let child = Command::new(std::env::current_exe().unwrap())
        .args([SERVING, "--exact", "--nocapture"])
        .env(SOCKET, path)
        .env(CONFIG, config)
        .env(DOORBELLS, format!("{doorbells:?}"))
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let start = Instant::now();
    while !ready(path).exists() {
        assert!(start.elapsed() < A_WHILE, "the server does not begin");
        thread::sleep(Duration::from_millis(1));
    }
    child
}

/// Serves for good where this process was started for it.
pub(crate) fn serve_if_asked() {
    let Some(path) = std::env::var_os(SOCKET) else {
        return;
    };
    // Neither the test's end nor a forgotten process may leave one behind.
    set_pdeathsig(Signal::SIGKILL).unwrap();
    thread::spawn(|| {
        thread::sleep(Duration::from_secs(900));
        std::process::exit(1);
    });
    let config: Config = std::env::var(CONFIG).unwrap().parse().unwrap();
    let emulator = Emulator::in_domain(config.clone(), served_domain(config.mappings)).unwrap();
    let controller = ServedController::new(emulator, Patience::default()).unwrap();
    let _thread = controller.emulator().spawn().unwrap();
    let mut options = ServerOptions::default();
    options.session.capabilities.max_dma_maps = config.mappings;
    let server = Server::bind(Path::new(&path), options).unwrap();
    std::fs::write(ready(Path::new(&path)), "").unwrap();
    let stop = Stop::new().unwrap();
    if std::env::var(DOORBELLS).as_deref() == Ok("ByMessage") {
        server.run(&ByMessage(controller), &stop).unwrap();
    } else {
        server.run(&controller, &stop).unwrap();
    }
}

/// The same controller, of which nothing can be mapped.
struct ByMessage(ServedController);

impl Device for ByMessage {
    fn info(&self) -> DeviceInfo {
        self.0.info()
    }

    fn region(&self, index: u32) -> Option<Region<'_>> {
        let region = self.0.region(index)?;
        Some(Region {
            mapping: None,
            flags: region.flags - nvme_vfio_user::device::RegionFlags::MMAP,
            ..region
        })
    }

    fn irq(&self, index: u32) -> Option<Irq> {
        self.0.irq(index)
    }

    fn region_read(&self, index: u32, offset: u64, data: &mut [u8]) -> Result<(), Errno> {
        self.0.region_read(index, offset, data)
    }

    fn region_write(&self, index: u32, offset: u64, data: &[u8]) -> Result<(), Errno> {
        self.0.region_write(index, offset, data)
    }

    fn set_irqs(
        &self,
        index: u32,
        range: Range<u32>,
        action: IrqAction,
        data: IrqData,
    ) -> Result<(), Errno> {
        self.0.set_irqs(index, range, action, data)
    }

    fn dma_map(
        &self,
        iova: u64,
        length: u64,
        access: DmaAccess,
        memory: Option<ClientMemory>,
    ) -> Result<(), Errno> {
        self.0.dma_map(iova, length, access, memory)
    }

    fn dma_unmap(&self, iova: u64, length: u64) -> Result<Progress, Errno> {
        self.0.dma_unmap(iova, length)
    }

    fn unmapping(&self, iova: u64, length: u64) -> Result<Progress, Errno> {
        self.0.unmapping(iova, length)
    }

    fn reset(&self) -> Result<(), Errno> {
        self.0.reset()
    }

    fn disconnected(&self) -> Progress {
        self.0.disconnected()
    }
}
