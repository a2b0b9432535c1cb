//! A client's driver on a virtual controller, whose slice is of a controller that moves no data and works only when it is told to.
#![allow(unsafe_code)] // passes on what the driver does to registers, and lends a client's memory on as a server does

use std::error::Error;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use nvme_vfio::transport::EmulatedTransport;
use nvme_vfio::{AddressSpace, Controller, IoQueue, Namespace, Options, QueueOptions, Transport};
use nvme_vfio_dma::{
    DomainId, DomainLimits, IommuDomain, Iova, MapError, MapRegion, Memory, SharedMemory,
    UnmapError,
};
use nvme_vfio_emulator::{Config, Emulator, NamespaceConfig, SoftwareIommu};
use nvme_vfio_passthrough::audit::ClientAudit;
use nvme_vfio_passthrough::policy::{Budget, ControllerFacts, GroupPolicy, PolicyFile};
use nvme_vfio_passthrough::{
    Ceilings, Client, ClientId, Clock, Decoder, Gate, Holder, Identity, Isolated,
    LentNamespaceConfig, Slice, VirtualConfig, VirtualController,
};
use nvme_vfio_queues::ring::Doorbell;

/// A policy as it may be in earnest.
const POLICY: &str = r#"
controller = ["emulated"]
directory = "/run/nvme-vfio"
audit = { path = "audit.jsonl" }

[[client]]
name = "vm-a"
uid = [1000]

[[client.namespace]]
nsid = 1
source = [{ nsid = 1, start = 1000, blocks = 100000 }, { nsid = 1, start = 150000, blocks = 100000 }]
allow = ["read", "write", "flush", "compare", "write-zeroes", "deallocate", "verify", "copy"]
"#;

/// A mapping of the client's, and the same memory in the real controller's domain.
#[derive(Debug)]
struct Lent {
    iova: Iova,
    _memory: SharedMemory,
}

/// The client's memory, lent on to the real controller.
#[derive(Debug)]
struct Lending {
    own: Arc<SoftwareIommu>,
    real: AddressSpace,
    lent: Mutex<Vec<Lent>>,
}

impl IommuDomain for Lending {
    fn id(&self) -> DomainId {
        self.own.id()
    }

    fn limits(&self) -> DomainLimits {
        self.own.limits()
    }

    unsafe fn map(&self, region: &MapRegion<'_>, iova: Iova) -> Result<(), MapError> {
        // SAFETY: the caller keeps the memory until `unmap` has returned, which takes it from both domains.
        let memory = unsafe { Memory::from_raw_parts(region.pointer, region.length, 4096) };
        let Ok(memory) = self.real.map(memory, region.access) else {
            return Err(MapError::TooManyMappings);
        };
        // SAFETY: as above.
        unsafe { self.own.map_lent(region, iova, Some(memory.iova())) }?;
        if let Ok(mut lent) = self.lent.lock() {
            lent.push(Lent {
                iova,
                _memory: memory,
            });
        }
        Ok(())
    }

    fn unmap(&self, iova: Iova, length: usize) -> Result<(), UnmapError> {
        self.own.unmap(iova, length)?;
        if let Ok(mut lent) = self.lent.lock() {
            lent.retain(|one| one.iova != iova);
        }
        Ok(())
    }
}

/// The virtual controller as the client's driver reaches it: while it waits, both controllers are stepped.
#[derive(Debug)]
struct Both {
    inner: EmulatedTransport,
    space: AddressSpace,
    real: Arc<Emulator>,
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

    fn set_bus_master(&self, on: bool) -> Result<(), nvme_vfio::Error> {
        self.inner.set_bus_master(on)
    }

    fn config_read(&self, offset: u64, data: &mut [u8]) -> Result<(), nvme_vfio::Error> {
        self.inner.config_read(offset, data)
    }

    fn reset(&self) -> Result<(), nvme_vfio::Error> {
        self.inner.reset()
    }

    fn relax(&self) {
        self.inner.relax();
        self.real.step();
    }

    fn name(&self) -> String {
        "virtual".to_owned()
    }
}

/// A client, the virtual controller between, and the real one.
#[derive(Debug)]
pub struct BrokerRig {
    /// The virtual controller: what a server does for the client.
    pub front: Arc<Emulator>,
    /// The real controller's own half.
    pub device: Arc<Emulator>,
    /// The client's driver.
    pub client: Controller,
    /// The client's namespace.
    pub namespace: Namespace,
    /// The client's queue.
    pub queue: IoQueue,
}

impl BrokerRig {
    /// With a client's queue of `depth` commands.
    ///
    /// # Errors
    /// Where one of the controllers cannot be made.
    pub fn new(depth: u32) -> Result<Self, Box<dyn Error>> {
        let device = Emulator::new("size=1G,lba=4096,backend=null,stepped=on,mdts=8".parse()?)?;
        let transport = EmulatedTransport::stepped(Arc::clone(&device));
        let server = Controller::with_transport(Arc::new(transport), Options::default())?;
        let policy = PolicyFile::parse(POLICY, Path::new("/"))?;
        let facts = ControllerFacts::read(&server)?;
        let resolved = policy.resolve(&[facts], &Budget::default())?;
        let client = Client {
            id: ClientId(0),
            name: "vm-a".into(),
            identity: Identity::default(),
        };
        let audit = ClientAudit::detached("vm-a");
        let gate = Gate::new(
            Arc::new(GroupPolicy::new(&resolved)),
            client,
            Decoder::new(),
            audit,
        );
        let mut namespaces = Vec::new();
        let mut shown = Vec::new();
        for own in resolved
            .clients
            .iter()
            .flat_map(|client| &client.namespaces)
        {
            let slices = own.extents.iter().map(|extent| Slice {
                target: 0,
                nsid: extent.nsid,
                start: extent.first,
                blocks: extent.blocks,
            });
            namespaces.push(LentNamespaceConfig {
                nsid: own.nsid,
                slices: slices.collect(),
            });
            shown.push(NamespaceConfig {
                nsid: own.nsid,
                size: own.blocks << own.block_shift,
                lba: 1 << own.block_shift,
            });
        }
        let config = VirtualConfig {
            controllers: vec![server.clone()],
            namespaces,
            ceilings: Ceilings {
                outstanding: 256,
                operations: None,
                bandwidth: None,
            },
            isolated: Isolated::Shared,
            timeout: Duration::from_secs(30),
            mender: None,
            max_transfer: 1 << 20,
            holder: Holder::default(),
            clock: Clock::new(),
        };
        let handler = VirtualController::new(config, gate)?;
        let own = Arc::new(SoftwareIommu::new(DomainLimits {
            iova_ranges: vec![0..=0xfedf_ffff],
            page_sizes: 0x1000,
            mappings: Some(1000),
        }));
        let config = Config {
            namespaces: shown,
            mdts: 8,
            ..Config::default()
        };
        let front = Emulator::with_handler(config, Box::new(handler), Arc::clone(&own))?;
        let space = AddressSpace::new(Arc::new(Lending {
            own,
            real: server.address_space().clone(),
            lent: Mutex::default(),
        }));
        let transport = Both {
            inner: EmulatedTransport::stepped(Arc::clone(&front)),
            space,
            real: Arc::clone(&device),
        };
        let client = Controller::with_transport(Arc::new(transport), Options::default())?;
        let namespace = client.only_namespace()?;
        let queue = client.io_queue(QueueOptions::with_depth(depth))?;
        Ok(Self {
            front,
            device,
            client,
            namespace,
            queue,
        })
    }
}
