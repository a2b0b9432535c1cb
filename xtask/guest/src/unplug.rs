//! A controller that is pulled out of its slot.

use std::collections::HashSet;
use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use nvme_vfio::{Buffer, Controller, Error, IoQueue, Options, Outcome, QueueOptions, SubmitError};
use nvme_vfio_pci::PciAddress;

use crate::pattern::vfio;

const LENGTH: usize = 4096;
const PATIENCE: Duration = Duration::from_secs(60);
/// More than a busy machine takes for what is done at once.
const AT_ONCE: Duration = Duration::from_secs(30);

pub(crate) fn unplug(address: PciAddress, port: PciAddress) -> Result<()> {
    // Whoever waits for a controller that has gone waits this long.
    let options = Options {
        io_timeout: PATIENCE,
        admin_timeout: PATIENCE,
        ready_timeout: Some(PATIENCE),
        ..Options::default()
    };
    let controller = Controller::open_with(&vfio(address), options)?;
    let namespace = controller.only_namespace()?;
    let mut queue = controller.io_queue(QueueOptions::with_depth(64))?;
    let mut spare = Vec::new();
    for _ in 0..queue.depth() {
        spare.push(controller.allocate(LENGTH)?);
    }
    let mut reads = 0;
    let mut submit = |queue: &mut IoQueue, spare: &mut Vec<Buffer>| -> Result<HashSet<u64>> {
        let mut out = HashSet::new();
        while let Some(buffer) = spare.pop() {
            queue.read(&namespace, reads % 1000, buffer, reads)?;
            out.insert(reads);
            reads += 1;
        }
        queue.ring();
        Ok(out)
    };
    for _ in 0..10 {
        let mut out = submit(&mut queue, &mut spare)?;
        while let Some(completion) = queue.wait()? {
            completion.result()?;
            ensure!(out.remove(&completion.token));
            spare.extend(completion.buffer);
        }
        ensure!(out.is_empty());
    }
    // At rest, since QEMU does not survive a drive that answers a controller that is away.
    pull(port)?;

    let mut out = submit(&mut queue, &mut spare)?;
    let start = Instant::now();
    while !out.is_empty() {
        ensure!(
            start.elapsed() < PATIENCE,
            "{} reads never ended",
            out.len()
        );
        // What has gone is reported by `poll`; the error tells no more.
        if let Err(error) = queue.check_deadlines(Instant::now()) {
            println!("noticed: {error}");
        }
        while let Some(completion) = queue.poll() {
            ensure!(
                out.remove(&completion.token),
                "{} was reported twice",
                completion.token
            );
            ensure!(
                matches!(completion.outcome, Outcome::TimedOut | Outcome::Gone),
                "a read ended with {:?}",
                completion.outcome
            );
            ensure!(
                completion.buffer.is_none(),
                "nothing proves that the memory is free"
            );
        }
    }
    ensure!(queue.in_flight() == 0 && queue.poll().is_none());
    let mut buffer = controller.allocate(LENGTH)?;
    buffer.fill(1);
    let refused = queue.write(&namespace, 0, buffer, 1);
    ensure!(
        matches!(&refused, Err(refused) if refused.error == SubmitError::Gone && refused.buffer.is_some()),
        "{refused:?}"
    );
    drop(refused);
    // Whoever asks after that is told the same, at once.
    let asked = Instant::now();
    let identify = controller.namespaces();
    ensure!(matches!(identify, Err(Error::Gone)), "{identify:?}");
    let made = controller.io_queue(QueueOptions::default()).map(drop);
    ensure!(matches!(made, Err(Error::Gone)), "{made:?}");
    ensure!(asked.elapsed() < AT_ONCE);
    println!("gone");
    Ok(())
}

/// Switches the slot's power off, as a mechanical latch would: the device is away at once, and nobody was asked.
fn pull(port: PciAddress) -> Result<()> {
    const CAPABILITY_LIST: u64 = 0x34;
    const PCI_EXPRESS: u8 = 0x10;
    const SLOT_CONTROL: u64 = 0x18;
    /// Presence Detect Changed Enable: the kernel is told, as it is of a slot without an attention button.
    const PRESENCE: u16 = 1 << 3;
    /// Hot-Plug Interrupt Enable.
    const INTERRUPT: u16 = 1 << 5;
    /// Power Indicator Control: off.
    const INDICATOR_OFF: u16 = 0b11 << 8;
    /// Power Controller Control: off.
    const POWER_OFF: u16 = 1 << 10;
    let config = OpenOptions::new()
        .read(true)
        .write(true)
        .open(format!("/sys/bus/pci/devices/{port}/config"))?;
    let byte = |offset: u64| -> Result<u8> {
        let mut byte = [0];
        config.read_exact_at(&mut byte, offset)?;
        Ok(byte[0])
    };
    let mut at = u64::from(byte(CAPABILITY_LIST)?);
    while byte(at)? != PCI_EXPRESS {
        at = u64::from(byte(at + 1)?);
        ensure!(at != 0, "{port} is no PCI Express port");
    }
    let mut control = [0; 2];
    config.read_exact_at(&mut control, at + SLOT_CONTROL)?;
    let before = u16::from_le_bytes(control);
    // With the power off QEMU takes the device away. The kernel is told when the power is on again: a slot that is off it
    // would take for one that nobody uses.
    let off = before & !INTERRUPT | INDICATOR_OFF | POWER_OFF;
    for control in [off, before | INTERRUPT | PRESENCE] {
        config.write_all_at(&control.to_le_bytes(), at + SLOT_CONTROL)?;
    }
    Ok(())
}
