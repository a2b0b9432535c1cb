//! The controller's registers, doorbells and configuration space.
//!
//! An input is a list of accesses of any offset, size and value, with steps of the controller between them; the addresses of mapped pages are known
//! to it, so that it can make queues there. Whatever was done, a reset brings the controller back.

use nvme_vfio_dma::Access;

use crate::controller::{ACQ, AQA, ASQ, CAP, CC, CSTS, Host, OWN_REGIONS, RDY};
use crate::input::{Input, hash};
use crate::memory::{PAGE, Region};

const VS: u32 = 0x08;

const REGIONS: [Region; 2] = [
    Region {
        iova: 0x10000,
        pages: 4,
        access: Access::READ_WRITE,
    },
    Region {
        iova: 0x20000,
        pages: 1,
        access: Access::DEVICE_READ,
    },
];

/// Runs an input.
///
/// # Panics
/// When the controller did wrong.
pub fn registers(data: &[u8]) {
    let mut input = Input::new(data);
    let Some(shape) = input.u8() else { return };
    let (dstrd, mpsmin, queues) = (shape & 3, shape >> 2 & 1, 1 + (shape >> 3 & 3));
    let config = format!("size=1M,dstrd={dstrd},mpsmin={mpsmin},queues={queues},stepped=on");
    let mut host = Host::new(&config, hash(data), 8, 0, &REGIONS);
    let constants = (host.emulator.register_read(CAP, 8), host.read(VS));
    while act(&mut host, &mut input).is_some() {
        let now = (host.emulator.register_read(CAP, 8), host.read(VS));
        assert_eq!(constants, now, "CAP or VS has changed");
    }
    host.memory.check();
    host.emulator.reset();
    assert_eq!(host.read(CSTS), 0, "CSTS after a function-level reset");
    let before = host.memory.digest();
    for _ in 0..4 {
        host.emulator.step();
    }
    assert_eq!(
        before,
        host.memory.digest(),
        "memory has changed after the reset"
    );
    if shape & 7 == 0 {
        // The host's queues want a stride of 4 bytes and pages of 4 KiB.
        host.emulator.config_write(4, &[6, 0]);
        host.enable();
        host.memory.check();
    }
}

/// One act of the input; `None` at its end.
fn act(host: &mut Host, input: &mut Input<'_>) -> Option<()> {
    match input.below(11)? {
        0 => {
            let (offset, value) = (register(input)?, input.u32()?);
            host.emulator.register_write(offset, 4, value.into());
        }
        1 => {
            let (offset, value) = (register(input)?, input.u64()?);
            host.emulator.register_write(offset, 8, value);
        }
        2 => {
            // Any size; a value that the registers take for an address of mapped memory.
            let (offset, bytes) = (input.u32()?, input.u8()?);
            let page = u64::from(input.u8()?) << 12;
            host.emulator.register_write(offset, bytes.into(), page);
            let _ = host.emulator.register_read(offset, bytes.into());
        }
        3 => {
            let offset = register(input)?;
            let bytes = if input.u8()? & 1 == 0 { 4 } else { 8 };
            let _ = host.emulator.register_read(offset, bytes);
        }
        4 => {
            let (index, value) = (input.u8()?, input.u16()?);
            host.doorbell(index.into(), value.into());
        }
        5 => {
            let (offset, bytes) = (input.u16()?, input.below(9)?);
            let bytes = input.bytes(bytes.into())?;
            host.emulator.config_write(offset.into(), bytes);
        }
        6 => {
            let (offset, bytes) = (input.u16()?, input.below(9)?);
            let mut into = [0; 8];
            host.emulator
                .config_read(offset.into(), &mut into[..bytes.into()]);
        }
        7 => {
            let (page, offset, length) = (input.below(5)?, input.u8()?, input.u8()?);
            let bytes = input.bytes(length.into())?;
            let (region, page) = if page < 4 { (0, page) } else { (1, 0) };
            let offset = usize::from(page) * PAGE + usize::from(offset) * 16;
            host.memory.write(OWN_REGIONS + region, offset, bytes);
        }
        8 => host.emulator.reset(),
        9 => {
            // As a driver does it, with queues in pages that the input can write.
            let (sizes, cc) = (input.u16()?, u32::from(input.u8()?) << 7 | 0x46_0001);
            host.write(AQA, u32::from(sizes >> 8) << 16 | u32::from(sizes & 0xff));
            host.emulator.register_write(ASQ, 8, REGIONS[0].iova);
            host.emulator
                .register_write(ACQ, 8, REGIONS[0].iova + PAGE as u64);
            host.write(CC, cc);
        }
        _ => {
            host.emulator.step();
            let csts = host.read(CSTS);
            assert!(csts & RDY == 0 || csts != u32::MAX, "{csts:#x}");
        }
    }
    Some(())
}

/// Most offsets are those of registers, some are anything.
fn register(input: &mut Input<'_>) -> Option<u32> {
    let byte = input.u8()?;
    if byte < 0xf0 {
        Some(u32::from(byte & 0x1f) * 4)
    } else {
        input.u32()
    }
}
