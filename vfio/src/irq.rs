//! Interrupts, delivered through eventfds.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{MutexGuard, PoisonError};

use vfio_bindings::bindings::vfio as uapi;

use crate::ioctl::{self, IrqPayload};
use crate::{Device, DeviceError};

/// Index of the legacy interrupt.
pub const IRQ_INTX: u32 = uapi::VFIO_PCI_INTX_IRQ_INDEX;
/// Index of MSI.
pub const IRQ_MSI: u32 = uapi::VFIO_PCI_MSI_IRQ_INDEX;
/// Index of MSI-X.
pub const IRQ_MSIX: u32 = uapi::VFIO_PCI_MSIX_IRQ_INDEX;
/// Index of the kernel's word that the device had an unrecoverable error.
pub const IRQ_ERROR: u32 = uapi::VFIO_PCI_ERR_IRQ_INDEX;
/// Index of the kernel's request to give the device back.
pub const IRQ_REQUEST: u32 = uapi::VFIO_PCI_REQ_IRQ_INDEX;

bitflags::bitflags! {
    /// What can be done with the interrupts of an index.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
    pub struct IrqFlags: u32 {
        /// They can signal eventfds.
        const EVENTFD = uapi::VFIO_IRQ_INFO_EVENTFD;
        /// They can be masked and unmasked.
        const MASKABLE = uapi::VFIO_IRQ_INFO_MASKABLE;
        /// They mask themselves when they fire (INTx).
        const AUTOMASKED = uapi::VFIO_IRQ_INFO_AUTOMASKED;
        /// Once some are enabled, others cannot be added: all have to be disabled first.
        const NORESIZE = uapi::VFIO_IRQ_INFO_NORESIZE;
    }
}

/// What the kernel tells about an interrupt index (`VFIO_DEVICE_GET_IRQ_INFO`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IrqInfo {
    /// The index.
    pub index: u32,
    /// What can be done with them.
    pub flags: IrqFlags,
    /// How many there are.
    pub count: u32,
}

/// Interrupts of one index, for [`Device::trigger_irqs`], [`Device::mask_irqs`] and [`Device::unmask_irqs`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IrqSelection<'a> {
    /// So many, one after the other.
    Count(u32),
    /// Those that are `true`, one after the other.
    Chosen(&'a [bool]),
}

impl IrqSelection<'_> {
    fn len(&self) -> usize {
        match self {
            Self::Count(count) => *count as usize,
            Self::Chosen(flags) => flags.len(),
        }
    }

    fn payload(&self) -> IrqPayload<'_> {
        match self {
            Self::Count(count) => IrqPayload::None(*count),
            Self::Chosen(flags) => IrqPayload::Bool(flags),
        }
    }
}

/// For each index, one past the highest interrupt that is enabled.
#[derive(Debug, Default)]
pub(crate) struct EnabledIrqs(BTreeMap<u32, u32>);

impl EnabledIrqs {
    fn of(&self, index: u32) -> u32 {
        self.0.get(&index).copied().unwrap_or(0)
    }

    /// What the kernel would answer with an EINVAL that tells nothing.
    fn check_enable(&self, info: &IrqInfo, start: u32, count: usize) -> Result<u32, DeviceError> {
        let IrqInfo { index, flags, .. } = *info;
        if !flags.contains(IrqFlags::EVENTFD) {
            return Err(DeviceError::IrqNotAllowed {
                index,
                how: "signalled by eventfd",
            });
        }
        let end = check_range(info, start, count)?;
        if index <= IRQ_MSIX {
            let active = (IRQ_INTX..=IRQ_MSIX).find(|&other| other != index && self.of(other) > 0);
            if let Some(active) = active {
                return Err(DeviceError::IrqKindInUse { index, active });
            }
        }
        let enabled = self.of(index);
        if flags.contains(IrqFlags::NORESIZE) && enabled > 0 && end > enabled {
            return Err(DeviceError::IrqNoResize {
                index,
                enabled,
                end: end.into(),
            });
        }
        Ok(end)
    }
}

/// One past the last of `count` interrupts from `start` on, when there are so many.
fn check_range(info: &IrqInfo, start: u32, count: usize) -> Result<u32, DeviceError> {
    if info.count == 0 {
        return Err(DeviceError::NoIrq { index: info.index });
    }
    let end = u64::from(start).saturating_add(count as u64);
    match u32::try_from(end) {
        Ok(end) if end <= info.count => Ok(end),
        _ => Err(DeviceError::IrqRange {
            index: info.index,
            start,
            end,
            count: info.count,
        }),
    }
}

impl Device {
    /// What the kernel tells about the interrupts of an index.
    ///
    /// # Errors
    ///
    /// [`DeviceError::NoIrq`] when there is no such index.
    pub fn irq_info(&self, index: u32) -> Result<IrqInfo, DeviceError> {
        if index >= self.info().irqs {
            return Err(DeviceError::NoIrq { index });
        }
        let told =
            ioctl::irq_info(self.as_fd(), index).map_err(|source| match source.raw_os_error() {
                // An index that this function does not have, such as errors of one that is not PCI Express.
                Some(libc::EINVAL) => DeviceError::NoIrq { index },
                _ => self.os("asking for an interrupt")(source),
            })?;
        Ok(IrqInfo {
            index,
            flags: IrqFlags::from_bits_truncate(told.flags),
            count: told.count,
        })
    }

    /// Lets interrupts `start`, `start + 1`, ... signal `eventfds`, or nothing where there is `None`.
    ///
    /// With [`IrqFlags::NORESIZE`] the first call decides how many interrupts are enabled; later ones can only change
    /// eventfds among those. To have more, [`Device::disable_irqs`] first.
    ///
    /// # Errors
    ///
    /// [`DeviceError::IrqRange`], [`DeviceError::IrqNoResize`], [`DeviceError::IrqKindInUse`], [`DeviceError::IrqNotAllowed`], and the
    /// kernel's own.
    pub fn set_irqs(
        &self,
        index: u32,
        start: u32,
        eventfds: &[Option<BorrowedFd<'_>>],
    ) -> Result<(), DeviceError> {
        let info = self.irq_info(index)?;
        let mut enabled = self.enabled();
        let end = enabled.check_enable(&info, start, eventfds.len())?;
        if eventfds.is_empty() {
            return Ok(());
        }
        let payload = IrqPayload::Eventfd(eventfds);
        self.irq_action(
            index,
            start,
            uapi::VFIO_IRQ_SET_ACTION_TRIGGER,
            &payload,
            "setting eventfds",
        )?;
        let end = end.max(enabled.of(index));
        enabled.0.insert(index, end);
        Ok(())
    }

    /// Disables all interrupts of an index. Nothing happens when none is enabled.
    ///
    /// # Errors
    ///
    /// [`DeviceError::NoIrq`], and the kernel's own.
    pub fn disable_irqs(&self, index: u32) -> Result<(), DeviceError> {
        self.irq_info(index)?;
        let mut enabled = self.enabled();
        if enabled.of(index) == 0 {
            return Ok(());
        }
        let none = IrqPayload::None(0);
        self.irq_action(
            index,
            0,
            uapi::VFIO_IRQ_SET_ACTION_TRIGGER,
            &none,
            "disabling interrupts",
        )?;
        enabled.0.remove(&index);
        Ok(())
    }

    /// Signals eventfds as if the device had interrupted: a loop back, for tests.
    ///
    /// # Errors
    ///
    /// [`DeviceError::IrqNotEnabled`] when none is enabled, [`DeviceError::IrqRange`] when not all of them are.
    pub fn trigger_irqs(
        &self,
        index: u32,
        start: u32,
        which: IrqSelection<'_>,
    ) -> Result<(), DeviceError> {
        let info = self.irq_info(index)?;
        let enabled = self.enabled();
        let info = IrqInfo {
            count: enabled.of(index),
            ..info
        };
        if info.count == 0 {
            return Err(DeviceError::IrqNotEnabled { index });
        }
        check_range(&info, start, which.len())?;
        if which.len() == 0 {
            // The kernel would take a count of 0 for "disable all".
            return Ok(());
        }
        self.irq_action(
            index,
            start,
            uapi::VFIO_IRQ_SET_ACTION_TRIGGER,
            &which.payload(),
            "triggering interrupts",
        )
    }

    /// Masks interrupts: they stay pending until they are unmasked.
    ///
    /// # Errors
    ///
    /// [`DeviceError::IrqNotAllowed`] without [`IrqFlags::MASKABLE`] (MSI and MSI-X, which are masked in their table).
    pub fn mask_irqs(
        &self,
        index: u32,
        start: u32,
        which: IrqSelection<'_>,
    ) -> Result<(), DeviceError> {
        self.set_mask(
            index,
            start,
            which.len(),
            uapi::VFIO_IRQ_SET_ACTION_MASK,
            &which.payload(),
        )
    }

    /// Unmasks interrupts.
    ///
    /// # Errors
    ///
    /// As [`Device::mask_irqs`].
    pub fn unmask_irqs(
        &self,
        index: u32,
        start: u32,
        which: IrqSelection<'_>,
    ) -> Result<(), DeviceError> {
        self.set_mask(
            index,
            start,
            which.len(),
            uapi::VFIO_IRQ_SET_ACTION_UNMASK,
            &which.payload(),
        )
    }

    /// Lets eventfds unmask interrupts, so that a virtual machine's end of interrupt needs no system call. `None` ends that.
    ///
    /// # Errors
    ///
    /// As [`Device::mask_irqs`].
    pub fn unmask_irqs_by(
        &self,
        index: u32,
        start: u32,
        eventfds: &[Option<BorrowedFd<'_>>],
    ) -> Result<(), DeviceError> {
        let payload = IrqPayload::Eventfd(eventfds);
        self.set_mask(
            index,
            start,
            eventfds.len(),
            uapi::VFIO_IRQ_SET_ACTION_UNMASK,
            &payload,
        )
    }

    fn set_mask(
        &self,
        index: u32,
        start: u32,
        count: usize,
        action: u32,
        payload: &IrqPayload<'_>,
    ) -> Result<(), DeviceError> {
        let info = self.irq_info(index)?;
        check_range(&info, start, count)?;
        if !info.flags.contains(IrqFlags::MASKABLE) {
            return Err(DeviceError::IrqNotAllowed {
                index,
                how: "masked",
            });
        }
        if count == 0 {
            return Ok(());
        }
        self.irq_action(
            index,
            start,
            action,
            payload,
            "masking or unmasking interrupts",
        )
    }

    fn irq_action(
        &self,
        index: u32,
        start: u32,
        action: u32,
        payload: &IrqPayload<'_>,
        step: &'static str,
    ) -> Result<(), DeviceError> {
        ioctl::set_irqs(self.as_fd(), index, start, action, payload).map_err(self.os(step))
    }

    /// The lock is held through the request, so that what is noted is what the kernel did.
    fn enabled(&self) -> MutexGuard<'_, EnabledIrqs> {
        self.inner
            .irqs
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn msix(flags: IrqFlags) -> IrqInfo {
        IrqInfo {
            index: IRQ_MSIX,
            flags,
            count: 65,
        }
    }

    #[test]
    fn no_interrupts_can_be_added_under_noresize() {
        let enabled = EnabledIrqs(BTreeMap::from([(IRQ_MSIX, 4)]));
        let fixed = msix(IrqFlags::EVENTFD | IrqFlags::NORESIZE);
        assert_eq!(enabled.check_enable(&fixed, 0, 4).unwrap(), 4);
        assert!(matches!(
            enabled.check_enable(&fixed, 4, 1),
            Err(DeviceError::IrqNoResize {
                enabled: 4,
                end: 5,
                ..
            })
        ));
        assert_eq!(
            enabled
                .check_enable(&msix(IrqFlags::EVENTFD), 4, 1)
                .unwrap(),
            5
        );
        assert_eq!(
            EnabledIrqs::default().check_enable(&fixed, 60, 5).unwrap(),
            65
        );
    }

    #[test]
    fn ranges_end_where_the_interrupts_do() {
        let none = EnabledIrqs::default();
        let info = msix(IrqFlags::EVENTFD);
        for (start, count) in [(0, 66), (65, 1), (u32::MAX, 1), (u32::MAX, usize::MAX)] {
            assert!(
                matches!(
                    none.check_enable(&info, start, count),
                    Err(DeviceError::IrqRange { .. })
                ),
                "{start} {count}"
            );
        }
        let absent = IrqInfo { count: 0, ..info };
        assert!(matches!(
            none.check_enable(&absent, 0, 0),
            Err(DeviceError::NoIrq { .. })
        ));
    }

    #[test]
    fn one_kind_at_a_time_and_only_with_eventfds() {
        let enabled = EnabledIrqs(BTreeMap::from([(IRQ_INTX, 1)]));
        assert!(matches!(
            enabled.check_enable(&msix(IrqFlags::EVENTFD), 0, 1),
            Err(DeviceError::IrqKindInUse {
                active: IRQ_INTX,
                ..
            })
        ));
        let request = IrqInfo {
            index: IRQ_REQUEST,
            flags: IrqFlags::EVENTFD,
            count: 1,
        };
        assert!(enabled.check_enable(&request, 0, 1).is_ok());
        assert!(matches!(
            EnabledIrqs::default().check_enable(&msix(IrqFlags::empty()), 0, 1),
            Err(DeviceError::IrqNotAllowed { .. })
        ));
    }
}
