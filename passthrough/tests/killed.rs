//! Clients of a lent controller that are killed with their queue full: the device touches no memory of theirs after the server has let the next one in, nobody else gets their
//! completions, and their neighbour notices nothing.
//!
//! 100 clients, 10,000 with `NVME_VFIO_SOAK=1`; `NVME_VFIO_SEED` repeats a run.

mod common;
#[path = "../src/scratch.rs"]
mod scratch;

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use common::{seeded, whole};
use nvme_vfio::transport::EmulatedTransport;
use nvme_vfio::{Address, Controller, Options, QueueOptions};
use nvme_vfio_emulator::Emulator;
use nvme_vfio_passthrough::policy::PolicyFile;
use nvme_vfio_passthrough::server::{OpenedGroup, ServeOptions, Serving};
use nvme_vfio_user::{Client, ClientOptions};

const ADDRESS: &str = "NVME_VFIO_TEST_LOAD";
const DEPTH: u32 = 128;
/// What the longest command takes. The depth is always full then.
const SLOWEST: Duration = Duration::from_millis(5);
/// What the driver calls its memory.
const MEMORY: &str = "/memfd:nvme-vfio-dma";
const MARK: u8 = 0xa5;

/// Memory from small pages: a file of hugepages cannot be written to by the process that watches, only mapped.
fn options() -> Options {
    Options {
        hugepages: false,
        ..Options::default()
    }
}

/// Not a test by itself: the client, a process of its own, which is killed.
#[test]
fn loading_process() {
    let Ok(address) = std::env::var(ADDRESS) else {
        return;
    };
    nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGKILL).unwrap();
    let address = address.parse::<Address>().unwrap();
    let controller = Controller::open_with(&address, options()).unwrap();
    let namespace = controller.only_namespace().unwrap();
    let mut queue = controller
        .io_queue(QueueOptions::with_depth(DEPTH))
        .unwrap();
    let mut spare: Vec<_> = (0..DEPTH)
        .map(|_| controller.allocate(8192).unwrap())
        .collect();
    let mut token = 0;
    let mut told = false;
    loop {
        while let Some(buffer) = spare.pop() {
            token += 1;
            let submitted = if token % 4 == 0 {
                queue.write(&namespace, token % 100 * 16, buffer, token)
            } else {
                queue.read(&namespace, token % 100 * 16, buffer, token)
            };
            submitted.unwrap_or_else(|refused| panic!("{}", refused.error));
        }
        queue.ring();
        if !told && token > u64::from(DEPTH) * 2 {
            println!("\nat full depth");
            told = true;
        }
        while let Some(completion) = queue.poll() {
            completion.result().unwrap();
            spare.extend(completion.buffer);
        }
    }
}

#[test]
fn a_killed_client_gets_its_memory_back_untouched() {
    let count = whole("NVME_VFIO_SOAK", 10_000);
    let mut random = seeded("killed clients");
    let folder = scratch::folder();
    let uid = nix::unistd::geteuid().as_raw();
    let client = |name: &str, isolation: &str, start: u64| {
        format!(
            "[[client]]\nname = \"{name}\"\nuid = [{uid}]\nisolation = \"{isolation}\"\n[[client.namespace]]\nnsid = 1\nsource = [{{ nsid = 1, start = {start}, blocks = 4000 }}]\nallow = [\"read\", \"write\", \"flush\"]\n"
        )
    };
    let policy = format!(
        "controller = [\"emulated\"]\ndirectory = \"sockets\"\naudit = {{ path = \"audit.jsonl\" }}\n{}{}{}",
        client("lent", "shared", 0),
        client("copied", "bounce", 4000),
        client("neighbour", "shared", 8000),
    );
    let policy = PolicyFile::parse(&policy, folder.path()).unwrap();
    let slowest = SLOWEST.as_micros();
    let config =
        format!("size=16M,latency.read=100us..{slowest}us,latency.write=100us..{slowest}us");
    let device = Emulator::new(config.parse().unwrap()).unwrap();
    let transport = EmulatedTransport::running(Arc::clone(&device)).unwrap();
    let controller = Controller::with_transport(Arc::new(transport), options()).unwrap();
    let group = OpenedGroup::of(&policy, vec![controller]).unwrap();
    let serving = Serving::with_group(&policy, group, &ServeOptions::default()).unwrap();
    let sockets: Vec<_> = serving.clients().map(|(_, path)| path.to_owned()).collect();
    let (stop, verified) = (AtomicBool::new(false), AtomicU64::new(0));
    thread::scope(|scope| {
        let neighbour = scope.spawn(|| neighbour(&sockets[2], &stop, &verified));
        /// The neighbour ends when a check fails, too.
        struct Ends<'a>(&'a AtomicBool);
        impl Drop for Ends<'_> {
            fn drop(&mut self) {
                self.0.store(true, Ordering::Relaxed);
            }
        }
        let ends = Ends(&stop);
        for number in 0..count {
            let delay = Duration::from_micros(random.below(4_000));
            round(&sockets[(number % 2) as usize], delay, number);
            assert_eq!(
                device.iommu().fault_count(),
                0,
                "the device reached memory that was given back"
            );
        }
        drop(ends);
        neighbour.join().unwrap();
    });
    let summary = serving.finish().unwrap();
    println!(
        "{count} clients killed; {} commands, {} blocks of the neighbour verified meanwhile",
        summary.commands,
        verified.load(Ordering::Relaxed)
    );
    assert_eq!(
        summary.resets, 0,
        "one client's end reset the controller of all"
    );
    assert!(summary.commands > u64::from(DEPTH) * count);
    assert!(verified.load(Ordering::Relaxed) > count);
}

/// Another client: it writes and reads back all the time, and has no error and no foreign data.
fn neighbour(socket: &Path, stop: &AtomicBool, verified: &AtomicU64) {
    let address = Address::VfioUser(socket.to_owned());
    let controller = Controller::open_with(&address, options()).unwrap();
    let namespace = controller.only_namespace().unwrap();
    let mut queue = controller.io_queue(QueueOptions::with_depth(8)).unwrap();
    let mut buffer = controller.allocate(8192).unwrap();
    let mut turn = 0u64;
    while !stop.load(Ordering::Relaxed) {
        turn += 1;
        let lba = turn % 200 * 16;
        let pattern = turn.to_le_bytes();
        buffer
            .chunks_mut(8)
            .for_each(|word| word.copy_from_slice(&pattern));
        buffer = queue.write_blocking(&namespace, lba, buffer).unwrap();
        buffer.fill(0);
        buffer = queue.read_blocking(&namespace, lba, buffer).unwrap();
        assert!(
            buffer.chunks(8).all(|word| word == pattern),
            "the neighbour's data is not its own"
        );
        verified.fetch_add(16, Ordering::Relaxed);
    }
}

/// One client: started, killed after `delay` at full depth, and its memory watched.
fn round(path: &Path, delay: Duration, number: u64) {
    let mut child = Killed(
        Command::new(std::env::current_exe().unwrap())
            .args(["loading_process", "--exact", "--nocapture"])
            .env(ADDRESS, format!("vfio-user:{}", path.display()))
            .stdout(Stdio::piped())
            .spawn()
            .unwrap(),
    );
    let output = BufReader::new(child.0.stdout.take().unwrap());
    let ready = output
        .lines()
        .any(|line| line.is_ok_and(|line| line == "at full depth"));
    assert!(ready, "client {number} did not get going");
    let memory = memory(child.0.id());
    assert!(!memory.is_empty());
    assert!(mapped(&memory) > 0, "nothing of the client is mapped");
    thread::sleep(delay);
    let killed = Instant::now();
    drop(child);
    // Let in means that the server has let go of what the last one lent.
    let _next = Client::connect(path, &ClientOptions::default()).unwrap();
    assert_eq!(
        mapped(&memory),
        0,
        "memory of client {number} is still mapped"
    );
    let waited = killed.elapsed();
    // Milliseconds, on a machine that has time.
    assert!(waited < Duration::from_secs(30), "{waited:?}");
    for (file, length) in &memory {
        file.write_all_at(&vec![MARK; *length], 0).unwrap();
    }
    // Whatever was in flight would end in that time.
    thread::sleep(SLOWEST + Duration::from_millis(2));
    for (file, length) in &memory {
        let mut bytes = vec![0; *length];
        file.read_exact_at(&mut bytes, 0).unwrap();
        let touched = bytes.iter().position(|byte| *byte != MARK);
        assert_eq!(touched, None, "memory of client {number} was written late");
    }
}

/// The memory of another process of this driver, as files.
fn memory(pid: u32) -> Vec<(File, usize)> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap() {
        let path = entry.unwrap().path();
        let link = std::fs::read_link(&path);
        if link.is_ok_and(|link| link.to_string_lossy().starts_with(MEMORY)) {
            let file = File::options().read(true).write(true).open(path).unwrap();
            let length = file.metadata().unwrap().len() as usize;
            found.push((file, length));
        }
    }
    found
}

/// How many mappings of these files this process, the server's, has.
fn mapped(files: &[(File, usize)]) -> usize {
    let inodes: Vec<String> = files
        .iter()
        .map(|(file, _)| file.metadata().unwrap().ino().to_string())
        .collect();
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let ours = maps.lines().filter(|line| {
        let inode = line.split_whitespace().nth(4).unwrap_or_default();
        line.contains(MEMORY) && inodes.iter().any(|one| one == inode)
    });
    ours.count()
}

/// A process that is killed and waited for.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
