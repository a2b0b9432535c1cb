//! QEMU's monitor: what happens to the hardware while the guest runs.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

/// A connection to QEMU's monitor (QMP). An answer is waited for at most a minute.
#[derive(Debug)]
pub struct Monitor {
    reader: BufReader<UnixStream>,
    writer: UnixStream,
    events: Vec<Value>,
}

const ANSWER_TIME: Duration = Duration::from_secs(60);

impl Monitor {
    pub(super) fn new(stream: UnixStream) -> Result<Self> {
        let mut monitor = Self {
            reader: BufReader::new(stream.try_clone()?),
            writer: stream,
            events: Vec::new(),
        };
        let greeting = monitor.read(Instant::now() + ANSWER_TIME)?;
        if greeting.get("QMP").is_none() {
            bail!("no greeting from QEMU's monitor: {greeting}");
        }
        monitor.execute("qmp_capabilities", json!({}))?;
        Ok(monitor)
    }

    /// Executes a QMP command and returns what it returns.
    ///
    /// # Errors
    /// When QEMU refuses it, or does not answer in time.
    pub fn execute(&mut self, command: &str, arguments: Value) -> Result<Value> {
        let request = json!({ "execute": command, "arguments": arguments });
        writeln!(self.writer, "{request}").context("QEMU's monitor is gone")?;
        let deadline = Instant::now() + ANSWER_TIME;
        loop {
            let mut message = self
                .read(deadline)
                .with_context(|| format!("no answer to {command}"))?;
            if message.get("event").is_some() {
                self.events.push(message);
            } else if let Some(error) = message.get("error") {
                bail!("{command}: {}", error["desc"].as_str().unwrap_or("refused"));
            } else {
                return Ok(message["return"].take());
            }
        }
    }

    /// Executes a line of the human monitor, for example `qemu-io drive0 "break read_aio A"`, and returns what it prints. (The
    /// human monitor has no error status: a refusal is in the text.)
    ///
    /// # Errors
    /// When QEMU does not answer in time.
    pub fn human(&mut self, line: &str) -> Result<String> {
        let printed = self.execute("human-monitor-command", json!({ "command-line": line }))?;
        Ok(printed.as_str().unwrap_or_default().to_owned())
    }

    /// Waits for an event by its QMP name, for example `DEVICE_DELETED`; one that came before counts.
    ///
    /// # Errors
    /// When it does not come in `limit`.
    pub fn event(&mut self, name: &str, limit: Duration) -> Result<Value> {
        let deadline = Instant::now() + limit;
        loop {
            if let Some(at) = self.events.iter().position(|event| event["event"] == name) {
                return Ok(self.events.remove(at));
            }
            let message = self
                .read(deadline)
                .with_context(|| format!("no event {name}"))?;
            self.events.push(message);
        }
    }

    fn read(&mut self, deadline: Instant) -> Result<Value> {
        let left = deadline
            .saturating_duration_since(Instant::now())
            .max(Duration::from_millis(1));
        self.writer.set_read_timeout(Some(left))?;
        let mut line = String::new();
        if self.reader.read_line(&mut line)? == 0 {
            bail!("QEMU closed its monitor");
        }
        serde_json::from_str(&line).with_context(|| format!("not JSON from QEMU's monitor: {line}"))
    }
}
