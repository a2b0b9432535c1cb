//! A client that has ten thousands of waiters woken by each of its interrupts makes nobody else wait.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::time::{ClockId, clock_gettime};
use nvme_vfio_emulator::{Emulator, Patience, ServedController};
use nvme_vfio_user::Eventfd;
use nvme_vfio_user::device::{Device, IrqAction, IrqData};

/// Index of MSI-X among the kinds of interrupts.
const MSIX: u32 = 2;

/// Nothing takes as long, whatever else the machine does.
const PATIENCE: Duration = Duration::from_secs(60);

/// One test at a time: each has hundreds of descriptors, and what it takes of the processor is measured.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Waits until something is so.
#[track_caller]
fn until(what: &str, mut done: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < end, "it never came: {what}");
        thread::sleep(Duration::from_millis(1));
    }
}

/// An eventfd with so many waiters, and those.
fn waited_for(descriptors: usize, epolls: usize) -> (EventFd, Vec<OwnedFd>, Vec<Epoll>) {
    let eventfd = EventFd::from_flags(EfdFlags::EFD_NONBLOCK).expect("an eventfd");
    let duplicates: Vec<OwnedFd> = (0..descriptors)
        .map(|_| eventfd.as_fd().try_clone_to_owned().expect("a duplicate"))
        .collect();
    let epolls: Vec<Epoll> = (0..epolls)
        .map(|_| {
            let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).expect("an epoll");
            for duplicate in &duplicates {
                let event = EpollEvent::new(EpollFlags::EPOLLIN, 0);
                epoll.add(duplicate, event).expect("registered");
            }
            epoll
        })
        .collect();
    (eventfd, duplicates, epolls)
}

fn connect(served: &ServedController, eventfd: &EventFd) {
    connect_all(served, eventfd, 1);
}

/// Has so many vectors signal the same eventfd.
fn connect_all(served: &ServedController, eventfd: &EventFd, vectors: u32) {
    let data = (0..vectors)
        .map(|_| {
            let ours = eventfd.as_fd().try_clone_to_owned().expect("a duplicate");
            Some(Eventfd::new(ours).expect("accepted"))
        })
        .collect();
    served
        .set_irqs(
            MSIX,
            0..vectors,
            IrqAction::Trigger,
            IrqData::Eventfds(data),
        )
        .expect("connected");
}

/// Has a client interrupted.
fn interrupt(served: &ServedController) {
    interrupt_all(served, 1);
}

fn interrupt_all(served: &ServedController, vectors: u32) {
    served
        .set_irqs(MSIX, 0..vectors, IrqAction::Trigger, IrqData::None)
        .expect("signalled");
}

fn served() -> ServedController {
    let emulator =
        Emulator::new("size=1M,queues=16".parse().expect("a configuration")).expect("made");
    ServedController::new(emulator, Patience::default()).expect("served")
}

/// Duplicates of the eventfd that this process has.
fn duplicates_of(eventfd: &EventFd) -> usize {
    let id = |descriptor: &str| {
        let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{descriptor}")).ok()?;
        let line = info.lines().find(|line| line.starts_with("eventfd-id:"))?;
        Some(line.to_owned())
    };
    let wanted = id(&eventfd.as_fd().as_raw_fd().to_string()).expect("an eventfd");
    std::fs::read_dir("/proc/self/fd")
        .expect("listed")
        .filter_map(|entry| id(entry.ok()?.file_name().to_str()?))
        .filter(|id| *id == wanted)
        .count()
}

/// What this thread has had of its processor.
fn processor_time() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID)
        .expect("a clock")
        .into()
}

/// What something takes of this thread's processor. Others may have it meanwhile.
fn taken(what: impl FnOnce()) -> Duration {
    let before = processor_time();
    what();
    processor_time() - before
}

/// What one signal of this eventfd takes of the processor of whoever gives it, here and now: what all else is compared with.
fn one_signal(eventfd: &EventFd) -> Duration {
    let ours = eventfd.as_fd().try_clone_to_owned().expect("a duplicate");
    let ours = Eventfd::new(ours).expect("accepted");
    // The first wakes whoever waits, and those after it find them awake.
    ours.signal().expect("signalled");
    let mut times: Vec<_> = (0..9)
        .map(|_| taken(|| ours.signal().expect("signalled")))
        .collect();
    times.sort_unstable();
    let _ = eventfd.read();
    times[4]
}

#[test]
fn an_eventfd_with_too_many_waiters_costs_the_controller_nothing() {
    let _alone = alone();
    let served = served();
    let (client, _duplicates, _epolls) = waited_for(400, 100);
    let slow = one_signal(&client);
    connect(&served, &client);
    // Until it is known to be slow.
    for _ in 0..20 {
        interrupt(&served);
    }
    let taken = taken(|| (0..50).for_each(|_| interrupt(&served)));
    assert!(taken < 5 * slow, "{taken:?} for 50, and {slow:?} for one");
    // And it is signalled all the same, after whatever was.
    let _ = client.read();
    interrupt(&served);
    until("an interrupt", || client.read().is_ok());
    // One that comes later is not tried.
    let (another, _duplicates, _epolls) = waited_for(1, 1);
    connect(&served, &another);
    interrupt(&served);
    until("an interrupt", || another.read().is_ok());
}

#[test]
fn one_with_a_waiter_is_signalled_at_once() {
    let _alone = alone();
    // A machine that is itself held up for milliseconds in the middle of a signal may spoil one time, not all.
    let all = (0..5).any(|_| {
        let served = served();
        let (client, _duplicates, _epolls) = waited_for(1, 1);
        connect(&served, &client);
        for _ in 0..50 {
            // Who gives these for the controller would give some of them as one.
            for _ in 0..10 {
                interrupt(&served);
            }
            // A signal that takes five times as long as it should on a machine that is slow is paid for by then.
            thread::sleep(Duration::from_millis(20));
        }
        client.read() == Ok(500)
    });
    assert!(all, "interrupts became one");
}

#[test]
fn eventfds_that_are_replaced_are_closed_however_slow_they_were() {
    const VECTORS: u32 = 8;
    let _alone = alone();
    let served = served();
    let (client, duplicates, _epolls) = waited_for(400, 100);
    connect(&served, &client);
    for _ in 0..10 {
        interrupt(&served);
    }
    // The client's own, and one for each vector.
    let few = 1 + duplicates.len() + VECTORS as usize;
    for _ in 0..5 {
        for _ in 0..10 {
            connect_all(&served, &client, VECTORS);
            interrupt_all(&served, VECTORS);
        }
        let _ = client.read();
        // Closing them takes no longer than a processor is to be had for it. The one that is being signalled may stay.
        until("the end of those that were replaced", || {
            duplicates_of(&client) <= few + 1
        });
        // What is waited for is not that each of them is signalled first: at most the last of each vector is, and those that were being signalled.
        let signalled = client.read().unwrap_or(0);
        assert!(signalled <= u64::from(VECTORS) + 2, "{signalled} signals");
    }
    // The last of them are signalled all the same.
    interrupt_all(&served, VECTORS);
    until("an interrupt", || client.read().is_ok());
    // And what is disconnected is closed.
    served
        .set_irqs(MSIX, 0..0, IrqAction::Trigger, IrqData::None)
        .expect("disconnected");
    until("the end of those that were disconnected", || {
        duplicates_of(&client) <= 1 + duplicates.len()
    });
}

#[test]
fn an_eventfd_that_is_connected_anew_is_no_new_client() {
    let _alone = alone();
    let served = served();
    let (client, _duplicates, _epolls) = waited_for(400, 100);
    let slow = one_signal(&client);
    let mut taken = Duration::ZERO;
    for _ in 0..100 {
        connect(&served, &client);
        taken += self::taken(|| (0..2).for_each(|_| interrupt(&served)));
    }
    // As a new client it would be tried each time.
    assert!(taken < 40 * slow, "{taken:?}, and one {slow:?}");
}

#[test]
fn ordinary_signals_between_slow_ones_make_up_for_nothing() {
    let _alone = alone();
    let served = served();
    let (slow, _duplicates, _epolls) = waited_for(400, 100);
    let (ordinary, _, _) = waited_for(1, 1);
    let one = one_signal(&slow);
    let mut taken = Duration::ZERO;
    for _ in 0..100 {
        connect(&served, &slow);
        taken += self::taken(|| interrupt(&served));
        connect(&served, &ordinary);
        taken += self::taken(|| (0..5).for_each(|_| interrupt(&served)));
    }
    assert!(taken < 40 * one, "{taken:?}, and a slow one {one:?}");
}

#[test]
fn signals_that_are_a_little_slow_add_up() {
    const TIMES: u32 = 2_000;
    let _alone = alone();
    let served = served();
    // About a hundred microseconds each: far from the credit, and on the slowest processor, or with a tenth of one, more than a fiftieth of the time.
    let (client, _duplicates, _epolls) = waited_for(100, 35);
    let one = one_signal(&client);
    connect(&served, &client);
    let taken = taken(|| (0..TIMES).for_each(|_| interrupt(&served)));
    assert!(taken < TIMES / 3 * one, "{taken:?}, and one {one:?}");
}
