//! What a policy chooses besides its lists.

use portcullis_common::Choices;
use toml::de::DeTable;

use super::Reader;

/// The words for each choice. The first is what holds without a word.
const CHOICES: [(&str, &[(&str, Choices)]); 3] = [
    // What may happen when memory that holds no file's content is made executable.
    (
        "anonymous_memory",
        &[
            ("report", Choices::NONE),
            ("allow", Choices::MEMORY_ALLOWED),
            ("deny", Choices::MEMORY_DENIED),
        ],
    ),
    // Whether block devices under mounted filesystems can be written.
    ("mounted_devices", &[("open", Choices::NONE), ("closed", Choices::MOUNTED_DEVICES_CLOSED)]),
    // Whether others than the agent can load BPF programs.
    (
        "other_bpf",
        &[
            ("report", Choices::NONE),
            ("allow", Choices::OTHER_BPF_ALLOWED),
            ("deny", Choices::OTHER_BPF_DENIED),
        ],
    ),
];

impl Reader<'_> {
    pub(super) fn choices(&mut self, table: &DeTable<'_>) -> Choices {
        let mut choices = Choices::NONE;
        for (key, known) in CHOICES {
            let written = table.get(key);
            let chosen = written.and_then(|value| self.word(value, key, known.iter().copied()));
            choices = choices.union(chosen.unwrap_or(Choices::NONE));
        }
        choices
    }
}
