//! The controller over a socket, with a client that keeps to no rules: memory that is cut, taken back in the middle, or left behind.

use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::sys::memfd::{MFdFlags, memfd_create};
use nvme_vfio_emulator::{Emulator, EmulatorThread, Patience, ServedController, served_domain};
use nvme_vfio_user::device::DmaAccess;
use nvme_vfio_user::{Client, ClientOptions, Server, ServerOptions, Stop, sigbus};

/// One service at a time, so that the descriptors of this process can be counted.
static ALONE: Mutex<()> = Mutex::new(());

/// How long what is under way may take on a machine that is busy.
const PATIENCE: Duration = Duration::from_secs(60);

/// A server in this process.
struct Service {
    _folder: tempfile::TempDir,
    path: PathBuf,
    emulator: Arc<Emulator>,
    stop: Arc<Stop>,
    server: Option<JoinHandle<()>>,
    _thread: EmulatorThread,
    _alone: MutexGuard<'static, ()>,
}

impl Service {
    fn start() -> Service {
        let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        sigbus::install().unwrap();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("sock");
        let config = "size=64M,lba=4096,mqes=64".parse().unwrap();
        let emulator = Emulator::in_domain(config, served_domain(64)).unwrap();
        let thread = emulator.spawn().unwrap();
        let patience = Patience {
            abort: PATIENCE,
            fatal: Some(PATIENCE),
        };
        let served = ServedController::new(Arc::clone(&emulator), patience).unwrap();
        let stop = Arc::new(Stop::new().unwrap());
        let server = Server::bind(&path, ServerOptions::default()).unwrap();
        let stopped = Arc::clone(&stop);
        let server = std::thread::spawn(move || server.run(&served, &stopped).unwrap());
        Service {
            _folder: folder,
            path,
            emulator,
            stop,
            server: Some(server),
            _thread: thread,
            _alone: alone,
        }
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        self.stop.set();
        if let Some(server) = self.server.take() {
            server.join().unwrap();
        }
    }
}

const RINGS: u64 = 0x4000_0000_0000;
const DATA: u64 = 0x10_0000_0000;
const LENGTH: u64 = 64 << 10;
const ENTRIES: u32 = 32;
/// Where the I/O rings are in the memory of the rings.
const SUBMISSION: u64 = 0x2000;
const COMPLETION: u64 = 0x4000;
const DOORBELLS: u64 = 0x1000;

/// A client with rings in memory that nobody has sealed.
struct Host {
    client: Client,
    rings: File,
    tail: u32,
}

fn memory() -> File {
    let file = File::from(memfd_create(c"host", MFdFlags::MFD_CLOEXEC).unwrap());
    file.set_len(LENGTH).unwrap();
    file
}

fn both() -> DmaAccess {
    DmaAccess::READ | DmaAccess::WRITE
}

fn until(mut done: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < end, "it never came");
        std::thread::yield_now();
    }
}

impl Host {
    /// Connects, enables the controller and makes an I/O queue pair.
    fn new(path: &Path) -> Host {
        let options = ClientOptions { timeout: PATIENCE };
        let client = Client::connect(path, &options).unwrap();
        let rings = memory();
        client
            .dma_map(RINGS, LENGTH, both(), Some((rings.as_fd(), 0)))
            .unwrap();
        let host = Host {
            client,
            rings,
            tail: 0,
        };
        host.client.region_write(7, 4, &[6, 0]).unwrap();
        host.write(0x24, 15 << 16 | 15);
        for (register, iova) in [(0x28, RINGS), (0x30, RINGS + 0x1000)] {
            host.client
                .region_write(0, register, &iova.to_le_bytes())
                .unwrap();
        }
        host.write(0x14, 4 << 20 | 6 << 16 | 1);
        until(|| host.read(0x1c) & 1 == 1);
        for (slot, opcode, offset, dword11) in
            [(0, 5, COMPLETION, 1), (1, 1, SUBMISSION, 1 << 16 | 1)]
        {
            let iova = RINGS + offset;
            host.entry(
                slot * 64,
                &[
                    (0, opcode),
                    (6, iova as u32),
                    (7, (iova >> 32) as u32),
                    (10, (ENTRIES - 1) << 16 | 1),
                    (11, dword11),
                ],
            );
        }
        host.write(DOORBELLS, 2);
        until(|| host.completion(0x1000 + 16) >> 16 & 1 == 1);
        host
    }

    fn write(&self, offset: u64, value: u32) {
        self.client
            .region_write(0, offset, &value.to_le_bytes())
            .unwrap();
    }

    fn read(&self, offset: u64) -> u32 {
        let mut bytes = [0; 4];
        self.client.region_read(0, offset, &mut bytes).unwrap();
        u32::from_le_bytes(bytes)
    }

    fn entry(&self, place: u64, dwords: &[(usize, u32)]) {
        let mut bytes = [0; 64];
        for &(index, value) in dwords {
            bytes[index * 4..][..4].copy_from_slice(&value.to_le_bytes());
        }
        self.rings.write_all_at(&bytes, place).unwrap();
    }

    /// The last dword of a completion entry.
    fn completion(&self, place: u64) -> u32 {
        let mut bytes = [0; 4];
        self.rings.read_exact_at(&mut bytes, place + 12).unwrap();
        u32::from_le_bytes(bytes)
    }

    fn lend(&self) -> File {
        let data = memory();
        self.client
            .dma_map(DATA, LENGTH, both(), Some((data.as_fd(), 0)))
            .unwrap();
        data
    }

    /// Fills the ring with reads of a block into the lent memory, and rings.
    fn flood(&mut self) {
        let count = ENTRIES - 1;
        for _ in 0..count {
            let iova = DATA + u64::from(self.tail % 16) * 4096;
            self.entry(
                SUBMISSION + u64::from(self.tail) * 64,
                &[
                    (0, self.tail << 16 | 2),
                    (1, 1),
                    (6, iova as u32),
                    (7, (iova >> 32) as u32),
                ],
            );
            self.tail = (self.tail + 1) % ENTRIES;
        }
        self.write(DOORBELLS + 8, self.tail);
    }

    /// Waits for the completions of a flood and takes them.
    fn drain(&self) {
        // All but one entry of the ring were used, from the one after the last ring on.
        let last = (self.tail + ENTRIES - 1) % ENTRIES;
        until(|| self.completion(COMPLETION + u64::from(last) * 16) as u16 == last as u16);
        self.write(DOORBELLS + 12, self.tail);
    }
}

#[test]
fn memory_that_was_given_back_is_not_touched_again() {
    let service = Service::start();
    let mut host = Host::new(&service.path);
    for _ in 0..200 {
        let data = host.lend();
        host.flood();
        host.client.dma_unmap(DATA, LENGTH).unwrap();
        data.write_all_at(&[0xee; LENGTH as usize], 0).unwrap();
        // Whatever is left of the flood finds no memory.
        host.drain();
        let mut bytes = vec![0; LENGTH as usize];
        data.read_exact_at(&mut bytes, 0).unwrap();
        assert!(bytes.iter().all(|&byte| byte == 0xee));
        assert_eq!(host.read(0x1c), 1, "the controller goes on");
    }
}

#[test]
fn a_client_that_cuts_its_memory_ends_its_own_session() {
    let service = Service::start();
    for _ in 0..5 {
        let mut host = Host::new(&service.path);
        let data = host.lend();
        data.set_len(0).unwrap();
        host.flood();
        until(|| host.client.region_read(0, 0x1c, &mut [0; 4]).is_err());
        until(|| service.emulator.iommu().mappings().is_empty());
    }
    let mut host = Host::new(&service.path);
    let _data = host.lend();
    host.flood();
    host.drain();
}

#[test]
fn a_client_that_leaves_in_the_middle_leaves_nothing() {
    let service = Service::start();
    let descriptors = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    let mut before = 0;
    for round in 0..50 {
        let mut host = Host::new(&service.path);
        let data = host.lend();
        host.flood();
        drop(host.client);
        until(|| service.emulator.iommu().mappings().is_empty());
        data.write_all_at(&[0xee; LENGTH as usize], 0).unwrap();
        std::thread::sleep(Duration::from_millis(2));
        let mut bytes = vec![0; LENGTH as usize];
        data.read_exact_at(&mut bytes, 0).unwrap();
        assert!(bytes.iter().all(|&byte| byte == 0xee));
        drop((data, host.rings));
        match round {
            10 => before = descriptors(),
            // The last things of a client are closed after its memory was given back.
            49 => until(|| descriptors() <= before),
            _ => {}
        }
    }
    assert_eq!(service.emulator.iommu().fault_count(), 0);
}
