//! `cargo xtask vm bench`: nvme-vfio beside the kernel's own driver, in one virtual machine and in turn, on a drive that moves no data.
//!
//! The machine is emulated and shared, so that absolute figures mean little and contention only takes away: the best of several
//! interleaved rounds are compared, as ratios.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use comfy_table::{Cell, CellAlignment, Table, presets};
use serde_json::Value;

use crate::check;
use crate::vm::{Drive, End, Kernel, Machine};

/// How long each run is, in seconds. Short, so that some fall into quiet moments of a shared machine.
const SECONDS: u32 = 1;

/// How often each is run in a row, before the controller changes hands.
const RUNS: u32 = 4;

/// What is compared, and what the kernel's driver must be beaten by.
const DEPTHS: [(u32, f64, &str); 2] = [(1, 4.0, "39-49 k"), (32, 15.0, "475-559 k")];

/// Runs both in turn, prints the table, and says whether nvme-vfio was as much faster as it should be.
///
/// # Errors
/// Where machines cannot be booted here, or one of the two did not run.
pub fn run(rounds: u32) -> Result<bool> {
    check::prepare_vm_tests()?;
    let script = script(rounds.max(1));
    // The kernel that people run, and that libvfn's figures were measured on.
    let output = Machine::standard()
        .kernel(Kernel::Debian)
        .drive(Drive::Null)
        .host_program("fio")
        .timeout(Duration::from_secs(120 + u64::from(rounds) * 60))
        .run(["sh", "-c", &script])?;
    ensure!(
        output.end == End::Exited(0),
        "the comparison failed in the machine\n{output}"
    );
    let best = best(&String::from_utf8_lossy(&output.stdout))?;

    let mut table = Table::new();
    table
        .load_style(presets::ASCII_BORDERS_ONLY_CONDENSED)
        .set_header([
            "4 KiB random reads",
            "nvme-vfio",
            "kernel, fio io_uring",
            "ratio",
            "at least",
            "libvfn (elsewhere)",
        ]);
    let mut enough = true;
    for (depth, least, libvfn) in DEPTHS {
        let ours = best
            .get(&("ours".to_owned(), depth))
            .copied()
            .context("nvme-vfio told no figure")?;
        let kernel = best
            .get(&("kernel".to_owned(), depth))
            .copied()
            .context("fio told no figure")?;
        ensure!(kernel > 0.0, "fio told that it did nothing");
        let ratio = ours / kernel;
        enough &= ratio >= least;
        let thousands = |iops: f64| {
            Cell::new(format!("{:.1} k", iops / 1e3)).set_alignment(CellAlignment::Right)
        };
        table.add_row([
            Cell::new(format!("depth {depth}")),
            thousands(ours),
            thousands(kernel),
            Cell::new(format!("{ratio:.1}")).set_alignment(CellAlignment::Right),
            Cell::new(format!("{least:.0}")).set_alignment(CellAlignment::Right),
            Cell::new(libvfn).set_alignment(CellAlignment::Right),
        ]);
    }
    println!("{table}");
    println!(
        "The best of {rounds} interleaved rounds of {RUNS} runs of {SECONDS} s in one boot; libvfn's figures are of other boots of such a machine."
    );
    Ok(enough)
}

/// What runs in the machine. Each run tells a line `RUN who depth` and then its JSON.
fn script(rounds: u32) -> String {
    let depths: Vec<String> = DEPTHS.iter().map(|(depth, ..)| depth.to_string()).collect();
    let depths = depths.join(" ");
    format!(
        r#"set -e
controller=0000:00:01.0
for round in $(seq {rounds}); do
  for depth in $(for run in $(seq {RUNS}); do echo {depths}; done); do
    echo "RUN kernel $depth"
    fio --name=peer --filename=/dev/nvme0n1 --ioengine=io_uring --direct=1 --rw=randread --bs=4k \
      --iodepth=$depth --runtime={SECONDS} --time_based --output-format=json
  done
  nvme-vfio bind $controller >&2
  for depth in $(for run in $(seq {RUNS}); do echo {depths}; done); do
    echo "RUN ours $depth"
    nvme-vfio bench $controller --rw=randread --bs=4k --iodepth=$depth --runtime={SECONDS} --output-format=json
  done
  nvme-vfio unbind $controller >&2
  while [ ! -e /dev/nvme0n1 ]; do sleep 0.1; done
done
"#
    )
}

/// The best IOPS of each, out of the lines and JSON texts that the script printed.
fn best(stdout: &str) -> Result<BTreeMap<(String, u32), f64>> {
    let mut best = BTreeMap::new();
    for run in stdout.split("RUN ").skip(1) {
        let (head, text) = run.split_once('\n').context("a run told nothing")?;
        let (who, depth) = head.split_once(' ').context("a run has no depth")?;
        // fio prints its warnings in front of the JSON.
        let json = text
            .find('{')
            .map(|start| &text[start..])
            .context("a run printed no JSON")?;
        let value: Value =
            serde_json::from_str(json).with_context(|| format!("{head} printed no JSON"))?;
        let iops = value["jobs"][0]["read"]["iops"]
            .as_f64()
            .with_context(|| format!("{head} tells no IOPS"))?;
        let best = best
            .entry((who.to_owned(), depth.trim().parse()?))
            .or_insert(0.0);
        *best = f64::max(*best, iops);
    }
    Ok(best)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_best_of_each_is_found() {
        let run = |who, depth, iops| {
            format!(
                "RUN {who} {depth}\nnote: x\n{{\"jobs\": [{{\"read\": {{\"iops\": {iops}}}}}]}}\n"
            )
        };
        let text = [
            run("ours", 1, 5.0),
            run("kernel", 1, 2.5),
            run("ours", 1, 7.5),
            run("ours", 32, 9.0),
        ]
        .concat();
        let best = best(&text).unwrap();
        assert_eq!(best.get(&("ours".to_owned(), 1)), Some(&7.5));
        assert_eq!(best.get(&("kernel".to_owned(), 1)), Some(&2.5));
        assert_eq!(best.get(&("ours".to_owned(), 32)), Some(&9.0));
        assert!(super::best("RUN ours 1\nnothing\n").is_err());
    }
}
