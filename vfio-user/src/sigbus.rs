//! Living on when a client truncates the file behind memory that it lent.
//!
//! An access to a mapped page that its file does not have any more raises `SIGBUS`. [`install`] puts a handler for it in place, for the whole process, because that is the only way there
//! is: so it is left to the program. In memory of a client it replaces the whole mapping by zeroes of this process's own, so that the access that failed is repeated on these, and marks the memory lost.
//! A `SIGBUS` from anywhere else goes where it went before.
#![allow(unsafe_code)] // a signal handler, and what it does to the memory it finds

use std::ffi::{c_int, c_void};
use std::mem::MaybeUninit;
use std::num::NonZeroUsize;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicUsize, Ordering, fence};
use std::sync::{Mutex, OnceLock, PoisonError};

use nix::errno::Errno;
use nix::libc;

/// Where `SIGBUS` went before.
static PREVIOUS: OnceLock<libc::sigaction> = OnceLock::new();
/// The first of the places, of which there is one for each memory there was at the same time. None is ever freed, so the handler can walk them at any time.
static PLACES: AtomicPtr<Place> = AtomicPtr::new(std::ptr::null_mut());
/// How many memories have been lost.
static LOSSES: AtomicUsize = AtomicUsize::new(0);
/// The places without a memory.
static FREE: Mutex<Vec<&'static Place>> = Mutex::new(Vec::new());

/// Where a memory is, for the handler.
struct Place {
    /// Odd while the other fields change.
    version: AtomicUsize,
    start: AtomicUsize,
    /// In bytes; 0 when there is no memory here.
    length: AtomicUsize,
    lost: AtomicBool,
    next: *const Place,
}

// SAFETY: everything in it is atomic but `next`, which is written before the place is shared and names a place that is never freed.
unsafe impl Sync for Place {}

impl Place {
    /// Says what is here now. The caller has the place to itself.
    fn set(&self, start: usize, length: usize) {
        let version = self.version.load(Ordering::Relaxed);
        self.version
            .store(version.wrapping_add(1), Ordering::Relaxed);
        // A handler that sees one of the stores below sees the odd version too (its acquire fence, between the loads of the fields and the second of the version).
        fence(Ordering::Release);
        self.start.store(start, Ordering::Relaxed);
        self.length.store(length, Ordering::Relaxed);
        self.lost.store(false, Ordering::Relaxed);
        self.version
            .store(version.wrapping_add(2), Ordering::Release);
    }

    /// The range here, if it is not just being changed. A place that changes has no memory in which anybody could fault: a memory is entered before its first access, and
    /// taken out after its last.
    fn range(&self) -> Option<(usize, usize)> {
        let version = self.version.load(Ordering::Acquire);
        let range = (
            self.start.load(Ordering::Relaxed),
            self.length.load(Ordering::Relaxed),
        );
        fence(Ordering::Acquire);
        let same = self.version.load(Ordering::Relaxed) == version;
        (version & 1 == 0 && same && range.1 != 0).then_some(range)
    }
}

/// How many memories this process has lost so far. Where it has not changed, none was lost.
pub(crate) fn losses() -> usize {
    LOSSES.load(Ordering::Acquire)
}

/// A memory's place, until it is unregistered.
pub(crate) struct Guard {
    place: Option<&'static Place>,
}

impl Guard {
    /// Registers a mapping that nobody has accessed yet.
    pub(crate) fn new(pointer: NonNull<u8>, length: NonZeroUsize) -> Self {
        let mut free = FREE.lock().unwrap_or_else(PoisonError::into_inner);
        let place = free.pop().unwrap_or_else(new_place);
        place.set(pointer.as_ptr().expose_provenance(), length.get());
        Self { place: Some(place) }
    }

    /// Whether a fault met the memory.
    pub(crate) fn is_lost(&self) -> bool {
        self.place
            .is_some_and(|place| place.lost.load(Ordering::Relaxed))
    }

    /// Takes the memory out again, before it is unmapped.
    pub(crate) fn unregister(&mut self) {
        if let Some(place) = self.place.take() {
            let mut free = FREE.lock().unwrap_or_else(PoisonError::into_inner);
            place.set(0, 0);
            free.push(place);
        }
    }
}

/// A place for good. Called with `FREE` locked, so that no two are added at once.
fn new_place() -> &'static Place {
    let place: &'static Place = Box::leak(Box::new(Place {
        version: AtomicUsize::new(0),
        start: AtomicUsize::new(0),
        length: AtomicUsize::new(0),
        lost: AtomicBool::new(false),
        next: PLACES.load(Ordering::Relaxed),
    }));
    // Release: who finds the place finds it whole.
    PLACES.store(std::ptr::from_ref(place).cast_mut(), Ordering::Release);
    place
}

/// Lets this process survive accesses to memory that a client took away. To be called once, early in `main`, by a program that accepts memory which is not sealed; further calls do nothing.
///
/// The handler is put before whatever handled `SIGBUS` until now, and passes on what is not memory of a client. A program that changes the handling of `SIGBUS` afterwards takes this away.
///
/// # Errors
/// What sigaction(2) says.
pub fn install() -> Result<(), Errno> {
    static INSTALLED: Mutex<bool> = Mutex::new(false);
    let mut installed = INSTALLED.lock().unwrap_or_else(PoisonError::into_inner);
    if *installed {
        return Ok(());
    }
    // What was there is asked first, so that it is known before the first signal can come.
    let mut previous = MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: with no new action the call only writes the present one, to memory of its size.
    Errno::result(unsafe {
        libc::sigaction(libc::SIGBUS, std::ptr::null(), previous.as_mut_ptr())
    })?;
    // SAFETY: written by the call, and zeroes are a valid value before it.
    let _ = PREVIOUS.set(unsafe { previous.assume_init() });
    // SAFETY: zeroes are a valid value of this plain structure: no flags, no signals blocked.
    let mut action: libc::sigaction = unsafe { MaybeUninit::zeroed().assume_init() };
    action.sa_sigaction =
        (on_sigbus as extern "C" fn(c_int, *mut libc::siginfo_t, *mut c_void)) as usize;
    // On the alternate stack where a thread has one: the previous handler may be the one that finds stack overflows.
    action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
    // SAFETY: `on_sigbus` does only what a signal handler may: atomic accesses, mmap(2), sigaction(2), raise(3), and what the previous handler does.
    Errno::result(unsafe {
        libc::sigaction(libc::SIGBUS, &raw const action, std::ptr::null_mut())
    })?;
    *installed = true;
    Ok(())
}

/// The handler. Async-signal-safe: it neither allocates nor locks, and leaves `errno` as it was.
extern "C" fn on_sigbus(signal: c_int, info: *mut libc::siginfo_t, context: *mut c_void) {
    let errno = Errno::last_raw();
    // SAFETY: the kernel gives a valid `siginfo_t`; one of SIGBUS that a fault made (a positive code) has an address.
    let fault = unsafe { ((*info).si_code > 0).then(|| (*info).si_addr().addr()) };
    if !fault.is_some_and(replace) {
        pass_on(signal, info, context, fault.is_some());
    }
    Errno::set_raw(errno);
}

/// Replaces the memory of a client that has `address` in it by zeroes. False when no client's memory has, or the system gives no memory.
fn replace(address: usize) -> bool {
    let mut next: *const Place = PLACES.load(Ordering::Acquire);
    // SAFETY: null or a place, which is never freed; acquired above, or immutable since it was shared.
    while let Some(place) = unsafe { next.as_ref() } {
        if let Some((start, length)) = place.range()
            && address.wrapping_sub(start) < length
        {
            // SAFETY: the range is a mapping that its owner has not taken out of the registry, and the access that brought us here keeps it from doing so now. It stays mapped,
            // readable and writable; what changes is its content, which the client could change as well.
            let zeroes = unsafe {
                libc::mmap(
                    std::ptr::with_exposed_provenance_mut(start),
                    length,
                    libc::PROT_READ | libc::PROT_WRITE,
                    libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED | libc::MAP_NORESERVE,
                    -1,
                    0,
                )
            };
            place.lost.store(true, Ordering::Relaxed);
            // Release: who sees the count sees the mark.
            LOSSES.fetch_add(1, Ordering::Release);
            return zeroes != libc::MAP_FAILED;
        }
        next = place.next;
    }
    false
}

/// Does with the signal what was done before [`install`].
fn pass_on(signal: c_int, info: *mut libc::siginfo_t, context: *mut c_void, fault: bool) {
    let handler = PREVIOUS
        .get()
        .map_or(libc::SIG_DFL, |action| action.sa_sigaction);
    match handler {
        libc::SIG_IGN if !fault => {}
        // A fault that nobody handles ends the process, ignored or not: the instruction would fault again for ever.
        libc::SIG_DFL | libc::SIG_IGN => {
            // SAFETY: the default action is always valid; the signal raised is delivered when the handler returns.
            unsafe {
                libc::signal(signal, libc::SIG_DFL);
                libc::raise(signal);
            }
        }
        handler
            if PREVIOUS
                .get()
                .is_some_and(|action| action.sa_flags & libc::SA_SIGINFO != 0) =>
        {
            // SAFETY: sigaction(2) told it with SA_SIGINFO: a function of this type.
            let handler: extern "C" fn(c_int, *mut libc::siginfo_t, *mut c_void) =
                unsafe { std::mem::transmute(handler) };
            handler(signal, info, context);
        }
        handler => {
            // SAFETY: sigaction(2) told it without SA_SIGINFO: a function of this type.
            let handler: extern "C" fn(c_int) = unsafe { std::mem::transmute(handler) };
            handler(signal);
        }
    }
}
