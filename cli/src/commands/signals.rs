//! SIGINT and SIGTERM end a server; a file that may not grow does not.
#![allow(unsafe_code)] // Installing a signal handler is unsafe.

use std::sync::OnceLock;

use nix::errno::Errno;
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use nvme_vfio_user::Stop;

static STOP: OnceLock<Stop> = OnceLock::new();

extern "C" fn set(_signal: nix::libc::c_int) {
    if let Some(stop) = STOP.get() {
        stop.set();
    }
}

/// What the first SIGINT or SIGTERM sets from now on; the second of the same kind ends the process as ever. A write past the limit of file sizes
/// (RLIMIT_FSIZE) is an error from now on, and no signal: clients choose what is written where.
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
        SaFlags::SA_RESETHAND | SaFlags::SA_RESTART,
        SigSet::empty(),
    );
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        // SAFETY: the handler loads an atomic and calls `Stop::set`, which says of itself that it is async-signal-safe.
        unsafe { sigaction(signal, &action) }?;
    }
    let ignore = SigAction::new(SigHandler::SigIgn, SaFlags::empty(), SigSet::empty());
    // SAFETY: nothing is called; no handler of this process is replaced.
    unsafe { sigaction(Signal::SIGXFSZ, &ignore) }?;
    Ok(stop)
}
