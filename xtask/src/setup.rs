//! later
use anyhow::Result;
pub enum For { Building, Machines, Demo, Tests }
pub fn setup(_: For) -> Result<()> { Ok(()) }
#[derive(Debug)]
pub struct NotPossibleHere;
impl std::fmt::Display for NotPossibleHere { fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result { write!(f,"x") } }
impl std::error::Error for NotPossibleHere {}
