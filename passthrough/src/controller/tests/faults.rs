//! What the real controller does wrong, and what becomes of the client's commands: each ends once, with a proof, or not at all.
#![allow(unsafe_code)] // raw entries over the test's own buffers

use std::sync::Arc;
use std::time::{Duration, Instant};

use nvme_vfio::transport::EmulatedTransport;
use nvme_vfio::{Buffer, Completion, Controller, IoQueue, Options, Outcome, QueueOptions};
use nvme_vfio_emulator::{CommandFault, ControllerFault, Emulator, Fault, Matcher, OnAbort, Until};
use nvme_vfio_queues::{Command, NvmOpcode, Status};

use super::super::{Ceilings, Isolated};
use super::rig::{Plan, Rig, slice};
use crate::server::{Herald, MenderThread, Times};

/// Nothing takes as long, whatever else the machine does; and the client's driver must not begin to mend by itself in the meantime.
pub(super) const PATIENCE: Duration = Duration::from_secs(60);

pub(super) struct Bench {
    pub(super) rig: Rig,
    pub(super) queue: IoQueue,
    data: Buffer,
    _mender: Option<MenderThread>,
}

pub(super) fn device() -> (Arc<Emulator>, Controller) {
    let config = "size=8M,lba=512,stepped,mdts=5".parse().unwrap();
    let device = Emulator::new(config).unwrap();
    let transport = Arc::new(EmulatedTransport::stepped(Arc::clone(&device)));
    let options = Options {
        admin_timeout: PATIENCE,
        ..Options::default()
    };
    let server = Controller::with_transport(transport, options).unwrap();
    (device, server)
}

pub(super) fn mender(server: &Controller) -> MenderThread {
    let times = Times {
        abort_grace: Duration::from_millis(30),
        rebuild_again: Duration::from_millis(10),
    };
    MenderThread::start(vec![server.clone()], times, Herald::new(|_| {})).unwrap()
}

impl Bench {
    pub(super) fn on(
        device: &Arc<Emulator>,
        server: &Controller,
        mender: Option<MenderThread>,
        isolated: Isolated,
    ) -> Bench {
        let plan = Plan {
            slices: vec![vec![slice(1, 100, 500), slice(1, 1000, 500)]],
            isolated,
            timeout: Duration::from_millis(100),
            mender: mender.as_ref().map(MenderThread::mender),
            ..Plan::default()
        };
        let rig = Rig::on(plan, Arc::clone(device), server.clone());
        let queue = rig.client.io_queue(QueueOptions::with_depth(16)).unwrap();
        let data = rig.client.allocate(16 * 65_536).unwrap();
        Bench {
            rig,
            queue,
            data,
            _mender: mender,
        }
    }

    pub(super) fn new(isolated: Isolated) -> Bench {
        let (device, server) = device();
        let mender = mender(&server);
        Bench::on(&device, &server, Some(mender), isolated)
    }

    /// A command on blocks with up to 64 KiB of data of its own.
    pub(super) fn submit(&mut self, opcode: NvmOpcode, first: u64, blocks: u32, token: u64) {
        let at = self.data.iova().0 + token * 65_536;
        assert!(blocks <= 16);
        let with_data = matches!(opcode, NvmOpcode::READ | NvmOpcode::WRITE);
        let mut command = Command {
            opcode: opcode.0,
            nsid: 1,
            ..Command::ZERO
        };
        if with_data {
            command.prp1 = at;
            command.prp2 = if blocks > 8 { at + 4096 } else { 0 };
        }
        if opcode != NvmOpcode::FLUSH {
            command.cdw10 = first as u32;
            command.cdw12 = blocks - 1;
        }
        // SAFETY: the data lies in the test's buffer, which it does not touch meanwhile.
        unsafe { self.queue.submit_raw(command, token) }.unwrap();
        self.queue.ring();
    }

    /// The next completion; `None` where there is none in `patience`.
    pub(super) fn wait(&mut self, patience: Duration) -> Option<Completion> {
        let until = Instant::now() + patience;
        while Instant::now() < until {
            if let Some(completion) = self.queue.poll() {
                return Some(completion);
            }
            self.rig.step();
        }
        None
    }

    fn status(&mut self) -> Status {
        let completion = self.wait(PATIENCE).expect("it ends");
        assert_eq!(completion.outcome, Outcome::Done);
        completion.entry.status()
    }

    pub(super) fn inject(&self, matcher: Matcher, fault: CommandFault) {
        self.rig.device.inject(Fault::on(matcher, fault));
    }

    /// Reads and writes go on.
    pub(super) fn works(&mut self) {
        for (token, opcode) in [NvmOpcode::WRITE, NvmOpcode::READ].into_iter().enumerate() {
            self.submit(opcode, 495, 10, token as u64);
            let status = self.status();
            assert!(status.is_success(), "{status}");
        }
    }
}

/// Waits of the device's I/O commands only.
fn io() -> Matcher {
    Matcher::io()
}

#[test]
fn the_first_part_in_the_order_of_blocks_gives_the_status() {
    for isolated in [Isolated::Shared, Isolated::Bounce] {
        let mut bench = Bench::new(isolated);
        // Blocks 592 to 607 of the client: real 592.. of the first slice, and 1000.. of the second.
        let (first, second) = (io().lbas(592..=599), io().lbas(1000..=1007));
        let error = |status: Status| CommandFault::Status(status);
        let (a, b) = (Status::WRITE_FAULT, Status::CAPACITY_EXCEEDED);
        for late in [false, true] {
            bench.inject(first.clone().times(1), error(a));
            bench.inject(second.clone().times(1), error(b));
            if late {
                // The first part ends last.
                bench.inject(first.clone().times(1), CommandFault::LateCompletion(50));
            }
            bench.submit(NvmOpcode::WRITE, 492, 16, 1);
            assert!(bench.status().is(a));
            bench.rig.device.clear_faults();
        }
        // Only the second fails, and its status comes without what is not the client's.
        bench.inject(second.clone().times(1), error(b.with_more().with_dnr()));
        bench.submit(NvmOpcode::WRITE, 492, 16, 1);
        let status = bench.status();
        assert!(status.is(b) && status.dnr());
        bench.works();
    }
}

#[test]
fn a_command_that_hangs_ends_with_its_queue_and_a_proof() {
    for isolated in [Isolated::Shared, Isolated::Bounce] {
        let mut bench = Bench::new(isolated);
        bench.inject(io().times(1), CommandFault::Hang(OnAbort::NotAborted));
        bench.submit(NvmOpcode::READ, 0, 8, 1);
        bench.submit(NvmOpcode::READ, 8, 8, 2);
        let mut seen = [Status::SUCCESS; 3];
        for _ in 0..2 {
            let completion = bench.wait(PATIENCE).expect("both end");
            seen[completion.token as usize] = completion.entry.status();
        }
        assert!(
            seen[1].is(Status::COMMAND_INTERRUPTED) && !seen[1].dnr(),
            "{}",
            seen[1]
        );
        assert!(seen[2].is_success() || seen[2].is(Status::COMMAND_INTERRUPTED));
        // It moves no data any more.
        assert_eq!(bench.rig.device.release(), 0);
        bench.works();
    }
}

#[test]
fn a_command_that_can_be_aborted_ends_alone() {
    let mut bench = Bench::new(Isolated::Shared);
    bench.inject(io().times(1), CommandFault::Hang(OnAbort::Aborted));
    bench.submit(NvmOpcode::READ, 0, 8, 1);
    assert!(bench.status().is(Status::ABORT_REQUESTED));
    bench.works();
}

#[test]
fn a_lost_completion_is_no_end() {
    let mut bench = Bench::new(Isolated::Shared);
    bench.inject(io().times(1), CommandFault::LostCompletion);
    // One of the two parts.
    bench.submit(NvmOpcode::WRITE, 492, 16, 1);
    let status = bench.status();
    assert!(status.is(Status::COMMAND_INTERRUPTED), "{status}");
    bench.works();
}

#[test]
fn answers_that_name_no_command_end_in_a_reset_that_all_survive() {
    let mut bench = Bench::new(Isolated::Shared);
    bench.inject(io().times(1), CommandFault::WrongCid(0x3fff));
    bench.submit(NvmOpcode::READ, 0, 8, 1);
    assert!(bench.status().is(Status::COMMAND_INTERRUPTED));
    assert_eq!(bench.rig.server.events().resets, 1);
    bench.works();
}

#[test]
fn without_anybody_to_mend_a_hanging_command_stays_in_flight() {
    let (device, server) = device();
    let mut bench = Bench::on(&device, &server, None, Isolated::Shared);
    bench.inject(io().times(1), CommandFault::Hang(OnAbort::NotAborted));
    bench.submit(NvmOpcode::READ, 0, 8, 1);
    assert!(bench.wait(Duration::from_millis(400)).is_none());
    // The client cannot have its memory back before.
    bench.rig.front.register_write(0x14, 4, 0);
    for _ in 0..1000 {
        bench.rig.step();
    }
    assert_eq!(
        bench.rig.front.register_read(0x1c, 4) & 1,
        1,
        "RDY, while it is in flight"
    );
    assert_eq!(bench.rig.device.release(), 1);
    let until = Instant::now() + PATIENCE;
    while bench.rig.front.register_read(0x1c, 4) & 1 == 1 {
        assert!(Instant::now() < until);
        bench.rig.step();
    }
}

#[test]
fn a_reset_of_the_real_controller_ends_all_and_is_survived() {
    for isolated in [Isolated::Shared, Isolated::Bounce] {
        let mut bench = Bench::new(isolated);
        for round in 0..5 {
            bench.inject(io().times(8), CommandFault::Hang(OnAbort::NotAborted));
            for token in 0..8 {
                bench.submit(NvmOpcode::READ, 490 + token * 2, 16, token);
            }
            bench.rig.step();
            bench.rig.server.recover().unwrap();
            let mut seen = [0; 8];
            for _ in 0..8 {
                let completion = bench.wait(PATIENCE).expect("all end");
                let status = completion.entry.status();
                // What had not been submitted is submitted when the queue is there again.
                assert!(
                    status.is(Status::COMMAND_INTERRUPTED) || status.is_success(),
                    "{status}"
                );
                seen[completion.token as usize] += 1;
            }
            assert_eq!(seen, [1; 8], "round {round}");
            assert!(bench.wait(Duration::from_millis(5)).is_none());
            bench.rig.device.clear_faults();
            bench.works();
        }
    }
}

#[test]
fn of_two_clients_only_the_one_with_the_hanging_command_notices() {
    let (device, server) = device();
    let mut one = Bench::on(&device, &server, Some(mender(&server)), Isolated::Shared);
    let mut two = Bench::on(&device, &server, Some(mender(&server)), Isolated::Shared);
    one.works();
    two.works();
    // Real queues are numbered in the order in which they were made.
    one.inject(io().sqid(1), CommandFault::Hang(OnAbort::NotAborted));
    one.submit(NvmOpcode::READ, 0, 8, 1);
    for _ in 0..50 {
        two.works();
        one.rig.step();
    }
    one.rig.device.clear_faults();
    let status = one.status();
    assert!(status.is(Status::COMMAND_INTERRUPTED), "{status}");
    assert_eq!(server.events().resets, 0);
    one.works();
    two.works();
}

#[test]
fn of_a_controller_that_is_gone_nothing_is_proven_and_new_commands_fail() {
    let mut bench = Bench::new(Isolated::Shared);
    bench.inject(io().times(1), CommandFault::Hang(OnAbort::NotAborted));
    bench.submit(NvmOpcode::READ, 0, 8, 1);
    for _ in 0..10 {
        bench.rig.step();
    }
    let gone = Fault::Controller(ControllerFault::Gone, Until::Cleared);
    bench.rig.device.inject(gone);
    bench.submit(NvmOpcode::READ, 8, 8, 2);
    let mut told = Vec::new();
    let until = Instant::now() + Duration::from_secs(2);
    while Instant::now() < until && bench.queue.in_flight() > 1 {
        if let Some(completion) = bench.wait(Duration::from_millis(100)) {
            told.push((completion.token, completion.entry.status()));
        }
    }
    // Handed over now if not before, where this thread stood still all that time.
    bench.rig.step();
    // The second was submitted too; neither is proven to have ended.
    assert!(told.is_empty(), "{told:?}");
    bench.submit(NvmOpcode::READ, 16, 8, 3);
    let completion = bench.wait(PATIENCE).expect("it is refused");
    assert_eq!(completion.token, 3);
    assert!(completion.entry.status().is(Status::INTERNAL_ERROR));
    // No queue is deleted in which something is in flight for ever, and the client's driver would wait for that.
    let gone = Fault::Controller(ControllerFault::Gone, Until::Cleared);
    bench.rig.front.inject(gone);
}

#[test]
fn a_client_that_resets_its_controller_leaves_nothing_behind() {
    let mut bench = Bench::new(Isolated::Shared);
    bench.inject(io().times(4), CommandFault::Hang(OnAbort::NotAborted));
    for token in 0..4 {
        bench.submit(NvmOpcode::READ, 490, 16, token);
    }
    bench.rig.step();
    bench.rig.front.reset();
    assert!(bench.rig.front.is_resetting(), "commands are in flight");
    let until = Instant::now() + PATIENCE;
    while bench.rig.front.is_resetting() {
        assert!(Instant::now() < until, "they never end");
        bench.rig.step();
    }
    assert_eq!(bench.rig.device.release(), 0);
    assert_eq!(bench.rig.device.iommu().fault_count(), 0);
}

#[test]
fn work_without_data_is_given_to_the_controller_a_little_at_a_time() {
    let (device, server) = device();
    // Nobody mends: what hangs here is held back on purpose.
    let mut bench = Bench::on(&device, &server, None, Isolated::Shared);
    bench.inject(io(), CommandFault::Hang(OnAbort::NotAborted));
    let opcodes = [NvmOpcode::VERIFY, NvmOpcode::WRITE_ZEROES];
    for token in 0..14 {
        bench.submit(opcodes[token as usize % 2], 0, 16, token);
    }
    let mut seen = 0;
    let mut most = 0;
    let until = Instant::now() + PATIENCE;
    while seen < 14 {
        assert!(Instant::now() < until, "{seen} have ended");
        for _ in 0..10 {
            bench.rig.step();
        }
        most = most.max(device.statistics().held_commands);
        device.release();
        while let Some(completion) = bench.queue.poll() {
            assert!(completion.entry.status().is_success());
            seen += 1;
        }
    }
    assert_eq!(most, 8, "in flight at once");
    device.clear_faults();
    bench.works();
}

#[test]
fn more_than_the_ceiling_is_never_in_flight() {
    let (device, server) = device();
    let plan = Plan {
        slices: vec![vec![slice(1, 0, 1000)]],
        ceilings: Ceilings {
            outstanding: 3,
            operations: None,
            bandwidth: None,
        },
        ..Plan::default()
    };
    let rig = Rig::on(plan, device, server);
    rig.device
        .inject(Fault::on(io(), CommandFault::Hang(OnAbort::NotAborted)));
    let namespace = rig.client.only_namespace().unwrap();
    let mut queue = rig.client.io_queue(QueueOptions::with_depth(16)).unwrap();
    for token in 0..10 {
        let buffer = rig.client.allocate(4096).unwrap();
        queue.read(&namespace, 0, buffer, token).unwrap();
    }
    queue.ring();
    for _ in 0..100 {
        rig.step();
    }
    let mut seen = 0;
    while seen < 10 {
        assert!(rig.device.statistics().held_commands <= 3);
        rig.device.release();
        for _ in 0..10 {
            rig.step();
        }
        let before = seen;
        while queue.poll().is_some() {
            seen += 1;
        }
        assert!((1..=3).contains(&(seen - before)), "{seen} after {before}");
    }
    // The flush at the end is not to hang.
    rig.device.clear_faults();
}
