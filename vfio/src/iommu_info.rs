//! What a type 1 container tells about itself (`VFIO_IOMMU_GET_INFO`).

use nvme_vfio_dma::DomainLimits;
use vfio_bindings::bindings::vfio as uapi;

use crate::chain::{capabilities, u32_at, u64_at};

/// Ranges that are read from one answer. Real machines have two to four.
const MOST_RANGES: usize = 4096;

/// Reads `vfio_iommu_type1_info` and its capabilities; `None` when the answer is too short to be one.
///
/// A container that tells no page sizes gets the system's page; one that tells no ranges (Linux before 5.4) gets the 32-bit range
/// below the hole for interrupts, which every IOMMU maps. Ranges that are empty or inverted are left out, the others put in order.
pub(crate) fn parse(bytes: &[u8]) -> Option<DomainLimits> {
    let flags = u32_at(bytes, 4)?;
    let page_sizes = u64_at(bytes, 8)?;
    let first = match flags & uapi::VFIO_IOMMU_INFO_CAPS {
        0 => 0,
        _ => u32_at(bytes, 16)?,
    };
    let mut limits = DomainLimits {
        iova_ranges: Vec::new(),
        page_sizes: match flags & uapi::VFIO_IOMMU_INFO_PGSIZES {
            0 => 0,
            _ => page_sizes,
        },
        mappings: None,
    };
    if limits.page_sizes == 0 {
        limits.page_sizes = nvme_vfio_dma::page_size() as u64;
    }
    for capability in capabilities(bytes, first) {
        match u32::from(capability.id) {
            uapi::VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE => {
                limits.iova_ranges = ranges(capability.bytes)
            }
            uapi::VFIO_IOMMU_TYPE1_INFO_DMA_AVAIL => limits.mappings = u32_at(capability.bytes, 8),
            _ => {}
        }
    }
    if limits.iova_ranges.is_empty() {
        limits.iova_ranges.push(0..=0xfedf_ffff);
    }
    Some(limits)
}

/// `nr_iovas`, a reserved word, then pairs of first and last address.
fn ranges(capability: &[u8]) -> Vec<std::ops::RangeInclusive<u64>> {
    let told = u32_at(capability, 8).unwrap_or(0) as usize;
    let mut ranges: Vec<_> = (0..told.min(MOST_RANGES))
        .map_while(|n| Some(u64_at(capability, 16 + n * 16)?..=u64_at(capability, 24 + n * 16)?))
        .filter(|range| !range.is_empty())
        .collect();
    ranges.sort_by_key(|range| *range.start());
    ranges
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chain::tests::header;
    use proptest::prelude::*;

    fn info(flags: u32, page_sizes: u64, caps: &[Vec<u8>]) -> Vec<u8> {
        let mut bytes = vec![0; 4];
        bytes.extend(flags.to_ne_bytes());
        bytes.extend(page_sizes.to_ne_bytes());
        bytes.extend(24u32.to_ne_bytes());
        bytes.extend(0u32.to_ne_bytes());
        for (n, cap) in caps.iter().enumerate() {
            let next = if n + 1 == caps.len() {
                0
            } else {
                (bytes.len() + cap.len()) as u32
            };
            let at = bytes.len();
            bytes.extend(cap);
            bytes[at + 4..at + 8].copy_from_slice(&next.to_ne_bytes());
        }
        bytes
    }

    fn range_cap(told: u32, ranges: &[(u64, u64)]) -> Vec<u8> {
        let mut cap = header(1, 0);
        cap.extend(told.to_ne_bytes());
        cap.extend(0u32.to_ne_bytes());
        for (start, end) in ranges {
            cap.extend(start.to_ne_bytes());
            cap.extend(end.to_ne_bytes());
        }
        cap
    }

    fn avail_cap(avail: u32) -> Vec<u8> {
        let mut cap = header(3, 0);
        cap.extend(avail.to_ne_bytes());
        cap.extend([0; 4]);
        cap
    }

    #[test]
    fn what_an_intel_iommu_tells() {
        let migration = [header(2, 0), vec![0xff; 24]].concat();
        let bytes = info(
            3,
            0x4020_1000,
            &[
                migration,
                avail_cap(65535),
                range_cap(2, &[(0xfef0_0000, 0x7f_ffff_ffff), (0, 0xfedf_ffff)]),
            ],
        );
        let limits = parse(&bytes).unwrap();
        assert_eq!(limits.page_sizes, 0x4020_1000);
        assert_eq!(limits.mappings, Some(65535));
        assert_eq!(
            limits.iova_ranges,
            [0..=0xfedf_ffff, 0xfef0_0000..=0x7f_ffff_ffff]
        );
    }

    #[test]
    fn counts_above_what_is_there_are_cut() {
        let bytes = info(
            3,
            0x1000,
            &[range_cap(u32::MAX, &[(0x1000, 0x1fff), (9, 3)])],
        );
        assert_eq!(parse(&bytes).unwrap().iova_ranges, [0x1000..=0x1fff]);
    }

    #[test]
    fn an_old_kernel_tells_neither() {
        let limits = parse(&info(0, 0x1234, &[range_cap(1, &[(0, 1)])])).unwrap();
        assert_eq!(limits.page_sizes, nvme_vfio_dma::page_size() as u64);
        assert_eq!(limits.iova_ranges, [0..=0xfedf_ffff]);
        assert_eq!(limits.mappings, None);
    }

    #[test]
    fn short_answers_are_none() {
        let whole = info(3, 0x1000, &[]);
        for length in 0..20 {
            assert!(parse(&whole[..length]).is_none(), "{length}");
        }
    }

    proptest! {
        #![proptest_config(nvme_vfio_seeded::seeded(256))]

        #[test]
        fn hostile_bytes_are_answered(bytes in proptest::collection::vec(any::<u8>(), 0..512)) {
            if let Some(limits) = parse(&bytes) {
                prop_assert!(!limits.iova_ranges.is_empty() && limits.page_sizes != 0);
                prop_assert!(limits.iova_ranges.iter().all(|range| !range.is_empty()));
            }
        }

        #[test]
        fn hostile_capabilities_are_answered(
            flags in 0u32..4,
            caps in proptest::collection::vec(
                prop_oneof![
                    (any::<u32>(), proptest::collection::vec(any::<(u64, u64)>(), 0..4)).prop_map(|(n, r)| range_cap(n, &r)),
                    any::<u32>().prop_map(avail_cap),
                ],
                0..6,
            ),
            cut in 0usize..300,
        ) {
            let mut bytes = info(flags, 0x1000, &caps);
            bytes.truncate(bytes.len().saturating_sub(cut));
            if let Some(limits) = parse(&bytes) {
                prop_assert!(limits.iova_ranges.iter().all(|range| !range.is_empty()));
            }
        }
    }
}
