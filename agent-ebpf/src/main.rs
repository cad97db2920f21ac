//! The kernel programs of Portcullis.
//!
//! Every gate asks [`judge`]; nothing here waits on userspace, and nothing is returned before the
//! verdict is known. The programs use typed loads only (no `bpf_probe_read*`), so that they also
//! load under `lockdown=confidentiality`.
#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]
// Nobody sees warnings of a build within another one.
#![deny(unused)]

mod appraisal;
mod appraised;
mod devices;
mod exec;
mod fsverity;
mod guarded;
mod inode_storage;
mod instructions;
mod interpreter;
mod invalidation;
mod judge;
mod kernel_intake;
mod layout;
mod mapping;
mod maps;
mod memory;
mod name;
mod names;
mod other_bpf;
mod overlay;
mod report;
mod shield;
mod shield_files;
mod usb;
mod usb_seen;

/// Dual-licensed, because the helpers used are for GPL-compatible programs only.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    // The verifier refuses programs in which this is reachable.
    loop {}
}
