//! Chains from a signer's certificate to a CA that the policy lists.
//!
//! rustls-webpki builds and validates the path. What it leaves out is done here: keyUsage, the
//! anchor's own constraints, and revocation. What differs on purpose is time, see [`build`].

use std::{collections::BTreeSet, time::Duration};

use const_oid::ObjectIdentifier;
use jiff::Timestamp;
use rustls_pki_types::{
    AlgorithmIdentifier, CertificateDer, InvalidSignature, SignatureVerificationAlgorithm,
    TrustAnchor, UnixTime, alg_id,
};
use webpki::{EndEntityCert, Error, ExtendedKeyUsageValidator, KeyPurposeIdIter, VerifiedPath};

use super::{
    HashAlgorithm::{Sha256, Sha384, Sha512},
    Rejected, Revocations, Scheme,
    algorithm::{identifier, name_of},
    certificate::{ANY_PURPOSE, Certificate},
    key::PublicKey,
};

/// At how many instants a chain is tried. A real one has at most as many as certificates.
const MAX_INSTANTS: usize = 12;

/// What a chain is asked to be.
pub(super) struct Wanted<'a> {
    /// The CA that the policy lists.
    pub anchor: &'a Certificate,
    /// What the CAs between must allow, if they say what they are for.
    pub purpose: ObjectIdentifier,
    /// What was taken back.
    pub revoked: &'a Revocations,
    /// The time, if it is known.
    pub now: Option<Timestamp>,
}

/// Builds the chain from `leaf` to the anchor through `pool`.
///
/// Expiry never stops a plant, so the chain need not be valid now; but all its certificates must
/// have been valid at one instant. If there is such an instant at all, then the last of their
/// beginnings is one: only these are tried.
///
/// # Errors
/// If there is no such chain.
pub(super) fn build<'a>(
    leaf: &'a Certificate,
    pool: &'a [Certificate],
    wanted: &Wanted<'a>,
) -> Result<Vec<&'a Certificate>, Rejected> {
    let anchor = wanted.anchor;
    let connected = connected(leaf, pool, anchor);
    let reaches = |certificate: &Certificate| certificate.issuer_der() == anchor.subject_der();
    if !reaches(leaf) && !connected.iter().any(|certificate| reaches(certificate)) {
        return Err(Rejected::Untrusted { subject: leaf.subject() });
    }
    check_issuer(anchor, wanted)?;
    check_leaf(leaf)?;
    let mut between = Vec::new();
    let mut problem = None;
    for certificate in connected {
        match check_issuer(certificate, wanted) {
            Ok(()) => between.push(certificate),
            Err(reason) => {
                problem.get_or_insert(reason);
            }
        }
    }
    let (between, false_one) = vouched_for(between, anchor);
    let problem = problem.or_else(|| {
        let detail =
            format!("the signature on the certificate of {} is not right", false_one?.subject());
        Some(broken(leaf, anchor, &detail))
    });
    validate(leaf, &between, wanted).map_err(|error| match (error, problem) {
        (Error::UnknownIssuer, Some(problem)) => problem,
        (error, _) => reason(&error, leaf, &between, anchor),
    })
}

/// The certificates of the pool that can have a part in a chain from `leaf`, by their names.
fn connected<'a>(
    leaf: &Certificate,
    pool: &'a [Certificate],
    anchor: &Certificate,
) -> Vec<&'a Certificate> {
    let mut found: Vec<&Certificate> = Vec::new();
    let mut names = vec![leaf.issuer_der()];
    while let Some(name) = names.pop() {
        for candidate in pool {
            let known = |other: &Certificate| other.fingerprint() == candidate.fingerprint();
            if candidate.subject_der() == name
                && !known(leaf)
                && !known(anchor)
                && !found.iter().any(|other| known(other))
            {
                names.push(candidate.issuer_der());
                found.push(candidate);
            }
        }
    }
    found
}

/// Those that the anchor vouches for, through others or not; and one, if there is any, that only
/// says so. The library tries every path by names before it looks at signatures, of which somebody
/// could make up more than there is time for.
fn vouched_for<'a>(
    mut certificates: Vec<&'a Certificate>,
    anchor: &'a Certificate,
) -> (Vec<&'a Certificate>, Option<&'a Certificate>) {
    let mut found = Vec::new();
    let mut false_one = None;
    let mut issuers = vec![anchor];
    while let Some(issuer) = issuers.pop() {
        let Ok(key) = issuer.raw_key() else { continue };
        let mut rest = Vec::new();
        for certificate in certificates {
            if certificate.issuer_der() != issuer.subject_der() {
                rest.push(certificate);
            } else if certificate.is_signed_by(key) {
                found.push(certificate);
                issuers.push(certificate);
            } else {
                false_one.get_or_insert(certificate);
                rest.push(certificate);
            }
        }
        certificates = rest;
    }
    // It may have been another issuer's of the same name.
    let is_false = |one: &&Certificate| certificates.iter().any(|other| std::ptr::eq(*one, *other));
    (found, false_one.filter(is_false))
}

fn check_issuer(certificate: &Certificate, wanted: &Wanted<'_>) -> Result<(), Rejected> {
    let subject = || certificate.subject();
    wanted.revoked.check(certificate)?;
    let who = || format!("the certificate of {}", subject());
    certificate.raw_key().map_err(|error| Rejected::Key { who: who(), error: error.clone() })?;
    if !certificate.claims_ca() {
        return Err(Rejected::NotCa { subject: subject(), field: "basicConstraints" });
    }
    if !certificate.is_ca() {
        return Err(Rejected::NotCa { subject: subject(), field: "keyUsage" });
    }
    check_extensions(certificate)?;
    if let Some(purposes) = certificate.purposes()
        && !purposes.contains(&wanted.purpose)
        && !purposes.contains(&ANY_PURPOSE)
    {
        return Err(Rejected::WrongUsage {
            subject: subject(),
            field: "extendedKeyUsage",
            wanted: name_of(wanted.purpose),
        });
    }
    // Nobody looks at the signature on an anchor.
    let is_anchor = certificate.fingerprint() == wanted.anchor.fingerprint();
    if !is_anchor { check_signature(certificate) } else { Ok(()) }
}

fn check_leaf(leaf: &Certificate) -> Result<(), Rejected> {
    if leaf.claims_ca() {
        return Err(Rejected::CaAsSigner { subject: leaf.subject() });
    }
    check_extensions(leaf)?;
    check_signature(leaf)
}

pub(super) fn check_extensions(certificate: &Certificate) -> Result<(), Rejected> {
    match certificate.unknown_critical() {
        Some(extension) => Err(Rejected::CriticalExtension {
            subject: certificate.subject(),
            extension: name_of(extension),
        }),
        None => Ok(()),
    }
}

fn check_signature(certificate: &Certificate) -> Result<(), Rejected> {
    match certificate.signature_problem() {
        Some(error) => Err(Rejected::Algorithm {
            place: format!("the signature on the certificate of {}", certificate.subject()),
            error,
        }),
        None => Ok(()),
    }
}

fn validate<'a>(
    leaf: &'a Certificate,
    between: &[&'a Certificate],
    wanted: &Wanted<'a>,
) -> Result<Vec<&'a Certificate>, Error> {
    let leaf_der = CertificateDer::from(leaf.der());
    let end = EndEntityCert::try_from(&leaf_der)?;
    let anchor_der = CertificateDer::from(wanted.anchor.der());
    let anchors = [webpki::anchor_from_trusted_cert(&anchor_der)?];
    let ders: Vec<_> = between.iter().map(|other| CertificateDer::from(other.der())).collect();
    let mut told = Error::UnknownIssuer;
    for instant in instants(leaf, between, wanted) {
        match path_at(&end, &anchors, &ders, wanted.anchor, instant) {
            Ok(path) => {
                let find = |der: &[u8]| between.iter().find(|other| other.der() == der).copied();
                let mut chain = vec![leaf];
                chain.extend(path.iter().filter_map(|der| find(der)));
                chain.push(wanted.anchor);
                return Ok(chain);
            }
            Err(error) if telling(&error) > telling(&told) => told = error,
            Err(_) => {}
        }
    }
    Err(told)
}

/// Which error to tell if they differ between instants: at most of them, something is not valid.
const fn telling(error: &Error) -> u8 {
    match error {
        Error::UnknownIssuer => 0,
        Error::CertExpired { .. } | Error::CertNotValidYet { .. } => 1,
        _ => 2,
    }
}

fn instants(leaf: &Certificate, between: &[&Certificate], wanted: &Wanted<'_>) -> Vec<Timestamp> {
    let all = between.iter().copied().chain([leaf, wanted.anchor]);
    let beginnings: BTreeSet<_> = all.map(Certificate::not_before).collect();
    let latest = beginnings.into_iter().rev();
    let valid = latest.filter(|at| (leaf.not_before()..=leaf.not_after()).contains(at));
    let mut instants = Vec::from_iter(wanted.now);
    instants.extend(valid.take(MAX_INSTANTS));
    if instants.is_empty() {
        // The leaf was never valid; let the library say so.
        instants.push(leaf.not_before());
    }
    instants
}

/// The certificates between, in order, of a path that is valid at an instant.
fn path_at(
    end: &EndEntityCert<'_>,
    anchors: &[TrustAnchor<'_>],
    between: &[CertificateDer<'_>],
    anchor: &Certificate,
    at: Timestamp,
) -> Result<Vec<Vec<u8>>, Error> {
    let unix = |time: Timestamp| {
        let seconds = u64::try_from(time.as_second()).unwrap_or_default();
        UnixTime::since_unix_epoch(Duration::from_secs(seconds))
    };
    let time = unix(at);
    let check_anchor = |path: &VerifiedPath<'_>| {
        if at < anchor.not_before() {
            return Err(Error::CertNotValidYet { time, not_before: unix(anchor.not_before()) });
        }
        if at > anchor.not_after() {
            return Err(Error::CertExpired { time, not_after: unix(anchor.not_after()) });
        }
        let count = path.intermediate_certificates().count();
        match anchor.path_length() {
            Some(limit) if count > usize::from(limit) => Err(Error::PathLenConstraintViolated),
            _ => Ok(()),
        }
    };
    let path = end.verify_for_usage(
        ALGORITHMS,
        anchors,
        between,
        time,
        CheckedBefore,
        None,
        Some(&check_anchor),
    )?;
    Ok(path.intermediate_certificates().map(|certificate| certificate.der().to_vec()).collect())
}

/// What certificates are for was looked at before, with a better message.
struct CheckedBefore;

impl ExtendedKeyUsageValidator for CheckedBefore {
    fn validate(&self, mut purposes: KeyPurposeIdIter<'_, '_>) -> Result<(), Error> {
        purposes.try_for_each(|purpose| purpose.map(drop))
    }
}

fn reason(
    error: &Error,
    leaf: &Certificate,
    between: &[&Certificate],
    anchor: &Certificate,
) -> Rejected {
    let issuers = || between.iter().copied().chain([anchor]);
    let subject = |certificate: Option<&Certificate>| certificate.unwrap_or(anchor).subject();
    match error {
        Error::UnknownIssuer => Rejected::Untrusted { subject: leaf.subject() },
        Error::PathLenConstraintViolated => Rejected::PathLength {
            subject: subject(issuers().find(|issuer| issuer.path_length().is_some())),
        },
        Error::NameConstraintViolation => Rejected::NameConstraints {
            subject: subject(issuers().find(|issuer| issuer.has_name_constraints())),
        },
        Error::CertExpired { .. } | Error::CertNotValidYet { .. } | Error::InvalidCertValidity => {
            Rejected::NeverValid { subject: leaf.subject(), anchor: anchor.subject() }
        }
        Error::InvalidSignatureForPublicKey => broken(leaf, anchor, "a signature is not right"),
        Error::UnsupportedCertVersion => broken(leaf, anchor, "a certificate is not of version 3"),
        Error::MaximumPathBuildCallsExceeded
        | Error::MaximumSignatureChecksExceeded
        | Error::MaximumNameConstraintComparisonsExceeded => {
            broken(leaf, anchor, "there are too many ways through the certificates")
        }
        Error::MaximumPathDepthExceeded => broken(leaf, anchor, "it is too long"),
        other => broken(leaf, anchor, &format!("{other:?}")),
    }
}

fn broken(leaf: &Certificate, anchor: &Certificate, detail: &str) -> Rejected {
    let detail = detail.into();
    Rejected::Chain { subject: leaf.subject(), anchor: anchor.subject(), detail }
}

/// One way in which a certificate may be signed: by a key of this kind, with this scheme.
#[derive(Debug)]
struct Algorithm {
    key: AlgorithmIdentifier,
    signature: AlgorithmIdentifier,
    scheme: Scheme,
}

impl SignatureVerificationAlgorithm for Algorithm {
    fn verify_signature(
        &self,
        public_key: &[u8],
        message: &[u8],
        signature: &[u8],
    ) -> Result<(), InvalidSignature> {
        // As in a SEQUENCE, without its tag and length.
        let content = self.key.as_ref();
        let length = u8::try_from(content.len()).ok().filter(|length| *length < 0x80);
        let mut der = vec![0x30, length.ok_or(InvalidSignature)?];
        der.extend(content);
        let id = identifier(&der).map_err(|_| InvalidSignature)?;
        let curve = id.parameters.as_ref().and_then(|any| any.decode_as().ok());
        let key = PublicKey::from_parts(id.oid, curve, public_key);
        let key = key.map_err(|_| InvalidSignature)?;
        key.verify(message, self.scheme, signature).map_err(|_| InvalidSignature)
    }

    fn public_key_alg_id(&self) -> AlgorithmIdentifier {
        self.key
    }

    fn signature_alg_id(&self) -> AlgorithmIdentifier {
        self.signature
    }
}

const fn by(key: AlgorithmIdentifier, signature: AlgorithmIdentifier, scheme: Scheme) -> Algorithm {
    Algorithm { key, signature, scheme }
}

const RSA: AlgorithmIdentifier = alg_id::RSA_ENCRYPTION;
const P256: AlgorithmIdentifier = alg_id::ECDSA_P256;
const P384: AlgorithmIdentifier = alg_id::ECDSA_P384;

const ALGORITHMS: &[&dyn SignatureVerificationAlgorithm] = &[
    &by(RSA, alg_id::RSA_PKCS1_SHA256, Scheme::RsaPkcs1(Sha256)),
    &by(RSA, alg_id::RSA_PKCS1_SHA384, Scheme::RsaPkcs1(Sha384)),
    &by(RSA, alg_id::RSA_PKCS1_SHA512, Scheme::RsaPkcs1(Sha512)),
    &by(RSA, alg_id::RSA_PSS_SHA256, Scheme::RsaPss { hash: Sha256, salt: 32 }),
    &by(RSA, alg_id::RSA_PSS_SHA384, Scheme::RsaPss { hash: Sha384, salt: 48 }),
    &by(RSA, alg_id::RSA_PSS_SHA512, Scheme::RsaPss { hash: Sha512, salt: 64 }),
    &by(P256, alg_id::ECDSA_SHA256, Scheme::Ecdsa(Sha256)),
    &by(P256, alg_id::ECDSA_SHA384, Scheme::Ecdsa(Sha384)),
    &by(P256, alg_id::ECDSA_SHA512, Scheme::Ecdsa(Sha512)),
    &by(P384, alg_id::ECDSA_SHA256, Scheme::Ecdsa(Sha256)),
    &by(P384, alg_id::ECDSA_SHA384, Scheme::Ecdsa(Sha384)),
    &by(P384, alg_id::ECDSA_SHA512, Scheme::Ecdsa(Sha512)),
    &by(alg_id::ED25519, alg_id::ED25519, Scheme::Ed25519),
];
