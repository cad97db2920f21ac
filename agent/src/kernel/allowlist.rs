//! The rules of one policy in the kernel. They are complete before any gate can see them.

use std::os::fd::AsFd;

use aya::maps::{HashMap, IterableMap as _, Map, MapData, MapError};
use aya_obj::generated::bpf_map_type::BPF_MAP_TYPE_HASH;
use indicatif::ProgressBar;
use portcullis_common::{Digest, Rule};

use crate::kernel::gates_error::GatesError;

/// `BPF_F_NO_PREALLOC` (linux/bpf.h): memory for elements that are there only.
const NO_PREALLOC: u32 = 1;

/// How the map is called: the shield goes by the beginning.
const NAME: &str = "PCULLIS_RULES";

/// An empty map of this name.
fn made(size: u32) -> Result<MapData, MapError> {
    let (key, value) = (size_of::<Digest>(), size_of::<Rule>());
    #[expect(clippy::cast_possible_truncation, reason = "sizes of small structs")]
    let map = aya_obj::Map::new_from_params(
        BPF_MAP_TYPE_HASH as u32,
        key as u32,
        value as u32,
        size,
        NO_PREALLOC,
    );
    MapData::create(map, NAME, None)
}

/// A map from digests to rules.
pub struct Allowlist(HashMap<MapData, Digest, Rule>);

impl Allowlist {
    /// Makes the map, with room for `more` digests. `progress` counts digests. Takes its time, and
    /// touches nothing that is in force, so that it can be done beside everything else.
    ///
    /// # Errors
    /// If the kernel has no memory for the rules.
    pub fn fill(
        rules: &[(Digest, Rule)],
        more: usize,
        progress: &ProgressBar,
    ) -> Result<Self, GatesError> {
        let digests = rules.len() + more;
        let size =
            u32::try_from(digests.max(1)).map_err(|_| GatesError::TooManyDigests(digests))?;
        let mut map: HashMap<_, Digest, Rule> = Map::HashMap(made(size)?).try_into()?;
        for (digest, rule) in rules {
            map.insert(digest, rule, 0)?;
            progress.inc(1);
        }
        Ok(Self(map))
    }

    /// Another handle on the same map.
    ///
    /// # Errors
    /// If the process has no more descriptors.
    pub fn try_clone(&self) -> Result<Self, GatesError> {
        let fd = self.0.map().fd().as_fd().try_clone_to_owned().map_err(MapError::IoError)?;
        Ok(Self(Map::HashMap(MapData::from_fd(fd)?).try_into()?))
    }

    /// The rule for a digest.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn get(&self, digest: &Digest) -> Result<Option<Rule>, MapError> {
        match self.0.get(digest, 0) {
            Ok(rule) => Ok(Some(rule)),
            Err(MapError::KeyNotFound) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Adds or replaces a rule. The kernel exchanges elements of such maps as a whole, so a gate
    /// sees the one or the other.
    ///
    /// # Errors
    /// If there is no more room.
    pub fn set(&mut self, digest: &Digest, rule: Rule) -> Result<(), MapError> {
        self.0.insert(digest, rule, 0)
    }

    /// Takes a rule away.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn remove(&mut self, digest: &Digest) -> Result<(), MapError> {
        match self.0.remove(digest) {
            Err(MapError::KeyNotFound) => Ok(()),
            other => other,
        }
    }

    pub(super) fn map(&self) -> &HashMap<MapData, Digest, Rule> {
        &self.0
    }
}
