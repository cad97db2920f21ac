//! The kernel side: what the running kernel offers, and the programs that are loaded into it.

pub mod active;
pub mod allowlist;
pub mod btf;
mod calls;
pub mod check;
pub mod devices;
pub mod dm;
pub mod facts;
pub mod fanotify;
pub mod filesystems;
pub mod gates;
mod gates_error;
pub mod hook_types;
pub mod hooks;
mod inherited;
pub mod layout;
pub mod mountpoints;
pub mod mounts;
pub mod overlay;
pub mod pins;
mod process;
pub mod records;
pub mod selftest;
pub mod shield;
pub mod usb_seen;
pub mod verity;
pub mod vouched;
