//! SET_IRQS.

use std::os::fd::{AsFd, OwnedFd};

use crate::common::*;
use nix::sys::eventfd::{EfdFlags, EventFd};
use nvme_vfio_user::device::{Errno, IrqAction};
use nvme_vfio_user::message::IrqSetData;

use super::*;

#[test]
fn interrupts_are_set_up_in_chunks_and_signalled() {
    use IrqAction::Trigger;
    let mut rig = Rig::open();
    let eventfds: Vec<EventFd> = (0..16)
        .map(|_| EventFd::from_flags(EfdFlags::EFD_NONBLOCK).expect("an eventfd"))
        .collect();
    for (chunk, start) in eventfds.chunks(8).zip([0, 8]) {
        let descriptors: Vec<_> = chunk.iter().map(|eventfd| eventfd.as_fd()).collect();
        let id = rig.client.send(
            &irqs(MSIX, start, 8, Trigger, IrqSetData::Eventfd),
            &descriptors,
        );
        rig.answer(id).expect("set up");
    }
    assert_eq!(rig.device.state().vectors.len(), 16);
    rig.ask(&write(BAR, 0, &[1])).expect("written");
    assert_eq!(eventfds[0].read(), Ok(1));
    // Some of a range, all of one, and what has no eventfd.
    rig.ask(&irqs(MSIX, 7, 3, Trigger, IrqSetData::Bool(&[1, 0, 2])))
        .expect("triggered");
    rig.ask(&irqs(MSIX, 14, 4, Trigger, IrqSetData::None))
        .expect("triggered");
    for (vector, eventfd) in eventfds.iter().enumerate() {
        let expected = if [7, 9, 14, 15].contains(&vector) {
            Ok(1)
        } else {
            Err(Errno::EAGAIN)
        };
        assert_eq!(eventfd.read(), expected, "{vector}");
    }
    // Taken away: some, then all.
    rig.ask(&irqs(MSIX, 0, 4, Trigger, IrqSetData::Eventfd))
        .expect("taken away");
    assert_eq!(rig.device.state().vectors.len(), 12);
    rig.ask(&irqs(MSIX, 0, 0, Trigger, IrqSetData::None))
        .expect("disabled");
    assert!(rig.device.state().vectors.is_empty());
    rig.ask(&irqs(0, 0, 1, IrqAction::Mask, IrqSetData::None))
        .expect("masked");
    assert_eq!(rig.device.state().masked, [(0..1, true)]);
}

#[test]
fn interrupts_that_are_not_there_are_refused() {
    use IrqAction::{Mask, Trigger};
    let mut rig = Rig::open();
    let eventfd = || -> OwnedFd { EventFd::new().expect("an eventfd").into() };
    let (one, two) = (eventfd(), eventfd());
    let not: OwnedFd = memfd(1).into();
    let none = IrqSetData::None;
    let by_eventfd = IrqSetData::Eventfd;
    for (request, descriptors) in [
        (irqs(5, 0, 1, Trigger, none), &[][..]),
        (irqs(1, 0, 1, Trigger, none), &[]),
        (irqs(MSIX, VECTORS, 1, Trigger, none), &[]),
        (irqs(MSIX, VECTORS - 1, 2, Trigger, none), &[]),
        (irqs(MSIX, 0, u32::MAX, Trigger, none), &[]),
        (irqs(MSIX, u32::MAX, 1, Trigger, none), &[]),
        (irqs(MSIX, 0, 1, Mask, none), &[]),
        (irqs(MSIX, 0, 1, Trigger, none), &[&one]),
        (
            irqs(MSIX, 0, 2, Trigger, IrqSetData::Bool(&[1, 1])),
            &[&one, &two],
        ),
        (irqs(MSIX, 0, 2, Trigger, by_eventfd), &[&one]),
        (irqs(MSIX, 0, 1, Trigger, by_eventfd), &[&one, &two]),
        (irqs(MSIX, 0, 2, Trigger, by_eventfd), &[&one, &not]),
        (irqs(4, 0, 1, Trigger, by_eventfd), &[&one]),
    ] {
        assert_eq!(
            rig.ask_with(&request, descriptors).expect_err("refused"),
            Errno::EINVAL,
            "{request:?}"
        );
    }
    assert!(rig.device.state().vectors.is_empty());
}
