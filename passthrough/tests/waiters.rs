//! A client that has ten thousands of waiters woken by each of its interrupts makes nobody else wait.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::time::{ClockId, clock_gettime};
use nvme_vfio_emulator::{Emulator, Patience, ServedController};
use nvme_vfio_user::Eventfd;
use nvme_vfio_user::device::{Device, IrqAction, IrqData};

/// Index of MSI-X among the kinds of interrupts.
const MSIX: u32 = 2;

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

/// How long an interrupt takes whoever gives it.
fn interrupt(served: &ServedController) -> Duration {
    interrupt_all(served, 1)
}

fn interrupt_all(served: &ServedController, vectors: u32) -> Duration {
    let begun = Instant::now();
    served
        .set_irqs(MSIX, 0..vectors, IrqAction::Trigger, IrqData::None)
        .expect("signalled");
    begun.elapsed()
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

#[test]
fn an_eventfd_with_too_many_waiters_costs_the_controller_nothing() {
    let served = served();
    let (client, _duplicates, _epolls) = waited_for(400, 100);
    connect(&served, &client);
    for _ in 0..20 {
        interrupt(&served);
    }
    let mut times: Vec<Duration> = (0..50).map(|_| interrupt(&served)).collect();
    times.sort_unstable();
    assert!(times[25] < Duration::from_millis(1), "{:?}", times[25]);
    // And it is signalled all the same, after whatever was.
    let until = Instant::now() + Duration::from_secs(20);
    std::thread::sleep(Duration::from_millis(500));
    let _ = client.read();
    interrupt(&served);
    while client.read().is_err() {
        assert!(Instant::now() < until, "no interrupt");
    }
    // One that comes later is not tried.
    let (another, _duplicates, _epolls) = waited_for(1, 1);
    connect(&served, &another);
    interrupt(&served);
    while another.read().is_err() {
        assert!(Instant::now() < until, "no interrupt");
    }
}

#[test]
fn one_with_a_waiter_is_signalled_at_once() {
    // A machine that is itself held up for milliseconds in the middle of a signal may spoil one time, not all.
    let all = (0..5).any(|_| {
        let served = served();
        let (client, _duplicates, _epolls) = waited_for(1, 1);
        connect(&served, &client);
        for _ in 0..2_000 {
            interrupt(&served);
        }
        client.read() == Ok(2_000)
    });
    assert!(all, "interrupts became one");
}

#[test]
fn eventfds_that_are_replaced_are_closed_however_slow_they_were() {
    const VECTORS: u32 = 8;
    let served = served();
    let (client, duplicates, _epolls) = waited_for(400, 100);
    connect(&served, &client);
    for _ in 0..10 {
        interrupt(&served);
    }
    let mut most = 0;
    for _ in 0..5 {
        for _ in 0..10 {
            connect_all(&served, &client, VECTORS);
            interrupt_all(&served, VECTORS);
        }
        most = most.max(duplicates_of(&client));
    }
    // The client's own, one for each vector, the one that is being signalled, and some that are just being closed.
    assert!(
        most <= 1 + duplicates.len() + VECTORS as usize + 1 + 64,
        "{most} descriptors"
    );
    // The last of them are signalled all the same.
    let until = Instant::now() + Duration::from_secs(20);
    while client.read().is_err() {
        assert!(Instant::now() < until, "no interrupt");
    }
    // And what is disconnected is closed.
    served
        .set_irqs(MSIX, 0..0, IrqAction::Trigger, IrqData::None)
        .expect("disconnected");
    while duplicates_of(&client) > 1 + duplicates.len() {
        assert!(Instant::now() < until, "still open");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// What interrupts took this thread's processor: `times` over, what `each` does.
fn taken(times: u32, mut each: impl FnMut(&mut dyn FnMut(&ServedController, u32))) -> Duration {
    let now = || Duration::from(clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).expect("a clock"));
    let mut taken = Duration::ZERO;
    for _ in 0..times {
        each(&mut |served, vectors| {
            let begun = now();
            interrupt_all(served, vectors);
            taken += now() - begun;
        });
    }
    taken
}

#[test]
fn an_eventfd_that_is_connected_anew_is_no_new_client() {
    let served = served();
    let (client, _duplicates, _epolls) = waited_for(400, 100);
    connect(&served, &client);
    let alone = taken(1, |interrupt| interrupt(&served, 1));
    let taken = taken(100, |interrupt| {
        connect(&served, &client);
        interrupt(&served, 1);
        interrupt(&served, 1);
    });
    assert!(alone > Duration::from_micros(500), "not slow: {alone:?}");
    assert!(taken < 10 * alone, "{taken:?}, and one {alone:?}");
}

#[test]
fn ordinary_signals_between_slow_ones_make_up_for_nothing() {
    let served = served();
    let (slow, _duplicates, _epolls) = waited_for(400, 100);
    let (ordinary, _, _) = waited_for(1, 1);
    let taken = taken(100, |interrupt| {
        connect(&served, &slow);
        interrupt(&served, 1);
        connect(&served, &ordinary);
        for _ in 0..5 {
            interrupt(&served, 1);
        }
    });
    assert!(taken < Duration::from_millis(100), "{taken:?}");
}

#[test]
fn signals_that_are_a_little_slow_add_up() {
    let served = served();
    // Some tens of microseconds each.
    let (client, _duplicates, _epolls) = waited_for(10, 35);
    connect(&served, &client);
    let first = taken(20, |interrupt| interrupt(&served, 1)) / 20;
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(1) {
        taken(100, |interrupt| interrupt(&served, 1));
    }
    let later = taken(200, |interrupt| interrupt(&served, 1)) / 200;
    assert!(later < first / 2, "{first:?} at first, {later:?} later");
}
