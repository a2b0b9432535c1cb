//! The features whose value is data: Timestamp and Host Behavior Support.

use nvme_vfio_queues::Status;

use super::TIMESTAMP;
use crate::admin::send;
use crate::command::Entry;
use crate::controller::Core;
use crate::execute::Reply;
use crate::io::receive;
use crate::iommu::DeviceMemory;

/// Bytes of Host Behavior Support.
const BEHAVIOR_BYTES: usize = 512;
/// A timestamp has 48 bits.
const TIMESTAMP_MASK: u64 = (1 << 48) - 1;

/// Milliseconds by the controller's clock, which is that of its steps where its owner steps it.
fn now(core: &Core) -> u64 {
    core.clock.now(core.statistics.steps) / 1_000_000
}

#[derive(Clone, Debug, Default)]
pub(super) struct Data {
    /// Milliseconds that were set, and when by the clock; `None` before, when the timestamp counts from the reset.
    timestamp: Option<(u64, u64)>,
    /// When the controller was reset, by the clock.
    started: u64,
    /// ACRE, ETDAS, LBAFEE, HDISNS and CDFE, the first six bytes.
    behavior: [u8; 6],
}

impl Data {
    pub(super) fn copy_formats(&self) -> u16 {
        u16::from_le_bytes([self.behavior[4], self.behavior[5]])
    }
}

/// The controller was reset: the timestamp counts from here.
pub(crate) fn restart(core: &mut Core) {
    core.features.data.started = now(core);
}

/// 8 bytes: 48 bits of milliseconds, whether the count ever stopped (never), and in bits 3:1 of byte 6 where it began.
fn timestamp(core: &Core, current: bool) -> [u8; 8] {
    let data = &core.features.data;
    let since = |then: u64| now(core).saturating_sub(then);
    let (milliseconds, origin) = match data.timestamp {
        _ if !current => (0, 0),
        Some((set, then)) => (set.wrapping_add(since(then)), 1),
        None => (since(data.started), 0),
    };
    (milliseconds & TIMESTAMP_MASK | origin << 49).to_le_bytes()
}

/// Sends the value in force, or else the default, which is also what is saved.
pub(super) fn get(
    core: &mut Core,
    entry: &Entry,
    feature: u8,
    current: bool,
    memory: &DeviceMemory<'_>,
) -> Result<Reply, Status> {
    if feature == TIMESTAMP {
        let bytes = timestamp(core, current);
        send(core, entry, &bytes, memory)?;
    } else {
        let mut bytes = [0; BEHAVIOR_BYTES];
        if current && let Some(place) = bytes.get_mut(..6) {
            place.copy_from_slice(&core.features.data.behavior);
        }
        send(core, entry, &bytes, memory)?;
    }
    Ok(Reply::Now(0))
}

pub(super) fn set(
    core: &mut Core,
    entry: &Entry,
    feature: u8,
    memory: &DeviceMemory<'_>,
) -> Result<Reply, Status> {
    if feature == TIMESTAMP {
        let bytes = receive(core, 0, entry, 8, memory)?;
        let value = bytes
            .iter()
            .rev()
            .fold(0u64, |value, &byte| value << 8 | u64::from(byte));
        core.features.data.timestamp = Some((value & TIMESTAMP_MASK, now(core)));
        return Ok(Reply::Now(0));
    }
    let bytes = receive(core, 0, entry, BEHAVIOR_BYTES, memory)?;
    let mut behavior = [0; 6];
    behavior.copy_from_slice(bytes.get(..6).unwrap_or(&[0; 6]));
    // The first four are 0 or 1, and only the copy descriptor formats 2 and 3 need a word.
    let [switches @ .., low, high] = behavior;
    if switches.iter().any(|&switch| switch > 1) || low & !0b1100 != 0 || high != 0 {
        return Err(Status::INVALID_FIELD.with_dnr());
    }
    core.features.data.behavior = behavior;
    Ok(Reply::Now(0))
}
