//! Starts the library; everything else is there.

use std::process::ExitCode;

fn main() -> ExitCode {
    portcullis::cli::main()
}
