//! Several controllers in one process: in two groups, which share nothing, and in one, which share their domain.

use std::collections::HashSet;
use std::fs;
use std::thread;

use anyhow::{Context, Result, bail, ensure};
use nvme_vfio::{
    Buffer, Controller, Error, Group, IoQueue, Namespace, Options, QueueOptions, SubmitError,
};
use nvme_vfio_pci::PciAddress;
use nvme_vfio_queues::{BlockCount, Command, DataPointer};

use crate::pattern::{Random, vfio};

/// A controller with its queue.
struct Open {
    controller: Controller,
    namespace: Namespace,
    queue: IoQueue,
}

impl Open {
    fn new(controller: Controller) -> Result<Self> {
        Ok(Self {
            namespace: controller.only_namespace()?,
            queue: controller.io_queue(QueueOptions::with_depth(32))?,
            controller,
        })
    }

    fn buffer(&self, length: usize, byte: u8) -> Result<Buffer> {
        let mut buffer = self.controller.allocate(length)?;
        buffer.fill(byte);
        Ok(buffer)
    }

    /// Writes and reads back pieces that no other seed makes.
    fn work(&mut self, seed: u64) -> Result<()> {
        let mut random = Random::new(seed);
        for _ in 0..100 {
            let length = (1 + random.below(16) as usize) * 4096;
            let lba = random.below(self.namespace.blocks() - 128);
            let mut buffer = self.controller.allocate(length)?;
            random.fill(&mut buffer);
            let expected = buffer.to_vec();
            self.queue.write_blocking(&self.namespace, lba, buffer)?;
            let buffer = self.buffer(length, 0x11)?;
            let buffer = self.queue.read_blocking(&self.namespace, lba, buffer)?;
            ensure!(buffer[..] == expected, "LBA {lba} of seed {seed} differs");
        }
        Ok(())
    }
}

/// How many descriptors this process has open on `node`.
fn descriptors(node: &str) -> Result<usize> {
    let mut count = 0;
    for entry in fs::read_dir("/proc/self/fd")? {
        count +=
            usize::from(fs::read_link(entry?.path()).is_ok_and(|path| path.as_os_str() == node));
    }
    Ok(count)
}

/// The bytes that are mapped in this controller's domain.
fn mapped(controller: &Controller) -> Vec<(u64, u64)> {
    let mappings = controller.address_space().mappings();
    mappings
        .iter()
        .map(|(iova, length)| (iova.0, iova.0 + *length as u64))
        .collect()
}

pub(crate) fn two(first: PciAddress, second: PciAddress) -> Result<()> {
    let mut one = Open::new(Controller::open(&vfio(first))?)?;
    let mut two = Open::new(Controller::open(&vfio(second))?)?;
    ensure!(
        descriptors("/dev/vfio/vfio")? == 2,
        "{} containers",
        descriptors("/dev/vfio/vfio")?
    );
    ensure!(one.controller.address_space().id() != two.controller.address_space().id());

    // Both work at the same time.
    let threads = [(1, one), (2, two)].map(|(seed, mut open)| {
        thread::spawn(move || -> Result<Open> {
            open.work(seed)?;
            Ok(open)
        })
    });
    let mut done = threads.into_iter().map(|thread| {
        thread
            .join()
            .map_err(|_| anyhow::anyhow!("a thread panicked"))?
    });
    one = done.next().context("no thread")??;
    two = done.next().context("no thread")??;

    // A buffer of one is refused by the other's queue, and given back; so is the other's namespace.
    let foreign = one.buffer(4096, 0x33)?;
    let refused = match two.queue.read(&two.namespace, 0, foreign, 1) {
        Err(refused) => refused,
        Ok(()) => bail!("a buffer of another group was taken"),
    };
    ensure!(refused.error == SubmitError::ForeignBuffer, "{refused}");
    let foreign = refused.buffer.context("the buffer was not given back")?;
    let own = two.buffer(4096, 0)?;
    let refused = two.queue.read(&one.namespace, 0, own, 1);
    ensure!(
        matches!(&refused, Err(refused) if refused.error == SubmitError::ForeignNamespace),
        "{refused:?}"
    );
    one.queue.write_blocking(&one.namespace, 0, foreign)?;

    // Nor can the device reach it: the IOMMU stops a command that names an address mapped only for the other. Memory is
    // allocated until there is such an address.
    let others = mapped(&two.controller);
    let mut held = Vec::new();
    let target = loop {
        let buffer = one.buffer(1 << 20, 0x44)?;
        let (start, end) = (buffer.iova().0, buffer.iova().0 + buffer.len() as u64);
        if others.iter().all(|(from, to)| end <= *from || *to <= start) {
            break buffer;
        }
        held.push(buffer);
        ensure!(held.len() < 256, "no address is mapped for one domain only");
    };
    ensure!(
        mapped(&two.controller) == others,
        "memory of one group appeared in the other"
    );
    let pointer = DataPointer {
        prp1: target.iova().0,
        prp2: 0,
    };
    println!("stray {} at {:#x}", second, target.iova().0);
    let command = Command::read(two.namespace.id(), 0, BlockCount::ONE, pointer);
    // SAFETY: not sound, and meant not to be. The address is not mapped in this controller's domain, as was just seen, so the
    // IOMMU stops the access; `target`, which it names in another domain, is not used before the completion.
    #[allow(unsafe_code)]
    unsafe { two.queue.submit_raw(command, 7) }?;
    two.queue.wait()?.context("nothing was in flight")?;
    ensure!(
        target.iter().all(|byte| *byte == 0x44),
        "a controller wrote to another group's memory"
    );
    one.work(3)?;
    two.work(4)?;
    println!("two groups work side by side");
    Ok(())
}

pub(crate) fn one(first: PciAddress, second: PciAddress) -> Result<()> {
    let group = Group::of(first)?;
    let mut one = Open::new(group.controller(first, Options::default())?)?;
    let mut two = Open::new(group.controller(second, Options::default())?)?;
    ensure!(descriptors("/dev/vfio/vfio")? == 1);
    ensure!(one.controller.address_space().id() == two.controller.address_space().id());
    let serials: HashSet<_> = [&one, &two]
        .map(|open| open.controller.identify().sn)
        .into();
    ensure!(serials.len() == 2, "one controller was opened twice");

    // One buffer serves both: what one reads the other writes.
    let mut buffer = one.controller.allocate(64 << 10)?;
    Random::new(5).fill(&mut buffer);
    let expected = buffer.to_vec();
    let mut buffer = one.queue.write_blocking(&one.namespace, 9, buffer)?;
    buffer.fill(0);
    let buffer = one.queue.read_blocking(&one.namespace, 9, buffer)?;
    let mut buffer = two.queue.write_blocking(&two.namespace, 77, buffer)?;
    buffer.fill(0);
    let buffer = two.queue.read_blocking(&two.namespace, 77, buffer)?;
    ensure!(buffer[..] == expected, "the data has changed on its way");
    // The namespaces stay each its controller's.
    let refused = two.queue.read(&one.namespace, 0, buffer, 1);
    ensure!(
        matches!(&refused, Err(refused) if refused.error == SubmitError::ForeignNamespace),
        "{refused:?}"
    );
    drop(refused);
    one.work(6)?;
    two.work(7)?;

    let again = group.controller(first, Options::default());
    ensure!(matches!(again, Err(Error::AlreadyOpen { .. })), "{again:?}");
    // A reset of one is nothing to the other.
    one.controller.recover()?;
    ensure!(one.queue.needs_rebuild() && !two.queue.needs_rebuild());
    two.work(8)?;
    one.queue.rebuild()?;
    one.work(9)?;
    // One goes, the other stays, and the first can be opened again.
    drop(one);
    two.work(10)?;
    let mut one = Open::new(group.controller(first, Options::default())?)?;
    one.work(11)?;
    println!("two functions of one group work side by side");
    Ok(())
}
