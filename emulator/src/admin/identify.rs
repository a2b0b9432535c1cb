//! Identify: the data structures are written byte by byte, by the offsets of the specification.

use nvme_vfio_queues::Status;

use super::events::REQUEST_LIMIT;
use super::features::WARNING_TEMPERATURE;
use super::log::ERROR_ENTRIES;
use super::send;
use crate::command::Entry;
use crate::config::{Config, LBA_FORMATS};
use crate::config_space::VENDOR;
use crate::controller::Core;
use crate::execute::Reply;
use crate::iommu::DeviceMemory;
use crate::namespaces::Namespace;
use crate::registers::VERSION;

const NAMESPACE: u8 = 0x00;
const CONTROLLER: u8 = 0x01;
const ACTIVE_NAMESPACES: u8 = 0x02;
const NAMESPACE_DESCRIPTORS: u8 = 0x03;
const COMMAND_SET_NAMESPACE: u8 = 0x05;
const COMMAND_SET_CONTROLLER: u8 = 0x06;
const INDEPENDENT_NAMESPACE: u8 = 0x08;

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

fn controller(config: &Config) -> Page {
    let mut page = Page::new();
    page.put(0, &VENDOR.to_le_bytes());
    page.put(2, &VENDOR.to_le_bytes());
    page.text(4, 20, &config.serial);
    page.text(24, 40, &config.model);
    page.text(64, 8, &config.firmware);
    page.put(77, &[config.mdts]);
    page.put(78, &1u16.to_le_bytes()); // CNTLID
    page.put(80, &VERSION.to_le_bytes());
    page.put(111, &[1]); // an I/O controller
    page.put(258, &[3]); // ACL: four Aborts at once
    page.put(259, &[REQUEST_LIMIT]);
    page.put(260, &[0b011]); // FRMW: one slot, read-only
    page.put(261, &[0b110]); // LPA: commands supported and effects, extended data
    page.put(262, &[ERROR_ENTRIES]);
    page.put(266, &WARNING_TEMPERATURE.to_le_bytes());
    page.put(268, &(WARNING_TEMPERATURE + 10).to_le_bytes()); // CCTEMP
    page.put(512, &[0x66, 0x44]); // SQES, CQES: 64 and 16 bytes
    page.put(516, &config.nn().to_le_bytes());
    page.put(520, &0b1_1001u16.to_le_bytes()); // ONCS: Compare, Write Zeroes, save and select in features
    // VWC: Flush with NSID FFFFFFFFh is supported where there is a cache.
    page.put(525, &[if config.vwc { 0b111 } else { 0 }]);
    let subsystem = format!(
        "nqn.2014-08.org.nvmexpress:nvme-vfio:{}",
        config.serial.trim()
    );
    page.put(768, subsystem.as_bytes());
    page.put(2048, &2500u16.to_le_bytes()); // power state 0: 25 W
    page
}

/// A namespace's globally unique identifiers, made from the serial number: EUI64 and NGUID.
fn identifiers(config: &Config, nsid: u32) -> ([u8; 8], [u8; 16]) {
    // FNV-1a, so that the same configuration always has the same identifiers.
    let hash = config
        .serial
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        });
    let eui = hash.wrapping_add(u64::from(nsid)).to_be_bytes();
    let mut nguid = [0; 16];
    nguid[..8].copy_from_slice(&hash.to_be_bytes());
    nguid[12..].copy_from_slice(&nsid.to_be_bytes());
    (eui, nguid)
}

fn namespace(config: &Config, namespace: &Namespace) -> Page {
    let mut page = Page::new();
    let nsid = namespace.nsid;
    let blocks = namespace.blocks.to_le_bytes();
    page.put(0, &blocks); // NSZE
    page.put(8, &blocks); // NCAP
    page.put(16, &blocks); // NUSE
    page.put(25, &[LBA_FORMATS.len() as u8 - 1]); // NLBAF
    page.put(26, &[namespace.format]); // FLBAS
    page.put(33, &[0b001]); // DLFEAT: deallocated blocks read as zeroes
    page.put(48, &u128::from(namespace.bytes()).to_le_bytes()); // NVMCAP
    let (eui, nguid) = identifiers(config, nsid);
    page.put(104, &nguid);
    page.put(120, &eui);
    for (index, lba) in LBA_FORMATS.iter().enumerate() {
        page.put(128 + 4 * index + 2, &[lba.trailing_zeros() as u8]); // LBADS
    }
    page
}

fn descriptors(config: &Config, nsid: u32) -> Page {
    let mut page = Page::new();
    let (eui, nguid) = identifiers(config, nsid);
    page.put(0, &[1, 8]); // EUI64
    page.put(4, &eui);
    page.put(12, &[2, 16]); // NGUID
    page.put(16, &nguid);
    page.put(32, &[4, 1]); // command set identifier: 0, NVM
    page
}

pub(super) fn identify(
    core: &mut Core,
    entry: &Entry,
    memory: &DeviceMemory<'_>,
) -> Result<Reply, Status> {
    let config = &core.config;
    let nsid = entry.nsid();
    let command_set = (entry.dword(11) >> 24) as u8;
    let active = core.namespaces.active(nsid);
    // NSID FFFFFFFFh asks for what namespaces have in common, which only namespace management offers.
    let exists = nsid != 0 && nsid <= config.nn();
    let unknown = Err(Status::INVALID_NAMESPACE_OR_FORMAT.with_dnr());
    let cns = entry.dword(10) as u8;
    let page = match cns {
        CONTROLLER => controller(config),
        ACTIVE_NAMESPACES => {
            if nsid >= 0xffff_fffe {
                return unknown;
            }
            let mut page = Page::new();
            let attached = core.namespaces.all().filter(|one| one.attached);
            let later = attached.filter(|one| one.nsid > nsid);
            for (slot, one) in later.take(1024).enumerate() {
                page.put(slot * 4, &one.nsid.to_le_bytes());
            }
            page
        }
        COMMAND_SET_CONTROLLER if command_set == 0 => Page::new(),
        NAMESPACE | NAMESPACE_DESCRIPTORS | COMMAND_SET_NAMESPACE | INDEPENDENT_NAMESPACE
            if !exists =>
        {
            return unknown;
        }
        NAMESPACE if let Some(active) = active => namespace(config, active),
        NAMESPACE_DESCRIPTORS if active.is_some() => descriptors(config, nsid),
        INDEPENDENT_NAMESPACE if active.is_some() => {
            let mut page = Page::new();
            page.put(14, &[1]); // NSTAT: ready
            page
        }
        NAMESPACE_DESCRIPTORS => return Err(Status::INVALID_FIELD.with_dnr()),
        // An inactive namespace is all zeroes; so is what the NVM command set adds to an active one without protection information.
        NAMESPACE | INDEPENDENT_NAMESPACE => Page::new(),
        COMMAND_SET_NAMESPACE if command_set == 0 => Page::new(),
        _ => return Err(Status::INVALID_FIELD.with_dnr()),
    };
    send(core, entry, &page.0, memory)?;
    Ok(Reply::Now(0))
}
