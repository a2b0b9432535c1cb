//! A server whose answers are changed on their way: bits, lengths, identifiers, descriptors, order, silence, the end.

use std::collections::HashSet;
use std::fs::File;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use nvme_vfio::transport::VfioUserTransport;
use nvme_vfio::{Controller, Error, Options, QueueOptions};
use nvme_vfio_user::message::{Header, Kind};
use nvme_vfio_user::{Client, ClientOptions, Deadline, MessageReader, Socket, SocketError};

use crate::FAR;
use crate::served::{Doorbells, ServedProcess};

/// What is waited for here is short: a lie is to be found out, not to be sat out.
const SHORT: Duration = Duration::from_millis(200);

/// A small seeded generator (xorshift64*).
struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) % end
    }
}

/// Carries messages between a client and the server at its other end, until one of them is gone. From the reply `honest` on, one in four
/// is changed.
fn carry(
    client: &Socket,
    server: &Socket,
    mut random: Random,
    honest: u64,
) -> Result<(), SocketError> {
    let deadline = Deadline::after(FAR);
    let mut from_client = MessageReader::new(2 << 20, 16);
    let mut from_server = MessageReader::new(2 << 20, 16);
    let mut replies = 0;
    let mut last = Vec::new();
    loop {
        let message = from_client.wait(client, deadline)?;
        let wants_reply = message.header.wants_reply();
        let bytes = [&message.header.encode()[..], &message.payload].concat();
        let descriptors: Vec<_> = message.descriptors.iter().map(AsFd::as_fd).collect();
        server.send_all(&bytes, &descriptors, deadline)?;
        if !wants_reply {
            continue;
        }
        let reply = from_server.wait(server, deadline)?;
        let mut header = reply.header;
        let mut payload = reply.payload;
        let extra = File::open("/dev/null").unwrap();
        let mut descriptors: Vec<_> = reply.descriptors.iter().map(AsFd::as_fd).collect();
        replies += 1;
        let mut times = 1;
        if replies > honest && random.below(4) == 0 {
            match random.below(12) {
                0 => header.id ^= 1 << random.below(16),
                1 => header.command.0 ^= 1 << random.below(5),
                2 => payload.truncate(random.below(payload.len() as u64 + 1) as usize),
                3 => payload.resize(payload.len() + random.below(100) as usize, 0xff),
                4 => times = 0,
                5 => times = 2,
                6 => descriptors.clear(),
                7 => descriptors.extend(vec![extra.as_fd(); 1 + random.below(12) as usize]),
                8 => {
                    header.kind = Kind::Error {
                        errno: random.below(200) as u32,
                    }
                }
                9 => return Ok(()),
                _ => {
                    for _ in 0..=random.below(3) {
                        let place = random.below(payload.len().max(1) as u64) as usize;
                        if let Some(byte) = payload.get_mut(place) {
                            *byte ^= 1 << random.below(8);
                        }
                    }
                }
            }
            if matches!(header.kind, Kind::Error { .. }) {
                payload.clear();
            }
        }
        let header = Header {
            payload: payload.len() as u32,
            ..header
        };
        let mut bytes = [&header.encode()[..], &payload].concat();
        if replies > honest && random.below(40) == 0 {
            let place = random.below(bytes.len() as u64) as usize;
            bytes[place] ^= 1 << random.below(8);
        }
        for _ in 0..times {
            client.send_all(&bytes, &descriptors, deadline)?;
        }
        // An answer of long ago, once in a while.
        if replies > honest && random.below(50) == 0 {
            client.send_all(&last, &[], deadline)?;
        }
        last = bytes;
    }
}

/// Opens, reads, resets and closes, whatever comes back. Every command that was taken must be reported once.
fn use_it(transport: VfioUserTransport) -> Result<(), Error> {
    let options = Options {
        admin_timeout: SHORT,
        io_timeout: SHORT,
        abort_grace: SHORT,
        ready_timeout: Some(SHORT),
        shutdown_timeout: SHORT,
        ..Options::default()
    };
    let controller = Controller::with_transport(Arc::new(transport), options)?;
    let namespace = controller.only_namespace()?;
    let mut queue = controller.io_queue(QueueOptions::with_depth(8))?;
    let mut reported = HashSet::new();
    let mut token = 0;
    for round in 0..4 {
        let before = token;
        while !queue.is_full() {
            let buffer = controller.allocate(4096)?;
            if queue.read(&namespace, token, buffer, token).is_err() {
                break;
            }
            token += 1;
        }
        if round == 2 {
            let _ = controller.recover();
        }
        let start = Instant::now();
        while (reported.len() as u64) < token {
            match queue.wait() {
                Ok(Some(completion)) => {
                    assert!(completion.token < token && reported.insert(completion.token));
                }
                // What was in flight is reported all the same.
                Ok(None) => panic!("{} of {token} commands were reported", reported.len()),
                Err(_) => {}
            }
            assert!(start.elapsed() < FAR, "a command is never reported");
        }
        if token == before {
            queue.rebuild()?;
        }
        let _ = queue.rebuild();
    }
    Ok(())
}

#[test]
fn lies_do_no_harm() {
    let seed = nvme_vfio_seeded::chosen();
    let (first, count) = seed.map_or((1, 80), |seed| (seed, 1));
    let server = ServedProcess::start("size=16M", Doorbells::Mapped);
    let mut ends = [0; 4];
    for seed in first..first + count {
        println!("NVME_VFIO_SEED={seed}");
        let start = Instant::now();
        let far = Deadline::after(FAR);
        let theirs = Socket::connect(&server.path(), far).unwrap();
        let (ours, middle) = Socket::pair().unwrap();
        let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        // Some lie from the first answer on, some only when much is under way.
        let most = [12, 60, 250][random.below(3) as usize];
        let honest = random.below(most);
        let between = thread::spawn(move || carry(&middle, &theirs, random, honest));
        let options = ClientOptions { timeout: SHORT };
        let end = match Client::over(ours, &options) {
            Err(_) => 0,
            Ok(client) => match VfioUserTransport::over(client, "liar".to_owned()) {
                Err(_) => 1,
                Ok(transport) => match use_it(transport) {
                    Err(_) => 2,
                    Ok(()) => 3,
                },
            },
        };
        ends[end] += 1;
        // How it ended between the two is for neither of them to say.
        let _ = between.join().unwrap();
        assert!(start.elapsed() < FAR, "{:?}", start.elapsed());
    }
    println!("ended while agreeing on a version, connecting, in use, at the end: {ends:?}");
    assert!(seed.is_some() || ends.iter().all(|count| *count > 0));
    crate::works(&server.open(Options::default()).unwrap());
}
