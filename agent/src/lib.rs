//! Portcullis decides what may become code on a Linux device.
//!
//! The library holds everything; the binary only starts it. Kernel programs stand at the hooks
//! where a file turns into running code and look its digest up in an allowlist; what is here
//! loads them, fills the allowlist from the operator's policy, and tells what they decided.

mod alone;
pub mod api;
pub mod artifact;
pub mod catalog;
pub mod cli;
mod confine;
pub mod control;
pub mod deployment;
pub mod door;
mod durable;
pub mod event;
pub mod fleet;
pub mod history;
pub mod import;
pub mod kernel;
pub mod learn;
pub mod policy;
pub mod reader;
pub mod run;
pub mod scan;
pub mod sinks;
pub mod spool;
mod sync;
pub mod trust;
pub mod usb;
