//! Why a command was refused.

use nvme_vfio_queues::Status;

/// A refusal: what the client sees, and what the audit keeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refusal {
    /// The status of the completion, with Do Not Retry where trying again cannot help.
    pub status: Status,
    /// The precise reason.
    pub reason: Reason,
}

macro_rules! reasons {
    ($($(#[$doc:meta])* $name:ident = $key:literal, $status:expr, $text:literal;)*) => {
        /// The precise reason of a refusal. The client is told only the status that goes with it.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[repr(u8)]
        #[non_exhaustive]
        pub enum Reason {
            $(
                $(#[$doc])*
                $name,
            )*
        }

        impl Reason {
            /// All of them, in the order of their numbers.
            pub const ALL: &'static [Reason] = &[$(Reason::$name),*];

            /// A short name for records: lower case, words joined by hyphens. It never changes.
            #[must_use]
            pub const fn key(self) -> &'static str {
                match self {
                    $(Reason::$name => $key,)*
                }
            }

            /// The reason in words.
            #[must_use]
            pub const fn text(self) -> &'static str {
                match self {
                    $(Reason::$name => $text,)*
                }
            }

            /// What a client sees of it.
            #[must_use]
            pub const fn status(self) -> Status {
                match self {
                    $(Reason::$name => $status.with_dnr(),)*
                }
            }

            /// The refusal for this reason.
            #[must_use]
            pub const fn refusal(self) -> Refusal {
                Refusal { status: self.status(), reason: self }
            }
        }
    };
}

reasons! {
    /// No decoder knows the opcode on that queue and in that command set.
    UnknownOpcode = "unknown-opcode", Status::INVALID_OPCODE, "no decoder knows this opcode";
    /// The command never passes, for anybody.
    NeverPasses = "never-passes", Status::INVALID_OPCODE, "this command never reaches a controller that is lent";
    /// The namespace's command set has no decoder.
    UnknownCommandSet = "unknown-command-set", Status::INVALID_OPCODE, "no decoder knows the namespace's command set";
    /// A reserved bit is set.
    ReservedBit = "reserved-bit", Status::INVALID_FIELD, "a reserved bit is set";
    /// A field has a value that is reserved, not offered, or not granted.
    IllegalValue = "illegal-value", Status::INVALID_FIELD, "a field has a value that is not offered";
    /// FUSE is not 0.
    Fused = "fused", Status::INVALID_FIELD, "fused commands are not offered";
    /// PSDT is not 0.
    ScatterGatherList = "sgl", Status::INVALID_FIELD, "scatter gather lists are not offered";
    /// A metadata pointer is given where there is no metadata.
    Metadata = "metadata", Status::INVALID_FIELD, "the namespace has no metadata to point to";
    /// Write Zeroes that asks for the whole namespace (NSZ).
    WholeNamespace = "whole-namespace", Status::INVALID_FIELD, "the command asks for the whole namespace whatever its range says";
    /// A directive, placement handle or encryption key entry.
    Directive = "directive", Status::INVALID_FIELD, "directives, placement handles and key tags are not granted";
    /// Protection information fields or tags where the namespace has no protection information.
    Protection = "protection", Status::INVALID_FIELD, "the namespace has no protection information";
    /// A feature that is not offered, or that the driver keeps to itself.
    FeatureNotOffered = "feature-not-offered", Status::INVALID_FIELD, "the feature is not offered";
    /// A feature value that is to outlive a reset, where nothing does.
    NotSaveable = "not-saveable", Status::FEATURE_IDENTIFIER_NOT_SAVEABLE, "the feature's value cannot be saved";
    /// A log page that is not offered.
    LogNotOffered = "log-not-offered", Status::INVALID_LOG_PAGE, "the log page is not offered";
    /// A Copy with more ranges, or more blocks of one or all of them, than the client may have.
    CopyTooLong = "copy-too-long", Status::COMMAND_SIZE_LIMIT_EXCEEDED, "the copy has more ranges or blocks than the client may have";
    /// The command moves more than the client's limit.
    TooLong = "too-long", Status::INVALID_FIELD, "the command moves more than the client may at once";
    /// A namespace that is not granted, whether it exists or not.
    NamespaceNotGranted = "namespace-not-granted", Status::INVALID_NAMESPACE_OR_FORMAT, "the namespace is not granted";
    /// The identifier that means all namespaces.
    AllNamespaces = "all-namespaces", Status::INVALID_NAMESPACE_OR_FORMAT, "the command names all namespaces";
    /// Blocks outside of the slice.
    OutOfRange = "out-of-range", Status::LBA_OUT_OF_RANGE, "blocks outside of the slice";
    /// The class of the command is not granted.
    ClassNotGranted = "class-not-granted", Status::OPERATION_DENIED, "commands of this class are not granted";
    /// The blocks may not be touched in that way.
    AccessNotGranted = "access-not-granted", Status::ACCESS_DENIED, "the blocks may not be touched in this way";
    /// Only the owner of the group may issue it.
    OwnerOnly = "owner-only", Status::OPERATION_DENIED, "only the owner of the group may issue this command";
    /// The data pointer leaves the client's memory.
    OutsideMemory = "outside-memory", Status::DATA_TRANSFER_ERROR, "the data lies outside of the client's memory";
    /// A PRP entry with an offset that it may not have.
    PrpOffset = "prp-offset", Status::PRP_OFFSET_INVALID, "a PRP entry has an offset that it may not have";
    /// The list of ranges could not be read whole.
    RangeList = "range-list", Status::INVALID_FIELD, "the list of ranges does not fit the command";
    /// The server has no means to carry the command out now.
    Unavailable = "unavailable", Status::INTERNAL_ERROR, "the server cannot carry it out";
}
