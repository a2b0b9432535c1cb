//! Allocating, splitting and joining buffers, in time.

use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use nvme_vfio::QueueOptions;
use nvme_vfio_benches::Rig;

fn buffers(criterion: &mut Criterion) {
    let rig = Rig::new(QueueOptions::default()).expect("an emulated controller opens");
    let controller = &rig.controller;
    let mut group = criterion.benchmark_group("buffer");
    for length in [4096, 131_072] {
        group.bench_function(format!("allocate and free {length}"), |bencher| {
            bencher.iter(|| controller.allocate(length).expect("there is memory"));
        });
    }
    group.bench_function("split and join", |bencher| {
        bencher.iter_batched(
            || controller.allocate(8192).expect("there is memory"),
            |buffer| {
                let (first, second) = buffer.split_at(4096);
                first.unsplit(second).ok()
            },
            BatchSize::SmallInput,
        );
    });
    group.finish();
}

criterion_group!(benches, buffers);
criterion_main!(benches);
