//! A controller that another process serves.
#![allow(unsafe_code)] // passes on register writes, hands out doorbells, which are pointers into what the server lets be mapped

mod domain;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use nvme_vfio_dma::AddressSpace;
use nvme_vfio_pci::CLASS_NVME;
use nvme_vfio_queues::registers::offset::DOORBELLS;
use nvme_vfio_queues::ring::{Doorbell, DoorbellMessage};
use nvme_vfio_user::message::DeviceFlags;
use nvme_vfio_user::{Client, ClientError, ClientOptions, MappedRegion};

use super::Transport;
use crate::Error;
use domain::ServedDomain;

/// BAR 0: the controller's registers.
const REGISTERS: u32 = 0;
/// Configuration space.
const CONFIG: u32 = 7;

/// How long a server whose connection has ended gets to be seen to have exited.
const PATIENCE: Duration = Duration::from_millis(500);

/// In how many rounds of a wait the server's own requests are looked at once.
const ATTEND: u32 = 64;

/// What a register reads as where there is none: as if the controller were gone.
const ABSENT: u32 = u32::MAX;

/// An NVMe controller behind a vfio-user server. Doorbells are mapped where the server offers it, and sent by message where not; all other registers
/// go by message.
///
/// A server that is gone, that does not answer in time or that answers nonsense reads as all ones, as a function that was pulled out. Memory
/// comes back only when the server said that it let go of it, or its process has ended; from one that hangs it does not.
#[derive(Debug)]
pub struct VfioUserTransport {
    doorbells: Option<MappedRegion>,
    /// Bytes of BAR 0.
    registers: u64,
    can_reset: bool,
    space: AddressSpace,
    name: String,
    /// Rounds of waits.
    rounds: AtomicU32,
    client: Arc<Client>,
}

/// Carries doorbells that are not mapped.
struct Carrier(Arc<Client>);

impl DoorbellMessage for Carrier {
    fn ring(&self, offset: usize, value: u32) {
        // Posted: what the server refuses shows as a command that does not end, and a connection that ends as a controller that is gone.
        // The rings were written before the system call that sends this, and are read after the one that receives it.
        let posted = self
            .0
            .region_write_posted(REGISTERS, offset as u64, &value.to_le_bytes());
        if let Err(error) = posted {
            tracing::debug!(offset, %error, "a doorbell could not be sent");
        }
    }
}

impl VfioUserTransport {
    /// Connects to the server that listens at `path`.
    ///
    /// # Errors
    /// [`Error::VfioUser`] where none does, or it has another client already; [`Error::NotNvme`]; [`Error::Capabilities`] where the device has no
    /// registers or configuration space.
    pub fn open(path: &Path, options: &ClientOptions) -> Result<Self, Error> {
        let client = Client::connect(path, options)?;
        Self::over(client, format!("vfio-user:{}", path.display()))
    }

    /// Over a connection that was made otherwise, with a name for log lines.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn over(client: Client, name: String) -> Result<Self, Error> {
        let client = Arc::new(client);
        let refuse = |reason: &str| Error::Capabilities {
            reason: reason.to_owned(),
        };
        let device = client.device_info()?;
        if !device.flags.contains(DeviceFlags::PCI) || device.regions <= CONFIG {
            return Err(refuse("it is not served as a PCI function"));
        }
        let mut class = [0; 3];
        client.region_read(CONFIG, 9, &mut class)?;
        let class = u32::from(class[2]) << 16 | u32::from(class[1]) << 8 | u32::from(class[0]);
        if class != CLASS_NVME {
            return Err(Error::NotNvme {
                address: name,
                class,
            });
        }
        let registers = client.region_info(REGISTERS)?.size;
        if registers < DOORBELLS as u64 {
            return Err(refuse(
                "its BAR 0 is shorter than the controller's registers",
            ));
        }
        let doorbells = match client.map_region(REGISTERS) {
            Ok(mapped) if mapped.is_writable() => {
                if !mapped.is_sealed() {
                    tracing::debug!(controller = %name, "the file of the doorbells is not sealed: the server could shorten it");
                }
                Some(mapped)
            }
            Ok(_) => None,
            // Nothing to map, or nothing that could be mapped safely: then by message.
            Err(error @ (ClientError::Region { .. } | ClientError::Map { .. })) => {
                tracing::info!(controller = %name, %error, "doorbells go by message");
                None
            }
            Err(error) => return Err(error.into()),
        };
        Ok(Self {
            doorbells,
            registers,
            can_reset: device.flags.contains(DeviceFlags::RESET),
            space: AddressSpace::new(Arc::new(ServedDomain::new(Arc::clone(&client)))),
            name,
            rounds: AtomicU32::new(0),
            client,
        })
    }

    /// The connection, for what is not about NVMe, such as interrupts.
    #[must_use]
    pub fn client(&self) -> &Arc<Client> {
        &self.client
    }

    /// Whether doorbells are mapped, and not sent by message.
    #[must_use]
    pub const fn has_mapped_doorbells(&self) -> bool {
        self.doorbells.is_some()
    }
}

impl Transport for VfioUserTransport {
    fn address_space(&self) -> &AddressSpace {
        &self.space
    }

    fn read32(&self, offset: usize) -> u32 {
        let mut value = [0; 4];
        match self
            .client
            .region_read(REGISTERS, offset as u64, &mut value)
        {
            Ok(()) => u32::from_le_bytes(value),
            Err(error) => {
                tracing::debug!(controller = %self.name, offset, %error, "a register could not be read");
                ABSENT
            }
        }
    }

    fn read64(&self, offset: usize) -> u64 {
        // As two halves, as over PCIe: not every server takes an access of 64 bits.
        u64::from(self.read32(offset)) | u64::from(self.read32(offset + 4)) << 32
    }

    unsafe fn write32(&self, offset: usize, value: u32) {
        let written = self
            .client
            .region_write(REGISTERS, offset as u64, &value.to_le_bytes());
        if let Err(error) = written {
            tracing::error!(controller = %self.name, offset, %error, "a register could not be written");
        }
    }

    unsafe fn write64(&self, offset: usize, value: u64) {
        // SAFETY: the caller answers for both halves.
        unsafe {
            self.write32(offset, value as u32);
            self.write32(offset + 4, (value >> 32) as u32);
        }
    }

    unsafe fn doorbell(&self, offset: usize) -> Option<Doorbell> {
        let end = (offset as u64).checked_add(size_of::<u32>() as u64)?;
        if end > self.registers || !offset.is_multiple_of(size_of::<u32>()) {
            return None;
        }
        let mapped = self.doorbells.as_ref().and_then(|mapped| {
            let register = mapped.pointer_at(offset as u64, size_of::<u32>())?;
            let register = register.cast::<AtomicU32>();
            register.is_aligned().then_some((register, mapped))
        });
        Some(match mapped {
            // SAFETY: `pointer_at` gave a pointer to four mapped, writable bytes, aligned as just checked, and the clone keeps them mapped.
            Some((register, mapped)) => unsafe {
                Doorbell::mapped(register, Arc::new(mapped.clone()))
            },
            None => Doorbell::message(Arc::new(Carrier(Arc::clone(&self.client))), offset),
        })
    }

    fn set_bus_master(&self, on: bool) -> Result<(), Error> {
        const COMMAND: u64 = 4;
        const BUS_MASTER: u16 = 1 << 2;
        const INTERRUPT_DISABLE: u16 = 1 << 10;
        let mut command = [0; 2];
        self.client.region_read(CONFIG, COMMAND, &mut command)?;
        // The pin would be asserted and never heard: completions are polled. SPDK's target fails a controller whose interrupt goes nowhere.
        let command = u16::from_le_bytes(command) | INTERRUPT_DISABLE;
        let wanted = if on {
            command | BUS_MASTER
        } else {
            command & !BUS_MASTER
        };
        Ok(self
            .client
            .region_write(CONFIG, COMMAND, &wanted.to_le_bytes())?)
    }

    fn config_read(&self, offset: u64, data: &mut [u8]) -> Result<(), Error> {
        match self.client.region_read(CONFIG, offset, data) {
            // As configuration space reads where there is no function.
            Err(_) if self.client.is_lost() => {
                data.fill(0xff);
                Ok(())
            }
            result => Ok(result?),
        }
    }

    fn reset(&self) -> Result<(), Error> {
        if !self.can_reset {
            return Err(Error::Unsupported {
                address: self.name.clone(),
                what: "a reset of the function, which its server does not offer,",
            });
        }
        Ok(self.client.reset()?)
    }

    fn has_let_go(&self) -> bool {
        self.client.is_lost() && self.client.server_has_ended(PATIENCE)
    }

    fn relax(&self) {
        // A system call, for what the server should not ask at all: now and then is enough.
        if self
            .rounds
            .fetch_add(1, Ordering::Relaxed)
            .is_multiple_of(ATTEND)
        {
            self.client.attend();
        }
        std::thread::yield_now();
    }

    fn name(&self) -> String {
        self.name.clone()
    }
}
