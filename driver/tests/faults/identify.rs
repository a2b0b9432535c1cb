//! What a controller tells of itself is not believed.

use std::sync::Arc;
use std::time::Duration;

use nvme_vfio::{Controller, Error, Options, QueueOptions, RecoveryLimit};
use nvme_vfio_emulator::{CommandFault, ControllerFault, Fault, Matcher, Until};
use proptest::prelude::*;

use crate::bench::*;
use nvme_vfio_seeded::seeded;

ways![
    random_identify_data_is_survived,
    namespaces_of_odd_formats_are_refused_and_the_controller_stays,
];

fn namespaces_of_odd_formats_are_refused_and_the_controller_stays(way: Way) {
    let bench = way.bench(RecoveryLimit::Controller);
    for byte in [0x00, 0xff, 0x3f] {
        let fault = CommandFault::JunkData(vec![byte]);
        bench.emulator.inject(Fault::on(
            Matcher::admin().opcode(IDENTIFY).dword10(0).times(1),
            fault,
        ));
        assert!(
            matches!(
                bench.controller.namespace(1),
                Err(Error::Namespace { nsid: 1, .. })
            ),
            "{byte:#x}"
        );
        bench.controller.namespace(1).unwrap();
    }
    for nsid in [0, 2, u32::MAX, u32::MAX - 1] {
        assert!(
            matches!(
                bench.controller.namespace(nsid),
                Err(Error::Namespace { .. })
            ),
            "{nsid}"
        );
    }
}

fn random_identify_data_is_survived(way: Way) {
    let device = way.device("size=16M");
    let transport = device.transport();
    for seed in 0..40 {
        device.emulator.inject(Fault::on(
            Matcher::admin().opcode(IDENTIFY),
            CommandFault::RandomData(seed),
        ));
        let opened =
            Controller::with_transport(Arc::clone(&transport), options(RecoveryLimit::Controller));
        if let Ok(controller) = opened {
            for nsid in controller.namespaces().into_iter().flatten().take(4) {
                let _ = controller.namespace(nsid);
            }
            assert!(!format!("{:?}", controller.identify()).is_empty());
        }
        device.emulator.clear_faults();
        Controller::with_transport(Arc::clone(&transport), options(RecoveryLimit::Controller))
            .unwrap()
            .only_namespace()
            .unwrap();
    }
}

proptest! {
    #![proptest_config(seeded(256))]

    /// Capabilities of any kind lead to a controller or an error, never to a panic or a doorbell outside the registers.
    #[test]
    fn junk_in_capabilities_is_survived(cap in any::<u64>(), sane in any::<bool>()) {
        let device = Way::InProcess.device("size=16M");
        // Half of them with what the driver insists on, so that it goes on from there.
        let cap = if sane { cap & !(0xf << 48) | 1 << 37 | 2 } else { cap };
        device.emulator.inject(Fault::Controller(ControllerFault::Cap(cap), Until::Cleared));
        let asked = Options {
            ready_timeout: Some(Duration::from_millis(5)),
            admin_timeout: Duration::from_millis(5),
            io_timeout: Duration::from_millis(5),
            abort_grace: Duration::from_millis(5),
            shutdown_timeout: Duration::from_millis(5),
            ..options(RecoveryLimit::Controller)
        };
        if let Ok(controller) = device.open(asked) {
            let queue = controller.io_queue(QueueOptions::default());
            if let (Ok(mut queue), Ok(namespace)) = (queue, controller.only_namespace()) {
                let buffer = controller.allocate(4096).unwrap();
                // With a wrong stride the doorbells are not those that the controller looks at.
                match queue.read_blocking(&namespace, 0, buffer) {
                    Ok(buffer) => assert_eq!(buffer.len(), 4096),
                    // And a machine that is held up for longer than it waits finds it not ready.
                    Err(error) => assert!(
                        matches!(
                            error,
                            Error::Command(_) | Error::TimedOut { .. } | Error::NotReady { .. }
                        ),
                        "{cap:#x}: {error}"
                    ),
                }
            }
        }
    }
}

proptest! {
    #![proptest_config(seeded(64))]

    /// Identify data of any kind leads to a controller or an error, never to a panic.
    #[test]
    fn junk_in_identify_is_survived(pattern in prop::collection::vec(any::<u8>(), 1..64), cns in 0_u32..3) {
        let device = Way::InProcess.device("size=16M");
        device.emulator.inject(Fault::on(Matcher::admin().opcode(IDENTIFY).dword10(cns), CommandFault::JunkData(pattern)));
        if let Ok(controller) = device.open(options(RecoveryLimit::Controller)) {
            for nsid in controller.namespaces().into_iter().flatten().take(4) {
                let _ = controller.namespace(nsid);
            }
            let _ = controller.namespace(1);
            let _ = format!("{:?}", controller.identify());
        }
    }
}
