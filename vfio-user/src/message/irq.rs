//! DEVICE_SET_IRQS.

use super::DecodeError;
use super::bytes::{Put, Reader};

const DATA_NONE: u32 = 1 << 0;
const DATA_BOOL: u32 = 1 << 1;
const DATA_EVENTFD: u32 = 1 << 2;
const DATA: u32 = 0x7;
const ACTION_MASK: u32 = 1 << 3;
const ACTION_UNMASK: u32 = 1 << 4;
const ACTION_TRIGGER: u32 = 1 << 5;

/// What is to be done with interrupts, or, with eventfds, what they report.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum IrqAction {
    /// Mask.
    Mask,
    /// Unmask.
    Unmask,
    /// Raise; with eventfds: signal them when the device raises the interrupt.
    Trigger,
}

/// For which interrupts of the range.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IrqSetData<'a> {
    /// For all. With an empty range and [`IrqAction::Trigger`]: disable all interrupts of the index.
    None,
    /// For those whose byte is not zero; as many bytes as the range is long.
    Bool(&'a [u8]),
    /// The descriptors beside the message take it over: as many as the range is long, or none to take them away.
    Eventfd,
}

/// The payload of DEVICE_SET_IRQS.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SetIrqs<'a> {
    /// Which kind of interrupt: 0 INTx, 1 MSI, 2 MSI-X, 3 error, 4 request.
    pub index: u32,
    /// The first interrupt of that kind.
    pub start: u32,
    /// How many. Zero only to disable all.
    pub count: u32,
    /// What is to be done.
    pub action: IrqAction,
    /// With which of them.
    pub data: IrqSetData<'a>,
}

impl<'a> SetIrqs<'a> {
    const LENGTH: usize = 20;

    /// Whether it disables all interrupts of its index.
    #[must_use]
    pub fn disables_all(&self) -> bool {
        self.count == 0 && self.data == IrqSetData::None
    }

    pub(super) fn decode(payload: &'a [u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader::at_least(payload, Self::LENGTH)?;
        reader.argsz(payload.len() as u64)?;
        let flags = reader.u32()?;
        let (index, start, count) = (reader.u32()?, reader.u32()?, reader.u32()?);
        let bytes = if flags & DATA == DATA_BOOL { count } else { 0 };
        let bytes = reader.data(bytes.into())?;
        let data = match flags & DATA {
            DATA_NONE => IrqSetData::None,
            DATA_BOOL => IrqSetData::Bool(bytes),
            DATA_EVENTFD => IrqSetData::Eventfd,
            _ => return Err(DecodeError::Flags { flags }),
        };
        let action = match flags & !DATA {
            ACTION_MASK => IrqAction::Mask,
            ACTION_UNMASK => IrqAction::Unmask,
            ACTION_TRIGGER => IrqAction::Trigger,
            _ => return Err(DecodeError::Flags { flags }),
        };
        if start.checked_add(count).is_none() {
            return Err(DecodeError::Range {
                start: start.into(),
                length: count.into(),
            });
        }
        let disable = data == IrqSetData::None && action == IrqAction::Trigger && start == 0;
        if count == 0 && !disable {
            return Err(DecodeError::Count {
                field: "count",
                value: 0,
            });
        }
        Ok(Self {
            index,
            start,
            count,
            action,
            data,
        })
    }

    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        let (data, bytes): (u32, &[u8]) = match self.data {
            IrqSetData::None => (DATA_NONE, &[]),
            IrqSetData::Bool(bytes) => (DATA_BOOL, bytes),
            IrqSetData::Eventfd => (DATA_EVENTFD, &[]),
        };
        let action = match self.action {
            IrqAction::Mask => ACTION_MASK,
            IrqAction::Unmask => ACTION_UNMASK,
            IrqAction::Trigger => ACTION_TRIGGER,
        };
        out.put32((Self::LENGTH + bytes.len()) as u32);
        out.put32(data | action);
        out.put32(self.index);
        out.put32(self.start);
        out.put32(self.count);
        out.extend_from_slice(bytes);
    }
}
