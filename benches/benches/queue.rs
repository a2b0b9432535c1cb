//! Submitting and polling, in time. The controller's own work is not counted.

use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use nvme_vfio::QueueOptions;
use nvme_vfio_benches::Rig;

fn submit_and_poll(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("queue");
    for depth in [1_u32, 32, 128] {
        let mut rig =
            Rig::new(QueueOptions::with_depth(depth)).expect("an emulated controller opens");
        let mut spare = rig.buffers().expect("there is memory");
        let (mut submit, mut poll) = (Duration::ZERO, Duration::ZERO);
        let mut round = |submit: &mut Duration, poll: &mut Duration| {
            let begun = Instant::now();
            for (token, buffer) in spare.drain(..).enumerate() {
                rig.queue
                    .read(&rig.namespace, token as u64, buffer, token as u64)
                    .expect("a free slot");
            }
            rig.queue.ring();
            *submit += begun.elapsed();
            while rig.emulator.step() > 0 {}
            let begun = Instant::now();
            while let Some(completion) = rig.queue.poll() {
                spare.extend(completion.buffer);
            }
            *poll += begun.elapsed();
        };
        // A batch of one read per slot.
        group.bench_function(BenchmarkId::new("submit a batch", depth), |bencher| {
            bencher.iter_custom(|rounds| {
                submit = Duration::ZERO;
                (0..rounds).for_each(|_| round(&mut submit, &mut poll));
                submit
            });
        });
        group.bench_function(BenchmarkId::new("poll a batch", depth), |bencher| {
            bencher.iter_custom(|rounds| {
                poll = Duration::ZERO;
                (0..rounds).for_each(|_| round(&mut submit, &mut poll));
                poll
            });
        });
    }
    group.finish();
}

criterion_group!(benches, submit_and_poll);
criterion_main!(benches);
