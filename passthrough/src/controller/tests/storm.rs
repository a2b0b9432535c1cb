//! Everything goes wrong at once, again and again: each of the client's commands ends once, and nothing is touched that is not its own.

use std::time::Duration;

use nvme_vfio::Outcome;
use nvme_vfio_emulator::{CommandFault, Matcher, OnAbort};
use nvme_vfio_queues::{NvmOpcode, Status};
use proptest::prelude::*;

use super::super::Isolated;
use super::faults::{Bench, PATIENCE};

#[derive(Debug, Clone)]
enum Trouble {
    None,
    Fault(CommandFault),
    Reset,
}

fn trouble() -> impl Strategy<Value = Trouble> {
    let fault = prop_oneof![
        Just(CommandFault::Hang(OnAbort::NotAborted)),
        Just(CommandFault::Hang(OnAbort::Aborted)),
        Just(CommandFault::Hang(OnAbort::AbortedDataLater)),
        Just(CommandFault::LostCompletion),
        (1u64..60).prop_map(CommandFault::LateCompletion),
        (1u64..60).prop_map(CommandFault::Delay),
        Just(CommandFault::DuplicateCompletion),
        any::<u16>().prop_map(CommandFault::WrongCid),
        Just(CommandFault::StalePhase),
        Just(CommandFault::Status(Status::WRITE_FAULT)),
        Just(CommandFault::NoEffect),
    ];
    prop_oneof![
        2 => Just(Trouble::None),
        6 => fault.prop_map(Trouble::Fault),
        1 => Just(Trouble::Reset),
    ]
}

type Round = (Vec<(u8, u64, u32)>, Trouble, u64);

fn rounds() -> impl Strategy<Value = Vec<Round>> {
    let command = (0u8..4, 480u64..500, 1u32..=16);
    let round = (prop::collection::vec(command, 1..9), trouble(), 1u64..4);
    prop::collection::vec(round, 1..8)
}

proptest! {
    #![proptest_config(nvme_vfio_seeded::seeded(12))]

    #[test]
    fn each_command_ends_once(rounds in rounds(), bounce in any::<bool>()) {
        let isolated = if bounce { Isolated::Bounce } else { Isolated::Shared };
        let mut bench = Bench::new(isolated);
        for (commands, trouble, nth) in rounds {
            if let Trouble::Fault(fault) = &trouble {
                bench.inject(Matcher::io().nth(nth).times(2), fault.clone());
            }
            for (token, (kind, first, blocks)) in (0u64..).zip(&commands) {
                let opcode = match kind {
                    0 => NvmOpcode::READ,
                    1 => NvmOpcode::WRITE,
                    2 => NvmOpcode::VERIFY,
                    _ => NvmOpcode::FLUSH,
                };
                bench.submit(opcode, *first, *blocks, token);
            }
            if matches!(trouble, Trouble::Reset) {
                bench.rig.step();
                bench.rig.server.recover().unwrap();
            }
            let mut seen = vec![0; commands.len()];
            while bench.queue.in_flight() > 0 {
                let completion = bench.wait(PATIENCE).expect("all end");
                prop_assert_eq!(completion.outcome, Outcome::Done);
                seen[completion.token as usize] += 1;
            }
            prop_assert!(seen.iter().all(|count| *count == 1), "{:?}", seen);
            prop_assert!(bench.wait(Duration::from_millis(2)).is_none());
            bench.rig.device.clear_faults();
            bench.rig.device.release();
            bench.works();
        }
        prop_assert_eq!(bench.rig.device.iommu().fault_count(), 0);
        prop_assert_eq!(bench.rig.front.iommu().fault_count(), 0);
    }
}
