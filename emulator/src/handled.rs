//! Commands that a [`CommandHandler`](crate::CommandHandler) carries out.

use nvme_vfio_queues::Status;

use crate::command::Entry;
use crate::controller::Core;
use crate::execute::Reply;
use crate::flight::Flight;
use crate::handler::{FetchedCommand, Handling};
use crate::iommu::DeviceMemory;
use crate::namespaces::BROADCAST;

/// Takes from what may be fetched in a turn. Whoever steps the controller without turns has `u32::MAX`, which has no end.
fn spend(budget: &mut u32, count: u32) {
    if *budget < u32::MAX {
        *budget -= count;
    }
}

impl Core {
    /// How many of `count` entries may be fetched now: as many as the turn, the handler and the tags allow. They are fetched. Admin commands have a small part of the turn: most are carried out at
    /// once, and take longer than an I/O command takes to be handed on.
    pub(crate) fn granted(&mut self, sqid: u16, count: u32) -> u32 {
        let mut count = count.min(self.budget).min(self.flights.handler_room());
        if sqid == 0 {
            count = count.min(self.admin_budget);
            spend(&mut self.admin_budget, count);
        } else if let Some(handler) = &mut self.handler {
            count = count.min(handler.credit());
        }
        spend(&mut self.budget, count);
        count
    }

    /// Hands a command to the handler; `None` when the front end is to carry it out.
    pub(crate) fn hand_over(
        &mut self,
        sqid: u16,
        entry: &Entry,
        silent: bool,
        memory: &DeviceMemory<'_>,
    ) -> Option<Result<Reply, Status>> {
        let command = FetchedCommand {
            tag: self.flights.handler_tag(),
            sqid,
            cid: entry.cid(),
            page: self.page() as u32,
            entry: entry.0,
        };
        let handling = self.handler.as_mut()?.command(&command, memory);
        match handling {
            Handling::Execute if sqid == 0 => None,
            Handling::Execute => {
                self.statistics.unsupported_commands += 1;
                Some(Err(Status::INVALID_OPCODE.with_dnr()))
            }
            Handling::Complete { status, result } => Some(Ok(Reply::Handled(result, status))),
            Handling::Taken => {
                self.handed = true;
                self.flights.start(Flight {
                    sqid,
                    cid: entry.cid(),
                    operation: None,
                    nsid: entry.nsid(),
                    lba: if sqid == 0 { 0 } else { entry.slba() },
                    bytes: 0,
                    silent,
                    number: 0,
                });
                if let Some(queue) = self.submission(sqid) {
                    queue.in_flight += 1;
                }
                Some(Ok(Reply::Backend))
            }
        }
    }

    /// Tells the handler that no more commands come for now.
    #[inline(never)]
    pub(crate) fn flush_handler(&mut self, memory: &DeviceMemory<'_>) {
        self.handed = false;
        if let Some(handler) = &mut self.handler {
            handler.flush(memory);
        }
    }

    /// Posts what the handler has finished.
    pub(crate) fn take_handled(&mut self, memory: &DeviceMemory<'_>) {
        self.report_handled(memory, |core, flight, status, result| {
            core.end(flight, status, result, memory);
        });
    }

    /// Takes what the handler has finished, and tells the host nothing of it.
    pub(crate) fn take_handled_silently(&mut self, memory: &DeviceMemory<'_>) {
        self.report_handled(memory, |_, _, _, _| {});
    }

    fn report_handled(
        &mut self,
        memory: &DeviceMemory<'_>,
        mut report: impl FnMut(&mut Core, &Flight, Status, u64),
    ) {
        let Some(handler) = &mut self.handler else {
            return;
        };
        let mut done = std::mem::take(&mut self.scratch.handled);
        done.clear();
        handler.poll(memory, &mut done);
        for end in done.drain(..) {
            match self.flights.finish_handled(end.tag) {
                Some(flight) => report(self, &flight, end.status, end.result),
                None => tracing::error!(
                    tag = end.tag,
                    "the handler reported a command that it does not have"
                ),
            }
        }
        self.scratch.handled = done;
    }

    /// Has the handler end the commands with a number below `mark`; how many it has.
    pub(crate) fn cancel_handled(&mut self, mark: u64) -> usize {
        let tags: Vec<u32> = self.flights.handled_before(mark).collect();
        if let Some(handler) = &mut self.handler
            && !tags.is_empty()
        {
            handler.cancel(&tags);
        }
        tags.len()
    }

    /// Has the handler make durable what was written, before a shutdown is complete.
    pub(crate) fn shut_down_handler(&mut self, memory: &DeviceMemory<'_>) {
        let tag = self.flights.handler_tag();
        if self.flights.handler_room() == 0 {
            return;
        }
        let Some(handler) = &mut self.handler else {
            return;
        };
        if handler.shut_down(tag, memory) == Handling::Taken {
            self.handed = true;
            self.flights.start(Flight {
                sqid: 0,
                cid: 0,
                operation: None,
                nsid: BROADCAST,
                lba: 0,
                bytes: 0,
                silent: true,
                number: 0,
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use crate::handler::{CommandHandler, HandlerCompletion};

    #[derive(Debug)]
    struct Nobody;

    impl CommandHandler for Nobody {
        fn command(&mut self, _command: &FetchedCommand, _memory: &DeviceMemory<'_>) -> Handling {
            Handling::Execute
        }

        fn flush(&mut self, _memory: &DeviceMemory<'_>) {}

        fn poll(&mut self, _memory: &DeviceMemory<'_>, _done: &mut Vec<HandlerCompletion>) {}

        fn cancel(&mut self, _tags: &[u32]) {}
    }

    fn core() -> Core {
        Core::with_handler(Config::default(), Box::new(Nobody)).unwrap()
    }

    #[test]
    fn without_turns_commands_never_run_out() {
        for sqid in [0, 1] {
            let mut core = core();
            let mut granted = 0;
            while granted <= u64::from(u32::MAX) + 1 {
                let count = core.granted(sqid, u32::MAX);
                assert!(count > 0, "after {granted} commands");
                granted += u64::from(count);
            }
        }
    }

    #[test]
    fn in_a_turn_they_do() {
        let mut core = core();
        (core.budget, core.admin_budget) = (10, 3);
        assert_eq!([core.granted(0, 2), core.granted(0, 2)], [2, 1]);
        assert_eq!([core.granted(1, 4), core.granted(1, 4)], [4, 3]);
        assert_eq!([core.granted(0, 1), core.granted(1, 1)], [0, 0]);
    }
}
