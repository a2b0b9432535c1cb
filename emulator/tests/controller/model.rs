//! Random commands against a small, slow model of namespaces: statuses, results and every byte must agree.

use nvme_vfio_dma::SharedMemory;
use proptest::prelude::*;

use crate::host::*;
use nvme_vfio_seeded::seeded;

const INVALID_FIELD: u16 = 0x002;
const INVALID_NAMESPACE: u16 = 0x00b;
const LBA_OUT_OF_RANGE: u16 = 0x080;
const SIZE_LIMIT: u16 = 0x183;
const INCOMPATIBLE: u16 = 0x185;
const OVERLAP: u16 = 0x187;
const UNRECOVERED: u16 = 0x281;
const UNWRITTEN: u16 = 0x287;
const DIFFERENT: u16 = 0x285;

/// Blocks, each with its bytes, or none where it cannot be read.
#[derive(Clone)]
struct Model {
    lba: usize,
    blocks: Vec<Option<Vec<u8>>>,
    /// Deallocated or never written.
    holes: Vec<bool>,
    /// Whether reading such a block is an error.
    strict: bool,
}

impl Model {
    fn new(bytes: usize, lba: usize) -> Model {
        Model {
            lba,
            blocks: vec![Some(vec![0; lba]); bytes / lba],
            holes: vec![true; bytes / lba],
            strict: false,
        }
    }

    fn range(&self, lba: u64, count: u64) -> Result<std::ops::Range<usize>, u16> {
        let end = u128::from(lba) + u128::from(count);
        if end > self.blocks.len() as u128 {
            return Err(LBA_OUT_OF_RANGE);
        }
        Ok(lba as usize..end as usize)
    }

    fn read(&self, lba: u64, count: u64) -> Result<Vec<u8>, u16> {
        let mut bytes = Vec::new();
        for place in self.range(lba, count)? {
            bytes.extend(self.blocks[place].as_ref().ok_or(UNRECOVERED)?);
            if self.strict && self.holes[place] {
                return Err(UNWRITTEN);
            }
        }
        Ok(bytes)
    }

    fn write(&mut self, lba: u64, bytes: &[u8]) -> Result<(), u16> {
        let range = self.range(lba, (bytes.len() / self.lba) as u64)?;
        self.holes[range.clone()].fill(false);
        for (block, new) in self.blocks[range].iter_mut().zip(bytes.chunks(self.lba)) {
            *block = Some(new.to_vec());
        }
        Ok(())
    }

    fn zero(&mut self, lba: u64, count: u64, deallocate: bool) -> Result<(), u16> {
        let range = self.range(lba, count)?;
        self.holes[range.clone()].fill(deallocate);
        self.blocks[range].fill(Some(vec![0; self.lba]));
        Ok(())
    }
}

/// A namespace of the model by identifier: 1 and 2 are attached, 3 could be.
fn find(models: &mut [Model; 2], nsid: u32) -> Result<&mut Model, u16> {
    match nsid {
        1 | 2 => Ok(&mut models[nsid as usize - 1]),
        3 => Err(INVALID_FIELD),
        _ => Err(INVALID_NAMESPACE),
    }
}

#[derive(Clone, Debug)]
enum Step {
    Write {
        lba: u64,
        count: u32,
        seed: u8,
    },
    Read {
        lba: u64,
        count: u32,
    },
    Compare {
        lba: u64,
        count: u32,
        differ: bool,
    },
    Verify {
        lba: u64,
        count: u32,
    },
    Uncorrectable {
        lba: u64,
        count: u32,
    },
    Zeroes {
        lba: u64,
        count: u32,
        flags: u32,
    },
    Dataset {
        ranges: Vec<(u64, u32)>,
        act: bool,
    },
    Copy {
        format: u32,
        to: u64,
        sources: Vec<(u32, u64, u32)>,
    },
    Format {
        format: u32,
    },
    Strict {
        strict: bool,
    },
}

/// The namespaces have 32 or 16 blocks, or an eighth of that.
fn lba() -> impl Strategy<Value = u64> {
    prop_oneof![20 => 0..34u64, 1 => Just(u64::MAX), 1 => Just(u64::MAX - 3)]
}

fn count() -> impl Strategy<Value = u32> {
    prop_oneof![10 => 1..8u32, 1 => 8..40u32]
}

fn nsid() -> impl Strategy<Value = u32> {
    prop_oneof![8 => Just(1u32), 6 => Just(2u32), 1 => Just(3u32), 1 => Just(0u32), 1 => Just(u32::MAX), 1 => Just(4u32)]
}

fn step() -> impl Strategy<Value = Step> {
    let range = || (lba(), count());
    prop_oneof![
        4 => (range(), any::<u8>()).prop_map(|((lba, count), seed)| Step::Write { lba, count, seed }),
        4 => range().prop_map(|(lba, count)| Step::Read { lba, count }),
        2 => (range(), any::<bool>()).prop_map(|((lba, count), differ)| Step::Compare { lba, count, differ }),
        2 => range().prop_map(|(lba, count)| Step::Verify { lba, count }),
        2 => range().prop_map(|(lba, count)| Step::Uncorrectable { lba, count }),
        2 => (range(), prop_oneof![3 => Just(0), 3 => Just(1u32 << 25), 1 => Just(1 << 23), 1 => Just(1 << 20)])
            .prop_map(|((lba, count), flags)| Step::Zeroes { lba, count, flags }),
        2 => (prop::collection::vec((lba(), 0..9u32), 1..6), any::<bool>())
            .prop_map(|(ranges, act)| Step::Dataset { ranges, act }),
        3 => (0..5u32, lba(), prop::collection::vec((nsid(), lba(), 1..7u32), 1..6))
            .prop_map(|(format, to, sources)| Step::Copy { format, to, sources }),
        1 => prop_oneof![Just(0u32), Just(1), Just(2), Just(9)].prop_map(|format| Step::Format { format }),
        1 => any::<bool>().prop_map(|strict| Step::Strict { strict }),
    ]
}

const MSSRL: u32 = 5;
const MCL: u64 = 12;
const MSRC: usize = 4;

/// What the model says: status, dword 0.
fn expected(models: &mut [Model; 2], nsid: u32, step: &Step, data: &mut Vec<u8>) -> (u16, u32) {
    let outcome = match step {
        Step::Write { lba, .. } => find(models, nsid).and_then(|own| own.write(*lba, data)),
        Step::Read { lba, count } => find(models, nsid).and_then(|own| {
            *data = own.read(*lba, (*count).into())?;
            Ok(())
        }),
        Step::Compare { lba, count, .. } => find(models, nsid).and_then(|own| {
            let medium = own.read(*lba, (*count).into())?;
            if medium == *data {
                Ok(())
            } else {
                Err(DIFFERENT)
            }
        }),
        Step::Verify { lba, count } => {
            find(models, nsid).and_then(|own| own.read(*lba, (*count).into()).map(drop))
        }
        Step::Uncorrectable { lba, count } => find(models, nsid).and_then(|own| {
            let range = own.range(*lba, (*count).into())?;
            own.holes[range.clone()].fill(false);
            own.blocks[range].fill(None);
            Ok(())
        }),
        Step::Zeroes { flags, .. } if flags & 1 << 20 != 0 => {
            find(models, nsid).and(Err(INVALID_FIELD))
        }
        Step::Zeroes { lba, count, flags } => {
            let whole = flags & 1 << 23 != 0;
            let done = find(models, nsid).and_then(|own| {
                if whole {
                    own.zero(0, own.blocks.len() as u64, true)
                } else {
                    own.zero(*lba, (*count).into(), flags & 1 << 25 != 0)
                }
            });
            return done.err().map_or((0, whole.into()), |status| (status, 0));
        }
        Step::Dataset { ranges, act } => find(models, nsid).and_then(|own| {
            for &(lba, count) in ranges {
                own.range(lba, count.into())?;
            }
            for &(lba, count) in ranges.iter().filter(|_| *act) {
                own.zero(lba, count.into(), true)?;
            }
            Ok(())
        }),
        Step::Copy {
            format,
            to,
            sources,
        } => {
            return copy(models, nsid, *format, *to, sources)
                .err()
                .unwrap_or((0, 0));
        }
        Step::Strict { strict } => find(models, nsid).map(|own| own.strict = *strict),
        Step::Format { format } => find(models, nsid).and_then(|own| {
            let lba = match format {
                0 => 512,
                1 => 4096,
                2 => 1024,
                _ => return Err(0x10a),
            };
            let strict = own.strict;
            *own = Model::new(own.blocks.len() * own.lba, lba);
            own.strict = strict;
            Ok(())
        }),
    };
    (outcome.err().unwrap_or(0), 0)
}

fn copy(
    models: &mut [Model; 2],
    nsid: u32,
    format: u32,
    to: u64,
    sources: &[(u32, u64, u32)],
) -> Result<(), (u16, u32)> {
    let nothing = |status| (status, 0);
    let own = find(models, nsid).map_err(nothing)?;
    if format > 3 {
        return Err(nothing(INVALID_FIELD));
    }
    let total: u64 = sources.iter().map(|source| u64::from(source.2)).sum();
    if sources.len() > MSRC + 1 || sources.iter().any(|source| source.2 > MSSRL) || total > MCL {
        return Err(nothing(SIZE_LIMIT));
    }
    own.range(to, total).map_err(nothing)?;
    let size = own.lba;
    let named = |source: u32| if format >= 2 { source } else { nsid };
    for &(source, lba, count) in sources {
        let from = find(models, named(source)).map_err(nothing)?;
        if from.lba != size {
            return Err(nothing(INCOMPATIBLE));
        }
        from.range(lba, count.into()).map_err(nothing)?;
        let apart = lba >= to + total || lba + u64::from(count) <= to;
        if format >= 2 && source == nsid && !apart {
            return Err(nothing(OVERLAP));
        }
    }
    let mut at = to;
    for (done, &(source, lba, count)) in sources.iter().enumerate() {
        let failed = |status| (status, done as u32);
        let from = find(models, named(source)).map_err(failed)?;
        let bytes = from.read(lba, count.into()).map_err(failed)?;
        find(models, nsid)
            .and_then(|own| own.write(at, &bytes))
            .map_err(failed)?;
        at += u64::from(count);
    }
    Ok(())
}

/// Memory of the host: 40 blocks of 4 KiB, with a PRP list for all of it.
struct Memory {
    data: SharedMemory,
    list: SharedMemory,
}

impl Memory {
    fn new(host: &Host) -> Memory {
        let memory = Memory {
            data: host.memory(40 << 12),
            list: host.memory(4096),
        };
        for page in 1..40 {
            let at = memory.data.iova().0 + (page << 12);
            memory.list.write_u64(page as usize * 8 - 8, at).unwrap();
        }
        memory
    }

    /// The PRPs of so many bytes.
    fn prps(&self, dwords: Dwords, length: usize) -> Dwords {
        let first = self.data.iova().0;
        let second = match length {
            0..=4096 => 0,
            4097..=8192 => first + 4096,
            _ => self.list.iova().0,
        };
        with_prps(dwords, first, second)
    }
}

/// The submission entry of a step, and its data.
fn encode(step: &Step, nsid: u32, size: usize, medium: &[u8]) -> (Dwords, Vec<u8>) {
    let on = |opcode, lba, count| with(Host::transfer(opcode, lba, count, 0, 0), 1, nsid);
    match step {
        Step::Write { lba, count, seed } => {
            let data = (0..*count as usize * size)
                .map(|place| (place / 64) as u8 ^ seed)
                .collect();
            (on(1, *lba, *count), data)
        }
        Step::Read { lba, count } => (on(2, *lba, *count), vec![0xaa; *count as usize * size]),
        Step::Compare { lba, count, differ } => {
            let mut data = medium.to_vec();
            data.resize(*count as usize * size, 0);
            if *differ && let Some(last) = data.last_mut() {
                *last ^= 1;
            }
            (on(5, *lba, *count), data)
        }
        Step::Verify { lba, count } => (on(0x0c, *lba, *count), Vec::new()),
        Step::Uncorrectable { lba, count } => (on(4, *lba, *count), Vec::new()),
        Step::Zeroes { lba, count, flags } => {
            let entry = on(8, *lba, *count);
            (with(entry, 12, entry[12] | flags), Vec::new())
        }
        Step::Dataset { ranges, act } => {
            let mut data = Vec::new();
            for (lba, count) in ranges {
                data.extend([9; 4]);
                data.extend(count.to_le_bytes());
                data.extend(lba.to_le_bytes());
            }
            let entry = with(command(9, nsid), 10, ranges.len() as u32 - 1);
            (with(entry, 11, u32::from(*act) << 2), data)
        }
        Step::Copy {
            format,
            to,
            sources,
        } => {
            let mut data = Vec::new();
            for (source, lba, count) in sources {
                let begin = data.len();
                data.extend(source.to_le_bytes());
                data.extend([0xff; 4]);
                data.extend(lba.to_le_bytes());
                data.extend((*count as u16 - 1).to_le_bytes());
                data.resize(begin + if format & 1 == 0 { 32 } else { 40 }, 0xff);
            }
            let entry = on(0x19, *to, 1);
            (
                with(entry, 12, format << 8 | (sources.len() as u32 - 1)),
                data,
            )
        }
        Step::Format { format } => (with(command(0x80, nsid), 10, *format), Vec::new()),
        Step::Strict { strict } => {
            let entry = with(command(9, nsid), 10, 5);
            (with(entry, 11, u32::from(*strict) << 16), Vec::new())
        }
    }
}

/// Runs commands on namespaces 1 and 2, and on others that do not exist.
fn agree(backend: &str, steps: Vec<(u32, Step)>) -> Result<(), TestCaseError> {
    let config = "nsids=1/16K:2/8K,nn=3,mdts=0,mssrl=5,mcl=12,msrc=4,dulbe,backend=";
    let mut host = Host::with_queue(&format!("{config}{backend}"), 8);
    let memory = Memory::new(&host);
    let mut behavior = [0; 512];
    behavior[4] = 0b1100;
    let set = with(command(9, 0), 10, 0x16);
    prop_assert_eq!(host.run_with(0, set, &behavior).status, 0);
    let mut models = [Model::new(16 << 10, 512), Model::new(8 << 10, 512)];
    if backend != "memory" {
        // What a file holds counts as written.
        models.iter_mut().for_each(|own| own.holes.fill(false));
    }
    for (nsid, step) in steps {
        // A format of all, and a feature of all, are tested elsewhere.
        let admin = matches!(step, Step::Format { .. } | Step::Strict { .. });
        if admin && nsid == u32::MAX {
            continue;
        }
        let size = find(&mut models, nsid).map_or(512, |own| own.lba);
        let medium = match &step {
            Step::Compare { lba, count, .. } => find(&mut models, nsid)
                .and_then(|own| own.read(*lba, (*count).into()))
                .unwrap_or_default(),
            _ => Vec::new(),
        };
        let (entry, mut data) = encode(&step, nsid, size, &medium);
        memory.data.write_bytes(0, &data).unwrap();
        let qid = u16::from(!admin);
        let told = host.run(qid, memory.prps(entry, data.len()));
        let wanted = expected(&mut models, nsid, &step, &mut data);
        prop_assert_eq!((told.status, told.result), wanted, "{:?} of {}", step, nsid);
        prop_assert!(
            bytes(&memory.data, data.len()) == data,
            "data of {step:?} of {nsid}"
        );
    }
    // Every block of both, at the end.
    for nsid in [1, 2] {
        let own = models[nsid as usize - 1].clone();
        let used = own.holes.iter().filter(|&&hole| !hole).count();
        let (_, page) = host.identify(0, nsid);
        prop_assert_eq!(u64_at(&page, 16), used as u64, "NUSE");
        for lba in 0..own.blocks.len() as u64 {
            let read = with(Host::transfer(2, lba, 1, 0, 0), 1, nsid);
            let status = host.run(1, memory.prps(read, own.lba)).status;
            match own.read(lba, 1) {
                Ok(block) => {
                    prop_assert_eq!(status, 0);
                    prop_assert!(bytes(&memory.data, own.lba) == block, "{lba} of {nsid}");
                }
                Err(wanted) => prop_assert_eq!(status, wanted),
            }
        }
    }
    prop_assert_eq!(host.emulator.iommu().fault_count(), 0);
    Ok(())
}

fn steps() -> impl Strategy<Value = Vec<(u32, Step)>> {
    prop::collection::vec((nsid(), step()), 1..60)
}

proptest! {
    #![proptest_config(seeded(400))]

    #[test]
    fn commands_do_what_a_model_does(steps in steps()) {
        agree("memory", steps)?;
    }
}

proptest! {
    #![proptest_config(seeded(60))]

    #[test]
    fn files_do_what_a_model_does(steps in steps()) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("medium");
        agree(&format!("file:{}", path.display()), steps)?;
    }
}
