//! The result of a benchmark in fio's JSON layout (fio 3.33).

use std::{collections::BTreeMap, time::Duration};

use serde::{Serialize, Serializer, ser::SerializeMap};

use super::{
    Plan,
    statistics::{JobResult, Samples, Spread},
};

/// The percentiles that fio reports when none are asked for.
pub const PERCENTILES: [f64; 17] = [
    1.0, 5.0, 10.0, 20.0, 30.0, 40.0, 50.0, 60.0, 70.0, 80.0, 90.0, 95.0, 99.0, 99.5, 99.9, 99.95,
    99.99,
];

const SHARES_NS: [u64; 10] = [2, 4, 10, 20, 50, 100, 250, 500, 750, 1000];
/// In milliseconds there is one class more, and one for everything above.
const SHARES_MS: [u64; 11] = [2, 4, 10, 20, 50, 100, 250, 500, 750, 1000, 2000];

/// The document.
#[derive(Debug, Serialize)]
pub struct Report {
    #[serde(rename = "fio version")]
    version: String,
    timestamp: u64,
    timestamp_ms: u128,
    time: String,
    jobs: Vec<Job>,
    disk_util: [(); 0],
}

#[derive(Debug, Serialize)]
struct Job {
    jobname: String,
    groupid: u32,
    error: u32,
    eta: u32,
    elapsed: u64,
    #[serde(rename = "job options")]
    options: Ordered,
    read: Direction,
    write: Direction,
    trim: Direction,
    sync: Sync,
    job_runtime: u64,
    usr_cpu: f64,
    sys_cpu: f64,
    ctx: u64,
    majf: u64,
    minf: u64,
    iodepth_level: Ordered<f64>,
    iodepth_submit: Ordered<f64>,
    iodepth_complete: Ordered<f64>,
    latency_ns: Ordered<f64>,
    latency_us: Ordered<f64>,
    latency_ms: Ordered<f64>,
    latency_depth: u16,
    latency_target: u32,
    latency_percentile: f64,
    latency_window: u32,
}

#[derive(Debug, Default, Serialize)]
struct Direction {
    io_bytes: u64,
    io_kbytes: u64,
    bw_bytes: u64,
    bw: u64,
    iops: f64,
    runtime: u64,
    total_ios: u64,
    short_ios: u64,
    drop_ios: u64,
    slat_ns: Latency,
    clat_ns: Latency,
    lat_ns: Latency,
    bw_min: u64,
    bw_max: u64,
    bw_agg: f64,
    bw_mean: f64,
    bw_dev: f64,
    bw_samples: usize,
    iops_min: u64,
    iops_max: u64,
    iops_mean: f64,
    iops_stddev: f64,
    iops_samples: usize,
}

#[derive(Debug, Default, Serialize)]
struct Sync {
    total_ios: u64,
    lat_ns: Latency,
}

#[derive(Debug, Default, Serialize)]
struct Latency {
    min: u64,
    max: u64,
    mean: f64,
    stddev: f64,
    #[serde(rename = "N")]
    count: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    percentile: Option<Ordered<u64>>,
}

/// A map that keeps its order.
#[derive(Debug)]
struct Ordered<V = String>(Vec<(String, V)>);

impl<V: Serialize> Serialize for Ordered<V> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for (key, value) in &self.0 {
            map.serialize_entry(key, value)?;
        }
        map.end()
    }
}

impl Report {
    /// The report of `jobs`, which ran by `plan` and ended at `ended` after 1970.
    #[must_use]
    pub fn new(plan: &Plan, jobs: &[JobResult], ended: Duration) -> Self {
        Self {
            version: concat!("nvme-vfio-", env!("CARGO_PKG_VERSION")).to_owned(),
            timestamp: ended.as_secs(),
            timestamp_ms: ended.as_millis(),
            time: super::civil::date_and_time(ended),
            jobs: jobs.iter().map(|job| Job::new(plan, job)).collect(),
            disk_util: [],
        }
    }
}

impl Job {
    fn new(plan: &Plan, job: &JobResult) -> Self {
        let moved = Direction::new(job);
        let (read, write) = if plan.rw.writes() {
            (Direction::default(), moved)
        } else {
            (moved, Direction::default())
        };
        let seconds = job.runtime.as_secs_f64() * f64::from(job.jobs);
        let share = |time: Duration| {
            if seconds > 0.0 {
                round(time.as_secs_f64() * 100.0 / seconds)
            } else {
                0.0
            }
        };
        let batches = || {
            labelled(
                &["0", "4", "8", "16", "32", "64", ">=64"],
                &job.batches.percentages(),
            )
        };
        Self {
            jobname: plan.name.clone(),
            groupid: 0,
            error: 0,
            eta: 0,
            elapsed: job.runtime.as_secs() + 1,
            options: Ordered(plan.options()),
            read,
            write,
            trim: Direction::default(),
            sync: Sync::default(),
            job_runtime: milliseconds(job.runtime * job.jobs),
            usr_cpu: share(job.cpu.user),
            sys_cpu: share(job.cpu.system),
            ctx: job.cpu.context_switches,
            majf: job.cpu.major_faults,
            minf: job.cpu.minor_faults,
            iodepth_level: labelled(
                &["1", "2", "4", "8", "16", "32", ">=64"],
                &job.depth_percentages(),
            ),
            // Each completion is answered by a submission in the same batch.
            iodepth_submit: batches(),
            iodepth_complete: batches(),
            latency_ns: shares(job, &SHARES_NS, 1, None),
            latency_us: shares(job, &SHARES_NS, 1000, None),
            latency_ms: shares(job, &SHARES_MS, 1_000_000, Some(">=2000")),
            latency_depth: plan.iodepth,
            latency_target: 0,
            latency_percentile: 100.0,
            latency_window: 0,
        }
    }
}

impl Direction {
    fn new(job: &JobResult) -> Self {
        let bytes_per_second = job.bytes_per_second();
        let iops = job.samples.spread();
        let kib = |rate: f64| rate * job.bytes_per_io() / 1024.0;
        let Spread {
            min,
            max,
            mean,
            deviation,
        } = iops;
        let Samples(samples) = &job.samples;
        Self {
            io_bytes: job.bytes,
            io_kbytes: job.bytes / 1024,
            bw_bytes: bytes_per_second as u64,
            bw: (bytes_per_second / 1024.0) as u64,
            iops: round(job.iops()),
            runtime: milliseconds(job.runtime),
            total_ios: job.ios,
            short_ios: 0,
            drop_ios: 0,
            slat_ns: Latency::default(),
            clat_ns: Latency::new(job, true),
            lat_ns: Latency::new(job, false),
            bw_min: kib(min) as u64,
            bw_max: kib(max) as u64,
            bw_agg: if samples.is_empty() { 0.0 } else { 100.0 },
            bw_mean: round(kib(mean)),
            bw_dev: round(kib(deviation)),
            bw_samples: samples.len(),
            iops_min: min as u64,
            iops_max: max as u64,
            iops_mean: round(mean),
            iops_stddev: round(deviation),
            iops_samples: samples.len(),
        }
    }
}

impl Latency {
    fn new(job: &JobResult, percentiles: bool) -> Self {
        let latency = &job.latency;
        if latency.is_empty() {
            return Self::default();
        }
        let percentile = |percent: f64| {
            (
                format!("{percent:.6}"),
                latency.value_at_percentile(percent),
            )
        };
        Self {
            min: latency.min(),
            max: latency.max(),
            mean: round(latency.mean()),
            stddev: round(latency.stdev()),
            count: latency.len(),
            percentile: percentiles.then(|| Ordered(PERCENTILES.map(percentile).into())),
        }
    }
}

/// The shares of all latencies in the classes of one unit: those below the unit's smallest belong to
/// the unit before, so the first class begins above that one's last.
fn shares(job: &JobResult, classes: &[u64], unit: u64, above: Option<&str>) -> Ordered<f64> {
    let mut bounds: Vec<u64> = classes.iter().map(|class| class * unit).collect();
    // 1000 of the unit before is 1 of this one.
    let lower = (unit > 1).then_some(unit);
    if let Some(lower) = lower {
        bounds.insert(0, lower);
    }
    let counted = job.latency_shares(&bounds);
    let mut labels: BTreeMap<usize, String> = BTreeMap::new();
    let first = usize::from(lower.is_some());
    for (index, class) in classes.iter().enumerate() {
        labels.insert(first + index, class.to_string());
    }
    if let Some(above) = above {
        labels.insert(bounds.len(), above.to_owned());
    }
    Ordered(
        labels
            .into_iter()
            .map(|(index, label)| {
                (
                    label,
                    round(counted.get(index).copied().unwrap_or_default()),
                )
            })
            .collect(),
    )
}

fn labelled(labels: &[&str], values: &[f64]) -> Ordered<f64> {
    Ordered(
        labels
            .iter()
            .zip(values)
            .map(|(label, value)| ((*label).to_owned(), round(*value)))
            .collect(),
    )
}

fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// fio prints six decimals.
fn round(value: f64) -> f64 {
    if value.is_finite() {
        (value * 1e6).round() / 1e6
    } else {
        0.0
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;
    use crate::bench::{plan::tests::plan, statistics::tests::job};

    /// The keys that fio 3.33 prints, in its order.
    const TOP: &[&str] = &[
        "fio version",
        "timestamp",
        "timestamp_ms",
        "time",
        "jobs",
        "disk_util",
    ];
    const JOB: &[&str] = &[
        "jobname",
        "groupid",
        "error",
        "eta",
        "elapsed",
        "job options",
        "read",
        "write",
        "trim",
        "sync",
        "job_runtime",
        "usr_cpu",
        "sys_cpu",
        "ctx",
        "majf",
        "minf",
        "iodepth_level",
        "iodepth_submit",
        "iodepth_complete",
        "latency_ns",
        "latency_us",
        "latency_ms",
        "latency_depth",
        "latency_target",
        "latency_percentile",
        "latency_window",
    ];
    const DIRECTION: &[&str] = &[
        "io_bytes",
        "io_kbytes",
        "bw_bytes",
        "bw",
        "iops",
        "runtime",
        "total_ios",
        "short_ios",
        "drop_ios",
        "slat_ns",
        "clat_ns",
        "lat_ns",
        "bw_min",
        "bw_max",
        "bw_agg",
        "bw_mean",
        "bw_dev",
        "bw_samples",
        "iops_min",
        "iops_max",
        "iops_mean",
        "iops_stddev",
        "iops_samples",
    ];
    const SHARES: &[&str] = &[
        "2", "4", "10", "20", "50", "100", "250", "500", "750", "1000",
    ];

    fn keys(value: &Value) -> Vec<&str> {
        value
            .as_object()
            .unwrap()
            .keys()
            .map(String::as_str)
            .collect()
    }

    fn document(options: &str, jobs: &[JobResult]) -> Value {
        let plan = plan(options, 512, 1 << 21).unwrap();
        serde_json::to_value(Report::new(
            &plan,
            jobs,
            Duration::from_millis(1_795_166_301_263),
        ))
        .unwrap()
    }

    #[test]
    fn the_keys_are_those_of_fio() {
        let report = document("", &[job(&[500, 1_500, 3_000_000], Duration::from_secs(2))]);
        assert_eq!(keys(&report), TOP);
        let job = &report["jobs"][0];
        assert_eq!(keys(job), JOB);
        for direction in ["read", "write", "trim"] {
            assert_eq!(keys(&job[direction]), DIRECTION, "{direction}");
        }
        assert_eq!(keys(&job["sync"]), ["total_ios", "lat_ns"]);
        assert_eq!(
            keys(&job["read"]["lat_ns"]),
            ["min", "max", "mean", "stddev", "N"]
        );
        assert_eq!(
            keys(&job["read"]["clat_ns"]),
            ["min", "max", "mean", "stddev", "N", "percentile"]
        );
        assert_eq!(keys(&job["latency_ns"]), SHARES);
        assert_eq!(keys(&job["latency_us"]), SHARES);
        assert_eq!(
            keys(&job["latency_ms"]),
            [SHARES, &["2000", ">=2000"]].concat()
        );
        assert_eq!(
            keys(&job["iodepth_level"]),
            ["1", "2", "4", "8", "16", "32", ">=64"]
        );
        assert_eq!(
            keys(&job["iodepth_submit"]),
            ["0", "4", "8", "16", "32", "64", ">=64"]
        );
        let percentiles = keys(&job["read"]["clat_ns"]["percentile"]);
        assert_eq!(
            (percentiles.len(), percentiles[0], percentiles[16]),
            (17, "1.000000", "99.990000")
        );
        assert_eq!(report["disk_util"], serde_json::json!([]));
    }

    #[test]
    fn the_values_are_those_of_the_job() {
        let report = document(
            "--rw=randwrite --iodepth=7",
            &[job(
                &[500, 1_500, 3_000_000, 5_000_000_000],
                Duration::from_secs(2),
            )],
        );
        assert_eq!(report["time"], "Fri Nov 20 09:18:21 2026");
        let job = &report["jobs"][0];
        let write = &job["write"];
        assert_eq!(write["total_ios"], 4);
        assert_eq!(write["io_bytes"], 16384);
        assert_eq!(write["bw_bytes"], 8192);
        assert_eq!(write["bw"], 8);
        assert_eq!(write["iops"], 2.0);
        assert_eq!(write["runtime"], 2000);
        assert_eq!(write["clat_ns"]["N"], 4);
        assert_eq!(write["clat_ns"]["min"], 500);
        assert_eq!(write["iops_min"], 10);
        assert_eq!(write["bw_max"], 80);
        assert_eq!(job["read"]["total_ios"], 0);
        assert_eq!(job["usr_cpu"], 50.0);
        assert_eq!(job["latency_ns"]["500"], 25.0);
        assert_eq!(job["latency_us"]["2"], 25.0);
        assert_eq!(job["latency_ms"]["4"], 25.0);
        assert_eq!(job["latency_ms"][">=2000"], 25.0);
        assert_eq!(job["iodepth_level"]["32"], 100.0);
        assert_eq!(job["latency_depth"], 7);
        assert_eq!(job["job options"]["rw"], "randwrite");
    }

    #[test]
    fn shares_of_all_units_make_a_whole() {
        let latencies: Vec<u64> = (0..40).map(|exponent| 1_u64 << exponent).collect();
        let report = document("", &[job(&latencies, Duration::from_secs(1))]);
        let sum: f64 = ["latency_ns", "latency_us", "latency_ms"]
            .iter()
            .flat_map(|unit| report["jobs"][0][unit].as_object().unwrap().values())
            .map(|share| share.as_f64().unwrap())
            .sum();
        assert!((sum - 100.0).abs() < 1e-3, "{sum}");
    }
}
