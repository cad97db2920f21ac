//! `portcullis read-policy`: what the agent starts to have something read by a process that has nothing.

use std::process::ExitCode;

use super::{OrExit, Outcome, UNAVAILABLE};
use crate::reader::process;

pub fn read_policy() -> Outcome {
    process::run().or_exit(UNAVAILABLE)?;
    Ok(ExitCode::SUCCESS)
}
