//! Commands that reach more than blocks: for operators, and for the owner of a group alone.

use super::field::{Field, Layout, field};
use super::request::{BROADCAST, Meaning, Request, View};
use crate::command::{Class, Direction, Persistence, Scope};
use crate::reason::Reason;

/// Bytes of a data structure that fills a page: namespace and controller list structures.
const PAGE: u64 = 4096;

/// Vendors' commands: their words may say anything, their metadata pointer nothing.
pub(super) const VENDOR_LAYOUT: Layout = Layout::of_namespace(
    true,
    &[
        field("CDW2", 2, 31, 0),
        field("CDW3", 3, 31, 0),
        field("CDW10", 10, 31, 0),
        field("CDW11", 11, 31, 0),
        field("CDW12", 12, 31, 0),
        field("CDW13", 13, 31, 0),
        field("CDW14", 14, 31, 0),
        field("CDW15", 15, 31, 0),
    ],
);

/// A vendor's command: for the owner alone.
pub(super) fn vendor(request: &Request<'_>) -> Result<Meaning, Reason> {
    if request.view == View::Client {
        return Err(Reason::NeverPasses);
    }
    let direction = match request.bits::<0>(1, 0) {
        0 => Direction::None,
        1 => Direction::ToController,
        2 => Direction::FromController,
        _ => Direction::Both,
    };
    let mut meaning = Meaning::new(Class::Vendor, Scope::Subsystem).lasts(Persistence::Permanent);
    meaning.direction = direction;
    Ok(meaning)
}

/// Bytes of as many dwords as a zero-based field says.
fn dwords(number: u32) -> u64 {
    (u64::from(number) + 1) * 4
}

pub(super) const NAMESPACE_MANAGEMENT: &[Field] =
    &[field("SEL", 10, 3, 0), field("CSI", 11, 31, 24)];

/// Namespace Management (base specification 2.0, 5.23).
pub(super) fn namespace_management(request: &mut Request<'_>) -> Result<Meaning, Reason> {
    let select = request.bits::<10>(3, 0) as u8;
    let class = Class::NamespaceManagement;
    match select {
        0 if request.nsid() != 0 => Err(Reason::NamespaceNotGranted),
        0 => Ok(Meaning::new(class, Scope::Subsystem)
            .sends(PAGE)
            .lasts(Persistence::Media)
            .selects(select, "create")),
        1 if request.word::<11>() != 0 => Err(Reason::IllegalValue),
        1 => Ok(Meaning::new(class, request.namespaces()?)
            .lasts(Persistence::Permanent)
            .selects(select, "delete")),
        _ => Err(Reason::IllegalValue),
    }
}

pub(super) const NAMESPACE_ATTACHMENT: &[Field] = &[field("SEL", 10, 3, 0)];

/// Namespace Attachment (base specification 2.0, 5.22): the controllers are in its data.
pub(super) fn namespace_attachment(request: &mut Request<'_>) -> Result<Meaning, Reason> {
    let select = request.bits::<10>(3, 0) as u8;
    let detail = match select {
        0 => "attach",
        1 => "detach",
        _ => return Err(Reason::IllegalValue),
    };
    // A namespace to be attached is no active one, so nothing can be known of it.
    match request.nsid() {
        BROADCAST if select == 0 || request.view == View::Client => {
            return Err(Reason::AllNamespaces);
        }
        0 | 0xffff_fffe => return Err(Reason::NamespaceNotGranted),
        _ if select == 1 && request.nsid() != BROADCAST => {
            request.namespace()?;
        }
        _ => {}
    }
    Ok(Meaning::new(Class::NamespaceManagement, Scope::Subsystem)
        .sends(PAGE)
        .lasts(Persistence::Media)
        .selects(select, detail))
}

pub(super) const FIRMWARE_COMMIT: &[Field] = &[
    field("FS", 10, 2, 0),
    field("CA", 10, 5, 3),
    field("BPID", 10, 31, 31),
];

/// Firmware Commit (base specification 2.0, 5.11).
pub(super) fn firmware_commit(request: &mut Request<'_>) -> Result<Meaning, Reason> {
    let action = request.bits::<10>(5, 3) as u8;
    let detail = match action {
        0 => "replace",
        1 => "replace, activate at reset",
        2 => "activate at reset",
        3 => "activate at once",
        6 => "replace boot partition",
        7 => "activate boot partition",
        _ => return Err(Reason::IllegalValue),
    };
    Ok(Meaning::new(Class::Firmware, Scope::Subsystem)
        .lasts(Persistence::Media)
        .selects(action, detail))
}

pub(super) const FIRMWARE_DOWNLOAD: &[Field] =
    &[field("NUMD", 10, 31, 0), field("OFST", 11, 31, 0)];

/// Firmware Image Download (base specification 2.0, 5.12): nothing lasts before it is committed.
pub(super) fn firmware_download(request: &mut Request<'_>) -> Result<Meaning, Reason> {
    Ok(Meaning::new(Class::Firmware, Scope::Controller)
        .sends(dwords(request.word::<10>()))
        .lasts(Persistence::UntilReset))
}

pub(super) const DEVICE_SELF_TEST: &[Field] = &[field("STC", 10, 3, 0)];

/// Device Self-test (base specification 2.0, 5.9).
pub(super) fn device_self_test(request: &mut Request<'_>) -> Result<Meaning, Reason> {
    let code = request.bits::<10>(3, 0) as u8;
    let detail = match code {
        0x1 => "short",
        0x2 => "extended",
        0xe => "vendor specific",
        0xf => "abort",
        _ => return Err(Reason::IllegalValue),
    };
    Ok(
        Meaning::new(Class::Owner, request.namespaces_or_controller()?)
            .lasts(Persistence::UntilReset)
            .selects(code, detail),
    )
}

pub(super) const DIRECTIVE: &[Field] = &[
    field("NUMD", 10, 31, 0),
    field("DOPER", 11, 7, 0),
    field("DTYPE", 11, 15, 8),
    field("DSPEC", 11, 31, 16),
    field("CDW12", 12, 31, 0),
];

/// Directive type and operation.
fn directive(request: &Request<'_>) -> (u32, u8) {
    (request.bits::<11>(15, 8), request.bits::<11>(7, 0) as u8)
}

/// Directive Send (base specification 2.0, 5.8): none of its operations has data.
pub(super) fn directive_send(request: &mut Request<'_>) -> Result<Meaning, Reason> {
    let operation = directive(request);
    let (detail, dword12) = match operation {
        (0, 1) => ("enable directive", 0xff01),
        (1, 1) => ("streams: release identifier", 0),
        (1, 2) => ("streams: release resources", 0),
        _ => return Err(Reason::IllegalValue),
    };
    if request.word::<12>() & !dword12 != 0 {
        return Err(Reason::ReservedBit);
    }
    if request.word::<10>() != 0 {
        return Err(Reason::IllegalValue);
    }
    Ok(Meaning::new(Class::Owner, request.namespaces()?)
        .lasts(Persistence::UntilReset)
        .selects(operation.1, detail))
}

/// Directive Receive (base specification 2.0, 5.7). Allocating resources is one, although it changes something.
pub(super) fn directive_receive(request: &mut Request<'_>) -> Result<Meaning, Reason> {
    let operation = directive(request);
    let length = dwords(request.word::<10>());
    let (detail, dword12, length, persistence) = match operation {
        (0, 1) => ("identify", 0, length, Persistence::None),
        (1, 1) => ("streams: parameters", 0, length, Persistence::None),
        (1, 2) => ("streams: status", 0, length, Persistence::None),
        (1, 3) => (
            "streams: allocate resources",
            0xffff,
            0,
            Persistence::UntilReset,
        ),
        _ => return Err(Reason::IllegalValue),
    };
    if request.word::<12>() & !dword12 != 0 {
        return Err(Reason::ReservedBit);
    }
    if length == 0 && request.word::<10>() != 0 {
        return Err(Reason::IllegalValue);
    }
    Ok(Meaning::new(Class::Owner, request.namespaces()?)
        .receives(length)
        .lasts(persistence)
        .selects(operation.1, detail))
}

pub(super) const CAPACITY_MANAGEMENT: &[Field] = &[
    field("OPER", 10, 3, 0),
    field("ELID", 10, 31, 16),
    field("CAPL", 11, 31, 0),
    field("CAPU", 12, 31, 0),
];

/// Capacity Management (base specification 2.0, 5.3).
pub(super) fn capacity_management(request: &mut Request<'_>) -> Result<Meaning, Reason> {
    let operation = request.bits::<10>(3, 0) as u8;
    let detail = match operation {
        0 => "select configuration",
        1 => "create endurance group",
        2 => "delete endurance group",
        3 => "create NVM set",
        4 => "delete NVM set",
        _ => return Err(Reason::IllegalValue),
    };
    Ok(Meaning::new(Class::Owner, Scope::Subsystem)
        .lasts(Persistence::Permanent)
        .selects(operation, detail))
}

pub(super) const FORMAT_NVM: &[Field] = &[
    field("LBAFL", 10, 3, 0),
    field("MSET", 10, 4, 4),
    field("PI", 10, 7, 5),
    field("PIL", 10, 8, 8),
    field("SES", 10, 11, 9),
    field("LBAFU", 10, 13, 12),
];

/// Format NVM (base specification 2.0, 5.14). The controller's attributes may have it reach all namespaces though it names one.
pub(super) fn format_nvm(request: &mut Request<'_>) -> Result<Meaning, Reason> {
    let erase = request.bits::<10>(11, 9) as u8;
    let (detail, attribute) = match erase {
        0 => ("no erase", 1 << 0),
        1 => ("user data erase", 1 << 0 | 1 << 1),
        2 => ("cryptographic erase", 1 << 0 | 1 << 1),
        _ => return Err(Reason::IllegalValue),
    };
    let scope = match request.namespaces()? {
        Scope::Namespace if request.format_attributes & attribute != 0 => Scope::AllNamespaces,
        scope => scope,
    };
    Ok(Meaning::new(Class::Format, scope)
        .lasts(Persistence::Permanent)
        .selects(erase, detail))
}

pub(super) const SECURITY: &[Field] = &[
    field("NSSF", 10, 7, 0),
    field("SPSP", 10, 23, 8),
    field("SECP", 10, 31, 24),
    field("AL, TL", 11, 31, 0),
];

/// Security Send (base specification 2.0, 5.26).
pub(super) fn security_send(request: &mut Request<'_>) -> Result<Meaning, Reason> {
    security(request).map(|meaning| {
        meaning
            .sends(u64::from(request.word::<11>()))
            .lasts(Persistence::Permanent)
    })
}

/// Security Receive (base specification 2.0, 5.25): receiving changes the state of a session.
pub(super) fn security_receive(request: &mut Request<'_>) -> Result<Meaning, Reason> {
    security(request).map(|meaning| {
        meaning
            .receives(u64::from(request.word::<11>()))
            .lasts(Persistence::UntilReset)
    })
}

/// What a protocol locks or erases, it says inside of its data: anything that the controller has.
fn security(request: &Request<'_>) -> Result<Meaning, Reason> {
    request.namespaces_or_controller()?;
    let protocol = request.bits::<10>(31, 24) as u8;
    let detail = match protocol {
        0x00 => "security protocol information",
        0x01..=0x06 => "TCG",
        0xea => "NVMe",
        0xef => "ATA security",
        _ => "",
    };
    Ok(Meaning::new(Class::Security, Scope::Subsystem).selects(protocol, detail))
}

pub(super) const SANITIZE: &[Field] = &[
    field("SANACT", 10, 2, 0),
    field("AUSE", 10, 3, 3),
    field("OWPASS", 10, 7, 4),
    field("OIPBP", 10, 8, 8),
    field("NDAS", 10, 9, 9),
    field("OVRPAT", 11, 31, 0),
];

/// Sanitize (base specification 2.0, 5.24): the whole subsystem, whatever happens in between.
pub(super) fn sanitize(request: &mut Request<'_>) -> Result<Meaning, Reason> {
    let action = request.bits::<10>(2, 0) as u8;
    let detail = match action {
        1 => "exit failure mode",
        2 => "block erase",
        3 => "overwrite",
        4 => "cryptographic erase",
        _ => return Err(Reason::IllegalValue),
    };
    Ok(Meaning::new(Class::Owner, Scope::Subsystem)
        .lasts(Persistence::Permanent)
        .selects(action, detail))
}

/// Fields that the three reservation commands with keys begin with.
const RESERVATION: [Field; 2] = [field("action", 10, 2, 0), field("IEKEY", 10, 3, 3)];

pub(super) const RESERVATION_REGISTER: &[Field] =
    &[RESERVATION[0], RESERVATION[1], field("CPTPL", 10, 31, 30)];
pub(super) const RESERVATION_ACQUIRE: &[Field] =
    &[RESERVATION[0], RESERVATION[1], field("RTYPE", 10, 15, 8)];
pub(super) const RESERVATION_RELEASE: &[Field] =
    &[RESERVATION[0], RESERVATION[1], field("RTYPE", 10, 15, 8)];
pub(super) const RESERVATION_REPORT: &[Field] = &[field("NUMD", 10, 31, 0), field("EDS", 11, 0, 0)];

/// A reservation holds for the host, and with it for all of its clients.
fn reservation(request: &Request<'_>, details: &[&'static str]) -> Result<Meaning, Reason> {
    request.namespace()?;
    let action = request.bits::<10>(2, 0) as u8;
    let detail = details
        .get(usize::from(action))
        .ok_or(Reason::IllegalValue)?;
    Ok(Meaning::new(Class::Owner, Scope::Namespace)
        .lasts(Persistence::Media)
        .selects(action, detail))
}

/// Reservation Register (base specification 2.0, 7.6).
pub(super) fn reservation_register(request: &mut Request<'_>) -> Result<Meaning, Reason> {
    Ok(reservation(request, &["register", "unregister", "replace"])?.sends(16))
}

/// Reservation Acquire (base specification 2.0, 7.5).
pub(super) fn reservation_acquire(request: &mut Request<'_>) -> Result<Meaning, Reason> {
    Ok(reservation(request, &["acquire", "preempt", "preempt and abort"])?.sends(16))
}

/// Reservation Release (base specification 2.0, 7.7).
pub(super) fn reservation_release(request: &mut Request<'_>) -> Result<Meaning, Reason> {
    Ok(reservation(request, &["release", "clear"])?.sends(8))
}

/// Reservation Report (base specification 2.0, 7.8).
pub(super) fn reservation_report(request: &mut Request<'_>) -> Result<Meaning, Reason> {
    request.namespace()?;
    Ok(Meaning::new(Class::Owner, Scope::Namespace).receives(dwords(request.word::<10>())))
}

pub(super) const IO_MANAGEMENT_RECEIVE: &[Field] = &[
    field("MO", 10, 7, 0),
    field("MOS", 10, 31, 16),
    field("NUMD", 11, 31, 0),
];

/// I/O Management Receive: reclaim unit handles show the work of others.
pub(super) fn io_management_receive(request: &mut Request<'_>) -> Result<Meaning, Reason> {
    let operation = request.bits::<10>(7, 0) as u8;
    if operation != 1 {
        return Err(Reason::IllegalValue);
    }
    request.namespace()?;
    Ok(Meaning::new(Class::Owner, Scope::Subsystem)
        .receives(dwords(request.word::<11>()))
        .selects(operation, "reclaim unit handle status"))
}

pub(super) const IO_MANAGEMENT_SEND: &[Field] = &[field("MO", 10, 7, 0), field("MOS", 10, 31, 16)];

/// I/O Management Send: the placement handles are in its data.
pub(super) fn io_management_send(request: &mut Request<'_>) -> Result<Meaning, Reason> {
    let operation = request.bits::<10>(7, 0) as u8;
    if operation != 1 {
        return Err(Reason::IllegalValue);
    }
    request.namespace()?;
    let handles = u64::from(request.bits::<10>(31, 16)) + 1;
    Ok(Meaning::new(Class::Owner, Scope::Subsystem)
        .sends(handles * 2)
        .lasts(Persistence::Media)
        .selects(operation, "reclaim unit handle update"))
}
