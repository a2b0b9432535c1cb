//! The LBA formats that a controller offers.

use std::fmt;
use std::str::FromStr;

/// Most formats that can be offered.
const FORMATS_MAX: usize = 16;

/// What the formats may be, as errors say it.
pub(super) const FORMATS: &str =
    "1 to 16 different powers of two from 512 to 65536 with ':' between them";

/// Logical block sizes in bytes, in the order of the LBA formats that Identify Namespace lists (LBAF0, LBAF1, ...). None has
/// metadata.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LbaFormats(Vec<u32>);

impl LbaFormats {
    /// These block sizes, 1 to 16 of them, all different, powers of two from 512 to 65,536; `None` for others.
    #[must_use]
    pub fn new(sizes: Vec<u32>) -> Option<LbaFormats> {
        let mut seen = 0u32;
        let fine = (1..=FORMATS_MAX).contains(&sizes.len())
            && sizes.iter().all(|&size| {
                let new = seen & size == 0;
                seen |= size;
                new && size.is_power_of_two() && (512..=65_536).contains(&size)
            });
        fine.then_some(LbaFormats(sizes))
    }

    /// The block sizes.
    #[must_use]
    pub fn sizes(&self) -> &[u32] {
        &self.0
    }

    /// Bytes of a block of the format with this index.
    pub(crate) fn get(&self, format: u8) -> Option<u32> {
        self.0.get(usize::from(format)).copied()
    }

    /// The index of the format with blocks of `lba` bytes.
    pub(crate) fn index_of(&self, lba: u32) -> Option<u8> {
        let place = self.0.iter().position(|&size| size == lba)?;
        u8::try_from(place).ok()
    }
}

impl Default for LbaFormats {
    fn default() -> LbaFormats {
        LbaFormats(vec![512, 4096, 1024, 2048, 8192, 16_384, 32_768, 65_536])
    }
}

impl FromStr for LbaFormats {
    type Err = ();

    fn from_str(text: &str) -> Result<LbaFormats, ()> {
        let sizes: Result<Vec<u32>, _> = text.split(':').map(str::parse).collect();
        LbaFormats::new(sizes.map_err(|_| ())?).ok_or(())
    }
}

impl fmt::Display for LbaFormats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sizes: Vec<String> = self.0.iter().map(u32::to_string).collect();
        f.write_str(&sizes.join(":"))
    }
}
