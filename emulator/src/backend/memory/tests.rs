use nvme_vfio_dma::DomainLimits;

use super::*;
use crate::iommu::SoftwareIommu;

const SIZE: u64 = 16 << 20;

fn iommu() -> SoftwareIommu {
    SoftwareIommu::new(DomainLimits {
        iova_ranges: vec![0..=u64::MAX],
        page_sizes: !0xfff,
        mappings: None,
    })
}

/// A namespace on which every byte differs from those around it.
fn backend() -> MemoryBackend {
    let mut backend = MemoryBackend::default();
    backend.open(1, SIZE).unwrap();
    let bytes = backend.media.get_mut(&1).unwrap().range(0, SIZE).unwrap();
    for (place, byte) in bytes.iter_mut().enumerate() {
        *byte = (place.wrapping_mul(0x9e37_79b9) >> 16) as u8;
    }
    backend
}

fn contents(backend: &mut MemoryBackend) -> Vec<u8> {
    let medium = backend.media.get_mut(&1).unwrap();
    medium.range(0, SIZE).unwrap().to_vec()
}

fn request(tag: u32, operation: Operation, offset: u64, length: u64) -> Request {
    Request {
        tag,
        operation,
        namespace: 1,
        offset,
        length,
        segments: 0..0,
        force_unit_access: false,
    }
}

fn copy_of(offset: u64) -> Operation {
    Operation::Copy {
        namespace: 1,
        offset,
    }
}

/// Submits requests and polls until all have ended: in which order, and after how many polls each.
fn run(backend: &mut MemoryBackend, requests: &[Request]) -> Vec<(u32, usize)> {
    let iommu = iommu();
    let memory = iommu.memory(true, None);
    backend.submit(requests, &[], &memory);
    let mut ended = Vec::new();
    for polls in 1.. {
        let mut completions = Vec::new();
        backend.poll(&memory, &mut completions);
        for completion in completions {
            assert_eq!(completion.outcome, Outcome::Done);
            ended.push((completion.tag, polls));
        }
        if !backend.is_working() {
            break;
        }
    }
    assert_eq!(ended.len(), requests.len());
    ended
}

#[test]
fn long_requests_come_to_the_same_as_at_once() {
    let long = 5 * PIECE + 512;
    for (from, to) in [(0, 8 << 20), (8 << 20, 0), (0, PIECE / 2), (PIECE / 2, 0)] {
        let mut backend = backend();
        let mut expected = contents(&mut backend);
        expected.copy_within(from as usize..(from + long) as usize, to as usize);
        run(&mut backend, &[request(1, copy_of(from), to, long)]);
        assert!(contents(&mut backend) == expected, "{from} to {to}");
    }
    for operation in [Operation::WriteZeroes, Operation::Deallocate] {
        let mut backend = backend();
        let mut expected = contents(&mut backend);
        expected[512..(512 + long) as usize].fill(0);
        run(&mut backend, &[request(1, operation, 512, long)]);
        assert!(contents(&mut backend) == expected, "{operation:?}");
    }
}

#[test]
fn others_have_their_turn_between_the_pieces() {
    let mut backend = backend();
    let ended = run(
        &mut backend,
        &[
            request(1, copy_of(0), 8 << 20, 4 * PIECE),
            request(2, Operation::WriteZeroes, 0, 2 * PIECE),
            request(3, copy_of(0), 15 << 20, 512),
        ],
    );
    // The short one at once; one piece in each poll after that of the batch, in turn.
    assert_eq!(ended, [(3, 1), (2, 5), (1, 7)]);
}

#[test]
fn however_many_there_are_a_turn_does_a_piece_of_them() {
    let quarters = |tag| request(tag, copy_of(0), 8 << 20, PIECE / 4);
    let ended = run(&mut backend(), &(0..10).map(quarters).collect::<Vec<_>>());
    let polls: Vec<_> = ended.into_iter().map(|(_, polls)| polls).collect();
    assert_eq!(polls, [1, 1, 1, 1, 2, 2, 2, 2, 3, 3]);
    // The shortest ones cost something, too.
    let most = PIECE / LEAST;
    let shortest = |tag| request(tag, Operation::Deallocate, 0, 512);
    let all: Vec<_> = (0..2 * most as u32).map(shortest).collect();
    let ended = run(&mut backend(), &all);
    let at_once = ended.iter().filter(|(_, polls)| *polls == 1).count();
    assert_eq!((at_once as u64, ended[ended.len() - 1].1), (most, 2));
    // And what needs data, or does nothing, does not wait for them.
    let mut some = vec![request(0, copy_of(0), 8 << 20, 3 * PIECE)];
    some.push(request(1, Operation::WriteZeroes, 0, PIECE));
    some.push(request(2, Operation::Flush, 0, 0));
    some.push(request(3, Operation::Verify, 0, 4 * PIECE));
    some.push(request(4, Operation::Deallocate, 0, 512));
    let ended = run(&mut backend(), &some);
    assert_eq!(ended, [(1, 1), (2, 1), (3, 1), (4, 3), (0, 5)]);
}

#[test]
fn batches_do_not_make_a_turn_longer() {
    let iommu = iommu();
    let memory = iommu.memory(true, None);
    let mut backend = backend();
    let before = contents(&mut backend);
    let long = request(0, Operation::WriteZeroes, 0, 4 * PIECE);
    backend.submit(&[long], &[], &memory);
    let mut ended = Vec::new();
    for tag in 1..=20 {
        backend.submit(&[request(tag, Operation::Flush, 0, 0)], &[], &memory);
        backend.poll(&memory, &mut ended);
        assert_eq!(ended.len(), tag as usize, "the batch");
    }
    let short = |tag| request(tag, Operation::Deallocate, 8 << 20, PIECE / 2);
    for tag in 21..=30 {
        backend.submit(&[short(tag)], &[], &memory);
        backend.poll(&memory, &mut ended);
    }
    assert_eq!(ended.len(), 22, "two of them");
    let after = contents(&mut backend);
    assert!(
        before[..8 << 20] == after[..8 << 20],
        "nothing of the long one"
    );
    // The next turn.
    backend.poll(&memory, &mut ended);
    ended.clear();
    backend.submit(&[31, 32, 33].map(short), &[], &memory);
    backend.poll(&memory, &mut ended);
    let tags: Vec<_> = ended.iter().map(|end| end.tag).collect();
    assert_eq!(tags, [31, 32]);
}

#[test]
fn long_requests_are_cancelled_and_forgotten() {
    let iommu = iommu();
    let memory = iommu.memory(true, None);
    let mut backend = backend();
    let requests = [1, 2].map(|tag| request(tag, copy_of(0), 8 << 20, 4 * PIECE));
    backend.submit(&requests, &[], &memory);
    let mut completions = Vec::new();
    backend.poll(&memory, &mut completions);
    backend.cancel(&[1]);
    backend.poll(&memory, &mut completions);
    let cancelled = BackendCompletion {
        tag: 1,
        outcome: Outcome::Cancelled,
    };
    assert_eq!(completions, [cancelled]);
    assert!(backend.is_working());
    backend.reset();
    assert!(!backend.is_working());
    let before = contents(&mut backend);
    backend.poll(&memory, &mut completions);
    assert_eq!(completions, [cancelled]);
    assert!(contents(&mut backend) == before);
}
