//! What is done about commands that do not end: the narrowest step first. A state machine without a clock or a device of its own.

use std::time::{Duration, Instant};

/// Why a queue needs mending.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Need {
    /// These of its commands, by their tokens, have not ended in time, or their client wants their memory back.
    Overdue(Vec<u64>),
    /// Its controller was reset: it must be built anew.
    Rebuild,
}

/// How far it went to mend a queue, from the narrowest step to the widest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Step {
    /// Everything ended by itself.
    Waited,
    /// The commands were aborted.
    Aborted,
    /// The queue was deleted and made anew.
    QueueDeleted,
    /// The controller was disabled and enabled (or its function reset, where it did not stop): the commands of all clients have ended with it.
    ControllerReset,
    /// Nothing helped.
    GivenUp,
}

/// How long each step has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Times {
    /// For Aborts to be sent one after the other (at most 16), and as long again for aborted commands to end; the others of the queue may end by themselves as long.
    pub abort_grace: Duration,
    /// Between two tries to make the queue anew.
    pub rebuild_again: Duration,
}

impl Default for Times {
    /// 1 s and 0.1 s.
    fn default() -> Times {
        Times {
            abort_grace: Duration::from_secs(1),
            rebuild_again: Duration::from_millis(100),
        }
    }
}

/// What is to be done now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Action {
    /// Nothing yet.
    Wait,
    /// Look whether the controller answers at all.
    CheckStatus,
    /// Abort those that are overdue.
    Abort,
    /// Delete the submission queue, then the completion queue: proof for all that was in flight.
    DeleteQueue,
    /// Disable and enable the controller: proof for all its queues.
    ResetController,
    /// Make the queue anew.
    Rebuild,
    /// Give the queue back; whether it can be used.
    Return {
        /// It takes commands.
        usable: bool,
    },
}

/// What is seen of the queue.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Seen {
    pub(crate) now: Instant,
    /// Overdue commands that have not ended.
    pub(crate) overdue: usize,
    /// The controller was reset since the queue was made, or the queue was deleted.
    pub(crate) lost: bool,
    /// The controller has answered for a command that was not in flight, so that another may never be answered.
    pub(crate) distrusted: bool,
}

/// How an action went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Done {
    Well,
    Failed,
    /// The controller is gone for good.
    Gone,
}

/// How often a queue is tried to be made anew before the controller is reset for it.
const REBUILDS: u32 = 3;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Looking,
    Aborting,
    Grace { until: Instant },
    Deleting,
    Resetting,
    Rebuilding { after: Instant, left: u32 },
    Returned { usable: bool },
}

/// The way of one queue through the steps.
#[derive(Debug)]
pub(crate) struct Escalation {
    state: State,
    times: Times,
    step: Step,
    /// The controller was reset on behalf of this queue; that is done once.
    has_reset: bool,
}

impl Escalation {
    pub(crate) fn new(need: &Need, now: Instant, times: Times) -> Escalation {
        let state = match need {
            Need::Overdue(_) => State::Looking,
            Need::Rebuild => State::Rebuilding {
                after: now,
                left: REBUILDS,
            },
        };
        Escalation {
            state,
            times,
            step: Step::Waited,
            has_reset: false,
        }
    }

    /// How far it went.
    pub(crate) fn step(&self) -> Step {
        self.step
    }

    /// What is to be done. Whoever does what is said here (other than waiting and giving back) says with [`done`](Self::done) how it went.
    pub(crate) fn next(&mut self, seen: Seen) -> Action {
        match self.state {
            State::Returned { usable } => return Action::Return { usable },
            State::Rebuilding { .. } | State::Resetting => {}
            // A reset by somebody else has ended everything.
            _ if seen.lost => self.rebuild(seen.now),
            _ if seen.distrusted => self.reset(),
            State::Looking | State::Aborting | State::Grace { .. } if seen.overdue == 0 => {
                return self.give_back();
            }
            _ => {}
        }
        match self.state {
            State::Looking => Action::CheckStatus,
            State::Aborting => Action::Abort,
            State::Grace { until } if seen.now < until => Action::Wait,
            State::Grace { .. } | State::Deleting => {
                self.state = State::Deleting;
                self.reach(Step::QueueDeleted);
                Action::DeleteQueue
            }
            State::Resetting => Action::ResetController,
            State::Rebuilding { after, .. } if seen.now < after => Action::Wait,
            State::Rebuilding { .. } => Action::Rebuild,
            State::Returned { usable } => Action::Return { usable },
        }
    }

    /// How the last action went.
    pub(crate) fn done(&mut self, how: Done, now: Instant) {
        match (self.state, how) {
            (_, Done::Gone) => {
                self.reach(Step::GivenUp);
                self.state = State::Returned { usable: false };
            }
            (State::Looking, Done::Well) => {
                self.reach(Step::Aborted);
                self.state = State::Aborting;
            }
            (State::Aborting, Done::Well) => {
                self.state = State::Grace {
                    until: now + self.times.abort_grace,
                };
            }
            (State::Deleting | State::Resetting, Done::Well) => self.rebuild(now),
            (State::Rebuilding { .. }, Done::Well) => {
                self.give_back();
            }
            // A controller that has failed aborts nothing, and an admin queue that does not answer deletes no queue either.
            (State::Looking | State::Aborting | State::Deleting, Done::Failed) => self.reset(),
            (State::Rebuilding { left: 0, .. }, Done::Failed) if !self.has_reset => self.reset(),
            (State::Resetting | State::Rebuilding { left: 0, .. }, Done::Failed) => {
                self.reach(Step::GivenUp);
                self.state = State::Returned { usable: false };
            }
            (State::Rebuilding { left, .. }, Done::Failed) => {
                self.state = State::Rebuilding {
                    after: now + self.times.rebuild_again,
                    left: left - 1,
                };
            }
            (State::Grace { .. } | State::Returned { .. }, _) => {}
        }
    }

    fn reach(&mut self, step: Step) {
        self.step = self.step.max(step);
    }

    fn rebuild(&mut self, now: Instant) {
        self.state = State::Rebuilding {
            after: now,
            left: REBUILDS,
        };
    }

    fn reset(&mut self) {
        self.has_reset = true;
        self.reach(Step::ControllerReset);
        self.state = State::Resetting;
    }

    fn give_back(&mut self) -> Action {
        self.state = State::Returned { usable: true };
        Action::Return { usable: true }
    }
}

#[cfg(test)]
mod tests;
