//! Get Features and Set Features.

use nvme_vfio_queues::Status;

use super::events::Event;
use crate::command::Entry;
use crate::config::Config;
use crate::controller::Core;
use crate::execute::Reply;
use crate::namespaces::Namespaces;

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

/// Composite temperature in kelvin: it never changes.
pub(super) const TEMPERATURE: u16 = 310;
/// WCTEMP of Identify Controller in kelvin, the default of the over-temperature threshold.
pub(super) const WARNING_TEMPERATURE: u16 = 343;

/// The values of the features. A controller reset brings the defaults back.
#[derive(Debug)]
pub(crate) struct Features {
    arbitration: u32,
    power_state: u32,
    over_temperature: u16,
    under_temperature: u16,
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
            vectors: vec![false; usize::from(config.queues) + 1],
            write_atomicity: 0,
            events: 0,
            pairs: config.queues,
            queues: most << 16 | most,
        }
    }

    /// How many I/O queue pairs may be created.
    pub(super) fn queue_pairs(&self) -> u16 {
        self.pairs
    }

    /// Critical Warning bit 1: the temperature is at or over, or at or under, a threshold.
    pub(super) fn temperature_warning(&self) -> bool {
        TEMPERATURE >= self.over_temperature || TEMPERATURE <= self.under_temperature
    }

    /// The value of a feature; dword 11 and NSID choose among several.
    fn value(
        &self,
        config: &Config,
        namespaces: &Namespaces,
        feature: u8,
        dword11: u32,
        nsid: u32,
    ) -> Result<u32, Status> {
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
                if namespaces.active(nsid).is_none() {
                    return Err(Status::INVALID_NAMESPACE_OR_FORMAT.with_dnr());
                }
                let place = (nsid as usize).wrapping_sub(1);
                self.error_recovery.get(place).copied().ok_or(invalid)?
            }
            VOLATILE_WRITE_CACHE if config.vwc => u32::from(self.write_cache),
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
}

pub(super) fn get(core: &mut Core, entry: &Entry) -> Result<Reply, Status> {
    let (feature, select) = (entry.dword(10) as u8, entry.dword(10) >> 8 & 0b111);
    let (dword11, nsid) = (entry.dword(11), entry.nsid());
    let value_of = |features: &Features| {
        features.value(&core.config, &core.namespaces, feature, dword11, nsid)
    };
    let current = value_of(&core.features)?;
    let value = match select {
        0 => current,
        // Nothing is saveable, and then the saved value is the default.
        1 | 2 => value_of(&Features::new(&core.config))?,
        // Supported capabilities: changeable (bit 2); error recovery belongs to a namespace (bit 1).
        3 => 1 << 2 | u32::from(feature == ERROR_RECOVERY) << 1,
        _ => return Err(Status::INVALID_FIELD.with_dnr()),
    };
    Ok(Reply::Now(value))
}

pub(super) fn set(core: &mut Core, entry: &Entry) -> Result<Reply, Status> {
    let invalid = Status::INVALID_FIELD.with_dnr();
    let (feature, save) = (entry.dword(10) as u8, entry.dword(10) >> 31 != 0);
    let value = entry.dword(11);
    // Whether the feature exists comes first, then whether it can be saved.
    let broadcast = feature == ERROR_RECOVERY && entry.nsid() == 0xffff_ffff;
    if !broadcast && feature != TEMPERATURE_THRESHOLD {
        core.features
            .value(&core.config, &core.namespaces, feature, value, entry.nsid())?;
    }
    if save {
        return Err(Status::FEATURE_IDENTIFIER_NOT_SAVEABLE.with_dnr());
    }
    let features = &mut core.features;
    match feature {
        ARBITRATION => features.arbitration = value & 0xffff_ff07,
        POWER_MANAGEMENT => {
            // There is one power state.
            if value & 0x1f != 0 {
                return Err(invalid);
            }
            features.power_state = value & 0xff;
        }
        TEMPERATURE_THRESHOLD => {
            let threshold = value as u16;
            match (value >> 16 & 0xf, value >> 20 & 0b11) {
                (0 | 0xf, 0) => features.over_temperature = threshold,
                (0 | 0xf, 1) => features.under_temperature = threshold,
                _ => return Err(invalid),
            }
            // Bit 1 of the event configuration asks for the event.
            if features.temperature_warning() && features.events & 1 << 1 != 0 {
                core.events.raise(Event::TEMPERATURE);
            }
        }
        ERROR_RECOVERY => {
            // Bit 16 asks for an error on deallocated blocks, which DLFEAT rules out.
            if value & 1 << 16 != 0 {
                return Err(invalid);
            }
            let place = (entry.nsid() as usize).checked_sub(1);
            for (index, recovery) in features.error_recovery.iter_mut().enumerate() {
                if broadcast || place == Some(index) {
                    *recovery = value & 0xffff;
                }
            }
        }
        VOLATILE_WRITE_CACHE => features.write_cache = value & 1 != 0,
        NUMBER_OF_QUEUES => return number_of_queues(core, value),
        INTERRUPT_COALESCING => features.coalescing = value & 0xffff,
        INTERRUPT_VECTOR => {
            if let Some(vector) = features.vectors.get_mut((value & 0xffff) as usize) {
                *vector = value & 1 << 16 != 0;
            }
        }
        WRITE_ATOMICITY => features.write_atomicity = value & 1,
        // Critical warnings only; notices are not offered by OAES.
        EVENT_CONFIGURATION => features.events = value & 0xff,
        _ => return Err(invalid),
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
