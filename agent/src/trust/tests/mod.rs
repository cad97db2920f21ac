//! Signatures as others make them, and every way in which they can be bad.

mod accepted;
mod chains;
mod forged;
mod hostile;
mod keys;
pub(crate) mod pki;
mod signing;
