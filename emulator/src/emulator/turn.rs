//! A turn of a thread that serves many controllers.

use std::sync::TryLockError;

use super::Emulator;

/// How many looks at the doorbells found nothing before those are looked at that nothing correct rings.
const RESTS_OF_TURNS: u32 = 4096;

/// In a turn one in so many commands may be an admin command, and one at least.
const ADMIN_SHARE: u32 = 16;

/// What happened in a [turn](Emulator::turn).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Turn {
    /// Submission entries that were fetched.
    pub fetched: u64,
    /// Completion entries that were posted.
    pub posted: u64,
    /// Commands that are in flight, or 1 where another thread had the controller.
    pub in_flight: usize,
    /// Nothing but a doorbell, or a method of the controller, can bring work.
    pub quiet: bool,
    /// The back end goes on in the next turn with what it has begun.
    pub working: bool,
}

impl Emulator {
    /// One bounded turn, for a thread that serves many controllers one after the other: what has ended is posted, and at most `limit` entries are fetched, no more than a sixteenth of them of
    /// the admin queue, but one (without a [`CommandHandler`](crate::CommandHandler) there is no limit for the admin queue alone). It never waits: while another thread has the controller or changes its mappings, nothing is done, and `in_flight` is 1. Where nothing but a doorbell can bring work and none was rung, it costs a lock and a look at each doorbell.
    pub fn turn(&self, limit: u32) -> Turn {
        let busy = Turn {
            in_flight: 1,
            ..Turn::default()
        };
        let mut core = match self.core.try_lock() {
            Ok(core) => core,
            // Somebody else has it, or panicked while he had it.
            Err(TryLockError::WouldBlock | TryLockError::Poisoned(_)) => return busy,
        };
        if core.quiet && !core.any_rung() {
            core.rests += 1;
            if core.rests >= RESTS_OF_TURNS {
                core.rests = 0;
                core.find_stray_doorbells();
                // The host may have asked for the event.
                core.quiet = false;
            }
            return Turn {
                quiet: true,
                ..Turn::default()
            };
        }
        let Some(memory) = self.try_memory(&core) else {
            return busy;
        };
        memory.set_hints(core.hints);
        let (commands, completions) = (core.statistics.commands, core.statistics.completions);
        core.budget = limit;
        core.admin_budget = limit.div_ceil(ADMIN_SHARE);
        core.advance(&memory);
        core.budget = u32::MAX;
        core.admin_budget = u32::MAX;
        core.hints = memory.hints();
        core.quiet = core.is_at_rest() || core.watch();
        Turn {
            fetched: core.statistics.commands - commands,
            posted: core.statistics.completions - completions,
            in_flight: core.flights.count(),
            quiet: core.quiet,
            working: core.backend.is_working(),
        }
    }
}
