//! Splitting and joining, against plain vectors; without system calls, so that Miri can judge the pointers.

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::sync::atomic::{AtomicUsize, Ordering};

use proptest::prelude::*;

use super::*;
use crate::{Access, AddressSpace, FakeDomain, Memory, OwnedMemory, page_size};

/// Whole pages from Rust's own allocator, which count their end.
struct PageBlock {
    pointer: *mut u8,
    layout: Layout,
    dropped: Arc<AtomicUsize>,
}

// SAFETY: the block is the value's own.
unsafe impl Send for PageBlock {}
// SAFETY: zeroed heap memory, freed in drop only, which the value tells nobody else of.
unsafe impl OwnedMemory for PageBlock {
    fn region(&mut self) -> NonNull<[u8]> {
        NonNull::slice_from_raw_parts(NonNull::new(self.pointer).unwrap(), self.layout.size())
    }
}

impl Drop for PageBlock {
    fn drop(&mut self) {
        self.dropped.fetch_add(1, Ordering::Relaxed);
        // SAFETY: allocated in `buffer` with this layout.
        unsafe { dealloc(self.pointer, self.layout) };
    }
}

fn buffer(pages: usize) -> (Buffer, AddressSpace, Arc<FakeDomain>, Arc<AtomicUsize>) {
    let domain = Arc::new(FakeDomain::new());
    let space = AddressSpace::new(domain.clone());
    let layout = Layout::from_size_align(pages * page_size(), page_size()).unwrap();
    let dropped = Arc::new(AtomicUsize::new(0));
    let block = PageBlock {
        // SAFETY: the layout is not empty.
        pointer: unsafe { alloc_zeroed(layout) },
        layout,
        dropped: dropped.clone(),
    };
    let buffer = space
        .register_owned(Memory::from_owned(block), Access::READ_WRITE)
        .unwrap();
    (buffer, space, domain, dropped)
}

fn assert_send_sync<T: Send + Sync>() {}

#[test]
fn goes_between_threads() {
    assert_send_sync::<Buffer>();
    assert_send_sync::<crate::SharedMemory>();
    assert_send_sync::<crate::Pool>();
    assert_send_sync::<AddressSpace>();
    assert_send_sync::<crate::Quarantine>();
    let (mut buffer, ..) = buffer(1);
    let buffer = std::thread::spawn(move || {
        buffer[7] = 7;
        buffer
    });
    assert_eq!(buffer.join().unwrap()[7], 7);
}

#[test]
fn last_part_ends_the_mapping_once() {
    let (buffer, space, domain, dropped) = buffer(2);
    let iova = buffer.iova();
    let (a, b) = buffer.split_at(5);
    let (b, c) = b.split_at(0);
    assert!(b.is_empty() && !c.is_empty());
    assert_eq!((a.iova(), c.iova()), (iova, Iova(iova.0 + 5)));
    drop(c);
    drop(a);
    assert_eq!(
        (
            dropped.load(Ordering::Relaxed),
            domain.mappings().len(),
            space.mappings().len()
        ),
        (0, 1, 1)
    );
    drop(b);
    assert_eq!(
        (
            dropped.load(Ordering::Relaxed),
            domain.mappings().len(),
            space.mappings().len()
        ),
        (1, 0, 0)
    );
    assert_eq!(space.leaked_bytes(), 0);
}

#[test]
fn only_neighbours_of_one_block_join() {
    let (first, space, ..) = buffer(1);
    let layout = Layout::from_size_align(page_size(), page_size()).unwrap();
    let block = PageBlock {
        // SAFETY: the layout is not empty.
        pointer: unsafe { alloc_zeroed(layout) },
        layout,
        dropped: Arc::default(),
    };
    let second = space
        .register_owned(Memory::from_owned(block), Access::READ_WRITE)
        .unwrap();
    assert_eq!(
        second.iova().0,
        first.iova().0 + page_size() as u64,
        "neighbours for the device, but not one block"
    );
    let (first, second) = first.unsplit(second).unwrap_err();
    assert_eq!((first.len(), second.len()), (page_size(), page_size()));

    let (a, b) = first.split_at(10);
    let (b, c) = b.split_at(10);
    let (c, a) = c.unsplit(a).unwrap_err();
    let (a, c) = a.unsplit(c).unwrap_err();
    let whole = a.unsplit(b).unwrap().unsplit(c).unwrap();
    assert_eq!(whole.len(), page_size());
}

#[test]
fn past_the_end_gives_the_buffer_back() {
    let (buffer, ..) = buffer(1);
    let buffer = buffer.try_split_at(page_size() + 1).unwrap_err();
    let (all, none) = buffer.try_split_at(page_size()).unwrap();
    assert_eq!((all.len(), none.len()), (page_size(), 0));
    assert!(
        std::panic::catch_unwind(std::panic::AssertUnwindSafe(
            || all.split_at(page_size() + 1)
        ))
        .is_err()
    );
}

#[test]
fn the_device_sees_the_same_bytes() {
    let (mut buffer, _space, domain, _) = buffer(1);
    buffer[100..105].copy_from_slice(b"hello");
    let (_, part) = buffer.split_at(100);
    let mut seen = [0; 5];
    // SAFETY: no reference to the buffer lives.
    assert!(unsafe { domain.device_read(part.iova(), &mut seen) });
    assert_eq!(&seen, b"hello");
    // SAFETY: as above.
    assert!(unsafe { domain.device_write(part.iova(), b"world") });
    assert_eq!(&part[..5], b"world");
    // SAFETY: as above.
    let written =
        unsafe { domain.device_write(Iova(part.iova().0 + page_size() as u64 - 102), b"world") };
    assert!(!written, "past the mapping");
}

proptest! {
    #![proptest_config(nvme_vfio_seeded::seeded(200))]

    #[test]
    fn parts_behave_as_vectors(steps in proptest::collection::vec((any::<bool>(), any::<prop::sample::Index>(), any::<prop::sample::Index>(), any::<u8>()), 1..60)) {
        let (whole, space, _domain, dropped) = buffer(2);
        let start = whole.iova().0;
        // In the order of their addresses, each with what must be in it.
        let mut parts = vec![(vec![0_u8; whole.len()], whole)];
        for (join, which, where_, value) in steps {
            let index = which.index(parts.len());
            let (mut bytes, buffer) = parts.remove(index);
            if join && index < parts.len() {
                let (more, next) = parts.remove(index);
                bytes.extend(more);
                parts.insert(index, (bytes, buffer.unsplit(next).expect("neighbours")));
            } else {
                let middle = where_.index(bytes.len() + 1);
                let rest = bytes.split_off(middle);
                let (mut a, b) = buffer.split_at(middle);
                a.fill(value);
                bytes.fill(value);
                parts.splice(index..index, [(bytes, a), (rest, b)]);
            }
            let mut iova = start;
            for (bytes, part) in &parts {
                prop_assert_eq!(&part[..], &bytes[..]);
                prop_assert_eq!(part.iova().0, iova);
                prop_assert_eq!(part.domain_id(), space.id());
                iova += part.len() as u64;
            }
            prop_assert_eq!(iova, start + 2 * page_size() as u64);
        }
        drop(parts);
        prop_assert_eq!(dropped.load(Ordering::Relaxed), 1);
        prop_assert!(space.mappings().is_empty());
    }
}
