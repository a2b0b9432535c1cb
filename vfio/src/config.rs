//! Configuration space: the command register and the capabilities.

use crate::region::{read, write};
use crate::{Device, DeviceError};

/// Offset of the command register (PCI 3.0, 6.2.2).
const COMMAND: u64 = 0x04;
/// Bus Master Enable of the command register.
const COMMAND_BUS_MASTER: u16 = 1 << 2;
/// Offset of the status register.
const STATUS: usize = 0x06;
/// Capabilities List of the status register.
const STATUS_CAPABILITIES: u8 = 1 << 4;
/// Offset of the capabilities pointer.
const CAPABILITIES_POINTER: usize = 0x34;

/// Capability ID of Power Management.
pub const CAPABILITY_POWER_MANAGEMENT: u8 = 0x01;
/// Capability ID of MSI.
pub const CAPABILITY_MSI: u8 = 0x05;
/// Capability ID of PCI Express.
pub const CAPABILITY_PCI_EXPRESS: u8 = 0x10;
/// Capability ID of MSI-X.
pub const CAPABILITY_MSIX: u8 = 0x11;
/// Capability ID of Advanced Features.
pub const CAPABILITY_ADVANCED_FEATURES: u8 = 0x13;

/// A capability in configuration space.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PciCapability {
    /// Its identifier.
    pub id: u8,
    /// Its offset in configuration space, in bytes.
    pub offset: u8,
}

/// The ways in which a function can be reset alone, by its own account.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ResetMethods {
    /// Function-level reset of PCI Express (Device Capabilities, bit 28).
    pub function_level: bool,
    /// Function-level reset of the Advanced Features capability.
    pub advanced_features: bool,
    /// Going to D3hot and back loses the state (No_Soft_Reset is clear).
    pub power_management: bool,
}

impl Device {
    /// Reads configuration space from `offset` in bytes on.
    ///
    /// # Errors
    ///
    /// [`DeviceError::OutOfRegion`] past its end (256 or 4096 bytes), and the kernel's own.
    pub fn config_read(&self, offset: u64, bytes: &mut [u8]) -> Result<(), DeviceError> {
        read(&self.inner, &self.inner.config, offset, bytes)
    }

    /// Writes configuration space. The kernel shows a virtual view: BARs, interrupts and parts of the command register are not the
    /// device's own, and what could harm the host is not passed on.
    ///
    /// # Errors
    ///
    /// As [`Device::config_read`].
    pub fn config_write(&self, offset: u64, bytes: &[u8]) -> Result<(), DeviceError> {
        write(&self.inner, &self.inner.config, offset, bytes)
    }

    /// Sets or clears Bus Master Enable: whether the function may do DMA and send message-signalled interrupts.
    ///
    /// # Errors
    ///
    /// As [`Device::config_read`].
    pub fn set_bus_master(&self, on: bool) -> Result<(), DeviceError> {
        let mut command = [0; 2];
        self.config_read(COMMAND, &mut command)?;
        let command = u16::from_le_bytes(command);
        let wanted = if on {
            command | COMMAND_BUS_MASTER
        } else {
            command & !COMMAND_BUS_MASTER
        };
        self.config_write(COMMAND, &wanted.to_le_bytes())
    }

    /// Whether Bus Master Enable is set. A function that is gone reads as all ones, and so as `true`.
    ///
    /// # Errors
    ///
    /// As [`Device::config_read`].
    pub fn is_bus_master(&self) -> Result<bool, DeviceError> {
        let mut command = [0; 2];
        self.config_read(COMMAND, &mut command)?;
        Ok(u16::from_le_bytes(command) & COMMAND_BUS_MASTER != 0)
    }

    /// The capabilities in the first 256 bytes of configuration space, in their order.
    ///
    /// # Errors
    ///
    /// As [`Device::config_read`].
    pub fn capabilities(&self) -> Result<Vec<PciCapability>, DeviceError> {
        Ok(walk(&self.first_256()?))
    }

    /// The ways in which the function says that it can be reset alone. Whether [`Device::reset`] works is
    /// [`DeviceInfo::resettable`](crate::DeviceInfo::resettable), which also knows the kernel's quirks.
    ///
    /// # Errors
    ///
    /// As [`Device::config_read`].
    pub fn reset_methods(&self) -> Result<ResetMethods, DeviceError> {
        Ok(methods(&self.first_256()?))
    }

    fn first_256(&self) -> Result<[u8; 256], DeviceError> {
        let mut config = [0; 256];
        self.config_read(0, &mut config)?;
        Ok(config)
    }
}

/// Follows the list of capabilities; a list in a circle ends when each place in which one can be was visited.
fn walk(config: &[u8; 256]) -> Vec<PciCapability> {
    let mut found = Vec::new();
    // All ones is a function that is gone, not one with capabilities.
    if config[STATUS] & STATUS_CAPABILITIES == 0 || config[..4] == [0xff; 4] {
        return found;
    }
    let mut offset = config[CAPABILITIES_POINTER] & !3;
    // Capabilities lie behind the header of 64 bytes, on multiples of 4.
    while offset >= 0x40 && found.len() < (256 - 0x40) / 4 {
        // A multiple of 4 in a byte is at most 252, so both bytes are there.
        let Some(&[id, next]) = config[usize::from(offset)..].first_chunk() else {
            break;
        };
        found.push(PciCapability { id, offset });
        offset = next & !3;
    }
    found
}

fn methods(config: &[u8; 256]) -> ResetMethods {
    let mut methods = ResetMethods::default();
    let byte = |offset: u8, within: u8| {
        offset
            .checked_add(within)
            .map_or(0, |at| config[usize::from(at)])
    };
    for PciCapability { id, offset } in walk(config) {
        match id {
            // Device Capabilities is 4 bytes at offset 4; bit 28 is in its last.
            CAPABILITY_PCI_EXPRESS => methods.function_level |= byte(offset, 7) & 1 << 4 != 0,
            // AF Capabilities is at offset 3; bit 1 is FLR.
            CAPABILITY_ADVANCED_FEATURES => {
                methods.advanced_features |= byte(offset, 3) & 1 << 1 != 0
            }
            // PMCSR is at offset 4; bit 3 is No_Soft_Reset.
            CAPABILITY_POWER_MANAGEMENT => {
                methods.power_management |= byte(offset, 4) & 1 << 3 == 0
            }
            _ => {}
        }
    }
    methods
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn config(first: u8, caps: &[(u8, &[u8])]) -> [u8; 256] {
        let mut config = [0; 256];
        config[STATUS] = STATUS_CAPABILITIES;
        config[CAPABILITIES_POINTER] = first;
        for (offset, bytes) in caps {
            let at = usize::from(*offset);
            config[at..at + bytes.len()].copy_from_slice(bytes);
        }
        config
    }

    #[test]
    fn finds_the_ways_to_reset() {
        let all = config(
            0x40,
            &[
                (0x40, &[1, 0x80, 0, 0, 0]),
                (0x80, &[0x10, 0x60, 0, 0, 0, 0, 0, 0x10]),
                (0x60, &[0x13, 0, 6, 2]),
            ],
        );
        let ids: Vec<_> = walk(&all).iter().map(|cap| (cap.id, cap.offset)).collect();
        assert_eq!(ids, [(1, 0x40), (0x10, 0x80), (0x13, 0x60)]);
        assert_eq!(
            methods(&all),
            ResetMethods {
                function_level: true,
                advanced_features: true,
                power_management: true,
            }
        );
        let none = config(
            0x40,
            &[
                (0x40, &[1, 0x80, 0, 0, 8]),
                (0x80, &[0x10, 0, 0, 0, 0, 0, 0, 0xef]),
            ],
        );
        assert_eq!(methods(&none), ResetMethods::default());
    }

    #[test]
    fn no_list_without_its_bit_and_none_of_a_lost_device() {
        let mut without = config(0x40, &[(0x40, &[1, 0])]);
        without[STATUS] = 0;
        assert!(walk(&without).is_empty());
        assert!(walk(&[0xff; 256]).is_empty());
        assert_eq!(methods(&[0xff; 256]), ResetMethods::default());
    }

    #[test]
    fn a_circle_ends() {
        assert_eq!(walk(&config(0x40, &[(0x40, &[1, 0x40])])).len(), 48);
    }

    proptest! {
        #![proptest_config(nvme_vfio_seeded::seeded(256))]

        #[test]
        fn hostile_bytes_end(bytes in proptest::collection::vec(any::<u8>(), 256)) {
            let mut config: [u8; 256] = bytes.try_into().unwrap();
            config[STATUS] |= STATUS_CAPABILITIES;
            prop_assert!(walk(&config).len() <= 48);
            methods(&config);
        }
    }
}
