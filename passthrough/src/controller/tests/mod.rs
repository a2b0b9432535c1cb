use nvme_vfio::QueueOptions;

use rig::{Plan, Rig};

mod faults;
mod model;
mod operator;
mod personality;
mod recorded;
mod rig;
mod storm;

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
