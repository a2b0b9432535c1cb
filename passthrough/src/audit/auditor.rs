//! The file, the thread that writes it, and the clients' rings.

use std::io::{self, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::client::ClientAudit;
use super::event::{Event, Happened, ServerAudit};
use super::line;
use super::open::AuditError;
use super::reader::{Reader, missing};
use super::ring::{Ring, Taken};
use super::scribe::Scribe;
use super::shared::{AuditOptions, Shared};
use crate::client::ClientId;

/// Records of the server's own ring.
const SERVER_RECORDS: usize = 1024;

/// How often the rings are looked at while there is something in them now and then.
const PERIOD: Duration = Duration::from_millis(20);

/// How often they are looked at when nothing was found for a while.
const IDLE_PERIOD: Duration = Duration::from_millis(200);

/// How often a file that takes nothing is tried again.
const RETRY: Duration = Duration::from_millis(250);

/// How often the budgets of records get more.
const BUDGET_PERIOD: Duration = Duration::from_secs(1);

/// How often counts are written, if they changed.
const COUNT_PERIOD: Duration = Duration::from_secs(10);

/// What the writing thread shares with everybody else.
#[derive(Debug)]
pub(super) struct Inner {
    options: AuditOptions,
    clients: Mutex<Vec<Arc<Shared>>>,
    server: Ring<Happened>,
    /// Threads of the server take turns at its ring.
    telling: Mutex<()>,
    stop: AtomicBool,
    failing: AtomicBool,
}

impl Inner {
    pub(super) fn client(&self, id: ClientId) -> Option<Arc<Shared>> {
        let clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        clients.iter().find(|client| client.id == id).cloned()
    }

    pub(super) fn server_event(&self, event: Event) {
        let turn = self.telling.lock().unwrap_or_else(PoisonError::into_inner);
        self.server.put(Happened::now(event));
        drop(turn);
    }
}

/// What was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Totals {
    /// Lines.
    pub lines: u64,
}

/// Writes the audit. One thread takes records from the rings of all clients in turn, so that none can hold up another's, and appends them to the file as lines of JSON.
///
/// While the file takes nothing (its disk is full) the rings fill up, and what finds no room is counted. Nobody waits for it.
#[derive(Debug)]
pub struct Auditor {
    inner: Arc<Inner>,
    thread: Option<JoinHandle<Result<Totals, AuditError>>>,
}

impl Auditor {
    /// Starts the thread. `sink` is what [`open`](super::open) returned, or anything else that lines can be written to.
    ///
    /// # Errors
    /// [`AuditError::Thread`].
    pub fn start(
        sink: impl Write + Send + 'static,
        options: AuditOptions,
    ) -> Result<Auditor, AuditError> {
        let inner = Arc::new(Inner {
            options,
            clients: Mutex::new(Vec::new()),
            server: Ring::new(0, SERVER_RECORDS),
            telling: Mutex::new(()),
            stop: AtomicBool::new(false),
            failing: AtomicBool::new(false),
        });
        let writer = Writer {
            inner: Arc::clone(&inner),
            scribe: Scribe::new(Box::new(sink)),
            readers: Vec::new(),
            next_reader: 0,
            server: 0,
            next_budget: Instant::now() + BUDGET_PERIOD,
            next_count: Instant::now() + COUNT_PERIOD,
        };
        let thread = thread::Builder::new()
            .name("nvme-audit".to_owned())
            .spawn(move || writer.run())
            .map_err(AuditError::Thread)?;
        Ok(Auditor {
            inner,
            thread: Some(thread),
        })
    }

    /// Gives a client its rings. `outstanding`: how many of its commands may be under way at once; the audit awaits the end of no more.
    ///
    /// Records of events that name `id` go to the same client's rings. Two clients must not have the same.
    #[must_use]
    pub fn client(&self, id: ClientId, name: &str, outstanding: u32) -> ClientAudit {
        let options = &self.inner.options;
        let writer = self.thread.as_ref().map(|thread| thread.thread().clone());
        let shared = Arc::new(Shared::new(id, name.into(), options, writer));
        self.inner
            .clients
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(Arc::clone(&shared));
        ClientAudit::new(shared, options, outstanding)
    }

    /// Where the server tells what happens.
    #[must_use]
    pub fn server(&self) -> ServerAudit {
        ServerAudit {
            inner: Arc::clone(&self.inner),
        }
    }

    /// Whether the file takes nothing at present.
    #[must_use]
    pub fn is_failing(&self) -> bool {
        self.inner.failing.load(Ordering::Relaxed)
    }

    /// Whether the thread is there: it ends before [`finish`](Self::finish) only by a fault of its own, and nothing is recorded then.
    #[must_use]
    pub fn is_running(&self) -> bool {
        self.thread
            .as_ref()
            .is_some_and(|thread| !thread.is_finished())
    }

    /// Writes all that waits, the last counts, and waits until the file has them.
    ///
    /// # Errors
    /// [`AuditError::Write`] when the file takes no more.
    pub fn finish(mut self) -> Result<Totals, AuditError> {
        self.end()
    }

    fn end(&mut self) -> Result<Totals, AuditError> {
        let Some(thread) = self.thread.take() else {
            return Ok(Totals { lines: 0 });
        };
        self.inner.stop.store(true, Ordering::Release);
        thread.thread().unpark();
        match thread.join() {
            Ok(result) => result,
            Err(_) => Err(AuditError::Write {
                lines: 0,
                source: io::Error::other("the audit's thread panicked"),
            }),
        }
    }
}

impl Drop for Auditor {
    fn drop(&mut self) {
        if let Err(error) = self.end() {
            tracing::warn!("{error}");
        }
    }
}

/// The thread.
struct Writer {
    inner: Arc<Inner>,
    scribe: Scribe,
    readers: Vec<Reader>,
    /// Whose turn it is.
    next_reader: usize,
    /// Events of the server that are accounted for.
    server: u64,
    next_budget: Instant,
    next_count: Instant,
}

impl Writer {
    fn run(mut self) -> Result<Totals, AuditError> {
        let mut period = PERIOD;
        loop {
            // Read first: what was recorded before the end was asked for is written.
            let last = self.inner.stop.load(Ordering::Acquire);
            self.meet_clients();
            self.scribe.look_at_clocks();
            let before = self.scribe.lines();
            let empty = self.turn();
            self.keep_time(last && empty);
            match self.scribe.write() {
                Ok(()) => {
                    if self.inner.failing.swap(false, Ordering::Relaxed) {
                        tracing::warn!("the audit is written again");
                    }
                }
                Err(source) if last => return Err(self.give_up(source)),
                Err(error) => {
                    if !self.inner.failing.swap(true, Ordering::Relaxed) {
                        tracing::warn!("the audit cannot be written, and is tried again: {error}");
                    }
                    thread::park_timeout(RETRY);
                    continue;
                }
            }
            if last && empty {
                break;
            }
            if !empty {
                continue;
            }
            period = if self.scribe.lines() > before {
                PERIOD
            } else {
                (period * 2).min(IDLE_PERIOD)
            };
            thread::park_timeout(period);
        }
        let lines = self.scribe.lines();
        match self.scribe.sync() {
            Ok(()) => Ok(Totals { lines }),
            Err(source) => Err(AuditError::Write { lines: 0, source }),
        }
    }

    fn give_up(&self, source: io::Error) -> AuditError {
        AuditError::Write {
            lines: self.scribe.waiting_lines(),
            source,
        }
    }

    /// New clients get a reader.
    fn meet_clients(&mut self) {
        let clients = self
            .inner
            .clients
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        for shared in clients.iter().skip(self.readers.len()) {
            self.readers.push(Reader::new(Arc::clone(shared)));
        }
    }

    /// Some of what waits in each ring. Whether all of them were seen empty.
    fn turn(&mut self) -> bool {
        let mut empty = self.server_events();
        for _ in 0..self.readers.len() {
            if self.scribe.is_full() {
                return false;
            }
            // Goes on where the last turn ended, so that a client that fills every batch has its turn no more often than the others.
            let at = self.next_reader % self.readers.len();
            self.next_reader = at + 1;
            if let Some(reader) = self.readers.get_mut(at) {
                empty &= reader.turn(&mut self.scribe);
            }
        }
        empty
    }

    fn server_events(&mut self) -> bool {
        loop {
            if self.scribe.is_full() {
                return false;
            }
            let happened = match self.inner.server.take(&mut self.server) {
                Taken::Empty => return true,
                Taken::Record(number, happened) => Some((number, happened)),
                Taken::Missing(from, to, happened) => {
                    missing(&mut self.scribe, None, "server", from, to);
                    happened
                }
            };
            if let Some((number, happened)) = happened {
                let body = line::event(None, "server", number, &happened);
                self.scribe.line(happened.at, &body);
            }
        }
    }

    /// What is done now and then.
    fn keep_time(&mut self, last: bool) {
        let now = Instant::now();
        if now >= self.next_budget {
            self.next_budget = now + BUDGET_PERIOD;
            for reader in &self.readers {
                reader.fill_budgets();
            }
        }
        // Counts lose nothing by waiting for a file that takes nothing; their lines would fill memory.
        if last || now >= self.next_count && !self.scribe.is_full() {
            self.next_count = now + COUNT_PERIOD;
            for reader in &mut self.readers {
                reader.tell_counts(&mut self.scribe);
            }
        }
    }
}
