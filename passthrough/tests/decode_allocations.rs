//! Decoding allocates nothing.
#![allow(unsafe_code)] // an allocator that counts

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use nvme_vfio_passthrough::{CommandSet, Decoder, Geometry, QueueKind};

struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

// SAFETY: every call goes to the system's allocator as it came; counting touches a thread-local cell that needs no memory of its own.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.with(|count| count.set(count.get() + 1));
        // SAFETY: the caller's promises are those that the system's allocator asks for.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the pointer came from `alloc` above, and with it from the system's allocator.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn allocations() -> u64 {
    ALLOCATIONS.with(Cell::get)
}

const GEOMETRY: Geometry = Geometry {
    command_set: CommandSet::NVM,
    blocks: 1 << 20,
    block_shift: 9,
    max_transfer: 1 << 20,
    max_blocks: 65_536,
    copy_ranges: 256,
    copy_range_blocks: 65_535,
    copy_blocks: u32::MAX,
};

#[test]
fn no_command_allocates() {
    let before = allocations();
    drop(std::hint::black_box(Box::new(1)));
    assert_eq!(allocations(), before + 1, "allocations are counted");

    let list = [0; 8192];
    let mut decoders = [Decoder::new(), Decoder::for_owner()];
    let mut passed = 0;
    let before = allocations();
    for decoder in &mut decoders {
        for queue in [QueueKind::Admin, QueueKind::Io] {
            for opcode in 0..=255 {
                // The longest lists that there are; a refused bit; a namespace that is not there.
                let words = [(12, 0), (12, 255), (10, 255), (12, 7), (2, 1)];
                for (word, value) in words {
                    let mut entry = [0; 16];
                    (entry[0], entry[1]) = (opcode, 1);
                    entry[word] = value;
                    let bytes = Decoder::list_bytes(queue, GEOMETRY.command_set, &entry);
                    let list = &list[..bytes.unwrap_or(0)];
                    passed +=
                        u32::from(decoder.decode(queue, Some(&GEOMETRY), &entry, list).is_ok());
                    entry[1] = 2;
                    passed += u32::from(decoder.decode(queue, None, &entry, list).is_ok());
                }
            }
        }
    }
    assert_eq!(allocations(), before);
    assert!(passed > 500, "{passed}");
}
