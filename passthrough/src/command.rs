//! What a command means.

use bitflags::bitflags;

/// The kind of queue that a command came on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum QueueKind {
    /// The admin queue.
    Admin,
    /// An I/O queue.
    Io,
}

/// The command set of a namespace (Command Set Identifier, NVMe base specification 2.0, 5.17.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct CommandSet(pub u8);

impl CommandSet {
    /// The NVM command set, the only one that has decoders.
    pub const NVM: CommandSet = CommandSet(0);
}

/// A namespace as a client sees it, as far as a decoder needs it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Geometry {
    /// Its command set.
    pub command_set: CommandSet,
    /// Blocks.
    pub blocks: u64,
    /// Bytes of a block, as a power of two.
    pub block_shift: u8,
    /// Bytes that one command may move (MDTS).
    pub max_transfer: u32,
    /// Blocks that one Write Zeroes, Write Uncorrectable or Verify may name. 65,536 where there is no such limit.
    pub max_blocks: u32,
    /// Source ranges that one Copy may have (MSRC, counted from 1).
    pub copy_ranges: u16,
    /// Blocks of one source range of a Copy (MSSRL).
    pub copy_range_blocks: u32,
    /// Blocks of one Copy altogether (MCL).
    pub copy_blocks: u32,
}

/// What a policy grants, or never does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Class {
    /// Read.
    Read,
    /// Write.
    Write,
    /// Flush.
    Flush,
    /// Compare.
    Compare,
    /// Write Zeroes.
    WriteZeroes,
    /// Dataset Management.
    Deallocate,
    /// Verify.
    Verify,
    /// Copy.
    Copy,
    /// Write Uncorrectable.
    Poison,
    /// Get LBA Status: what is known of blocks that may be read.
    BlockStatus,
    /// Answered by the virtual controller from its own state; the controller never sees it.
    Virtual,
    /// Format NVM.
    Format,
    /// Firmware Image Download and Commit.
    Firmware,
    /// Security Send and Receive.
    Security,
    /// Namespace Management and Attachment.
    NamespaceManagement,
    /// Read-only information about the whole controller, for the owner: Identify, Get Log Page, Get Features.
    Information,
    /// Everything else that the specification defines and that only the owner of a group may issue: Sanitize, self-test, features, reservations, directives.
    Owner,
    /// Vendor specific commands, which only the owner of a group may issue.
    Vendor,
}

impl Class {
    /// All of them, each at the place of its number.
    pub(crate) const ALL: [Class; 18] = [
        Class::Read,
        Class::Write,
        Class::Flush,
        Class::Compare,
        Class::WriteZeroes,
        Class::Deallocate,
        Class::Verify,
        Class::Copy,
        Class::Poison,
        Class::BlockStatus,
        Class::Virtual,
        Class::Format,
        Class::Firmware,
        Class::Security,
        Class::NamespaceManagement,
        Class::Information,
        Class::Owner,
        Class::Vendor,
    ];
}

bitflags! {
    /// A set of [`Class`]es.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
    pub struct ClassSet: u32 {
        /// [`Class::Read`].
        const READ = 1 << Class::Read as u32;
        /// [`Class::Write`].
        const WRITE = 1 << Class::Write as u32;
        /// [`Class::Flush`].
        const FLUSH = 1 << Class::Flush as u32;
        /// [`Class::Compare`].
        const COMPARE = 1 << Class::Compare as u32;
        /// [`Class::WriteZeroes`].
        const WRITE_ZEROES = 1 << Class::WriteZeroes as u32;
        /// [`Class::Deallocate`].
        const DEALLOCATE = 1 << Class::Deallocate as u32;
        /// [`Class::Verify`].
        const VERIFY = 1 << Class::Verify as u32;
        /// [`Class::Copy`].
        const COPY = 1 << Class::Copy as u32;
        /// [`Class::Poison`].
        const POISON = 1 << Class::Poison as u32;
        /// [`Class::Format`].
        const FORMAT = 1 << Class::Format as u32;
        /// [`Class::Firmware`].
        const FIRMWARE = 1 << Class::Firmware as u32;
        /// [`Class::Security`].
        const SECURITY = 1 << Class::Security as u32;
        /// [`Class::NamespaceManagement`].
        const NAMESPACE_MANAGEMENT = 1 << Class::NamespaceManagement as u32;
    }
}

impl ClassSet {
    /// Classes that reach more than blocks, and go only to a client that is alone.
    pub const OPERATOR: ClassSet = ClassSet::FORMAT
        .union(ClassSet::FIRMWARE)
        .union(ClassSet::SECURITY)
        .union(ClassSet::NAMESPACE_MANAGEMENT);

    /// Whether a class is in the set.
    #[inline]
    #[must_use]
    pub const fn has(self, class: Class) -> bool {
        self.bits() >> class as u32 & 1 != 0
    }
}

/// Which way data moves, as the command itself says it (not always as its opcode's low bits do).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Direction {
    /// No data.
    None,
    /// From the host to the controller.
    ToController,
    /// From the controller to the host.
    FromController,
    /// Both ways.
    Both,
}

/// How blocks are touched.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Access {
    /// Their data goes to the client.
    Read,
    /// The client learns something of their data or state: Compare, Verify, Get LBA Status.
    Probe,
    /// Their data changes to what the client gives.
    Write,
    /// They become zeroes.
    Zero,
    /// They are let go of; what they hold afterwards is the device's choice.
    Deallocate,
    /// A hint about their use.
    Hint,
    /// They can no longer be read.
    Poison,
}

/// Blocks that a command touches, as the client numbers them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// The namespace, as the client names it.
    pub nsid: u32,
    /// First block.
    pub first: u64,
    /// Blocks, at least 1 but for entries of a range list that name none.
    pub blocks: u64,
    /// How they are touched.
    pub access: Access,
}

/// What a command reaches beside the extents.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Scope {
    /// Nothing.
    Extents,
    /// The namespace that it names, as a whole.
    Namespace,
    /// All namespaces.
    AllNamespaces,
    /// Only what the virtual controller of the client keeps.
    VirtualController,
    /// The controller.
    Controller,
    /// The NVM subsystem, with other controllers.
    Subsystem,
}

/// How long an effect lasts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Persistence {
    /// There is none.
    None,
    /// Until the controller is reset.
    UntilReset,
    /// It outlives power.
    Media,
    /// It cannot be undone.
    Permanent,
}

bitflags! {
    /// What a block command asks for beside its range, as far as it may be passed on. The bits of CDW12 lie as they do there, from its bit 25 on.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
    pub struct Flags: u16 {
        /// Deallocate (Write Zeroes).
        const DEALLOCATE = 1 << 0;
        /// Attribute Integral Dataset for Read (Dataset Management).
        const INTEGRAL_READ = 1 << 1;
        /// Attribute Integral Dataset for Write (Dataset Management).
        const INTEGRAL_WRITE = 1 << 2;
        /// Force Unit Access.
        const FORCE_UNIT_ACCESS = 1 << 5;
        /// Limited Retry.
        const LIMITED_RETRY = 1 << 6;
    }
}

/// What a command means: everything that it can read, change or disturb. Nothing of the raw entry is left in it but what says so.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DecodedCommand<'a> {
    /// The queue that it came on.
    pub queue: QueueKind,
    /// Its opcode.
    pub opcode: u8,
    /// Its name in the specification.
    pub name: &'static str,
    /// What kind of operation it is.
    pub class: Class,
    /// Which way its data moves.
    pub direction: Direction,
    /// The namespace that it names, as the client names it; 0 for none.
    pub nsid: u32,
    /// The blocks that it touches. A Copy's destination comes first, then its sources in order; a Dataset Management's ranges come in order.
    pub extents: &'a [Extent],
    /// What it reaches beside them.
    pub scope: Scope,
    /// How long its effect lasts.
    pub persistence: Persistence,
    /// Bytes that it moves between host and controller. 0 for the class [`Vendor`](Class::Vendor), whose commands do not tell it.
    pub length: u64,
    /// What it asks for.
    pub flags: Flags,
    /// The value by which the command chooses among several things: CNS, LID, FID, SECP, an action; 0 where there is none.
    pub selector: u8,
    /// What the selector names, in the specification's words; empty where there is none.
    pub detail: &'static str,
    /// CDW2, CDW3 and CDW10 to CDW15 of a command that reaches more than blocks: the decoder knows every bit that is set in them. All zero for commands on blocks, which
    /// are made anew from their extents, flags, length and selector.
    pub operands: [u32; 8],
}
