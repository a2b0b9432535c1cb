//! Clients that are killed with their queue full: the server writes no memory of theirs after it has let the next client in.
//!
//! Ten by default, 1,000 with `NVME_VFIO_SOAK=1`; `NVME_VFIO_SEED` repeats a run.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use nvme_vfio::{Address, Controller, Options, QueueOptions};
use nvme_vfio_emulator::{Config, Emulator, Patience, ServedController, served_domain};
use nvme_vfio_user::{Client, ClientOptions, Server, ServerOptions, Stop};

const ADDRESS: &str = "NVME_VFIO_TEST_LOAD";
const DEPTH: u32 = 128;
/// What the longest command takes. The depth is always full then.
const SLOWEST: Duration = Duration::from_millis(20);
/// What the driver calls its memory.
const MEMORY: &str = "/memfd:nvme-vfio-dma";
const MARK: u8 = 0xa5;

/// Not a test by itself: the client, a process of its own, which is killed.
#[test]
fn loading_process() {
    let Ok(address) = std::env::var(ADDRESS) else {
        return;
    };
    nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGKILL).unwrap();
    // A file of hugepages cannot be written to by the process that watches, only mapped.
    let options = Options {
        hugepages: false,
        ..Options::default()
    };
    let address = address.parse::<Address>().unwrap();
    let controller = Controller::open_with(&address, options).unwrap();
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
                queue.write(&namespace, token % 500 * 16, buffer, token)
            } else {
                queue.read(&namespace, token % 500 * 16, buffer, token)
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
    let soak = std::env::var_os("NVME_VFIO_SOAK").is_some_and(|value| value == "1");
    let count = if soak { 1000 } else { 10 };
    let seed = nvme_vfio_seeded::seed("killed clients", 1);
    let folder = tempfile::tempdir().unwrap();
    let slowest = SLOWEST.as_millis();
    // Completions that come late, and data that comes late: the file's are moved by other threads.
    let configs = [
        format!("size=16M,latency.read=1ms..{slowest}ms,latency.write=1ms..{slowest}ms"),
        format!(
            "size=16M,backend=file:{}",
            folder.path().join("data").display()
        ),
    ];
    for config in configs {
        println!("{config}: {} clients, seed {seed}", count / 2);
        killed(&folder.path().join("socket"), &config, count / 2, seed);
    }
}

fn killed(path: &Path, config: &str, count: u64, seed: u64) {
    let config: Config = config.parse().unwrap();
    let emulator = Emulator::in_domain(config.clone(), served_domain(config.mappings)).unwrap();
    let served = ServedController::new(Arc::clone(&emulator), Patience::default()).unwrap();
    let _thread = emulator.spawn().unwrap();
    let server = Server::bind(path, ServerOptions::default()).unwrap();
    let stop = Stop::new().unwrap();
    thread::scope(|scope| {
        let running = scope.spawn(|| server.run(&served, &stop));
        /// Ends the server when a check fails, too.
        struct Ends<'a>(&'a Stop);
        impl Drop for Ends<'_> {
            fn drop(&mut self) {
                self.0.set();
            }
        }
        let ends = Ends(&stop);
        let mut random = seed;
        for number in 0..count {
            random = random
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            round(server.path(), Duration::from_micros(random >> 52), number);
        }
        drop(ends);
        running.join().unwrap().unwrap();
    });
    assert_eq!(emulator.iommu().fault_count(), 0, "DMA without a mapping");
    let statistics = emulator.statistics();
    println!("{} commands", statistics.commands);
    assert!(statistics.commands > u64::from(DEPTH) * count);
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
    assert!(lent() > 0, "nothing of the client is mapped");
    thread::sleep(delay);
    let killed = Instant::now();
    drop(child);
    // Let in means that the server has let go of what the last one lent.
    let _next = Client::connect(path, &ClientOptions::default()).unwrap();
    assert_eq!(lent(), 0, "memory of client {number} is still mapped");
    let waited = killed.elapsed();
    // Milliseconds, on a machine that has time.
    assert!(waited < Duration::from_secs(30), "{waited:?}");
    for (file, length) in &memory {
        file.write_all_at(&vec![MARK; *length], 0).unwrap();
    }
    // Whatever was in flight would end in that time.
    thread::sleep(SLOWEST + Duration::from_millis(5));
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

/// How much memory of clients is mapped in this process, the server's.
fn lent() -> usize {
    std::fs::read_to_string("/proc/self/maps")
        .unwrap()
        .lines()
        .filter(|line| line.contains(MEMORY))
        .count()
}

/// A process that is killed and waited for.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
