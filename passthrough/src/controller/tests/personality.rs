//! What a client is told of its controller.

use std::time::{Duration, Instant};

use nvme_vfio::QueueOptions;
use nvme_vfio_emulator::{CommandFault, Fault, Matcher};
use nvme_vfio_queues::command::{Cns, Identify, LogPageId};
use nvme_vfio_queues::identify::{DescriptorList, NamespaceIdentifier};
use nvme_vfio_queues::log::{EffectsLog, SmartLog};
use nvme_vfio_queues::{AdminOpcode, NvmOpcode};
use zerocopy::FromBytes;

use super::faults::{PATIENCE, device, mender};
use super::rig::{Plan, Rig, slice};
use crate::server::MenderThread;

const POLICY: &str = r#"
controller = ["emulated"]
directory = "/run/x"
audit = { path = "/run/x/audit" }
[[client]]
name = "a"
uid = [1]
[[client.namespace]]
nsid = 1
source = [{ nsid = 1, start = 100, blocks = 1000 }]
allow = ["read", "write", "flush", "copy", "deallocate"]
"#;

fn rig(policy: &'static str, device: &str) -> Rig {
    Rig::new(Plan {
        device: device.to_owned(),
        slices: vec![vec![slice(1, 100, 1000)]],
        policy: Some(policy),
        ..Plan::default()
    })
}

#[test]
fn a_client_is_told_what_it_was_granted() {
    let rig = rig(
        POLICY,
        "size=8M,lba=512,stepped,mdts=5,vwc,msrc=3,mcl=100,mssrl=50",
    );
    let identify = rig.client.identify();
    assert_eq!(
        identify.model_number().to_string(),
        "nvme-vfio lent controller"
    );
    assert_eq!(identify.serial_number().to_string().len(), 20);
    assert!(identify.subsystem_nqn().to_string().contains("uuid:"));
    // Dataset Management and Copy; what the virtual controller has by itself.
    assert_eq!(identify.oncs.get(), 1 << 2 | 1 << 8 | 1 << 4 | 1 << 6);
    assert_eq!(identify.oacs.get(), 1 << 8);
    assert_eq!(identify.vwc, 0b101);
    assert_eq!(
        (identify.fna, identify.fuses.get(), identify.ocfs.get()),
        (0, 0, 1)
    );
    assert_eq!((identify.tnvmcap.get(), identify.frmw), (0, 0b11));

    let namespace = rig.client.identify_namespace(1).unwrap();
    assert_eq!((namespace.nsze.get(), namespace.nuse.get()), (1000, 1000));
    assert_eq!(
        (namespace.mssrl.get(), namespace.mcl.get(), namespace.msrc),
        (50, 100, 3)
    );
    assert_ne!(namespace.nguid, [0; 16]);
    assert_eq!(namespace.eui64, [0; 8]);
    let real = rig.server.identify_namespace(1).unwrap();
    assert_ne!(namespace.nguid, real.nguid);
    let list = rig
        .client
        .identify_raw(Identify::new(Cns::NAMESPACE_DESCRIPTORS, 1))
        .unwrap();
    let list = DescriptorList::read_from_bytes(&list).unwrap();
    let found: Vec<_> = list.iter().collect();
    assert!(
        matches!(found.as_slice(), [NamespaceIdentifier::Nguid(nguid), NamespaceIdentifier::Uuid(_), NamespaceIdentifier::CommandSet(0)] if *nguid == namespace.nguid),
        "{found:?}"
    );
    // One that is not granted is as one that does not exist: nothing of it is told.
    let other = rig.client.identify_raw(Identify::new(Cns::NAMESPACE, 2));
    assert!(other.is_err() || other.unwrap().iter().all(|byte| *byte == 0));

    let effects = rig
        .client
        .log_page(LogPageId::COMMANDS_SUPPORTED_AND_EFFECTS, 0, 4096)
        .unwrap();
    let effects = EffectsLog::read_from_bytes(&effects).unwrap();
    let supported: Vec<u8> = (0..=255)
        .filter(|opcode| effects.io(NvmOpcode(*opcode)).is_supported())
        .collect();
    assert_eq!(supported, [0x00, 0x01, 0x02, 0x09, 0x19]);
    assert!(effects.io(NvmOpcode::COPY).changes_content());
    for opcode in [0x0d, 0x10, 0x11, 0x15, 0x80, 0x81, 0x82] {
        assert_eq!(effects.acs[opcode].get(), 0, "{opcode:#x}");
    }

    let smart = |controller: &nvme_vfio::Controller| {
        let page = controller
            .log_page(LogPageId::SMART_HEALTH, u32::MAX, 512)
            .unwrap();
        SmartLog::read_from_bytes(&page).unwrap()
    };
    let (own, real) = (smart(&rig.client), smart(&rig.server));
    assert_eq!(own.temperature.get(), real.temperature.get());
    assert_eq!(own.power_cycles.get(), real.power_cycles.get());
    assert_eq!(own.host_read_commands.get(), 0);
    let mut queue = rig.client.io_queue(QueueOptions::with_depth(2)).unwrap();
    let only = rig.client.only_namespace().unwrap();
    let buffer = rig.client.allocate(65_536).unwrap();
    let buffer = queue.read_blocking(&only, 0, buffer).unwrap();
    queue.write_blocking(&only, 0, buffer).unwrap();
    let own = smart(&rig.client);
    assert_eq!(
        (own.host_read_commands.get(), own.host_write_commands.get()),
        (1, 1)
    );
    assert_eq!(
        (own.data_units_read.get(), own.data_units_written.get()),
        (1, 1)
    );
}

#[test]
fn blocks_in_several_ranges_are_written_atomically_one_by_one() {
    let device = "size=8M,lba=512,stepped,mdts=5";
    let one = rig(POLICY, device);
    let real = one.server.identify();
    assert_eq!(one.client.identify().awun.get(), real.awun.get());
    let several = "
controller = [\"emulated\"]
directory = \"/run/x\"
audit = { path = \"/run/x/audit\" }
[[client]]
name = \"a\"
uid = [1]
[[client.namespace]]
nsid = 1
source = [{ nsid = 1, start = 100, blocks = 500 }, { nsid = 1, start = 1000, blocks = 500 }]
allow = [\"read\", \"write\"]
";
    let several = rig(several, device);
    assert_eq!(several.client.identify().awun.get(), 0);
    assert_eq!(several.client.identify().awupf.get(), 0);
    // No cache to flush where Flush is not granted.
    assert_eq!(several.client.identify().vwc, 0b100);
}

/// A client whose health a mender keeps up to date.
pub(super) fn watched() -> (Rig, MenderThread) {
    let (device, server) = device();
    let mender = mender(&server);
    let rig = Rig::on(
        Plan {
            slices: vec![vec![slice(1, 100, 1000)]],
            policy: Some(POLICY),
            mender: Some(mender.mender()),
            ..Plan::default()
        },
        device,
        server,
    );
    (rig, mender)
}

#[test]
fn the_health_that_a_client_is_told_of_is_that_of_now() {
    let (rig, _mender) = watched();
    let temperature = || {
        let page = rig
            .client
            .log_page(LogPageId::SMART_HEALTH, u32::MAX, 512)
            .unwrap();
        SmartLog::read_from_bytes(&page).unwrap().temperature.get()
    };
    let before = temperature();
    let logs = Matcher::admin().opcode(AdminOpcode::GET_LOG_PAGE.0);
    let other = CommandFault::JunkData(vec![0x12]);
    rig.device.inject(Fault::on(logs, other));
    assert_ne!(before, 0x1212);
    let until = Instant::now() + PATIENCE;
    while temperature() != 0x1212 {
        assert!(Instant::now() < until, "it stays as it was");
        std::thread::sleep(Duration::from_millis(50));
    }
    // What the client has moved is its own.
    let page = rig.client.log_page(LogPageId::SMART_HEALTH, u32::MAX, 512);
    let page = SmartLog::read_from_bytes(&page.unwrap()).unwrap();
    assert_eq!(page.host_read_commands.get(), 0);
}
