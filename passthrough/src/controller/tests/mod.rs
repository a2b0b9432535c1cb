use nvme_vfio::QueueOptions;

use super::Slice;
use rig::{Plan, Rig};

mod ceilings;
mod faults;
mod model;
mod operator;
mod personality;
mod recorded;
mod rig;
mod shutdown;
mod storm;
mod warnings;

#[test]
fn a_client_reads_and_writes_its_slices_and_nothing_else() {
    for isolated in [super::Isolated::Shared, super::Isolated::Bounce] {
        let rig = Rig::new(Plan {
            isolated,
            ..Plan::default()
        });
        let pattern: Vec<u8> = (0..8 << 20).map(|at| (at / 512 * 7 + at) as u8).collect();
        for (index, chunk) in pattern.chunks(128 << 10).enumerate() {
            rig.set_real(1, index as u64 * 256, chunk);
        }
        let namespace = rig.client.only_namespace().unwrap();
        assert_eq!((namespace.blocks(), namespace.block_size()), (1500, 512));
        let mut queue = rig.client.io_queue(QueueOptions::with_depth(16)).unwrap();
        // Across the seam of the slices, and not on a page.
        let buffer = rig.client.allocate(100 * 512).unwrap();
        let buffer = queue.read_blocking(&namespace, 950, buffer).unwrap();
        assert_eq!(&buffer[..50 * 512], &pattern[1050 * 512..1100 * 512]);
        assert_eq!(&buffer[50 * 512..], &pattern[5000 * 512..5050 * 512]);
        let mut buffer = buffer;
        buffer.fill(0xa5);
        let buffer = queue.write_blocking(&namespace, 960, buffer).unwrap();
        drop(buffer);
        let mut want = pattern.clone();
        want[1060 * 512..1100 * 512].fill(0xa5);
        want[5000 * 512..5060 * 512].fill(0xa5);
        for (index, chunk) in want.chunks(128 << 10).enumerate() {
            assert!(rig.real(1, index as u64 * 256, 256) == chunk, "at {index}");
        }
    }
}

/// Two of three controllers of a group hold a client's blocks, in two namespaces, one of which is spread over both.
#[test]
fn a_client_of_several_controllers_reaches_its_blocks_on_each() {
    let mut group = rig::group("size=1M,lba=512,stepped,mdts=5", 3);
    let controllers: Vec<_> = group.iter().map(|(_, server)| server.clone()).collect();
    let (device, server) = group.remove(0);
    let of = |target, start, blocks| Slice {
        target,
        nsid: 1,
        start,
        blocks,
    };
    let plan = Plan {
        slices: vec![
            vec![of(2, 10, 20)],
            vec![of(0, 100, 30), of(2, 200, 30), of(0, 300, 30)],
        ],
        others: group,
        ..Plan::default()
    };
    let rig = Rig::on(plan, device, server);
    let mut queue = rig.client.io_queue(QueueOptions::with_depth(8)).unwrap();
    for (nsid, fill) in [(1, 0x11), (2, 0x22)] {
        let namespace = rig.client.namespace(nsid).unwrap();
        let mut buffer = rig.client.allocate(namespace.bytes() as usize).unwrap();
        buffer.fill(fill);
        let buffer = queue.write_blocking(&namespace, 0, buffer).unwrap();
        let buffer = queue.read_blocking(&namespace, 0, buffer).unwrap();
        assert!(buffer.iter().all(|byte| *byte == fill));
        queue.flush(&namespace, 7).unwrap();
        assert!(queue.wait().unwrap().unwrap().result().is_ok());
    }
    let blocks = |number: usize| -> Vec<u8> {
        let namespace = controllers[number].only_namespace().unwrap();
        let mut queue = controllers[number]
            .io_queue(QueueOptions::with_depth(1))
            .unwrap();
        (0..400)
            .map(|lba| {
                let buffer = controllers[number].allocate(512).unwrap();
                let buffer = queue.read_blocking(&namespace, lba, buffer).unwrap();
                assert!(buffer.iter().all(|byte| *byte == buffer[0]));
                buffer[0]
            })
            .collect()
    };
    let want = |ranges: &[(usize, usize, u8)]| {
        let mut blocks = vec![0; 400];
        for &(start, count, fill) in ranges {
            blocks[start..start + count].fill(fill);
        }
        blocks
    };
    assert_eq!(blocks(0), want(&[(100, 30, 0x22), (300, 30, 0x22)]));
    assert_eq!(blocks(1), want(&[]));
    assert_eq!(blocks(2), want(&[(10, 20, 0x11), (200, 30, 0x22)]));
}
