//! What can go wrong with memory for a device, each cause told apart.

use std::io;
use std::ops::RangeInclusive;

use thiserror::Error;

use crate::domain::Iova;

/// Why a region could not be mapped. The first nine are found before the kernel is asked, which calls them all EINVAL.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum MapError {
    /// Nothing to map.
    #[error("a region of zero bytes cannot be mapped")]
    ZeroLength,
    /// Neither reading nor writing by the device was asked for, or a right that does not exist.
    #[error("access bits {bits:#x} are not device-read, device-write or both")]
    NoAccess {
        /// What was asked for.
        bits: u32,
    },
    /// The length is not a multiple of the domain's smallest page.
    #[error("length {length:#x} is not a multiple of the IOMMU's page size, {page_size:#x}")]
    MisalignedLength {
        /// Bytes.
        length: usize,
        /// Bytes.
        page_size: u64,
    },
    /// The memory does not begin on a page.
    #[error("memory at {pointer:#x} does not begin on a page of {page_size:#x} bytes")]
    MisalignedPointer {
        /// Address in this process.
        pointer: usize,
        /// Bytes.
        page_size: u64,
    },
    /// The IOVA is not a multiple of the domain's smallest page.
    #[error("IOVA {iova} is not a multiple of the IOMMU's page size, {page_size:#x}")]
    MisalignedIova {
        /// As asked for.
        iova: Iova,
        /// Bytes.
        page_size: u64,
    },
    /// The memory would go past the end of the process's addresses.
    #[error(
        "memory at {pointer:#x} of {length:#x} bytes runs past the last address of the process"
    )]
    PointerWraps {
        /// Address in this process.
        pointer: usize,
        /// Bytes.
        length: usize,
    },
    /// The region would go past IOVA 2^64 − 1.
    #[error("IOVA {iova} with {length:#x} bytes runs past the last IOVA")]
    IovaWraps {
        /// As asked for.
        iova: Iova,
        /// Bytes.
        length: usize,
    },
    /// Part of the region is where the IOMMU maps nothing: a reserved hole, or past its address width.
    #[error("IOVA {iova} with {length:#x} bytes touches {:#x}-{:#x}, which this IOMMU does not map", hole.start(), hole.end())]
    OutsideIovaRanges {
        /// As asked for.
        iova: Iova,
        /// Bytes.
        length: usize,
        /// The unusable stretch that it runs into, both ends included.
        hole: RangeInclusive<u64>,
    },
    /// The domain holds as many mappings as it can, or as much memory as a vfio-user server takes from this client (ENOSPC). What is mapped
    /// stays good.
    #[error(
        "the device takes no more: too many mappings (VFIO's dma_entry_limit), or more memory than a vfio-user server takes from this client"
    )]
    TooManyMappings,
    /// Something else is mapped in that range (EEXIST).
    #[error("IOVA {iova} with {length:#x} bytes overlaps a mapping that is there")]
    Overlap {
        /// As asked for.
        iova: Iova,
        /// Bytes.
        length: usize,
    },
    /// The process has no memory at that address (EFAULT).
    #[error("there is no memory of this process behind {pointer:#x} with {length:#x} bytes")]
    NoMemoryBehind {
        /// Address in this process.
        pointer: usize,
        /// Bytes.
        length: usize,
    },
    /// The device was to write memory that the process itself may only read (EFAULT).
    #[error(
        "memory at {pointer:#x} with {length:#x} bytes is read-only for this process, so no device may write it"
    )]
    ReadOnlyMemory {
        /// Address in this process.
        pointer: usize,
        /// Bytes.
        length: usize,
    },
    /// The region would pin more memory than the process may lock (ENOMEM).
    #[error("mapping needs {needed} bytes of locked memory, and RLIMIT_MEMLOCK is {limit}. Run: ulimit -l {}", ample(*needed))]
    MemlockLimit {
        /// Bytes locked by the process if this mapping were made.
        needed: u64,
        /// RLIMIT_MEMLOCK of the process, in bytes.
        limit: u64,
    },
    /// The domain lives in another process, and the memory has no descriptor that could be sent there.
    #[error("the memory has no descriptor, and the device lives in another process")]
    NotShareable,
    /// Any other answer of the kernel.
    #[error("the kernel refused the mapping")]
    Os(#[source] io::Error),
}

/// The limit to ask for, in KiB: whole steps of 64 MiB. With what this one mapping needs, the next would be refused.
fn ample(needed: u64) -> u64 {
    needed.div_ceil(64 << 20).saturating_mul(64 << 10)
}

/// Why a mapping could not be ended. It must be taken for still there.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum UnmapError {
    /// Nothing is mapped in the range (the kernel says success and zero bytes).
    #[error("nothing is mapped at IOVA {iova} with {length:#x} bytes")]
    NotMapped {
        /// As asked for.
        iova: Iova,
        /// Bytes.
        length: usize,
    },
    /// The range cuts a mapping in two (EINVAL of a type 1 v2 container).
    #[error("IOVA {iova} with {length:#x} bytes is only a part of a mapping")]
    PartOfMapping {
        /// As asked for.
        iova: Iova,
        /// Bytes.
        length: usize,
    },
    /// Something was unmapped, but not as many bytes as asked for.
    #[error("asked to unmap {length:#x} bytes at IOVA {iova}, {unmapped:#x} were")]
    SizeDiffers {
        /// As asked for.
        iova: Iova,
        /// Bytes asked for.
        length: usize,
        /// Bytes that the kernel says it unmapped.
        unmapped: u64,
    },
    /// Any other answer of the kernel.
    #[error("the kernel refused to unmap")]
    Os(#[source] io::Error),
}

/// Why memory for a device could not be had.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum DmaError {
    /// Nothing was asked for.
    #[error("zero bytes were asked for")]
    ZeroLength,
    /// More was asked for than one buffer can describe.
    #[error("{length} bytes are more than the {limit} that one buffer can hold")]
    TooLong {
        /// Bytes asked for.
        length: usize,
        /// Most that is possible, in bytes.
        limit: usize,
    },
    /// The alignment is not a power of two, or more than memory is ever aligned to.
    #[error("alignment {alignment:#x} is not a power of two of at most {limit:#x}")]
    Alignment {
        /// Bytes asked for.
        alignment: usize,
        /// Most that is possible, in bytes.
        limit: usize,
    },
    /// The system has not that much memory, or may not give it.
    #[error("the system did not give {length} bytes of memory ({step})")]
    Memory {
        /// Bytes asked for.
        length: usize,
        /// The system call, or the file, that said so.
        step: &'static str,
        /// Its answer.
        #[source]
        source: io::Error,
    },
    /// The IOMMU's addresses are used up, or too broken up for a region of that length.
    #[error(
        "no free range of {length:#x} bytes aligned to {alignment:#x} is left among the IOMMU's addresses"
    )]
    OutOfIova {
        /// Bytes.
        length: u64,
        /// Bytes.
        alignment: u64,
    },
    /// The pool may not grow that far.
    #[error("the pool would need {needed} bytes, and its limit is {limit}")]
    PoolLimit {
        /// Bytes mapped by the pool if it grew.
        needed: usize,
        /// [`PoolOptions::limit`](crate::PoolOptions::limit).
        limit: usize,
    },
    /// The domain refused the mapping.
    #[error("memory could not be mapped for the device")]
    Map(#[from] MapError),
}
