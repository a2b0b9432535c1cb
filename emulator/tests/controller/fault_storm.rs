//! Faults of every kind in any order, among commands, aborts, queues that come and go, and resets: afterwards the controller works as if
//! nothing had been.

use nvme_vfio_emulator::{
    CommandFault, ControllerFault, Fault, FaultScript, Matcher, MediaFault, MediaOperation,
    MediaUntil, OnAbort, Trace, Until, When,
};
use nvme_vfio_queues::Status;
use proptest::prelude::*;

use crate::host::*;

/// Entries of the I/O queue, one of which always stays empty.
const SIZE: u32 = 8;

#[derive(Clone, Debug)]
enum Step {
    Inject(CommandFault, u64, u64),
    Later(u64, CommandFault),
    Media(u64, MediaOperation, MediaUntil),
    Hardware(ControllerFault),
    Submit(u8, u64),
    Run(u64),
    Take,
    Abort(u16),
    Release,
    Clear,
    Requeue,
    Reset,
    Trace,
}

fn command_fault() -> impl Strategy<Value = CommandFault> {
    prop_oneof![
        prop_oneof![
            Just(OnAbort::NotAborted),
            Just(OnAbort::Aborted),
            Just(OnAbort::AbortedDataLater)
        ]
        .prop_map(CommandFault::Hang),
        (0..5u64).prop_map(CommandFault::Delay),
        (0..5u64).prop_map(CommandFault::LateCompletion),
        (1..4u32).prop_map(CommandFault::Reorder),
        Just(CommandFault::LostCompletion),
        Just(CommandFault::DuplicateCompletion),
        Just(CommandFault::StalePhase),
        Just(CommandFault::NoEffect),
        any::<u16>().prop_map(CommandFault::WrongCid),
        any::<u16>().prop_map(CommandFault::WrongSqid),
        any::<u16>().prop_map(CommandFault::WrongSqHead),
        any::<u16>().prop_map(CommandFault::FlipStatus),
        any::<u32>().prop_map(CommandFault::WrongResult),
        Just(CommandFault::Status(Status::INTERNAL_ERROR)),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    let operation = prop_oneof![
        Just(MediaOperation::Read),
        Just(MediaOperation::Write),
        Just(MediaOperation::Verify)
    ];
    let until = prop_oneof![Just(MediaUntil::Rewritten), Just(MediaUntil::Cleared)];
    let hardware = prop_oneof![
        Just(ControllerFault::AllOnes),
        Just(ControllerFault::LostInterrupts),
        Just(ControllerFault::NeverReady),
        Just(ControllerFault::NeverDisabled),
        Just(ControllerFault::Fatal),
        any::<u64>().prop_map(ControllerFault::Cap),
    ];
    prop_oneof![
        4 => (command_fault(), 1..4u64, 1..4u64).prop_map(|(fault, nth, times)| Step::Inject(fault, nth, times)),
        1 => (0..20u64, command_fault()).prop_map(|(after, fault)| Step::Later(after, fault)),
        1 => (0..32u64, operation, until).prop_map(|(lba, operation, until)| Step::Media(lba, operation, until)),
        1 => hardware.prop_map(Step::Hardware),
        8 => (0..3u8, 0..40u64).prop_map(|(opcode, lba)| Step::Submit(opcode, lba)),
        6 => (1..6u64).prop_map(Step::Run),
        6 => Just(Step::Take),
        2 => (0..8u16).prop_map(Step::Abort),
        1 => Just(Step::Release),
        1 => Just(Step::Clear),
        1 => Just(Step::Requeue),
        1 => Just(Step::Reset),
        1 => Just(Step::Trace),
    ]
}

/// Starts anew from whatever state the controller is in.
fn restart(host: &mut Host) {
    host.emulator.clear_faults();
    host.emulator.reset();
    host.emulator.config_write(4, &[6]);
    host.rings.clear();
    host.enable();
    host.create_queue(1, SIZE);
}

/// Fills the queue and empties it, some times: each command is answered, once and right.
fn works(host: &mut Host, iova: u64) {
    for _ in 0..3 {
        let mut submitted: Vec<u16> = (1..SIZE)
            .map(|lba| host.submit(1, Host::transfer(1, lba.into(), 1, iova, 0)))
            .collect();
        // Twenty times the mean is the most that a latency is here.
        for _ in 0..30 {
            host.emulator.step();
        }
        let mut answered = Vec::new();
        while let Some(entry) = host.take(1) {
            assert_eq!((entry.sqid, entry.status), (1, 0));
            answered.push(entry.cid);
        }
        submitted.sort_unstable();
        answered.sort_unstable();
        assert_eq!(answered, submitted);
    }
}

proptest! {
    #![proptest_config(nvme_vfio_seeded::seeded(400))]

    #[test]
    fn nothing_is_left_of_a_storm(steps in prop::collection::vec(step(), 1..80), late in any::<bool>()) {
        let latency = if late { ",latency.read=1us..4us,latency.write=exp:1us,latency.admin=2us" } else { "" };
        let mut host = Host::with_queue(&format!("size=1M{latency}"), SIZE);
        let memory = host.memory(4096);
        let iova = memory.iova().0;
        let mut trace: Option<Trace> = None;
        // Commands that take an entry of the submission queue, as far as the host can know.
        let mut open = 0;
        // Whether host and controller may no longer agree about the rings, or the controller is not running.
        let mut lost = false;
        for step in steps {
            match step {
                Step::Inject(fault, nth, times) => {
                    lost |= fault == CommandFault::StalePhase;
                    host.emulator.inject(Fault::on(Matcher::io().nth(nth).times(times), fault));
                }
                Step::Later(after, fault) => {
                    lost |= fault == CommandFault::StalePhase;
                    let when = if after % 2 == 0 { When::Step(after) } else { When::Commands(after) };
                    host.emulator.inject_when(when, Fault::on(Matcher::io().times(1), fault));
                }
                Step::Media(lba, operation, until) => {
                    let nsid = None;
                    let lbas = lba..=lba + 3;
                    host.emulator.inject(Fault::Media(MediaFault { nsid, lbas, operation, until }));
                }
                Step::Hardware(fault) => {
                    lost |= fault == ControllerFault::Fatal;
                    host.emulator.inject(Fault::Controller(fault, Until::FunctionReset));
                }
                Step::Submit(opcode, lba) if open < 6 => {
                    host.submit(1, Host::transfer(opcode, lba, 1, iova, 0));
                    open += 1;
                }
                Step::Submit(..) => {}
                Step::Run(count) => {
                    for _ in 0..count {
                        host.emulator.step();
                    }
                }
                Step::Take => {
                    if !lost && host.take(1).is_some() {
                        open -= i32::from(open > 0);
                    }
                }
                Step::Abort(cid) => {
                    if !lost {
                        host.run(0, with(command(8, 0), 10, u32::from(cid) << 16 | 1));
                    }
                }
                Step::Release => {
                    host.emulator.release();
                }
                Step::Clear => host.emulator.clear_faults(),
                Step::Requeue if !lost => {
                    host.delete_queue(1);
                    host.create_queue(1, SIZE);
                    open = 0;
                }
                Step::Requeue => {}
                Step::Reset => {
                    restart(&mut host);
                    (open, lost) = (0, false);
                }
                Step::Trace => trace = host.emulator.trace(16),
            }
        }
        drop(trace);
        host.emulator.clear_faults();
        if !lost {
            // Whatever still waits for something ends, or was lost; the entries that were promised are free again.
            host.emulator.release();
            for _ in 0..40 {
                host.emulator.step();
                while host.take(1).is_some() {}
            }
            // What waits behind others gets them here.
            for _ in 0..4 {
                host.submit(1, command(0, 1));
                host.emulator.step();
                host.emulator.step();
                while host.take(1).is_some() {}
            }
            works(&mut host, iova);
        }
        restart(&mut host);
        works(&mut host, iova);
        prop_assert_eq!(host.emulator.iommu().fault_count(), 0);
    }
}

/// Pieces of scripts and configurations, right and wrong.
fn text() -> impl Strategy<Value = String> {
    let piece = prop::sample::select(vec![
        "[[fault]]\n",
        "[[namespace]]\n",
        "[latency]\n",
        "[fault]\n",
        "do = ",
        "'hang'",
        "'status'",
        "'media-error'",
        "'junk-data'",
        "'gone'",
        "\n",
        "lba = ",
        "[1, 2]",
        "[2, 1]",
        "[]",
        "nth = ",
        "sct = ",
        "sc = ",
        "data = ",
        "until = ",
        "'cleared'",
        "opcode = ",
        "'read'",
        "0",
        "1",
        "-1",
        "0xff",
        "99999999999999999999",
        "1.5",
        "true",
        "1979-05-27",
        "{ min = '1us' }",
        "{",
        "}",
        "read = ",
        "size = ",
        "'1M'",
        "nsids = ",
        "= ",
        "#",
        "\"",
        "'",
        "\u{0}",
        "\u{e9}",
        "mdts = ",
        "lba_formats = ",
        "queue = ",
    ]);
    prop_oneof![
        4 => prop::collection::vec(piece, 0..30).prop_map(|pieces| pieces.concat()),
        1 => any::<String>(),
    ]
}

proptest! {
    #![proptest_config(nvme_vfio_seeded::seeded(4000))]

    #[test]
    fn any_text_is_read_or_refused_with_a_line_of_it(text in text()) {
        let lines = text.matches('\n').count() + 1;
        if let Err(error) = FaultScript::parse(&text) {
            prop_assert!((1..=lines).contains(&error.line), "{error}");
        }
        if let Ok(config) = nvme_vfio_emulator::Config::from_toml(&text) {
            config.check().unwrap();
            prop_assert_eq!(config.to_string().parse::<nvme_vfio_emulator::Config>().unwrap(), config);
        }
        let _ = text.parse::<nvme_vfio_emulator::Config>();
    }
}
