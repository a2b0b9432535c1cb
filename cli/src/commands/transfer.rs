//! `read`, `write` and `flush`.

use std::{
    fs::File,
    io::{self, Read, Write},
    path::Path,
    time::{Duration, Instant},
};

use nvme_vfio::{Buffer, IoQueue, Namespace, QueueOptions};
use serde::Serialize;

use crate::{
    args::{FlushArgs, Format, RangeArgs, ReadArgs, WriteArgs},
    error::{Error, Kind},
    guard,
    output::{print_json, print_text},
    session::Session,
};

/// The most that is asked for at once, in bytes.
const CHUNK: u64 = 8 << 20;
/// The least that is tried when there is no memory for more.
const SMALLEST_CHUNK: u64 = 64 << 10;
/// The most of a stream that is gathered to find out how long it is, in bytes: it is held in memory, and may have no end.
const MOST_GATHERED: u64 = 256 << 20;
/// Every namespace of the controller.
const ALL_NAMESPACES: u32 = u32::MAX;
const OPCODE_WRITE: u8 = 0x01;
const OPCODE_READ: u8 = 0x02;

/// A checked range of logical blocks and the data that goes with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Extent {
    lba: u64,
    blocks: u64,
    block_size: u64,
    /// Bytes of the data: those of the blocks, or more.
    data: u64,
}

impl Extent {
    fn new(
        args: &RangeArgs,
        block_size: u64,
        size: u64,
        whole_file: Option<u64>,
    ) -> Result<Self, Error> {
        let blocks = match (args.block_count, args.data_size.or(whole_file)) {
            (Some(count), _) => count
                .checked_add(1)
                .ok_or_else(|| out_of_range(args.start_block, u64::MAX, size))?,
            (None, None) => 1,
            (None, Some(data)) if data < block_size => 1,
            (None, Some(data)) if data.is_multiple_of(block_size) => data / block_size,
            (None, Some(data)) => {
                return Err(Error::usage(
                    format!("{data} bytes are no whole number of blocks of {block_size} bytes"),
                    format!(
                        "Say how many blocks: --block-count={} (counted from 0)",
                        data / block_size - 1
                    ),
                ));
            }
        };
        let end = args.start_block.checked_add(blocks);
        if end.is_none_or(|end| end > size) {
            return Err(out_of_range(args.start_block, blocks, size));
        }
        // INVARIANT: no overflow, the driver refuses namespaces of more than 2^64 bytes.
        let needed = blocks.saturating_mul(block_size);
        let data = args.data_size.unwrap_or(needed);
        if data < needed {
            return Err(Error::new(
                Kind::BufferTooSmall,
                format!("--data-size={data} is too small for {blocks} blocks of {block_size} bytes: {needed} bytes are needed"),
            )
            .remedy(format!("Use: --data-size={needed}")));
        }
        Ok(Self {
            lba: args.start_block,
            blocks,
            block_size,
            data,
        })
    }

    const fn bytes(&self) -> u64 {
        self.blocks.saturating_mul(self.block_size)
    }

    fn words(&self, doing: &str) -> String {
        format!(
            "{doing} {} from LBA {}",
            blocks_in_words(self.blocks),
            self.lba
        )
    }
}

fn blocks_in_words(blocks: u64) -> String {
    if blocks == 1 {
        "1 block".to_owned()
    } else {
        format!("{blocks} blocks")
    }
}

fn out_of_range(lba: u64, blocks: u64, size: u64) -> Error {
    Error::new(
        Kind::LbaOutOfRange,
        format!(
            "a range of {} from LBA {lba} reaches past the end of the namespace, which has {}",
            blocks_in_words(blocks),
            blocks_in_words(size)
        ),
    )
    .remedy(format!("The last block is {}", size.saturating_sub(1)))
}

/// What was done, for `-o json`.
#[derive(Serialize)]
struct Done<'a> {
    command: &'static str,
    nsid: u32,
    slba: u64,
    blocks: u64,
    bytes: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    data: Option<&'a Path>,
    latency_us: u128,
}

/// What would be sent, for `--dry-run`; nvme-cli's names.
#[derive(Serialize)]
struct Command {
    opcode: u8,
    nsid: u32,
    slba: u64,
    /// Counted from 0.
    nblocks: u64,
    bytes: u64,
}

impl Command {
    fn print(&self, format: Format) -> Result<(), Error> {
        match format {
            Format::Json => print_json(self),
            Format::Normal => print_text(&format!(
                "opcode       : {:02x}\nnsid         : {:02x}\nslba         : {:x}\nnblocks      : {:04x}\nbytes        : {}\n",
                self.opcode, self.nsid, self.slba, self.nblocks, self.bytes
            )),
        }
    }
}

/// A queue and a buffer, moved over an extent chunk by chunk.
struct Mover {
    queue: IoQueue,
    namespace: Namespace,
    /// `None` while it is with the queue, and after an error.
    buffer: Option<Buffer>,
    spent: Duration,
}

impl Mover {
    fn new(session: &Session, namespace: Namespace, extent: &Extent) -> Result<Self, Error> {
        let queue = session.controller.io_queue(QueueOptions::default())?;
        let buffer = allocate(session, extent)?;
        Ok(Self {
            queue,
            namespace,
            buffer: Some(buffer),
            spent: Duration::ZERO,
        })
    }

    /// Runs `step` for every chunk with the queue, its first block and a buffer of its length.
    fn each(
        &mut self,
        extent: &Extent,
        mut step: impl FnMut(
            &mut IoQueue,
            &Namespace,
            u64,
            Buffer,
            &mut Duration,
        ) -> Result<Buffer, Error>,
    ) -> Result<(), Error> {
        let mut lba = extent.lba;
        let end = extent.lba.saturating_add(extent.blocks);
        while lba < end {
            let buffer = self
                .buffer
                .take()
                .ok_or_else(|| Error::new(Kind::Reset, "the buffer was not given back"))?;
            let blocks = (buffer.len() as u64 / extent.block_size).min(end - lba);
            let length = usize::try_from(blocks * extent.block_size).unwrap_or(usize::MAX);
            let (front, rest) = if length < buffer.len() {
                let (front, rest) = buffer.split_at(length);
                (front, Some(rest))
            } else {
                (buffer, None)
            };
            let front = step(
                &mut self.queue,
                &self.namespace,
                lba,
                front,
                &mut self.spent,
            )?;
            self.buffer = Some(match rest {
                Some(rest) => front
                    .unsplit(rest)
                    .map_err(|_| Error::new(Kind::Reset, "another buffer was given back"))?,
                None => front,
            });
            lba += blocks;
        }
        Ok(())
    }
}

/// A buffer for a chunk: smaller where less memory may be locked.
fn allocate(session: &Session, extent: &Extent) -> Result<Buffer, Error> {
    let mut length = extent.bytes().min(CHUNK);
    loop {
        match session
            .controller
            .allocate(usize::try_from(length).unwrap_or(usize::MAX))
        {
            Ok(buffer) => return Ok(buffer),
            Err(_) if length / 2 >= SMALLEST_CHUNK.max(extent.block_size) => {
                length = length / 2 / extent.block_size * extent.block_size
            }
            Err(error) => return Err(error.into()),
        }
    }
}

pub(super) fn read(args: &ReadArgs) -> Result<(), Error> {
    let session = Session::open(&args.range.address)?;
    let namespace = session.namespace(args.range.namespace_id)?;
    let extent = Extent::new(
        &args.range,
        u64::from(namespace.block_size()),
        namespace.blocks(),
        None,
    )?;
    if args.range.dry_run {
        return Command {
            opcode: OPCODE_READ,
            nsid: namespace.id(),
            slba: extent.lba,
            nblocks: extent.blocks - 1,
            bytes: extent.bytes(),
        }
        .print(args.range.output.output_format);
    }
    let mut mover = Mover::new(&session, namespace, &extent)?;
    // Made when the first data is there, so that a failure does not empty a file.
    let mut sink: Option<Sink> = None;
    mover.each(&extent, |queue, namespace, lba, buffer, spent| {
        let start = Instant::now();
        let buffer = queue
            .read_blocking(namespace, lba, buffer)
            .map_err(|error| Error::from(error).context(extent.words("reading")))?;
        *spent += start.elapsed();
        let sink = match &mut sink {
            Some(sink) => sink,
            None => sink.insert(Sink::create(args.data.as_deref())?),
        };
        sink.write(&buffer)?;
        Ok(buffer)
    })?;
    if let Some(mut sink) = sink {
        // What is left of a larger buffer than the blocks need is zeros.
        sink.fill(extent.data - extent.bytes())?;
        sink.finish()?;
    }
    finish(
        "read",
        &args.range,
        namespace.id(),
        &extent,
        args.data.as_deref(),
        args.data.is_some(),
        mover.spent,
    )
}

pub(super) fn write(args: &WriteArgs) -> Result<(), Error> {
    let session = Session::open(&args.range.address)?;
    let namespace = session.namespace(args.range.namespace_id)?;
    let mut source = Source::open(args.data.as_deref())?;
    // Without a size, a file is written whole.
    let whole = if args.range.block_count.is_none() && args.range.data_size.is_none() {
        // No more than shows that it does not fit.
        let blocks = namespace.blocks().saturating_sub(args.range.start_block);
        source.length(blocks.saturating_mul(u64::from(namespace.block_size())))?
    } else {
        None
    };
    let extent = Extent::new(
        &args.range,
        u64::from(namespace.block_size()),
        namespace.blocks(),
        whole,
    )?;
    source.require(extent.data)?;
    if args.range.dry_run {
        return Command {
            opcode: OPCODE_WRITE,
            nsid: namespace.id(),
            slba: extent.lba,
            nblocks: extent.blocks - 1,
            bytes: extent.bytes(),
        }
        .print(args.range.output.output_format);
    }
    if !args.force {
        guard::ask(&session, &namespace, &extent.words("writing"))?;
    }
    let mut mover = Mover::new(&session, namespace, &extent)?;
    mover.each(&extent, |queue, namespace, lba, mut buffer, spent| {
        source.read(&mut buffer)?;
        let start = Instant::now();
        let buffer = queue
            .write_blocking(namespace, lba, buffer)
            .map_err(|error| Error::from(error).context(extent.words("writing")))?;
        *spent += start.elapsed();
        Ok(buffer)
    })?;
    finish(
        "write",
        &args.range,
        namespace.id(),
        &extent,
        args.data.as_deref(),
        true,
        mover.spent,
    )
}

fn finish(
    command: &'static str,
    args: &RangeArgs,
    nsid: u32,
    extent: &Extent,
    data: Option<&Path>,
    stdout_is_free: bool,
    spent: Duration,
) -> Result<(), Error> {
    if args.latency {
        eprintln!(" latency: {command}: {} us", spent.as_micros());
    }
    if matches!(args.output.output_format, Format::Json) && stdout_is_free {
        return print_json(&Done {
            command,
            nsid,
            slba: extent.lba,
            blocks: extent.blocks,
            bytes: extent.bytes(),
            data,
            latency_us: spent.as_micros(),
        });
    }
    eprintln!("{command}: Success");
    Ok(())
}

#[derive(Serialize)]
struct Flushed {
    command: &'static str,
    nsids: Vec<u32>,
}

pub(super) fn flush(args: &FlushArgs) -> Result<(), Error> {
    let session = Session::open(&args.address)?;
    let nsids = match args.namespace_id {
        Some(ALL_NAMESPACES) => session.controller.namespaces()?,
        given => vec![session.nsid(given)?],
    };
    let mut queue = session.controller.io_queue(QueueOptions::with_depth(1))?;
    for nsid in &nsids {
        let namespace = session.namespace(Some(*nsid))?;
        queue
            .flush_blocking(&namespace)
            .map_err(|error| Error::from(error).context(format!("flushing namespace {nsid}")))?;
    }
    match args.output.output_format {
        Format::Json => print_json(&Flushed {
            command: "flush",
            nsids,
        }),
        Format::Normal => {
            eprintln!("flush: Success");
            Ok(())
        }
    }
}

/// Where read data goes.
enum Sink {
    File(String, File),
    Stdout(io::StdoutLock<'static>),
}

impl Sink {
    fn create(path: Option<&Path>) -> Result<Self, Error> {
        let Some(path) = path else {
            return Ok(Self::Stdout(io::stdout().lock()));
        };
        let name = path.display().to_string();
        let file = File::create(path)
            .map_err(|error| Error::file(format!("cannot create {name}"), &error))?;
        Ok(Self::File(name, file))
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), Error> {
        let (name, result) = match self {
            Self::File(name, file) => (name.as_str(), file.write_all(bytes)),
            Self::Stdout(stdout) => ("standard output", stdout.write_all(bytes)),
        };
        result.map_err(|error| Error::file(format!("cannot write to {name}"), &error))
    }

    fn fill(&mut self, mut zeros: u64) -> Result<(), Error> {
        const ZEROS: [u8; 4096] = [0; 4096];
        while zeros > 0 {
            let length = zeros.min(ZEROS.len() as u64);
            self.write(
                ZEROS
                    .get(..usize::try_from(length).unwrap_or(0))
                    .unwrap_or_default(),
            )?;
            zeros -= length;
        }
        Ok(())
    }

    fn finish(self) -> Result<(), Error> {
        match self {
            Self::File(..) => Ok(()),
            Self::Stdout(mut stdout) => stdout
                .flush()
                .map_err(|error| Error::file("cannot write to standard output", &error)),
        }
    }
}

/// Where data to be written comes from. Nothing is written before all of it is known to be there.
enum Source {
    File {
        name: String,
        file: File,
        length: u64,
    },
    Stream {
        name: String,
        stream: Box<dyn Read>,
        held: Vec<u8>,
        taken: usize,
    },
}

impl Source {
    fn open(path: Option<&Path>) -> Result<Self, Error> {
        let Some(path) = path else {
            return Ok(Self::Stream {
                name: "standard input".to_owned(),
                stream: Box::new(io::stdin().lock()),
                held: Vec::new(),
                taken: 0,
            });
        };
        let name = path.display().to_string();
        let file =
            File::open(path).map_err(|error| Error::file(format!("cannot open {name}"), &error))?;
        let metadata = file
            .metadata()
            .map_err(|error| Error::file(format!("cannot look at {name}"), &error))?;
        if metadata.is_dir() {
            return Err(Error::new(Kind::File, format!("{name} is a directory")));
        }
        Ok(if metadata.is_file() {
            Self::File {
                name,
                file,
                length: metadata.len(),
            }
        } else {
            Self::Stream {
                name,
                stream: Box::new(file),
                held: Vec::new(),
                taken: 0,
            }
        })
    }

    /// How many bytes it holds in all. A stream is read to its end for that, or until it is known to hold more than `most`; one that is long must be told the length of.
    fn length(&mut self, most: u64) -> Result<Option<u64>, Error> {
        match self {
            Self::File { length, .. } => Ok(Some(*length)),
            Self::Stream {
                name, stream, held, ..
            } => {
                stream
                    .take(most.min(MOST_GATHERED).saturating_add(1))
                    .read_to_end(held)
                    .map_err(|error| Error::file(format!("cannot read {name}"), &error))?;
                let length = held.len() as u64;
                if length > MOST_GATHERED && length <= most {
                    return Err(Error::usage(
                        format!(
                            "{name} holds more than {} MiB, and how much of it is to be written was not said",
                            MOST_GATHERED >> 20
                        ),
                        "Say how many blocks, --block-count=N (counted from 0), or write from a file. Nothing was written",
                    ));
                }
                Ok(Some(length))
            }
        }
    }

    /// Makes sure that it holds `needed` bytes.
    fn require(&mut self, needed: u64) -> Result<(), Error> {
        let (name, there) = match self {
            Self::File { name, length, .. } => (name, *length),
            Self::Stream {
                name, stream, held, ..
            } => {
                let missing = needed.saturating_sub(held.len() as u64);
                stream
                    .take(missing)
                    .read_to_end(held)
                    .map_err(|error| Error::file(format!("cannot read {name}"), &error))?;
                (name, held.len() as u64)
            }
        };
        if there < needed {
            return Err(Error::new(Kind::File, format!("{name} holds {there} bytes, and {needed} were asked for"))
                .remedy("Use a file that is long enough, or a smaller --block-count and --data-size. Nothing was written"));
        }
        Ok(())
    }

    fn read(&mut self, into: &mut [u8]) -> Result<(), Error> {
        match self {
            Self::File { name, file, .. } => file
                .read_exact(into)
                .map_err(|error| Error::file(format!("cannot read {name}"), &error)),
            Self::Stream {
                name, held, taken, ..
            } => {
                let from = held.get(*taken..*taken + into.len());
                into.copy_from_slice(
                    from.ok_or_else(|| Error::new(Kind::File, format!("{name} ended early")))?,
                );
                *taken += into.len();
                Ok(())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::args::{Cli, Command as Parsed};

    fn extent(options: &str, block_size: u64, size: u64) -> Result<Extent, Error> {
        let words = ["nvme-vfio", "read", "emulated"]
            .into_iter()
            .chain(options.split_whitespace());
        let Parsed::Read(args) = Cli::try_parse_from(words).unwrap().command else {
            panic!("not read")
        };
        Extent::new(&args.range, block_size, size, None)
    }

    #[test]
    fn counts_begin_at_zero_and_sizes_follow() {
        for (options, blocks, data) in [
            ("", 1, 512),
            ("-c 0", 1, 512),
            ("-c 7", 8, 4096),
            ("-z 4k", 8, 4096),
            ("-c 7 -z 4096", 8, 4096),
            ("-c 0 -z 4096", 1, 4096),
            ("-s 92 -c 7", 8, 4096),
        ] {
            let extent = extent(options, 512, 100).unwrap();
            assert_eq!((extent.blocks, extent.data), (blocks, data), "{options}");
        }
    }

    #[test]
    fn what_does_not_fit_is_told_apart() {
        for (options, kind) in [
            ("-c 7 -z 4095", Kind::BufferTooSmall),
            ("-z 100", Kind::BufferTooSmall),
            ("-z 1000", Kind::Usage),
            ("-s 100", Kind::LbaOutOfRange),
            ("-s 99 -c 1", Kind::LbaOutOfRange),
            ("-c 0xffffffffffffffff", Kind::LbaOutOfRange),
            ("-s 0xffffffffffffffff -c 1", Kind::LbaOutOfRange),
        ] {
            let error = extent(options, 512, 100).expect_err(options);
            assert_eq!(error.kind(), kind, "{options}");
            assert!(error.remedy_text().is_some());
        }
    }

    #[test]
    fn a_short_source_is_refused_before_anything_is_written() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(&[7; 100]).unwrap();
        let mut source = Source::open(Some(file.path())).unwrap();
        assert_eq!(source.length(10).unwrap(), Some(100));
        assert_eq!(source.require(101).unwrap_err().kind(), Kind::File);
        source.require(100).unwrap();
        let mut bytes = [0; 100];
        source.read(&mut bytes).unwrap();
        assert_eq!(bytes, [7; 100]);

        let mut endless = Source::open(Some(Path::new("/dev/zero"))).unwrap();
        assert_eq!(endless.length(1000).unwrap(), Some(1001));
        let error = endless.length(u64::MAX).unwrap_err();
        assert_eq!(error.kind(), Kind::Usage);
        assert!(error.remedy_text().unwrap().contains("--block-count"));

        let stream: Box<dyn Read> = Box::new(io::Cursor::new(vec![9; 50]));
        let mut source = Source::Stream {
            name: "pipe".into(),
            stream,
            held: Vec::new(),
            taken: 0,
        };
        assert!(source.require(51).is_err());
        let mut bytes = [0; 50];
        source.read(&mut bytes).unwrap();
        assert_eq!(bytes, [9; 50]);
        assert!(source.read(&mut bytes).is_err());
        assert_eq!(
            Source::open(Some(Path::new("/")))
                .err()
                .map(|error| error.exit_status()),
            Some(2)
        );
    }
}
