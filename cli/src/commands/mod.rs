//! What the commands do.

mod audit;
mod bind;
mod blocks;
mod cpu;
mod doctor;
mod emulate;
mod features;
mod group;
mod identify;
mod interrupts;
mod list;
mod logs;
mod manage;
mod passthru;
mod registers;
mod serve;
mod serve_check;
mod signals;
mod smart_log;
mod transfer;
mod warnings;

use crate::{args::Command, bench, error::Error};

/// Runs a command.
///
/// # Errors
/// What the user is told, and the exit status with it.
pub(crate) fn run(command: Command) -> Result<(), Error> {
    match command {
        Command::List(args) => list::run(&args),
        Command::Group(args) => group::run(&args),
        Command::Bind(args) => bind::bind(&args),
        Command::Unbind(args) => bind::unbind(&args),
        Command::Doctor(args) => doctor::run(&args),
        Command::ShowRegs(args) => registers::run(&args),
        Command::IdCtrl(args) => identify::controller(&args),
        Command::IdNs(args) => identify::namespace(&args),
        Command::ListNs(args) => identify::list(&args),
        Command::SmartLog(args) => smart_log::run(&args),
        Command::Read(args) => transfer::read(&args),
        Command::Write(args) => transfer::write(&args),
        Command::Flush(args) => transfer::flush(&args),
        Command::NsDescs(args) => logs::ns_descs(&args),
        Command::GetLog(args) => logs::get_log(&args),
        Command::ErrorLog(args) => logs::error_log(&args),
        Command::FwLog(args) => logs::fw_log(&args),
        Command::EffectsLog(args) => logs::effects_log(&args),
        Command::GetFeature(args) => features::get(&args),
        Command::SetFeature(args) => features::set(&args),
        Command::Dsm(args) => blocks::dsm(&args),
        Command::WriteZeroes(args) => blocks::write_zeroes(&args),
        Command::WriteUncor(args) => blocks::write_uncor(&args),
        Command::Verify(args) => blocks::verify(&args),
        Command::Copy(args) => blocks::copy(&args),
        Command::Format(args) => manage::format(&args),
        Command::Reset(args) => manage::reset(&args),
        Command::AdminPassthru(args) => passthru::admin(&args),
        Command::IoPassthru(args) => passthru::io(&args),
        Command::Bench(args) => bench::run(&args),
        Command::Emulate(args) => emulate::run(&args),
        Command::Audit(args) => audit::run(&args),
        Command::Serve(args) => serve::run(&args),
    }
}

/// A count with its noun: `1 job`, `3 jobs`.
fn counted(count: usize, noun: &str) -> String {
    if count == 1 {
        format!("1 {noun}")
    } else {
        format!("{count} {noun}s")
    }
}

/// An optional value for a table.
fn cell(value: Option<impl ToString>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| value.to_string())
}
