//! An entry as the process that holds the controller gives it.

use crate::command::{Class, DecodedCommand, Direction, Extent, Persistence, Scope};

/// A submission queue entry in the words of the kernel's passthrough interface and of nvme-cli. It holds no address: the data goes with it as bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RawCommand {
    /// CDW0 bits 7:0.
    pub opcode: u8,
    /// CDW0 bits 15:8: FUSE and PSDT. Only 0 passes.
    pub flags: u8,
    /// Namespace identifier.
    pub nsid: u32,
    /// Command Dword 2.
    pub cdw2: u32,
    /// Command Dword 3.
    pub cdw3: u32,
    /// Bytes of metadata in a buffer of their own. Only 0 passes.
    pub metadata_length: u32,
    /// Command Dword 10.
    pub cdw10: u32,
    /// Command Dword 11.
    pub cdw11: u32,
    /// Command Dword 12.
    pub cdw12: u32,
    /// Command Dword 13.
    pub cdw13: u32,
    /// Command Dword 14.
    pub cdw14: u32,
    /// Command Dword 15.
    pub cdw15: u32,
}

impl RawCommand {
    /// The entry for a decoder. A metadata pointer is there where there is metadata, and nobody ever follows it.
    pub(super) fn entry(&self) -> [u32; 16] {
        let cdw0 = u32::from(self.opcode) | u32::from(self.flags) << 8;
        let metadata = if self.metadata_length == 0 { 0 } else { 4096 };
        [
            cdw0, self.nsid, self.cdw2, self.cdw3, metadata, 0, 0, 0, 0, 0, self.cdw10, self.cdw11,
            self.cdw12, self.cdw13, self.cdw14, self.cdw15,
        ]
    }
}

/// What a command would do and needs for it, found without doing it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Needs {
    /// Its name in the specification.
    pub name: &'static str,
    /// What kind of operation it is.
    pub class: Class,
    /// Which way its data moves.
    pub direction: Direction,
    /// Bytes of its data; `None` for a vendor's command, which does not tell.
    pub length: Option<u64>,
    /// The blocks that it touches.
    pub extents: Vec<Extent>,
    /// What it reaches beside them.
    pub scope: Scope,
    /// How long its effect lasts.
    pub persistence: Persistence,
    /// What it chooses among several things, in the specification's words; empty where there is nothing to choose.
    pub detail: &'static str,
}

impl Needs {
    pub(super) fn new(command: &DecodedCommand<'_>) -> Needs {
        Needs {
            name: command.name,
            class: command.class,
            direction: command.direction,
            length: length(command),
            extents: command.extents.to_vec(),
            scope: command.scope,
            persistence: command.persistence,
            detail: command.detail,
        }
    }
}

/// Bytes that a command moves, as far as it tells.
pub(super) fn length(command: &DecodedCommand<'_>) -> Option<u64> {
    match (command.class, command.direction, command.length) {
        (
            Class::Vendor,
            Direction::ToController | Direction::FromController | Direction::Both,
            0,
        ) => None,
        (_, _, length) => Some(length),
    }
}
