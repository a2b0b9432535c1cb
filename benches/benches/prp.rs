//! Building PRP entries and lists, in time.

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use nvme_vfio_queues::prp::{self, PageSize, PrpListMemory};

/// A list of one page in ordinary memory.
struct Page([u64; 512]);

impl PrpListMemory for Page {
    fn pages(&self) -> usize {
        1
    }

    fn page_iova(&self, _page: usize) -> u64 {
        0x10_0000
    }

    fn write(&mut self, _page: usize, entry: usize, value: u64) {
        if let Some(place) = self.0.get_mut(entry) {
            *place = value;
        }
    }
}

fn build(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("prp");
    let mut list = Page([0; 512]);
    for (name, offset, length) in [
        ("4k", 0, 4096),
        ("4k unaligned", 512, 4096),
        ("64k", 0, 65_536),
        ("128k unaligned", 512, 131_072),
        ("2m", 0, 2 << 20),
    ] {
        group.throughput(Throughput::Bytes(length as u64));
        group.bench_function(BenchmarkId::from_parameter(name), |bencher| {
            bencher.iter(|| {
                prp::build(
                    black_box(0x20_0000 + offset),
                    black_box(length),
                    PageSize::KIB_4,
                    &mut list,
                )
            });
        });
    }
    group.finish();
}

criterion_group!(benches, build);
criterion_main!(benches);
