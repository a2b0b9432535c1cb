//! A group that is being served.

use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nvme_vfio::{Controller, Group};
use nvme_vfio_user::Stop;

use super::descriptors;
use super::directory;
use super::error::ServeError;
use super::group::{OpenedGroup, check_lendable};
use super::mender::MenderThread;
use super::options::ServeOptions;
use super::poller::Poller;
use super::station::{Builder, Front, Station};
use super::telling::{herald, tell_beginning};
use crate::audit::{self, AuditError, AuditOptions, Auditor, Event, ServerAudit, Text};
use crate::controller::Clock;
use crate::policy::{GroupPolicy, PolicyFile, ResolvedPolicy, Warning};
use crate::trust;
use crate::verdict::Policy;

/// How often the main thread looks whether a socket has failed, or a controller is wanted back.
const LOOK: u16 = 1000;
/// How often it is looked at the end whether operators' commands have ended.
const LOOK_AGAIN: Duration = Duration::from_millis(10);

/// A group that is being served: sockets, threads and the controllers behind them. Dropped, it ends as [`finish`](Self::finish) does.
///
/// | thread | does |
/// |---|---|
/// | one of each client | answers messages: registers, mappings, interrupts. Whatever takes long there, its own client waits for |
/// | the one that polls | fetches commands, judges, submits, completes, for all clients in turn; never waits |
/// | the one that mends | aborts, deletes queues, resets |
/// | the audit's | writes records |
#[derive(Debug)]
pub struct Serving {
    pub(super) stations: Vec<Station>,
    ended: Receiver<usize>,
    poller: Option<Poller>,
    mender: Option<MenderThread>,
    auditor: Option<Auditor>,
    server_audit: ServerAudit,
    warnings: Vec<Warning>,
    controllers: Vec<Controller>,
    _group: Option<Group>,
    began: Instant,
    end_patience: Duration,
    ending: Ending,
}

/// Why a service ends.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Ending {
    /// It was asked to.
    Asked,
    /// The system wants a function back, which is named: it was unplugged, or is to be unbound from its driver.
    WantedBack(String),
    /// No client can connect any more: the sockets have failed.
    NoSockets,
    /// A thread of the server is no more.
    ThreadLost,
}

impl std::fmt::Display for Ending {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Ending::Asked => f.write_str("it was asked to end"),
            Ending::WantedBack(function) => write!(f, "the system wants {function} back"),
            Ending::NoSockets => f.write_str("all sockets have failed"),
            Ending::ThreadLost => f.write_str("a thread of the server has failed"),
        }
    }
}

/// What was done, at the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Summary {
    /// How long it was served.
    pub time: Duration,
    /// Commands that clients sent.
    pub commands: u64,
    /// Completions that they got.
    pub completions: u64,
    /// Times that the thread that polls has slept.
    pub sleeps: u64,
    /// Times that controllers were reset.
    pub resets: u64,
    /// Lines of the audit.
    pub audit_lines: u64,
}

/// A group that could be served: everything is open, and nobody is let in yet. What the process need not do any more it gives up now.
#[derive(Debug)]
pub struct Prepared {
    serving: Serving,
    fronts: Vec<Front>,
    tell: mpsc::Sender<usize>,
}

impl Prepared {
    /// Makes everything that serving takes: sockets, virtual controllers, the audit, the threads that poll and mend.
    ///
    /// # Errors
    /// [`ServeError`]: whatever stands in the way. Nothing is left behind then but the audit's file and the directory.
    pub fn new(
        policy: &PolicyFile,
        group: OpenedGroup,
        options: &ServeOptions,
    ) -> Result<Prepared, ServeError> {
        Prepared::with_rules(policy, group, options, |resolved| {
            Arc::new(GroupPolicy::new(resolved))
        })
    }

    /// As [`new`](Self::new), with another judge of commands than the policy file's own: `rules` makes it of what the policy means for these controllers. Which blocks a client can name at all,
    /// its limits and its memory stay as the policy file says; what has no decoder and what never passes is refused before anybody is asked.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn with_rules<P: Policy + ?Sized + 'static>(
        policy: &PolicyFile,
        group: OpenedGroup,
        options: &ServeOptions,
        rules: impl FnOnce(&ResolvedPolicy) -> Arc<P>,
    ) -> Result<Prepared, ServeError> {
        policy.check_foreign()?;
        let resolved = policy.resolve(&group.facts, &group.budget())?;
        check_lendable(policy, &resolved)?;
        directory::prepare(&policy.directory)?;
        let auditor = start_audit(policy)?;
        let server_audit = auditor.server();
        tell_beginning(policy, &server_audit, &resolved);
        let rules = rules(&resolved);
        let mender = MenderThread::start(
            group.controllers.clone(),
            options.times,
            herald(policy, &server_audit),
        )
        .map_err(ServeError::no_thread)?;
        let (max_unclosed, few) = descriptors::share(&resolved.clients);
        let mut warnings = resolved.warnings;
        warnings.extend(few);
        let builder = Builder {
            policy,
            max_unclosed,
            options,
            controllers: &group.controllers,
            rules,
            clock: Clock::new(),
            mender: mender.mender(),
            auditor: &auditor,
            server_audit: &server_audit,
            poller: Arc::default(),
        };
        let mut fronts = Vec::with_capacity(resolved.clients.len());
        for client in &resolved.clients {
            fronts.push(builder.front(client)?);
        }
        let seats = fronts.iter().map(|front| Arc::clone(&front.seat)).collect();
        let poller = Poller::start(
            seats,
            group.emulated,
            builder.clock.clone(),
            options.busy,
            options.cpu,
        )
        .map_err(ServeError::no_thread)?;
        // Set once, here.
        let _ = builder.poller.set(poller.thread());
        let (tell, ended) = mpsc::channel();
        Ok(Prepared {
            serving: Serving {
                stations: Vec::with_capacity(fronts.len()),
                ended,
                poller: Some(poller),
                mender: Some(mender),
                server_audit,
                warnings,
                auditor: Some(auditor),
                controllers: group.controllers.clone(),
                _group: group.group,
                began: Instant::now(),
                end_patience: options.end_patience,
                ending: Ending::Asked,
            },
            fronts,
            tell,
        })
    }

    /// The audit of the server's own doings.
    #[must_use]
    pub fn audit(&self) -> &ServerAudit {
        &self.serving.server_audit
    }

    /// Lets clients in.
    ///
    /// # Errors
    /// The system gave no thread or descriptor.
    pub fn begin(self) -> Result<Serving, ServeError> {
        let Prepared {
            mut serving,
            fronts,
            tell,
        } = self;
        for (index, front) in fronts.into_iter().enumerate() {
            let station = front.serve(index, tell.clone())?;
            serving.stations.push(station);
        }
        Ok(serving)
    }
}

impl Serving {
    /// Opens the controllers of a policy and serves them.
    ///
    /// # Errors
    /// [`ServeError`]: whatever stands in the way. Nothing is left behind then but the audit's file and the directory.
    pub fn start(policy: &PolicyFile, options: &ServeOptions) -> Result<Serving, ServeError> {
        let group = OpenedGroup::open(policy, options)?;
        Serving::with_group(policy, group, options)
    }

    /// Serves controllers that are open.
    ///
    /// # Errors
    /// As [`start`](Self::start).
    pub fn with_group(
        policy: &PolicyFile,
        group: OpenedGroup,
        options: &ServeOptions,
    ) -> Result<Serving, ServeError> {
        Prepared::new(policy, group, options)?.begin()
    }

    /// The clients' names and sockets, in the order of the policy.
    pub fn clients(&self) -> impl Iterator<Item = (&str, &Path)> {
        self.stations
            .iter()
            .map(|station| (station.name.as_str(), station.socket.as_path()))
    }

    /// What the policy's author should know.
    #[must_use]
    pub fn warnings(&self) -> &[Warning] {
        &self.warnings
    }

    /// The audit of the server's own doings.
    #[must_use]
    pub fn audit(&self) -> &ServerAudit {
        &self.server_audit
    }

    /// Serves until `stop` is set, until the system wants a controller back, until no socket is left that could be served, or until one of the service's own threads is no
    /// more; which of these it was. Does not end the service: [`finish`](Self::finish) does.
    pub fn wait(&mut self, stop: &Stop) -> Ending {
        use std::os::fd::AsFd;
        let mut failed = 0;
        let ending = loop {
            if stop.is_set() {
                break Ending::Asked;
            }
            let wanted = self.controllers.iter().find(|one| one.is_wanted_back());
            if let Some(controller) = wanted {
                break Ending::WantedBack(controller.transport().name());
            }
            if !self.is_sound() {
                break Ending::ThreadLost;
            }
            if failed == self.stations.len() {
                break Ending::NoSockets;
            }
            let mut waiting = [PollFd::new(stop.as_fd(), PollFlags::POLLIN)];
            // Whatever it answers: the flag is looked at again.
            let _ = poll(&mut waiting, PollTimeout::from(LOOK));
            while let Ok(index) = self.ended.try_recv() {
                let name = self
                    .stations
                    .get(index)
                    .map(|station| station.name.as_str());
                tracing::error!(client = name, "the socket of a client has failed");
                failed += 1;
            }
        };
        self.ending = ending.clone();
        ending
    }

    fn is_sound(&self) -> bool {
        let polls = self.poller.as_ref().is_some_and(Poller::is_running);
        let mends = self.mender.as_ref().is_some_and(MenderThread::is_running);
        let records = self.auditor.as_ref().is_some_and(Auditor::is_running);
        let answers = self.stations.iter().all(Station::is_sound);
        let all = polls && mends && records && answers;
        if !all {
            tracing::error!("a thread of the server has failed: the service ends");
        }
        all
    }

    /// Ends the service in this order: no client is let in any more; each one's commands are waited for, aborted, or their queue deleted; its memory is let go of; then the
    /// threads, the queues and the controllers end.
    ///
    /// # Errors
    /// [`ServeError::StillInUse`] where commands do not end, [`ServeError::StillCarriedOut`] where an operator's does not, and [`ServeError::Audit`] where the audit's file took no more. The process should end then.
    pub fn finish(mut self) -> Result<Summary, ServeError> {
        self.end()
    }

    fn end(&mut self) -> Result<Summary, ServeError> {
        let Some(poller) = self.poller.take() else {
            return Ok(Summary::default());
        };
        self.server_audit.record(Event::ServerStopping {
            cause: Text::from(self.ending.to_string()),
        });
        let until = Instant::now() + self.end_patience;
        let clients = self.end_stations(until);
        let commands = self.end_operators(until);
        let waited = self.end_patience;
        if !clients.is_empty() || !commands.is_empty() {
            // Neither the queues nor the memory may go: their threads live on until the process ends.
            std::mem::forget(poller);
            // A thread that has panicked holds nothing any more, and whoever drops the last handle waits for the operator's command.
            std::mem::forget(std::mem::take(&mut self.stations));
            std::mem::forget(self.mender.take());
            return Err(if clients.is_empty() {
                ServeError::StillCarriedOut { commands, waited }
            } else {
                ServeError::StillInUse { clients, waited }
            });
        }
        let mut summary = Summary {
            time: self.began.elapsed(),
            ..poller.finish()
        };
        // With the front ends the queues go, which are deleted.
        self.stations.clear();
        drop(self.mender.take());
        summary.resets = self.controllers.iter().map(|one| one.events().resets).sum();
        self.controllers.clear();
        if let Some(auditor) = self.auditor.take() {
            summary.audit_lines = auditor.finish()?.lines;
        }
        Ok(summary)
    }

    /// Waits for operators' commands, which may be under way without their clients; those that do not end in time.
    fn end_operators(&self, until: Instant) -> Vec<String> {
        let operators = || {
            let stations = self.stations.iter();
            stations.filter_map(|station| Some((station, station.under_way.as_ref()?)))
        };
        loop {
            let left: Vec<String> = operators()
                .filter_map(|(station, its)| Some(format!("{} of {}", its.name()?, station.name)))
                .collect();
            if left.is_empty() || Instant::now() >= until {
                operators().for_each(|(_, its)| its.give_up());
                return left;
            }
            thread::sleep(LOOK_AGAIN);
        }
    }

    /// Ends the clients' threads; the names of those that do not end in time.
    fn end_stations(&mut self, until: Instant) -> Vec<String> {
        for station in &self.stations {
            station.stop.set();
        }
        let is_running = |station: &Station| {
            station
                .thread
                .as_ref()
                .is_some_and(|thread| !thread.is_finished())
        };
        while self.stations.iter().any(is_running) {
            let left = until.saturating_duration_since(Instant::now());
            match self.ended.recv_timeout(left) {
                // Its thread ends right after that.
                Ok(_) | Err(RecvTimeoutError::Disconnected) => thread::yield_now(),
                Err(RecvTimeoutError::Timeout) => break,
            }
        }
        let mut left = Vec::new();
        for station in &mut self.stations {
            if is_running(station) {
                left.push(station.name.clone());
            } else if let Some(thread) = station.thread.take()
                && thread.join().is_err()
            {
                tracing::error!(client = station.name, "the thread of a client panicked");
            }
        }
        left
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        if let Err(error) = self.end() {
            tracing::error!("{error}");
        }
    }
}

fn start_audit(policy: &PolicyFile) -> Result<Auditor, ServeError> {
    let options = AuditOptions {
        ring: usize::try_from(policy.audit.ring).unwrap_or(usize::MAX),
        sample_allowed_io: policy.audit.sample_allowed_io,
        ..AuditOptions::default()
    };
    let path = &policy.audit.path;
    check_way(path)?;
    Ok(Auditor::start(audit::open(path)?, options)?)
}

/// Refuses an audit that others could put another in the place of, where this process is root's.
fn check_way(audit: &Path) -> Result<(), AuditError> {
    let way = audit.parent().filter(|parent| *parent != Path::new(""));
    // What cannot be looked at will be told of when the file is opened.
    let found = trust::look(way.unwrap_or(Path::new(".")), false).unwrap_or_default();
    match found {
        Some(foreign) if nix::unistd::geteuid().is_root() => Err(AuditError::NotOurs {
            path: foreign.path,
            owner: foreign.uid,
            mode: foreign.mode,
        }),
        _ => Ok(()),
    }
}
