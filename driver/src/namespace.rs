//! A namespace: how many blocks of which size.

use nvme_vfio_queues::IdentifyNamespace;

use crate::Error;
use crate::controller::Inner;

/// An active namespace of a controller, as it was formatted when it was looked at.
///
/// A small value: copy it to every thread that needs it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Namespace {
    pub(crate) controller: u32,
    pub(crate) nsid: u32,
    pub(crate) blocks: u64,
    pub(crate) shift: u32,
    mask: u32,
}

impl Namespace {
    /// Reads the geometry out of Identify Namespace data (NVM command set 1.0, section 4.1.5.1).
    pub(crate) fn new(
        inner: &Inner,
        nsid: u32,
        identify: &IdentifyNamespace,
    ) -> Result<Self, Error> {
        let refuse = |reason: String| Error::Namespace { nsid, reason };
        let blocks = identify.nsze.get();
        if blocks == 0 {
            return Err(refuse(
                "it is not active; `list-ns` shows those that are".to_owned(),
            ));
        }
        let Some(format) = identify.format() else {
            return Err(refuse(format!(
                "its LBA format (FLBAS {:#04x}) is not one of those it lists",
                identify.flbas
            )));
        };
        let Some(size) = format.block_size() else {
            return Err(refuse(format!(
                "its block size (LBADS {}) is not one that this version can use (9 to 16)",
                format.lbads
            )));
        };
        let metadata = format.ms.get();
        if metadata != 0 {
            return Err(refuse(format!(
                "its LBA format has {metadata} bytes of metadata per block, which this version does not transfer"
            )));
        }
        if inner.mdts.is_some_and(|limit| (size as usize) > limit) {
            return Err(refuse(format!(
                "its blocks of {size} bytes are larger than the controller's largest transfer"
            )));
        }
        // So that LBA arithmetic in bytes never overflows.
        if blocks.checked_mul(u64::from(size)).is_none() {
            return Err(refuse(format!(
                "{blocks} blocks of {size} bytes are more than 2^64 bytes"
            )));
        }
        Ok(Self {
            controller: inner.number,
            nsid,
            blocks,
            shift: size.trailing_zeros(),
            mask: size - 1,
        })
    }

    /// The namespace identifier.
    #[inline]
    #[must_use]
    pub fn id(&self) -> u32 {
        self.nsid
    }

    /// The size of a logical block in bytes: a power of two from 512 to 65,536.
    #[inline]
    #[must_use]
    pub fn block_size(&self) -> u32 {
        1 << self.shift
    }

    /// Whether `blocks` blocks from `lba` on lie inside.
    #[inline(always)]
    pub(crate) fn holds(&self, lba: u64, blocks: u64) -> bool {
        // No namespace has 2^64 - 1 blocks (`new` has checked that its bytes can be counted), so a sum that is too large is never inside.
        lba.saturating_add(blocks) <= self.blocks
    }

    /// Whether the namespace is one of `controller`, and `length` bytes are whole blocks of it.
    #[inline(always)]
    pub(crate) fn suits(&self, controller: u32, length: usize) -> bool {
        // One condition and one branch, instead of two.
        (self.controller ^ controller) | (length as u32 & self.mask) == 0
    }

    /// How many logical blocks there are (NSZE).
    #[inline]
    #[must_use]
    pub fn blocks(&self) -> u64 {
        self.blocks
    }

    /// The size in bytes.
    #[inline]
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.blocks << self.shift
    }
}
