//! The controller's accesses as a trace tells them.

use nvme_vfio_dma::Access;

use super::{DeviceMemory, DmaOrigin, DmaRefused, IommuFault, Segment};
use crate::trace::{DmaDirection, TraceEvent};

impl From<Access> for DmaDirection {
    fn from(access: Access) -> DmaDirection {
        if access.contains(Access::DEVICE_WRITE) {
            DmaDirection::ToHost
        } else {
            DmaDirection::FromHost
        }
    }
}

impl DeviceMemory<'_> {
    /// Finds the mapping at `iova`: a segment of at most `length` bytes, shorter where the mapping ends.
    pub(crate) fn translate(
        &self,
        iova: u64,
        length: usize,
        access: Access,
        origin: DmaOrigin,
    ) -> Result<Segment, DmaRefused> {
        let found = self.look_up(iova, length, access, origin)?;
        if let Some(trace) = self.trace {
            trace.record(|| TraceEvent::Dma {
                iova,
                length: u64::from(found.length),
                direction: access.into(),
                purpose: origin.into(),
            });
        }
        Ok(found)
    }

    /// Reads memory that is polled, which a trace of accesses would drown in. It lies in one mapping.
    pub(crate) fn peek(
        &self,
        iova: u64,
        into: &mut [u8],
        origin: DmaOrigin,
    ) -> Result<(), DmaRefused> {
        let segment = self.look_up(iova, into.len(), Access::DEVICE_READ, origin)?;
        self.read(&segment, 0, into)
    }

    /// Writes down an access that is refused.
    pub(super) fn refuse(&self, fault: IommuFault) {
        if let Some(trace) = self.trace {
            trace.record(|| TraceEvent::IommuFault {
                iova: fault.iova.0,
                length: fault.length as u64,
                direction: fault.access.into(),
                purpose: fault.origin.into(),
                reason: fault.reason,
            });
        }
        self.iommu.record(fault);
    }
}
