//! USB devices: the kernel holds them until the policy lets them in.
//!
//! [`device`] and [`descriptors`] say what a device is, [`rules`] what the policy lets in, [`written`] how it is written, [`hold`] sets
//! and restores the kernel's switches, [`keeper`] brings them together, [`uevents`] says when, and [`seen`]
//! what went before anybody looked.

pub mod descriptors;
pub mod device;
pub mod hold;
pub mod keeper;
pub mod preflight;
pub mod rules;
pub mod seen;
mod storage;
pub mod storm;
pub mod uevents;
pub mod written;

use thiserror::Error;

/// What a USB device or one of its interfaces is for: class, subclass and protocol, as USB numbers them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Class(pub [u8; 3]);

impl Class {
    /// Whether it is a keyboard, or may be one without saying so: input devices that firmware does not
    /// understand tell only their driver.
    #[must_use]
    pub fn may_be_keyboard(self) -> bool {
        self.0[0] == 3 && self.0[2] != 2
    }

    /// What it is, for people.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self.0 {
            [1, ..] => "audio",
            [2, ..] | [10, ..] => "communication",
            [3, 1, 1] => "keyboard",
            [3, 1, 2] => "mouse",
            [3, ..] => "input device",
            [6, ..] => "camera",
            [7, ..] => "printer",
            [8, ..] => "storage",
            [9, ..] => "hub",
            [11, ..] => "smart card reader",
            [14, ..] => "video",
            [0xe0, ..] => "wireless controller",
            [0xff, ..] => "vendor-specific",
            _ => "other",
        }
    }
}

impl std::fmt::Display for Class {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let [class, subclass, protocol] = self.0;
        write!(f, "{class:02x}:{subclass:02x}:{protocol:02x}")
    }
}

/// What the kernel refused.
#[derive(Debug, Error)]
#[error("{what}: {source}")]
pub struct UsbError {
    what: String,
    source: std::io::Error,
}

impl UsbError {
    fn new(what: impl Into<String>, source: impl Into<std::io::Error>) -> Self {
        Self { what: what.into(), source: source.into() }
    }
}
