//! Identify: the data structures are written byte by byte, by the offsets of the specification.

use nvme_vfio_queues::Status;

use super::events::REQUEST_LIMIT;
use super::features::WARNING_TEMPERATURE;
use super::firmware::SLOTS;
use super::log::ERROR_ENTRIES;
use super::send;
use crate::command::Entry;
use crate::config::{Config, NamespaceNames, Offers};
use crate::config_space::VENDOR;
use crate::controller::Core;
use crate::execute::Reply;
use crate::iommu::DeviceMemory;
use crate::namespaces::{BROADCAST, Named, Namespace};
use crate::registers::VERSION;

const NAMESPACE: u8 = 0x00;
const CONTROLLER: u8 = 0x01;
const ACTIVE_NAMESPACES: u8 = 0x02;
const NAMESPACE_DESCRIPTORS: u8 = 0x03;
const COMMAND_SET_NAMESPACE: u8 = 0x05;
const COMMAND_SET_CONTROLLER: u8 = 0x06;
const COMMAND_SET_ACTIVE_NAMESPACES: u8 = 0x07;
const INDEPENDENT_NAMESPACE: u8 = 0x08;
const ALLOCATED_NAMESPACES: u8 = 0x10;
const ALLOCATED_NAMESPACE: u8 = 0x11;
const ATTACHED_CONTROLLERS: u8 = 0x12;
const CONTROLLERS: u8 = 0x13;
const COMMAND_SET_ALLOCATED_NAMESPACES: u8 = 0x1a;
const COMMAND_SET_ALLOCATED_NAMESPACE: u8 = 0x1b;
const COMMAND_SETS: u8 = 0x1c;

struct Page([u8; 4096]);

impl Page {
    fn new() -> Page {
        Page([0; 4096])
    }

    fn put(&mut self, offset: usize, bytes: &[u8]) {
        if let Some(place) = self.0.get_mut(offset..offset + bytes.len()) {
            place.copy_from_slice(bytes);
        }
    }

    /// ASCII text, padded with spaces.
    fn text(&mut self, offset: usize, length: usize, text: &str) {
        let padded: Vec<u8> = text
            .bytes()
            .chain(std::iter::repeat(b' '))
            .take(length)
            .collect();
        self.put(offset, &padded);
    }
}

fn controller(core: &Core) -> Page {
    let config = &core.config;
    let mut page = Page::new();
    page.put(0, &VENDOR.to_le_bytes());
    page.put(2, &VENDOR.to_le_bytes());
    page.text(4, 20, &config.serial);
    page.text(24, 40, &config.model);
    page.put(64, &core.firmware.revision());
    page.put(77, &[config.mdts]);
    page.put(78, &config.names.cntlid.to_le_bytes());
    page.put(80, &VERSION.to_le_bytes());
    page.put(92, &(1u32 << 8).to_le_bytes()); // OAES: Namespace Attribute Notices
    page.put(111, &[1]); // an I/O controller
    let offers = config.offers;
    page.put(256, &offers.oacs().to_le_bytes());
    page.put(258, &[3]); // ACL: four Aborts at once
    page.put(259, &[REQUEST_LIMIT]);
    // FRMW: how many slots, the first read-only, activation without a reset.
    let firmware = offers.contains(Offers::FIRMWARE);
    page.put(
        260,
        &[if firmware {
            1 << 4 | SLOTS << 1 | 1
        } else {
            1 << 1 | 1
        }],
    );
    page.put(261, &[0b110]); // LPA: commands supported and effects, extended data
    page.put(262, &[ERROR_ENTRIES]);
    page.put(266, &WARNING_TEMPERATURE.to_le_bytes());
    page.put(268, &(WARNING_TEMPERATURE + 10).to_le_bytes()); // CCTEMP
    page.put(280, &u128::from(core.namespaces.capacity()).to_le_bytes()); // TNVMCAP
    page.put(
        296,
        &u128::from(core.namespaces.unallocated()).to_le_bytes(),
    ); // UNVMCAP
    page.put(319, &[0xff]); // FWUG: no restriction
    page.put(512, &[0x66, 0x44]); // SQES, CQES: 64 and 16 bytes
    page.put(516, &core.namespaces.highest().to_le_bytes());
    page.put(520, &offers.oncs().to_le_bytes());
    // FNA: cryptographic erase; a format is of one namespace, or of all by FFFFFFFFh
    page.put(524, &[u8::from(offers.contains(Offers::FORMAT)) << 2]);
    // VWC: Flush with NSID FFFFFFFFh is supported where there is a cache, and is not where there is none.
    page.put(525, &[if config.vwc { 0b111 } else { 0b100 }]);
    if offers.contains(Offers::COPY) {
        page.put(534, &0b1111u16.to_le_bytes()); // OCFS: copy descriptor formats 0 to 3
    }
    let made = || {
        format!(
            "nqn.2014-08.org.nvmexpress:nvme-vfio:{}",
            config.serial.trim()
        )
    };
    let subsystem = config.names.subnqn.clone().unwrap_or_else(made);
    page.put(768, subsystem.as_bytes());
    page.put(2048, &2500u16.to_le_bytes()); // power state 0: 25 W
    page
}

/// What the NVM command set adds to the controller: the limits of its commands.
fn command_set_controller(config: &Config) -> Page {
    let mut page = Page::new();
    let limits = &config.limits;
    page.put(0, &[limits.vsl, limits.wzsl, limits.wusl, limits.dmrl]);
    page.put(4, &limits.dmrsl.to_le_bytes());
    page.put(8, &limits.dmsl.to_le_bytes());
    page
}

/// A namespace's globally unique identifiers, made from the serial number: EUI64 and NGUID.
fn identifiers(config: &Config, namespace: &Namespace) -> NamespaceNames {
    // One that was created later is another namespace.
    let given = config.names.namespaces.get(&namespace.nsid);
    if let Some(given) = given.filter(|_| namespace.generation == 0) {
        return *given;
    }
    // FNV-1a, so that the same configuration always has the same identifiers.
    let hash = config
        .serial
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        });
    let (nsid, generation) = (namespace.nsid, namespace.generation);
    let own = u64::from(generation) << 32 | u64::from(nsid);
    let eui = hash.wrapping_add(own).to_be_bytes();
    let mut nguid = [0; 16];
    nguid[..8].copy_from_slice(&hash.to_be_bytes());
    nguid[8..].copy_from_slice(&own.to_be_bytes());
    NamespaceNames {
        eui64: Some(eui),
        nguid: Some(nguid),
        uuid: None,
    }
}

/// What all namespaces have in common.
fn common(config: &Config) -> Page {
    let mut page = Page::new();
    page.put(24, &[u8::from(config.dulbe) << 2]); // NSFEAT: errors on deallocated blocks
    let formats = config.lba_formats.sizes();
    page.put(25, &[(formats.len() as u8).saturating_sub(1)]); // NLBAF
    page.put(33, &[0b1001]); // DLFEAT: Write Zeroes can deallocate, deallocated blocks read as zeroes
    let limits = &config.limits;
    page.put(74, &limits.mssrl.to_le_bytes());
    page.put(76, &limits.mcl.to_le_bytes());
    page.put(80, &[limits.msrc]);
    for (index, lba) in formats.iter().enumerate() {
        page.put(128 + 4 * index + 2, &[lba.trailing_zeros() as u8]); // LBADS
    }
    page
}

fn namespace(config: &Config, namespace: &Namespace) -> Page {
    let mut page = common(config);
    let blocks = namespace.blocks.to_le_bytes();
    page.put(0, &blocks); // NSZE
    page.put(8, &blocks); // NCAP
    page.put(16, &namespace.used().to_le_bytes()); // NUSE
    page.put(26, &[namespace.format]); // FLBAS
    page.put(30, &[u8::from(namespace.shared)]); // NMIC
    page.put(48, &u128::from(namespace.bytes).to_le_bytes()); // NVMCAP
    let names = identifiers(config, namespace);
    page.put(104, &names.nguid.unwrap_or_default());
    page.put(120, &names.eui64.unwrap_or_default());
    page
}

fn descriptors(config: &Config, namespace: &Namespace) -> Page {
    let mut page = Page::new();
    let names = identifiers(config, namespace);
    let eui64 = names.eui64.as_ref().map(|name| (1, name.as_slice()));
    let nguid = names.nguid.as_ref().map(|name| (2, name.as_slice()));
    let uuid = names.uuid.as_ref().map(|name| (3, name.as_slice()));
    // Command set identifier: 0, NVM.
    let command_set = Some((4, [0].as_slice()));
    let mut place = 0;
    for (kind, name) in [eui64, nguid, uuid, command_set].into_iter().flatten() {
        page.put(place, &[kind, name.len() as u8]);
        page.put(place + 4, name);
        place += 4 + name.len();
    }
    page
}

fn independent(namespace: &Namespace) -> Page {
    let mut page = Page::new();
    page.put(1, &[u8::from(namespace.shared)]); // NMIC
    page.put(14, &[1]); // NSTAT: ready
    page
}

/// A list of identifiers greater than NSID, of namespaces that `wanted` says.
fn list(core: &Core, nsid: u32, wanted: impl Fn(&Namespace) -> bool) -> Result<Page, Status> {
    if nsid >= 0xffff_fffe {
        return Err(Status::INVALID_NAMESPACE_OR_FORMAT.with_dnr());
    }
    let mut page = Page::new();
    let listed = core.namespaces.all().filter(|namespace| wanted(namespace));
    let later = listed.filter(|namespace| namespace.nsid > nsid);
    for (slot, namespace) in later.take(1024).enumerate() {
        page.put(slot * 4, &namespace.nsid.to_le_bytes());
    }
    Ok(page)
}

/// A list of controllers not below `from`: ours, or none.
fn controllers(config: &Config, from: u16, listed: bool) -> Page {
    let mut page = Page::new();
    let own = config.names.cntlid;
    if listed && from <= own {
        page.put(0, &1u16.to_le_bytes());
        page.put(2, &own.to_le_bytes());
    }
    page
}

/// A structure of an attached namespace; for another that could exist `inactive` says what comes back.
fn of_active(
    core: &Core,
    nsid: u32,
    inactive: Result<Page, Status>,
    of: impl Fn(&Namespace) -> Page,
) -> Result<Page, Status> {
    match core.namespaces.named(nsid) {
        Named::Active(namespace) => Ok(of(namespace)),
        Named::Allocated(_) | Named::Unallocated => inactive,
        Named::Invalid => Err(Status::INVALID_NAMESPACE_OR_FORMAT.with_dnr()),
    }
}

/// A structure of a namespace that exists, attached or not; zeroes for one that does not.
fn of_allocated(core: &Core, nsid: u32, of: impl Fn(&Namespace) -> Page) -> Result<Page, Status> {
    match core.namespaces.named(nsid) {
        Named::Active(namespace) | Named::Allocated(namespace) => Ok(of(namespace)),
        Named::Unallocated => Ok(Page::new()),
        Named::Invalid => Err(Status::INVALID_NAMESPACE_OR_FORMAT.with_dnr()),
    }
}

fn page(core: &Core, entry: &Entry) -> Result<Page, Status> {
    let config = &core.config;
    let invalid = || Err(Status::INVALID_FIELD.with_dnr());
    let nsid = entry.nsid();
    let (cns, from) = (entry.dword(10) as u8, (entry.dword(10) >> 16) as u16);
    // The NVM command set is the only one.
    let nvm = entry.dword(11) >> 24 == 0;
    match cns {
        NAMESPACE if nsid == BROADCAST => Ok(common(config)),
        NAMESPACE => of_active(core, nsid, Ok(Page::new()), |own| namespace(config, own)),
        CONTROLLER => Ok(controller(core)),
        ACTIVE_NAMESPACES => list(core, nsid, |namespace| namespace.attached),
        NAMESPACE_DESCRIPTORS => of_active(core, nsid, invalid(), |own| descriptors(config, own)),
        INDEPENDENT_NAMESPACE => of_active(core, nsid, Ok(Page::new()), independent),
        ALLOCATED_NAMESPACES => list(core, nsid, |_| true),
        ALLOCATED_NAMESPACE => of_allocated(core, nsid, |own| namespace(config, own)),
        ATTACHED_CONTROLLERS => {
            let attached = core.namespaces.active(nsid).is_some();
            of_allocated(core, nsid, |_| controllers(config, from, attached))
        }
        CONTROLLERS => Ok(controllers(config, from, true)),
        COMMAND_SETS if from == config.names.cntlid || from == 0xffff => {
            let mut page = Page::new();
            page.put(0, &[1]); // combination 0: the NVM command set
            Ok(page)
        }
        _ if !nvm => invalid(),
        // Without protection information the NVM command set adds nothing to a namespace.
        COMMAND_SET_NAMESPACE if nsid == BROADCAST => Ok(Page::new()),
        COMMAND_SET_NAMESPACE => of_active(core, nsid, Ok(Page::new()), |_| Page::new()),
        COMMAND_SET_CONTROLLER => Ok(command_set_controller(config)),
        COMMAND_SET_ACTIVE_NAMESPACES => list(core, nsid, |namespace| namespace.attached),
        COMMAND_SET_ALLOCATED_NAMESPACES => list(core, nsid, |_| true),
        COMMAND_SET_ALLOCATED_NAMESPACE => of_allocated(core, nsid, |_| Page::new()),
        _ => invalid(),
    }
}

pub(super) fn identify(
    core: &mut Core,
    entry: &Entry,
    memory: &DeviceMemory<'_>,
) -> Result<Reply, Status> {
    let mut page = page(core, entry)?;
    if let Some(handler) = &core.handler {
        handler.identify(entry.dword(10) as u8, entry.nsid(), &mut page.0);
    }
    send(core, entry, &page.0, memory)?;
    Ok(Reply::Now(0))
}
