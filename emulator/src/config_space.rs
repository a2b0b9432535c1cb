//! PCI configuration space: a type 0 header with the power-management, MSI-X and PCI Express capabilities.

/// Vendor identifier of the emulated function; no vendor of the PCI-SIG's list has it.
pub(crate) const VENDOR: u16 = 0x4e56;
const DEVICE: u16 = 0x0001;
/// Class 01h (mass storage), subclass 08h (non-volatile memory), programming interface 02h (NVM Express).
const CLASS: [u8; 3] = [0x02, 0x08, 0x01];

/// Bytes of configuration space, the extended part included.
pub(crate) const SIZE: usize = 4096;
/// The header and the capabilities; past them the extended space is empty.
const USED: usize = 256;

const COMMAND: usize = 0x04;
const STATUS: usize = 0x06;
const BAR0: usize = 0x10;
const BAR4: usize = 0x20;
const CAPABILITIES: usize = 0x34;
const INTERRUPT_LINE: usize = 0x3c;

const COMMAND_MEMORY: u16 = 1 << 1;
const COMMAND_BUS_MASTER: u16 = 1 << 2;
const COMMAND_INTERRUPT_DISABLE: u16 = 1 << 10;
const STATUS_CAPABILITIES: u16 = 1 << 4;

/// PCI Power Management (PCI Express base specification 5.0, 7.5.2).
const POWER: usize = 0x40;
/// MSI-X (7.7.2).
const MSIX: usize = 0x50;
/// PCI Express (7.5.3).
const EXPRESS: usize = 0x60;
const DEVICE_CONTROL: usize = EXPRESS + 0x08;
/// Device Control, bit 15: Initiate Function Level Reset. It reads 0.
const INITIATE_FLR: u16 = 1 << 15;
/// Relaxed ordering and no snoop on, 512-byte read requests: the reset value.
const DEVICE_CONTROL_RESET: u16 = 0x2810;

/// The header's bytes, and which of their bits software can write.
#[derive(Debug)]
pub(crate) struct ConfigSpace {
    bytes: [u8; USED],
    writable: [u8; USED],
}

/// What a write to configuration space asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Asked {
    Nothing,
    FunctionReset,
}

impl ConfigSpace {
    /// The header of a function with a 64-bit memory BAR 0 of `bar0` bytes and a 64-bit memory BAR 4 of `bar4` bytes, which holds a
    /// table of `vectors` MSI-X vectors and, from `pending` on, their pending bits. The sizes are powers of two. Memory decoding is on,
    /// as firmware leaves it; bus mastering is off.
    pub(crate) fn new(bar0: u64, bar4: u64, vectors: u16, pending: u32) -> ConfigSpace {
        let mut space = ConfigSpace {
            bytes: [0; USED],
            writable: [0; USED],
        };
        space.put(0x00, &VENDOR.to_le_bytes());
        space.put(0x02, &DEVICE.to_le_bytes());
        space.put(STATUS, &STATUS_CAPABILITIES.to_le_bytes());
        space.put(0x09, &CLASS);
        space.put(0x2c, &VENDOR.to_le_bytes());
        space.put(0x2e, &DEVICE.to_le_bytes());
        space.put(CAPABILITIES, &[POWER as u8]);
        let command = COMMAND_MEMORY | COMMAND_BUS_MASTER | COMMAND_INTERRUPT_DISABLE;
        space.allow(COMMAND, &command.to_le_bytes());
        for (bar, size) in [(BAR0, bar0), (BAR4, bar4)] {
            space.put(bar, &[0b100]); // 64 bits wide, not prefetchable
            space.allow(bar, &(!(size.max(16) - 1)).to_le_bytes());
        }
        space.allow(INTERRUPT_LINE, &[0xff]);
        space.put_power();
        space.put_msix(vectors, pending);
        space.put_express();
        space.reset();
        space
    }

    fn put_power(&mut self) {
        self.put(POWER, &[0x01, MSIX as u8]);
        self.put(POWER + 2, &3u16.to_le_bytes()); // version 3, no PME
        self.put(POWER + 4, &(1u16 << 3).to_le_bytes()); // no reset when D3hot is left
        self.allow(POWER + 4, &[0b11]); // power state
    }

    fn put_msix(&mut self, vectors: u16, pending: u32) {
        self.put(MSIX, &[0x11, EXPRESS as u8]);
        self.put(MSIX + 2, &(vectors.saturating_sub(1) & 0x7ff).to_le_bytes());
        self.allow(MSIX + 2, &0xc000u16.to_le_bytes()); // enable, function mask
        self.put(MSIX + 4, &4u32.to_le_bytes()); // the table, at the start of BAR 4
        self.put(MSIX + 8, &(pending | 4).to_le_bytes());
    }

    fn put_express(&mut self) {
        self.put(EXPRESS, &[0x10, 0x00]);
        self.put(EXPRESS + 0x02, &2u16.to_le_bytes()); // version 2, endpoint
        let capabilities = 1u32 << 28 // function-level reset
            | 1 << 15 // role-based error reporting
            | 2; // payloads of up to 512 bytes
        self.put(EXPRESS + 0x04, &capabilities.to_le_bytes());
        self.allow(DEVICE_CONTROL, &0x7fffu16.to_le_bytes());
        let speed_and_width = 3u32 | 4 << 4; // 8 GT/s, four lanes
        self.put(EXPRESS + 0x0c, &speed_and_width.to_le_bytes());
        self.allow(EXPRESS + 0x10, &0x0fffu16.to_le_bytes()); // link control
        self.put(EXPRESS + 0x12, &(speed_and_width as u16).to_le_bytes()); // link status
        self.put(EXPRESS + 0x2c, &(0b111u32 << 1).to_le_bytes()); // speeds of up to 8 GT/s
        self.put(EXPRESS + 0x30, &3u16.to_le_bytes()); // target speed
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
        self.put(POWER + 4, &(1u16 << 3).to_le_bytes());
        self.bytes[MSIX + 3] &= 0x07; // disabled, not masked
        self.put(DEVICE_CONTROL, &DEVICE_CONTROL_RESET.to_le_bytes());
        self.put(EXPRESS + 0x10, &[0, 0]);
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
            *byte = match place {
                Some(place) if place < SIZE => self.bytes.get(place).copied().unwrap_or(0),
                _ => 0xff,
            };
        }
    }

    /// Writes the bits that can be written; the rest of the space keeps its value.
    #[must_use]
    pub(crate) fn write(&mut self, offset: u64, from: &[u8]) -> Asked {
        let mut asked = Asked::Nothing;
        for (index, new) in from.iter().enumerate() {
            let Some(place) = usize::try_from(offset)
                .ok()
                .and_then(|offset| offset.checked_add(index))
            else {
                return asked;
            };
            if let (Some(byte), Some(mask)) = (self.bytes.get_mut(place), self.writable.get(place))
            {
                *byte = *byte & !mask | new & mask;
            }
            if place == DEVICE_CONTROL + 1 && new & (INITIATE_FLR >> 8) as u8 != 0 {
                asked = Asked::FunctionReset;
            }
        }
        asked
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn space() -> ConfigSpace {
        ConfigSpace::new(0x2000, 0x2000, 17, 0x1000)
    }

    fn bytes<const N: usize>(space: &ConfigSpace, offset: u64) -> [u8; N] {
        let mut bytes = [0; N];
        space.read(offset, &mut bytes);
        bytes
    }

    #[test]
    fn header_says_nvme_and_sizes_its_bars() {
        let mut space = space();
        let header: [u8; 64] = bytes(&space, 0);
        assert_eq!(header[9..12], [0x02, 0x08, 0x01]);
        assert_eq!(header[14] & 0x7f, 0, "type 0");
        assert_eq!(header[0x3d], 0, "no interrupt pin");
        for bar in [0x10, 0x20] {
            assert_eq!(space.write(bar, &[0xff; 8]), Asked::Nothing);
            assert_eq!(u64::from_le_bytes(bytes(&space, bar)), !0x1fff | 0b100);
        }
        assert_eq!(bytes(&space, 254), [0; 4]);
        assert_eq!(bytes(&space, 4094), [0, 0, 0xff, 0xff]);
        assert_eq!(bytes(&space, u64::MAX), [0xff; 4]);
        assert_eq!(space.write(u64::MAX, &[0; 4]), Asked::Nothing);
    }

    #[test]
    fn capabilities_form_a_list() {
        let space = space();
        assert_ne!(bytes::<2>(&space, 6)[0] & 1 << 4, 0);
        let mut place = u64::from(bytes::<1>(&space, 0x34)[0]);
        let mut found = Vec::new();
        while place != 0 {
            let [id, next] = bytes(&space, place);
            found.push((id, place));
            place = next.into();
        }
        assert_eq!(found, [(0x01, 0x40), (0x11, 0x50), (0x10, 0x60)]);
        assert_eq!(u16::from_le_bytes(bytes(&space, 0x52)), 16, "17 vectors");
        assert_eq!(u32::from_le_bytes(bytes(&space, 0x54)), 4);
        assert_eq!(u32::from_le_bytes(bytes(&space, 0x58)), 0x1004);
    }

    #[test]
    fn device_control_resets_the_function_and_reads_zero_there() {
        let mut space = space();
        assert_eq!(space.write(0x52, &0xc000u16.to_le_bytes()), Asked::Nothing);
        assert_eq!(u16::from_le_bytes(bytes(&space, 0x52)), 0xc010);
        assert_eq!(
            space.write(0x68, &0xa810u16.to_le_bytes()),
            Asked::FunctionReset
        );
        assert_eq!(u16::from_le_bytes(bytes(&space, 0x68)), 0x2810);
        space.reset();
        assert_eq!(u16::from_le_bytes(bytes(&space, 0x52)), 0x0010, "disabled");
    }

    #[test]
    fn only_the_command_register_turns_bus_mastering() {
        let mut space = space();
        assert!(!space.bus_master());
        assert_eq!(space.write(0, &[0; 4]), Asked::Nothing);
        assert_eq!(
            u16::from_le_bytes(bytes(&space, 0)),
            VENDOR,
            "identifiers are read-only"
        );
        assert_eq!(space.write(4, &[0x06, 0x00]), Asked::Nothing);
        assert!(space.bus_master());
        space.reset();
        assert!(!space.bus_master());
    }
}
