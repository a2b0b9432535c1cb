//! The result of a benchmark for people, in the shape that fio's users read at a glance.

use std::fmt::Write as _;

use super::{Plan, report::PERCENTILES, statistics::JobResult};
use crate::size;

/// What was done.
fn headline(plan: &Plan) -> String {
    let jobs = if plan.numjobs == 1 {
        "1 job".to_owned()
    } else {
        format!("{} jobs", plan.numjobs)
    };
    format!(
        "{}: {}, rw={}, bs={}, iodepth={}, {jobs}",
        plan.name,
        plan.address,
        plan.rw.word(),
        plan.bs,
        plan.iodepth
    )
}

/// The result of all jobs, and where there are several, a line for each.
#[must_use]
pub fn summary(plan: &Plan, merged: &JobResult, jobs: &[JobResult], ended: &str) -> String {
    let mut text = headline(plan);
    let _ = writeln!(text, ", {ended}");
    if jobs.len() > 1 && !plan.group_reporting {
        for (number, job) in jobs.iter().enumerate() {
            let _ = writeln!(text, "  job {:<3}: {}", number + 1, rates(job));
        }
    }
    let direction = if plan.rw.writes() { "write" } else { "read" };
    let _ = writeln!(text, "  {direction}: {}", rates(merged));
    latency(&mut text, merged);
    let spread = merged.samples.spread();
    if !merged.samples.0.is_empty() {
        let _ = writeln!(
            text,
            "  iops: min={}, max={}, avg={}, stdev={}, samples={}",
            size::count(spread.min),
            size::count(spread.max),
            size::count(spread.mean),
            size::count(spread.deviation),
            merged.samples.0.len()
        );
    }
    let seconds = merged.runtime.as_secs_f64() * f64::from(merged.jobs);
    if seconds > 0.0 {
        let share = |time: std::time::Duration| time.as_secs_f64() * 100.0 / seconds;
        let cpu = &merged.cpu;
        let _ = writeln!(
            text,
            "  cpu: usr={:.2}%, sys={:.2}%, ctx={}, majf={}, minf={}",
            share(cpu.user),
            share(cpu.system),
            cpu.context_switches,
            cpu.major_faults,
            cpu.minor_faults
        );
    }
    text
}

fn rates(job: &JobResult) -> String {
    let bytes = job.bytes_per_second() as u64;
    format!(
        "IOPS={}, BW={}/s ({}/s), {} in {:.3} s",
        size::count(job.iops()),
        size::binary(bytes),
        size::decimal(u128::from(bytes)),
        size::binary(job.bytes),
        job.runtime.as_secs_f64()
    )
}

fn latency(text: &mut String, job: &JobResult) {
    let latency = &job.latency;
    if latency.is_empty() {
        return;
    }
    // The unit in which the median has at least two digits.
    let median = latency.value_at_percentile(50.0);
    let (unit, divisor) = match median {
        0..10_000 => ("nsec", 1.0),
        10_000..10_000_000 => ("usec", 1e3),
        _ => ("msec", 1e6),
    };
    let decimals = if divisor > 1.0 { 2 } else { 0 };
    let show = |value: f64| format!("{:.decimals$}", value / divisor);
    let _ = writeln!(
        text,
        "  lat ({unit}): min={}, max={}, avg={:.2}, stdev={:.2}",
        show(latency.min() as f64),
        show(latency.max() as f64),
        latency.mean() / divisor,
        latency.stdev() / divisor
    );
    let _ = writeln!(text, "  lat percentiles ({unit}):");
    let values: Vec<String> = PERCENTILES
        .iter()
        .map(|percent| show(latency.value_at_percentile(*percent) as f64))
        .collect();
    let width = values.iter().map(String::len).max().unwrap_or(0);
    let cells: Vec<String> = PERCENTILES
        .iter()
        .zip(&values)
        .map(|(percent, value)| format!("{percent:5.2}th=[{value:>width$}]"))
        .collect();
    for row in cells.chunks(4) {
        let _ = writeln!(text, "   | {}", row.join(", "));
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::bench::{plan::tests::plan, statistics::tests::job};

    #[test]
    fn it_tells_rate_latency_and_percentiles() {
        let plan = plan("--numjobs=2", 512, 1 << 21).unwrap();
        let jobs = [
            job(&[1000, 2000, 3000, 4000], Duration::from_secs(1)),
            job(&[5000], Duration::from_secs(1)),
        ];
        let mut merged = jobs[0].clone();
        merged.merge(&jobs[1]).unwrap();
        let text = summary(&plan, &merged, &jobs, "now");
        for expected in [
            "bench: emulated, rw=randread, bs=4096, iodepth=32, 2 jobs, now",
            "job 1  : IOPS=4,",
            "read: IOPS=5, BW=20KiB/s (20.5kB/s), 20KiB in 1.000 s",
            "lat (nsec): min=1000, max=5",
            "avg=3000.",
            " 1.00th=[1000]",
            "50.00th=[3001]",
        ] {
            assert!(text.contains(expected), "{expected} not in:\n{text}");
        }
    }

    #[test]
    fn slow_drives_are_shown_in_microseconds() {
        let plan = plan("--rw=write", 512, 1 << 21).unwrap();
        let one = job(&[84_000; 3], Duration::from_secs(1));
        let text = summary(&plan, &one, std::slice::from_ref(&one), "now");
        assert!(text.contains("lat (usec): min=83.97, max=84.03"), "{text}");
        assert!(text.contains("write: IOPS=3"), "{text}");
    }

    #[test]
    fn nothing_done_is_no_panic() {
        let plan = plan("", 512, 1 << 21).unwrap();
        let empty = job(&[], Duration::ZERO);
        assert!(summary(&plan, &empty, &[], "now").contains("IOPS=0"));
    }
}
