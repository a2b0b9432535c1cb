use std::sync::Mutex;

use nvme_vfio::transport::EmulatedTransport;
use nvme_vfio::{CommandError, Options, QueueOptions};
use nvme_vfio_emulator::{CommandFault, ControllerFault, Emulator, Fault, Matcher, OnAbort, Until};
use nvme_vfio_queues::AdminOpcode;

use super::*;

struct Bench {
    controller: Controller,
    emulator: Arc<Emulator>,
    mender: MenderThread,
    told: Arc<Mutex<Vec<MenderEvent>>>,
}

const CLIENT: ClientId = ClientId(3);
/// No step takes as long, whatever else the machine does.
const PATIENCE: Duration = Duration::from_secs(60);

impl Bench {
    fn new() -> Bench {
        Bench::with_grace(Duration::from_millis(50))
    }

    fn with_grace(abort_grace: Duration) -> Bench {
        Bench::with(abort_grace, PATIENCE, WATCH_HEALTH)
    }

    fn with(abort_grace: Duration, admin_timeout: Duration, watch_health: Duration) -> Bench {
        let transport = EmulatedTransport::open("size=16M").unwrap();
        let emulator = Arc::clone(transport.emulator());
        let options = Options {
            admin_timeout,
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
        let controllers = vec![controller.clone()];
        let mender = MenderThread::watching(controllers, times, herald, watch_health).unwrap();
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

    /// What clients on the controller are told of its health.
    fn healths<const N: usize>(&self) -> [Health; N] {
        let healths = std::array::from_fn(|_| Health::default());
        for health in &healths {
            self.mender.mender().keep_fresh(0, health);
        }
        healths
    }

    /// What becomes of Get Log Page.
    fn logs(&self, fault: CommandFault) {
        let logs = Matcher::admin().opcode(AdminOpcode::GET_LOG_PAGE.0);
        self.emulator.inject(Fault::on(logs, fault));
    }

    fn until(&self, done: impl Fn(&[MenderEvent]) -> bool) {
        let until = Instant::now() + PATIENCE;
        while !done(&self.told()) {
            assert!(Instant::now() < until, "{:?}", self.told());
            thread::sleep(Duration::from_millis(10));
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

/// A client asks for its controller's Critical Warning.
fn warnings(health: &Health) -> u8 {
    let mut page = [0; 512];
    health.put(&mut page);
    page[0]
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
    for (grace, most) in [(Duration::from_secs(6), 16), (Duration::ZERO, 1)] {
        let bench = Bench::with_grace(grace);
        let mut queue = bench.deep_queue(64);
        bench.hang(OnAbort::NotAborted, 60);
        bench.read(&mut queue, 0..60);
        let mended = bench.mend(queue, Need::Overdue((0..60).collect()));
        // Fewer where the machine had other things to do meanwhile.
        let aborts = bench.controller.events().aborts;
        assert!((1..=most).contains(&aborts), "{aborts}");
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
    bench.until(|told| told.contains(&MenderEvent::Reset { controller: 0 }));
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
    bench.until(|told| told.contains(&gone));
    let resetting = MenderEvent::Resetting {
        client: None,
        controller: 0,
    };
    assert_eq!(bench.told(), [resetting, gone]);
}

#[test]
fn what_is_gone_is_told_once() {
    let bench = Bench::new();
    bench.emulator.inject(Fault::Controller(
        ControllerFault::NeverReady,
        Until::Cleared,
    ));
    // Somebody else's reset: it is seen together with what came of it.
    bench.controller.recover().unwrap_err();
    bench.until(|told| !told.is_empty());
    thread::sleep(2 * LOOK_AT_CONTROLLERS + LOOK_AT_CONTROLLERS / 2);
    assert_eq!(bench.told(), [MenderEvent::Gone { controller: 0 }]);
}

/// A controller that does not answer is reset, which all clients notice.
#[test]
fn a_controller_that_does_not_tell_its_health_costs_one_reset_however_many_ask_however_often() {
    // What does not hang takes less, also where the machine stands still for a second or two.
    let timeout = Duration::from_secs(5);
    let bench = Bench::with(Duration::from_millis(50), timeout, WATCH_HEALTH);
    let healths: [_; 4] = bench.healths();
    bench.logs(CommandFault::Hang(OnAbort::NotAborted));
    let ask = || {
        for health in &healths {
            assert_eq!(warnings(health), 0);
        }
    };
    ask();
    bench.until(|told| told.contains(&MenderEvent::Reset { controller: 0 }));
    // Were it asked once more there would be a second command that hangs, and later a second reset.
    let until = Instant::now() + 4 * LOOK_AT_CONTROLLERS;
    while Instant::now() < until {
        ask();
        thread::sleep(Duration::from_millis(10));
    }
    assert_eq!(bench.emulator.statistics().faulted_commands, 1);
    assert_eq!(bench.controller.events().resets, 1);
}

#[test]
fn the_pause_of_a_controller_that_does_not_answer_doubles_until_it_does() {
    let (mut pause, mut now) = (Pause::default(), Instant::now());
    for minutes in [2, 4, 8, 16, 32, 60, 60] {
        assert!(pause.is_over(now));
        pause.not_answered(now);
        now += Duration::from_secs(60 * minutes - 1);
        assert!(!pause.is_over(now), "{minutes}");
        now += Duration::from_secs(1);
    }
    pause.answered();
    assert!(pause.is_over(now));
    pause.not_answered(now);
    assert!(pause.is_over(now + 2 * WATCH_HEALTH));
}

#[test]
fn one_answer_is_for_all_clients_of_a_controller() {
    let bench = Bench::new();
    // In the order in which they are told.
    let [other, one] = bench.healths();
    bench.logs(CommandFault::JunkData(vec![4]));
    let until = Instant::now() + PATIENCE;
    while warnings(&one) != 4 {
        assert!(Instant::now() < until, "nobody asks the controller");
        thread::sleep(Duration::from_millis(10));
    }
    assert!(!other.is_wanted(), "it has not asked");
    assert_eq!(warnings(&other), 4);
}

#[test]
fn health_is_asked_for_although_no_client_does() {
    let bench = Bench::with(Duration::ZERO, PATIENCE, Duration::from_secs(1));
    let [health] = bench.healths();
    bench.logs(CommandFault::JunkData(vec![4]));
    // When it asks again it has passed the first answer on.
    let until = Instant::now() + PATIENCE;
    while bench.emulator.statistics().faulted_commands < 2 {
        assert!(Instant::now() < until, "nobody asks the controller");
        thread::sleep(Duration::from_millis(10));
    }
    assert_eq!(warnings(&health), 4);
}

#[test]
fn a_queue_that_is_mended_waits_for_no_log_page() {
    let bench = Bench::with_grace(3 * LOOK_AT_CONTROLLERS);
    let mut queue = bench.queue();
    let [health] = bench.healths();
    bench.hang(OnAbort::NotAborted, 1);
    bench.logs(CommandFault::JunkData(vec![4]));
    bench.read(&mut queue, [1]);
    let need = Need::Overdue(vec![1]);
    let repair = bench.mender.mender().mend(CLIENT, 0, queue, need);
    let until = Instant::now() + PATIENCE;
    let mended = loop {
        let seen = warnings(&health);
        if let Some(mended) = repair.take() {
            break mended;
        }
        assert_eq!(seen, 0, "the controller was asked meanwhile");
        assert!(Instant::now() < until, "it does not come back");
        thread::sleep(Duration::from_millis(1));
    };
    bench.works(mended);
}
