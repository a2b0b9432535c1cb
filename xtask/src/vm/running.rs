//! A machine that runs: its channels, its deadline, its end.

use std::fs;
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::rc::Rc;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use tempfile::TempDir;

use super::closing::copy_until;
use super::monitor::Monitor;
use super::output::{End, Output};

/// The initial file system's name in the machine's directory.
pub(super) const INITRAMFS: &str = "initramfs";
/// How long a machine may take until its init script says that it is there.
const BOOT_TIME: Duration = Duration::from_secs(120);
/// How long QEMU may take to connect its channels, and the guest to write back what it holds and to power off once everything is known.
const QEMU_TIME: Duration = Duration::from_secs(60);
const POWER_OFF_TIME: Duration = Duration::from_secs(60);

/// The sockets that QEMU connects to, one per channel.
pub(super) struct Sockets {
    directory: PathBuf,
    listeners: Vec<UnixListener>,
}

const CHANNELS: [&str; 4] = ["stdout", "stderr", "control", "monitor"];

impl Sockets {
    pub(super) fn bind(directory: &Path) -> Result<Self> {
        let mut sockets = Self {
            directory: directory.to_owned(),
            listeners: Vec::new(),
        };
        for name in CHANNELS {
            let listener = UnixListener::bind(sockets.path(name))?;
            listener.set_nonblocking(true)?;
            sockets.listeners.push(listener);
        }
        Ok(sockets)
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.directory.join(format!("{name}.socket"))
    }

    /// The connections, in the order of `CHANNELS`; `None` when QEMU ended first.
    fn accept(&self, qemu: &mut Child) -> Result<Option<[UnixStream; 4]>> {
        let deadline = Instant::now() + QEMU_TIME;
        let mut streams = Vec::new();
        for listener in &self.listeners {
            loop {
                match listener.accept() {
                    Ok((stream, _)) => {
                        stream.set_nonblocking(false)?;
                        streams.push(stream);
                        break;
                    }
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                        if qemu.try_wait()?.is_some() {
                            return Ok(None);
                        }
                        if Instant::now() > deadline {
                            bail!("QEMU did not connect its channels");
                        }
                        thread::sleep(Duration::from_millis(2));
                    }
                    Err(error) => return Err(error.into()),
                }
            }
        }
        Ok(streams.try_into().ok())
    }
}

/// What the channels tell.
enum Event {
    Ready,
    Exited(u8),
    StreamEnded,
    ControlClosed,
}

/// One of the command's output streams, as far as it has come.
#[derive(Default)]
struct Stream {
    state: Mutex<StreamState>,
    changed: Condvar,
}

#[derive(Default)]
struct StreamState {
    bytes: Vec<u8>,
    ended: bool,
}

impl Stream {
    fn state(&self) -> MutexGuard<'_, StreamState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Collect(Arc<Stream>);

impl Write for Collect {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.state().bytes.extend_from_slice(bytes);
        self.0.changed.notify_all();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A machine that runs. Dropping it kills it.
pub struct Running {
    qemu: Child,
    directory: Rc<TempDir>,
    image: PathBuf,
    started: Instant,
    deadline: Instant,
    stdout: Arc<Stream>,
    stderr: Arc<Stream>,
    lines_read: usize,
    channels: Option<Channels>,
}

struct Channels {
    events: Receiver<Event>,
    control: UnixStream,
    monitor: Option<UnixStream>,
    connected: Option<Monitor>,
    open_streams: u32,
}

impl Running {
    pub(super) fn new(
        mut command: Command,
        sockets: &Sockets,
        directory: Rc<TempDir>,
        image: PathBuf,
        marker: String,
        limit: Duration,
        inherit: bool,
    ) -> Result<Self> {
        let started = Instant::now();
        let qemu = command.spawn().context("cannot run QEMU")?;
        let mut running = Self {
            qemu,
            directory,
            image,
            started,
            deadline: started + limit,
            stdout: Arc::default(),
            stderr: Arc::default(),
            lines_read: 0,
            channels: None,
        };
        let Some([stdout, stderr, control, monitor]) = sockets.accept(&mut running.qemu)? else {
            return Ok(running);
        };
        let (sender, events) = mpsc::channel();
        let marker: Arc<str> = marker.into();
        let sinks: [Box<dyn Write + Send>; 2] = if inherit {
            [Box::new(io::stdout()), Box::new(io::stderr())]
        } else {
            [
                Box::new(Collect(Arc::clone(&running.stdout))),
                Box::new(Collect(Arc::clone(&running.stderr))),
            ]
        };
        let kept = [Arc::clone(&running.stdout), Arc::clone(&running.stderr)];
        for ((source, sink), stream) in [stdout, stderr].into_iter().zip(sinks).zip(kept) {
            let (sender, marker) = (sender.clone(), Arc::clone(&marker));
            thread::spawn(move || {
                copy_until(&source, marker.as_bytes(), sink);
                stream.state().ended = true;
                stream.changed.notify_all();
                // The receiver is gone when the machine was dropped.
                let _ = sender.send(Event::StreamEnded);
                // A process left behind in the guest may write on: that must not hold up the machine's end.
                let _ = io::copy(&mut &source, &mut io::sink());
            });
        }
        let reader = control.try_clone()?;
        let initramfs = running.directory.path().join(INITRAMFS);
        thread::spawn(move || read_control(reader, &sender, &initramfs));
        running.channels = Some(Channels {
            events,
            control,
            monitor: Some(monitor),
            connected: None,
            open_streams: 2,
        });
        Ok(running)
    }

    /// QEMU's monitor.
    ///
    /// # Errors
    /// When QEMU does not answer.
    pub fn monitor(&mut self) -> Result<&mut Monitor> {
        let channels = self.channels.as_mut().context("QEMU did not start")?;
        if let Some(stream) = channels.monitor.take() {
            channels.connected = Some(Monitor::new(stream)?);
        }
        channels
            .connected
            .as_mut()
            .context("QEMU's monitor did not answer before")
    }

    /// The next line of the command's standard output, without its end; waits for it up to `limit`. `None` when the output has ended
    /// (a last line without an end counts as a line).
    ///
    /// # Errors
    /// When no line comes in time.
    pub fn line(&mut self, limit: Duration) -> Result<Option<String>> {
        let deadline = (Instant::now() + limit).min(self.deadline);
        let mut state = self.stdout.state();
        loop {
            let rest = &state.bytes[self.lines_read..];
            if let Some(end) = rest.iter().position(|&byte| byte == b'\n') {
                let line = String::from_utf8_lossy(&rest[..end]).into_owned();
                self.lines_read += end + 1;
                return Ok(Some(line));
            }
            if state.ended || self.channels.is_none() {
                let line = String::from_utf8_lossy(rest).into_owned();
                self.lines_read = state.bytes.len();
                return Ok(if line.is_empty() { None } else { Some(line) });
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                let so_far = String::from_utf8_lossy(&state.bytes).into_owned();
                drop(state);
                bail!("no line in time; so far:\n{so_far}\n{}", self.describe());
            }
            state = self
                .stdout
                .changed
                .wait_timeout(state, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }

    /// Reads lines until one contains `text`, and returns that one.
    ///
    /// # Errors
    /// When none comes within `limit`, or the output ends.
    pub fn line_with(&mut self, text: &str, limit: Duration) -> Result<String> {
        let deadline = Instant::now() + limit;
        loop {
            match self.line(deadline.saturating_duration_since(Instant::now()))? {
                Some(line) if line.contains(text) => return Ok(line),
                Some(_) => {}
                None => bail!("the output ended without {text:?}\n{}", self.describe()),
            }
        }
    }

    /// The serial console so far.
    pub fn console(&self) -> String {
        let bytes = fs::read(self.directory.path().join("console")).unwrap_or_default();
        String::from_utf8_lossy(&bytes).replace('\r', "")
    }

    /// The standard controller's drive image.
    pub fn image(&self) -> &Path {
        &self.image
    }

    /// Waits for the command's end and the machine's.
    ///
    /// # Errors
    /// When the host fails; what happens in the guest is in [`Output::end`].
    pub fn wait(mut self) -> Result<Output> {
        let (end, boot_time) = self.wait_for_end();
        if let (End::Exited(_), Some(channels)) = (&end, &mut self.channels) {
            // The guest may be gone already.
            let _ = channels.control.write_all(b"done\n");
        }
        if end != End::TimedOut {
            let deadline = Instant::now() + POWER_OFF_TIME;
            while self.qemu.try_wait()?.is_none() && Instant::now() < deadline {
                thread::sleep(Duration::from_millis(2));
            }
        }
        self.kill();
        self.drain();
        let end = match end {
            End::Failed(what) => End::Failed(format!("{what}\n{}", self.describe())),
            other => other,
        };
        let take = |stream: &Stream| std::mem::take(&mut stream.state().bytes);
        Ok(Output {
            end,
            stdout: take(&self.stdout),
            stderr: take(&self.stderr),
            console: self.console(),
            boot_time,
            directory: Rc::clone(&self.directory),
            image: self.image.clone(),
        })
    }

    fn wait_for_end(&mut self) -> (End, Duration) {
        let mut boot_time = Duration::ZERO;
        let Some(channels) = &mut self.channels else {
            return (End::Failed("QEMU did not start".to_owned()), boot_time);
        };
        let mut ready = false;
        let mut status = None;
        loop {
            let deadline = if ready {
                self.deadline
            } else {
                self.deadline.min(self.started + BOOT_TIME)
            };
            let left = deadline.saturating_duration_since(Instant::now());
            match channels.events.recv_timeout(left) {
                Ok(Event::Ready) => {
                    ready = true;
                    boot_time = self.started.elapsed();
                }
                Ok(Event::Exited(code)) => status = Some(code),
                Ok(Event::StreamEnded) => channels.open_streams -= 1,
                Ok(Event::ControlClosed) if status.is_none() => {
                    let what = if ready {
                        "the machine ended before the command"
                    } else {
                        "the machine did not boot"
                    };
                    return (End::Failed(what.to_owned()), boot_time);
                }
                Ok(Event::ControlClosed) => {}
                Err(RecvTimeoutError::Timeout) if Instant::now() < self.deadline => {
                    return (
                        End::Failed("the machine did not boot in time".to_owned()),
                        boot_time,
                    );
                }
                Err(RecvTimeoutError::Timeout) => return (End::TimedOut, boot_time),
                Err(RecvTimeoutError::Disconnected) => {
                    return (
                        End::Failed("the machine's channels are gone".to_owned()),
                        boot_time,
                    );
                }
            }
            if let (Some(code), 0) = (status, channels.open_streams) {
                return (End::Exited(code), boot_time);
            }
        }
    }

    /// Waits until what QEMU had still sent before its end is read.
    fn drain(&mut self) {
        let Some(channels) = &mut self.channels else {
            return;
        };
        while channels.open_streams > 0 {
            match channels.events.recv_timeout(POWER_OFF_TIME) {
                Ok(Event::StreamEnded) => channels.open_streams -= 1,
                Ok(_) => {}
                Err(_) => return,
            }
        }
    }

    /// QEMU's own words, why the kernel panicked if it did, and the end of the console.
    fn describe(&mut self) -> String {
        let status = self
            .qemu
            .try_wait()
            .ok()
            .flatten()
            .map_or_else(|| "runs".to_owned(), |status| status.to_string());
        let qemu = fs::read_to_string(self.directory.path().join("qemu")).unwrap_or_default();
        let console = self.console();
        let lines: Vec<&str> = console.lines().collect();
        let (before, tail) = lines.split_at(lines.len().saturating_sub(40));
        // A call trace can be longer than what is shown of the console.
        let panic = before
            .iter()
            .rev()
            .find(|line| line.contains("Kernel panic"));
        let tail: Vec<&str> = panic.into_iter().chain(tail).copied().collect();
        let tail = tail.join("\n");
        format!("QEMU: {status}\n{}\n{tail}", qemu.trim())
            .trim()
            .to_owned()
    }

    fn kill(&mut self) {
        // Both fail only when it has already ended.
        let _ = self.qemu.kill();
        let _ = self.qemu.wait();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.kill();
    }
}

fn read_control(reader: UnixStream, sender: &Sender<Event>, initramfs: &Path) {
    for line in BufReader::new(reader).lines().map_while(Result::ok) {
        let event = if line == "ready" {
            // Read long ago, and large: a process that is killed leaves its directory behind.
            let _ = fs::remove_file(initramfs);
            Event::Ready
        } else if let Some(code) = line
            .strip_prefix("exit ")
            .and_then(|code| code.parse().ok())
        {
            Event::Exited(code)
        } else {
            continue;
        };
        if sender.send(event).is_err() {
            return;
        }
    }
    let _ = sender.send(Event::ControlClosed);
}
