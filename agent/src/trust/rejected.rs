//! Why a signature is not accepted. The kind of input decides what is checked; nothing can be
//! configured away, so every reason says what to do about it.

use thiserror::Error;

use super::{algorithm::AlgorithmError, key::KeyError};

/// Why a signature is not accepted.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum Rejected {
    #[error("{found} bytes, where at most {limit} are read")]
    TooLarge { found: usize, limit: usize },
    #[error("no CMS signature in DER: {0}")]
    NotDer(String),
    #[error("the signature is cut short: {0}")]
    Truncated(String),
    #[error("the signature is in BER, with lengths left open")]
    IndefiniteLength,
    #[error("the signature is not in canonical DER, in which for one thing a SET is sorted")]
    NotCanonical,
    #[error("{0} bytes after the end of the signature")]
    TrailingData(usize),
    #[error("unreadable PEM: {0}")]
    Pem(String),
    #[error("not signed data but {0}")]
    NotSignedData(String),
    #[error("the signature is over {0}, not over plain data")]
    ContentType(String),
    #[error("no content: it is not in the signature, and none was given with it")]
    NoContent,
    #[error("the content in the signature is not the content that was given with it")]
    ContentDiffers,
    #[error("the content cannot be read: {0}")]
    Unreadable(String),
    #[error("nobody signed")]
    NoSigner,
    #[error("{found} {what}, where at most {limit} are looked at")]
    TooMany { what: &'static str, found: usize, limit: usize },
    #[error("signature {number} of {of}: {reason}")]
    OneOfSeveral { number: usize, of: usize, reason: Box<Rejected> },

    #[error("{place} names {error}")]
    Algorithm { place: String, error: AlgorithmError },
    #[error("algorithms that disagree: {0}")]
    AlgorithmMismatch(String),
    #[error("the signed attribute {name} {problem}")]
    Attribute { name: &'static str, problem: &'static str },
    #[error("the content is that of another signature's attributes")]
    AttributesAsContent,
    #[error("the content is not what was signed: its {0} digest differs")]
    ContentChanged(&'static str),
    #[error("the signature by {0} is not right")]
    BadSignature(String),
    #[error("a signature of {0} bytes; Ed25519 has 64")]
    SignatureLength(usize),
    #[error("{who} has {error}")]
    Key { who: String, error: KeyError },

    #[error("the signer's certificate is neither in the signature nor in the policy: {0}")]
    NoCertificate(String),
    #[error("no signer in the policy has {0}")]
    UntrustedKey(String),
    #[error("{subject} is not a signer in the policy, and no chain leads from it to one")]
    Untrusted { subject: String },
    #[error("{0} was revoked")]
    Revoked(String),
    #[error("the certificate of {subject} is not for this: {field} lacks {wanted}")]
    WrongUsage { subject: String, field: &'static str, wanted: String },
    #[error("the certificate of {subject} is a CA's, which signs certificates and not code")]
    CaAsSigner { subject: String },
    #[error("the certificate of {subject} signed another and is no CA's ({field})")]
    NotCa { subject: String, field: &'static str },
    #[error("the subject {subject} has no {field} that is `{wanted}`")]
    WrongSubject { subject: String, field: &'static str, wanted: String },
    #[error("more certificates below {subject} than its pathLenConstraint allows")]
    PathLength { subject: String },
    #[error("a name below {subject} is outside its nameConstraints")]
    NameConstraints { subject: String },
    #[error("the certificate of {subject} has the critical extension {extension}")]
    CriticalExtension { subject: String, extension: String },
    #[error("the certificates from {subject} to {anchor} were never valid at the same time")]
    NeverValid { subject: String, anchor: String },
    #[error("the chain from {subject} to {anchor} is broken: {detail}")]
    Chain { subject: String, anchor: String, detail: String },
}

impl Rejected {
    /// A word for machines, which stays the same.
    #[must_use]
    pub fn word(&self) -> &'static str {
        match self {
            Self::TooLarge { .. } => "too-large",
            Self::NotDer(_) | Self::IndefiniteLength | Self::NotCanonical => "not-der",
            Self::Truncated(_) => "truncated",
            Self::TrailingData(_) => "trailing-data",
            Self::Pem(_) => "bad-pem",
            Self::NotSignedData(_) => "not-signed-data",
            Self::ContentType(_) => "wrong-content-type",
            Self::NoContent => "no-content",
            Self::ContentDiffers => "content-differs",
            Self::Unreadable(_) => "unreadable",
            Self::NoSigner => "no-signer",
            Self::TooMany { .. } => "too-many",
            Self::OneOfSeveral { reason, .. } => reason.word(),
            Self::Algorithm { error: AlgorithmError::WeakHash(_), .. } => "weak-hash",
            Self::Algorithm { error: AlgorithmError::Unknown(_), .. }
            | Self::Key { error: KeyError::Algorithm(_), .. } => "unknown-algorithm",
            Self::Algorithm { error: AlgorithmError::Parameters(_), .. }
            | Self::AlgorithmMismatch(_) => "algorithm-mismatch",
            Self::Attribute { .. } => "bad-attributes",
            Self::AttributesAsContent => "attributes-as-content",
            Self::ContentChanged(_) => "content-changed",
            Self::BadSignature(_) => "bad-signature",
            Self::SignatureLength(_) => "signature-length",
            Self::Key { error: KeyError::Weak(_) | KeyError::TooLong(_), .. } => "weak-key",
            Self::Key { .. } => "bad-key",
            Self::NoCertificate(_) | Self::UntrustedKey(_) | Self::Untrusted { .. } => {
                "untrusted-signer"
            }
            Self::Revoked(_) => "revoked",
            Self::WrongUsage { .. } | Self::CaAsSigner { .. } => "wrong-usage",
            Self::NotCa { .. } => "not-a-ca",
            Self::WrongSubject { .. } => "wrong-subject",
            Self::PathLength { .. } => "path-length",
            Self::NameConstraints { .. } => "name-constraints",
            Self::CriticalExtension { .. } => "critical-extension",
            Self::NeverValid { .. } => "never-valid",
            Self::Chain { .. } => "broken-chain",
        }
    }

    /// What to do about it, where there is something.
    #[must_use]
    pub fn help(&self) -> Option<String> {
        const SIGN_AGAIN: &str = "sign again: `openssl cms -sign -binary -md sha256 -outform DER`";
        let text = match self {
            Self::OneOfSeveral { reason, .. } => return reason.help(),
            Self::Key { error, .. } => return error.help(),
            Self::TooLarge { .. } => "sign detached, so that the content stays outside",
            Self::NotDer(_) => "give what `openssl cms -sign -binary -outform DER` writes",
            Self::IndefiniteLength => {
                "sign without `-stream` and `-indef`, or convert it: `openssl cms -cmsout -inform \
                 DER -outform DER`"
            }
            Self::NotCanonical => {
                "a tool wrote it that does not keep to DER; sign with `openssl cms`"
            }
            Self::Truncated(_) => "copy the file again",
            Self::TrailingData(_) => "keep nothing after the signature, and one signature per file",
            Self::Pem(_) => "keep only the block from `-----BEGIN CMS-----` to its end",
            Self::NotSignedData(_) => "sign with `openssl cms -sign`; encrypted data says nothing",
            Self::ContentType(_) => "sign the file itself, with `-binary` and no `-econtent_type`",
            Self::NoContent => "give the file that was signed, or sign it with `-nodetach`",
            Self::ContentDiffers => "give the file that was signed",
            Self::NoSigner => "sign it; certificates alone vouch for nothing",
            Self::TooMany { .. } => "leave out what the signature does not need",
            Self::Algorithm { error: AlgorithmError::Parameters(_), .. } => {
                "for RSA-PSS sign with `-keyopt rsa_padding_mode:pss -keyopt \
                 rsa_pss_saltlen:digest`, and with one hash for all; certificates likewise with \
                 `-sigopt`"
            }
            Self::Algorithm { .. } => {
                "use SHA-256, SHA-384 or SHA-512 with RSA, ECDSA P-256 or P-384, or Ed25519"
            }
            Self::AlgorithmMismatch(_) | Self::Attribute { .. } => SIGN_AGAIN,
            Self::AttributesAsContent => {
                "somebody took another file's signature apart; do not trust where this came from"
            }
            Self::ContentChanged(_) => {
                "give the file exactly as it was signed, or sign it again; without `-binary`, \
                 openssl changes the ends of lines first"
            }
            Self::BadSignature(_) => "the file or its signature was changed; copy both again",
            Self::SignatureLength(_) => {
                "sign with `openssl pkeyutl -sign -rawin`; a CMS signature is a file of its own"
            }
            Self::NoCertificate(_) => {
                "list the certificate as a signer, or sign without `-nocerts`"
            }
            Self::UntrustedKey(_) => "list the public key or its certificate as a signer",
            Self::Untrusted { subject } => {
                return Some(format!(
                    "list the certificate of {subject}, or its CA's, as a signer; and put the \
                     certificates between into the signature (`-certfile`)"
                ));
            }
            Self::Revoked(_) => "get the file signed by a key that is still trusted",
            Self::WrongUsage { subject, field, wanted } => {
                return Some(format!(
                    "have the certificate of {subject} issued again with {wanted} in {field}"
                ));
            }
            Self::CaAsSigner { .. } => {
                "have the CA issue a certificate for signing, or list the CA's itself as a signer"
            }
            Self::NotCa { subject, .. } => {
                return Some(format!(
                    "have the certificate of {subject} issued again with CA:TRUE and keyCertSign, \
                     or sign below another"
                ));
            }
            Self::WrongSubject { .. } => {
                "if this signer is meant, change what the policy asks of its subject"
            }
            Self::PathLength { subject } => {
                return Some(format!("sign with a certificate closer to {subject}"));
            }
            Self::NameConstraints { .. } => {
                "nameConstraints on directoryName are always refused; ask for O, OU or CN in the \
                 policy instead"
            }
            Self::CriticalExtension { .. } => {
                "have it issued again without that extension, or with it not critical"
            }
            Self::NeverValid { .. } => "have the certificate issued again within its CA's validity",
            Self::Chain { .. } => "have the certificates issued again",
            Self::Unreadable(_) => return None,
        };
        Some(text.into())
    }

    /// How much it says about why this signature is not accepted, if several reasons apply.
    pub(super) fn weight(&self) -> u8 {
        match self {
            Self::Revoked(_) => 4,
            Self::Untrusted { .. } | Self::UntrustedKey(_) => 0,
            Self::WrongSubject { .. } => 2,
            _ => 3,
        }
    }
}
