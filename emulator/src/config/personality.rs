//! What a controller is called, and which of its commands it offers.

use std::collections::BTreeMap;

use bitflags::bitflags;

use super::{Config, ConfigError};

/// Most bytes of a SUBNQN.
const SUBNQN_MAX: usize = 223;
const SUBNQN: &str = "1 to 223 bytes of text that begins with 'nqn.'";
const CNTLID: &str = "a number from 0 to 65519";

/// What the controller and its namespaces are called, where that shall not follow from the serial number. There are no keys for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Names {
    /// SUBNQN: NVMe Qualified Name of the subsystem; `None` for one made from the serial number.
    pub subnqn: Option<String>,
    /// CNTLID: controller identifier, at most FFEFh; 1 by default.
    pub cntlid: u16,
    /// Identifiers of namespaces, by namespace identifier; those of others are made from the serial number.
    pub namespaces: BTreeMap<u32, NamespaceNames>,
}

impl Default for Names {
    fn default() -> Names {
        Names {
            subnqn: None,
            cntlid: 1,
            namespaces: BTreeMap::new(),
        }
    }
}

/// A namespace's identifiers; it has none of those that are left out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NamespaceNames {
    /// EUI64: IEEE Extended Unique Identifier, most significant byte first.
    pub eui64: Option<[u8; 8]>,
    /// NGUID: Namespace Globally Unique Identifier, most significant byte first.
    pub nguid: Option<[u8; 16]>,
    /// Namespace UUID, most significant byte first.
    pub uuid: Option<[u8; 16]>,
}

bitflags! {
    /// Optional commands that a controller offers, as OACS and ONCS of Identify Controller tell. One that is not offered is answered with Invalid Command Opcode.
    /// All by default; there is no key for it.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
    pub struct Offers: u32 {
        /// Format NVM.
        const FORMAT = 1 << 0;
        /// Firmware Image Download and Firmware Commit.
        const FIRMWARE = 1 << 1;
        /// Namespace Management and Namespace Attachment.
        const NAMESPACE_MANAGEMENT = 1 << 2;
        /// Doorbell Buffer Config.
        const SHADOW_DOORBELLS = 1 << 3;
        /// Compare.
        const COMPARE = 1 << 4;
        /// Write Uncorrectable.
        const WRITE_UNCORRECTABLE = 1 << 5;
        /// Dataset Management.
        const DATASET_MANAGEMENT = 1 << 6;
        /// Write Zeroes.
        const WRITE_ZEROES = 1 << 7;
        /// Write Zeroes of a whole namespace (NSZ).
        const NAMESPACE_ZEROES = 1 << 8;
        /// Verify.
        const VERIFY = 1 << 9;
        /// Copy.
        const COPY = 1 << 10;
        /// The Timestamp feature.
        const TIMESTAMP = 1 << 11;
        /// Features that are saved, and their select field.
        const SAVED_FEATURES = 1 << 12;
    }
}

impl Default for Offers {
    fn default() -> Offers {
        Offers::all()
    }
}

impl Offers {
    /// What an opcode of the admin queue needs.
    pub(crate) fn of_admin(opcode: u8) -> Offers {
        match opcode {
            0x0d | 0x15 => Offers::NAMESPACE_MANAGEMENT,
            0x10 | 0x11 => Offers::FIRMWARE,
            0x7c => Offers::SHADOW_DOORBELLS,
            0x80 => Offers::FORMAT,
            _ => Offers::empty(),
        }
    }

    /// What an opcode of an I/O queue needs.
    pub(crate) fn of_io(opcode: u8) -> Offers {
        match opcode {
            0x04 => Offers::WRITE_UNCORRECTABLE,
            0x05 => Offers::COMPARE,
            0x08 => Offers::WRITE_ZEROES,
            0x09 => Offers::DATASET_MANAGEMENT,
            0x0c => Offers::VERIFY,
            0x19 => Offers::COPY,
            _ => Offers::empty(),
        }
    }

    /// OACS: Optional Admin Command Support.
    pub(crate) fn oacs(self) -> u16 {
        self.bits_of(&[
            (Offers::FORMAT, 1),
            (Offers::FIRMWARE, 2),
            (Offers::NAMESPACE_MANAGEMENT, 3),
            (Offers::SHADOW_DOORBELLS, 8),
        ])
    }

    /// ONCS: Optional NVM Command Support.
    pub(crate) fn oncs(self) -> u16 {
        self.bits_of(&[
            (Offers::COMPARE, 0),
            (Offers::WRITE_UNCORRECTABLE, 1),
            (Offers::DATASET_MANAGEMENT, 2),
            (Offers::WRITE_ZEROES, 3),
            (Offers::SAVED_FEATURES, 4),
            (Offers::TIMESTAMP, 6),
            (Offers::VERIFY, 7),
            (Offers::COPY, 8),
            (Offers::NAMESPACE_ZEROES, 12),
        ])
    }

    fn bits_of(self, bits: &[(Offers, u16)]) -> u16 {
        let offered = bits.iter().filter(|(offer, _)| self.contains(*offer));
        offered.fold(0, |word, (_, bit)| word | 1 << bit)
    }
}

impl Config {
    /// The part of [`Config::check`] that is about names.
    pub(super) fn check_names(&self) -> Result<(), ConfigError> {
        let names = &self.names;
        if let Some(subnqn) = &names.subnqn {
            let fits = subnqn.len() <= SUBNQN_MAX && subnqn.starts_with("nqn.");
            if !fits || subnqn.contains('\0') {
                return Err(ConfigError::Value {
                    key: "subnqn",
                    value: subnqn.clone(),
                    allowed: SUBNQN,
                });
            }
        }
        if names.cntlid > 0xffef {
            return Err(ConfigError::Value {
                key: "cntlid",
                value: names.cntlid.to_string(),
                allowed: CNTLID,
            });
        }
        if self.offers.contains(Offers::NAMESPACE_ZEROES)
            && !self.offers.contains(Offers::WRITE_ZEROES)
        {
            return Err(ConfigError::Together(
                "zeroes of a whole namespace are offered, and Write Zeroes is not".into(),
            ));
        }
        Ok(())
    }
}
