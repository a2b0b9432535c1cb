use std::sync::Mutex;

use nvme_vfio::transport::EmulatedTransport;
use nvme_vfio::{CommandError, Options, QueueOptions};
use nvme_vfio_emulator::{CommandFault, ControllerFault, Emulator, Fault, Matcher, OnAbort, Until};

use super::*;

struct Bench {
    controller: Controller,
    emulator: Arc<Emulator>,
    mender: MenderThread,
    told: Arc<Mutex<Vec<MenderEvent>>>,
}

const CLIENT: ClientId = ClientId(3);
/// No step takes as long, whatever else the machine does.
const PATIENCE: Duration = Duration::from_secs(20);

impl Bench {
    fn new() -> Bench {
        Bench::with_grace(Duration::from_millis(50))
    }

    fn with_grace(abort_grace: Duration) -> Bench {
        let transport = EmulatedTransport::open("size=16M").unwrap();
        let emulator = Arc::clone(transport.emulator());
        let options = Options {
            admin_timeout: Duration::from_millis(300),
            ..Options::default()
        };
        let controller = Controller::with_transport(Arc::new(transport), options).unwrap();
        let told = Arc::<Mutex<Vec<MenderEvent>>>::default();
        let theirs = Arc::clone(&told);
        let times = Times {
            abort_grace,
            rebuild_again: Duration::from_millis(10),
        };
        let herald = Herald::new(move |event| theirs.lock().unwrap().push(event));
        let mender = MenderThread::start(vec![controller.clone()], times, herald).unwrap();
        Bench {
            controller,
            emulator,
            mender,
            told,
        }
    }

    fn queue(&self) -> IoQueue {
        self.deep_queue(8)
    }

    fn deep_queue(&self, depth: u32) -> IoQueue {
        self.controller
            .io_queue(QueueOptions::with_depth(depth))
            .unwrap()
    }

    fn hang(&self, how: OnAbort, count: u64) {
        let which = Matcher::io().times(count);
        self.emulator
            .inject(Fault::on(which, CommandFault::Hang(how)));
    }

    /// Submits reads with these tokens.
    fn read(&self, queue: &mut IoQueue, tokens: impl IntoIterator<Item = u64>) {
        let namespace = self.controller.only_namespace().unwrap();
        let fetched = || self.emulator.statistics().commands;
        let mut all = fetched();
        for token in tokens {
            let buffer = self.controller.allocate(4096).unwrap();
            queue.read(&namespace, 0, buffer, token).unwrap();
            all += 1;
        }
        queue.ring();
        let until = Instant::now() + PATIENCE;
        while fetched() < all {
            assert!(Instant::now() < until, "they are not fetched");
            thread::sleep(Duration::from_millis(1));
        }
    }

    fn mend(&self, queue: IoQueue, need: Need) -> Mended {
        let repair = self.mender.mender().mend(CLIENT, 0, queue, need);
        let until = Instant::now() + PATIENCE;
        loop {
            if let Some(mended) = repair.take() {
                return mended;
            }
            assert!(Instant::now() < until, "it does not come back");
            thread::sleep(Duration::from_millis(1));
        }
    }

    fn told(&self) -> Vec<MenderEvent> {
        self.told.lock().unwrap().clone()
    }

    /// The queue works again.
    fn works(&self, mended: Mended) {
        let mut queue = mended.queue;
        let namespace = self.controller.only_namespace().unwrap();
        let buffer = self.controller.allocate(4096).unwrap();
        queue.read_blocking(&namespace, 0, buffer).unwrap();
    }
}

/// What has ended, in the order of tokens.
fn ended(mended: &Mended) -> Vec<(u64, Result<u32, CommandError>)> {
    let mut ended: Vec<_> = mended
        .completions
        .iter()
        .map(|completion| (completion.token, completion.result()))
        .collect();
    ended.sort_by_key(|(token, _)| *token);
    ended
}

#[test]
fn an_abort_that_works_is_all_that_is_done() {
    let bench = Bench::new();
    let mut queue = bench.queue();
    bench.hang(OnAbort::Aborted, 1);
    bench.read(&mut queue, [1, 2]);
    let mended = bench.mend(queue, Need::Overdue(vec![1]));
    assert_eq!((mended.step, mended.usable), (Step::Aborted, true));
    let ended = ended(&mended);
    assert!(
        matches!(ended[..], [(1, Err(CommandError::Status(_))), (2, Ok(_))]),
        "{ended:?}"
    );
    assert!(matches!(
        bench.told()[..],
        [MenderEvent::Aborting {
            client: CLIENT,
            commands: 1,
            ..
        }]
    ));
    bench.works(mended);
}

#[test]
fn a_command_that_no_abort_ends_loses_its_queue_and_another_queue_does_not_notice() {
    let bench = Bench::new();
    let (mut queue, mut other) = (bench.queue(), bench.queue());
    let its = Matcher::io().sqid(queue.id()).times(2);
    bench
        .emulator
        .inject(Fault::on(its, CommandFault::Hang(OnAbort::NotAborted)));
    bench.read(&mut queue, [1, 2]);
    let mended = bench.mend(queue, Need::Overdue(vec![1, 2]));
    assert_eq!((mended.step, mended.usable), (Step::QueueDeleted, true));
    assert_eq!(
        ended(&mended),
        [
            (1, Err(CommandError::Deleted)),
            (2, Err(CommandError::Deleted))
        ]
    );
    assert!(
        mended.completions.iter().all(|one| one.buffer.is_some()),
        "proven"
    );
    assert!(!other.needs_rebuild());
    let namespace = bench.controller.only_namespace().unwrap();
    let buffer = bench.controller.allocate(4096).unwrap();
    other.read_blocking(&namespace, 0, buffer).unwrap();
    assert_eq!(bench.controller.events().resets, 0);
    bench.works(mended);
}

/// Another client's queue waits for the same thread.
#[test]
fn a_queue_full_of_hanging_commands_costs_few_aborts() {
    for (grace, most) in [(Duration::from_secs(3), 16), (Duration::ZERO, 1)] {
        let bench = Bench::with_grace(grace);
        let mut queue = bench.deep_queue(64);
        bench.hang(OnAbort::NotAborted, 60);
        bench.read(&mut queue, 0..60);
        let mended = bench.mend(queue, Need::Overdue((0..60).collect()));
        assert_eq!(bench.controller.events().aborts, most);
        assert_eq!((mended.step, mended.usable), (Step::QueueDeleted, true));
        assert_eq!(mended.completions.len(), 60);
        bench.works(mended);
    }
}

#[test]
fn a_queue_that_cannot_be_deleted_costs_a_reset_that_is_announced() {
    const DELETE_SQ: u8 = 0;
    let bench = Bench::new();
    let (mut queue, other) = (bench.queue(), bench.queue());
    bench.hang(OnAbort::NotAborted, 1);
    bench.read(&mut queue, [1]);
    let delete = Matcher::admin().opcode(DELETE_SQ).times(1);
    bench.emulator.inject(Fault::on(
        delete,
        CommandFault::Status(nvme_vfio_queues::Status::INTERNAL_ERROR),
    ));
    let mended = bench.mend(queue, Need::Overdue(vec![1]));
    assert_eq!((mended.step, mended.usable), (Step::ControllerReset, true));
    assert_eq!(ended(&mended), [(1, Err(CommandError::Reset))]);
    bench.works(mended);
    assert!(other.needs_rebuild());
    bench.works(bench.mend(other, Need::Rebuild));
    let told = bench.told();
    assert!(
        told.contains(&MenderEvent::Resetting {
            client: Some(CLIENT),
            controller: 0
        }),
        "{told:?}"
    );
    assert!(
        told.contains(&MenderEvent::Reset { controller: 0 }),
        "{told:?}"
    );
}

#[test]
fn a_controller_that_fails_by_itself_is_brought_back_and_that_is_told() {
    let bench = Bench::new();
    bench
        .emulator
        .inject(Fault::of_controller(ControllerFault::Fatal));
    let until = Instant::now() + PATIENCE;
    while !bench.told().contains(&MenderEvent::Reset { controller: 0 }) {
        assert!(Instant::now() < until, "{:?}", bench.told());
        thread::sleep(Duration::from_millis(10));
    }
    assert_eq!(
        bench.told()[0],
        MenderEvent::Resetting {
            client: None,
            controller: 0
        }
    );
}

#[test]
fn a_controller_that_is_gone_gives_no_proof_and_no_queue() {
    let bench = Bench::new();
    let mut queue = bench.queue();
    bench.hang(OnAbort::NotAborted, 1);
    bench.read(&mut queue, [1]);
    bench
        .emulator
        .inject(Fault::Controller(ControllerFault::Gone, Until::Cleared));
    let mended = bench.mend(queue, Need::Overdue(vec![1]));
    assert_eq!((mended.step, mended.usable), (Step::GivenUp, false));
    assert_eq!(ended(&mended), [(1, Err(CommandError::Gone))]);
    assert!(mended.completions[0].buffer.is_none(), "not proven");
}

#[test]
fn a_reset_that_brings_nothing_back_is_not_told_as_one_that_does() {
    let bench = Bench::new();
    bench.emulator.inject(Fault::Controller(
        ControllerFault::NeverReady,
        Until::Cleared,
    ));
    bench
        .emulator
        .inject(Fault::of_controller(ControllerFault::Fatal));
    let gone = MenderEvent::Gone { controller: 0 };
    let until = Instant::now() + PATIENCE;
    while !bench.told().contains(&gone) {
        assert!(Instant::now() < until, "{:?}", bench.told());
        thread::sleep(Duration::from_millis(10));
    }
    let resetting = MenderEvent::Resetting {
        client: None,
        controller: 0,
    };
    assert_eq!(bench.told(), [resetting, gone]);
}
