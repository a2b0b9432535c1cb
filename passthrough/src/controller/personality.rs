//! What a client is told of its controller: what it was granted, as far as the real controllers have it, and nothing of anybody else's.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};

use nvme_vfio::{Controller, Error};
use nvme_vfio_emulator::Emulator;
use nvme_vfio_queues::command::LogPageId;

use crate::command::{Class, ClassSet};
use crate::policy::{ControllerNames, NamespaceNames, ResolvedClient};

/// Optional commands, by their bit of ONCS.
const ONCS: [(ClassSet, u16); 6] = [
    (ClassSet::COMPARE, 0),
    (ClassSet::POISON, 1),
    (ClassSet::DEALLOCATE, 2),
    (ClassSet::WRITE_ZEROES, 3),
    (ClassSet::VERIFY, 7),
    (ClassSet::COPY, 8),
];
/// ONCS bits that the virtual controller answers for by itself: saving and selecting features, Timestamp.
const ONCS_VIRTUAL: u16 = 1 << 4 | 1 << 6;

/// I/O commands, by opcode, with what their effects are: supported, or also changing content.
const EFFECTS: [(ClassSet, u8, bool); 9] = [
    (ClassSet::FLUSH, 0x00, false),
    (ClassSet::WRITE, 0x01, true),
    (ClassSet::READ, 0x02, false),
    (ClassSet::POISON, 0x04, true),
    (ClassSet::COMPARE, 0x05, false),
    (ClassSet::WRITE_ZEROES, 0x08, true),
    (ClassSet::DEALLOCATE, 0x09, true),
    (ClassSet::VERIFY, 0x0c, false),
    (ClassSet::COPY, 0x19, true),
];
/// Admin commands of operator classes, by opcode; they are offered to those who were granted them.
const OPERATOR_EFFECTS: [(ClassSet, u8); 7] = [
    (ClassSet::NAMESPACE_MANAGEMENT, 0x0d),
    (ClassSet::NAMESPACE_MANAGEMENT, 0x15),
    (ClassSet::FIRMWARE, 0x10),
    (ClassSet::FIRMWARE, 0x11),
    (ClassSet::FORMAT, 0x80),
    (ClassSet::SECURITY, 0x81),
    (ClassSet::SECURITY, 0x82),
];
/// OACS: Doorbell Buffer Config, which the virtual controller has.
const OACS_VIRTUAL: u16 = 1 << 8;
/// Classes by their bit of OACS.
const OACS: [(ClassSet, u16); 4] = [
    (ClassSet::SECURITY, 0),
    (ClassSet::FORMAT, 1),
    (ClassSet::FIRMWARE, 2),
    (ClassSet::NAMESPACE_MANAGEMENT, 3),
];

/// SMART / Health Information is 512 bytes.
const HEALTH_BYTES: usize = 512;
/// The namespace identifier of a log page of the whole controller.
const BROADCAST: u32 = u32::MAX;

/// A real controller's health, as one client is told of it. Clones are the same.
#[derive(Debug, Clone, Default)]
pub(crate) struct Health(Arc<Known>);

#[derive(Debug, Default)]
struct Known {
    page: Mutex<Option<Box<[u8; HEALTH_BYTES]>>>,
    /// The client has asked since it was brought up to date.
    asked: AtomicBool,
    /// The client's own controller, which tells it of new warnings.
    front: OnceLock<Weak<Emulator>>,
}

impl Health {
    /// Asks the controller for its SMART / Health Information log page, once, and has all these clients told of it. Where it has none, what their virtual controllers say of themselves stays.
    ///
    /// # Errors
    /// The controller did not answer in time, for which it was reset.
    pub(crate) fn refresh<'a>(
        controller: &Controller,
        clients: impl Iterator<Item = &'a Health> + Clone,
    ) -> Result<(), Error> {
        // Who asks from now on is not content with this answer.
        for health in clients.clone() {
            health.0.asked.store(false, Ordering::Relaxed);
        }
        match controller.log_page(LogPageId::SMART_HEALTH, BROADCAST, HEALTH_BYTES) {
            Ok(page) => {
                if let Ok(page) = <[u8; HEALTH_BYTES]>::try_from(page) {
                    clients.for_each(|health| health.learn(&page));
                }
                Ok(())
            }
            Err(error @ Error::TimedOut { .. }) => Err(error),
            Err(_) => Ok(()),
        }
    }

    fn learn(&self, page: &[u8; HEALTH_BYTES]) {
        let before = self.lock().replace(Box::new(*page));
        let came = page[0] & !before.map_or(0, |before| before[0]);
        if came != 0
            && let Some(front) = self.0.front.get().and_then(Weak::upgrade)
        {
            front.tell_critical_warnings(came);
        }
    }

    /// Has the client told of warnings that come from now on, by its own controller's events.
    pub(crate) fn told_by(&self, front: &Arc<Emulator>) {
        // There is one such controller for as long as there is this.
        let _ = self.0.front.set(Arc::downgrade(front));
    }

    /// Whether the client has asked since it was brought up to date: the next answer should be a new one.
    pub(crate) fn is_wanted(&self) -> bool {
        self.0.asked.load(Ordering::Relaxed)
    }

    fn lock(&self) -> MutexGuard<'_, Option<Box<[u8; HEALTH_BYTES]>>> {
        self.0.page.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is true of the device, whoever asks, in the place of what the virtual controller says of itself: warnings, temperature, wear, times. What was read and written,
    /// and errors, are each client's own.
    pub(crate) fn put(&self, page: &mut [u8]) {
        self.0.asked.store(true, Ordering::Relaxed);
        let health = self.lock();
        let Some(real) = health.as_deref() else {
            return;
        };
        // Critical warning to endurance group summary; power cycles to unsafe shutdowns; temperatures and their times.
        for range in [0..7, 112..160, 192..232] {
            copy(page, range.start, real.get(range).unwrap_or_default());
        }
    }
}

/// One of a client's namespaces, as it is told of it.
#[derive(Debug, Clone)]
struct Namespace {
    nsid: u32,
    blocks: u64,
    offered: ClassSet,
    names: NamespaceNames,
    /// Deallocate Logical Block Features that all real namespaces behind it have.
    dlfeat: u8,
    /// MSSRL, MCL and MSRC of the real namespaces.
    copy: [u8; 7],
}

/// What a client has read and written, as its commands ask for it.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Moved {
    reads: u64,
    writes: u64,
    read_bytes: u64,
    written_bytes: u64,
}

impl Moved {
    #[inline]
    pub(super) fn count(&mut self, class: Class, length: u64) {
        match class {
            Class::Read | Class::Compare => {
                self.reads += 1;
                self.read_bytes += length;
            }
            Class::Write => {
                self.writes += 1;
                self.written_bytes += length;
            }
            _ => {}
        }
    }

    /// Data units, of 1000 blocks of 512 bytes, and commands of SMART / Health Information.
    fn put(&self, page: &mut [u8]) {
        let units = |bytes: u64| bytes.div_ceil(512 * 1000).to_le_bytes();
        copy(page, 32, &units(self.read_bytes));
        copy(page, 48, &units(self.written_bytes));
        copy(page, 64, &self.reads.to_le_bytes());
        copy(page, 80, &self.writes.to_le_bytes());
    }
}

/// What a client's controller says of itself.
#[derive(Debug, Clone)]
pub struct Personality {
    names: ControllerNames,
    model: String,
    namespaces: Vec<Namespace>,
    offered: ClassSet,
    /// There is a volatile write cache in a real controller.
    cache: bool,
    /// AWUN and AWUPF.
    atomic: [u16; 2],
    health: Health,
}

/// The atomic write units of a client: as its controller's where its blocks are one range; else one block, since a write across ranges becomes several.
fn atomic(client: &ResolvedClient, controllers: &[Controller]) -> [u16; 2] {
    let mut least = [u16::MAX; 2];
    for namespace in &client.namespaces {
        let (Some(controller), [extent]) =
            (controllers.get(namespace.controller), &*namespace.extents)
        else {
            return [0; 2];
        };
        // Boundaries that atomic writes must not cross are counted from the real namespace's first block.
        let identify = controller.identify_namespace(extent.nsid);
        let bounded = identify.is_ok_and(|identify| {
            identify.nabsn.get() != 0 || identify.nabspf.get() != 0 || identify.nsfeat & 0b10 != 0
        });
        if bounded {
            return [0; 2];
        }
        let real = controller.identify();
        least[0] = least[0].min(real.awun.get());
        least[1] = least[1].min(real.awupf.get());
    }
    least
}

impl Personality {
    /// What `client` is told. `controllers` are all that the server has, in the order of its policy.
    ///
    /// # Errors
    /// As the driver's Identify commands.
    pub fn of(
        client: &ResolvedClient,
        controllers: &[Controller],
    ) -> Result<Self, nvme_vfio::Error> {
        let mut namespaces = Vec::with_capacity(client.namespaces.len());
        let (mut offered, mut cache) = (ClassSet::empty(), false);
        for own in &client.namespaces {
            offered |= own.offered;
            let Some(controller) = controllers.get(own.controller) else {
                continue;
            };
            cache |= controller.identify().has_volatile_write_cache();
            let mut dlfeat = None;
            let mut copy = [0; 7];
            for extent in &own.extents {
                let real = controller.identify_namespace(extent.nsid)?;
                let seen = dlfeat.unwrap_or(real.dlfeat);
                // What reads of deallocated blocks return, where it is the same everywhere; whether Write Zeroes deallocates.
                let value = if seen & 0b111 == real.dlfeat & 0b111 {
                    seen & 0b111
                } else {
                    0
                };
                dlfeat = Some(value | seen & real.dlfeat & 0b1000);
                copy[..2].copy_from_slice(&real.mssrl.get().to_le_bytes());
                copy[2..6].copy_from_slice(&real.mcl.get().to_le_bytes());
                copy[6] = real.msrc.min(super::submit::COPY_RANGES_OF_PAGE as u8 - 1);
            }
            namespaces.push(Namespace {
                nsid: own.nsid,
                blocks: own.blocks,
                offered: own.offered,
                names: own.names,
                dlfeat: dlfeat.unwrap_or(0),
                copy,
            });
        }
        let health = Health::default();
        let first = client.namespaces.first().map(|own| own.controller);
        if let Some(controller) = first.and_then(|index| controllers.get(index)) {
            // It did not answer: it is asked again.
            let _ = Health::refresh(controller, std::iter::once(&health));
        }
        Ok(Self {
            names: client.names.clone(),
            model: "nvme-vfio lent controller".to_owned(),
            namespaces,
            offered,
            cache: cache && offered.contains(ClassSet::FLUSH),
            atomic: atomic(client, controllers),
            health,
        })
    }

    /// The health that it tells of, for whoever brings it up to date.
    pub(crate) fn health(&self) -> &Health {
        &self.health
    }

    fn namespace(&self, nsid: u32) -> Option<&Namespace> {
        self.namespaces.iter().find(|own| own.nsid == nsid)
    }

    /// Corrects an Identify data structure of the front end.
    pub(super) fn identify(&self, cns: u8, nsid: u32, page: &mut [u8]) {
        match cns {
            // Identify Namespace, of an active or an allocated one.
            0x00 | 0x11 => match self.namespace(nsid) {
                Some(own) => own.identify(page),
                None => limits(page, [0; 7]),
            },
            0x01 => self.controller(page),
            0x03 => {
                if let Some(own) = self.namespace(nsid) {
                    own.descriptors(page);
                }
            }
            // I/O Command Set specific Identify Controller: what a real controller cannot take in one command is cut.
            0x06 => page.fill(0),
            _ => {}
        }
    }

    /// Identify Controller (base specification 2.0, 5.17.2.1).
    fn controller(&self, page: &mut [u8]) {
        text(page, 4, 20, &self.names.serial);
        text(page, 24, 40, &self.model);
        let bits = |classes: &[(ClassSet, u16)]| {
            classes
                .iter()
                .filter(|(class, _)| self.offered.contains(*class))
                .fold(0u16, |bits, (_, bit)| bits | 1 << bit)
        };
        copy(page, 256, &(OACS_VIRTUAL | bits(&OACS)).to_le_bytes());
        if !self.offered.contains(ClassSet::FIRMWARE) {
            // FRMW: one slot, read-only.
            copy(page, 260, &[0b11]);
        }
        if !self.offered.contains(ClassSet::NAMESPACE_MANAGEMENT) {
            // TNVMCAP, UNVMCAP.
            copy(page, 280, &[0; 32]);
        }
        copy(page, 328, &[0; 4]); // SANICAP
        copy(page, 520, &(ONCS_VIRTUAL | bits(&ONCS)).to_le_bytes());
        copy(page, 522, &[0; 2]); // FUSES
        copy(page, 524, &[0]); // FNA
        // VWC: a Flush of all namespaces is not supported.
        copy(page, 525, &[0b100 | u8::from(self.cache)]);
        copy(page, 526, &self.atomic[0].to_le_bytes());
        copy(page, 528, &self.atomic[1].to_le_bytes());
        copy(page, 532, &[0; 2]); // ACWU
        let formats = u16::from(self.offered.contains(ClassSet::COPY));
        copy(page, 534, &formats.to_le_bytes()); // OCFS: descriptor format 0
        text_zeroed(page, 768, 256, &self.names.subnqn);
    }

    /// Corrects a log page of the front end.
    pub(super) fn log(&self, lid: u8, moved: &Moved, page: &mut [u8]) {
        match lid {
            0x02 => {
                self.health.put(page);
                moved.put(page);
            }
            0x05 => {
                for entry in page.chunks_exact_mut(4).skip(256).take(256) {
                    entry.fill(0);
                }
                for (class, opcode, changes) in EFFECTS {
                    if self.offered.contains(class) {
                        let at = 1024 + usize::from(opcode) * 4;
                        copy(page, at, &[1 | u8::from(changes) << 1]);
                    }
                }
                for (class, opcode) in OPERATOR_EFFECTS {
                    if !self.offered.contains(class) {
                        copy(page, usize::from(opcode) * 4, &[0; 4]);
                    }
                }
            }
            _ => {}
        }
    }
}

impl Namespace {
    /// Identify Namespace (NVM command set 1.0, 4.1.5.1).
    fn identify(&self, page: &mut [u8]) {
        let blocks = self.blocks.to_le_bytes();
        copy(page, 0, &blocks); // NSZE
        copy(page, 8, &blocks); // NCAP
        copy(page, 16, &blocks); // NUSE: which blocks hold data is not known here
        copy(page, 24, &[0]); // NSFEAT
        copy(page, 33, &[self.dlfeat]);
        let offered = self.offered.contains(ClassSet::COPY);
        limits(page, if offered { self.copy } else { [0; 7] });
        copy(page, 104, &self.names.nguid);
        copy(page, 120, &[0; 8]); // EUI64
    }

    /// The list of Namespace Identification Descriptors (base specification 2.0, 5.17.2.3).
    fn descriptors(&self, page: &mut [u8]) {
        page.fill(0);
        copy(page, 0, &[2, 16]); // NGUID
        copy(page, 4, &self.names.nguid);
        copy(page, 20, &[3, 16]); // UUID
        copy(page, 24, &self.names.uuid);
        copy(page, 40, &[4, 1]); // command set identifier: NVM
    }
}

/// MSSRL, MCL and MSRC.
fn limits(page: &mut [u8], copy_limits: [u8; 7]) {
    copy(page, 74, &copy_limits);
}

fn copy(page: &mut [u8], at: usize, bytes: &[u8]) {
    if let Some(place) = page.get_mut(at..at + bytes.len()) {
        place.copy_from_slice(bytes);
    }
}

/// ASCII text, padded with spaces.
fn text(page: &mut [u8], at: usize, length: usize, text: &str) {
    if let Some(place) = page.get_mut(at..at + length) {
        place.fill(b' ');
        for (place, byte) in place.iter_mut().zip(text.bytes()) {
            *place = byte;
        }
    }
}

/// Text that ends with a zero byte.
fn text_zeroed(page: &mut [u8], at: usize, length: usize, text: &str) {
    if let Some(place) = page.get_mut(at..at + length) {
        place.fill(0);
        for (place, byte) in place.iter_mut().zip(text.bytes().take(length - 1)) {
            *place = byte;
        }
    }
}
