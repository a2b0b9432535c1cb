//! Format NVM, Namespace Management and Attachment, and what Identify, events and logs tell of them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use nvme_vfio_dma::AddressSpace;
use nvme_vfio_emulator::{
    Backend, BackendCompletion, CommandFault, DeviceMemory, Emulator, Fault, Matcher,
    MemoryBackend, OnAbort, Operation, Request, Segment,
};

use crate::host::*;

const MANAGEMENT: u8 = 0x0d;
const ATTACHMENT: u8 = 0x15;
const FORMAT: u8 = 0x80;
const ALL: u32 = u32::MAX;

/// The data of a create: so many blocks of an LBA format.
fn create_data(blocks: u64, format: u8) -> Vec<u8> {
    let mut data = vec![0; 4096];
    data[..8].copy_from_slice(&blocks.to_le_bytes());
    data[8..16].copy_from_slice(&blocks.to_le_bytes());
    data[26] = format;
    data
}

fn create(host: &mut Host, blocks: u64, format: u8) -> Entry {
    host.run_with(0, command(MANAGEMENT, 0), &create_data(blocks, format))
}

fn delete(nsid: u32) -> Dwords {
    with(command(MANAGEMENT, nsid), 10, 1)
}

fn attach(host: &mut Host, nsid: u32, select: u32) -> u16 {
    let list = [1, 0, 1, 0];
    host.run_with(0, with(command(ATTACHMENT, nsid), 10, select), &list)
        .status
}

fn format(nsid: u32, dword10: u32) -> Dwords {
    with(command(FORMAT, nsid), 10, dword10)
}

fn list(host: &mut Host, cns: u8) -> Vec<u32> {
    let (status, page) = host.identify(cns, 0);
    assert_eq!(status, 0);
    page.chunks(4)
        .map(|id| u32_at(id, 0))
        .take_while(|&id| id != 0)
        .collect()
}

fn changed(host: &mut Host) -> Vec<u32> {
    let (status, page) = host.log(4, 4096, 0, 0);
    assert_eq!(status, 0);
    page.chunks(4)
        .map(|id| u32_at(id, 0))
        .take_while(|&id| id != 0)
        .collect()
}

fn capacities(host: &mut Host) -> (u64, u64) {
    let (_, page) = host.identify(1, 0);
    (u64_at(&page, 280), u64_at(&page, 296))
}

#[test]
fn namespaces_come_and_go() {
    let mut host = Host::with_queue("nsids=1/1M:3/1M/4096,nn=4,capacity=4M", 8);
    assert_eq!(
        capacities(&mut host),
        (4 << 20, 2 << 20),
        "TNVMCAP, UNVMCAP"
    );
    let entry = create(&mut host, 256, 1);
    assert_eq!((entry.status, entry.result), (0, 2), "the lowest is free");
    assert_eq!(capacities(&mut host), (4 << 20, 1 << 20));
    for (cns, expected) in [
        (0x02, &[1, 3][..]),
        (0x07, &[1, 3]),
        (0x10, &[1, 2, 3]),
        (0x1a, &[1, 2, 3]),
    ] {
        assert_eq!(list(&mut host, cns), expected, "CNS {cns:#x}");
    }
    // Allocated, not attached: CNS 00h tells nothing, 11h all.
    assert_eq!(host.identify(0x00, 2), (0, vec![0; 4096]));
    let (_, page) = host.identify(0x11, 2);
    assert_eq!((u64_at(&page, 0), page[26]), (256, 1), "NSZE, FLBAS");
    assert_eq!(u64_at(&page, 48), 1 << 20, "NVMCAP");
    assert_eq!(host.identify(0x12, 2).1[..2], [0, 0]);
    assert_eq!(host.identify(0x12, 1).1[..4], [1, 0, 1, 0]);
    assert_eq!(host.identify(0x13, 0).1[..4], [1, 0, 1, 0]);
    assert_eq!(
        host.refused(1, with(command(0, 2), 1, 2)),
        0x002,
        "inactive"
    );
    assert_eq!(attach(&mut host, 2, 0), 0);
    assert_eq!(list(&mut host, 0x02), [1, 2, 3]);
    let memory = host.memory(4096);
    let iova = memory.iova().0;
    memory.write_bytes(0, &[7; 4096]).unwrap();
    let last = |opcode, lba| with(Host::transfer(opcode, lba, 1, iova, 0), 1, 2);
    assert_eq!(host.run(1, last(1, 255)).status, 0);
    assert_eq!(host.refused(1, last(1, 256)), 0x080);
    let identifiers = host.identify(3, 2).1;
    host.admin(delete(2));
    assert_eq!(list(&mut host, 0x10), [1, 3]);
    assert_eq!(host.refused(1, last(2, 0)), 0x002);
    // Another with the same identifier holds nothing of the old one and is not it.
    assert_eq!(create(&mut host, 256, 1).result, 2);
    assert_eq!(attach(&mut host, 2, 0), 0);
    assert_ne!(host.identify(3, 2).1, identifiers);
    assert_eq!(host.run(1, last(2, 255)).status, 0);
    assert_eq!(bytes(&memory, 4096), [0; 4096]);
    assert_eq!(attach(&mut host, 2, 1), 0);
    assert_eq!(host.refused(1, last(2, 255)), 0x002, "detached");
    host.admin(delete(ALL));
    assert_eq!(list(&mut host, 0x10), [0; 0]);
    assert_eq!(capacities(&mut host), (4 << 20, 4 << 20));
    host.admin(delete(ALL));
}

#[test]
fn identify_knows_one_command_set_and_one_controller() {
    let mut host = Host::enabled("size=1M,nsids=1:3,nn=4");
    let memory = host.memory(4096);
    let mut identify = |cns: u32, nsid, controller: u32, command_set: u32| {
        memory.write_bytes(0, &[0xee; 4096]).unwrap();
        let entry = with(command(6, nsid), 10, controller << 16 | cns);
        let entry = with(entry, 11, command_set << 24);
        let status = host.run(0, with_prps(entry, memory.iova().0, 0)).status;
        (status, bytes(&memory, 4096))
    };
    let nothing = vec![0; 4096];
    for cns in [0x05, 0x06, 0x07, 0x1a, 0x1b] {
        assert_eq!(identify(cns, 1, 0, 0).0, 0, "{cns:#x}");
        assert_eq!(identify(cns, 1, 0, 1).0, 0x002, "{cns:#x}");
    }
    for controller in [1, 0xffff] {
        let (status, page) = identify(0x1c, 0, controller, 0);
        assert_eq!((status, u64_at(&page, 0), u64_at(&page, 8)), (0, 1, 0));
    }
    assert_eq!(identify(0x1c, 0, 2, 0).0, 0x002);
    // Lists of controllers begin with the one that was asked for.
    for cns in [0x12, 0x13] {
        for from in [0, 1] {
            assert_eq!(identify(cns, 3, from, 0).1[..4], [1, 0, 1, 0]);
        }
        assert_eq!(identify(cns, 3, 2, 0), (0, nothing.clone()));
    }
    // What is the same for all namespaces.
    let (status, common) = identify(0x00, ALL, 0, 0);
    let (_, own) = identify(0x00, 3, 0, 0);
    assert_eq!(status, 0);
    assert_eq!(u64_at(&common, 0), 0, "NSZE");
    assert_eq!(common[64..104], own[64..104], "limits of Copy");
    assert_eq!(common[128..192], own[128..192], "LBA formats");
    for cns in [0x00, 0x05, 0x08, 0x11, 0x12, 0x1b] {
        assert_eq!(identify(cns, 2, 0, 0), (0, nothing.clone()), "{cns:#x}");
        for nsid in [0, 5, 0xffff_fffe] {
            assert_eq!(identify(cns, nsid, 0, 0).0, 0x00b, "{cns:#x} of {nsid}");
        }
    }
    for cns in [0x02, 0x07, 0x10, 0x1a] {
        for nsid in [0xffff_fffe, ALL] {
            assert_eq!(identify(cns, nsid, 0, 0).0, 0x00b);
        }
        assert_eq!(identify(cns, 3, 0, 0), (0, nothing.clone()));
    }
}

#[test]
fn a_namespace_that_may_be_shared_says_so() {
    let mut host = Host::enabled("size=1M,nn=2,capacity=2M");
    let mut data = create_data(8, 0);
    data[30] = 1;
    assert_eq!(host.run_with(0, command(MANAGEMENT, 0), &data).result, 2);
    assert_eq!(host.identify(0x11, 2).1[30], 1);
    assert_eq!(attach(&mut host, 2, 0), 0);
    host.admin(format(2, 1));
    for (nsid, shared) in [(1, 0), (2, 1)] {
        assert_eq!(host.identify(0, nsid).1[30], shared, "NMIC of {nsid}");
        assert_eq!(host.identify(8, nsid).1[1], shared);
    }
}

#[test]
fn create_is_checked() {
    let mut host = Host::enabled("size=1M,nn=2,capacity=4M");
    let whole = (3 << 20) / 512;
    let change = |offset: usize, bytes: &[u8]| {
        let mut data = create_data(8, 0);
        data[offset..offset + bytes.len()].copy_from_slice(bytes);
        data
    };
    for (what, data, status) in [
        ("no blocks", create_data(0, 0), 0x002),
        ("thin", change(8, &[7]), 0x11b),
        ("more capacity than size", change(8, &[9]), 0x002),
        ("no such format", create_data(8, 8), 0x10a),
        ("no such format above", create_data(8, 1 << 5), 0x10a),
        ("protection", change(29, &[1]), 0x10a),
        ("NMIC", change(30, &[2]), 0x002),
        ("ANA group", change(92, &[1]), 0x002),
        ("NVM set", change(100, &[1]), 0x002),
        ("a block too many", create_data(whole + 1, 0), 0x115),
        ("as bytes too many", create_data(whole, 1), 0x115),
        ("far too many", create_data(u64::MAX, 0), 0x115),
    ] {
        let entry = host.run_with(0, command(MANAGEMENT, 0), &data);
        assert_eq!(entry.status, status, "{what}");
    }
    let good = create_data(8, 0);
    for (what, entry, status) in [
        ("NSID", command(MANAGEMENT, 1), 0x002),
        ("CSI", with(command(MANAGEMENT, 0), 11, 1 << 24), 0x129),
        ("SEL", with(command(MANAGEMENT, 0), 10, 2), 0x002),
    ] {
        assert_eq!(host.run_with(0, entry, &good).status, status, "{what}");
    }
    let nowhere = with_prps(command(MANAGEMENT, 0), 0x7000_0000, 0);
    assert_eq!(host.refused(0, nowhere), 0x004);
    assert_eq!(list(&mut host, 0x10), [1]);
    assert_eq!(create(&mut host, whole, 0).status, 0, "all there is");
    assert_eq!(create(&mut host, 1, 0).status, 0x115);
    host.admin(delete(2));
    assert_eq!(create(&mut host, 8, 0).status, 0);
    assert_eq!(create(&mut host, 8, 0).status, 0x116, "no identifier");
    for (nsid, status) in [(0, 0x00b), (3, 0x00b)] {
        assert_eq!(host.refused(0, delete(nsid)), status);
    }
    host.admin(delete(2));
    assert_eq!(host.refused(0, delete(2)), 0x002);
    // Blocks larger than MDTS allows cannot be read.
    let mut host = Host::enabled("size=1M,nn=2,capacity=4M,mdts=1");
    assert_eq!(create(&mut host, 8, 5).status, 0x10a, "16 KiB");
    assert_eq!(create(&mut host, 8, 4).status, 0, "8 KiB");
}

#[test]
fn attachment_is_checked() {
    let mut host = Host::enabled("size=1M,nsids=1:3");
    assert_eq!(attach(&mut host, 1, 0), 0x118, "attached already");
    assert_eq!(attach(&mut host, 1, 2), 0x002);
    for (nsid, status) in [(0, 0x00b), (2, 0x002), (4, 0x00b), (ALL, 0x00b)] {
        assert_eq!(attach(&mut host, nsid, 1), status);
    }
    for list in [[0, 0, 0, 0], [2, 0, 1, 0], [1, 0, 0, 0], [1, 0, 2, 0]] {
        let entry = with(command(ATTACHMENT, 1), 10, 1);
        assert_eq!(host.run_with(0, entry, &list).status, 0x11c, "{list:?}");
    }
    let nowhere = with_prps(with(command(ATTACHMENT, 1), 10, 1), 0x7000_0000, 0);
    assert_eq!(host.refused(0, nowhere), 0x004);
    assert_eq!(attach(&mut host, 1, 1), 0);
    assert_eq!(attach(&mut host, 1, 1), 0x11a, "not attached");
    assert_eq!(host.identify(0x12, 1).1[..2], [0, 0]);
    assert_eq!(attach(&mut host, 1, 0), 0);
}

#[test]
fn hosts_are_told_of_changed_namespaces() {
    let mut host = Host::enabled("size=1M,nsids=1:3,nn=4,capacity=4M");
    host.submit(0, command(0x0c, 0));
    // Not asked for: the log tells, no event does.
    assert_eq!(attach(&mut host, 3, 1), 0);
    host.emulator.step();
    assert!(host.take(0).is_none());
    host.admin(with(with(command(9, 0), 10, 0x0b), 11, 1 << 8));
    assert_eq!(attach(&mut host, 3, 0), 0);
    host.emulator.step();
    let event = host.take(0).unwrap();
    assert_eq!(event.result, 0x0004_0002, "notice, attribute, log page 04h");
    // No other until the log page was read, and read without Retain Asynchronous Event.
    host.submit(0, command(0x0c, 0));
    assert_eq!(attach(&mut host, 1, 1), 0);
    let mut retained = with(command(2, 0), 10, 1023 << 16 | 1 << 15 | 4);
    let memory = host.memory(4096);
    retained = with_prps(retained, memory.iova().0, 0);
    host.admin(retained);
    assert_eq!(u64_at(&bytes(&memory, 8), 0), 3 << 32 | 1);
    host.emulator.step();
    assert!(host.take(0).is_none());
    let cid = host.submit(0, with(retained, 10, 1023 << 16 | 4));
    host.emulator.step();
    assert_eq!(host.take(0).unwrap().cid, cid);
    assert_eq!(u64_at(&bytes(&memory, 8), 0), 3 << 32 | 1);
    host.emulator.step();
    assert!(host.take(0).is_none(), "the log page told it");
    assert_eq!(changed(&mut host), [0; 0], "read and forgotten");
    assert_eq!(attach(&mut host, 1, 0), 0);
    host.emulator.step();
    assert_eq!(host.take(0).unwrap().result, 0x0004_0002);
    assert_eq!(changed(&mut host), [1]);
    // What no host sees changes nothing.
    let created = create(&mut host, 8, 0).result;
    assert_eq!(changed(&mut host), [0; 0]);
    host.admin(delete(created));
    assert_eq!(changed(&mut host), [0; 0]);
    host.admin(format(3, 0));
    assert_eq!(changed(&mut host), [0; 0], "the same format");
    host.admin(format(3, 1));
    assert_eq!(changed(&mut host), [3]);
    host.admin(delete(3));
    assert_eq!(changed(&mut host), [3]);
}

#[test]
fn format_erases_and_changes_the_block_size() {
    let mut host = Host::with_queue("size=1M,nsids=1:2:5", 8);
    let memory = host.memory(8192);
    let iova = memory.iova().0;
    memory.write_bytes(0, &[7; 8192]).unwrap();
    let write = |nsid| with(Host::transfer(1, 0, 1, iova, 0), 1, nsid);
    let first = |host: &mut Host, nsid| {
        let read = with(Host::transfer(2, 0, 1, iova + 4096, 0), 1, nsid);
        assert_eq!(host.run(1, read).status, 0);
        bytes(&memory, 4097)[4096]
    };
    for erase in 0..3 {
        for nsid in [1, 2, 5] {
            assert_eq!(host.run(1, write(nsid)).status, 0);
        }
        let uncorrectable = with(Host::transfer(4, 9, 1, 0, 0), 1, 2);
        assert_eq!(host.run(1, uncorrectable).status, 0);
        host.admin(format(2, erase << 9));
        assert_eq!(first(&mut host, 2), 0, "erased");
        assert_eq!(first(&mut host, 1), 7, "another namespace is left alone");
        let verify = with(Host::transfer(0x0c, 0, 2048, 0, 0), 1, 2);
        assert_eq!(host.run(1, verify).status, 0, "no block is uncorrectable");
    }
    host.admin(format(2, 1));
    let (_, page) = host.identify(0, 2);
    assert_eq!((u64_at(&page, 0), page[26]), (256, 1));
    assert_eq!(host.run(1, with(write(2), 10, 255)).status, 0);
    assert_eq!(host.refused(1, with(write(2), 10, 256)), 0x080);
    host.admin(format(ALL, 1));
    for nsid in [1, 2, 5] {
        assert_eq!(first(&mut host, nsid), 0);
        assert_eq!(u64_at(&host.identify(0, nsid).1, 0), 256);
    }
    host.admin(format(2, 0));
    assert_eq!(u64_at(&host.identify(0, 2).1, 0), 2048, "and back");
}

#[test]
fn format_is_checked() {
    let mut host = Host::enabled("nsids=1/8K:3/1M,mdts=3,nn=4,capacity=4M");
    for (what, entry, status) in [
        ("NSID 0", format(0, 0), 0x00b),
        ("inactive", format(2, 0), 0x002),
        ("past NN", format(5, 0), 0x00b),
        ("SES 3", format(1, 3 << 9), 0x002),
        ("SES 7", format(1, 7 << 9), 0x002),
        ("PI 1", format(1, 1 << 5), 0x10a),
        ("PI 3", format(1, 3 << 5), 0x10a),
        ("PI 4", format(1, 4 << 5), 0x002),
        ("LBAF 8", format(1, 8), 0x10a),
        ("LBAF 15", format(1, 15), 0x10a),
        ("LBAF 16", format(1, 1 << 12), 0x10a),
        ("LBAF 32", format(1, 2 << 12), 0x10a),
        ("larger than MDTS", format(3, 7), 0x10a),
        ("larger than the namespace", format(1, 5), 0x10a),
        ("larger than one of all", format(ALL, 5), 0x10a),
    ] {
        assert_eq!(host.refused(0, entry), status, "{what}");
    }
    assert_eq!(host.identify(0, 1).1[26], 0);
    assert_eq!(create(&mut host, 8, 0).result, 2);
    assert_eq!(host.refused(0, format(2, 0)), 0x002, "not attached");
}

/// A back end that tells what it finished only when the test says so.
#[derive(Debug)]
struct Gate {
    inner: MemoryBackend,
    open: Arc<AtomicBool>,
    finished: Vec<BackendCompletion>,
    /// Tags that were not told yet, and the namespaces that they are about.
    untold: Vec<(u32, [u32; 2])>,
}

impl Gate {
    fn assert_idle(&self, namespace: u32) {
        let mut untold = self.untold.iter();
        assert!(untold.all(|(_, about)| !about.contains(&namespace)));
    }
}

impl Backend for Gate {
    fn submit(&mut self, requests: &[Request], segments: &[Segment], memory: &DeviceMemory<'_>) {
        for request in requests {
            let from = match request.operation {
                Operation::Copy { namespace, .. } => namespace,
                _ => request.namespace,
            };
            self.untold.push((request.tag, [request.namespace, from]));
        }
        self.inner.submit(requests, segments, memory);
    }

    fn poll(&mut self, memory: &DeviceMemory<'_>, completions: &mut Vec<BackendCompletion>) {
        self.inner.poll(memory, &mut self.finished);
        if self.open.load(Ordering::Relaxed) {
            for done in self.finished.drain(..) {
                self.untold.retain(|(tag, _)| *tag != done.tag);
                completions.push(done);
            }
        }
    }

    fn open(&mut self, namespace: u32, bytes: u64) -> std::io::Result<()> {
        self.inner.open(namespace, bytes)
    }

    fn delete(&mut self, namespace: u32) {
        self.assert_idle(namespace);
        self.inner.delete(namespace);
    }

    fn erase(&mut self, namespace: u32) -> std::io::Result<()> {
        self.assert_idle(namespace);
        self.inner.erase(namespace)
    }

    fn reset(&mut self) {
        self.finished.clear();
        self.untold.clear();
        self.inner.reset();
    }
}

fn gated(config: &str) -> (Host, Arc<AtomicBool>) {
    let open = Arc::new(AtomicBool::new(true));
    let backend = Gate {
        inner: MemoryBackend::default(),
        open: Arc::clone(&open),
        finished: Vec::new(),
        untold: Vec::new(),
    };
    let mut host = Host::new("");
    let config = config.parse().unwrap();
    host.emulator = Emulator::with_backend(config, Box::new(backend)).unwrap();
    host.emulator.config_write(4, &[6, 0]);
    host.space = AddressSpace::new(host.emulator.iommu());
    host.enable();
    host.create_queue(1, 8);
    (host, open)
}

#[test]
fn formats_and_deletions_wait_for_commands_in_flight() {
    for entry in [format(1, 1), format(ALL, 1), delete(1)] {
        let (mut host, open) = gated("size=1M,namespaces=2");
        let deleting = entry[0] == u32::from(MANAGEMENT);
        open.store(false, Ordering::Relaxed);
        let zeroes = host.submit(1, Host::transfer(8, 0, 8, 0, 0));
        host.emulator.step();
        let admin = host.submit(0, entry);
        host.emulator.step();
        assert!(host.take(0).is_none(), "it waits");
        // New commands on the namespace are refused, on another run.
        for opcode in [0, 4, 8, 0x0c] {
            let status = host.refused(1, Host::transfer(opcode, 0, 1, 0, 0));
            assert_eq!(status, 0x084, "{opcode:#x}");
        }
        let memory = host.memory(4096);
        for opcode in [1, 2, 5, 9, 0x19] {
            let refused = Host::transfer(opcode, 0, 1, memory.iova().0, 0);
            assert_eq!(host.refused(1, refused), 0x084, "{opcode:#x}");
        }
        assert_eq!(host.refused(0, format(1, 0)), 0x084);
        assert_eq!(host.refused(0, delete(1)), 0x084);
        open.store(true, Ordering::Relaxed);
        host.emulator.step();
        assert_eq!(host.take(1).unwrap().cid, zeroes);
        host.emulator.step();
        let done = host.take(0).unwrap();
        assert_eq!((done.cid, done.status), (admin, 0));
        let (_, page) = host.identify(0, 1);
        assert_eq!(u64_at(&page, 0), if deleting { 0 } else { 256 });
        let status = host.run(1, Host::transfer(0, 0, 1, 0, 0)).status;
        assert_eq!(status, if deleting { 0x002 } else { 0 });
    }
}

#[test]
fn a_copy_between_namespaces_holds_both() {
    let (mut host, open) = gated("size=1M,namespaces=3");
    let mut behavior = [0; 512];
    behavior[4] = 0b100;
    let set = with(command(9, 0), 10, 0x16);
    assert_eq!(host.run_with(0, set, &behavior).status, 0);
    open.store(false, Ordering::Relaxed);
    // From namespace 1, then from 2, of which the back end does not know yet.
    let mut sources = [0; 64];
    (sources[0], sources[32]) = (1, 2);
    let memory = host.memory(4096);
    memory.write_bytes(0, &sources).unwrap();
    let copy = with(command(0x19, 1), 12, 2 << 8 | 1);
    let copy = with_prps(with(copy, 10, 100), memory.iova().0, 0);
    host.submit(1, copy);
    host.emulator.step();
    for nsid in [3, 2, 1] {
        let entry = format(nsid, 1);
        host.submit(0, entry);
    }
    host.emulator.step();
    assert_eq!(host.take(0).unwrap().status, 0, "of the third only");
    assert!(host.take(0).is_none());
    // Nothing is copied out of a namespace that is about to be formatted.
    let other = with(with(copy, 1, 3), 12, 2 << 8 | 1);
    assert_eq!(host.refused(1, other), 0x084);
    open.store(true, Ordering::Relaxed);
    host.emulator.step();
    host.emulator.step();
    assert_eq!(host.take(1).unwrap().status, 0);
    host.emulator.step();
    assert_eq!(host.take(0).unwrap().status, 0);
    assert_eq!(host.take(0).unwrap().status, 0);
}

#[test]
fn a_reset_ends_a_format_that_waits() {
    let (mut host, open) = gated("size=1M");
    open.store(false, Ordering::Relaxed);
    host.submit(1, Host::transfer(8, 0, 8, 0, 0));
    host.emulator.step();
    host.submit(0, format(1, 1));
    host.emulator.step();
    host.emulator.reset();
    open.store(true, Ordering::Relaxed);
    host.emulator.config_write(4, &[6, 0]);
    host.enable();
    host.create_queue(1, 8);
    assert_eq!(u64_at(&host.identify(0, 1).1, 0), 2048, "as it was");
    assert_eq!(host.run(1, Host::transfer(8, 0, 8, 0, 0)).status, 0);
    assert_eq!(host.take(0), None);
}

#[test]
fn a_command_that_hung_runs_by_the_format_of_its_time() {
    let mut host = Host::with_queue("size=1M", 8);
    let memory = host.memory(4096);
    let hang = CommandFault::Hang(OnAbort::NotAborted);
    host.emulator
        .inject(Fault::on(Matcher::io().times(1), hang));
    memory.write_bytes(0, &[7; 4096]).unwrap();
    host.submit(1, Host::transfer(2, 3, 1, memory.iova().0, 0));
    host.emulator.step();
    assert_eq!(host.take(1), None);
    host.admin(format(1, 1));
    assert_eq!(host.emulator.release(), 1);
    host.emulator.step();
    assert_eq!(host.take(1).unwrap().status, 0);
    assert_eq!(bytes(&memory, 4096), [0; 4096], "a block of 4 KiB");
}

#[test]
fn a_back_end_that_cannot_says_so() {
    #[derive(Debug)]
    struct Fixed;
    impl Backend for Fixed {
        fn submit(&mut self, _: &[Request], _: &[Segment], _: &DeviceMemory<'_>) {}
        fn poll(&mut self, _: &DeviceMemory<'_>, _: &mut Vec<BackendCompletion>) {}
        fn reset(&mut self) {}
    }
    let mut host = Host::new("");
    let config = "size=1M,nn=2,capacity=2M".parse().unwrap();
    host.emulator = Emulator::with_backend(config, Box::new(Fixed)).unwrap();
    host.emulator.config_write(4, &[6, 0]);
    host.space = AddressSpace::new(host.emulator.iommu());
    host.enable();
    assert_eq!(create(&mut host, 8, 0).status, 0x115);
    assert_eq!(host.refused(0, format(1, 1)), 0x006);
    assert_eq!(host.identify(0, 1).1[26], 0, "not formatted");
}
