//! Lines on their way into the file.

use std::fmt;
use std::io::{self, ErrorKind, Write};
use std::time::{Instant, SystemTime};

use serde::Serialize;

use super::line;

/// Bytes that are gathered for one write.
const BATCH: usize = 1 << 16;

/// Gathers lines, numbers them, and writes them; what the file does not take now is kept and tried again.
pub(super) struct Scribe {
    sink: Box<dyn Write + Send>,
    waiting: Vec<u8>,
    /// Bytes of `waiting` that are in the file already: a line that was cut is completed later.
    written: usize,
    sequence: u64,
    /// The same moment by both clocks.
    moment: (Instant, SystemTime),
    failure: Option<io::Error>,
}

impl fmt::Debug for Scribe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Scribe")
            .field("waiting", &(self.waiting.len() - self.written))
            .field("sequence", &self.sequence)
            .field("failure", &self.failure)
            .finish_non_exhaustive()
    }
}

impl Scribe {
    pub(super) fn new(sink: Box<dyn Write + Send>) -> Scribe {
        Scribe {
            sink,
            waiting: Vec::with_capacity(BATCH * 2),
            written: 0,
            sequence: 0,
            moment: (Instant::now(), SystemTime::now()),
            failure: None,
        }
    }

    /// Compares the clocks anew: the one that people read may have been set.
    pub(super) fn look_at_clocks(&mut self) {
        self.moment = (Instant::now(), SystemTime::now());
    }

    /// Adds a line about something that happened at `at`.
    pub(super) fn line(&mut self, at: Instant, body: &impl Serialize) {
        let (instant, system) = self.moment;
        let time = match instant.checked_duration_since(at) {
            Some(ago) => system.checked_sub(ago),
            None => system.checked_add(at.saturating_duration_since(instant)),
        };
        let before = self.waiting.len();
        match line::write(
            &mut self.waiting,
            self.sequence,
            time.unwrap_or(system),
            body,
        ) {
            Ok(()) => self.sequence += 1,
            // A vector takes everything and the bodies have string keys, so this is never seen; half a line would be worse than none.
            Err(error) => {
                self.waiting.truncate(before);
                self.failure = Some(error);
            }
        }
    }

    /// Whether no more lines should be made before some are written.
    pub(super) fn is_full(&self) -> bool {
        self.waiting.len() - self.written >= BATCH
    }

    /// Lines that were made.
    pub(super) fn lines(&self) -> u64 {
        self.sequence
    }

    /// Lines that are not whole in the file yet.
    pub(super) fn waiting_lines(&self) -> u64 {
        let waiting = self.waiting.get(self.written..).unwrap_or_default();
        waiting.iter().filter(|byte| **byte == b'\n').count() as u64
    }

    /// Writes what waits, as far as the file takes it.
    ///
    /// # Errors
    /// What the file answered. Nothing is lost: call it again.
    pub(super) fn write(&mut self) -> io::Result<()> {
        if let Some(failure) = self.failure.take() {
            return Err(failure);
        }
        while self.written < self.waiting.len() {
            let rest = self.waiting.get(self.written..).unwrap_or_default();
            match self.sink.write(rest) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(bytes) => self.written += bytes.min(rest.len()),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        self.waiting.clear();
        self.written = 0;
        Ok(())
    }

    /// Waits until everything written is safe.
    pub(super) fn sync(&mut self) -> io::Result<()> {
        self.sink.flush()
    }
}
