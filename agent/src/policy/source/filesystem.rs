//! `[[filesystem]]`: what a policy trusts as a whole.

use portcullis_common::{Digest, Kinds};
use toml::de::DeTable;

use super::{Reader, Value};
use crate::{artifact::digest, kernel::filesystems};

const FILESYSTEM_KEYS: [&str; 4] = ["type", "verity", "kinds", "comment"];

/// What files on a verified filesystem may be used as, unless the policy says so.
const VERIFIED_KINDS: Kinds =
    Kinds(Kinds::EXECUTABLE.0 | Kinds::LIBRARY.0 | Kinds::SCRIPT.0 | Kinds::MODULE.0);

/// One `[[filesystem]]` with a root hash.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VerifiedFilesystem {
    /// The hash that every block of its device is verified against (dm-verity).
    pub root: Digest,
    /// What files on it may be used as.
    pub kinds: Kinds,
    /// Line of the hash.
    pub line: u32,
}

/// What one `[[filesystem]]` trusts.
pub(super) enum Trusted {
    /// A kind that is served by somebody, by magic number.
    Served(u64),
    /// An image, by its root hash.
    Verified(VerifiedFilesystem),
}

impl Reader<'_> {
    /// A filesystem that the policy trusts: a kind of them, or one image.
    pub(super) fn filesystem(&mut self, value: &Value<'_>) -> Option<Trusted> {
        let table = self.table(value, &FILESYSTEM_KEYS, "[[filesystem]]")?;
        self.comments(table);
        let name = match (table.get("type"), table.get("verity")) {
            (Some(name), None) => name,
            (None, Some(root)) => return self.verified(root, table).map(Trusted::Verified),
            (Some(_), Some(root)) => {
                self.report_help(
                    root.span().start,
                    "`verity` and `type` in one [[filesystem]]",
                    "write two: one trusts an image, the other a kind of filesystem",
                );
                return None;
            }
            (None, None) => {
                self.report_help(
                    value.span().start,
                    "`type` is missing in [[filesystem]]",
                    "add the kind that is to be trusted, such as type = \"nfs\", or the root hash \
                     of an image, as veritysetup prints it: verity = \"…\"",
                );
                return None;
            }
        };
        if let Some(kinds) = table.get("kinds") {
            self.report_help(
                kinds.span().start,
                "`kinds` goes with `verity` only",
                "remove it: files on this kind of filesystem are judged by their content",
            );
        }
        let known = filesystems::trustable().map(|one| (one.name, one.magic));
        let written = name.get_ref().as_str().unwrap_or_default();
        if filesystems::is_local(written) && written != filesystems::OVERLAY.name {
            self.report_help(
                name.span().start,
                format!("filesystem \"{written}\" is judged by content and needs no trust"),
                "remove this [[filesystem]]",
            );
            return None;
        }
        self.word(name, "filesystem", known).map(Trusted::Served)
    }

    /// An image that the policy trusts by its root hash.
    fn verified(&mut self, root: &Value<'_>, table: &DeTable<'_>) -> Option<VerifiedFilesystem> {
        let kinds = match table.get("kinds") {
            None => Some(VERIFIED_KINDS),
            Some(value) => self.kinds(value).and_then(|kinds| {
                if kinds.intersects(Kinds::MARKS) {
                    self.report_help(
                        value.span().start,
                        "a whole filesystem cannot be `jit` or `interpreter`",
                        "mark single programs, by their digests in [[allow]]",
                    );
                    return None;
                }
                Some(kinds)
            }),
        };
        let written = self.string(root, "verity")?;
        match digest::parse(written) {
            Ok(hash) => {
                let line = self.text.line(root.span().start);
                Some(VerifiedFilesystem { root: hash, kinds: kinds?, line })
            }
            Err(error) => {
                self.report_help(
                    root.span().start,
                    format!("not a root hash: {error}"),
                    "copy the root hash as `veritysetup format --hash sha256` prints it: 64 digits",
                );
                None
            }
        }
    }
}
