//! A client's reads and writes cost a server no allocation.
#![allow(unsafe_code)] // counts allocations

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use nvme_vfio::Buffer;
use nvme_vfio_benches::BrokerRig;

thread_local! {
    static COUNT: Cell<Option<u64>> = const { Cell::new(None) };
}

struct Counting;

fn count() {
    // Of a thread that is about to end nobody asks.
    let _ = COUNT.try_with(|count| count.set(count.get().map(|count| count + 1)));
}

// SAFETY: everything is passed on to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: passed on.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count();
        // SAFETY: passed on.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Allocations of this thread in `what`.
fn allocations(what: impl FnOnce()) -> u64 {
    COUNT.set(Some(0));
    what();
    COUNT.replace(None).unwrap_or(u64::MAX)
}

#[test]
fn allocations_are_counted() {
    assert_eq!(allocations(|| drop(Box::new(7))), 1);
}

/// Reads and writes of up to 32 pages, everywhere in the client's namespace, also where its two slices meet.
#[test]
fn no_read_or_write_allocates() {
    let BrokerRig {
        front,
        device,
        client,
        namespace,
        mut queue,
    } = BrokerRig::new(32).unwrap();
    let mut buffers: Vec<Buffer> = (1..=32)
        .map(|pages| client.allocate(pages * 4096).unwrap())
        .collect();
    let (mut number, mut ended, mut allocated) = (0u64, 0, 0);
    while ended < 10_000 {
        while let Some(buffer) = buffers.pop() {
            number += 1;
            let blocks = buffer.len() as u64 / u64::from(namespace.block_size());
            let seam = namespace.blocks() / 2 - blocks / 2;
            let lba = if number % 3 == 0 {
                seam
            } else {
                number * 7919 % (namespace.blocks() - blocks)
            };
            if number % 2 == 0 {
                queue.read(&namespace, lba, buffer, number).unwrap();
            } else {
                queue.write(&namespace, lba, buffer, number).unwrap();
            }
        }
        queue.ring();
        // Everything that grows has grown in the first thousand.
        let counts = ended > 1_000;
        let mut turn = || {
            let count = allocations(|| {
                front.turn(64);
            });
            allocated += if counts { count } else { 0 };
        };
        turn();
        device.step();
        turn();
        while let Some(completion) = queue.poll() {
            completion.result().unwrap();
            buffers.extend(completion.buffer);
            ended += 1;
        }
    }
    assert_eq!(allocated, 0);
}
