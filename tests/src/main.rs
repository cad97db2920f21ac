//! Runs inside the virtual machines: their first process, and the end-to-end scenarios.

mod init;

use std::process::ExitCode;

fn main() -> ExitCode {
    if std::process::id() == 1 {
        init::first_process();
    }
    eprintln!("portcullis-guest runs inside of virtual machines only");
    ExitCode::from(2)
}
