//! From arguments to an exit status.

use std::{ffi::OsString, process::ExitCode};

use clap::{Parser as _, error::ErrorKind};

use crate::{
    args::{Cli, mentions_json},
    commands,
    error::Error,
    output::print_text,
};

/// Runs the command line `arguments`, whose first is the program's name, and returns its exit status.
#[must_use]
pub fn main(arguments: Vec<OsString>) -> ExitCode {
    let (json, result) = match Cli::try_parse_from(&arguments) {
        Ok(cli) => (cli.command.wants_json(), commands::run(cli.command)),
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
