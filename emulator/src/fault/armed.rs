//! The faults that are armed, and which command each of them befalls.

use std::ops::RangeInclusive;

use nvme_vfio_queues::Status;

use super::media::Media;
use super::{CommandFault, ControllerFault, Fault, Matcher, Until, When};
use crate::command::Entry;

/// The faults that are armed, and those that will be.
#[derive(Debug, Default)]
pub(crate) struct Faults {
    commands: Vec<(Matcher, CommandFault)>,
    controller: Vec<(ControllerFault, Until)>,
    media: Media,
    scheduled: Vec<(When, Fault)>,
    fired: u64,
}

impl Faults {
    /// Arms a fault now.
    pub(crate) fn inject(&mut self, fault: Fault) {
        match fault {
            Fault::Command(matcher, fault) => self.commands.push((matcher, fault)),
            Fault::Controller(fault, until) => self.controller.push((fault, until)),
            Fault::Media(fault) => self.media.add(fault),
        }
    }

    /// Arms a fault later.
    pub(crate) fn schedule(&mut self, when: When, fault: Fault) {
        self.scheduled.push((when, fault));
    }

    /// Takes out the scheduled faults whose time has come.
    pub(crate) fn due(&mut self, steps: u64, commands: u64) -> Vec<Fault> {
        let comes = |(when, _): &(When, Fault)| match *when {
            When::Now => true,
            When::Step(step) => step <= steps,
            When::Commands(count) => count <= commands,
        };
        if !self.scheduled.iter().any(comes) {
            return Vec::new();
        }
        let (due, later) = std::mem::take(&mut self.scheduled)
            .into_iter()
            .partition(comes);
        self.scheduled = later;
        let due: Vec<(When, Fault)> = due;
        due.into_iter().map(|(_, fault)| fault).collect()
    }

    /// Whether any fault waits for its time.
    pub(crate) fn any_scheduled(&self) -> bool {
        !self.scheduled.is_empty()
    }

    /// Whether no single command can be befallen, now or later.
    pub(crate) fn none_armed(&self) -> bool {
        self.commands.is_empty() && self.media.is_empty() && self.scheduled.is_empty()
    }

    /// The fault that befalls this command, if any.
    pub(crate) fn command(&mut self, sqid: u16, entry: &Entry) -> Option<CommandFault> {
        for index in 0..self.commands.len() {
            let Some((matcher, fault)) = self.commands.get_mut(index) else {
                break;
            };
            if !matcher.fits(sqid, entry) || matcher.count == Some(0) {
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

    /// The status by which bad blocks end an I/O command.
    pub(crate) fn media(&mut self, entry: &Entry) -> Option<Status> {
        let status = self.media.fails(entry)?;
        self.fired += 1;
        Some(status)
    }

    /// The bad blocks' range that an I/O command makes good again should it succeed.
    pub(crate) fn rewrites(&self, entry: &Entry) -> Option<RangeInclusive<u64>> {
        self.media.rewrites(entry)
    }

    pub(crate) fn rewritten(&mut self, nsid: u32, lbas: &RangeInclusive<u64>) {
        self.media.rewritten(nsid, lbas);
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

    /// What CAP reads by a fault.
    pub(crate) fn cap(&self) -> Option<u64> {
        self.controller.iter().find_map(|(fault, _)| match fault {
            ControllerFault::Cap(cap) => Some(*cap),
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
        self.media.clear();
        self.scheduled.clear();
    }

    /// How many commands were befallen so far.
    pub(crate) fn fired(&self) -> u64 {
        self.fired
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fault::QueueKind;

    fn entry(opcode: u8, dword10: u32) -> Entry {
        Entry([
            u64::from(opcode) | 7 << 32,
            0,
            0,
            0,
            0,
            u64::from(dword10),
            0,
            0,
        ])
    }

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
        let mut hit =
            |sqid, opcode, dword10| faults.command(sqid, &entry(opcode, dword10)).is_some();
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
    fn every_condition_must_hold() {
        let matcher = Matcher::io().sqid(3).opcode(2).nsid(7).lbas(5..=6);
        assert!(matcher.fits(3, &entry(2, 5)) && matcher.fits(3, &entry(2, 6)));
        assert!(!matcher.fits(3, &entry(2, 4)) && !matcher.fits(3, &entry(2, 7)));
        assert!(!matcher.fits(4, &entry(2, 5)) && !matcher.fits(3, &entry(1, 5)));
        assert!(!matcher.clone().nsid(8).fits(3, &entry(2, 5)));
        let admin = Matcher {
            queue: Some(QueueKind::Admin),
            lbas: Some(0..=u64::MAX),
            ..Matcher::default()
        };
        assert!(
            !admin.fits(0, &entry(2, 5)),
            "admin commands touch no blocks"
        );
    }

    #[test]
    fn scheduled_faults_come_at_their_time() {
        let mut faults = Faults::default();
        let fault = |value| Fault::on(Matcher::io(), CommandFault::WrongCid(value));
        faults.schedule(When::Step(10), fault(1));
        faults.schedule(When::Commands(5), fault(2));
        assert!(!faults.none_armed() && faults.any_scheduled());
        assert_eq!(faults.due(9, 4), []);
        assert_eq!(faults.due(9, 5), [fault(2)]);
        assert_eq!(faults.due(10, 0), [fault(1)]);
        assert!(faults.none_armed());
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
