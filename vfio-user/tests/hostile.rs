//! Connections that send whatever they like. The server is a process of its own, so that what it keeps can be counted from outside.
//!
//! A hundred connections by default, 10,000 with `NVME_VFIO_SOAK=1`; `NVME_VFIO_SEED` repeats a run.

mod common;

use std::io::{BufRead, BufReader, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use common::*;
use nix::sys::eventfd::{EfdFlags, EventFd};
use nvme_vfio_user::device::{DmaAccess, Errno, IrqAction};
use nvme_vfio_user::message::{
    self, DmaMap, DmaUnmap, Header, IrqSetData, RegionAccess, RegionWrites, Request, SetIrqs,
    SmallWrite, Version,
};
use nvme_vfio_user::{Server, ServerOptions, SessionOptions, Socket, Stop, sigbus};

const SERVE: &str = "NVME_VFIO_USER_HOSTILE_SOCKET";

/// splitmix64: enough to choose by.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    fn one_in(&mut self, count: u64) -> bool {
        self.below(count) == 0
    }

    /// Mostly small, sometimes at an edge, sometimes anything.
    fn number(&mut self) -> u64 {
        match self.below(8) {
            0 => self.next(),
            1 => u64::MAX - self.below(3),
            2 => (1 << self.below(64)) - self.below(2),
            3 => 2 * PAGE - self.below(9),
            _ => self.below(64),
        }
    }

    fn bytes(&mut self, most: u64) -> Vec<u8> {
        (0..self.below(most)).map(|_| self.next() as u8).collect()
    }

    fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[self.below(from.len() as u64) as usize]
    }
}

/// The server's process.
struct Served {
    process: Child,
    /// Kept: a test program whose output nobody takes ends when it has run for a minute, and says so.
    _output: BufReader<ChildStdout>,
    path: PathBuf,
}

/// What a process keeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Kept {
    descriptors: usize,
    mappings: usize,
    resident: u64,
}

impl Served {
    fn start(folder: &Path) -> Self {
        let path = folder.join("socket");
        let mut process = Command::new(std::env::current_exe().expect("this test's program"))
            .args([
                "--exact",
                "random_connections_leave_nothing_behind",
                "--nocapture",
            ])
            .env(SERVE, &path)
            .stdout(Stdio::piped())
            .spawn()
            .expect("it runs");
        let mut output = BufReader::new(process.stdout.take().expect("its output"));
        let ready = output
            .by_ref()
            .lines()
            .any(|line| line.is_ok_and(|line| line.ends_with("serving")));
        assert!(ready, "the server does not start");
        Self {
            process,
            _output: output,
            path,
        }
    }

    fn kept(&self) -> Kept {
        let folder = PathBuf::from(format!("/proc/{}", self.process.id()));
        let status = std::fs::read_to_string(folder.join("status")).expect("its status");
        let resident = status
            .lines()
            .find_map(|line| {
                line.strip_prefix("VmRSS:")?
                    .trim()
                    .strip_suffix(" kB")?
                    .parse()
                    .ok()
            })
            .expect("its resident memory");
        let maps = std::fs::read_to_string(folder.join("maps")).expect("its mappings");
        Kept {
            descriptors: std::fs::read_dir(folder.join("fd"))
                .expect("its descriptors")
                .count(),
            mappings: maps.lines().filter(|line| line.contains("lent")).count(),
            resident,
        }
    }

    /// What it keeps when nobody is connected, which may take it a while: with so many descriptors, where that is known already.
    fn at_rest(&self, descriptors: Option<usize>) -> Kept {
        let begun = Instant::now();
        let (mut last, mut same) = (self.kept(), 0);
        // Looks, and not a time: a machine that is held up holds up the server, too.
        while same < 50 && begun.elapsed() < Duration::from_secs(60) {
            std::thread::sleep(Duration::from_millis(20));
            let kept = self.kept();
            let rests =
                kept.mappings == 0 && kept.descriptors == descriptors.unwrap_or(last.descriptors);
            same = if rests { same + 1 } else { 0 };
            last = kept;
        }
        last
    }

    fn is_alive(&mut self) -> bool {
        self.process.try_wait().expect("its state").is_none()
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// The server's own process.
fn serve(path: &Path) -> ! {
    // A panic over a message ends its session only. Here it is what is looked for.
    let tell = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        tell(panic);
        std::process::abort();
    }));
    sigbus::install().expect("installed");
    let short = Duration::from_millis(50);
    let options = ServerOptions {
        session: SessionOptions {
            version_timeout: short,
            message_timeout: short,
            reply_timeout: short,
            ..SessionOptions::default()
        },
        ..ServerOptions::default()
    };
    let server = Server::bind(path, options).expect("bound");
    println!("serving");
    server
        .run(&TestDevice::new(), &Stop::new().expect("descriptors"))
        .expect("it ran");
    std::process::exit(0);
}

#[test]
fn random_connections_leave_nothing_behind() {
    if let Some(path) = std::env::var_os(SERVE) {
        serve(Path::new(&path));
    }
    let whole = std::env::var_os("NVME_VFIO_SOAK").is_some_and(|value| value == "1");
    let count = if whole { 10_000 } else { 100 };
    let what = format!("{count} connections");
    let mut random = Random(nvme_vfio_seeded::seed(&what, 0x5eed));
    let folder = tempfile::tempdir().expect("a directory");
    let mut served = Served::start(folder.path());
    // What is allocated once has been, and asynchronous I/O is set up.
    for _ in 0..100 {
        attack(&served.path, &mut random, folder.path());
    }
    good(&served.path);
    let before = served.at_rest(None);
    let mut admitted = 0;
    for number in 0..count {
        admitted += u32::from(attack(&served.path, &mut random, folder.path()));
        assert!(served.is_alive(), "the server died at connection {number}");
    }
    good(&served.path);
    let after = served.at_rest(Some(before.descriptors));
    println!("{admitted} sessions; before {before:?}, after {after:?}");
    assert!(served.is_alive());
    assert!(admitted > count / 2, "only {admitted} sessions");
    assert_eq!((after.descriptors, after.mappings), (before.descriptors, 0));
    assert!(after.resident < before.resident + 2048, "kB");
}

/// A client that behaves is served as if nothing had been.
fn good(path: &Path) {
    let begun = Instant::now();
    let mut client = loop {
        let mut client = Client::connect(path);
        let (bytes, id) = client.encode(&VERSION, false);
        // On a machine that is held up, the little time there is for a version may be over.
        if client.send_bytes(&bytes, &[]).is_ok()
            && let Ok(reply) = client.receive()
        {
            match answer(reply, id) {
                Ok(_) => break client,
                // The last one is still being sent away.
                Err(errno) => assert_eq!(errno, Errno::EBUSY),
            }
        }
        assert!(begun.elapsed() < Duration::from_secs(60));
        std::thread::sleep(Duration::from_millis(5));
    };
    let eventfd = EventFd::from_flags(EfdFlags::EFD_NONBLOCK).expect("an eventfd");
    let irqs = Request::DeviceSetIrqs(SetIrqs {
        index: MSIX,
        start: 0,
        count: 1,
        action: IrqAction::Trigger,
        data: IrqSetData::Eventfd,
    });
    client.ask(&irqs, &[eventfd.as_fd()]).expect("set up");
    let file = memfd(1);
    client.ask(&map(0, PAGE), &[file.as_fd()]).expect("mapped");
    let touch = Request::RegionWrite(
        RegionAccess {
            offset: TOUCH,
            region: CONFIG,
            count: 1,
        },
        &[1],
    );
    client.ask(&touch, &[]).expect("touched");
    let mut byte = [0];
    std::os::unix::fs::FileExt::read_exact_at(&file, &mut byte, 0).expect("read");
    assert_eq!(byte, [1]);
    client.ask(&write(BAR, 0, &[1]), &[]).expect("written");
    assert_eq!(eventfd.read(), Ok(1));
    client.ask(&unmap(0, PAGE), &[]).expect("unmapped");
}

fn write(region: u32, offset: u64, data: &[u8]) -> Request<'_> {
    let count = data.len() as u32;
    Request::RegionWrite(
        RegionAccess {
            offset,
            region,
            count,
        },
        data,
    )
}

/// One hostile connection. True when it came to a session.
fn attack(path: &Path, random: &mut Random, folder: &Path) -> bool {
    let mut client = Client::connect(path);
    let mut admitted = false;
    if random.one_in(8) {
        let _ = client.socket.try_send(&random.bytes(200), &[]);
    } else {
        let (bytes, id) = client.encode(&VERSION, false);
        let _ = client.socket.try_send(&bytes, &[]);
        if let Ok(reply) = client.receive() {
            admitted = answer(reply, id).is_ok();
        }
    }
    let files: Vec<std::fs::File> = (0..2).map(|_| memfd(1 + random.below(3))).collect();
    let descriptors = descriptors(random, folder, &files);
    for _ in 0..random.below(24) {
        if send(&mut client, random, &descriptors).is_err() {
            break;
        }
        match random.below(6) {
            // Replies are read, or one is, or they pile up.
            0..3 => while matches!(client.try_receive(), Ok(Some(_))) {},
            3 => {
                let _ = client.try_receive();
            }
            4 if random.one_in(4) => {
                // Memory is taken away, and the device made to touch it.
                let _ = files[0].set_len(random.below(2) * 4096);
                let (bytes, _) = client.encode(&write(CONFIG, TOUCH, &[0]), random.one_in(2));
                let _ = client.socket.try_send(&bytes, &[]);
            }
            _ => {}
        }
        if random.one_in(64) {
            std::thread::sleep(Duration::from_millis(random.below(60)));
        }
    }
    if random.one_in(5) {
        // Half closed first.
        let _ = nix::sys::socket::shutdown(
            std::os::fd::AsRawFd::as_raw_fd(&client.socket.as_fd()),
            nix::sys::socket::Shutdown::Write,
        );
        let _ = client.try_receive();
    }
    admitted
}

/// What may come beside messages.
fn descriptors(random: &mut Random, folder: &Path, files: &[std::fs::File]) -> Vec<OwnedFd> {
    let eventfd = EventFd::new().expect("an eventfd");
    // Full, and blocking.
    eventfd.write(u64::MAX - 1).expect("filled");
    let (socket, _) = Socket::pair().expect("sockets");
    let mut all: Vec<OwnedFd> = vec![
        eventfd.into(),
        EventFd::new().expect("an eventfd").into(),
        std::fs::File::open(folder).expect("a directory").into(),
        socket.as_fd().try_clone_to_owned().expect("a duplicate"),
        std::io::pipe().expect("a pipe").1.into(),
        std::fs::File::open("/dev/zero").expect("a device").into(),
    ];
    for file in files {
        // Memory and eventfds are what goes furthest.
        all.push(file.try_clone().expect("a duplicate").into());
        all.push(file.try_clone().expect("a duplicate").into());
    }
    if random.one_in(4) {
        all.truncate(2);
    }
    all
}

/// Sends one message, or something like one. An error when the connection is of no use any more.
fn send(client: &mut Client, random: &mut Random, descriptors: &[OwnedFd]) -> Result<(), ()> {
    let data = random.bytes(40);
    let small =
        SmallWrite::new(random.below(9) as u32, random.number(), &[1, 2, 3]).expect("a write");
    let entries = RegionWrites::encode_all(&vec![small; random.below(5) as usize]);
    let request = request(random, &data, &entries);
    let no_reply = random.one_in(5);
    let (mut bytes, _) = client.encode(&request, no_reply);
    match random.below(12) {
        // One byte is another.
        0 => {
            let at = random.below(bytes.len() as u64) as usize;
            bytes[at] = random.next() as u8;
        }
        // The end is missing, or something follows.
        1 => bytes.truncate(random.below(bytes.len() as u64 + 1) as usize),
        2 => bytes.extend(random.bytes(20)),
        // A payload of anything under a right header.
        3 => {
            let payload = random.bytes(100);
            let command = message::Command(random.below(20) as u16);
            bytes = Header::request(1, command, payload.len() as u32, no_reply)
                .encode()
                .to_vec();
            bytes.extend(payload);
        }
        _ => {}
    }
    let most = if random.one_in(30) { 20 } else { 3 };
    let beside: Vec<BorrowedFd<'_>> = match &request {
        // As it should be, mostly.
        Request::DmaMap(_) if !random.one_in(4) => {
            descriptors.iter().rev().take(1).map(AsFd::as_fd).collect()
        }
        Request::DeviceSetIrqs(set) if !random.one_in(4) => (0..set.count.min(8))
            .map(|_| random.pick(&descriptors[..2]).as_fd())
            .collect(),
        _ if random.one_in(3) => (0..random.below(most))
            .map(|_| random.pick(descriptors).as_fd())
            .collect(),
        _ => Vec::new(),
    };
    // Whole or byte by byte.
    let step = if random.one_in(10) {
        1 + random.below(5) as usize
    } else {
        bytes.len().max(1)
    };
    let mut beside = &beside[..];
    for part in bytes.chunks(step) {
        match client.socket.try_send(part, beside) {
            Ok(Some(_)) => beside = &[],
            Ok(None) => return Ok(()),
            Err(_) => return Err(()),
        }
    }
    Ok(())
}

fn request<'a>(random: &mut Random, data: &'a [u8], entries: &'a [u8]) -> Request<'a> {
    let region = random.below(10) as u32;
    let offset = random.number();
    match random.below(14) {
        0 => Request::Version(Version {
            major: random.below(2) as u16,
            minor: random.below(3) as u16,
            data,
        }),
        1..4 => Request::DmaMap(DmaMap {
            access: DmaAccess::from_bits_truncate(random.below(4) as u32),
            offset: random.below(4) / 3 * PAGE,
            address: random.below(8) * PAGE,
            length: (1 + random.below(3)) * PAGE,
        }),
        4 => Request::DmaUnmap(if random.one_in(4) {
            DmaUnmap::All
        } else {
            DmaUnmap::Region {
                address: random.below(8) * PAGE,
                length: (1 + random.below(3)) * PAGE,
            }
        }),
        5 => Request::DeviceGetInfo,
        6 => Request::DeviceGetRegionInfo {
            argsz: 32 + random.number() as u32 % 100,
            index: region,
        },
        7 => Request::DeviceGetIrqInfo { index: region },
        8 => Request::DeviceSetIrqs(SetIrqs {
            index: random.below(6) as u32,
            start: random.number() as u32 % 50,
            count: random.number() as u32 % 10,
            action: *random.pick(&[
                IrqAction::Mask,
                IrqAction::Unmask,
                IrqAction::Trigger,
                IrqAction::Trigger,
            ]),
            data: *random.pick(&[
                IrqSetData::None,
                IrqSetData::Bool(data),
                IrqSetData::Eventfd,
                IrqSetData::Eventfd,
            ]),
        }),
        9 => Request::RegionRead(RegionAccess {
            offset,
            region,
            count: random.number() as u32,
        }),
        10 => write(region, offset, data),
        // It works, and triggers an interrupt.
        11 => write(BAR, 0, &[1, 2, 3, 4]),
        12 => Request::DeviceReset,
        _ => RegionWrites::new(entries).map_or(Request::DeviceReset, Request::RegionWriteMulti),
    }
}
