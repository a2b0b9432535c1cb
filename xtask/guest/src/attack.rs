//! Commands of every opcode with any body, from a client that was lent a slice: whatever they ask for, the client must not learn what lies outside. What they changed is
//! seen on the host, which compares the drive.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use nvme_vfio::{Address, AdminData, Buffer, Controller, Error, IoQueue, Outcome, QueueOptions};
use nvme_vfio_queues::{Command, Status};

use crate::pattern::Random;

/// What every sector outside of the slice begins with.
const OUTSIDE: &[u8; 8] = b"OUTSIDE!";
/// Bytes of the memory that commands point to, the list page at its end.
const MEMORY: usize = 256 << 10;
const LIST: usize = MEMORY - 8192;
/// Admin commands that a driver cannot send at random and go on: they take its own queues or doorbells away, or are answered only when something happens.
const UNSENT: [u8; 4] = [0x00, 0x04, 0x0c, 0x7c];

/// What became of the commands.
#[derive(Debug, Default)]
struct Count {
    by_status: BTreeMap<u16, u64>,
    sent: u64,
}

struct Attacker {
    random: Random,
    memory: Buffer,
    blocks: u64,
    count: Count,
}

/// Sends `times` bodies of each opcode on both queues.
pub(crate) fn attack(address: &Address, seed: u64, times: u32) -> Result<()> {
    println!("the bodies come from seed {seed}");
    let controller = Controller::open(address)?;
    let namespace = controller.namespace(1)?;
    let mut queue = controller.io_queue(QueueOptions::with_depth(16))?;
    let mut attacker = Attacker {
        random: Random::new(seed),
        memory: controller.allocate(MEMORY)?,
        blocks: namespace.blocks(),
        count: Count::default(),
    };
    for opcode in 0..=u8::MAX {
        for _ in 0..times {
            attacker.io(&mut queue, opcode)?;
        }
    }
    attacker.report("I/O");
    for opcode in (0..=u8::MAX).filter(|opcode| !UNSENT.contains(opcode)) {
        for _ in 0..times {
            attacker.admin(&controller, opcode)?;
        }
    }
    attacker.report("admin");
    // After all that the client still has what it was granted.
    let mut data = controller.allocate(64 << 10)?;
    Random::new(seed).fill(&mut data);
    let expected = data.to_vec();
    let data = queue.write_blocking(&namespace, 0, data)?;
    let data = queue.read_blocking(&namespace, 0, data)?;
    ensure!(data[..] == expected, "the client's own data differs");
    println!("the client's own data is right");
    Ok(())
}

impl Attacker {
    fn pick(&mut self, values: &[u64]) -> u64 {
        values[self.random.below(values.len() as u64) as usize]
    }

    /// A block number: most of them near the ends of the slice.
    fn lba(&mut self) -> u64 {
        let (end, any) = (self.blocks, self.random.next());
        let edge = self.pick(&[
            0,
            1,
            end - 1,
            end,
            end + 1,
            end - 8,
            end / 2,
            1 << 32,
            u64::MAX,
            any,
        ]);
        match self.random.below(3) {
            0 => edge.wrapping_add(self.random.below(16)).wrapping_sub(8),
            1 => self.random.below(end),
            _ => edge,
        }
    }

    /// A body of any shape, biased to what is nearly right.
    fn body(&mut self, opcode: u8) -> Command {
        let base = self.memory.iova().0;
        let any = self.random.next();
        let nsid = self.pick(&[1, 1, 1, 1, 1, 1, 0, 2, 3, 0xffff_ffff, 0xffff_fffe, any]) as u32;
        let lba = self.lba();
        let sixteen = any & 0xffff;
        let cdw12 = self.pick(&[
            0,
            7,
            15,
            1 << 30,
            1 << 25 | 7,
            1 << 23 | 7,
            1 << 31,
            sixteen,
            any >> 32,
        ]) as u32;
        let offset = self.random.below(MEMORY as u64) & !3;
        let prp1 = self.pick(&[
            base,
            base,
            base,
            base,
            base + offset,
            base + offset,
            0,
            any,
            base + MEMORY as u64,
        ]);
        let list = base + LIST as u64;
        let prp2 = self.pick(&[list, list, base + 4096, base + 4096, 0, any, list + 8]);
        let mut command = Command {
            opcode,
            nsid,
            prp1,
            prp2,
            cdw10: lba as u32,
            cdw11: (lba >> 32) as u32,
            cdw12,
            ..Command::ZERO
        };
        match self.random.below(4) {
            // As it is.
            0 | 1 => {}
            // Counts and attributes in dword 10 and 11, as Dataset Management has them.
            2 => {
                command.cdw10 = self.random.below(4) as u32;
                command.cdw11 = self.pick(&[0, 4, 4, 7, any]) as u32;
            }
            // One field of any kind.
            _ => {
                let value = self.random.next();
                match self.random.below(9) {
                    0 => command.flags = value as u8,
                    1 => command.cdw2 = value as u32,
                    2 => command.cdw3 = value as u32,
                    3 => command.mptr = value,
                    4 => command.cdw10 = value as u32,
                    5 => command.cdw11 = value as u32,
                    6 => command.cdw13 = value as u32,
                    7 => command.cdw14 = value as u32,
                    _ => command.cdw15 = value as u32,
                }
            }
        }
        self.fill_memory();
        command
    }

    /// Range lists at the front, a PRP list at the end.
    fn fill_memory(&mut self) {
        let base = self.memory.iova().0;
        for range in 0..4 {
            let (first, second) = (self.lba(), self.lba());
            let blocks = self.random.below(64);
            let bytes = &mut self.memory[range * 32..][..32];
            // A Dataset Management's range is 16 bytes long: attributes, blocks, first block. A Copy's has its first block at 8 and its blocks at 16.
            bytes[..4].copy_from_slice(&[0; 4]);
            bytes[4..8].copy_from_slice(&(blocks as u32).to_le_bytes());
            bytes[8..16].copy_from_slice(&first.to_le_bytes());
            bytes[16..24].copy_from_slice(&blocks.to_le_bytes());
            bytes[24..32].copy_from_slice(&second.to_le_bytes());
        }
        for entry in 0..512u64 {
            let stray = self.random.below(64) == 0;
            let address = if stray {
                self.random.next() & !0xfff
            } else {
                base + 4096 * (1 + entry % 60)
            };
            self.memory[LIST + entry as usize * 8..][..8].copy_from_slice(&address.to_le_bytes());
        }
    }

    fn io(&mut self, queue: &mut IoQueue, opcode: u8) -> Result<()> {
        let command = self.body(opcode);
        // SAFETY: every address of this process that the command can name lies in `memory`, which is not looked at before the command has ended and lives as long as `self`;
        // all others are not memory of this client, and whoever serves it must refuse them, which is what is tried here.
        #[allow(unsafe_code)]
        unsafe { queue.submit_raw(command, 1) }?;
        let completion = queue.wait()?.context("nothing was in flight")?;
        ensure!(
            completion.outcome == Outcome::Done,
            "{command:?} ended as {:?}",
            completion.outcome
        );
        self.ended(&command, completion.entry.status())
    }

    fn admin(&mut self, controller: &Controller, opcode: u8) -> Result<()> {
        let command = self.body(opcode);
        // SAFETY: as in `io`. What takes the driver's queues away is not sent.
        #[allow(unsafe_code)]
        let status = match unsafe { controller.admin_raw(command, AdminData::None) } {
            Ok(entry) => entry.status(),
            Err(Error::Status { status, .. }) => status,
            Err(error) => return Err(error).context(format!("{command:?}")),
        };
        self.ended(&command, status)
    }

    fn ended(&mut self, command: &Command, status: Status) -> Result<()> {
        self.count.sent += 1;
        *self
            .count
            .by_status
            .entry(status.code().to_raw())
            .or_default() += 1;
        let learned = self
            .memory
            .windows(OUTSIDE.len())
            .step_by(8)
            .any(|bytes| bytes == OUTSIDE);
        ensure!(
            !learned,
            "{command:?} brought data from outside of the slice"
        );
        Ok(())
    }

    fn report(&mut self, queue: &str) {
        let count = std::mem::take(&mut self.count);
        println!("{queue}: {} commands", count.sent);
        for (status, times) in count.by_status {
            println!("  {times:8} {}", Status::from_raw(status));
        }
    }
}
