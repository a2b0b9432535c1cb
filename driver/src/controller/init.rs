//! Initialisation (NVMe base 2.0, section 3.5.1).

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use nvme_vfio_dma::{Pool, PoolOptions, Quarantine};
use nvme_vfio_queues::identify::IDENTIFY_BYTES;
use nvme_vfio_queues::prp::PageSize;
use nvme_vfio_queues::registers::offset::{CAP, CC, CRTO, CSTS};
use nvme_vfio_queues::registers::{Cap, Crto, Csts};
use nvme_vfio_queues::{Command, DataPointer, IdentifyController};
use zerocopy::{FromBytes, FromZeros};

use super::admin::{AdminData, AdminQueue};
use super::claim::Claim;
use super::queues::QueueIds;
use super::shared::Shared;
use super::{Admin, Controller, Inner};
use crate::error::{Error, RegisterDump};
use crate::options::Options;
use crate::transport::Transport;

/// The page size in use: 4 KiB, which nearly every controller can have.
const PAGE: PageSize = PageSize::KIB_4;

/// The least that a controller gets to become ready or to stop, whatever CAP.TO says.
const READY_AT_LEAST: Duration = Duration::from_secs(2);

/// The most that is believed of CRTO, which can say nine hours.
const READY_AT_MOST: Duration = Duration::from_secs(300);

/// What is added to CAP.TO, for controllers that take it literally.
const READY_MARGIN: Duration = Duration::from_secs(1);

/// Tells controllers apart within the process, so that a namespace of one is not used on another.
static NUMBER: AtomicU32 = AtomicU32::new(1);

pub(super) fn open(transport: Arc<dyn Transport>, options: Options) -> Result<Controller, Error> {
    let claim = Claim::new(&transport)?;
    // The controller may still run from an earlier owner and touch memory at addresses that are about to be mapped.
    transport.set_bus_master(false)?;
    let cap = capabilities(transport.as_ref())?;
    let space = transport.address_space().clone();
    let pool = Pool::new(
        &space,
        PoolOptions {
            hugepages: options.hugepages,
            limit: options.memory,
            ..PoolOptions::default()
        },
    );
    let ready_timeout = options
        .ready_timeout
        .unwrap_or_else(|| ready_timeout(cap, transport.as_ref()));
    let queue = AdminQueue::new(&space, transport.as_ref(), cap)?;
    let mut inner = Inner {
        _claim: claim,
        number: NUMBER.fetch_add(1, Ordering::Relaxed),
        shared: Arc::new(Shared::default()),
        name: transport.name(),
        page: PAGE,
        cap,
        space,
        pool,
        mdts: None,
        ready_timeout,
        identify: Box::new(IdentifyController::new_zeroed()),
        admin: Mutex::new(Admin {
            queue,
            ids: QueueIds::default(),
        }),
        quarantine: Mutex::new(Quarantine::new()),
        transport,
        options,
    };
    inner.stop()?;
    let identify = {
        let mut admin = inner.lock_admin();
        inner.start(&mut admin.queue)?;
        let mut data = vec![0; IDENTIFY_BYTES];
        let command = Command::identify_controller(DataPointer::NONE);
        let timeout = inner.options.admin_timeout;
        inner.execute(
            &mut admin.queue,
            "Identify Controller",
            command,
            AdminData::FromController(&mut data),
            timeout,
        )?;
        let identify = IdentifyController::read_from_bytes(&data).map_err(|_| {
            Error::Length("Identify Controller data has another length than 4096 bytes".to_owned())
        })?;
        if !identify.supports_standard_entry_sizes() {
            return Err(Error::Capabilities {
                reason: format!(
                    "its queue entries (SQES {:#04x}, CQES {:#04x}) cannot be 64 and 16 bytes long",
                    identify.sqes, identify.cqes
                ),
            });
        }
        inner.ask_for_queues(&mut admin)?;
        identify
    };
    inner.mdts = identify.max_data_transfer(cap.mpsmin());
    inner.identify = Box::new(identify);
    tracing::info!(controller = %inner.name, model = %inner.identify.model_number(), "opened");
    Ok(Controller(Arc::new(inner)))
}

/// CAP, checked for what the driver relies on.
fn capabilities(transport: &dyn Transport) -> Result<Cap, Error> {
    let cap = transport.read64(CAP);
    let csts = transport.read32(CSTS);
    if Cap::from_bits(cap).is_gone() || Csts::from_bits(csts).is_gone() {
        return Err(Error::Gone);
    }
    let refuse = |reason: String| Error::Capabilities { reason };
    if cap == 0 {
        // What QEMU and some bridges answer where memory decoding is off.
        let registers = RegisterDump {
            cap,
            cc: transport.read32(CC),
            csts,
            aqa: 0,
            asq: 0,
            acq: 0,
        };
        return Err(refuse(format!(
            "its registers read as zero, as if memory decoding were off ({registers})"
        )));
    }
    let cap = Cap::from_bits(cap);
    if cap.mpsmin() > PAGE {
        return Err(refuse(format!(
            "its smallest memory page is {} bytes, and 4096 are needed",
            cap.mpsmin().bytes()
        )));
    }
    if cap.mqes() < 2 {
        return Err(refuse("its queues have fewer than two entries".to_owned()));
    }
    if !cap.supports_nvm_command_set() && !cap.supports_command_set_identifiers() {
        return Err(refuse(format!(
            "it supports no I/O command set that is known here (CAP {:#018x})",
            cap.into_bits()
        )));
    }
    Ok(cap)
}

/// How long the controller may take to become ready or to stop: what it says itself, with a margin.
fn ready_timeout(cap: Cap, transport: &dyn Transport) -> Duration {
    let mut longest = cap.timeout();
    if cap.crms() != 0 {
        longest = longest.max(
            Crto::from_bits(transport.read32(CRTO))
                .crwmt()
                .min(READY_AT_MOST),
        );
    }
    (longest + READY_MARGIN).max(READY_AT_LEAST)
}
