//! Faults on demand: what the emulated controller does wrong when it is told to.

mod armed;
mod media;

pub(crate) use armed::Faults;
pub use media::{MediaFault, MediaOperation, MediaUntil};

use std::ops::RangeInclusive;

use nvme_vfio_queues::Status;

use crate::command::Entry;

/// Which kind of queue a command came by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QueueKind {
    /// The admin queue.
    Admin,
    /// Any I/O queue.
    Io,
}

/// Which commands a fault befalls. Every condition that is set must hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Matcher {
    /// Only commands of this kind of queue.
    pub queue: Option<QueueKind>,
    /// Only commands of the submission queue with this identifier.
    pub sqid: Option<u16>,
    /// Only commands with this opcode.
    pub opcode: Option<u8>,
    /// Only commands whose dword 10 is this: the CNS of an Identify, the low half of a starting LBA.
    pub dword10: Option<u32>,
    /// Only commands with this namespace identifier.
    pub nsid: Option<u32>,
    /// Only I/O commands that touch one of these logical blocks, as dwords 10 to 12 name them; of a Copy, its first destination block.
    pub lbas: Option<RangeInclusive<u64>>,
    /// How many commands that match are let through first. A command that an earlier fault befell is not counted.
    pub skip: u64,
    /// How many commands are befallen then; `None` for all.
    pub count: Option<u64>,
}

impl Matcher {
    /// Commands of the admin queue.
    #[must_use]
    pub fn admin() -> Matcher {
        Matcher {
            queue: Some(QueueKind::Admin),
            ..Matcher::default()
        }
    }

    /// Commands of all I/O queues.
    #[must_use]
    pub fn io() -> Matcher {
        Matcher {
            queue: Some(QueueKind::Io),
            ..Matcher::default()
        }
    }

    /// Only those with this opcode.
    #[must_use]
    pub fn opcode(mut self, opcode: u8) -> Matcher {
        self.opcode = Some(opcode);
        self
    }

    /// Only those of this submission queue.
    #[must_use]
    pub fn sqid(mut self, sqid: u16) -> Matcher {
        self.sqid = Some(sqid);
        self
    }

    /// Only those with this dword 10.
    #[must_use]
    pub fn dword10(mut self, value: u32) -> Matcher {
        self.dword10 = Some(value);
        self
    }

    /// Only those of this namespace.
    #[must_use]
    pub fn nsid(mut self, nsid: u32) -> Matcher {
        self.nsid = Some(nsid);
        self
    }

    /// Only those that touch one of these logical blocks.
    #[must_use]
    pub fn lbas(mut self, lbas: RangeInclusive<u64>) -> Matcher {
        self.lbas = Some(lbas);
        self
    }

    /// From the `n`-th on; the first is 1.
    #[must_use]
    pub fn nth(mut self, n: u64) -> Matcher {
        self.skip = n.saturating_sub(1);
        self
    }

    /// At most `count` of them.
    #[must_use]
    pub fn times(mut self, count: u64) -> Matcher {
        self.count = Some(count);
        self
    }

    /// Whether the conditions hold, but for how many went before.
    fn fits(&self, sqid: u16, entry: &Entry) -> bool {
        let kind = if sqid == 0 {
            QueueKind::Admin
        } else {
            QueueKind::Io
        };
        let touches = |wanted: &RangeInclusive<u64>| {
            sqid != 0
                && media::touched(entry).is_some_and(|lbas| {
                    wanted.start() <= lbas.end() && lbas.start() <= wanted.end()
                })
        };
        self.queue.is_none_or(|wanted| wanted == kind)
            && self.sqid.is_none_or(|wanted| wanted == sqid)
            && self.opcode.is_none_or(|wanted| wanted == entry.opcode())
            && self.dword10.is_none_or(|wanted| wanted == entry.dword(10))
            && self.nsid.is_none_or(|wanted| wanted == entry.nsid())
            && self.lbas.as_ref().is_none_or(touches)
    }
}

/// What Abort does to a command that hangs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnAbort {
    /// Abort answers that the command was not aborted (dword 0 bit 0 is 1).
    #[default]
    NotAborted,
    /// The command is completed with Command Abort Requested and its data never moves.
    Aborted,
    /// The command is completed with Command Abort Requested, but its data still moves at release: what no driver should rely
    /// on not happening.
    AbortedDataLater,
}

/// What befalls a command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CommandFault {
    /// It is fetched and does nothing until [`release`](crate::Emulator::release); then it runs, its memory being where it
    /// was at the fetch.
    Hang(OnAbort),
    /// It runs so many steps later; until then an Abort succeeds.
    Delay(u64),
    /// It runs, its data moves, but its completion is never posted.
    LostCompletion,
    /// It runs, its data moves, and its completion is posted so many steps later.
    LateCompletion(u64),
    /// Its completion is posted only after so many later ones of the same completion queue; should they never come, neither does it.
    Reorder(u32),
    /// Its completion carries this command identifier.
    WrongCid(u16),
    /// Its completion carries this submission queue identifier.
    WrongSqid(u16),
    /// Its completion is posted twice.
    DuplicateCompletion,
    /// Its completion has the phase bit of the round before.
    StalePhase,
    /// Its completion has this SQ head pointer.
    WrongSqHead(u16),
    /// These of the 15 bits of its completion's status field are inverted.
    FlipStatus(u16),
    /// Dword 0 of its completion is this.
    WrongResult(u32),
    /// It does nothing and answers this status.
    Status(Status),
    /// The data it returns (Identify, log pages) is this pattern, repeated; an empty pattern changes nothing.
    JunkData(Vec<u8>),
    /// The data it returns (Identify, log pages) is random, the same for the same seed.
    RandomData(u64),
    /// It completes with success without having done anything.
    NoEffect,
}

/// What befalls the controller as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ControllerFault {
    /// All registers and the configuration space read all ones, writes and doorbells do nothing: surprise removal. No reset brings it back.
    Gone,
    /// All registers and the configuration space read all ones and writes to them do nothing, as while a link is down; commands and mapped
    /// doorbells go on.
    AllOnes,
    /// CAP reads this.
    Cap(u64),
    /// No interrupt reaches the host; completions are posted as ever.
    LostInterrupts,
    /// CSTS.CFS is set now and nothing is processed until the controller is disabled.
    Fatal,
    /// CSTS.RDY stays 0 after CC.EN = 1.
    NeverReady,
    /// CSTS.RDY stays 1 after CC.EN = 0. Nothing is processed, and only a function-level reset helps.
    NeverDisabled,
    /// CSTS.SHST stays at "processing occurring" after a shutdown notification.
    ShutdownNeverCompletes,
    /// Set Features for the number of queues grants this many pairs, whatever was asked for, and no queue beyond can be created. The
    /// answer is 0's based, so 0 answers Internal Error.
    QueueGrant(u16),
}

/// How long a fault of the whole controller lasts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Until {
    /// Until a function-level reset, or [`clear_faults`](crate::Emulator::clear_faults).
    #[default]
    FunctionReset,
    /// Until [`clear_faults`](crate::Emulator::clear_faults).
    Cleared,
}

/// A fault to inject.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Befalls commands. Of several that match a command, the one injected first acts.
    Command(Matcher, CommandFault),
    /// Befalls the controller.
    Controller(ControllerFault, Until),
    /// Befalls logical blocks.
    Media(MediaFault),
}

/// When a fault is armed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum When {
    /// At once.
    #[default]
    Now,
    /// At the start of the controller's step with this number, counted from its creation
    /// ([`Statistics::steps`](crate::Statistics::steps)), or now if it is over.
    Step(u64),
    /// When so many commands have been fetched since the creation of the controller
    /// ([`Statistics::commands`](crate::Statistics::commands)): the next one is the first that it can befall.
    Commands(u64),
}

impl Fault {
    /// A fault of the commands that match.
    #[must_use]
    pub fn on(matcher: Matcher, fault: CommandFault) -> Fault {
        Fault::Command(matcher, fault)
    }

    /// A fault of the whole controller that a function-level reset ends.
    #[must_use]
    pub fn of_controller(fault: ControllerFault) -> Fault {
        Fault::Controller(fault, Until::FunctionReset)
    }

    /// Reads of these blocks of any namespace fail until they are written.
    #[must_use]
    pub fn unreadable(lbas: RangeInclusive<u64>) -> Fault {
        Fault::Media(MediaFault {
            nsid: None,
            lbas,
            operation: MediaOperation::Read,
            until: MediaUntil::Rewritten,
        })
    }
}
