//! One signer of a CMS signature.

use cms::{
    content_info::CmsVersion,
    signed_data::{SignedAttributes, SignerIdentifier, SignerInfo},
};
use const_oid::{ObjectIdentifier, db::rfc5911};
use der::{Any, Decode, Encode, Tag, Tagged};
use jiff::Timestamp;

use super::{Digests, parsed::Parsed};
use crate::trust::{
    Anchor, Candidate, Certificate, HashAlgorithm, PublicKey, Rejected, Scheme, Trust, Verified,
    certificate::shown, key::VerifyError,
};

/// Verifies one signer, and finds who in the policy vouches for it.
pub(super) fn verify(
    trust: &Trust,
    parsed: &Parsed<'_>,
    signer: &SignerInfo,
    digests: &mut Digests<'_>,
    now: Option<Timestamp>,
) -> Result<Verified, Rejected> {
    check_version(signer)?;
    let hash = HashAlgorithm::from_identifier(&signer.digest_alg)
        .map_err(|error| Rejected::Algorithm { place: "digestAlgorithm".into(), error })?;
    if !parsed.hashes().contains(&hash) {
        return Err(Rejected::AlgorithmMismatch(format!(
            "the signer uses {hash}, which digestAlgorithms does not list"
        )));
    }
    let scheme = Scheme::from_identifier(&signer.signature_algorithm, hash)
        .map_err(|error| Rejected::Algorithm { place: "signatureAlgorithm".into(), error })?;
    check_agreement(hash, scheme)?;
    let signed = signed_bytes(parsed, signer, hash, digests)?;
    let mut told = None;
    for (key, certificate) in keys(trust, parsed, signer)? {
        let key = match key {
            Ok(key) => key,
            Err(reason) => {
                told.get_or_insert(reason);
                continue;
            }
        };
        let candidate = Candidate { key, certificate, pool: parsed.certificates(), scheme, now };
        match check_signature(&candidate, &signed, signer).and_then(|()| trust.resolve(&candidate))
        {
            Ok(verified) => return Ok(verified),
            Err(reason @ Rejected::Revoked(_)) => return Err(reason),
            Err(reason) => {
                told.get_or_insert(reason);
            }
        }
    }
    Err(told.unwrap_or_else(|| no_certificate(signer)))
}

/// RFC 5652, 5.3: the version follows from how the signer is named.
fn check_version(signer: &SignerInfo) -> Result<(), Rejected> {
    let expected = match signer.sid {
        SignerIdentifier::IssuerAndSerialNumber(_) => CmsVersion::V1,
        SignerIdentifier::SubjectKeyIdentifier(_) => CmsVersion::V3,
    };
    if signer.version == expected {
        return Ok(());
    }
    Err(Rejected::NotDer(format!("a signer of version {}", signer.version as u8)))
}

fn check_agreement(hash: HashAlgorithm, scheme: Scheme) -> Result<(), Rejected> {
    // RFC 8419, 3.1: Ed25519 goes with SHA-512.
    let below = scheme.hash().unwrap_or(HashAlgorithm::Sha512);
    if below == hash {
        return Ok(());
    }
    Err(Rejected::AlgorithmMismatch(match scheme {
        Scheme::Ed25519 => format!("Ed25519 goes with {below}, and the content's is {hash}"),
        _ => format!("the signature is over {below}, and the content's digest is {hash}"),
    }))
}

/// What the key has signed.
enum SignedBytes {
    /// The signed attributes, which hold the content's digest.
    Attributes(Vec<u8>),
    /// The content, of which this is the digest.
    Content(Vec<u8>),
}

fn signed_bytes(
    parsed: &Parsed<'_>,
    signer: &SignerInfo,
    hash: HashAlgorithm,
    digests: &mut Digests<'_>,
) -> Result<SignedBytes, Rejected> {
    let digest = digests.of(hash)?;
    let Some(attributes) = &signer.signed_attrs else {
        // Over attributes and over content, a signature looks the same. Somebody who takes the
        // attributes away from one, and gives them as its content, must not get far.
        let content = digests.bytes.or(parsed.content());
        if content.is_some_and(looks_like_attributes) {
            return Err(Rejected::AttributesAsContent);
        }
        return Ok(SignedBytes::Content(digest));
    };
    let kind = single(attributes, rfc5911::ID_CONTENT_TYPE, "contentType")?;
    if kind.decode_as::<ObjectIdentifier>() != Ok(rfc5911::ID_DATA) {
        return Err(Rejected::Attribute {
            name: "contentType",
            problem: "says something else than the content's own type",
        });
    }
    let said = single(attributes, rfc5911::ID_MESSAGE_DIGEST, "messageDigest")?;
    if said.tag() != Tag::OctetString {
        return Err(Rejected::Attribute { name: "messageDigest", problem: "is no digest" });
    }
    if said.value() != digest {
        return Err(Rejected::ContentChanged(match hash {
            HashAlgorithm::Sha256 => "SHA-256",
            HashAlgorithm::Sha384 => "SHA-384",
            HashAlgorithm::Sha512 => "SHA-512",
        }));
    }
    // As a SET, whatever tag they have in the signature (RFC 5652, 5.4).
    let bytes = attributes.to_der().map_err(|error| Rejected::NotDer(error.to_string()))?;
    Ok(SignedBytes::Attributes(bytes))
}

/// The only value of an attribute that must be there once (RFC 5652, 11.1 and 11.2).
fn single<'a>(
    attributes: &'a SignedAttributes,
    id: ObjectIdentifier,
    name: &'static str,
) -> Result<&'a Any, Rejected> {
    let problem = |problem| Err(Rejected::Attribute { name, problem });
    let mut found = attributes.iter().filter(|attribute| attribute.oid == id);
    match (found.next(), found.next()) {
        (None, _) => problem("is missing"),
        (Some(_), Some(_)) => problem("is there twice"),
        (Some(attribute), None) => match attribute.values.as_slice() {
            [value] => Ok(value),
            [] => problem("has no value"),
            _ => problem("has several values"),
        },
    }
}

/// Whether content is what a signature over signed attributes is made over. No file that anybody
/// signs is.
pub(in crate::trust) fn looks_like_attributes(content: &[u8]) -> bool {
    // The tag of a SET.
    content.first() == Some(&0x31)
        && SignedAttributes::from_der(content).is_ok_and(|attributes| {
            attributes.iter().any(|attribute| attribute.oid == rfc5911::ID_MESSAGE_DIGEST)
        })
}

type Key<'a> = (Result<&'a PublicKey, Rejected>, Option<&'a Certificate>);

/// Every key that the signer may mean: of the certificates in the signature; if none of them is
/// meant, of the policy's own.
fn keys<'a>(
    trust: &'a Trust,
    parsed: &'a Parsed<'_>,
    signer: &SignerInfo,
) -> Result<Vec<Key<'a>>, Rejected> {
    let with_key = |certificate: &'a Certificate| {
        let key = certificate.raw_key().map_err(|error| Rejected::Key {
            who: format!("the certificate of {}", certificate.subject()),
            error: error.clone(),
        });
        (key, Some(certificate))
    };
    let sent = parsed.certificates().iter().filter(|certificate| means(&signer.sid, certificate));
    let sent: Vec<_> = sent.map(with_key).collect();
    if !sent.is_empty() {
        return Ok(sent);
    }
    let listed = trust.signers.iter().filter_map(|listed| match &listed.anchor {
        Anchor::Certificate(certificate) => {
            means(&signer.sid, certificate).then(|| with_key(certificate))
        }
        Anchor::Key(key) => match &signer.sid {
            SignerIdentifier::SubjectKeyIdentifier(id)
                if id.0.as_bytes() == key.key_identifier() =>
            {
                Some((Ok(key), None))
            }
            _ => None,
        },
    });
    let listed: Vec<_> = listed.collect();
    if listed.is_empty() { Err(no_certificate(signer)) } else { Ok(listed) }
}

fn means(id: &SignerIdentifier, certificate: &Certificate) -> bool {
    match id {
        SignerIdentifier::IssuerAndSerialNumber(id) => {
            id.issuer == *certificate.issuer() && id.serial_number == *certificate.serial()
        }
        SignerIdentifier::SubjectKeyIdentifier(id) => {
            certificate.subject_key_identifier() == Some(id.0.as_bytes())
        }
    }
}

fn no_certificate(signer: &SignerInfo) -> Rejected {
    Rejected::NoCertificate(match &signer.sid {
        SignerIdentifier::IssuerAndSerialNumber(id) => {
            format!("number {} of {}", hex::encode(id.serial_number.as_bytes()), shown(&id.issuer))
        }
        SignerIdentifier::SubjectKeyIdentifier(id) => {
            format!("key identifier {}", hex::encode(id.0.as_bytes()))
        }
    })
}

fn check_signature(
    candidate: &Candidate<'_>,
    signed: &SignedBytes,
    signer: &SignerInfo,
) -> Result<(), Rejected> {
    let signature = signer.signature.as_bytes();
    let verified = match signed {
        SignedBytes::Attributes(bytes) => candidate.key.verify(bytes, candidate.scheme, signature),
        SignedBytes::Content(digest) => {
            candidate.key.verify_digest(candidate.scheme, digest, signature)
        }
    };
    verified.map_err(|error| match error {
        VerifyError::OtherAlgorithm { .. } => Rejected::AlgorithmMismatch(error.to_string()),
        VerifyError::NeedsMessage => Rejected::Attribute {
            name: "messageDigest",
            problem: "is missing, which Ed25519 needs",
        },
        VerifyError::Wrong | VerifyError::DigestLength(_) => {
            Rejected::BadSignature(candidate.name())
        }
    })
}
