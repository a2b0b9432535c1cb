//! A read that does not end in time, under recovery that may only abort.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nvme_vfio::{Controller, Options, Outcome, QueueOptions, RecoveryLimit};
use nvme_vfio_pci::PciAddress;

use crate::pattern::{Found, SECTOR, found, mark, vfio};

/// How long to wait for what the host does.
const PATIENCE: Duration = Duration::from_secs(60);
const LENGTH: usize = 16 << 10;
const SENTINEL: u8 = 0x5e;
const ROUND: u64 = 1;

pub(crate) fn hung(address: PciAddress) -> Result<()> {
    // Reads that the host does not hold back are in time, also where it has stopped the machine for seconds.
    let options = Options {
        io_timeout: Duration::from_secs(15),
        abort_grace: Duration::from_millis(500),
        recovery: RecoveryLimit::Abort,
        ..Options::default()
    };
    let controller = Controller::open_with(&vfio(address), options)?;
    let namespace = controller.only_namespace()?;
    let mut queue = controller.io_queue(QueueOptions::with_depth(4))?;
    let mut buffer = controller.allocate(LENGTH)?;
    mark(&mut buffer, 0, ROUND);
    queue.write_blocking(&namespace, 0, buffer)?;

    println!("reading");
    let start = Instant::now();
    let mut token = 0;
    let memory = loop {
        ensure!(start.elapsed() < PATIENCE, "every read has ended");
        token += 1;
        let mut buffer = controller.allocate(LENGTH)?;
        buffer.fill(SENTINEL);
        let memory = buffer.as_ptr();
        queue.read(&namespace, 0, buffer, token)?;
        let completion = queue.wait()?.context("nothing was in flight")?;
        ensure!(completion.token == token);
        match completion.outcome {
            Outcome::Done => completion.result().map(drop)?,
            Outcome::TimedOut => {
                ensure!(
                    completion.buffer.is_none(),
                    "memory was given back that the controller still has"
                );
                break memory;
            }
            other => bail!("the read ended with {other:?}"),
        }
    };
    let events = controller.events();
    ensure!(
        (events.timeouts, events.aborts, events.not_aborted) == (1, 1, 1),
        "{events:?}"
    );
    ensure!((events.late, events.resets) == (0, 0), "{events:?}");
    ensure!(queue.poll().is_none() && queue.in_flight() == 0);
    ensure!(queue.reclaim().next().is_none() && queue.overdue() == 1);
    // SAFETY: the memory is quarantined: the queue keeps it mapped, and nobody but the device writes it.
    #[allow(unsafe_code)]
    let byte = unsafe { memory.read_volatile() };
    ensure!(byte == SENTINEL, "the data has come before it was late");

    // The queue goes on with the slots that it has left.
    let buffer = queue.read_blocking(&namespace, 0, controller.allocate(LENGTH)?)?;
    ensure!(found(&buffer, 0).all(|found| found == Found::Round(ROUND)));
    println!("timed out");

    let start = Instant::now();
    let (reclaimed, buffer) = loop {
        ensure!(queue.poll().is_none(), "the read was reported twice");
        if let Some(reclaimed) = queue.reclaim().next() {
            break reclaimed;
        }
        ensure!(start.elapsed() < PATIENCE, "the memory never came back");
    };
    ensure!(reclaimed == token && buffer.as_ptr() == memory && buffer.len() == LENGTH);
    ensure!(
        found(&buffer, 0).eq([Found::Round(ROUND); LENGTH / SECTOR]),
        "the late data is not that of the drive"
    );
    let events = controller.events();
    ensure!((events.late, events.resets) == (1, 0), "{events:?}");
    ensure!(queue.overdue() == 0);
    // All slots are there again.
    for token in 0..queue.depth() as u64 {
        queue.read(&namespace, 0, controller.allocate(LENGTH)?, token)?;
    }
    while let Some(completion) = queue.wait()? {
        completion.result()?;
    }
    println!("reclaimed");
    Ok(())
}
