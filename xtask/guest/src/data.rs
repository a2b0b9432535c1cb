//! The same data through this driver and through the kernel's.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use nvme_vfio::{Controller, IoQueue, Namespace, QueueOptions};

use crate::pattern::{Extent, extents};

/// Whoever reads and writes.
trait Target {
    /// The block size in bytes.
    fn block(&self) -> u64;
    fn write(&mut self, extent: &Extent, bytes: &[u8]) -> Result<()>;
    /// Reads as many bytes as the blocks of the extent have.
    fn read(&mut self, extent: &Extent) -> Result<Vec<u8>>;
    /// Everything that was written stays.
    fn flush(&mut self) -> Result<()>;
}

struct Ours {
    controller: Controller,
    namespace: Namespace,
    queue: IoQueue,
}

impl Target for Ours {
    fn block(&self) -> u64 {
        self.namespace.block_size().into()
    }

    fn write(&mut self, extent: &Extent, bytes: &[u8]) -> Result<()> {
        let (_, mut buffer) = self
            .controller
            .allocate(extent.offset + bytes.len())?
            .split_at(extent.offset);
        buffer.copy_from_slice(bytes);
        self.queue
            .write_blocking(&self.namespace, extent.lba, buffer)?;
        Ok(())
    }

    fn read(&mut self, extent: &Extent) -> Result<Vec<u8>> {
        let length = (extent.blocks * self.block()) as usize;
        let (_, mut buffer) = self
            .controller
            .allocate(extent.offset + length)?
            .split_at(extent.offset);
        buffer.fill(0x11);
        let buffer = self
            .queue
            .read_blocking(&self.namespace, extent.lba, buffer)?;
        Ok(buffer.to_vec())
    }

    fn flush(&mut self) -> Result<()> {
        Ok(self.queue.flush_blocking(&self.namespace)?)
    }
}

/// A block device of the kernel's driver.
struct Kernels {
    file: File,
    block: u64,
}

impl Target for Kernels {
    fn block(&self) -> u64 {
        self.block
    }

    fn write(&mut self, extent: &Extent, bytes: &[u8]) -> Result<()> {
        Ok(self.file.write_all_at(bytes, extent.lba * self.block)?)
    }

    fn read(&mut self, extent: &Extent) -> Result<Vec<u8>> {
        let mut bytes = vec![0x11; (extent.blocks * self.block) as usize];
        self.file
            .read_exact_at(&mut bytes, extent.lba * self.block)?;
        Ok(bytes)
    }

    fn flush(&mut self) -> Result<()> {
        Ok(self.file.sync_all()?)
    }
}

fn open(target: &Path) -> Result<Box<dyn Target>> {
    let text = target.to_str().context("not UTF-8")?;
    if let Some(name) = text.strip_prefix("/dev/") {
        let block = format!("/sys/class/block/{name}/queue/logical_block_size");
        return Ok(Box::new(Kernels {
            file: OpenOptions::new().read(true).write(true).open(target)?,
            block: std::fs::read_to_string(block)?.trim().parse()?,
        }));
    }
    let controller = Controller::open(&text.parse()?)?;
    Ok(Box::new(Ours {
        namespace: controller.only_namespace()?,
        queue: controller.io_queue(QueueOptions::with_depth(32))?,
        controller,
    }))
}

pub(crate) fn write(target: &Path, seed: u64) -> Result<()> {
    let mut target = open(target)?;
    let extents = extents(target.block());
    for extent in &extents {
        let mut bytes = vec![0; (extent.blocks * target.block()) as usize];
        extent.fill(seed, &mut bytes);
        target
            .write(extent, &bytes)
            .with_context(|| format!("{extent:?}"))?;
    }
    target.flush()?;
    println!("wrote {} pieces", extents.len());
    Ok(())
}

pub(crate) fn check(target: &Path, seed: u64) -> Result<()> {
    let mut target = open(target)?;
    let extents = extents(target.block());
    for extent in &extents {
        let mut expected = vec![0; (extent.blocks * target.block()) as usize];
        extent.fill(seed, &mut expected);
        let found = target.read(extent).with_context(|| format!("{extent:?}"))?;
        ensure!(found == expected, "{extent:?} differs");
        // A drive that was never written elsewhere: the block before, and so the one after the extent before, is all zeroes.
        let before = Extent {
            lba: extent.lba - 1,
            blocks: 1,
            ..*extent
        };
        let gap = target.read(&before)?;
        ensure!(
            gap.iter().all(|byte| *byte == 0),
            "something was written before {extent:?}"
        );
    }
    println!("compared {} pieces", extents.len());
    Ok(())
}
