//! Memory of somebody else that is lent to the controller, as a server does with its clients'.

use std::num::NonZeroUsize;
use std::os::fd::OwnedFd;

use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};
use nvme_vfio::{Memory, RecoveryLimit};
use nvme_vfio_dma::{Access, page_size};
use nvme_vfio_queues::{BlockCount, Command, DataPointer};

use crate::bench::*;

ways![a_part_of_a_file_is_lent_and_taken_back];

fn a_part_of_a_file_is_lent_and_taken_back(way: Way) {
    let bench = way.bench(RecoveryLimit::Function);
    let mut queue = bench.queue(4);
    let page = page_size();
    // The client's file of three pages, of which it lends the second.
    let file = memfd_create(c"client", MFdFlags::MFD_CLOEXEC).unwrap();
    nix::unistd::ftruncate(&file, 3 * page as i64).unwrap();
    for (place, byte) in [(0, 0x11_u8), (1, 0x22), (2, 0x33)] {
        let bytes = vec![byte; page];
        nix::sys::uio::pwrite(&file, &bytes, (place * page) as i64).unwrap();
    }
    let length = NonZeroUsize::new(page).unwrap();
    let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
    let offset = page as i64;
    // SAFETY: a fresh mapping, which nothing here makes a reference to.
    #[allow(unsafe_code)]
    let pointer = unsafe {
        mmap(
            None,
            length,
            protection,
            MapFlags::MAP_SHARED,
            &file,
            offset,
        )
    }
    .unwrap();
    let copy: OwnedFd = file.try_clone().unwrap();
    // SAFETY: unmapped below, after the memory was dropped; it is the file's second page.
    #[allow(unsafe_code)]
    let memory =
        unsafe { Memory::from_raw_parts_of_file(pointer.cast(), page, page, copy, page as u64) };
    let space = bench.controller.address_space();
    let before = space.mappings();
    let lent = space.map(memory, Access::READ_WRITE).unwrap();

    let data = DataPointer {
        prp1: lent.iova_at(0).unwrap().0,
        prp2: 0,
    };
    let blocks = BlockCount::new(page as u32 / bench.namespace.block_size()).unwrap();
    let command = Command::write(bench.namespace.id(), 0, blocks, data);
    // SAFETY: the memory stays lent until after the completion.
    #[allow(unsafe_code)]
    unsafe { queue.submit_raw(command, 1) }.unwrap();
    assert_eq!(result_of(&mut queue), (1, Ok(0), false));
    let buffer = bench.controller.allocate(page).unwrap();
    let buffer = queue.read_blocking(&bench.namespace, 0, buffer).unwrap();
    assert!(
        buffer.iter().all(|byte| *byte == 0x22),
        "not the second page"
    );

    drop(lent);
    assert_eq!(space.mappings(), before, "it was taken back");
    // SAFETY: nothing uses the mapping any more.
    #[allow(unsafe_code)]
    unsafe { munmap(pointer, page) }.unwrap();
}
