//! Doorbell Buffer Config: doorbells in memory, and what EventIdx tells.

use std::sync::atomic::Ordering;

use nvme_vfio_dma::SharedMemory;
use nvme_vfio_emulator::TraceEvent;

use crate::host::*;

const CONFIG: u8 = 0x7c;

struct Pages {
    doorbells: SharedMemory,
    event_indexes: SharedMemory,
}

impl Pages {
    fn new(host: &mut Host) -> Pages {
        let pages = Pages {
            doorbells: host.memory(4096),
            event_indexes: host.memory(4096),
        };
        pages.doorbells.write_bytes(0, &[0xee; 4096]).unwrap();
        pages.event_indexes.write_bytes(0, &[0xee; 4096]).unwrap();
        let (first, second) = (pages.doorbells.iova().0, pages.event_indexes.iova().0);
        host.admin(with_prps(command(CONFIG, 0), first, second));
        pages
    }

    fn shadow(&self, index: usize) -> u32 {
        self.doorbells.read_u32(index * 4).unwrap()
    }

    fn event_index(&self, index: usize) -> u32 {
        self.event_indexes.read_u32(index * 4).unwrap()
    }

    fn set(&self, index: usize, value: u32) {
        let shadow = self.doorbells.atomic_u32(index * 4).unwrap();
        shadow.store(value, Ordering::SeqCst);
    }
}

/// Puts a Flush into queue 1 without ringing.
fn put(host: &mut Host, cid: u32) {
    let ring = host.rings.get_mut(&1).unwrap();
    let dwords = with(command(0, 1), 0, cid << 16);
    for (index, dword) in dwords.into_iter().enumerate() {
        ring.submission
            .write_u32(ring.tail as usize * 64 + index * 4, dword)
            .unwrap();
    }
    ring.tail = (ring.tail + 1) % ring.size;
}

/// The next completion of queue 1, without ringing its head.
fn look(host: &mut Host) -> Option<u16> {
    let ring = host.rings.get_mut(&1).unwrap();
    let last = ring
        .completion
        .read_u32(ring.head as usize * 16 + 12)
        .unwrap();
    if (last >> 16 & 1 != 0) != ring.phase {
        return None;
    }
    ring.head = (ring.head + 1) % ring.size;
    ring.phase ^= ring.head == 0;
    Some(last as u16)
}

#[test]
fn commands_run_by_their_shadow_doorbells_alone() {
    let mut host = Host::with_queue("queues=2", 4);
    // Something happens before the host knows of shadows.
    assert_eq!(host.run(1, command(0, 1)).status, 0);
    let pages = Pages::new(&mut host);
    assert_eq!(
        [2, 3, 4, 5].map(|index| pages.shadow(index)),
        [1, 1, 0, 0],
        "as the registers are"
    );
    assert_eq!([2, 3, 4].map(|index| pages.event_index(index)), [1, 1, 0]);
    assert_eq!(
        [0, 1, 6].map(|index| pages.shadow(index)),
        [0xeeee_eeee; 3],
        "the admin queue has none, and there are two more queues"
    );
    for round in 0..20 {
        put(&mut host, round);
        host.emulator.step();
        assert_eq!(look(&mut host), None, "nothing was rung");
        let (tail, head) = (host.rings[&1].tail, host.rings[&1].head);
        pages.set(2, tail);
        host.emulator.step();
        assert_eq!(pages.event_index(2), tail);
        assert_eq!(look(&mut host), Some(round as u16));
        assert_eq!(pages.event_index(3), head);
        pages.set(3, host.rings[&1].head);
    }
    assert_eq!(host.emulator.statistics().invalid_doorbells, 0);
}

#[test]
fn a_full_completion_queue_waits_for_its_shadow() {
    let mut host = Host::with_queue("", 4);
    let pages = Pages::new(&mut host);
    for cid in 0..3 {
        put(&mut host, cid);
    }
    pages.set(2, 3);
    host.emulator.step();
    for cid in 3..5 {
        put(&mut host, cid);
    }
    pages.set(2, 1);
    host.emulator.step();
    assert_eq!([(); 3].map(|()| look(&mut host)), [0, 1, 2].map(Some));
    assert_eq!(look(&mut host), None, "there is no room");
    pages.set(3, 2);
    host.emulator.step();
    assert_eq!([(); 2].map(|()| look(&mut host)), [3, 4].map(Some));
}

#[test]
fn registers_count_until_the_shadows_are_written() {
    let mut host = Host::with_queue("", 8);
    let pages = Pages::new(&mut host);
    for cid in 0..3 {
        put(&mut host, cid);
        let tail = host.rings[&1].tail;
        host.ring_doorbell(1, false, tail);
        host.emulator.step();
        assert_eq!(look(&mut host), Some(cid as u16));
    }
    put(&mut host, 3);
    pages.set(2, 4);
    host.ring_doorbell(1, false, 4);
    host.emulator.step();
    assert_eq!(look(&mut host), Some(3));
}

#[test]
fn impossible_values_are_told_and_ignored() {
    let mut host = Host::with_queue("", 8);
    let pages = Pages::new(&mut host);
    host.submit(0, command(0x0c, 0));
    put(&mut host, 0);
    for wrong in [8, u32::MAX] {
        pages.set(2, wrong);
        host.emulator.step();
        assert_eq!(look(&mut host), None);
    }
    assert_eq!(host.take(0).unwrap().result, 0x0001_0100);
    assert!(host.emulator.statistics().invalid_doorbells >= 2);
    pages.set(2, 1);
    host.emulator.step();
    assert_eq!(look(&mut host), Some(0));
}

#[test]
fn new_queues_begin_at_zero() {
    let mut host = Host::with_queue("", 4);
    let pages = Pages::new(&mut host);
    put(&mut host, 0);
    pages.set(2, 1);
    host.emulator.step();
    assert_eq!(look(&mut host), Some(0));
    pages.set(3, 1);
    host.emulator.step();
    host.delete_queue(1);
    host.create_queue(1, 4);
    assert_eq!([2, 3].map(|index| pages.shadow(index)), [0, 0]);
    assert_eq!([2, 3].map(|index| pages.event_index(index)), [0, 0]);
    put(&mut host, 7);
    pages.set(2, 1);
    host.emulator.step();
    assert_eq!(look(&mut host), Some(7), "the same value is new again");
}

#[test]
fn the_stride_and_the_page_bound_them() {
    // 32 bytes between doorbells: 128 in a page, of 64 queues.
    let mut host = Host::with_queue("dstrd=3,queues=100", 4);
    let pages = Pages::new(&mut host);
    put(&mut host, 1);
    pages.set(2 * 8, 1);
    host.emulator.step();
    assert_eq!(look(&mut host), Some(1));
    assert_eq!(pages.event_index(2 * 8), 1);
    assert_eq!(pages.shadow(127 * 8), 0, "the last in the page");
}

#[test]
fn addresses_are_checked_and_a_reset_forgets_them() {
    let mut host = Host::with_queue("", 8);
    let memory = host.memory(8192);
    let iova = memory.iova().0;
    for (first, second, status) in [
        (iova + 64, iova, 0x002),
        (iova, iova + 4, 0x002),
        (0x7000_0000, iova, 0x004),
        (iova, 0x7000_0000, 0x004),
    ] {
        let entry = with_prps(command(CONFIG, 0), first, second);
        assert_eq!(host.refused(0, entry), status);
    }
    assert_eq!(host.run(1, command(0, 1)).status, 0, "registers go on");
    let pages = Pages::new(&mut host);
    let before = pages.event_index(2);
    host.write(CC, 0);
    host.enable();
    host.create_queue(1, 8);
    pages.set(2, 5);
    assert_eq!(host.run(1, command(0, 1)).status, 0, "registers again");
    host.emulator.step();
    assert_eq!(host.take(1), None, "the shadow says nothing any more");
    assert_eq!(pages.event_index(2), before);
    assert_eq!(host.emulator.statistics().invalid_doorbells, 0);
}

#[test]
fn a_trace_tells_changes_not_looks() {
    let mut host = Host::with_queue("", 8);
    let pages = Pages::new(&mut host);
    let trace = host.emulator.trace(1 << 16).unwrap();
    // The doorbells that were rung before.
    host.emulator.step();
    drop(trace.take());
    for _ in 0..100 {
        host.emulator.step();
    }
    assert!(trace.take().is_empty());
    put(&mut host, 0);
    pages.set(2, 1);
    host.emulator.step();
    let records = trace.take();
    let at = |wanted: u64| {
        let told = records.iter().filter(
            |record| matches!(record.event, TraceEvent::Dma { iova, .. } if iova == wanted),
        );
        told.count()
    };
    assert_eq!(at(pages.doorbells.iova().0 + 8), 1, "the new value");
    assert_eq!(at(pages.event_indexes.iova().0 + 8), 1, "EventIdx");
}

#[test]
fn shadows_that_go_away_are_fatal() {
    let mut host = Host::with_queue("", 8);
    let pages = Pages::new(&mut host);
    drop(pages);
    host.emulator.step();
    assert_eq!(host.read(CSTS) & CFS, CFS);
    let fault = host.emulator.iommu().faults()[0];
    assert_eq!(fault.command.unwrap().opcode, CONFIG);
    host.write(CC, 0);
    host.enable();
    assert_eq!(host.read(CSTS), RDY);
}

#[test]
fn a_late_register_write_takes_no_queue_back() {
    let mut host = Host::with_queue("", 4);
    let pages = Pages::new(&mut host);
    for cid in 0..40 {
        put(&mut host, cid);
        let tail = host.rings[&1].tail;
        pages.set(2, tail);
        if cid % 2 == 0 {
            host.emulator.step();
        }
        // The write that EventIdx asked for one command ago comes only now, as a message that was posted does.
        host.ring_doorbell(1, false, (tail + 3) % 4);
        host.emulator.step();
        assert_eq!(look(&mut host), Some(cid as u16), "at {tail}");
        let head = host.rings[&1].head;
        pages.set(3, head);
        host.emulator.step();
        host.ring_doorbell(1, true, (head + 3) % 4);
        host.emulator.step();
    }
    assert_eq!(look(&mut host), None, "nothing ran twice");
    assert_eq!(host.emulator.statistics().invalid_doorbells, 0);
}
