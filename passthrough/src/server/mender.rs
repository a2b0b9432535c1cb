//! A thread that mends queues whose commands do not end, so that the thread that polls never waits for a controller.

use std::collections::VecDeque;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nvme_vfio::{Completion, Controller, Error, IoQueue, Outcome};

use super::escalation::{Action, Done, Escalation, Need, Seen, Step, Times};
use super::events::{Herald, MenderEvent};
use crate::client::ClientId;
use crate::controller::Health;

/// How often queues that are being mended are looked at.
const LOOK_AGAIN: Duration = Duration::from_millis(1);
/// How often the status of the controllers is looked at; resets are announced as late as this.
const LOOK_AT_CONTROLLERS: Duration = Duration::from_secs(1);
/// Commands of a queue that are aborted. Of more than these nothing else is to be expected than of those: its deletion ends all of them, and other clients' queues wait for this thread.
const MOST_ABORTS: usize = 16;
/// How often controllers are asked for their health although no client has asked; warnings are told of as late as this.
const WATCH_HEALTH: Duration = Duration::from_secs(60);
/// The longest time for which a controller is not asked for its health that was reset because it did not answer.
const LONGEST_PAUSE: Duration = Duration::from_secs(3600);

/// A queue that comes back.
#[derive(Debug)]
pub struct Mended {
    /// The queue. What has ended and is not among `completions` is reported by its `poll`.
    pub queue: IoQueue,
    /// What has ended meanwhile, in that order: to be treated before what the queue reports next.
    pub completions: Vec<Completion>,
    /// How far it went.
    pub step: Step,
    /// Whether the queue takes commands. Where it does not its controller is gone, and no proof is to be had that commands without a completion have let go of memory.
    pub usable: bool,
}

#[derive(Debug, Default)]
struct Mailbox {
    ready: AtomicBool,
    mended: Mutex<Option<Mended>>,
}

/// The way back of one queue.
#[derive(Debug)]
pub struct Repair(Arc<Mailbox>);

impl Repair {
    /// The queue, once it has been mended; never waits. At most one answer.
    pub fn take(&self) -> Option<Mended> {
        // Acquire pairs with the Release of the mender, which stored the queue before.
        if !self.0.ready.load(Ordering::Acquire) {
            return None;
        }
        lock(&self.0.mended).take()
    }
}

/// One queue that is being mended.
struct Case {
    client: ClientId,
    controller: usize,
    queue: IoQueue,
    /// Tokens of commands that have not ended.
    overdue: Vec<u64>,
    completions: Vec<Completion>,
    escalation: Escalation,
    back: Arc<Mailbox>,
}

#[derive(Default)]
struct Inbox {
    cases: VecDeque<(ClientId, usize, IoQueue, Need, Arc<Mailbox>)>,
    stop: bool,
}

#[derive(Default)]
struct Shared {
    inbox: Mutex<Inbox>,
    came: Condvar,
    /// What clients are told of the health of which controller.
    health: Mutex<Vec<(usize, Health)>>,
}

/// Where queues are handed over. Clones hand over to the same thread.
#[derive(Clone)]
pub struct Mender(Arc<Shared>);

impl std::fmt::Debug for Mender {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Mender").finish_non_exhaustive()
    }
}

impl Mender {
    /// Hands over a queue of one client on one controller, the index of which is that of the server's list. Nothing here waits.
    #[must_use]
    pub fn mend(&self, client: ClientId, controller: usize, queue: IoQueue, need: Need) -> Repair {
        let back = Arc::<Mailbox>::default();
        lock(&self.0.inbox)
            .cases
            .push_back((client, controller, queue, need, Arc::clone(&back)));
        self.0.came.notify_one();
        Repair(back)
    }

    /// Brings what a client is told of a controller's health up to date: after it was asked for, once in a second at most, and once in a minute in any case, so that
    /// warnings are noticed. A controller that does not answer is asked ever less often.
    pub(crate) fn keep_fresh(&self, controller: usize, health: &Health) {
        lock(&self.0.health).push((controller, health.clone()));
    }
}

/// The mender's thread; it ends, with the queues that it has, when this is dropped.
#[derive(Debug)]
pub struct MenderThread {
    mender: Mender,
    thread: Option<JoinHandle<()>>,
}

impl MenderThread {
    /// Starts it for the queues of these controllers.
    ///
    /// # Errors
    /// The system gave no thread.
    pub fn start(
        controllers: Vec<Controller>,
        times: Times,
        herald: Herald,
    ) -> io::Result<MenderThread> {
        MenderThread::watching(controllers, times, herald, WATCH_HEALTH)
    }

    /// As [`start`](Self::start); asks controllers for their health that often although no client has.
    fn watching(
        controllers: Vec<Controller>,
        times: Times,
        herald: Herald,
        watch_health: Duration,
    ) -> io::Result<MenderThread> {
        let shared = Arc::<Shared>::default();
        let known = controllers.iter().map(|controller| Known {
            resets: controller.events().resets,
            gone: false,
            pause: Pause::default(),
        });
        let mut work = Work {
            known: known.collect(),
            looked: Instant::now(),
            asked: Instant::now(),
            watch_health,
            controllers,
            times,
            herald,
            cases: Vec::new(),
        };
        let theirs = Arc::clone(&shared);
        let thread = thread::Builder::new()
            .name("nvme-mender".into())
            .spawn(move || work.run(&theirs))?;
        Ok(MenderThread {
            mender: Mender(shared),
            thread: Some(thread),
        })
    }

    /// Whether the thread is there: it ends only by a fault of its own.
    pub(super) fn is_running(&self) -> bool {
        self.thread
            .as_ref()
            .is_some_and(|thread| !thread.is_finished())
    }

    /// Where queues are handed over.
    #[must_use]
    pub fn mender(&self) -> Mender {
        self.mender.clone()
    }
}

impl Drop for MenderThread {
    fn drop(&mut self) {
        lock(&self.mender.0.inbox).stop = true;
        self.mender.0.came.notify_one();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the thread that mends queues panicked");
        }
    }
}

/// What was announced of a controller, and when it is asked for its health.
struct Known {
    resets: u64,
    gone: bool,
    pause: Pause,
}

/// For how long a controller is not asked that did not answer. Each time it is reset, which all clients notice: none of them may bring that about as often as it likes.
#[derive(Debug, Default)]
struct Pause {
    length: Duration,
    until: Option<Instant>,
}

impl Pause {
    fn is_over(&self, now: Instant) -> bool {
        self.until.is_none_or(|until| until <= now)
    }

    fn answered(&mut self) {
        *self = Pause::default();
    }

    /// Twice as long as the last.
    fn not_answered(&mut self, now: Instant) {
        self.length = (self.length * 2).clamp(2 * WATCH_HEALTH, LONGEST_PAUSE);
        self.until = Some(now + self.length);
    }
}

struct Work {
    controllers: Vec<Controller>,
    known: Vec<Known>,
    /// When the controllers' status was looked at last.
    looked: Instant,
    /// When all were asked for their health last.
    asked: Instant,
    /// How often that is done.
    watch_health: Duration,
    times: Times,
    herald: Herald,
    cases: Vec<Case>,
}

impl Work {
    fn run(&mut self, shared: &Shared) {
        while self.take_in(shared) {
            self.look_after_all();
            if self.look_at_controllers() && self.cases.is_empty() {
                self.look_at_health(shared);
            }
            if !self.cases.is_empty() {
                thread::sleep(LOOK_AGAIN);
            }
        }
    }

    /// Takes what has come; waits for something where nothing is under way. False when it shall end.
    fn take_in(&mut self, shared: &Shared) -> bool {
        let mut inbox = lock(&shared.inbox);
        if inbox.cases.is_empty() && self.cases.is_empty() && !inbox.stop {
            inbox = shared
                .came
                .wait_timeout(inbox, LOOK_AT_CONTROLLERS)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
        let now = Instant::now();
        for (client, controller, queue, need, back) in inbox.cases.drain(..) {
            self.cases.push(Case {
                client,
                controller,
                queue,
                escalation: Escalation::new(&need, now, self.times),
                overdue: match need {
                    Need::Overdue(tokens) => tokens,
                    Need::Rebuild => Vec::new(),
                },
                completions: Vec::new(),
                back,
            });
        }
        !inbox.stop
    }

    fn look_after_all(&mut self) {
        let mut index = 0;
        while let Some(case) = self.cases.get_mut(index) {
            let Some(controller) = self.controllers.get(case.controller) else {
                // The server numbers its controllers itself, so this cannot come; the queue is dropped, which deletes it.
                tracing::error!(index = case.controller, "no such controller");
                self.cases.swap_remove(index);
                continue;
            };
            match case.look_after(controller, &self.herald, self.times.abort_grace) {
                None => index += 1,
                Some(usable) => self.cases.swap_remove(index).give_back(usable),
            }
        }
    }

    /// Asks controllers for their health where clients have asked for it, or where it was not asked for in a while: each once, for all of its clients.
    fn look_at_health(&mut self, shared: &Shared) {
        let now = Instant::now();
        let all = now.saturating_duration_since(self.asked) >= self.watch_health;
        if all {
            self.asked = now;
        }
        let health = lock(&shared.health).clone();
        for (index, (controller, known)) in self.controllers.iter().zip(&mut self.known).enumerate()
        {
            let its = health.iter().filter(|(other, _)| *other == index);
            let its = its.map(|(_, health)| health);
            let mut wanting = its.clone().filter(|health| all || health.is_wanted());
            if wanting.next().is_none() || known.gone || !known.pause.is_over(now) {
                continue;
            }
            match Health::refresh(controller, its) {
                Ok(()) => known.pause.answered(),
                Err(error) => {
                    known.pause.not_answered(Instant::now());
                    let pause = known.pause.length;
                    tracing::warn!(%error, ?pause, "a controller is not asked for its health");
                }
            }
        }
    }

    /// Resets controllers that have failed without a command that would tell, and says which were reset, whoever did it. True where it looked, which is once in a second.
    fn look_at_controllers(&mut self) -> bool {
        let now = Instant::now();
        let look = now.saturating_duration_since(self.looked) >= LOOK_AT_CONTROLLERS;
        if look {
            self.looked = now;
        }
        for (index, (controller, known)) in self.controllers.iter().zip(&mut self.known).enumerate()
        {
            if look && !known.gone {
                match controller.check_status() {
                    Ok(()) => {}
                    Err(Error::Gone) => {
                        known.gone = true;
                        self.herald.tell(MenderEvent::Gone { controller: index });
                    }
                    Err(error) => {
                        tracing::warn!(%error, "a controller has failed");
                        self.herald.tell(MenderEvent::Resetting {
                            client: None,
                            controller: index,
                        });
                        // What comes of it is told below, or seen at the next look.
                        let _ = controller.recover();
                    }
                }
            }
            let resets = controller.events().resets;
            if resets != known.resets {
                known.resets = resets;
                // A reset is counted when it begins: what came of it is what the controller says now.
                match controller.check_status() {
                    Ok(()) => self.herald.tell(MenderEvent::Reset { controller: index }),
                    Err(Error::Gone) if !known.gone => {
                        known.gone = true;
                        self.herald.tell(MenderEvent::Gone { controller: index });
                    }
                    // It has failed again: that is seen at the next look.
                    Err(_) => {}
                }
            }
        }
        look
    }
}

impl Case {
    /// One look, and what is to be done then. Whether the queue can be used, once it is to go back.
    fn look_after(
        &mut self,
        controller: &Controller,
        herald: &Herald,
        abort_grace: Duration,
    ) -> Option<bool> {
        while let Some(completion) = self.queue.poll() {
            if completion.outcome != Outcome::TimedOut {
                self.overdue.retain(|token| *token != completion.token);
            }
            self.completions.push(completion);
        }
        let action = self.escalation.next(Seen {
            now: Instant::now(),
            overdue: self.overdue.len(),
            lost: self.queue.needs_rebuild(),
            distrusted: self.queue.is_distrusted(),
        });
        let client = self.client;
        let result = match action {
            Action::Wait => return None,
            Action::Return { usable } => return Some(usable),
            Action::CheckStatus => controller.check_status(),
            Action::Abort => {
                herald.tell(MenderEvent::Aborting {
                    client,
                    controller: self.controller,
                    commands: self.overdue.len(),
                });
                self.abort(abort_grace)
            }
            Action::DeleteQueue => {
                herald.tell(MenderEvent::DeletingQueue {
                    client,
                    controller: self.controller,
                    commands: self.queue.in_flight(),
                });
                self.queue.delete()
            }
            Action::ResetController => {
                herald.tell(MenderEvent::Resetting {
                    client: Some(client),
                    controller: self.controller,
                });
                controller.recover()
            }
            Action::Rebuild => self.queue.rebuild(),
        };
        let done = match result {
            Ok(()) => Done::Well,
            Err(Error::Gone) => Done::Gone,
            Err(error) => {
                tracing::warn!(?action, %error, "a step to mend a queue failed");
                Done::Failed
            }
        };
        self.escalation.done(done, Instant::now());
        None
    }

    /// Has some of the overdue commands aborted, one after the other, and begins no further Abort when that long is over.
    fn abort(&mut self, within: Duration) -> Result<(), Error> {
        let began = Instant::now();
        for token in self.overdue.iter().take(MOST_ABORTS) {
            if self.queue.needs_rebuild() {
                break;
            }
            self.queue.abort(*token)?;
            if began.elapsed() >= within {
                break;
            }
        }
        Ok(())
    }

    fn give_back(mut self, usable: bool) {
        // What ended with the last step.
        while let Some(completion) = self.queue.poll() {
            self.completions.push(completion);
        }
        *lock(&self.back.mended) = Some(Mended {
            queue: self.queue,
            completions: self.completions,
            step: self.escalation.step(),
            usable,
        });
        self.back.ready.store(true, Ordering::Release);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
