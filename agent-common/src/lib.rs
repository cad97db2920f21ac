//! What the agent and its kernel programs must agree on: map keys and values, events, and the
//! list of kernel fields that the programs read.
//!
//! Everything here is `no_std`, has a fixed layout (`repr(C)` or `repr(u8)`), and is asserted at
//! compile time, because one side is compiled by another compiler than the other.
#![no_std]

mod device;
mod event;
mod layout;
mod policy;
mod script;
mod shield;
mod usb;
mod verdict;

pub use device::{VerifiedDevice, tables};
pub use event::{
    ANCESTORS, Ancestor, BpfLoad, COMM_LEN, Event, EventHeader, PATH_LONG, PATH_SHORT, PathStatus,
};
pub use layout::{
    EnumValue, FSVERITY_CALL, Field, Fields, FsverityDigest, LOOK_CALL, NO_ENUMERATOR,
    OverlayLayout,
};
pub use policy::{
    Active, Choices, DIGEST_LEN, Digest, FILESYSTEM_IS_SERVED, Kinds, Mode, Rule, SLOTS,
    fsverity_key,
};
pub use script::{ARGUMENT_BYTES, ARGUMENTS, Arguments, Found, Name};
pub use shield::{Authority, FileId, MAP_PREFIX, SHOW_MOUNT};
pub use usb::{
    Process, USB_DESCRIPTORS, USB_DEVICE_DESCRIPTOR, USB_TEXT, UsbCounts, UsbLayout, UsbRecord,
    UsbText, usb_change,
};
pub use verdict::{Counter, Gate, Outcome, ProgramKey, Reason, Verdict, VerdictWord};

/// Declares a fieldless enum whose values cross the kernel boundary as one byte, with the stable
/// word that logs and JSON use for each, and a checked conversion back.
macro_rules! wire_enum {
    (
        $(#[$meta:meta])*
        pub enum $name:ident {
            $( $(#[$vmeta:meta])* $variant:ident = $value:literal => $word:literal ),+ $(,)?
        }
    ) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[repr(u8)]
        pub enum $name {
            $( $(#[$vmeta])* $variant = $value ),+
        }

        impl $name {
            /// Every value, in the order of their numbers.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            /// The stable word for this value in logs, JSON and documentation.
            #[must_use]
            pub const fn word(self) -> &'static str {
                match self {
                    $(Self::$variant => $word),+
                }
            }

            /// The value with this number, or `None` if a newer or broken peer sent it.
            #[must_use]
            pub const fn from_u8(value: u8) -> Option<Self> {
                match value {
                    $($value => Some(Self::$variant),)+
                    _ => None,
                }
            }
        }
    };
}
pub(crate) use wire_enum;
