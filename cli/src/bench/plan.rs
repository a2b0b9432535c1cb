//! What a benchmark is to do: fio's job, checked against the namespace.

use std::time::Duration;

use crate::{
    args::{BenchArgs, Rw},
    error::{Error, Kind},
    size::binary,
};

/// How long a benchmark runs when neither a time nor a size is given.
const DEFAULT_RUNTIME: Duration = Duration::from_secs(5);

/// When a job ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limit {
    /// After that time; I/Os then in flight are waited for and counted.
    Time(Duration),
    /// After that many I/Os.
    Ios(u64),
}

/// A checked plan.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Name of the job.
    pub name: String,
    /// The controller's address, as given.
    pub address: String,
    /// Direction and pattern.
    pub rw: Rw,
    /// Bytes of one I/O.
    pub bs: u64,
    /// Logical blocks of one I/O.
    pub blocks_per_io: u64,
    /// The first logical block of the part that is used.
    pub first_lba: u64,
    /// How many I/Os lie side by side in that part.
    pub places: u64,
    /// I/Os in flight per job.
    pub iodepth: u16,
    /// Number of jobs.
    pub numjobs: u16,
    /// When a job ends.
    pub limit: Limit,
    /// Seed of the random offsets.
    pub randseed: u64,
    /// Whether all jobs are reported as one.
    pub group_reporting: bool,
    given: Vec<(String, String)>,
}

impl Plan {
    /// Checks `args` against a namespace of `blocks` logical blocks of `block_size` bytes.
    ///
    /// # Errors
    /// [`Kind::Usage`] for sizes that are no multiple of the block size, [`Kind::LbaOutOfRange`] for a part
    /// that reaches past the end of the namespace.
    pub fn new(args: &BenchArgs, block_size: u64, blocks: u64) -> Result<Self, Error> {
        let multiple = |name: &str, value: u64| {
            if value.is_multiple_of(block_size) {
                Ok(value / block_size)
            } else {
                let above = value.div_ceil(block_size).saturating_mul(block_size);
                Err(Error::usage(
                    format!(
                        "--{name}={value} is no multiple of the namespace's block size, {block_size} bytes"
                    ),
                    format!("Use a multiple, such as: --{name}={above}"),
                ))
            }
        };
        let blocks_per_io = multiple("bs", args.bs)?;
        let first_lba = multiple("offset", args.offset)?;
        let left = blocks.saturating_sub(first_lba);
        let out_of_range = |what: String| {
            Err(Error::new(Kind::LbaOutOfRange, format!("{what} past the end of the namespace, which has {blocks} blocks of {block_size} bytes"))
                .remedy(format!("Stay below {} with --offset, --size and --bs", binary(blocks.saturating_mul(block_size)))))
        };
        if first_lba > 0 && left == 0 {
            return out_of_range(format!("--offset={} is", args.offset));
        }
        let part = match args.size {
            Some(size) if size.div_ceil(block_size) > left => {
                return out_of_range(format!(
                    "--size={size} from --offset={} reaches",
                    args.offset
                ));
            }
            Some(size) => size / block_size,
            None => left,
        };
        let places = part / blocks_per_io;
        if places == 0 {
            if let Some(size) = args.size.filter(|size| *size < args.bs) {
                return Err(Error::usage(
                    format!("--size={size} is too small for one I/O of --bs={}", args.bs),
                    "Make --size larger or --bs smaller",
                ));
            }
            return out_of_range(format!(
                "one I/O of --bs={} at --offset={} reaches",
                args.bs, args.offset
            ));
        }
        let limit = match (args.runtime, args.size) {
            (Some(runtime), _) => Limit::Time(runtime),
            (None, Some(_)) => Limit::Ios(places),
            (None, None) => Limit::Time(DEFAULT_RUNTIME),
        };
        let mut given = vec![
            ("name".to_owned(), args.name.clone()),
            ("filename".to_owned(), args.address.clone()),
            ("rw".to_owned(), args.rw.word().to_owned()),
            ("bs".to_owned(), args.bs.to_string()),
            ("iodepth".to_owned(), args.iodepth.to_string()),
            ("numjobs".to_owned(), args.numjobs.to_string()),
            ("randseed".to_owned(), args.randseed.to_string()),
        ];
        if let Limit::Time(runtime) = limit {
            given.push(("runtime".to_owned(), seconds(runtime)));
            given.push(("time_based".to_owned(), "1".to_owned()));
        }
        if let Some(size) = args.size {
            given.push(("size".to_owned(), size.to_string()));
        }
        if args.offset > 0 {
            given.push(("offset".to_owned(), args.offset.to_string()));
        }
        Ok(Self {
            name: args.name.clone(),
            address: args.address.clone(),
            rw: args.rw,
            bs: args.bs,
            blocks_per_io,
            first_lba,
            places,
            iodepth: args.iodepth,
            numjobs: args.numjobs,
            limit,
            randseed: args.randseed,
            group_reporting: args.group_reporting,
            given,
        })
    }

    /// The options in force, in fio's words.
    #[must_use]
    pub fn options(&self) -> Vec<(String, String)> {
        self.given.clone()
    }
}

fn seconds(time: Duration) -> String {
    if time.subsec_nanos() == 0 {
        time.as_secs().to_string()
    } else {
        format!("{}us", time.as_micros())
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::args::{Cli, Command};

    pub(crate) fn plan(options: &str, block_size: u64, blocks: u64) -> Result<Plan, Error> {
        let words = ["nvme-vfio", "bench"]
            .into_iter()
            .chain(options.split_whitespace());
        let Command::Bench(args) = Cli::try_parse_from(words).unwrap().command else {
            panic!("not bench")
        };
        Plan::new(&args, block_size, blocks)
    }

    #[test]
    fn without_options_it_runs_five_seconds_over_everything() {
        let plan = plan("", 512, 1 << 21).unwrap();
        assert_eq!(
            (
                plan.rw,
                plan.bs,
                plan.blocks_per_io,
                plan.iodepth,
                plan.numjobs
            ),
            (Rw::RandRead, 4096, 8, 32, 1)
        );
        assert_eq!(
            (plan.limit, plan.places, plan.first_lba),
            (Limit::Time(Duration::from_secs(5)), 1 << 18, 0)
        );
    }

    #[test]
    fn a_size_limits_the_amount_unless_a_time_does() {
        assert_eq!(
            plan("--size=1M", 4096, 1 << 20).unwrap().limit,
            Limit::Ios(256)
        );
        let timed = plan("--size=1M --runtime=2 --offset=8k", 4096, 1 << 20).unwrap();
        assert_eq!(
            (timed.limit, timed.places, timed.first_lba),
            (Limit::Time(Duration::from_secs(2)), 256, 2)
        );
        assert!(timed.options().contains(&("runtime".into(), "2".into())));
    }

    #[test]
    fn a_rest_smaller_than_one_io_is_left_out() {
        assert_eq!(plan("--bs=12k", 4096, 10).unwrap().places, 3);
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        for (options, block_size, blocks, kind) in [
            ("--bs=1k", 4096, 100, Kind::Usage),
            ("--offset=100", 512, 100, Kind::Usage),
            ("--size=2k --bs=4k", 512, 100, Kind::Usage),
            ("--size=1M", 512, 100, Kind::LbaOutOfRange),
            ("--offset=51200", 512, 100, Kind::LbaOutOfRange),
            ("--offset=50688 --bs=1k", 512, 100, Kind::LbaOutOfRange),
            (
                "--offset=49152 --size=4k --bs=512",
                512,
                100,
                Kind::LbaOutOfRange,
            ),
            ("--bs=1M", 512, 100, Kind::LbaOutOfRange),
            (
                "--offset=18446744073709551104 --size=15P",
                512,
                100,
                Kind::LbaOutOfRange,
            ),
        ] {
            let error = plan(options, block_size, blocks).expect_err(options);
            assert_eq!(error.kind(), kind, "{options}: {error}");
            assert!(error.remedy_text().is_some());
        }
    }
}
