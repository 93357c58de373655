//! The `kerf` binary: parse, run, exit code.

use std::process::ExitCode;

fn main() -> ExitCode {
    kerf::cli::main(std::env::args_os())
}
