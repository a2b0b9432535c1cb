//! Cases of the commands on blocks.

use super::{Attack, BOTH, CLIENT, Cases, Legitimate, OWNER, command};
use crate::command::{Access, Class, Direction, Persistence, Scope};
use crate::reason::Reason;

const LIMITED_RETRY_AND_FORCE_UNIT_ACCESS: u32 = 0b11 << 30;

/// What every command that names blocks by SLBA and NLB must refuse.
const fn outside() -> [Attack; 13] {
    use Reason::{AllNamespaces, NamespaceNotGranted, OutOfRange, ReservedBit};
    [
        command("one block past the end", BOTH, &[(10, 999), (12, 1)]).refused(OutOfRange),
        command("the first block past the end", BOTH, &[(10, 1000)]).refused(OutOfRange),
        command("the high half of SLBA", BOTH, &[(11, 1)]).refused(OutOfRange),
        command(
            "the last block there is",
            BOTH,
            &[(10, u32::MAX), (11, u32::MAX)],
        )
        .refused(OutOfRange),
        command(
            "a sum that wraps",
            BOTH,
            &[(10, u32::MAX - 6), (11, u32::MAX), (12, 7)],
        )
        .refused(OutOfRange),
        command(
            "a sum that wraps to the end",
            BOTH,
            &[(10, u32::MAX), (11, u32::MAX), (12, 1000)],
        )
        .refused(OutOfRange),
        command("namespace 0", BOTH, &[(1, 0)]).refused(NamespaceNotGranted),
        command("another namespace", BOTH, &[(1, 2)]).refused(NamespaceNotGranted),
        command("namespace FFFFFFFEh", BOTH, &[(1, u32::MAX - 1)]).refused(NamespaceNotGranted),
        command("all namespaces", BOTH, &[(1, u32::MAX)]).refused(AllNamespaces),
        command("tags", BOTH, &[(2, 1)]).refused(Reason::Protection),
        command("metadata", BOTH, &[(4, 0x1000)]).refused(Reason::Metadata),
        command("a reserved bit beside the opcode", BOTH, &[(0, 1 << 10)]).refused(ReservedBit),
    ]
}

/// The same without tags, which Write Uncorrectable has none of.
const POISON_OUTSIDE: [Attack; 13] = {
    let mut attacks = outside();
    attacks[10] = command("tags", BOTH, &[(14, 1)]).refused(Reason::ReservedBit);
    attacks
};

/// Refused beside [`outside`], for each its own.
macro_rules! attacks {
    ($common:expr; $($attack:expr),* $(,)?) => {{
        const OWN: &[Attack] = &[$($attack),*];
        const COMMON: [Attack; 13] = $common;
        &{
            let mut all = [COMMON[0]; OWN.len() + 13];
            let mut index = 0;
            while index < all.len() {
                all[index] = if index < 13 { COMMON[index] } else { OWN[index - 13] };
                index += 1;
            }
            all
        }
    }};
}

pub(crate) static FLUSH: Cases = Cases::Passes {
    legitimate: &[
        command("one namespace", BOTH, &[]).passes(Class::Flush),
        command("all, by the owner", OWNER, &[(1, u32::MAX)]).passes(Class::Flush),
    ],
    reach: &[
        command("one namespace", BOTH, &[]).reaches(Scope::Namespace, Persistence::None),
        command("all", OWNER, &[(1, u32::MAX)]).reaches(Scope::AllNamespaces, Persistence::None),
    ],
    attacks: &[
        command("all namespaces", CLIENT, &[(1, u32::MAX)]).refused(Reason::AllNamespaces),
        command("namespace 0", BOTH, &[(1, 0)]).refused(Reason::NamespaceNotGranted),
        command("another namespace", BOTH, &[(1, 2)]).refused(Reason::NamespaceNotGranted),
        command("blocks", BOTH, &[(12, 7)]).refused(Reason::ReservedBit),
        command("data", BOTH, &[(6, 0x1000)]).refused(Reason::ReservedBit),
    ],
};

pub(crate) static WRITE: Cases = Cases::Passes {
    legitimate: &[
        command("one block", BOTH, &[]).sends(Class::Write, 4096),
        command("a mebibyte", BOTH, &[(10, 100), (12, 255)]).sends(Class::Write, 1 << 20),
        command(
            "to the medium",
            BOTH,
            &[(12, LIMITED_RETRY_AND_FORCE_UNIT_ACCESS)],
        )
        .sends(Class::Write, 4096),
        command("with hints", BOTH, &[(13, 0x47)]).sends(Class::Write, 4096),
    ],
    reach: &[
        command("the first block", BOTH, &[]).touches(Persistence::Media, &[(0, 1, Access::Write)]),
        command("the last blocks", BOTH, &[(10, 992), (12, 7)])
            .touches(Persistence::Media, &[(992, 8, Access::Write)]),
    ],
    attacks: attacks![outside();
        command("more than the limit", BOTH, &[(12, 256)]).refused(Reason::TooLong),
        command("a directive", BOTH, &[(12, 1 << 20)]).refused(Reason::Directive),
        command("a placement handle", BOTH, &[(12, 2 << 20), (13, 1 << 16)])
            .refused(Reason::Directive),
        command("a stream without its type", BOTH, &[(13, 1 << 16)]).refused(Reason::Directive),
        command("a key tag type", BOTH, &[(12, 1 << 16)]).refused(Reason::Directive),
        command("a key", BOTH, &[(13, 1 << 8)]).refused(Reason::Directive),
        command("protection information", BOTH, &[(12, 1 << 29)]).refused(Reason::Protection),
        command("a storage tag check", BOTH, &[(12, 1 << 24)]).refused(Reason::Protection),
        command("a reference tag", BOTH, &[(14, 5)]).refused(Reason::Protection),
    ],
};

pub(crate) static READ: Cases = Cases::Passes {
    legitimate: &[
        command("one block", BOTH, &[]).receives(Class::Read, 4096),
        command("a mebibyte", BOTH, &[(10, 100), (12, 255)]).receives(Class::Read, 1 << 20),
        command(
            "from the medium",
            BOTH,
            &[(12, LIMITED_RETRY_AND_FORCE_UNIT_ACCESS)],
        )
        .receives(Class::Read, 4096),
        command("ahead", BOTH, &[(13, 7)]).receives(Class::Read, 4096),
    ],
    reach: &[
        command("the first block", BOTH, &[]).touches(Persistence::None, &[(0, 1, Access::Read)]),
        command("the last blocks", BOTH, &[(10, 992), (12, 7)])
            .touches(Persistence::None, &[(992, 8, Access::Read)]),
    ],
    attacks: attacks![outside();
        command("more than the limit", BOTH, &[(12, 256)]).refused(Reason::TooLong),
        command("a directive", BOTH, &[(12, 1 << 20)]).refused(Reason::ReservedBit),
        command("a key tag type", BOTH, &[(12, 1 << 16)]).refused(Reason::Directive),
        command("a key", BOTH, &[(13, 1 << 15)]).refused(Reason::Directive),
        command("protection information", BOTH, &[(12, 1 << 26)]).refused(Reason::Protection),
    ],
};

pub(crate) static WRITE_UNCORRECTABLE: Cases = Cases::Passes {
    legitimate: &[
        command("one block", BOTH, &[]).passes(Class::Poison),
        command("more than a transfer", BOTH, &[(12, 511)]).passes(Class::Poison),
    ],
    reach: &[command("the last blocks", BOTH, &[(10, 488), (12, 511)])
        .touches(Persistence::Media, &[(488, 512, Access::Poison)])],
    attacks: attacks![POISON_OUTSIDE;
        command("more than the limit", BOTH, &[(12, 512)]).refused(Reason::TooLong),
        command("a directive", BOTH, &[(12, 2 << 20)]).refused(Reason::Directive),
        command("a placement handle", BOTH, &[(13, 1 << 31)]).refused(Reason::Directive),
        command("data", BOTH, &[(6, 0x1000)]).refused(Reason::ReservedBit),
    ],
};

pub(crate) static COMPARE: Cases = Cases::Passes {
    legitimate: &[
        command("one block", BOTH, &[]).sends(Class::Compare, 4096),
        command("a mebibyte", BOTH, &[(12, 255)]).sends(Class::Compare, 1 << 20),
    ],
    reach: &[
        command("the last block, which it tells of", BOTH, &[(10, 999)])
            .touches(Persistence::None, &[(999, 1, Access::Probe)]),
    ],
    attacks: attacks![outside();
        command("more than the limit", BOTH, &[(12, 256)]).refused(Reason::TooLong),
        command("fused with a write", BOTH, &[(0, 1 << 8)]).refused(Reason::Fused),
        command("a key", BOTH, &[(13, 1)]).refused(Reason::Directive),
        command("a key tag type", BOTH, &[(12, 1 << 19)]).refused(Reason::Directive),
        command("no check of protection", BOTH, &[(12, 1 << 28)]).refused(Reason::Protection),
    ],
};

pub(crate) static WRITE_ZEROES: Cases = Cases::Passes {
    legitimate: &[
        command("one block", BOTH, &[]).passes(Class::WriteZeroes),
        command("more than a transfer", BOTH, &[(12, 511)]).passes(Class::WriteZeroes),
        command("and deallocate", BOTH, &[(12, 1 << 25 | 7)]).passes(Class::WriteZeroes),
    ],
    reach: &[
        command("the last blocks", BOTH, &[(10, 900), (12, 99)])
            .touches(Persistence::Media, &[(900, 100, Access::Zero)]),
        command("and deallocate", BOTH, &[(12, 1 << 25)])
            .touches(Persistence::Media, &[(0, 1, Access::Zero)]),
    ],
    attacks: attacks![outside();
        command("more than the limit", BOTH, &[(12, 512)]).refused(Reason::TooLong),
        command("the whole namespace", BOTH, &[(12, 1 << 23)]).refused(Reason::WholeNamespace),
        command("the whole namespace, deallocated", BOTH, &[(12, 0b101 << 23)])
            .refused(Reason::WholeNamespace),
        command("a directive", BOTH, &[(12, 1 << 22)]).refused(Reason::Directive),
        command("a placement handle", BOTH, &[(13, 1 << 16)]).refused(Reason::Directive),
        command("protection information", BOTH, &[(12, 1 << 29)]).refused(Reason::Protection),
        command("data", BOTH, &[(8, 0x1000)]).refused(Reason::ReservedBit),
    ],
};

pub(crate) static VERIFY: Cases = Cases::Passes {
    legitimate: &[
        command("one block", BOTH, &[]).passes(Class::Verify),
        command("more than a transfer", BOTH, &[(12, 511)]).passes(Class::Verify),
    ],
    reach: &[
        command("the last block, which it tells of", BOTH, &[(10, 999)])
            .touches(Persistence::None, &[(999, 1, Access::Probe)]),
    ],
    attacks: attacks![outside();
        command("more than the limit", BOTH, &[(12, 512)]).refused(Reason::TooLong),
        command("a key", BOTH, &[(13, 1)]).refused(Reason::Directive),
        command("deallocation", BOTH, &[(12, 1 << 25)]).refused(Reason::ReservedBit),
        command("data", BOTH, &[(9, 1)]).refused(Reason::ReservedBit),
    ],
};

/// A range of Dataset Management.
const fn range(attributes: u32, blocks: u32, slba: u64) -> [u8; 16] {
    (attributes as u128 | (blocks as u128) << 32 | (slba as u128) << 64).to_le_bytes()
}

pub(crate) static DATASET_MANAGEMENT: Cases = Cases::Passes {
    legitimate: &[
        command("deallocate", BOTH, &[(11, 4)])
            .with(&[range(0, 8, 0)])
            .sends(Class::Deallocate, 16),
        command("three ranges", BOTH, &[(10, 2), (11, 4)])
            .with(&[range(0, 8, 0), range(0, 1, 999), range(0, 1000, 0)])
            .sends(Class::Deallocate, 48),
        command("hints", BOTH, &[(11, 3)])
            .with(&[range(0x0400_0736, 8, 0)])
            .sends(Class::Deallocate, 16),
        command("a range of nothing", BOTH, &[(11, 4)])
            .with(&[range(0, 0, 0)])
            .sends(Class::Deallocate, 16),
    ],
    reach: &[
        command("two ranges, to the end", BOTH, &[(10, 1), (11, 4)])
            .with(&[range(0, 1, 999), range(0, 1000, 0)])
            .touches(
                Persistence::Media,
                &[(999, 1, Access::Deallocate), (0, 1000, Access::Deallocate)],
            ),
        command("a hint", BOTH, &[(11, 1)])
            .with(&[range(1, 8, 16)])
            .touches(Persistence::None, &[(16, 8, Access::Hint)]),
    ],
    attacks: &[
        command("one block past the end", BOTH, &[(11, 4)])
            .with(&[range(0, 2, 999)])
            .refused(Reason::OutOfRange),
        command("past the end in the last range", BOTH, &[(10, 1), (11, 4)])
            .with(&[range(0, 8, 0), range(0, 1, 1000)])
            .refused(Reason::OutOfRange),
        command("all that a range can say", BOTH, &[(11, 4)])
            .with(&[range(0, u32::MAX, 0)])
            .refused(Reason::OutOfRange),
        command("a sum that wraps", BOTH, &[(11, 4)])
            .with(&[range(0, 8, u64::MAX - 3)])
            .refused(Reason::OutOfRange),
        command("nothing, outside", BOTH, &[(11, 4)])
            .with(&[range(0, 0, 1000)])
            .refused(Reason::OutOfRange),
        command("a hint outside", BOTH, &[(11, 1)])
            .with(&[range(0, 1, 1000)])
            .refused(Reason::OutOfRange),
        command("a list that is short", BOTH, &[(10, 1), (11, 4)])
            .with(&[range(0, 8, 0)])
            .refused(Reason::RangeList),
        command("a list that is long", BOTH, &[(11, 4)])
            .with(&[range(0, 8, 0), range(0, 8, 0)])
            .refused(Reason::RangeList),
        command("another namespace", BOTH, &[(1, 2), (11, 4)])
            .with(&[range(0, 8, 0)])
            .refused(Reason::NamespaceNotGranted),
        command("all namespaces", BOTH, &[(1, u32::MAX), (11, 4)])
            .with(&[range(0, 8, 0)])
            .refused(Reason::AllNamespaces),
        command("a reserved attribute", BOTH, &[(11, 12)])
            .with(&[range(0, 8, 0)])
            .refused(Reason::ReservedBit),
        command("more ranges than NR has bits", BOTH, &[(10, 256), (11, 4)])
            .with(&[range(0, 8, 0)])
            .refused(Reason::ReservedBit),
    ],
};

/// The first half of a Copy's source range.
const fn source(slba: u64) -> [u8; 16] {
    ((slba as u128) << 64).to_le_bytes()
}

/// The second half, its number of blocks counted from 1.
const fn long(blocks: u16) -> [u8; 16] {
    (blocks as u128 - 1).to_le_bytes()
}

const COPY_FUA: (usize, u32) = (12, 1 << 30);

pub(crate) static COPY: Cases = Cases::Passes {
    legitimate: &[
        command("eight blocks", BOTH, &[(10, 500)])
            .with(&[source(0), long(8)])
            .sends(Class::Copy, 32),
        command(
            "two ranges, to the medium",
            BOTH,
            &[(10, 500), (12, 1 << 30 | 1)],
        )
        .with(&[source(0), long(64), source(900), long(64)])
        .sends(Class::Copy, 64),
    ],
    reach: &[
        command("one range", BOTH, &[(10, 500), COPY_FUA])
            .with(&[source(7), long(8)])
            .touches(
                Persistence::Media,
                &[(500, 8, Access::Write), (7, 8, Access::Read)],
            ),
        command("two ranges to the end", BOTH, &[(10, 990), (12, 1)])
            .with(&[source(999), long(1), source(0), long(9)])
            .touches(
                Persistence::Media,
                &[
                    (990, 10, Access::Write),
                    (999, 1, Access::Read),
                    (0, 9, Access::Read),
                ],
            ),
    ],
    attacks: &[
        command(
            "to past the end, by the sum of the sources",
            BOTH,
            &[(10, 991), (12, 1)],
        )
        .with(&[source(0), long(5), source(0), long(5)])
        .refused(Reason::OutOfRange),
        command("from past the end", BOTH, &[])
            .with(&[source(999), long(2)])
            .refused(Reason::OutOfRange),
        command("from past the end, in the last range", BOTH, &[(12, 1)])
            .with(&[source(0), long(1), source(1000), long(1)])
            .refused(Reason::OutOfRange),
        command("from a sum that wraps", BOTH, &[])
            .with(&[source(u64::MAX), long(2)])
            .refused(Reason::OutOfRange),
        command(
            "to a sum that wraps",
            BOTH,
            &[(10, u32::MAX), (11, u32::MAX)],
        )
        .with(&[source(0), long(2)])
        .refused(Reason::OutOfRange),
        command("more blocks than a range may have", BOTH, &[])
            .with(&[source(0), long(65)])
            .refused(Reason::CopyTooLong),
        command("more blocks than a copy may have", BOTH, &[(12, 2)])
            .with(&[source(0), long(64), source(0), long(64), source(0), long(1)])
            .refused(Reason::CopyTooLong),
        command("more ranges than a copy may have", BOTH, &[(12, 4)])
            .with(&[
                source(0),
                long(1),
                source(0),
                long(1),
                source(0),
                long(1),
                source(0),
                long(1),
                source(0),
                long(1),
            ])
            .refused(Reason::CopyTooLong),
        command(
            "a format that names other namespaces",
            BOTH,
            &[(12, 2 << 8)],
        )
        .with(&[source(0), long(1)])
        .refused(Reason::IllegalValue),
        command("a format for other guards", BOTH, &[(12, 1 << 8)])
            .with(&[source(0), long(1)])
            .refused(Reason::IllegalValue),
        command("another namespace in a reserved place", BOTH, &[])
            .with(&[[2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], long(1)])
            .refused(Reason::ReservedBit),
        command("a source option", BOTH, &[])
            .with(&[
                source(0),
                [0, 0, 0, 0, 0, 0, 0, 0x80, 0, 0, 0, 0, 0, 0, 0, 0],
            ])
            .refused(Reason::ReservedBit),
        command("a key", BOTH, &[])
            .with(&[source(0), [0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]])
            .refused(Reason::ReservedBit),
        command("a tag", BOTH, &[])
            .with(&[source(0), [0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0]])
            .refused(Reason::Protection),
        command("a tag mask", BOTH, &[])
            .with(&[source(0), [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]])
            .refused(Reason::Protection),
        command("a list that is short", BOTH, &[(12, 1)])
            .with(&[source(0), long(1)])
            .refused(Reason::RangeList),
        command("another namespace", BOTH, &[(1, 2)])
            .with(&[source(0), long(1)])
            .refused(Reason::NamespaceNotGranted),
        command("all namespaces", BOTH, &[(1, u32::MAX)])
            .with(&[source(0), long(1)])
            .refused(Reason::AllNamespaces),
        command("protection for reading", BOTH, &[(12, 1 << 12)])
            .with(&[source(0), long(1)])
            .refused(Reason::Protection),
        command("a directive", BOTH, &[(12, 1 << 20)])
            .with(&[source(0), long(1)])
            .refused(Reason::Directive),
        command("a placement handle", BOTH, &[(13, 1 << 16)])
            .with(&[source(0), long(1)])
            .refused(Reason::Directive),
        command("a key tag type", BOTH, &[(12, 1 << 16)])
            .with(&[source(0), long(1)])
            .refused(Reason::Directive),
    ],
};

/// A direction that only a vendor's command has.
pub(crate) static VENDOR: Cases = Cases::Passes {
    legitimate: &[
        Legitimate {
            command: command("both ways", OWNER, &[(0, 0xc3), (2, 1), (15, u32::MAX)]),
            class: Class::Vendor,
            direction: Direction::Both,
            length: 0,
        },
        command("without data", OWNER, &[(0, 0xc0), (1, u32::MAX)]).passes(Class::Vendor),
    ],
    reach: &[
        command("anything", OWNER, &[(0, 0xc1)]).reaches(Scope::Subsystem, Persistence::Permanent)
    ],
    attacks: &[
        command("by a client", CLIENT, &[(0, 0xc0)]).refused(Reason::NeverPasses),
        command("a metadata pointer", OWNER, &[(0, 0xc2), (5, 1)]).refused(Reason::Metadata),
        command("a scatter gather list", OWNER, &[(0, 0x40c2)]).refused(Reason::ScatterGatherList),
        command("fused", OWNER, &[(0, 0x1c2)]).refused(Reason::Fused),
    ],
};
