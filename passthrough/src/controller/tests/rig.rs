//! A client's driver on a virtual controller, whose slices are of an emulated controller that the server's driver runs. All in this thread, step by step.
#![allow(unsafe_code)] // passes on what the driver does to registers, and lends a client's memory on as a server does

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use nvme_vfio::transport::EmulatedTransport;
use nvme_vfio::{AddressSpace, Controller, Error, Options, QueueOptions, Transport};
use nvme_vfio_dma::{
    DomainId, DomainLimits, IommuDomain, Iova, MapError, MapRegion, Memory, SharedMemory,
    UnmapError,
};
use nvme_vfio_emulator::{Config, Emulator, SoftwareIommu};
use nvme_vfio_queues::ring::Doorbell;

use super::super::*;
use super::faults::PATIENCE;
use crate::audit::ClientAudit;
use crate::client::{Client, ClientId, Identity};
use crate::command::{ClassSet, DecodedCommand};
use crate::policy::{Budget, ControllerFacts, PolicyFile};
use crate::server::Mender;
use crate::verdict::Verdict;

/// Grants these classes, and nothing else.
#[derive(Debug)]
pub(super) struct Grants(pub(super) ClassSet);

impl Policy for Grants {
    fn authorize(&self, command: &DecodedCommand<'_>, _client: &Client) -> Verdict {
        if command.class == Class::Virtual || self.0.has(command.class) {
            Verdict::Allow
        } else {
            Verdict::Deny(Reason::ClassNotGranted.refusal())
        }
    }
}

/// The client's memory, mapped for its virtual controller, and lent on to the real one first.
#[derive(Debug)]
struct Lending {
    own: Arc<SoftwareIommu>,
    real: AddressSpace,
    lent: Mutex<BTreeMap<u64, SharedMemory>>,
}

impl IommuDomain for Lending {
    fn id(&self) -> DomainId {
        self.own.id()
    }

    fn limits(&self) -> DomainLimits {
        self.own.limits()
    }

    unsafe fn map(&self, region: &MapRegion<'_>, iova: Iova) -> Result<(), MapError> {
        // SAFETY: the caller keeps the memory until `unmap`, which takes it from the real controller's domain after that of the virtual one.
        let memory = unsafe { Memory::from_raw_parts(region.pointer, region.length, 4096) };
        let lent = self.real.map(memory, region.access).expect("lent");
        // SAFETY: as above.
        unsafe { self.own.map_lent(region, iova, Some(lent.iova())) }?;
        self.lent.lock().unwrap().insert(iova.0, lent);
        Ok(())
    }

    fn unmap(&self, iova: Iova, length: usize) -> Result<(), UnmapError> {
        self.own.unmap(iova, length)?;
        self.lent.lock().unwrap().remove(&iova.0);
        Ok(())
    }
}

/// A virtual controller for the client's driver, which steps both controllers while it waits.
#[derive(Debug)]
struct Both {
    inner: EmulatedTransport,
    space: AddressSpace,
    real: Vec<Arc<Emulator>>,
    clock: Clock,
}

impl Transport for Both {
    fn address_space(&self) -> &AddressSpace {
        &self.space
    }
    fn read32(&self, offset: usize) -> u32 {
        self.inner.read32(offset)
    }
    fn read64(&self, offset: usize) -> u64 {
        self.inner.read64(offset)
    }
    unsafe fn write32(&self, offset: usize, value: u32) {
        // SAFETY: passed on.
        unsafe { self.inner.write32(offset, value) }
    }
    unsafe fn write64(&self, offset: usize, value: u64) {
        // SAFETY: passed on.
        unsafe { self.inner.write64(offset, value) }
    }
    unsafe fn doorbell(&self, offset: usize) -> Option<Doorbell> {
        // SAFETY: passed on.
        unsafe { self.inner.doorbell(offset) }
    }
    fn set_bus_master(&self, on: bool) -> Result<(), Error> {
        self.inner.set_bus_master(on)
    }
    fn config_read(&self, offset: u64, data: &mut [u8]) -> Result<(), Error> {
        self.inner.config_read(offset, data)
    }
    fn reset(&self) -> Result<(), Error> {
        self.inner.reset()
    }
    fn relax(&self) {
        self.clock.set(Instant::now());
        self.inner.relax();
        for real in &self.real {
            real.step();
        }
    }
    fn name(&self) -> String {
        "virtual".to_owned()
    }
}

/// What the server of a rig has.
pub(super) struct Rig {
    /// The real controller.
    pub(super) device: Arc<Emulator>,
    /// The server's driver of it.
    pub(super) server: Controller,
    /// The client's controller.
    pub(super) front: Arc<Emulator>,
    /// The client's driver of it.
    pub(super) client: Controller,
    pub(super) clock: Clock,
    others: Vec<Arc<Emulator>>,
}

/// Controllers of one domain, and the servers' drivers of them.
pub(super) fn group(config: &str, count: usize) -> Vec<(Arc<Emulator>, Controller)> {
    let first = Emulator::new(config.parse().unwrap()).unwrap();
    let domain = first.iommu();
    let space = AddressSpace::new(Arc::clone(&domain) as Arc<dyn IommuDomain>);
    let mut devices = vec![first];
    for _ in 1..count {
        devices.push(Emulator::in_domain(config.parse().unwrap(), Arc::clone(&domain)).unwrap());
    }
    let open = |device: Arc<Emulator>| {
        let transport = Both {
            inner: EmulatedTransport::stepped(Arc::clone(&device)),
            space: space.clone(),
            real: Vec::new(),
            clock: Clock::new(),
        };
        let options = Options::default();
        let server = Controller::with_transport(Arc::new(transport), options).unwrap();
        (device, server)
    };
    devices.into_iter().map(open).collect()
}

/// How a rig is made.
pub(super) struct Plan {
    /// The real controller.
    pub(super) device: String,
    pub(super) slices: Vec<Vec<Slice>>,
    pub(super) classes: ClassSet,
    pub(super) isolated: Isolated,
    pub(super) ceilings: Ceilings,
    pub(super) mdts: u8,
    pub(super) timeout: Duration,
    pub(super) mender: Option<Mender>,
    pub(super) operator: bool,
    /// Controllers after the first, of the same domain.
    pub(super) others: Vec<(Arc<Emulator>, Controller)>,
    /// FNA, where it is to be another than the real controller's.
    pub(super) format_attributes: Option<u8>,
    /// The client is told what this policy gives it; else the front end says what it likes.
    pub(super) policy: Option<&'static str>,
    /// Where its commands are recorded; without it they are counted.
    pub(super) audit: Option<ClientAudit>,
}

impl Default for Plan {
    fn default() -> Self {
        Self {
            device: "size=8M,lba=512,lba_formats=512:4096,stepped,mdts=5".to_owned(),
            slices: vec![vec![slice(1, 100, 1000), slice(1, 5000, 500)]],
            classes: ClassSet::all() - ClassSet::OPERATOR,
            isolated: Isolated::Shared,
            ceilings: Ceilings {
                outstanding: 64,
                operations: None,
                bandwidth: None,
            },
            mdts: 5,
            timeout: Duration::from_secs(30),
            mender: None,
            operator: false,
            others: Vec::new(),
            format_attributes: None,
            policy: None,
            audit: None,
        }
    }
}

pub(super) fn slice(nsid: u32, start: u64, blocks: u64) -> Slice {
    Slice {
        target: 0,
        nsid,
        start,
        blocks,
    }
}

/// One number for each test's names.
fn client() -> Client {
    static NAME: OnceLock<Arc<str>> = OnceLock::new();
    Client {
        id: ClientId(0),
        name: Arc::clone(NAME.get_or_init(|| "tester".into())),
        identity: Identity::default(),
    }
}

impl Rig {
    pub(super) fn new(plan: Plan) -> Rig {
        let config: Config = plan.device.parse().unwrap();
        let device = Emulator::new(config).unwrap();
        let server = Controller::with_transport(
            Arc::new(EmulatedTransport::stepped(Arc::clone(&device))),
            Options::default(),
        )
        .unwrap();
        Rig::on(plan, device, server)
    }

    pub(super) fn on(plan: Plan, device: Arc<Emulator>, server: Controller) -> Rig {
        let clock = Clock::new();
        let namespaces: Vec<LentNamespaceConfig> = (1..)
            .zip(&plan.slices)
            .map(|(nsid, slices)| LentNamespaceConfig {
                nsid,
                slices: slices.clone(),
            })
            .collect();
        let gate = Gate::<dyn Policy>::new(
            Arc::new(Grants(plan.classes)),
            client(),
            Decoder::new().with_format_attributes(
                plan.format_attributes
                    .unwrap_or_else(|| server.identify().fna),
            ),
            plan.audit
                .unwrap_or_else(|| ClientAudit::detached("tester")),
        );
        let size = server
            .namespace(plan.slices[0][0].nsid)
            .unwrap()
            .block_size();
        let others: Vec<Arc<Emulator>> = plan
            .others
            .iter()
            .map(|(other, _)| Arc::clone(other))
            .collect();
        let mut controllers = vec![server.clone()];
        controllers.extend(plan.others.iter().map(|(_, other)| other.clone()));
        let handler = VirtualController::new(
            VirtualConfig {
                controllers,
                namespaces,
                ceilings: plan.ceilings,
                isolated: plan.isolated,
                timeout: plan.timeout,
                mender: plan.mender.clone(),
                max_transfer: 4096 << plan.mdts,
                holder: Holder::default(),
                clock: clock.clone(),
            },
            gate,
        )
        .unwrap();
        let handler = if plan.operator {
            handler.with_operator().unwrap()
        } else {
            handler
        };
        let mut health = None;
        let handler = match plan.policy {
            Some(policy) => {
                let policy = PolicyFile::parse(policy, Path::new("/")).unwrap();
                let facts = ControllerFacts::read(&server).unwrap();
                let resolved = policy.resolve(&[facts], &Budget::default()).unwrap();
                let personality =
                    Personality::of(&resolved.clients[0], std::slice::from_ref(&server)).unwrap();
                if let Some(mender) = &plan.mender {
                    mender.keep_fresh(0, personality.health());
                }
                health = Some(personality.health().clone());
                handler.with_personality(personality)
            }
            None => handler,
        };
        let mut front = Config {
            namespaces: Vec::new(),
            mdts: plan.mdts,
            vwc: true,
            ..Config::default()
        };
        front.namespaces = (1..)
            .zip(&plan.slices)
            .map(|(nsid, slices)| nvme_vfio_emulator::NamespaceConfig {
                nsid,
                size: slices.iter().map(|slice| slice.blocks).sum::<u64>() * u64::from(size),
                lba: size,
            })
            .collect();
        let own = Arc::new(SoftwareIommu::new(DomainLimits {
            iova_ranges: vec![0..=0xfedf_ffff],
            page_sizes: 0x1000,
            mappings: Some(1000),
        }));
        let front = Emulator::with_handler(front, Box::new(handler), Arc::clone(&own)).unwrap();
        if let Some(health) = health {
            health.told_by(&front);
        }
        let space = AddressSpace::new(Arc::new(Lending {
            own,
            real: server.address_space().clone(),
            lent: Mutex::default(),
        }));
        let client = Controller::with_transport(
            Arc::new(Both {
                inner: EmulatedTransport::stepped(Arc::clone(&front)),
                space,
                real: [Arc::clone(&device)]
                    .into_iter()
                    .chain(others.clone())
                    .collect(),
                clock: clock.clone(),
            }),
            Options {
                hugepages: false,
                ready_timeout: Some(PATIENCE),
                shutdown_timeout: PATIENCE,
                admin_timeout: PATIENCE,
                ..Options::default()
            },
        )
        .unwrap();
        Rig {
            device,
            server,
            front,
            client,
            clock,
            others,
        }
    }

    /// The time goes on, and both controllers do what is pending.
    pub(super) fn step(&self) {
        self.clock.set(Instant::now());
        self.front.step();
        self.device.step();
        for other in &self.others {
            other.step();
        }
    }

    /// Bytes of the real controller's namespace, read by the server.
    pub(super) fn real(&self, nsid: u32, lba: u64, blocks: usize) -> Vec<u8> {
        let namespace = self.server.namespace(nsid).unwrap();
        let mut queue = self.server.io_queue(QueueOptions::with_depth(1)).unwrap();
        let bytes = blocks * namespace.block_size() as usize;
        let buffer = self.server.allocate(bytes).unwrap();
        queue
            .read_blocking(&namespace, lba, buffer)
            .unwrap()
            .to_vec()
    }

    /// Writes bytes to the real controller's namespace, by the server.
    pub(super) fn set_real(&self, nsid: u32, lba: u64, bytes: &[u8]) {
        let namespace = self.server.namespace(nsid).unwrap();
        let mut queue = self.server.io_queue(QueueOptions::with_depth(1)).unwrap();
        let mut buffer = self.server.allocate(bytes.len()).unwrap();
        buffer.copy_from_slice(bytes);
        queue.write_blocking(&namespace, lba, buffer).unwrap();
    }
}
