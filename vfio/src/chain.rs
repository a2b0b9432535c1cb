//! Bounded reading of what the kernel answers: structures of variable length with a chain of capabilities.
//!
//! VFIO appends capabilities to several of its answers (`vfio_info_cap_header`): each has an identifier, a version and the
//! offset of the next, counted from the start of the whole answer. Nothing here indexes without a check, and a chain that
//! runs in a circle ends.

/// Reads a `u16` in the machine's byte order, which is VFIO's.
pub(crate) fn u16_at(bytes: &[u8], offset: usize) -> Option<u16> {
    field(bytes, offset).map(u16::from_ne_bytes)
}

/// Reads a `u32` in the machine's byte order.
pub(crate) fn u32_at(bytes: &[u8], offset: usize) -> Option<u32> {
    field(bytes, offset).map(u32::from_ne_bytes)
}

/// Reads a `u64` in the machine's byte order.
pub(crate) fn u64_at(bytes: &[u8], offset: usize) -> Option<u64> {
    field(bytes, offset).map(u64::from_ne_bytes)
}

fn field<const N: usize>(bytes: &[u8], offset: usize) -> Option<[u8; N]> {
    bytes.get(offset..offset.checked_add(N)?)?.try_into().ok()
}

/// One capability of a chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Capability<'a> {
    pub(crate) id: u16,
    pub(crate) version: u16,
    /// From the capability's header to the end of the answer: a capability does not tell its length.
    pub(crate) bytes: &'a [u8],
}

/// Walks the capabilities of an answer.
pub(crate) struct Capabilities<'a> {
    bytes: &'a [u8],
    next: usize,
    steps_left: usize,
}

/// `id`, `version`, `next`.
const HEADER: usize = 8;

/// The capabilities of `bytes` from offset `first` on; none when `first` is 0.
pub(crate) fn capabilities(bytes: &[u8], first: u32) -> Capabilities<'_> {
    Capabilities {
        bytes,
        next: first as usize,
        // A chain without a circle cannot have more members than there is room for headers.
        steps_left: bytes.len() / HEADER,
    }
}

impl<'a> Iterator for Capabilities<'a> {
    type Item = Capability<'a>;

    fn next(&mut self) -> Option<Capability<'a>> {
        if self.next == 0 || self.steps_left == 0 {
            return None;
        }
        self.steps_left -= 1;
        let bytes = self.bytes.get(self.next..)?;
        let capability = Capability {
            id: u16_at(bytes, 0)?,
            version: u16_at(bytes, 2)?,
            bytes,
        };
        self.next = u32_at(bytes, 4)? as usize;
        Some(capability)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Appends a capability to an answer and links it from the header at `previous`' `next` field.
    pub(crate) fn header(id: u16, next: u32) -> Vec<u8> {
        let mut bytes = id.to_ne_bytes().to_vec();
        bytes.extend(1u16.to_ne_bytes());
        bytes.extend(next.to_ne_bytes());
        bytes
    }

    #[test]
    fn follows_the_chain_in_its_order() {
        let mut bytes = vec![0; 8];
        bytes.extend(header(7, 24));
        bytes.extend(header(8, 0));
        bytes.extend(header(9, 16));
        let ids: Vec<_> = capabilities(&bytes, 8).map(|c| c.id).collect();
        assert_eq!(ids, [7, 9, 8]);
        assert_eq!(capabilities(&bytes, 0).count(), 0);
    }

    #[test]
    fn a_circle_ends() {
        let mut bytes = vec![0; 8];
        bytes.extend(header(7, 8));
        assert_eq!(capabilities(&bytes, 8).count(), 2);
    }

    #[test]
    fn a_header_over_the_end_is_left_out() {
        let mut bytes = vec![0; 8];
        bytes.extend(header(7, 12));
        assert_eq!(capabilities(&bytes, 8).count(), 1);
        assert_eq!(capabilities(&bytes, u32::MAX).count(), 0);
    }

    proptest! {
        #![proptest_config(nvme_vfio_seeded::seeded(256))]

        #[test]
        fn hostile_bytes_end(bytes in proptest::collection::vec(any::<u8>(), 0..256), first in 0u32..300) {
            prop_assert!(capabilities(&bytes, first).count() <= bytes.len() / HEADER);
        }

        #[test]
        fn hostile_links_end(links in proptest::collection::vec(0u32..40, 1..32), first in 0u32..300) {
            let bytes: Vec<u8> = links.iter().flat_map(|link| header(1, link * 8)).collect();
            prop_assert!(capabilities(&bytes, first).count() <= links.len());
        }
    }
}
