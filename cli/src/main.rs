//! The program `spdk-dm`: see the library.
#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    spdk_dm_cli::main()
}
