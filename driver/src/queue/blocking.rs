//! One I/O at a time, waited for: for set-up, tools and tests.

use std::time::{Duration, Instant};

use nvme_vfio_dma::Buffer;

use super::{Completion, IoQueue};
use crate::error::{CommandError, Refused};
use crate::namespace::Namespace;
use crate::{Error, Outcome};

/// How often a wait looks at the clock.
const CLOCK_INTERVAL: u32 = 64;

/// How often a wait checks deadlines.
const DEADLINE_INTERVAL: Duration = Duration::from_millis(5);

impl IoQueue {
    /// Waits for the next completion, and watches deadlines meanwhile. `None` where nothing is in flight.
    ///
    /// # Errors
    /// As [`check_deadlines`](Self::check_deadlines).
    pub fn wait(&mut self) -> Result<Option<Completion>, Error> {
        let mut rounds = 0_u32;
        let mut checked: Option<Instant> = None;
        loop {
            if let Some(completion) = self.poll() {
                return Ok(Some(completion));
            }
            if self.waiting == 0 {
                return Ok(None);
            }
            self.cold.inner.transport.relax();
            rounds = rounds.wrapping_add(1);
            if rounds.is_multiple_of(CLOCK_INTERVAL) {
                let now = Instant::now();
                if checked.is_none_or(|checked| now.duration_since(checked) >= DEADLINE_INTERVAL) {
                    checked = Some(now);
                    // What was in flight is reported all the same, so that an error here is only the owner's to know if nothing is.
                    if let Err(error) = self.check_deadlines(now) {
                        return self.poll().map(Some).ok_or(error);
                    }
                }
            }
        }
    }

    /// Reads into `buffer` and waits for it. Other completions are kept for [`poll`](Self::poll).
    ///
    /// # Errors
    /// Where the read was refused, or did not succeed. The buffer is lost to the caller then.
    pub fn read_blocking(
        &mut self,
        namespace: &Namespace,
        lba: u64,
        buffer: Buffer,
    ) -> Result<Buffer, Error> {
        self.one(|queue| queue.read(namespace, lba, buffer, 0))?
            .ok_or(Error::Command(CommandError::Gone))
    }

    /// Writes `buffer` and waits for it. Other completions are kept for [`poll`](Self::poll).
    ///
    /// # Errors
    /// Where the write was refused, or did not succeed. The buffer is lost to the caller then.
    pub fn write_blocking(
        &mut self,
        namespace: &Namespace,
        lba: u64,
        buffer: Buffer,
    ) -> Result<Buffer, Error> {
        self.one(|queue| queue.write(namespace, lba, buffer, 0))?
            .ok_or(Error::Command(CommandError::Gone))
    }

    /// Flushes the namespace and waits for it. Other completions are kept for [`poll`](Self::poll).
    ///
    /// # Errors
    /// Where the flush was refused, or did not succeed.
    pub fn flush_blocking(&mut self, namespace: &Namespace) -> Result<(), Error> {
        self.one(|queue| queue.flush(namespace, 0)).map(|_| ())
    }

    /// Waits until nothing else is in flight, then submits and waits.
    fn one(
        &mut self,
        submit: impl FnOnce(&mut Self) -> Result<(), Refused>,
    ) -> Result<Option<Buffer>, Error> {
        let mut before = Vec::new();
        let result = self.wait_for_one(submit, &mut before);
        for completion in before {
            self.report(completion);
        }
        let completion = result?;
        completion.result()?;
        debug_assert!(completion.outcome == Outcome::Done);
        Ok(completion.buffer)
    }

    fn wait_for_one(
        &mut self,
        submit: impl FnOnce(&mut Self) -> Result<(), Refused>,
        before: &mut Vec<Completion>,
    ) -> Result<Completion, Error> {
        while let Some(completion) = self.wait()? {
            before.push(completion);
        }
        submit(self)?;
        loop {
            match self.wait() {
                Ok(completion) => return completion.ok_or(Error::Cancelled("the I/O")),
                // It will be reported all the same, and to nobody but this caller.
                Err(_) if self.waiting > 0 => {}
                Err(error) => return Err(error),
            }
        }
    }
}
