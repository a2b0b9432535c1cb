//! Asks a real container for every kind of mapping that it must refuse, and prints what it says: `limits ADDRESS [fill]`.
//!
//! What the kernel calls EINVAL is told apart before it is asked; what only the kernel can know (overlap, no memory, its own
//! limits) is told apart by its answer. With the word `fill` it maps single pages until the budget of mappings is used up.
#![allow(unsafe_code)] // memory is lent to an I/O address space that no device uses

use std::error::Error;
use std::num::NonZeroUsize;
use std::os::fd::AsFd;
use std::ptr::NonNull;

use nix::sys::mman::{MapFlags, ProtFlags, mmap_anonymous};
use nvme_vfio_dma::{Access, IommuDomain, Iova, MapError, MapRegion, page_size};
use nvme_vfio_pci::{Container, Group, Memlock, PciAddress, Sysfs};

const PAGES: usize = 16;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let address: PciAddress = arguments
        .first()
        .ok_or("usage: limits ADDRESS [fill]")?
        .parse()?;
    let fill = arguments.iter().any(|word| word == "fill");
    let sysfs = Sysfs::system();
    let group = Group::open(&sysfs, sysfs.group_of(address)?)?;
    let domain = group.domain();
    let limits = domain.limits();
    println!("page sizes: {:#x}", limits.page_sizes);
    println!("ranges: {:x?}", limits.iova_ranges);
    println!("mappings: {:?}", limits.mappings);
    if fill {
        return fill_up(&domain);
    }
    let page = page_size();
    let memory = anonymous(PAGES * page, ProtFlags::PROT_READ | ProtFlags::PROT_WRITE)?;
    let read_only = anonymous(PAGES * page, ProtFlags::PROT_READ)?;
    let both = Access::READ_WRITE;
    let base = 0x10_0000;
    let top = limits.iova_ranges.last().map_or(0, |range| *range.end());
    for (name, pointer, length, iova, access) in [
        ("good", memory, 4 * page, base, both),
        ("same again", memory, 4 * page, base, both),
        ("overlap", memory, 4 * page, base + page as u64, both),
        ("empty", memory, 0, base, both),
        ("odd length", memory, page + 1, 2 * base, both),
        ("odd IOVA", memory, page, 2 * base + 1, both),
        (
            "odd pointer",
            memory.map_addr(|a| a | 1),
            page,
            2 * base,
            both,
        ),
        ("no access", memory, page, 2 * base, Access::empty()),
        ("interrupt addresses", memory, page, 0xfee0_0000, both),
        (
            "into the interrupt addresses",
            memory,
            2 * page,
            0xfee0_0000 - page as u64,
            both,
        ),
        ("past the width", memory, page, top + 1, both),
        ("wrap", memory, 2 * page, u64::MAX - page as u64 + 1, both),
        ("read-only memory", read_only, page, 2 * base, both),
        (
            "read-only memory, read only",
            read_only,
            page,
            3 * base,
            Access::DEVICE_READ,
        ),
        ("no memory", nowhere()?, page, 4 * base, both),
        ("too much", memory, 1 << 36, 1 << 36, both),
    ] {
        let region = MapRegion {
            pointer,
            length,
            descriptor: None,
            access,
        };
        // SAFETY: the memory stays until the process ends, nobody refers to it, and no device of the group is opened.
        let answer = unsafe { domain.map(&region, Iova(iova)) };
        println!("map {name}: {}", text(answer));
    }
    for (name, iova, length) in [
        ("a hole", 8 * base, page),
        ("a part", base + page as u64, page),
        ("too long", base, 8 * page),
        ("whole", base, 4 * page),
        ("whole again", base, 4 * page),
    ] {
        println!("unmap {name}: {}", text(domain.unmap(Iova(iova), length)));
    }
    domain.unmap(Iova(3 * base), page)?;

    // A duplicate of the device's descriptor keeps the kernel from ending the mappings by itself.
    let region = MapRegion {
        pointer: memory,
        length: 4 * page,
        descriptor: None,
        access: both,
    };
    // SAFETY: as above.
    unsafe { domain.map(&region, Iova(base)) }?;
    let duplicate = group.device(address)?.as_fd().try_clone_to_owned()?;
    println!(
        "left mapped: {} bytes, locked: {}",
        domain.mapped_bytes(),
        Memlock::of_this_process().locked
    );
    drop((group, domain));
    println!(
        "domain dropped, locked: {}",
        Memlock::of_this_process().locked
    );
    drop(duplicate);
    Ok(())
}

fn fill_up(domain: &Container) -> Result<(), Box<dyn Error>> {
    let page = page_size();
    let memory = anonymous(page, ProtFlags::PROT_READ | ProtFlags::PROT_WRITE)?;
    let region = MapRegion {
        pointer: memory,
        length: page,
        descriptor: None,
        access: Access::READ_WRITE,
    };
    let mut made = 0u64;
    let error: MapError = loop {
        // SAFETY: as in `main`.
        match unsafe { domain.map(&region, Iova(0x10_0000 + made * page as u64)) } {
            Ok(()) => made += 1,
            Err(error) => break error,
        }
    };
    println!("{made} mappings, then: {error:?}");
    domain.unmap(Iova(0x10_0000), page)?;
    // SAFETY: as in `main`.
    unsafe { domain.map(&region, Iova(0x10_0000)) }?;
    println!("one unmapped, one mapped again");
    Ok(())
}

fn text<T, E: std::fmt::Debug>(answer: Result<T, E>) -> String {
    answer.map_or_else(|error| format!("{error:?}"), |_| "done".into())
}

/// Memory that stays until the process ends.
fn anonymous(length: usize, protection: ProtFlags) -> Result<NonNull<u8>, Box<dyn Error>> {
    let length = NonZeroUsize::new(length).ok_or("no length")?;
    // SAFETY: a new mapping at an address of the kernel's choice.
    let pointer = unsafe { mmap_anonymous(None, length, protection, MapFlags::MAP_PRIVATE) }?;
    Ok(pointer.cast())
}

/// An address that is reserved and has nothing behind it: reading it would fault.
fn nowhere() -> Result<NonNull<u8>, Box<dyn Error>> {
    let pointer = anonymous(page_size(), ProtFlags::PROT_NONE)?;
    // SAFETY: nobody has used what was mapped just now.
    unsafe { nix::sys::mman::munmap(pointer.cast(), page_size()) }?;
    Ok(pointer)
}
