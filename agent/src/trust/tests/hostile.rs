//! Whatever is done to a signature, it is refused, and nothing panics.

use super::pki::{CONTENT, PKI, trusting, trusting_key};
use crate::trust::{Certificate, PublicKey, Trust, cms, sign};

fn good(trust: &Trust, signature: &[u8]) -> bool {
    cms::verify(trust, Some(CONTENT), signature, None).is_ok()
}

#[test]
fn cut_anywhere() {
    let trust = trusting(&["root"]);
    let signature = PKI.sign("leaf", &[]);
    for length in 0..signature.len() {
        let reason = cms::verify(&trust, Some(CONTENT), &signature[..length], None);
        let reason = reason.expect_err("cut");
        assert_eq!(reason.word(), "truncated", "at {length}: {reason}");
    }
}

/// With the outer length mended, so that the parser gets to see it.
#[test]
fn cut_anywhere_and_mended() {
    let trust = trusting(&["root"]);
    let signature = PKI.sign("leaf", &[]);
    assert_eq!(signature[1], 0x82, "a length in two bytes");
    for length in 4..signature.len() {
        let mut cut = signature[..length].to_vec();
        let inside = u16::try_from(length - 4).expect("short");
        cut[2..4].copy_from_slice(&inside.to_be_bytes());
        assert!(!good(&trust, &cut), "at {length}");
    }
}

#[test]
fn any_byte_changed() {
    let trust = trusting(&["inter"]);
    // The leaf's certificate alone is in it, so that everything is verified.
    let signature = PKI.openssl(&[
        "cms",
        "-sign",
        "-binary",
        "-outform",
        "DER",
        "-in",
        "content",
        "-signer",
        "rsa2048.crt",
        "-inkey",
        "rsa2048.key",
    ]);
    assert!(good(&trust, &signature));
    let mut harmless = Vec::new();
    for position in 0..signature.len() {
        for mask in [0x01, 0x80, 0xff] {
            let mut changed = signature.clone();
            changed[position] ^= mask;
            if good(&trust, &changed) {
                harmless.push((position, changed[position]));
            }
        }
    }
    assert_eq!(harmless, [], "of {} bytes", signature.len());
}

#[test]
fn any_byte_of_an_attached_content_changed() {
    let trust = trusting_key("ed25519");
    let key = PKI.private_key("ed25519");
    let certificate = PKI.certificate("ed25519");
    let attached = sign::Content::Attached;
    let signature = sign::cms(&key, &certificate, &[], CONTENT, attached).expect("signed");
    let at = signature.windows(CONTENT.len()).position(|window| window == CONTENT);
    let at = at.expect("attached");
    assert!(cms::verify(&trust, None, &signature, None).is_ok());
    for position in at..at + CONTENT.len() {
        let mut changed = signature.clone();
        changed[position] ^= 1;
        let reason = cms::verify(&trust, None, &changed, None).expect_err("changed");
        assert_eq!(reason.word(), "content-changed");
    }
}

#[test]
fn damaged_keys_and_certificates_are_errors() {
    for name in ["rsa2048", "p256", "ed25519"] {
        let der =
            PKI.openssl(&["pkey", "-in", &format!("{name}.key"), "-pubout", "-outform", "DER"]);
        for length in 0..der.len() {
            assert!(PublicKey::read(&der[..length]).is_err(), "{name} at {length}");
        }
        for position in 0..der.len() {
            let mut changed = der.clone();
            changed[position] ^= 0x55;
            // It may well be another key; it must not be the same.
            if let Ok(key) = PublicKey::read(&changed) {
                assert_ne!(key, PKI.key(name), "{position}");
            }
        }
    }
    let certificate = PKI.certificate("leaf");
    let der = certificate.der();
    for length in 0..der.len() {
        assert!(Certificate::read(&der[..length]).is_err(), "at {length}");
    }
    for position in 0..der.len() {
        let mut changed = der.to_vec();
        changed[position] ^= 0x55;
        if let Ok(other) = Certificate::read(&changed) {
            assert_ne!(other.fingerprint(), certificate.fingerprint());
        }
    }
}
