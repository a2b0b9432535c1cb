use std::time::{Duration, Instant};

use nix::time::{ClockId, clock_gettime};
use nvme_vfio_dma::{Access, AddressSpace, DomainLimits, IommuDomain as _, SharedMemory};

use super::*;
use crate::iommu::{DmaOrigin, SoftwareIommu};

const SIZE: u64 = 8 << 20;

struct Rig {
    folder: tempfile::TempDir,
    iommu: Arc<SoftwareIommu>,
    memory: SharedMemory,
    backend: FileBackend,
}

fn rig() -> Rig {
    let folder = tempfile::tempdir().unwrap();
    let iommu = Arc::new(SoftwareIommu::new(DomainLimits {
        iova_ranges: vec![0..=u64::MAX],
        page_sizes: !0xfff,
        mappings: None,
    }));
    let space = AddressSpace::new(Arc::clone(&iommu) as _);
    let memory = space.shared(1 << 20, Access::READ_WRITE).unwrap();
    let mut backend = FileBackend::new(&folder.path().join("disk")).unwrap();
    backend.open(1, SIZE).unwrap();
    Rig {
        folder,
        iommu,
        memory,
        backend,
    }
}

impl Rig {
    fn submit(&mut self, tag: u32, operation: Operation, offset: u64, length: u64) {
        let memory = self.iommu.memory(true, None);
        let segments: Vec<Segment> = match operation {
            Operation::Read | Operation::Write | Operation::Compare => {
                let origin = DmaOrigin::CompletionPost(0);
                let iova = self.memory.iova().0;
                let found = memory.translate(iova, length as usize, Access::DEVICE_READ, origin);
                vec![found.unwrap()]
            }
            _ => Vec::new(),
        };
        let request = Request {
            tag,
            operation,
            namespace: 1,
            offset,
            length,
            segments: 0..segments.len() as u32,
            force_unit_access: tag % 2 == 1,
        };
        self.backend.submit(&[request], &segments, &memory);
    }

    fn poll(&mut self) -> Vec<BackendCompletion> {
        let memory = self.iommu.memory(true, None);
        let mut completions = Vec::new();
        self.backend.poll(&memory, &mut completions);
        completions
    }

    fn wait(&mut self, count: usize) -> Vec<BackendCompletion> {
        let end = Instant::now() + Duration::from_secs(60);
        let mut all = Vec::new();
        while all.len() < count {
            assert!(Instant::now() < end, "{all:?}");
            all.append(&mut self.poll());
            std::thread::yield_now();
        }
        all
    }

    fn run(&mut self, operation: Operation, offset: u64, length: u64) -> Outcome {
        self.submit(7, operation, offset, length);
        let [BackendCompletion { tag: 7, outcome }] = self.wait(1)[..] else {
            panic!("not one completion");
        };
        outcome
    }

    fn fill(&self, byte: u8, length: usize) {
        self.memory.write_bytes(0, &vec![byte; length]).unwrap();
    }

    fn holds(&self, byte: u8, length: usize) -> bool {
        let mut bytes = vec![0; length];
        self.memory.read_bytes(0, &mut bytes).unwrap();
        bytes.iter().all(|&found| found == byte)
    }
}

#[test]
fn data_goes_to_the_file_and_comes_back() {
    let mut rig = rig();
    rig.fill(0xab, 8192);
    assert_eq!(rig.run(Operation::Write, 4096, 8192), Outcome::Done);
    assert_eq!(rig.run(Operation::Flush, 0, 0), Outcome::Done);
    let file = std::fs::read(rig.folder.path().join("disk")).unwrap();
    assert_eq!(file.len() as u64, SIZE);
    assert!(file[4096..12288].iter().all(|&byte| byte == 0xab));
    assert!(file[..4096].iter().all(|&byte| byte == 0));
    assert_eq!(rig.run(Operation::Compare, 4096, 8192), Outcome::Done);
    assert_eq!(rig.run(Operation::Compare, 4608, 8192), Outcome::Different);
    rig.fill(0, 8192);
    assert_eq!(rig.run(Operation::Read, 4096, 8192), Outcome::Done);
    assert!(rig.holds(0xab, 8192));
    assert_eq!(rig.run(Operation::WriteZeroes, 4096, 4096), Outcome::Done);
    assert_eq!(rig.run(Operation::Read, 4096, 4096), Outcome::Done);
    assert!(rig.holds(0, 4096));
    assert_eq!(rig.run(Operation::Deallocate, 8192, 4096), Outcome::Done);
    assert_eq!(rig.run(Operation::Read, 8192, 4096), Outcome::Done);
    assert!(rig.holds(0, 4096));
    assert_eq!(rig.run(Operation::Verify, 0, SIZE), Outcome::Done);
}

#[test]
fn overlapping_copies_are_as_if_all_was_read_first() {
    let length = 1 << 20;
    for (from, to) in [(0u64, 4096u64), (4096, 0), (0, 2 << 20)] {
        let mut rig = rig();
        let data: Vec<u8> = (0..length as u32)
            .map(|at| (at >> 9) as u8 ^ at as u8)
            .collect();
        rig.memory.write_bytes(0, &data).unwrap();
        assert_eq!(rig.run(Operation::Write, from, length), Outcome::Done);
        let copy = Operation::Copy {
            namespace: 1,
            offset: from,
        };
        assert_eq!(rig.run(copy, to, length), Outcome::Done);
        let file = std::fs::read(rig.folder.path().join("disk")).unwrap();
        assert!(
            file[to as usize..][..length as usize] == data,
            "{from} to {to}"
        );
    }
}

#[test]
fn errors_of_the_file_are_errors_of_the_medium() {
    let mut rig = rig();
    rig.fill(1, 4096);
    std::fs::OpenOptions::new()
        .write(true)
        .open(rig.folder.path().join("disk"))
        .unwrap()
        .set_len(4096)
        .unwrap();
    for operation in [Operation::Read, Operation::Compare, Operation::Verify] {
        assert_eq!(rig.run(operation, 4096, 4096), Outcome::ReadError);
    }
    rig.backend.delete(1);
    assert_eq!(rig.run(Operation::Write, 0, 4096), Outcome::WriteError);
    assert_eq!(rig.run(Operation::Read, 0, 4096), Outcome::ReadError);
}

#[test]
fn a_file_has_one_user_and_is_a_file() {
    let rig = rig();
    let path = rig.folder.path().join("disk");
    let mut second = FileBackend::new(&path).unwrap();
    let error = second.open(1, SIZE).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ResourceBusy, "{error}");
    assert!(error.to_string().contains("disk"));
    second.create(2, 4096).unwrap();
    assert_eq!(
        std::fs::metadata(rig.folder.path().join("disk.2"))
            .unwrap()
            .len(),
        4096
    );
    let mut folder = FileBackend::new(rig.folder.path()).unwrap();
    assert!(folder.open(1, SIZE).is_err());
    let mut system = FileBackend::new(Path::new("/proc/version")).unwrap();
    assert!(system.open(1, SIZE).is_err());
}

#[test]
fn more_than_the_buffers_hold_waits_its_turn() {
    let mut rig = rig();
    let count = 3 * (BUFFERED_MAX >> 20) as u32;
    rig.fill(9, 1 << 20);
    for tag in 0..count {
        rig.submit(tag * 2, Operation::Write, 0, 1 << 20);
        assert!(rig.backend.buffered <= BUFFERED_MAX);
    }
    assert!(!rig.backend.waiting.is_empty());
    let mut tags: Vec<u32> = rig
        .wait(count as usize)
        .iter()
        .map(|done| done.tag / 2)
        .collect();
    tags.sort_unstable();
    assert!(tags.into_iter().eq(0..count), "each once");
    assert_eq!(rig.backend.buffered, 0);
}

#[test]
fn what_is_given_up_is_told_once_and_touches_no_memory_later() {
    let mut rig = rig();
    rig.fill(5, 4096);
    for tag in 0..64 {
        rig.submit(tag, Operation::Read, 0, 1 << 20);
    }
    let tags: Vec<u32> = (0..64).collect();
    rig.backend.cancel(&tags);
    let ended = rig.wait(64);
    assert_eq!(ended.len(), 64);
    assert!(ended.iter().any(|done| done.outcome == Outcome::Cancelled));
    rig.fill(5, 4096);
    std::thread::sleep(Duration::from_millis(20));
    assert_eq!(rig.poll(), []);
    assert!(rig.holds(5, 4096));
    assert_eq!(rig.backend.buffered, 0);
    // Tags are free again.
    assert_eq!(rig.run(Operation::Read, 0, 4096), Outcome::Done);

    rig.submit(3, Operation::Read, 0, 4096);
    rig.fill(5, 4096);
    rig.backend.reset();
    std::thread::sleep(Duration::from_millis(20));
    assert_eq!(rig.poll(), []);
    assert!(rig.holds(5, 4096));
}

/// What this thread has had of its processor.
fn processor_time() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID)
        .unwrap()
        .into()
}

/// As long as nobody else gets the controller's lock, nothing may take time that grows with the square of what a client submitted.
#[test]
fn giving_up_a_hundred_thousand_commands_takes_no_time() {
    const COUNT: u32 = 100_000;
    let mut rig = rig();
    // It fills the buffers, so that the others wait.
    rig.submit(COUNT, Operation::Read, 0, 1 << 20);
    rig.backend.buffered += BUFFERED_MAX;
    for tag in 0..COUNT {
        rig.submit(tag, Operation::Read, 0, 4096);
    }
    let tags: Vec<u32> = (0..COUNT).collect();
    let began = processor_time();
    rig.backend.cancel(&tags);
    let took = processor_time() - began;
    assert!(took < Duration::from_secs(5), "{took:?}");
    rig.backend.buffered -= BUFFERED_MAX;
    let ended = rig.wait(COUNT as usize + 1);
    let given_up = ended
        .iter()
        .filter(|done| done.outcome == Outcome::Cancelled);
    assert_eq!(given_up.count(), COUNT as usize);
}

#[test]
fn memory_that_went_away_is_not_touched() {
    let mut rig = rig();
    rig.submit(4, Operation::Read, 0, 4096);
    let other = AddressSpace::new(Arc::new(SoftwareIommu::new(rig.iommu.limits())) as _);
    rig.memory = other.shared(1 << 20, Access::READ_WRITE).unwrap();
    assert_eq!(rig.wait(1)[0].outcome, Outcome::MemoryLost);
}
