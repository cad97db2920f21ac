//! Signatures that files carry themselves: what can be said of them before anything is verified.
//!
//! Pure and bounded: the bytes come from whoever could write the file.

pub mod ima;
pub mod module;

use thiserror::Error;

/// Why what a file carries is no signature that could be verified.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum Malformed {
    #[error("{what} of more than {limit} bytes")]
    TooLarge { what: &'static str, limit: usize },
    #[error("{what} is cut short: {missing} bytes are missing")]
    Truncated { what: &'static str, missing: usize },
    #[error("{0} bytes after the end of the signature in security.ima")]
    TrailingData(usize),
    #[error("security.ima of type {0}, which is neither a signature nor a digest")]
    Form(u8),
    #[error("security.ima with a signature of format version {0}")]
    Version(u8),
    #[error("the signature in security.ima is over {0}")]
    WeakHash(&'static str),
    #[error("the signature in security.ima is over a hash that is not known here (number {0})")]
    UnknownHash(u8),
    #[error("security.ima signs an fs-verity digest with {0}, and the file has none")]
    NoVerity(&'static str),
    #[error("a module's signature at the end of a file that is no module")]
    NotAModule,
    #[error("the module's signature is of another kind than PKCS#7 (number {0})")]
    NotPkcs7(u8),
    #[error("the end of the module's signature has a field that must be 0")]
    Trailer,
    #[error("the compressed module cannot be unpacked: {0}")]
    Unpack(String),
    #[error("the module's {0} bytes are more than are unpacked")]
    TooMuch(u64),
}

impl Malformed {
    /// A word for machines, which stays the same.
    #[must_use]
    pub const fn word(&self) -> &'static str {
        match self {
            Self::TooLarge { .. } | Self::TooMuch(_) => "too-large",
            Self::Truncated { .. } => "truncated",
            Self::TrailingData(_) => "trailing-data",
            Self::Form(_) | Self::Version(_) | Self::NotPkcs7(_) => "unknown-form",
            Self::WeakHash(_) => "weak-hash",
            Self::UnknownHash(_) => "unknown-algorithm",
            Self::NoVerity(_) => "no-fs-verity",
            Self::NotAModule => "not-a-module",
            Self::Trailer => "bad-trailer",
            Self::Unpack(_) => "unreadable",
        }
    }

    /// What to do about it.
    #[must_use]
    pub const fn help(&self) -> &'static str {
        match self {
            Self::TooLarge { .. } | Self::Truncated { .. } | Self::TrailingData(_) => {
                "sign the file again; a copy must take security.ima along as it is"
            }
            Self::Form(_) | Self::Version(_) => {
                "sign with `evmctl ima_sign`, without `--rsa`, or by fs-verity digest with \
                 `--veritysig`"
            }
            Self::WeakHash(_) | Self::UnknownHash(_) => "sign with `evmctl ima_sign -a sha256`",
            Self::NoVerity(_) => "enable fs-verity on the file (`fsverity enable`) with that hash",
            Self::NotAModule => "sign programs and libraries with `evmctl ima_sign`",
            Self::NotPkcs7(_) | Self::Trailer => {
                "sign it again with the kernel's `scripts/sign-file sha256`"
            }
            Self::Unpack(_) => "compress it again with `xz`, `gzip` or `zstd`",
            Self::TooMuch(_) => "list the file's digest, or sign it with `evmctl ima_sign`",
        }
    }
}
