//! What is seen while jobs run: the line on a terminal, and the samples for the report.

use std::{
    sync::atomic::Ordering,
    thread,
    time::{Duration, Instant},
};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::{
    interrupt,
    plan::{Limit, Plan},
    statistics::Samples,
    worker::Control,
};
use crate::size::{binary, count};

/// How often the jobs are looked at.
const LOOK: Duration = Duration::from_millis(50);
/// fio's `bwavgtime` and `iopsavgtime`.
const SAMPLE: Duration = Duration::from_millis(500);

/// Looks at the jobs until `done`, and returns each one's samples.
pub(super) fn watch(
    plan: &Plan,
    control: &Control,
    mut done: impl FnMut() -> bool,
) -> Vec<Samples> {
    let start = Instant::now();
    let bar = bar(plan, control.completed.len() as u64);
    let mut samples = vec![Samples::default(); control.completed.len()];
    let mut counts = vec![0_u64; control.completed.len()];
    let mut sampled = start;
    while !done() {
        thread::park_timeout(LOOK);
        if interrupt::came() {
            control.stop.store(true, Ordering::Relaxed);
        }
        let now = Instant::now();
        let since = now.duration_since(sampled);
        if since >= SAMPLE && !done() {
            sampled = now;
            let mut rate = 0.0;
            for ((completed, before), samples) in
                control.completed.iter().zip(&mut counts).zip(&mut samples)
            {
                let completed = completed.load(Ordering::Relaxed);
                let sample = completed.saturating_sub(*before) as f64 / since.as_secs_f64();
                *before = completed;
                rate += sample;
                samples.0.push(sample);
            }
            bar.set_message(format!(
                "IOPS={}, BW={}/s",
                count(rate),
                binary((rate * plan.bs as f64) as u64)
            ));
        }
        bar.set_position(match plan.limit {
            Limit::Time(_) => u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX),
            Limit::Ios(_) => control
                .completed
                .iter()
                .map(|completed| completed.load(Ordering::Relaxed))
                .sum(),
        });
    }
    bar.finish_and_clear();
    samples
}

/// On standard error, and only if that is a terminal.
fn bar(plan: &Plan, jobs: u64) -> ProgressBar {
    let length = match plan.limit {
        Limit::Time(time) => u64::try_from(time.as_millis()).unwrap_or(u64::MAX),
        Limit::Ios(ios) => ios.saturating_mul(jobs),
    };
    let bar = ProgressBar::with_draw_target(Some(length), ProgressDrawTarget::stderr_with_hz(5));
    if let Ok(style) =
        ProgressStyle::with_template("{prefix} [{bar:24}] {percent:>3}% {elapsed} {msg}")
    {
        bar.set_style(style.progress_chars("=> "));
    }
    bar.set_prefix(plan.name.clone());
    bar
}
