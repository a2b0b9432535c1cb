//! Recognises what a namespace holds, before a writing benchmark destroys it.
//!
//! The places and magic numbers are those of the on-disk formats; the table is no substitute for
//! `blkid`, it only has to notice what people keep on drives.

/// A run of bytes read from the namespace.
#[derive(Clone, Debug)]
pub struct Window {
    /// Where it begins, in bytes from the start of the namespace.
    pub offset: u64,
    /// The bytes.
    pub bytes: Vec<u8>,
}

/// How many bytes at the start of a namespace have to be read to recognise what it holds.
pub const HEAD: u64 = 68 * 1024;
/// The same at its end: the backup GPT header and RAID superblocks.
pub const TAIL: u64 = 64 * 1024;

struct Magic {
    name: &'static str,
    offset: u64,
    bytes: &'static [u8],
}

const MAGICS: &[Magic] = &[
    Magic {
        name: "an ext2, ext3 or ext4 file system",
        offset: 0x438,
        bytes: &[0x53, 0xef],
    },
    Magic {
        name: "an XFS file system",
        offset: 0,
        bytes: b"XFSB",
    },
    Magic {
        name: "a Btrfs file system",
        offset: 0x1_0040,
        bytes: b"_BHRfS_M",
    },
    Magic {
        name: "an F2FS file system",
        offset: 0x400,
        bytes: &[0x10, 0x20, 0xf5, 0xf2],
    },
    Magic {
        name: "a LUKS encrypted volume",
        offset: 0,
        bytes: b"LUKS\xba\xbe",
    },
    Magic {
        name: "a bcache device",
        offset: 0x1018,
        bytes: &[
            0xc6, 0x85, 0x73, 0xf6, 0x4e, 0x1a, 0x45, 0xca, 0x82, 0x65, 0xf5, 0x7f, 0x48, 0xba,
            0x6d, 0x81,
        ],
    },
    Magic {
        name: "a bcachefs file system",
        offset: 0x1018,
        bytes: &[
            0xc6, 0x85, 0x73, 0xf6, 0x66, 0xce, 0x90, 0xa9, 0xd9, 0x6a, 0x60, 0xcf, 0x80, 0x3d,
            0xf7, 0xef,
        ],
    },
    Magic {
        name: "a Linux RAID member",
        offset: 0,
        bytes: &[0xfc, 0x4e, 0x2b, 0xa9],
    },
    Magic {
        name: "a Linux RAID member",
        offset: 0x1000,
        bytes: &[0xfc, 0x4e, 0x2b, 0xa9],
    },
    Magic {
        name: "an NTFS file system",
        offset: 3,
        bytes: b"NTFS    ",
    },
    Magic {
        name: "an exFAT file system",
        offset: 3,
        bytes: b"EXFAT   ",
    },
    Magic {
        name: "a BitLocker volume",
        offset: 3,
        bytes: b"-FVE-FS-",
    },
    Magic {
        name: "a FAT file system",
        offset: 0x36,
        bytes: b"FAT1",
    },
    Magic {
        name: "a FAT file system",
        offset: 0x52,
        bytes: b"FAT32",
    },
    Magic {
        name: "a SquashFS file system",
        offset: 0,
        bytes: b"hsqs",
    },
    Magic {
        name: "an EROFS file system",
        offset: 0x400,
        bytes: &[0xe2, 0xe1, 0xf5, 0xe0],
    },
    Magic {
        name: "an ISO 9660 file system",
        offset: 0x8001,
        bytes: b"CD001",
    },
    Magic {
        name: "a GFS2 file system",
        offset: 0x1_0000,
        bytes: &[0x01, 0x16, 0x19, 0x70, 0, 0, 0, 1],
    },
    Magic {
        name: "an OCFS2 file system",
        offset: 0x2000,
        bytes: b"OCFSV2",
    },
    Magic {
        name: "an APFS container",
        offset: 0x20,
        bytes: b"NXSB",
    },
    Magic {
        name: "a Ceph BlueStore device",
        offset: 0,
        bytes: b"bluestore block device",
    },
];

/// Block sizes at which a GPT header may lie: block 1 of the disk.
const GPT_BLOCKS: [u64; 2] = [512, 4096];
const GPT: &[u8] = b"EFI PART";
const MBR_SIGNATURE: &[u8] = &[0x55, 0xaa];
const MBR_ENTRIES: u64 = 446;
const MBR_ENTRY_BYTES: u64 = 16;
/// Sectors 0 to 3 may hold the label of an LVM physical volume.
const LVM_SECTORS: u64 = 4;
/// Page sizes that a swap area may have been made with; its magic ends the first page.
const SWAP_PAGES: [u64; 4] = [4096, 8192, 16384, 65536];
const SWAP_MAGICS: [&[u8]; 2] = [b"SWAPSPACE2", b"SWAP-SPACE"];
/// A ZFS label: the ring of uberblocks, 1 KiB each, begins 128 KiB into it; the list of names at 16 KiB.
const ZFS_NAMES: u64 = 16 * 1024;

/// What the windows show, in words with an article; empty if nothing is recognised.
#[must_use]
pub fn recognise(windows: &[Window], total_bytes: u64) -> Vec<&'static str> {
    let mut found: Vec<&'static str> = Vec::new();
    let mut note = |name| {
        if !found.contains(&name) {
            found.push(name);
        }
    };
    if is_gpt(windows, total_bytes) {
        note("a GPT partition table");
    } else if is_mbr(windows) {
        note("an MBR partition table");
    }
    for magic in MAGICS {
        if matches(windows, magic.offset, magic.bytes) {
            note(magic.name);
        }
    }
    if (0..LVM_SECTORS).any(|sector| {
        matches(windows, sector * 512, b"LABELONE")
            && matches(windows, sector * 512 + 24, b"LVM2 001")
    }) {
        note("an LVM physical volume");
    }
    if SWAP_PAGES.iter().any(|page| {
        SWAP_MAGICS
            .iter()
            .any(|magic| matches(windows, page - magic.len() as u64, magic))
    }) {
        note("a swap area");
    }
    if is_zfs(windows) {
        note("a ZFS pool member");
    }
    // RAID metadata 1.0 and 0.90 lie near the end, each aligned in its own way.
    let ends = [
        (total_bytes & !0xfff).checked_sub(8192),
        (total_bytes & !0xffff).checked_sub(65536),
    ];
    if ends
        .into_iter()
        .flatten()
        .any(|offset| matches(windows, offset, &[0xfc, 0x4e, 0x2b, 0xa9]))
    {
        note("a Linux RAID member");
    }
    found
}

fn bytes(windows: &[Window], offset: u64, length: u64) -> Option<&[u8]> {
    windows.iter().find_map(|window| {
        let start = usize::try_from(offset.checked_sub(window.offset)?).ok()?;
        window
            .bytes
            .get(start..start.checked_add(usize::try_from(length).ok()?)?)
    })
}

fn matches(windows: &[Window], offset: u64, magic: &[u8]) -> bool {
    bytes(windows, offset, magic.len() as u64) == Some(magic)
}

fn is_gpt(windows: &[Window], total_bytes: u64) -> bool {
    GPT_BLOCKS.iter().any(|&block| {
        matches(windows, block, GPT)
            || total_bytes
                .checked_sub(block)
                .is_some_and(|backup| matches(windows, backup, GPT))
    })
}

/// The two signature bytes alone prove nothing, every boot sector has them: at least one entry must
/// describe a partition, and none may be nonsense.
fn is_mbr(windows: &[Window]) -> bool {
    if !matches(windows, 510, MBR_SIGNATURE) {
        return false;
    }
    let mut partitions = 0;
    for index in 0..4 {
        let Some(entry) = bytes(
            windows,
            MBR_ENTRIES + index * MBR_ENTRY_BYTES,
            MBR_ENTRY_BYTES,
        ) else {
            return false;
        };
        let [boot, _, _, _, kind, _, _, _, start @ .., _, _, _, _] = entry else {
            return false;
        };
        if *boot != 0 && *boot != 0x80 {
            return false;
        }
        let sectors = entry
            .get(12..16)
            .is_some_and(|count| count.iter().any(|&byte| byte != 0));
        partitions += u32::from(*kind != 0 && sectors && start.iter().any(|&byte| byte != 0));
    }
    partitions > 0
}

/// The names list of a ZFS label begins with its encoding (XDR is 1) and byte order, and holds the
/// key `version` at once.
fn is_zfs(windows: &[Window]) -> bool {
    bytes(windows, ZFS_NAMES, 64).is_some_and(|list| {
        list.starts_with(&[1]) && list.windows(7).any(|word| word == b"version")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOTAL: u64 = 1 << 30;

    fn image(places: &[(u64, &[u8])]) -> Vec<Window> {
        let mut windows = vec![
            Window {
                offset: 0,
                bytes: vec![0; HEAD as usize],
            },
            Window {
                offset: TOTAL - TAIL,
                bytes: vec![0; TAIL as usize],
            },
        ];
        for (offset, bytes) in places {
            let window = windows
                .iter_mut()
                .rev()
                .find(|window| window.offset <= *offset)
                .unwrap();
            let start = (offset - window.offset) as usize;
            window.bytes[start..start + bytes.len()].copy_from_slice(bytes);
        }
        windows
    }

    #[test]
    fn an_empty_drive_holds_nothing() {
        assert!(recognise(&image(&[]), TOTAL).is_empty());
        assert!(recognise(&[], TOTAL).is_empty());
        assert!(recognise(&[], 0).is_empty());
    }

    #[test]
    fn every_magic_is_found_at_its_place_only() {
        for magic in MAGICS {
            assert_eq!(
                recognise(&image(&[(magic.offset, magic.bytes)]), TOTAL),
                [magic.name]
            );
            assert!(
                recognise(&image(&[(magic.offset + 1, magic.bytes)]), TOTAL).is_empty(),
                "{}",
                magic.name
            );
        }
    }

    #[test]
    fn partition_tables_are_told_apart() {
        let mut entry = [0_u8; 16];
        entry[4] = 0x83;
        entry[8] = 1;
        entry[13] = 8;
        let mbr: &[(u64, &[u8])] = &[(446, &entry), (510, &[0x55, 0xaa])];
        assert_eq!(recognise(&image(mbr), TOTAL), ["an MBR partition table"]);
        assert!(
            recognise(&image(&mbr[1..]), TOTAL).is_empty(),
            "a signature without partitions"
        );
        assert!(
            recognise(&image(&mbr[..1]), TOTAL).is_empty(),
            "a partition without signature"
        );
        entry[0] = 7;
        assert!(
            recognise(&image(&[(446, &entry), (510, &[0x55, 0xaa])]), TOTAL).is_empty(),
            "nonsense entry"
        );
        for place in [512, 4096, TOTAL - 512, TOTAL - 4096] {
            assert_eq!(
                recognise(&image(&[(place, b"EFI PART")]), TOTAL),
                ["a GPT partition table"],
                "{place}"
            );
        }
    }

    #[test]
    fn volumes_swap_and_pools_are_found() {
        for sector in 0..4 {
            let label: &[(u64, &[u8])] = &[
                (sector * 512, b"LABELONE"),
                (sector * 512 + 24, b"LVM2 001"),
            ];
            assert_eq!(recognise(&image(label), TOTAL), ["an LVM physical volume"]);
        }
        assert_eq!(
            recognise(&image(&[(4086, b"SWAPSPACE2")]), TOTAL),
            ["a swap area"]
        );
        assert_eq!(
            recognise(&image(&[(65526, b"SWAPSPACE2")]), TOTAL),
            ["a swap area"]
        );
        assert_eq!(
            recognise(&image(&[(16384, &[1, 1]), (16384 + 20, b"version")]), TOTAL),
            ["a ZFS pool member"]
        );
        assert_eq!(
            recognise(&image(&[(TOTAL - 8192, &[0xfc, 0x4e, 0x2b, 0xa9])]), TOTAL),
            ["a Linux RAID member"]
        );
        assert_eq!(
            recognise(&image(&[(TOTAL - 65536, &[0xfc, 0x4e, 0x2b, 0xa9])]), TOTAL),
            ["a Linux RAID member"]
        );
    }

    #[test]
    fn two_things_are_both_named() {
        let both = recognise(&image(&[(0x438, &[0x53, 0xef]), (512, b"EFI PART")]), TOTAL);
        assert_eq!(
            both,
            ["a GPT partition table", "an ext2, ext3 or ext4 file system"]
        );
    }
}
