//! What the decoder has to know of the namespace that an entry names.

use nvme_vfio::{Controller, Error};
use nvme_vfio_queues::IdentifyNamespace;
use nvme_vfio_queues::command::{Cns, Identify};
use zerocopy::FromBytes;

use crate::command::{CommandSet, Geometry};
use crate::policy::command_set;

/// Identifiers from here on name no single namespace.
const FIRST_SPECIAL: u32 = u32::MAX - 1;

/// A namespace as it is formatted now.
#[derive(Debug, Clone, Copy)]
pub(super) struct Looked {
    pub(super) geometry: Geometry,
    /// Bytes of metadata of each block.
    pub(super) metadata: u16,
}

/// Looks at namespace `nsid`; `None` where the controller has none of that name. One that is not attached, or whose format is not one of those
/// that it lists, has no blocks.
pub(super) fn look(controller: &Controller, nsid: u32) -> Result<Option<Looked>, Error> {
    if nsid == 0 || nsid >= FIRST_SPECIAL {
        return Ok(None);
    }
    for cns in [Cns::NAMESPACE, Cns::ALLOCATED_NAMESPACE] {
        let data = match controller.identify_raw(Identify::new(cns, nsid)) {
            Ok(data) => data,
            // For one that cannot be, and for a structure that the controller does not have.
            Err(Error::Status { .. }) => continue,
            Err(error) => return Err(error),
        };
        let Ok(identify) = IdentifyNamespace::read_from_bytes(&data) else {
            continue;
        };
        if identify.nsze.get() == 0 {
            continue;
        }
        let attached = cns == Cns::NAMESPACE;
        let block = identify.block_size().filter(|_| attached);
        let set = if attached {
            command_set(controller, nsid)
        } else {
            CommandSet::NVM
        };
        let limit = |value: u32| if value == 0 { u32::MAX } else { value };
        return Ok(Some(Looked {
            geometry: Geometry {
                command_set: set,
                blocks: block.map_or(0, |_| identify.nsze.get()),
                block_shift: block.map_or(0, |block| block.trailing_zeros() as u8),
                max_transfer: controller
                    .max_transfer()
                    .and_then(|limit| u32::try_from(limit).ok())
                    .unwrap_or(u32::MAX),
                max_blocks: 65_536,
                copy_ranges: u16::from(identify.msrc) + 1,
                copy_range_blocks: limit(u32::from(identify.mssrl.get())),
                copy_blocks: limit(identify.mcl.get()),
            },
            metadata: identify.metadata_size().unwrap_or(0),
        }));
    }
    Ok(None)
}
