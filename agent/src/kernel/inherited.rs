//! What each agent takes over from the one before.

use std::path::{Path, PathBuf};

use aya::{Ebpf, maps::Array};

use crate::kernel::{gates_error::GatesError, pins};

/// Marks of files that are an overlay's layers.
const LAYERED: &str = "PCULLIS_LAYERED";
/// What has such a mark, by address.
const OPENED_LAYERS: &str = "PCULLIS_OPENED_LAYERS";
/// The number of writes to layers, which is 0 as long as there are none.
pub const OVERLAY_WRITES: &str = "PCULLIS_OVERLAY_WRITES";

/// The maps that are taken over: which files were mapped for writing, which are layers of an
/// overlay, and what belongs to those. None of it could be found out anew. In the order in which
/// they are pinned.
pub const MAPS: [&str; 4] = ["PCULLIS_WAS_MAPPED", LAYERED, OVERLAY_WRITES, OPENED_LAYERS];

/// The maps of another agent, alive or dead.
pub struct Inherited {
    maps: Vec<(&'static str, PathBuf)>,
}

impl Inherited {
    /// Looks for them.
    pub fn find() -> Self {
        let pinned = MAPS.iter().filter_map(|name| Some((*name, pins::inherited(name)?)));
        let mut found = Self { maps: pinned.collect() };
        // An agent that broke off may have left one without the other. What has a mark is not
        // believed without the marks.
        if !found.has(LAYERED) {
            found.maps.retain(|(name, _)| *name != OPENED_LAYERS);
        }
        found
    }

    fn has(&self, name: &str) -> bool {
        self.maps.iter().any(|(found, _)| *found == name)
    }

    /// Each with the place where it is pinned.
    pub fn maps(&self) -> impl Iterator<Item = (&'static str, &Path)> {
        self.maps.iter().map(|(name, path)| (*name, path.as_path()))
    }

    /// Makes good for what is missing, before the programs are attached.
    ///
    /// # Errors
    /// If a map cannot be written.
    pub fn complete(&self, ebpf: &mut Ebpf) -> Result<(), GatesError> {
        // Marks without their number: at 0 nobody would look for them.
        if self.has(LAYERED) && !self.has(OVERLAY_WRITES) {
            let map = ebpf.map_mut(OVERLAY_WRITES).ok_or(GatesError::Missing(OVERLAY_WRITES))?;
            Array::<_, u64>::try_from(map)?.set(0, 1, 0)?;
        }
        Ok(())
    }
}
