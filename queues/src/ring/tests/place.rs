//! Where rings and doorbells may be, and where they may not.
#![allow(unsafe_code)] // a mapped doorbell is a pointer

use super::*;
use crate::ring::RingMemoryError;

/// Both kinds of ring at the same place.
fn both(
    memory: &Arc<SharedMemory>,
    offset: usize,
    entries: u32,
) -> [Result<u64, RingMemoryError>; 2] {
    [
        // SAFETY: nobody writes it.
        unsafe { SubmissionMemory::new(memory, offset, entries) }.map(|ring| ring.iova().0),
        CompletionMemory::new(memory, offset, entries).map(|ring| ring.iova().0),
    ]
}

#[test]
fn a_queue_has_2_to_65536_entries() {
    let memory = memory(65_536 * 64);
    let start = memory.iova().0;
    for entries in [0, 1, 65_537, u32::MAX] {
        assert_eq!(
            both(&memory, 0, entries),
            [Err(RingMemoryError::Entries(entries)); 2]
        );
    }
    for entries in [2, 3, 65_535, 65_536] {
        assert_eq!(both(&memory, 0, entries), [Ok(start); 2]);
    }
}

#[test]
fn a_ring_lies_inside_its_memory() {
    let memory = memory(3 * 4096);
    let (start, length) = (memory.iova().0, memory.len());
    for (offset, room) in [(0, length), (4096, length - 4096), (length - 4096, 4096)] {
        let expected = Ok(start + offset as u64);
        let submissions = u32::try_from(room / 64).unwrap();
        let completions = u32::try_from(room / 16).unwrap();
        assert_eq!(both(&memory, offset, submissions), [expected; 2]);
        assert_eq!(both(&memory, offset, completions)[1], expected);
        let too_short = |entries: u32, size: usize| {
            Err(RingMemoryError::TooShort {
                offset,
                bytes: entries as usize * size,
                length,
            })
        };
        assert_eq!(
            both(&memory, offset, submissions + 1),
            [too_short(submissions + 1, 64), expected]
        );
        assert_eq!(
            both(&memory, offset, completions + 1),
            [
                too_short(completions + 1, 64),
                too_short(completions + 1, 16)
            ]
        );
    }
}

#[test]
fn an_offset_past_the_end_does_not_wrap() {
    let memory = memory(8 * 4096);
    let length = memory.len();
    // 512 entries are 32,768 or 8,192 bytes: from one page below the top of the address space, both end inside the memory if the sum wraps.
    for offset in [length, length + 4096, usize::MAX - 4095, 1 << 63] {
        assert_eq!(
            both(&memory, offset, 512),
            [32_768, 8192].map(|bytes| Err(RingMemoryError::TooShort {
                offset,
                bytes,
                length
            }))
        );
    }
}

#[test]
fn a_ring_begins_on_a_page() {
    let memory = memory(4 * 4096);
    for offset in [1, 16, 64, 512, 2048, 4095, 4097, 6144, usize::MAX] {
        assert_eq!(
            both(&memory, offset, 2),
            [Err(RingMemoryError::Misaligned(offset)); 2]
        );
    }
}

#[test]
fn a_refused_ring_clears_nothing() {
    let memory = memory(4096);
    for (offset, entries) in [(0, 1), (16, 2), (0, 65_536), (4096, 2)] {
        assert!(CompletionMemory::new(&memory, offset, entries).is_err());
    }
    let bytes = bytes_at(&memory, 0, memory.len());
    assert!(bytes.iter().all(|&byte| byte == CANARY));
}

#[test]
fn errors_say_what_was_asked_and_what_there_is() {
    assert_eq!(
        RingMemoryError::Entries(1).to_string(),
        "a queue of 1 entries is not possible; 2 to 65,536 are"
    );
    let too_short = RingMemoryError::TooShort {
        offset: 4096,
        bytes: 128,
        length: 4096,
    };
    assert_eq!(
        too_short.to_string(),
        "a ring of 128 bytes at offset 4096 does not fit into 4096 bytes"
    );
    assert_eq!(
        RingMemoryError::Misaligned(64).to_string(),
        "a ring at offset 64 is not aligned to 4096 bytes"
    );
}

/// The rings outlive whoever gave the memory, and end with it.
#[test]
fn rings_keep_their_memory() {
    let memory = memory(8192);
    // SAFETY: nobody writes it.
    let submission = unsafe { SubmissionMemory::new(&memory, 0, 64) }.unwrap();
    let completion = CompletionMemory::new(&memory, 4096, 256).unwrap();
    let weak = Arc::downgrade(&memory);
    drop(memory);
    assert!(weak.upgrade().is_some());
    drop(submission);
    assert!(weak.upgrade().is_some());
    drop(completion);
    assert!(weak.upgrade().is_none());
}

#[test]
fn a_mapped_doorbell_is_one_dword_and_keeps_its_mapping() {
    let memory = memory(4096);
    let register = memory.as_ptr().cast::<u32>();
    // SAFETY: dword 3 of a page that the doorbell itself keeps.
    let doorbell = unsafe { Doorbell::mapped(register.add(3).cast(), memory.clone()) };
    doorbell.write(0x0102_0304);
    let mut expected = [CANARY; 20];
    expected[12..16].copy_from_slice(&[4, 3, 2, 1]);
    assert_eq!(bytes_at(&memory, 0, 20), expected);
    let weak = Arc::downgrade(&memory);
    drop(memory);
    assert!(weak.upgrade().is_some());
    drop(doorbell);
    assert!(weak.upgrade().is_none());
}

#[test]
fn a_doorbell_message_names_its_register() {
    let registers = Arc::new(Registers::default());
    let doorbell = Doorbell::message(registers.clone(), HEAD_DOORBELL);
    doorbell.write(9);
    assert_eq!(registers.take(), [(HEAD_DOORBELL, 9)]);
}
