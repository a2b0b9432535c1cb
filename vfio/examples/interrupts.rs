//! Sets, triggers, masks and disables a function's interrupts in every order that matters, and prints what comes back: `interrupts ADDRESS`.

use std::error::Error;
use std::os::fd::AsFd;

use nix::sys::eventfd::{EfdFlags, EventFd};
use nvme_vfio_pci::{
    Device, Group, IRQ_INTX, IRQ_MSIX, IRQ_REQUEST, IrqFlags, IrqSelection, PciAddress, Sysfs,
};

fn main() -> Result<(), Box<dyn Error>> {
    let argument = std::env::args().nth(1).ok_or("usage: interrupts ADDRESS")?;
    let address: PciAddress = argument.parse()?;
    let sysfs = Sysfs::system();
    let device = Group::open(&sysfs, sysfs.group_of(address)?)?.device(address)?;
    for index in 0..device.info().irqs {
        println!(
            "index {index}: {}",
            text(device.irq_info(index).map(|info| (info.count, info.flags)))
        );
    }
    let fixed = device
        .irq_info(IRQ_MSIX)?
        .flags
        .contains(IrqFlags::NORESIZE);
    println!("more can be added: {}", !fixed);

    let first = EventFd::from_flags(EfdFlags::EFD_NONBLOCK)?;
    let second = EventFd::from_flags(EfdFlags::EFD_NONBLOCK)?;
    let set = |index, start, eventfd: &EventFd| {
        text(device.set_irqs(index, start, &[Some(eventfd.as_fd())]))
    };
    let count = device.irq_info(IRQ_MSIX)?.count;
    println!("set past the last: {}", set(IRQ_MSIX, count, &first));
    println!("trigger before set: {}", trigger(&device, IRQ_MSIX, 0));
    println!("set 0: {}", set(IRQ_MSIX, 0, &first));
    println!(
        "trigger 0: {}, counted {}",
        trigger(&device, IRQ_MSIX, 0),
        counted(&first)
    );
    println!("set 1: {}", set(IRQ_MSIX, 1, &second));
    println!("INTx beside MSI-X: {}", set(IRQ_INTX, 0, &second));
    println!(
        "mask MSI-X: {}",
        text(device.mask_irqs(IRQ_MSIX, 0, IrqSelection::Count(1)))
    );
    println!("disable: {}", text(device.disable_irqs(IRQ_MSIX)));
    println!("trigger after disable: {}", trigger(&device, IRQ_MSIX, 0));

    let both = [Some(first.as_fd()), Some(second.as_fd())];
    println!("set 0 and 1: {}", text(device.set_irqs(IRQ_MSIX, 0, &both)));
    let chosen = IrqSelection::Chosen(&[false, true]);
    println!(
        "trigger 1 of them: {}",
        text(device.trigger_irqs(IRQ_MSIX, 0, chosen))
    );
    println!("counted {} and {}", counted(&first), counted(&second));
    println!(
        "take 0 away: {}",
        text(device.set_irqs(IRQ_MSIX, 0, &[None]))
    );
    println!(
        "trigger 0: {}, counted {}",
        trigger(&device, IRQ_MSIX, 0),
        counted(&first)
    );
    device.reset()?;
    println!(
        "after a reset, trigger 1: {}, counted {}",
        trigger(&device, IRQ_MSIX, 1),
        counted(&second)
    );
    device.disable_irqs(IRQ_MSIX)?;

    println!("set INTx: {}", set(IRQ_INTX, 0, &first));
    println!(
        "mask INTx: {}",
        text(device.mask_irqs(IRQ_INTX, 0, IrqSelection::Count(1)))
    );
    println!(
        "unmask INTx: {}",
        text(device.unmask_irqs(IRQ_INTX, 0, IrqSelection::Count(1)))
    );
    println!(
        "unmask INTx by eventfd: {}",
        text(device.unmask_irqs_by(IRQ_INTX, 0, &[Some(second.as_fd())]))
    );
    println!(
        "trigger INTx: {}, counted {}",
        trigger(&device, IRQ_INTX, 0),
        counted(&first)
    );
    println!("disable INTx: {}", text(device.disable_irqs(IRQ_INTX)));
    println!("set the kernel's request: {}", set(IRQ_REQUEST, 0, &first));
    println!(
        "trigger the request: {}, counted {}",
        trigger(&device, IRQ_REQUEST, 0),
        counted(&first)
    );
    Ok(())
}

fn trigger(device: &Device, index: u32, irq: u32) -> String {
    text(device.trigger_irqs(index, irq, IrqSelection::Count(1)))
}

/// How often it was signalled since it was read last.
fn counted(eventfd: &EventFd) -> u64 {
    eventfd.read().unwrap_or(0)
}

fn text<T: std::fmt::Debug, E: std::fmt::Debug>(answer: Result<T, E>) -> String {
    match answer {
        Ok(value) => format!("{value:?}"),
        Err(error) => format!("{error:?}"),
    }
}
