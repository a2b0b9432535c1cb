//! Format NVM, Namespace Management and Namespace Attachment.
//!
//! A format or a deletion waits until no command is in flight on the namespace; it is answered then.

use nvme_vfio_queues::Status;

use crate::command::Entry;
use crate::config::SIZE_MAX;
use crate::controller::Core;
use crate::execute::Reply;
use crate::flight::Completion;
use crate::io::{inactive, receive};
use crate::iommu::DeviceMemory;
use crate::namespaces::{BROADCAST, Named, Namespace};

/// What is done to namespaces once nothing is in flight on them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Work {
    Format(u8),
    Delete,
}

/// A command that waits for others.
#[derive(Debug)]
pub(crate) struct Deferred {
    cid: u16,
    work: Work,
    namespaces: Vec<u32>,
}

impl Core {
    fn in_flight_on(&self, nsid: u32) -> bool {
        self.flights.any_on(nsid) || self.jobs.values().any(|job| job.touches(nsid))
    }

    /// What the host sees of a namespace has changed.
    pub(crate) fn namespace_changed(&mut self, nsid: u32) {
        self.logs.changed(nsid);
        if self.features.namespace_notices() {
            self.events.raise(super::events::Event::NAMESPACE_ATTRIBUTE);
        }
    }

    /// The controller's health has come to give these warnings.
    pub(crate) fn warnings_came(&mut self, warnings: u8) {
        let wanted = self.features.wanted_warnings(warnings);
        for bit in (0..8).filter(|bit| wanted & 1 << bit != 0) {
            let event = super::events::Event::of_critical_warning(bit);
            self.events.raise(event);
        }
    }

    /// Does the work now, or when the last command in flight has ended.
    fn work_on(
        &mut self,
        entry: &Entry,
        work: Work,
        namespaces: Vec<u32>,
    ) -> Result<Reply, Status> {
        for &nsid in &namespaces {
            if let Some(namespace) = self.namespaces.get_mut(nsid) {
                namespace.busy = true;
            }
        }
        if namespaces.iter().any(|&nsid| self.in_flight_on(nsid)) {
            self.deferred.push(Deferred {
                cid: entry.cid(),
                work,
                namespaces,
            });
            return Ok(Reply::Later);
        }
        self.do_work(work, &namespaces)?;
        Ok(Reply::Now(0))
    }

    fn do_work(&mut self, work: Work, namespaces: &[u32]) -> Result<(), Status> {
        let mut worst = Ok(());
        for &nsid in namespaces {
            match work {
                Work::Delete => {
                    let seen = self.namespaces.active(nsid).is_some();
                    self.backend.delete(nsid);
                    self.namespaces.delete(nsid);
                    if seen {
                        self.namespace_changed(nsid);
                    }
                }
                Work::Format(format) => {
                    if let Err(error) = self.backend.erase(nsid) {
                        tracing::error!(nsid, %error, "a namespace could not be erased");
                        worst = Err(Status::INTERNAL_ERROR);
                        if let Some(namespace) = self.namespaces.get_mut(nsid) {
                            namespace.busy = false;
                        }
                        continue;
                    }
                    let before = self.namespaces.active(nsid).map(|own| own.format);
                    self.namespaces.reformat(nsid, format);
                    if before.is_some_and(|before| before != format) {
                        self.namespace_changed(nsid);
                    }
                }
            }
        }
        worst
    }
}

/// Answers the commands whose namespaces have nothing in flight any more.
pub(crate) fn finish_deferred(core: &mut Core, memory: &DeviceMemory<'_>) {
    let mut index = 0;
    while let Some(deferred) = core.deferred.get(index) {
        let busy = deferred
            .namespaces
            .iter()
            .any(|&nsid| core.in_flight_on(nsid));
        if busy || !core.reserve(0) {
            index += 1;
            continue;
        }
        let deferred = core.deferred.remove(index);
        let mut status = Status::SUCCESS;
        if let Err(failed) = core.do_work(deferred.work, &deferred.namespaces) {
            let nsid = deferred.namespaces.first().copied().unwrap_or(0);
            status = core.log_error(0, deferred.cid, failed, nsid, 0);
        }
        let completion = Completion {
            sqid: 0,
            cid: deferred.cid,
            result: 0,
            status,
        };
        core.post(&completion, memory);
    }
}

/// Ends what waits at a reset: the namespaces stay as they are.
pub(crate) fn forget_deferred(core: &mut Core) {
    for deferred in std::mem::take(&mut core.deferred) {
        for nsid in deferred.namespaces {
            if let Some(namespace) = core.namespaces.get_mut(nsid) {
                namespace.busy = false;
            }
        }
    }
}

/// Format NVM, of one attached namespace, or of all with NSID FFFFFFFFh.
pub(super) fn format(core: &mut Core, entry: &Entry) -> Result<Reply, Status> {
    let (dword10, nsid) = (entry.dword(10), entry.nsid());
    // LBAF has two more bits above the others.
    let format = (dword10 & 0xf | dword10 >> 8 & 0x30) as u8;
    let (protection, erase) = (dword10 >> 5 & 0b111, dword10 >> 9 & 0b111);
    let namespaces: Vec<u32> = match core.namespaces.named(nsid) {
        Named::Active(_) => vec![nsid],
        Named::Invalid if nsid == BROADCAST => {
            let attached = core.namespaces.all().filter(|one| one.attached);
            attached.map(|one| one.nsid).collect()
        }
        _ => return Err(inactive(core, nsid)),
    };
    // No, user data or cryptographic erase; protection information of types 1 to 3.
    if erase > 2 || protection > 3 {
        return Err(Status::INVALID_FIELD.with_dnr());
    }
    let invalid = Err(Status::INVALID_FORMAT.with_dnr());
    let Some(lba) = core.config.lba_formats.get(format) else {
        return invalid;
    };
    // Without metadata there is no room for protection information.
    if protection != 0 || u64::from(lba) > core.config.transfer_max() {
        return invalid;
    }
    for &nsid in &namespaces {
        match core.namespaces.active(nsid) {
            Some(own) if own.busy => return Err(Status::FORMAT_IN_PROGRESS),
            Some(own) if own.bytes < u64::from(lba) => return invalid,
            _ => {}
        }
    }
    core.work_on(entry, Work::Format(format), namespaces)
}

/// Namespace Management: create (SEL 0) or delete (SEL 1).
pub(super) fn manage(
    core: &mut Core,
    entry: &Entry,
    memory: &DeviceMemory<'_>,
) -> Result<Reply, Status> {
    match entry.dword(10) & 0xf {
        0 => create(core, entry, memory),
        1 => delete(core, entry),
        _ => Err(Status::INVALID_FIELD.with_dnr()),
    }
}

fn field<const N: usize>(bytes: &[u8], offset: usize) -> [u8; N] {
    let mut own = [0; N];
    if let Some(place) = bytes.get(offset..offset + N) {
        own.copy_from_slice(place);
    }
    own
}

fn create(core: &mut Core, entry: &Entry, memory: &DeviceMemory<'_>) -> Result<Reply, Status> {
    let invalid = Err(Status::INVALID_FIELD.with_dnr());
    if entry.nsid() != 0 {
        return invalid;
    }
    if entry.dword(11) >> 24 != 0 {
        return Err(Status::IO_COMMAND_SET_NOT_SUPPORTED.with_dnr());
    }
    let data = receive(core, 0, entry, 4096, memory)?;
    let (size, capacity) = (
        u64::from_le_bytes(field(&data, 0)),
        u64::from_le_bytes(field(&data, 8)),
    );
    let [flbas, _, _, protection, sharing] = field(&data, 26);
    // FLBAS has two more bits above the one for metadata.
    let format = flbas & 0xf | flbas >> 1 & 0x30;
    let lba = core.config.lba_formats.get(format);
    let lba = lba.filter(|&lba| protection == 0 && u64::from(lba) <= core.config.transfer_max());
    let lba = lba.ok_or(Status::INVALID_FORMAT.with_dnr())?;
    let groups = u32::from_le_bytes(field(&data, 92));
    let sets = u32::from_le_bytes(field(&data, 100));
    if size == 0 || capacity > size || sharing > 1 || groups != 0 || sets != 0 {
        return invalid;
    }
    if size != capacity {
        return Err(Status::THIN_PROVISIONING_NOT_SUPPORTED.with_dnr());
    }
    let insufficient = Status::NAMESPACE_INSUFFICIENT_CAPACITY.with_dnr();
    let most = core.namespaces.unallocated().min(SIZE_MAX);
    let bytes = size.checked_mul(u64::from(lba));
    let bytes = bytes.filter(|&bytes| bytes <= most).ok_or(insufficient)?;
    let nsid = core.namespaces.free_identifier();
    let nsid = nsid.ok_or(Status::NAMESPACE_IDENTIFIER_UNAVAILABLE.with_dnr())?;
    if let Err(error) = core.backend.create(nsid, bytes) {
        tracing::error!(nsid, bytes, %error, "the back end has no room for a namespace");
        return Err(insufficient);
    }
    core.namespaces.create(nsid, bytes, format, sharing == 1);
    core.features.forget_namespace(nsid);
    core.saved.forget_namespace(nsid);
    Ok(Reply::Now(nsid))
}

fn delete(core: &mut Core, entry: &Entry) -> Result<Reply, Status> {
    let nsid = entry.nsid();
    let namespaces: Vec<u32> = match core.namespaces.named(nsid) {
        Named::Active(_) | Named::Allocated(_) => vec![nsid],
        Named::Invalid if nsid == BROADCAST => core.namespaces.all().map(|one| one.nsid).collect(),
        _ => return Err(inactive(core, nsid)),
    };
    let busy = |one: &Namespace| one.busy && namespaces.contains(&one.nsid);
    if core.namespaces.all().any(busy) {
        return Err(Status::FORMAT_IN_PROGRESS);
    }
    core.work_on(entry, Work::Delete, namespaces)
}

/// Namespace Attachment: attach (SEL 0) or detach (SEL 1) the controllers of a list in the data; there is one.
pub(super) fn attach(
    core: &mut Core,
    entry: &Entry,
    memory: &DeviceMemory<'_>,
) -> Result<Reply, Status> {
    let (select, nsid) = (entry.dword(10) & 0xf, entry.nsid());
    if select > 1 {
        return Err(Status::INVALID_FIELD.with_dnr());
    }
    let attached = match core.namespaces.named(nsid) {
        Named::Active(_) => true,
        Named::Allocated(_) => false,
        _ => return Err(inactive(core, nsid)),
    };
    let data = receive(core, 0, entry, 4096, memory)?;
    let count = u16::from_le_bytes(field(&data, 0));
    let first = u16::from_le_bytes(field(&data, 2));
    // The list ascends, so that ours can only be alone in it.
    if count != 1 || first != core.config.names.cntlid {
        return Err(Status::CONTROLLER_LIST_INVALID.with_dnr());
    }
    match (select, attached) {
        (0, true) => return Err(Status::NAMESPACE_ALREADY_ATTACHED.with_dnr()),
        (1, false) => return Err(Status::NAMESPACE_NOT_ATTACHED.with_dnr()),
        _ => {}
    }
    if let Some(namespace) = core.namespaces.get_mut(nsid) {
        if namespace.busy {
            return Err(Status::FORMAT_IN_PROGRESS);
        }
        namespace.attached = select == 0;
    }
    core.namespace_changed(nsid);
    Ok(Reply::Now(0))
}
