//! `[agent]`: which binaries are the agent's.

use portcullis_common::Digest;

use super::{Reader, Value};

const AGENT_KEYS: [&str; 2] = ["digests", "comment"];

impl Reader<'_> {
    /// Digests of the binaries that may take over from the agent that runs.
    pub(super) fn agent(&mut self, value: &Value<'_>) -> Vec<Digest> {
        let Some(table) = self.table(value, &AGENT_KEYS, "[agent]") else { return Vec::new() };
        let Some(value) = table.get("digests") else { return Vec::new() };
        self.list(value, "digests", |reader, value| {
            reader.digest_at(value, "digests").map(|(digest, _)| digest)
        })
    }
}
