//! Faults on demand: what the emulated controller does wrong when it is told to.

use nvme_vfio_queues::Status;

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
    /// How many commands that match are let through first.
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
    /// Its completion carries this command identifier.
    WrongCid(u16),
    /// Its completion is posted twice.
    DuplicateCompletion,
    /// Its completion has the phase bit of the round before.
    StalePhase,
    /// Its completion has this SQ head pointer.
    WrongSqHead(u16),
    /// It does nothing and answers this status.
    Status(Status),
    /// The data it returns (Identify, log pages) is this pattern, repeated; an empty pattern changes nothing.
    JunkData(Vec<u8>),
    /// It completes with success without having done anything.
    NoEffect,
}

/// What befalls the controller as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ControllerFault {
    /// All registers and the configuration space read all ones, writes and doorbells do nothing: surprise removal. No reset brings it back.
    Gone,
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
}

/// The faults that are armed.
#[derive(Debug, Default)]
pub(crate) struct Faults {
    commands: Vec<(Matcher, CommandFault)>,
    controller: Vec<(ControllerFault, Until)>,
    fired: u64,
}

impl Faults {
    pub(crate) fn inject(&mut self, fault: Fault) {
        match fault {
            Fault::Command(matcher, fault) => self.commands.push((matcher, fault)),
            Fault::Controller(fault, until) => self.controller.push((fault, until)),
        }
    }

    /// Whether no command fault is armed; the hot path asks only this.
    pub(crate) fn no_command(&self) -> bool {
        self.commands.is_empty()
    }

    /// The fault that befalls this command, if any.
    pub(crate) fn command(&mut self, sqid: u16, opcode: u8, dword10: u32) -> Option<CommandFault> {
        let kind = if sqid == 0 {
            QueueKind::Admin
        } else {
            QueueKind::Io
        };
        for index in 0..self.commands.len() {
            let Some((matcher, fault)) = self.commands.get_mut(index) else {
                break;
            };
            let hit = matcher.queue.is_none_or(|wanted| wanted == kind)
                && matcher.sqid.is_none_or(|wanted| wanted == sqid)
                && matcher.opcode.is_none_or(|wanted| wanted == opcode)
                && matcher.dword10.is_none_or(|wanted| wanted == dword10);
            if !hit || matcher.count == Some(0) {
                continue;
            }
            if matcher.skip > 0 {
                matcher.skip -= 1;
                continue;
            }
            let fault = fault.clone();
            let spent = match &mut matcher.count {
                Some(count) => {
                    *count -= 1;
                    *count == 0
                }
                None => false,
            };
            if spent {
                self.commands.remove(index);
            }
            self.fired += 1;
            return Some(fault);
        }
        None
    }

    pub(crate) fn armed(&self, fault: ControllerFault) -> bool {
        self.controller.iter().any(|(armed, _)| *armed == fault)
    }

    /// The number of queue pairs that a fault grants.
    pub(crate) fn queue_grant(&self) -> Option<u16> {
        self.controller.iter().find_map(|(fault, _)| match fault {
            ControllerFault::QueueGrant(pairs) => Some(*pairs),
            _ => None,
        })
    }

    pub(crate) fn function_reset(&mut self) {
        self.controller
            .retain(|(fault, until)| *fault == ControllerFault::Gone || *until == Until::Cleared);
    }

    pub(crate) fn clear(&mut self) {
        self.commands.clear();
        self.controller.clear();
    }

    /// How many commands were befallen so far.
    pub(crate) fn fired(&self) -> u64 {
        self.fired
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn matchers_skip_count_and_end() {
        let mut faults = Faults::default();
        faults.inject(Fault::on(
            Matcher::io().opcode(2).nth(2).times(2),
            CommandFault::DuplicateCompletion,
        ));
        faults.inject(Fault::on(
            Matcher::admin().dword10(1),
            CommandFault::NoEffect,
        ));
        let mut hit = |sqid, opcode, dword10| faults.command(sqid, opcode, dword10).is_some();
        assert!(!hit(1, 2, 0), "the first is let through");
        assert!(
            !hit(1, 1, 0) && !hit(0, 2, 0),
            "another opcode, another queue"
        );
        assert!(hit(3, 2, 0) && hit(1, 2, 0));
        assert!(!hit(1, 2, 0), "twice only");
        assert!(hit(0, 6, 1) && hit(0, 6, 1) && !hit(0, 6, 2));
        assert_eq!(faults.fired(), 4);
    }

    #[test]
    fn a_function_reset_ends_what_it_should() {
        let mut faults = Faults::default();
        faults.inject(Fault::of_controller(ControllerFault::NeverReady));
        faults.inject(Fault::Controller(
            ControllerFault::NeverDisabled,
            Until::Cleared,
        ));
        faults.inject(Fault::of_controller(ControllerFault::Gone));
        faults.function_reset();
        assert!(!faults.armed(ControllerFault::NeverReady));
        assert!(faults.armed(ControllerFault::NeverDisabled));
        assert!(
            faults.armed(ControllerFault::Gone),
            "nothing brings a removed controller back"
        );
        faults.clear();
        assert!(!faults.armed(ControllerFault::Gone));
    }
}
