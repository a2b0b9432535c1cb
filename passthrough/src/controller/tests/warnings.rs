//! Warnings of the real controller, as a client's own controller tells of them.
#![allow(unsafe_code)] // an Asynchronous Event Request, which has no data

use nvme_vfio::AdminData;
use nvme_vfio_emulator::{CommandFault, Fault, Matcher};
use nvme_vfio_queues::command::LogPageId;
use nvme_vfio_queues::{AdminOpcode, Command, FeatureId};

use super::personality::watched;

/// Has the real controller's Critical Warning become `warnings`, on a client that asked to be told of `wanted`; dword 0 of the event that it gets.
fn event(wanted: u32, warnings: u8) -> u64 {
    let (rig, _mender) = watched();
    let configuration = FeatureId::ASYNC_EVENT_CONFIGURATION;
    rig.client
        .set_feature(configuration, false, 0, wanted)
        .unwrap();
    let logs = Matcher::admin().opcode(AdminOpcode::GET_LOG_PAGE.0);
    let junk = CommandFault::JunkData(vec![warnings]);
    rig.device.inject(Fault::on(logs, junk));
    // Has the server ask for the health again soon.
    let health = rig
        .client
        .log_page(LogPageId::SMART_HEALTH, u32::MAX, 512)
        .unwrap();
    assert_eq!(health[0], 0);
    let request = Command {
        opcode: AdminOpcode::ASYNC_EVENT_REQUEST.0,
        ..Command::ZERO
    };
    // SAFETY: the command has no data.
    let entry = unsafe { rig.client.admin_raw(request, AdminData::None) }.unwrap();
    let health = rig
        .client
        .log_page(LogPageId::SMART_HEALTH, u32::MAX, 512)
        .unwrap();
    assert_eq!(health[0], warnings);
    entry.result().into()
}

#[test]
fn a_client_is_told_when_the_controller_becomes_unreliable() {
    assert_eq!(event(0x1f, 1 << 2), 0x02_00_01);
}

#[test]
fn a_client_is_told_only_of_what_it_asked_for() {
    assert_eq!(event(0x1b, 1 << 1 | 1 << 2), 0x02_01_01);
    assert_eq!(event(0x01, 1 << 0 | 1 << 4), 0x02_02_01);
}
