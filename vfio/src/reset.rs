//! Reset of a function, and what a reset of its bus or slot would reach.

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use crate::chain::{u16_at, u32_at};
use crate::{Device, DeviceError, PciAddress, ioctl};

/// How long a reset is tried again while the kernel is busy with the function.
const RESET_PATIENCE: Duration = Duration::from_secs(1);

/// A function that a reset of the bus or slot would reach too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DependentFunction {
    /// Where it is.
    pub address: PciAddress,
    /// Its IOMMU group, which has to be owned for such a reset.
    pub group: u32,
}

impl Device {
    /// Resets the function alone. Its configuration space is saved and restored by the kernel, except that
    /// memory-mapped registers start anew; interrupts and DMA mappings stay set up.
    ///
    /// # Errors
    ///
    /// [`DeviceError::NoReset`] when it has no way to be reset alone, and the kernel's own.
    pub fn reset(&self) -> Result<(), DeviceError> {
        let address = self.address();
        if !self.info().resettable {
            return Err(DeviceError::NoReset { address });
        }
        let deadline = Instant::now() + RESET_PATIENCE;
        loop {
            // Looked at before the attempt, so that a thread that was not scheduled for long still has its last one.
            let over = Instant::now() >= deadline;
            let error = match ioctl::reset(self.as_fd()) {
                Ok(()) => return Ok(()),
                Err(error) => error,
            };
            match error.raw_os_error() {
                Some(libc::ENOTTY | libc::EINVAL) => return Err(DeviceError::NoReset { address }),
                // The kernel does not wait for a function that somebody else has locked.
                Some(libc::EAGAIN) if !over => std::thread::sleep(Duration::from_millis(1)),
                _ => return Err(self.os("the reset")(error)),
            }
        }
    }

    /// The functions that a reset of the bus or slot would reach, this one included; `None` when there is no such reset (a function on
    /// the root bus).
    ///
    /// # Errors
    ///
    /// The kernel's own.
    pub fn hot_reset_info(&self) -> Result<Option<Vec<DependentFunction>>, DeviceError> {
        match ioctl::hot_reset_info(self.as_fd()) {
            Ok(bytes) => Ok(Some(parse_dependents(&bytes))),
            Err(error) if error.raw_os_error() == Some(libc::ENODEV) => Ok(None),
            Err(error) => Err(self.os("asking for what a hot reset reaches")(error)),
        }
    }
}

/// `argsz`, `flags`, `count`, then `count` times group, segment, bus, devfn.
fn parse_dependents(bytes: &[u8]) -> Vec<DependentFunction> {
    let told = u32_at(bytes, 8).unwrap_or(0) as usize;
    let entry = |n: usize| {
        let at = n.checked_mul(8)?.checked_add(12)?;
        let (bus, devfn) = (bytes.get(at + 6)?, bytes.get(at + 7)?);
        let segment = u16_at(bytes, at + 4)?;
        Some(DependentFunction {
            address: PciAddress::from_devfn(segment.into(), *bus, *devfn),
            group: u32_at(bytes, at)?,
        })
    };
    (0..told).map_while(entry).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn reads_dependents_up_to_what_is_there() {
        let mut bytes = Vec::new();
        for field in [28u32, 0, u32::MAX, 14] {
            bytes.extend(field.to_ne_bytes());
        }
        bytes.extend(0u16.to_ne_bytes());
        bytes.extend([5, 1]);
        bytes.extend([0; 7]);
        let found = parse_dependents(&bytes);
        assert_eq!(found.len(), 1);
        assert_eq!(
            (found[0].address.to_string().as_str(), found[0].group),
            ("0000:05:00.1", 14)
        );
    }

    proptest! {
        #![proptest_config(nvme_vfio_seeded::seeded(256))]

        #[test]
        fn hostile_bytes_are_answered(bytes in proptest::collection::vec(any::<u8>(), 0..128)) {
            prop_assert!(parse_dependents(&bytes).len() <= bytes.len() / 8);
        }
    }
}
