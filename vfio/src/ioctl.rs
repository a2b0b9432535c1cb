//! VFIO's ioctls, each as a safe function.
//!
//! Unsafe is needed here because an ioctl takes an address that the kernel reads and writes. Every function below gives it
//! a structure of the size that the request says, so the rest of the crate needs no unsafe code for them; the one exception is
//! [`map_dma`], whose effect outlives the call.
#![allow(unsafe_code)]

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use vfio_bindings::bindings::vfio as uapi;
use vmm_sys_util::ioctl::{
    ioctl, ioctl_with_mut_ptr, ioctl_with_mut_ref, ioctl_with_ptr, ioctl_with_ref, ioctl_with_val,
};
use vmm_sys_util::ioctl_io_nr;

const TYPE: u32 = uapi::VFIO_TYPE as u32;
const BASE: u32 = uapi::VFIO_BASE;

ioctl_io_nr!(VFIO_GET_API_VERSION, TYPE, BASE);
ioctl_io_nr!(VFIO_CHECK_EXTENSION, TYPE, BASE + 1);
ioctl_io_nr!(VFIO_SET_IOMMU, TYPE, BASE + 2);
ioctl_io_nr!(VFIO_GROUP_GET_STATUS, TYPE, BASE + 3);
ioctl_io_nr!(VFIO_GROUP_SET_CONTAINER, TYPE, BASE + 4);
ioctl_io_nr!(VFIO_GROUP_GET_DEVICE_FD, TYPE, BASE + 6);
ioctl_io_nr!(VFIO_DEVICE_GET_INFO, TYPE, BASE + 7);
ioctl_io_nr!(VFIO_DEVICE_GET_REGION_INFO, TYPE, BASE + 8);
ioctl_io_nr!(VFIO_DEVICE_GET_IRQ_INFO, TYPE, BASE + 9);
ioctl_io_nr!(VFIO_DEVICE_SET_IRQS, TYPE, BASE + 10);
ioctl_io_nr!(VFIO_DEVICE_RESET, TYPE, BASE + 11);
ioctl_io_nr!(VFIO_DEVICE_GET_PCI_HOT_RESET_INFO, TYPE, BASE + 12);
ioctl_io_nr!(VFIO_IOMMU_GET_INFO, TYPE, BASE + 12);
ioctl_io_nr!(VFIO_IOMMU_MAP_DMA, TYPE, BASE + 13);
ioctl_io_nr!(VFIO_IOMMU_UNMAP_DMA, TYPE, BASE + 14);

/// The longest answer that is read from the kernel, in bytes. The longest known, hot-reset information of a full bus, is 2 KiB.
const LONGEST_ANSWER: usize = 1 << 20;

/// Makes an ioctl's answer a result, and asks again when a signal came in between.
fn ask(mut request: impl FnMut() -> i32) -> io::Result<i32> {
    loop {
        let answer = request();
        if answer >= 0 {
            return Ok(answer);
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}

/// `VFIO_GET_API_VERSION` of a container.
pub(crate) fn api_version(container: BorrowedFd<'_>) -> io::Result<i32> {
    // SAFETY: the request takes no argument.
    ask(|| unsafe { ioctl(&container, VFIO_GET_API_VERSION()) })
}

/// `VFIO_CHECK_EXTENSION` of a container.
pub(crate) fn has_extension(container: BorrowedFd<'_>, extension: u32) -> io::Result<bool> {
    // SAFETY: the argument is a number.
    let answer =
        ask(|| unsafe { ioctl_with_val(&container, VFIO_CHECK_EXTENSION(), extension.into()) })?;
    Ok(answer > 0)
}

/// `VFIO_SET_IOMMU` of a container.
pub(crate) fn set_iommu(container: BorrowedFd<'_>, kind: u32) -> io::Result<()> {
    // SAFETY: the argument is a number.
    ask(|| unsafe { ioctl_with_val(&container, VFIO_SET_IOMMU(), kind.into()) }).map(drop)
}

/// `VFIO_GROUP_GET_STATUS`: the flags.
pub(crate) fn group_flags(group: BorrowedFd<'_>) -> io::Result<u32> {
    let mut status = uapi::vfio_group_status {
        argsz: size_of::<uapi::vfio_group_status>() as u32,
        flags: 0,
    };
    // SAFETY: the kernel reads and writes a structure of `argsz` bytes, which lives here.
    ask(|| unsafe { ioctl_with_mut_ref(&group, VFIO_GROUP_GET_STATUS(), &mut status) })?;
    Ok(status.flags)
}

/// `VFIO_GROUP_SET_CONTAINER`.
pub(crate) fn set_container(group: BorrowedFd<'_>, container: BorrowedFd<'_>) -> io::Result<()> {
    let descriptor: i32 = container.as_raw_fd();
    // SAFETY: the kernel reads an `i32`.
    ask(|| unsafe { ioctl_with_ref(&group, VFIO_GROUP_SET_CONTAINER(), &descriptor) }).map(drop)
}

/// `VFIO_GROUP_GET_DEVICE_FD`.
pub(crate) fn device_descriptor(group: BorrowedFd<'_>, name: &CStr) -> io::Result<OwnedFd> {
    // SAFETY: the kernel reads a string that ends in a zero byte.
    let descriptor =
        ask(|| unsafe { ioctl_with_ptr(&group, VFIO_GROUP_GET_DEVICE_FD(), name.as_ptr()) })?;
    // SAFETY: the kernel made this descriptor for us just now; nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}

/// `VFIO_DEVICE_GET_INFO`, without the capabilities (none is defined for PCI that this crate uses).
pub(crate) fn device_info(device: BorrowedFd<'_>) -> io::Result<uapi::vfio_device_info> {
    let mut info = uapi::vfio_device_info {
        argsz: size_of::<uapi::vfio_device_info>() as u32,
        ..Default::default()
    };
    // SAFETY: the kernel reads and writes at most `argsz` bytes, and the structure lives here.
    ask(|| unsafe { ioctl_with_mut_ref(&device, VFIO_DEVICE_GET_INFO(), &mut info) })?;
    Ok(info)
}

/// `VFIO_DEVICE_GET_IRQ_INFO`.
pub(crate) fn irq_info(device: BorrowedFd<'_>, index: u32) -> io::Result<uapi::vfio_irq_info> {
    let mut info = uapi::vfio_irq_info {
        argsz: size_of::<uapi::vfio_irq_info>() as u32,
        index,
        ..Default::default()
    };
    // SAFETY: the kernel reads and writes at most `argsz` bytes, and the structure lives here.
    ask(|| unsafe { ioctl_with_mut_ref(&device, VFIO_DEVICE_GET_IRQ_INFO(), &mut info) })?;
    Ok(info)
}

/// `VFIO_DEVICE_GET_REGION_INFO` with its capabilities, as bytes.
pub(crate) fn region_info(device: BorrowedFd<'_>, index: u32) -> io::Result<Vec<u8>> {
    let head = size_of::<uapi::vfio_region_info>();
    answer(
        device,
        VFIO_DEVICE_GET_REGION_INFO(),
        head,
        &[(8, index)],
        |_| None,
    )
}

/// `VFIO_IOMMU_GET_INFO` with its capabilities, as bytes.
pub(crate) fn iommu_info(container: BorrowedFd<'_>) -> io::Result<Vec<u8>> {
    let head = size_of::<uapi::vfio_iommu_type1_info>();
    answer(container, VFIO_IOMMU_GET_INFO(), head, &[], |_| None)
}

/// `VFIO_DEVICE_GET_PCI_HOT_RESET_INFO`, as bytes.
pub(crate) fn hot_reset_info(device: BorrowedFd<'_>) -> io::Result<Vec<u8>> {
    // `argsz`, `flags`, `count`, then `count` devices of 8 bytes. This request alone does not write back the `argsz` it
    // wants; it fails with ENOSPC and tells the count.
    let wants = |bytes: &[u8]| {
        let count = crate::chain::u32_at(bytes, 8)? as usize;
        count.checked_mul(8)?.checked_add(12)
    };
    answer(device, VFIO_DEVICE_GET_PCI_HOT_RESET_INFO(), 12, &[], wants)
}

/// Asks for an answer of unknown length: first its head, then, when the kernel says that there is more, the whole.
///
/// `fields` are set in the request as (offset, value). `on_nospace` tells the length wanted after ENOSPC.
fn answer(
    descriptor: BorrowedFd<'_>,
    request: libc::c_ulong,
    head: usize,
    fields: &[(usize, u32)],
    on_nospace: impl Fn(&[u8]) -> Option<usize>,
) -> io::Result<Vec<u8>> {
    let mut length = head;
    // More than two rounds only when the answer grows in between.
    for _ in 0..8 {
        // Words of 64 bits, for the alignment of the structures.
        let mut words = vec![0u64; length.div_ceil(8)];
        set(&mut words, 0, length as u32);
        for &(offset, value) in fields {
            set(&mut words, offset, value);
        }
        // SAFETY: the kernel reads and writes at most `argsz` bytes, which is `length`, at most the size of `words`;
        // any bytes are good words.
        let result =
            ask(|| unsafe { ioctl_with_mut_ptr(&descriptor, request, words.as_mut_ptr()) });
        let mut bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
        bytes.truncate(length);
        let wanted = match result {
            Ok(_) => crate::chain::u32_at(&bytes, 0).unwrap_or(0) as usize,
            Err(error) if error.raw_os_error() == Some(libc::ENOSPC) => {
                on_nospace(&bytes).ok_or(error)?
            }
            Err(error) => return Err(error),
        };
        if wanted <= length {
            return Ok(bytes);
        }
        if wanted > LONGEST_ANSWER {
            break;
        }
        length = wanted;
    }
    Err(io::Error::new(
        io::ErrorKind::InvalidData,
        "the kernel's answer has no end",
    ))
}

/// Sets the `u32` at a byte offset (a multiple of 4) of a buffer of words.
fn set(words: &mut [u64], offset: usize, value: u32) {
    if let Some(word) = words.get_mut(offset / 8) {
        let mut bytes = word.to_ne_bytes();
        let at = offset % 8;
        if let Some(field) = bytes.get_mut(at..at + 4) {
            field.copy_from_slice(&value.to_ne_bytes());
        }
        *word = u64::from_ne_bytes(bytes);
    }
}

/// What `VFIO_DEVICE_SET_IRQS` carries.
#[derive(Debug)]
pub(crate) enum IrqPayload<'a> {
    /// No data; the count of interrupts.
    None(u32),
    /// One byte for each interrupt.
    Bool(&'a [bool]),
    /// One eventfd for each interrupt, or none to disable it.
    Eventfd(&'a [Option<BorrowedFd<'a>>]),
}

/// `VFIO_DEVICE_SET_IRQS`.
pub(crate) fn set_irqs(
    device: BorrowedFd<'_>,
    index: u32,
    start: u32,
    action: u32,
    payload: &IrqPayload<'_>,
) -> io::Result<()> {
    let (kind, count, data): (u32, usize, Vec<u8>) = match payload {
        IrqPayload::None(count) => (uapi::VFIO_IRQ_SET_DATA_NONE, *count as usize, Vec::new()),
        IrqPayload::Bool(flags) => (
            uapi::VFIO_IRQ_SET_DATA_BOOL,
            flags.len(),
            flags.iter().map(|&flag| u8::from(flag)).collect(),
        ),
        IrqPayload::Eventfd(descriptors) => (
            uapi::VFIO_IRQ_SET_DATA_EVENTFD,
            descriptors.len(),
            descriptors
                .iter()
                .flat_map(|fd| fd.map_or(-1, |fd| fd.as_raw_fd()).to_ne_bytes())
                .collect(),
        ),
    };
    // `argsz`, `flags`, `index`, `start`, `count`, then the data.
    let head = size_of::<uapi::vfio_irq_set>();
    let length = head + data.len();
    let mut bytes = Vec::with_capacity(length.next_multiple_of(8));
    for field in [length as u32, kind | action, index, start, count as u32] {
        bytes.extend(field.to_ne_bytes());
    }
    bytes.extend(data);
    bytes.resize(length.next_multiple_of(8), 0);
    let words: Vec<u64> = bytes
        .as_chunks::<8>()
        .0
        .iter()
        .map(|chunk| u64::from_ne_bytes(*chunk))
        .collect();
    // SAFETY: the kernel reads `argsz` bytes, which is `length`, at most the size of `words`. The descriptors in it are
    // borrowed for this call, in which the kernel takes its own references.
    ask(|| unsafe { ioctl_with_ptr(&device, VFIO_DEVICE_SET_IRQS(), words.as_ptr()) }).map(drop)
}

/// `VFIO_DEVICE_RESET`.
pub(crate) fn reset(device: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: the request takes no argument.
    ask(|| unsafe { ioctl(&device, VFIO_DEVICE_RESET()) }).map(drop)
}

/// `VFIO_IOMMU_MAP_DMA`.
///
/// # Safety
///
/// The device may read (and, with `VFIO_DMA_MAP_FLAG_WRITE`, write) the memory from now on, until it is unmapped or the container
/// is gone: it must stay with whoever agreed to that.
pub(crate) unsafe fn map_dma(
    container: BorrowedFd<'_>,
    flags: u32,
    vaddr: u64,
    iova: u64,
    size: u64,
) -> io::Result<()> {
    let map = uapi::vfio_iommu_type1_dma_map {
        argsz: size_of::<uapi::vfio_iommu_type1_dma_map>() as u32,
        flags,
        vaddr,
        iova,
        size,
    };
    // SAFETY: the kernel reads the structure, which lives here; the caller answers for the memory.
    ask(|| unsafe { ioctl_with_ref(&container.as_fd(), VFIO_IOMMU_MAP_DMA(), &map) }).map(drop)
}

/// `VFIO_IOMMU_UNMAP_DMA`: how many bytes were unmapped. Taking memory from a device endangers nobody's memory.
pub(crate) fn unmap_dma(container: BorrowedFd<'_>, iova: u64, size: u64) -> io::Result<u64> {
    let mut unmap = uapi::vfio_iommu_type1_dma_unmap {
        argsz: size_of::<uapi::vfio_iommu_type1_dma_unmap>() as u32,
        iova,
        size,
        ..Default::default()
    };
    // SAFETY: the kernel reads and writes the structure, which lives here; without flags there is no data behind it.
    ask(|| unsafe { ioctl_with_mut_ref(&container, VFIO_IOMMU_UNMAP_DMA(), &mut unmap) })?;
    Ok(unmap.size)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn request_numbers_are_the_kernels() {
        // `_IO(';', 100 + n)` of <linux/vfio.h>.
        assert_eq!(VFIO_GET_API_VERSION(), 0x3b64);
        assert_eq!(VFIO_IOMMU_UNMAP_DMA(), 0x3b72);
    }

    #[test]
    fn sets_fields_of_words() {
        let mut words = [0u64; 2];
        set(&mut words, 4, 7);
        set(&mut words, 8, 9);
        set(&mut words, 64, 1);
        let bytes: Vec<u8> = words.iter().flat_map(|w| w.to_ne_bytes()).collect();
        assert_eq!(crate::chain::u32_at(&bytes, 4), Some(7));
        assert_eq!(crate::chain::u32_at(&bytes, 8), Some(9));
    }

    #[test]
    fn a_wrong_descriptor_is_an_error() {
        let null = std::fs::File::open("/dev/null").unwrap();
        assert_eq!(
            iommu_info(null.as_fd()).unwrap_err().raw_os_error(),
            Some(libc::ENOTTY)
        );
        assert_eq!(
            group_flags(null.as_fd()).unwrap_err().raw_os_error(),
            Some(libc::ENOTTY)
        );
    }
}
