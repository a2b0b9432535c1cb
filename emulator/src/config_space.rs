//! PCI configuration space: a type 0 header without capabilities.

/// Vendor identifier of the emulated function; no vendor of the PCI-SIG's list has it.
pub(crate) const VENDOR: u16 = 0x4e56;
const DEVICE: u16 = 0x0001;
/// Class 01h (mass storage), subclass 08h (non-volatile memory), programming interface 02h (NVM Express).
const CLASS: [u8; 3] = [0x02, 0x08, 0x01];

const COMMAND: usize = 0x04;
const BAR0: usize = 0x10;
const INTERRUPT_LINE: usize = 0x3c;

const COMMAND_MEMORY: u16 = 1 << 1;
const COMMAND_BUS_MASTER: u16 = 1 << 2;
const COMMAND_INTERRUPT_DISABLE: u16 = 1 << 10;

/// The header's bytes, and which of their bits software can write.
#[derive(Debug)]
pub(crate) struct ConfigSpace {
    bytes: [u8; 256],
    writable: [u8; 64],
}

impl ConfigSpace {
    /// The header of a function with a 64-bit memory BAR of `bar_size` bytes, rounded up to a power of two. Memory decoding is on, as
    /// firmware leaves it; bus mastering is off.
    pub(crate) fn new(bar_size: u64) -> ConfigSpace {
        let mut space = ConfigSpace {
            bytes: [0; 256],
            writable: [0; 64],
        };
        space.put(0x00, &VENDOR.to_le_bytes());
        space.put(0x02, &DEVICE.to_le_bytes());
        space.put(0x09, &CLASS);
        space.put(BAR0, &[0b100]); // 64 bits wide, not prefetchable
        space.put(0x2c, &VENDOR.to_le_bytes());
        space.put(0x2e, &DEVICE.to_le_bytes());
        space.put(0x3d, &[1]); // INTA#
        let command = COMMAND_MEMORY | COMMAND_BUS_MASTER | COMMAND_INTERRUPT_DISABLE;
        space.allow(COMMAND, &command.to_le_bytes());
        space.allow(
            BAR0,
            &(!(bar_size.max(16).next_power_of_two() - 1)).to_le_bytes(),
        );
        space.allow(INTERRUPT_LINE, &[0xff]);
        space.reset();
        space
    }

    fn put(&mut self, offset: usize, bytes: &[u8]) {
        if let Some(place) = self.bytes.get_mut(offset..offset + bytes.len()) {
            place.copy_from_slice(bytes);
        }
    }

    fn allow(&mut self, offset: usize, mask: &[u8]) {
        if let Some(place) = self.writable.get_mut(offset..offset + mask.len()) {
            place.copy_from_slice(mask);
        }
    }

    /// A function-level reset, after which whoever asked for it restores the header, all but bus mastering.
    pub(crate) fn reset(&mut self) {
        self.put(COMMAND, &COMMAND_MEMORY.to_le_bytes());
    }

    pub(crate) fn bus_master(&self) -> bool {
        u16::from(self.bytes[COMMAND]) & COMMAND_BUS_MASTER != 0
    }

    /// Reads; past the end of the space all ones.
    pub(crate) fn read(&self, offset: u64, into: &mut [u8]) {
        for (index, byte) in into.iter_mut().enumerate() {
            let place = usize::try_from(offset)
                .ok()
                .and_then(|offset| offset.checked_add(index));
            *byte = place
                .and_then(|place| self.bytes.get(place))
                .copied()
                .unwrap_or(0xff);
        }
    }

    /// Writes the bits that can be written; the rest of the space keeps its value.
    pub(crate) fn write(&mut self, offset: u64, from: &[u8]) {
        for (index, new) in from.iter().enumerate() {
            let Some(place) = usize::try_from(offset)
                .ok()
                .and_then(|offset| offset.checked_add(index))
            else {
                return;
            };
            if let (Some(byte), Some(mask)) = (self.bytes.get_mut(place), self.writable.get(place))
            {
                *byte = *byte & !mask | new & mask;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn header_says_nvme_and_sizes_its_bar() {
        let mut space = ConfigSpace::new(0x2000);
        let mut header = [0; 64];
        space.read(0, &mut header);
        assert_eq!(header[9..12], [0x02, 0x08, 0x01]);
        assert_eq!(header[14] & 0x7f, 0, "type 0");
        space.write(0x10, &[0xff; 8]);
        let mut bar = [0; 8];
        space.read(0x10, &mut bar);
        assert_eq!(u64::from_le_bytes(bar), !0x1fff | 0b100);
        let mut beyond = [0; 4];
        space.read(254, &mut beyond);
        assert_eq!(beyond, [0, 0, 0xff, 0xff]);
        space.read(u64::MAX, &mut beyond);
        assert_eq!(beyond, [0xff; 4]);
        space.write(u64::MAX, &[0; 4]);
    }

    #[test]
    fn only_the_command_register_turns_bus_mastering() {
        let mut space = ConfigSpace::new(0x2000);
        assert!(!space.bus_master());
        space.write(0, &[0; 4]);
        let mut id = [0; 2];
        space.read(0, &mut id);
        assert_eq!(u16::from_le_bytes(id), VENDOR, "identifiers are read-only");
        space.write(4, &[0x06, 0x00]);
        assert!(space.bus_master());
        space.reset();
        assert!(!space.bus_master());
    }
}
