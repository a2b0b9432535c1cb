//! What a controller tells of itself is not believed.

use nvme_vfio::{Error, RecoveryLimit};
use nvme_vfio_emulator::{CommandFault, Fault, Matcher};
use proptest::prelude::*;

use crate::bench::*;

ways![namespaces_of_odd_formats_are_refused_and_the_controller_stays,];

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

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

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
