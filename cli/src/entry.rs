//! From arguments to an exit status.

use std::{ffi::OsString, process::ExitCode};

use clap::{Parser as _, error::ErrorKind};

use tracing_subscriber::filter::LevelFilter;

use crate::{
    args::{Cli, Command, mentions_json},
    commands,
    error::Error,
    log,
    output::print_text,
};

/// Runs the command line `arguments`, whose first is the program's name, and returns its exit status.
#[must_use]
pub fn main(arguments: Vec<OsString>) -> ExitCode {
    let (json, result) = match Cli::try_parse_from(&arguments) {
        Ok(cli) => (
            cli.command.wants_json(),
            log::start(log_level(&cli.command)).and_then(|()| commands::run(cli.command)),
        ),
        Err(help)
            if matches!(
                help.kind(),
                ErrorKind::DisplayHelp | ErrorKind::DisplayVersion
            ) =>
        {
            (false, print_text(&help.render().to_string()))
        }
        Err(error) => (mentions_json(&arguments), Err(Error::from(error))),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{}", error.render(json));
            ExitCode::from(error.exit_status())
        }
    }
}

/// How grave something must be to be told unasked. A command reports its own failure; a server goes on after those of its clients and files.
fn log_level(command: &Command) -> LevelFilter {
    match command {
        Command::Emulate(_) | Command::Serve(_) => LevelFilter::WARN,
        _ => LevelFilter::OFF,
    }
}
