//! A process that is killed while it writes, and the next that opens the controller.

use std::env;
use std::io::{BufRead, BufReader};
use std::ops::Range;
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use nvme_vfio::{Controller, IoQueue, QueueOptions};
use nvme_vfio_pci::PciAddress;

use crate::pattern::{Found, Random, SECTOR, found, mark, vfio};

const DEPTH: u32 = 128;
/// Bytes of one write.
const LENGTH: usize = 4096;
/// Bytes at the drive's beginning that `hammer` writes to.
const HAMMERED: u64 = 8 << 20;
/// Bytes of one read when it is looked at.
const STEP: usize = 1 << 20;

/// Writes at full depth. Says so once, when every slot has been in use.
pub(crate) fn hammer(address: PciAddress) -> Result<()> {
    let controller = Controller::open(&vfio(address))?;
    let namespace = controller.only_namespace()?;
    let mut queue = controller.io_queue(QueueOptions::with_depth(DEPTH))?;
    ensure!(queue.depth() == DEPTH as usize, "depth {}", queue.depth());
    let per_sector = u64::from(namespace.block_size()) / SECTOR as u64;
    let blocks = LENGTH as u64 / u64::from(namespace.block_size());
    let mut random = Random::new(u64::from(std::process::id()));
    let mut spare: Vec<_> = (0..DEPTH)
        .map(|_| controller.allocate(LENGTH))
        .collect::<Result<_, _>>()?;
    for round in 1.. {
        while let Some(mut buffer) = spare.pop() {
            let lba = random.below(HAMMERED / LENGTH as u64) * blocks;
            mark(&mut buffer, lba * per_sector, round);
            queue.write(&namespace, lba, buffer, round)?;
        }
        if round == 4 * u64::from(DEPTH) {
            println!("hammering");
        }
        let completion = queue.wait()?.context("nothing was in flight")?;
        completion.result()?;
        spare.extend(completion.buffer);
    }
    bail!("there was always a next round")
}

/// Kills `hammer` again and again. Each time the controller opens at once, still holds what was written after the kill before, and
/// takes more. Only what was in flight at a kill may be neither old nor new.
pub(crate) fn kill(address: PciAddress, times: Range<u32>) -> Result<()> {
    for time in times {
        let mut random = Random::new(time.into());
        let mut child = Command::new(env::current_exe()?)
            .args(["hammer", &address.to_string()])
            .stdout(Stdio::piped())
            .spawn()?;
        let mut line = String::new();
        let stdout = child.stdout.take().context("no standard output")?;
        BufReader::new(stdout).read_line(&mut line)?;
        ensure!(line == "hammering\n", "kill {time}: hammer said {line:?}");
        sleep(Duration::from_micros(random.below(10_000)));
        if let Some(status) = child.try_wait()? {
            bail!("kill {time}: hammer ended by itself with {status}");
        }
        child.kill()?; // SIGKILL
        child.wait()?;
        let whole = look(address, time).with_context(|| format!("after kill {time}"))?;
        println!("kill {time} is survived, {whole} sectors are written");
    }
    Ok(())
}

/// Opens the controller after kill `time`, counted from 0, and looks at everything. Tells how many sectors hold a whole mark.
fn look(address: PciAddress, time: u32) -> Result<usize> {
    let controller = Controller::open(&vfio(address))?;
    let namespace = controller.only_namespace()?;
    let mut queue = controller.io_queue(QueueOptions::default())?;
    let block = u64::from(namespace.block_size());
    let read = |queue: &mut IoQueue, byte: u64| -> Result<Vec<Found>> {
        let mut buffer = controller.allocate(STEP)?;
        buffer.fill(0x11);
        let buffer = queue.read_blocking(&namespace, byte / block, buffer)?;
        Ok(found(&buffer, byte / SECTOR as u64).collect())
    };

    let mut all = Vec::new();
    for start in (0..HAMMERED).step_by(STEP) {
        all.extend(read(&mut queue, start)?);
    }
    let count = |wanted: fn(&Found) -> bool| all.iter().filter(|found| wanted(found)).count();
    let whole = count(|found| matches!(found, Found::Round(_)));
    let other = count(|found| *found == Found::Other);
    let in_flight = DEPTH as usize * LENGTH / SECTOR;
    ensure!(whole > in_flight, "only {whole} sectors were written");
    ensure!(
        other <= in_flight * (time as usize + 1),
        "{other} sectors are neither old nor new"
    );

    // The megabyte after that is ours: it keeps what the last process put there, and takes what this one does.
    let kept = read(&mut queue, HAMMERED)?;
    let expected = match time {
        0 => Found::Empty,
        time => Found::Round(time.into()),
    };
    ensure!(
        kept.iter().all(|found| *found == expected),
        "what was written and reported before is gone"
    );
    let mut buffer = controller.allocate(STEP)?;
    mark(&mut buffer, HAMMERED / SECTOR as u64, u64::from(time) + 1);
    queue.write_blocking(&namespace, HAMMERED / block, buffer)?;
    ensure!(
        controller.events() == Default::default(),
        "{:?}",
        controller.events()
    );
    Ok(whole)
}
