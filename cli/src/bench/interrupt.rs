//! An interrupted benchmark reports what it has measured so far.
#![allow(unsafe_code)] // Installing a signal handler is unsafe.

use std::sync::atomic::{AtomicBool, Ordering};

use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

extern "C" fn note(_signal: nix::libc::c_int) {
    INTERRUPTED.store(true, Ordering::Relaxed);
}

/// From now on the first SIGINT or SIGTERM is only noted; the second ends the process as ever.
pub(super) fn watch() {
    let action = SigAction::new(
        SigHandler::Handler(note),
        SaFlags::SA_RESETHAND | SaFlags::SA_RESTART,
        SigSet::empty(),
    );
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        // SAFETY: the handler only stores to an atomic, which is async-signal-safe.
        // Where it cannot be installed, the signal ends the process, and the kernel the device's work.
        let _ = unsafe { sigaction(signal, &action) };
    }
}

/// Whether a signal came.
#[must_use]
pub(super) fn came() -> bool {
    INTERRUPTED.load(Ordering::Relaxed)
}
