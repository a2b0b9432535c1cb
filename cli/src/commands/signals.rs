//! SIGINT, SIGTERM and SIGHUP end a server; a file that may not grow does not.
#![allow(unsafe_code)] // Installing a signal handler is unsafe.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use nix::errno::Errno;
use nix::libc;
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use nix::time::{ClockId, clock_gettime};
use nvme_vfio_user::Stop;

static STOP: OnceLock<Stop> = OnceLock::new();
/// When the first signal came, in milliseconds of the monotonic clock; 0 before.
static FIRST: AtomicU64 = AtomicU64::new(0);

/// A signal so soon after the first is the same wish: timeout(1) sends one to the process and one to its group, and a terminal that closes sends several.
const ONCE: Duration = Duration::from_secs(1);

extern "C" fn set(signal: libc::c_int) {
    // Whoever is interrupted may be about to look why a call of his own failed.
    let errno = Errno::last_raw();
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(Duration::ZERO, Duration::from);
    let now = u64::try_from(now.as_millis()).unwrap_or(u64::MAX).max(1);
    match FIRST.compare_exchange(0, now, Ordering::Relaxed, Ordering::Relaxed) {
        Ok(_) => {
            if let Some(stop) = STOP.get() {
                stop.set();
            }
        }
        Err(first) if u128::from(now.saturating_sub(first)) < ONCE.as_millis() => {}
        // SAFETY: both may be called in a signal handler. The signal is blocked until the handler returns, and then ends the process as ever.
        Err(_) => unsafe {
            libc::signal(signal, libc::SIG_DFL);
            libc::raise(signal);
        },
    }
    Errno::set_raw(errno);
}

/// What the first SIGINT, SIGTERM or SIGHUP sets from now on; one that comes more than a second later ends the process as ever. A signal that this process was started to ignore
/// stays ignored, as nohup(1) wants it. A write past the limit of file sizes (RLIMIT_FSIZE) is an error from now on, and no signal: clients choose what is written where.
pub(super) fn stop() -> Result<&'static Stop, Errno> {
    let stop = match STOP.get() {
        Some(stop) => stop,
        None => {
            let new = Stop::new()?;
            STOP.get_or_init(|| new)
        }
    };
    let action = SigAction::new(
        SigHandler::Handler(set),
        SaFlags::SA_RESTART,
        SigSet::empty(),
    );
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        // SAFETY: the handler reads the clock, loads and stores atomics, and calls `Stop::set`, which says of itself that it is async-signal-safe.
        let before = unsafe { sigaction(signal, &action) }?;
        if matches!(before.handler(), SigHandler::SigIgn) {
            // SAFETY: no handler is installed.
            unsafe { sigaction(signal, &before) }?;
        }
    }
    let ignore = SigAction::new(SigHandler::SigIgn, SaFlags::empty(), SigSet::empty());
    // SAFETY: nothing is called; no handler of this process is replaced.
    unsafe { sigaction(Signal::SIGXFSZ, &ignore) }?;
    Ok(stop)
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd as _;

    use super::*;

    #[test]
    fn whoever_is_interrupted_keeps_his_error() {
        let stop = STOP.get_or_init(|| Stop::new().unwrap());
        // A counter that is full takes no more: setting it fails.
        nix::unistd::write(stop.as_fd(), &(u64::MAX - 1).to_ne_bytes()).unwrap();
        Errno::set_raw(libc::ENOENT);
        set(libc::SIGTERM);
        assert_eq!(Errno::last_raw(), libc::ENOENT);
        assert!(stop.is_set());
    }
}
