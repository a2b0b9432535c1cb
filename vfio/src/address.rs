//! [`PciAddress`]: the name of a PCI function.

use std::fmt;
use std::str::FromStr;

/// The address of a PCI function: domain, bus, device, function.
///
/// Parses `0000:01:00.0` and, with the domain left out (it is then 0), `01:00.0`; prints the former.
///
/// ```
/// use nvme_vfio_pci::PciAddress;
/// let address: PciAddress = "01:00.0".parse()?;
/// assert_eq!(address.to_string(), "0000:01:00.0");
/// # Ok::<(), nvme_vfio_pci::ParsePciAddressError>(())
/// ```
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PciAddress {
    domain: u32,
    bus: u8,
    device: u8,
    function: u8,
}

/// Why a text is no PCI address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{text:?} is no PCI address: write it like 0000:01:00.0 or 01:00.0 (domain:bus:device.function, \
     hexadecimal; device up to 1f, function up to 7)"
)]
pub struct ParsePciAddressError {
    text: String,
}

impl PciAddress {
    /// Makes an address; `None` when `device` is above 31 or `function` above 7.
    #[must_use]
    pub const fn new(domain: u32, bus: u8, device: u8, function: u8) -> Option<Self> {
        if device > 31 || function > 7 {
            return None;
        }
        Some(Self {
            domain,
            bus,
            device,
            function,
        })
    }

    /// The address of the function with this device-and-function byte (PCI's "devfn").
    #[must_use]
    pub const fn from_devfn(domain: u32, bus: u8, devfn: u8) -> Self {
        Self {
            domain,
            bus,
            device: devfn >> 3,
            function: devfn & 7,
        }
    }

    /// The domain (Linux's name for the segment group). Above `0xffff` behind some bridges of virtual machines and VMD.
    #[must_use]
    pub const fn domain(self) -> u32 {
        self.domain
    }

    /// The bus, 0 to 255.
    #[must_use]
    pub const fn bus(self) -> u8 {
        self.bus
    }

    /// The device, 0 to 31.
    #[must_use]
    pub const fn device(self) -> u8 {
        self.device
    }

    /// The function, 0 to 7.
    #[must_use]
    pub const fn function(self) -> u8 {
        self.function
    }
}

impl fmt::Display for PciAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:04x}:{:02x}:{:02x}.{:x}",
            self.domain, self.bus, self.device, self.function
        )
    }
}

impl fmt::Debug for PciAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for PciAddress {
    type Err = ParsePciAddressError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        parse(text).ok_or_else(|| ParsePciAddressError { text: text.into() })
    }
}

fn parse(text: &str) -> Option<PciAddress> {
    let (front, function) = text.rsplit_once('.')?;
    let (front, device) = front.rsplit_once(':')?;
    let (domain, bus) = match front.rsplit_once(':') {
        Some((domain, bus)) => (hex(domain, 8)?, bus),
        None => (0, front),
    };
    PciAddress::new(
        domain,
        u8::try_from(hex(bus, 2)?).ok()?,
        u8::try_from(hex(device, 2)?).ok()?,
        u8::try_from(hex(function, 1)?).ok()?,
    )
}

/// One to `digits` hexadecimal digits; `from_str_radix` alone would also take a sign.
fn hex(text: &str, digits: usize) -> Option<u32> {
    let good = (1..=digits).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_hexdigit());
    good.then(|| u32::from_str_radix(text, 16).ok())?
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn takes_both_forms() {
        let want = PciAddress::new(0, 1, 0x1f, 7).unwrap();
        assert_eq!("0000:01:1f.7".parse(), Ok(want));
        assert_eq!("01:1f.7".parse(), Ok(want));
        assert_eq!(
            "10000:e1:00.0".parse::<PciAddress>().unwrap().to_string(),
            "10000:e1:00.0"
        );
    }

    #[test]
    fn refuses_what_is_none() {
        for text in [
            "",
            "01",
            "01:00",
            "0000:01:00",
            "01:20.0",
            "01:00.8",
            "01:00.00",
            "+1:00.0",
            "01:+0.0",
            "0000:001:00.0",
            "0:0:0:0.0",
            "g1:00.0",
            "01:00.0 ",
            "123456789:01:00.0",
            "../01:00.0",
        ] {
            assert!(text.parse::<PciAddress>().is_err(), "{text:?}");
        }
    }

    proptest! {
        #![proptest_config(nvme_vfio_seeded::seeded(256))]

        #[test]
        fn what_is_printed_parses_back(domain: u32, bus: u8, devfn: u8) {
            let address = PciAddress::from_devfn(domain, bus, devfn);
            prop_assert_eq!(address.to_string().parse(), Ok(address));
        }

        #[test]
        fn any_text_is_answered(text: String) {
            let _ = text.parse::<PciAddress>();
        }
    }
}
