//! Get Features and Set Features.
//!
//! Every feature has a default, a saved and a current value. A reset brings the saved one back, which is the default until
//! something was saved; it lasts as long as the controller, or its host where that is lent to one after the other.

mod data;

pub(crate) use data::restart;

use nvme_vfio_queues::Status;

use super::events::Event;
use crate::command::Entry;
use crate::config::{Config, Offers};
use crate::controller::{Core, vectors};
use crate::execute::Reply;
use crate::iommu::DeviceMemory;
use crate::namespaces::{BROADCAST, Named};

const ARBITRATION: u8 = 0x01;
const POWER_MANAGEMENT: u8 = 0x02;
const TEMPERATURE_THRESHOLD: u8 = 0x04;
const ERROR_RECOVERY: u8 = 0x05;
const VOLATILE_WRITE_CACHE: u8 = 0x06;
const NUMBER_OF_QUEUES: u8 = 0x07;
const INTERRUPT_COALESCING: u8 = 0x08;
const INTERRUPT_VECTOR: u8 = 0x09;
const WRITE_ATOMICITY: u8 = 0x0a;
const EVENT_CONFIGURATION: u8 = 0x0b;
/// Bits of Critical Warning, and those of the event configuration that ask for them.
const CRITICAL_WARNINGS: u8 = 0x1f;
const TIMESTAMP: u8 = 0x0e;
const HOST_BEHAVIOR: u8 = 0x16;

/// Namespace Attribute Notices in the event configuration.
const NAMESPACE_NOTICES: u32 = 1 << 8;

/// DULBE of Error Recovery: reading deallocated or unwritten blocks is an error.
const HOLES_ARE_ERRORS: u32 = 1 << 16;

/// Composite temperature in kelvin: it never changes.
pub(super) const TEMPERATURE: u16 = 310;
/// WCTEMP of Identify Controller in kelvin, the default of the over-temperature threshold.
pub(super) const WARNING_TEMPERATURE: u16 = 343;

/// The values of the features.
#[derive(Clone, Debug)]
pub(crate) struct Features {
    arbitration: u32,
    power_state: u32,
    over_temperature: u16,
    under_temperature: u16,
    /// By namespace identifier less one.
    error_recovery: Vec<u32>,
    write_cache: bool,
    coalescing: u32,
    /// Coalescing disable, by interrupt vector.
    vectors: Vec<bool>,
    write_atomicity: u32,
    events: u32,
    /// Pairs that may be created.
    pairs: u16,
    /// Dword 0 that Set Features for the number of queues answered.
    queues: u32,
    /// Whether errors on deallocated blocks are offered.
    dulbe: bool,
    data: data::Data,
}

impl Features {
    pub(crate) fn new(config: &Config) -> Features {
        let most = u32::from(config.queues.saturating_sub(1));
        Features {
            arbitration: 0,
            power_state: 0,
            over_temperature: WARNING_TEMPERATURE,
            under_temperature: 0,
            error_recovery: vec![0; config.nn() as usize],
            write_cache: config.vwc,
            coalescing: 0,
            vectors: vec![false; usize::from(vectors(config))],
            write_atomicity: 0,
            events: 0,
            pairs: config.queues,
            queues: most << 16 | most,
            dulbe: config.dulbe,
            data: data::Data::default(),
        }
    }

    /// CDFE of Host Behavior Support: the copy descriptor formats beyond 0 and 1 that the host knows.
    pub(crate) fn copy_formats(&self) -> u16 {
        self.data.copy_formats()
    }

    /// Whether what is written has to be durable at once: there is no volatile write cache, or the host turned it off.
    pub(crate) fn writes_through(&self) -> bool {
        !self.write_cache
    }

    /// How many I/O queue pairs may be created.
    pub(super) fn queue_pairs(&self) -> u16 {
        self.pairs
    }

    /// Critical Warning bit 1: the temperature is at or over, or at or under, a threshold.
    pub(super) fn temperature_warning(&self) -> bool {
        TEMPERATURE >= self.over_temperature || TEMPERATURE <= self.under_temperature
    }

    /// Those of these bits of Critical Warning that the host wants to be told of.
    pub(super) fn wanted_warnings(&self, warnings: u8) -> u8 {
        self.events as u8 & warnings & CRITICAL_WARNINGS
    }

    /// Whether the host wants to be told of changed namespaces.
    pub(super) fn namespace_notices(&self) -> bool {
        self.events & NAMESPACE_NOTICES != 0
    }

    /// Whether the host wants reads of a namespace's deallocated blocks to fail.
    pub(crate) fn holes_are_errors(&self, nsid: u32) -> bool {
        let place = (nsid as usize).wrapping_sub(1);
        let recovery = self.error_recovery.get(place);
        recovery.is_some_and(|recovery| recovery & HOLES_ARE_ERRORS != 0)
    }

    /// A namespace with this identifier was created: it begins with the defaults.
    pub(super) fn forget_namespace(&mut self, nsid: u32) {
        let place = (nsid as usize).wrapping_sub(1);
        if let Some(recovery) = self.error_recovery.get_mut(place) {
            *recovery = 0;
        }
    }

    /// The value of a feature; dword 11 and NSID choose among several.
    fn value(&self, feature: u8, dword11: u32, nsid: u32) -> Result<u32, Status> {
        let invalid = Status::INVALID_FIELD.with_dnr();
        Ok(match feature {
            ARBITRATION => self.arbitration,
            POWER_MANAGEMENT => self.power_state,
            TEMPERATURE_THRESHOLD => match (dword11 >> 16 & 0xf, dword11 >> 20 & 0b11) {
                // Only the composite temperature is measured.
                (0, 0) => u32::from(self.over_temperature),
                (0, 1) => u32::from(self.under_temperature),
                _ => return Err(invalid),
            },
            ERROR_RECOVERY => {
                let place = (nsid as usize).wrapping_sub(1);
                self.error_recovery.get(place).copied().ok_or(invalid)?
            }
            VOLATILE_WRITE_CACHE => u32::from(self.write_cache),
            NUMBER_OF_QUEUES => self.queues,
            INTERRUPT_COALESCING => self.coalescing,
            INTERRUPT_VECTOR => {
                let vector = dword11 & 0xffff;
                let disabled = self.vectors.get(vector as usize).ok_or(invalid)?;
                vector | u32::from(*disabled) << 16
            }
            WRITE_ATOMICITY => self.write_atomicity,
            EVENT_CONFIGURATION => self.events,
            _ => return Err(invalid),
        })
    }

    /// Sets a feature whose value is dword 11, which was checked to be there.
    fn change(&mut self, feature: u8, value: u32, nsid: u32) -> Result<(), Status> {
        let invalid = Status::INVALID_FIELD.with_dnr();
        match feature {
            ARBITRATION => self.arbitration = value & 0xffff_ff07,
            POWER_MANAGEMENT => {
                // There is one power state.
                if value & 0x1f != 0 {
                    return Err(invalid);
                }
                self.power_state = value & 0xff;
            }
            TEMPERATURE_THRESHOLD => {
                let threshold = value as u16;
                match (value >> 16 & 0xf, value >> 20 & 0b11) {
                    (0 | 0xf, 0) => self.over_temperature = threshold,
                    (0 | 0xf, 1) => self.under_temperature = threshold,
                    _ => return Err(invalid),
                }
            }
            ERROR_RECOVERY => {
                if value & HOLES_ARE_ERRORS != 0 && !self.dulbe {
                    return Err(invalid);
                }
                let place = (nsid as usize).checked_sub(1);
                for (index, recovery) in self.error_recovery.iter_mut().enumerate() {
                    if nsid == BROADCAST || place == Some(index) {
                        *recovery = value & (0xffff | HOLES_ARE_ERRORS);
                    }
                }
            }
            VOLATILE_WRITE_CACHE => self.write_cache = value & 1 != 0,
            INTERRUPT_COALESCING => self.coalescing = value & 0xffff,
            INTERRUPT_VECTOR => {
                let vector = self.vectors.get_mut((value & 0xffff) as usize);
                *vector.ok_or(invalid)? = value & 1 << 16 != 0;
            }
            WRITE_ATOMICITY => self.write_atomicity = value & 1,
            // Critical warnings, and the notices that OAES offers.
            EVENT_CONFIGURATION => self.events = value & (0xff | NAMESPACE_NOTICES),
            _ => return Err(invalid),
        }
        Ok(())
    }
}

/// Whether there is such a feature.
pub(super) fn known(core: &Core, feature: u8) -> bool {
    match feature {
        VOLATILE_WRITE_CACHE => core.config.vwc,
        TIMESTAMP => core.config.offers.contains(Offers::TIMESTAMP),
        ARBITRATION | POWER_MANAGEMENT | TEMPERATURE_THRESHOLD | ERROR_RECOVERY => true,
        NUMBER_OF_QUEUES..=EVENT_CONFIGURATION | HOST_BEHAVIOR => true,
        _ => false,
    }
}

fn saveable(core: &Core, feature: u8) -> bool {
    let offered = core.config.offers.contains(Offers::SAVED_FEATURES);
    offered && !matches!(feature, NUMBER_OF_QUEUES | TIMESTAMP | HOST_BEHAVIOR)
}

/// Whether each namespace has its own.
pub(super) fn of_namespace(feature: u8) -> bool {
    feature == ERROR_RECOVERY
}

/// The namespace of a feature that each namespace has its own of.
fn own_namespace(core: &Core, nsid: u32) -> Result<(), Status> {
    match core.namespaces.named(nsid) {
        Named::Active(_) => Ok(()),
        _ => Err(crate::io::inactive(core, nsid)),
    }
}

pub(super) fn get(
    core: &mut Core,
    entry: &Entry,
    memory: &DeviceMemory<'_>,
) -> Result<Reply, Status> {
    let (feature, select) = (entry.dword(10) as u8, entry.dword(10) >> 8 & 0b111);
    let (dword11, nsid) = (entry.dword(11), entry.nsid());
    let selects = core.config.offers.contains(Offers::SAVED_FEATURES);
    if !known(core, feature) || select > 3 || select != 0 && !selects {
        return Err(Status::INVALID_FIELD.with_dnr());
    }
    if of_namespace(feature) {
        own_namespace(core, nsid)?;
    }
    if select == 3 {
        // Supported capabilities: changeable, belongs to a namespace, saveable.
        let own = u32::from(of_namespace(feature)) << 1;
        return Ok(Reply::Now(
            1 << 2 | own | u32::from(saveable(core, feature)),
        ));
    }
    if matches!(feature, TIMESTAMP | HOST_BEHAVIOR) {
        return data::get(core, entry, feature, select == 0, memory);
    }
    let value = match select {
        0 => core.features.value(feature, dword11, nsid)?,
        1 => Features::new(&core.config).value(feature, dword11, nsid)?,
        _ => core.saved.value(feature, dword11, nsid)?,
    };
    Ok(Reply::Now(value))
}

pub(super) fn set(
    core: &mut Core,
    entry: &Entry,
    memory: &DeviceMemory<'_>,
) -> Result<Reply, Status> {
    let (feature, save) = (entry.dword(10) as u8, entry.dword(10) >> 31 != 0);
    let (value, nsid) = (entry.dword(11), entry.nsid());
    // Whether the feature exists comes first, then whether it can be saved, then whose it is.
    if !known(core, feature) {
        return Err(Status::INVALID_FIELD.with_dnr());
    }
    if save && !saveable(core, feature) {
        return Err(Status::FEATURE_IDENTIFIER_NOT_SAVEABLE.with_dnr());
    }
    if of_namespace(feature) {
        if nsid != BROADCAST {
            own_namespace(core, nsid)?;
        }
    } else if nsid != 0 && nsid != BROADCAST {
        return Err(match core.namespaces.named(nsid) {
            Named::Invalid => Status::INVALID_NAMESPACE_OR_FORMAT.with_dnr(),
            _ => Status::FEATURE_NOT_NAMESPACE_SPECIFIC.with_dnr(),
        });
    }
    match feature {
        NUMBER_OF_QUEUES => return number_of_queues(core, value),
        TIMESTAMP | HOST_BEHAVIOR => return data::set(core, entry, feature, memory),
        _ => core.features.change(feature, value, nsid)?,
    }
    if save {
        core.saved.change(feature, value, nsid)?;
    }
    // Bit 1 of the event configuration asks for the event.
    let features = &core.features;
    if feature == TEMPERATURE_THRESHOLD
        && features.temperature_warning()
        && features.events & 1 << 1 != 0
    {
        core.events.raise(Event::TEMPERATURE);
    }
    Ok(Reply::Now(0))
}

fn number_of_queues(core: &mut Core, value: u32) -> Result<Reply, Status> {
    let (submission, completion) = (value & 0xffff, value >> 16);
    if submission == 0xffff || completion == 0xffff {
        return Err(Status::INVALID_FIELD.with_dnr());
    }
    // Once there are I/O queues the number stands until the next reset.
    if core.submission.iter().skip(1).any(Option::is_some)
        || core.completion.iter().skip(1).any(Option::is_some)
    {
        return Err(Status::COMMAND_SEQUENCE_ERROR.with_dnr());
    }
    if let Some(pairs) = core.faults.queue_grant() {
        let last = u32::from(pairs.checked_sub(1).ok_or(Status::INTERNAL_ERROR)?);
        core.features.queues = last << 16 | last;
        return Ok(Reply::Now(core.features.queues));
    }
    // All pairs are granted when more are asked for, and as many as asked for otherwise.
    let most = u32::from(core.config.queues.saturating_sub(1));
    let (submission, completion) = (submission.min(most), completion.min(most));
    core.features.pairs = (submission.max(completion) + 1) as u16;
    core.features.queues = completion << 16 | submission;
    Ok(Reply::Now(core.features.queues))
}
