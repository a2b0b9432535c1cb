//! A namespace as a client has it.

use super::ranges::CopyLimits;
use super::slices::SliceMap;
use crate::command::Geometry;

/// A client's namespace on its way to real ones.
#[derive(Debug)]
pub(super) struct LentNamespace {
    /// As the client names it.
    pub(super) nsid: u32,
    pub(super) geometry: Geometry,
    pub(super) map: SliceMap,
    /// Bytes of a block, as a power of two.
    pub(super) shift: u8,
    /// The real controllers and namespaces that hold its blocks, each once.
    pub(super) flush: Vec<(u16, u32)>,
    /// Where it is a whole real namespace: that one.
    pub(super) whole: Option<Whole>,
    /// Its operator had it deleted or detached, or may have: what now has that name on the real controller may have other blocks.
    pub(super) gone: bool,
    /// What a Copy may name; all 0 where the device takes none.
    pub(super) copy: CopyLimits,
}

/// A real namespace that a client has as a whole.
#[derive(Debug, Clone, Copy)]
pub(super) struct Whole {
    pub(super) target: u16,
    pub(super) nsid: u32,
    /// The LBA format in use, as Format NVM names it in CDW10.
    pub(super) format: u32,
}

impl LentNamespace {
    /// A real controller has another number from now on. Numbers only become smaller, lowest first, so that none is changed twice.
    pub(super) fn moved(&mut self, before: usize, now: u16) {
        for (target, _) in &mut self.flush {
            if usize::from(*target) == before {
                *target = now;
            }
        }
        if let Some(whole) = &mut self.whole
            && usize::from(whole.target) == before
        {
            whole.target = now;
        }
        self.map.moved(before, now);
    }
}
