//! Reads what comes from outside in a process that has nothing to lose, before the agent looks at it.
//!
//! Policies, bundles, catalogs and tokens are made by others. A parser that does not come back from one, or
//! that it makes use all memory, would end the agent; so `portcullis read-policy` reads each first, to the end,
//! with the very code of the agent: it is started for this one thing and is [alone](crate::alone) before it
//! gets a byte. It opens nothing; the agent gives it what it asks for, and knows therefore what it has read.
//!
//! What it says can only refuse. The agent reads and verifies afterwards itself, and the same bytes: those that
//! it gave are in its memory, or it knows their digests and compares ([`Same`]).

mod blocks;
mod checked;
mod give;
pub mod process;
mod start;
mod words;

pub use checked::{Check, Checked, Form, Unchecked, bundle, head, policy, token};
pub use give::{Blocks, Pieces, Same};
pub use start::{NO_READER, Start, Trouble, end_all};
pub use words::Task;

/// The hidden verb with which our own binary is started.
pub const VERB: &str = "read-policy";
