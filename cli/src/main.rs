//! The command `nvme-vfio`.

use std::process::ExitCode;

fn main() -> ExitCode {
    nvme_vfio_cli::main(std::env::args_os().collect())
}
