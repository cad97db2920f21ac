//! Whatever is done to a signature, it is refused, and nothing panics.

use std::time::{Duration, Instant};

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
        for mask in [0x01, 0xff] {
            let mut changed = signature.clone();
            changed[position] ^= mask;
            if good(&trust, &changed) {
                harmless.push((position, changed[position]));
            }
        }
    }
    assert_eq!(harmless, [], "of {} bytes", signature.len());
}

/// Pieces cut out, doubled and overwritten, the same ones every time.
#[test]
fn pieces_moved_about() {
    let trust = trusting(&["root"]);
    let good = [PKI.sign("leaf", &[]), PKI.sign("rsa2048", &["-keyid", "-nodetach"])];
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = |below: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        usize::try_from(state >> 33).unwrap_or_default() % below
    };
    for round in 0..4000 {
        let signature = &good[round % good.len()];
        let mut changed = signature.clone();
        for _ in 0..=random(3) {
            let from = random(changed.len());
            let length = random(64.min(changed.len() - from)) + 1;
            let piece = changed[from..from + length].to_vec();
            let to = random(changed.len() + 1);
            match random(3) {
                0 => drop(changed.drain(from..from + length)),
                1 => drop(changed.splice(to..to, piece)),
                _ => drop(changed.splice(to..(to + length).min(changed.len()), piece)),
            }
        }
        // So that the inside is looked at.
        if let (Ok(length), true) =
            (u16::try_from(changed.len().saturating_sub(4)), changed.len() > 4)
        {
            changed[..2].copy_from_slice(&[0x30, 0x82]);
            changed[2..4].copy_from_slice(&length.to_be_bytes());
        }
        assert!(changed == *signature || !self::good(&trust, &changed), "round {round}");
    }
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

/// Thirty CAs of one name, each of which could have signed any other: more paths than can be tried.
#[test]
fn a_maze_of_certificates_takes_no_time() {
    let mut maze = PKI.read("heap-by-root.crt");
    for number in 0..cms::MAX_CERTIFICATES - 2 {
        maze.extend(PKI.openssl(&[
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
            "-nodes",
            "-keyout",
            &format!("maze{number}.key"),
            "-subj",
            "/O=Acme/CN=heap",
            "-days",
            "365",
            "-addext",
            "keyUsage=keyCertSign",
        ]));
    }
    std::fs::write(PKI.path("maze"), maze).expect("written");
    let signature = PKI.sign("below-heap", &["-certfile", "maze"]);
    let began = Instant::now();
    let reason = cms::verify(&trusting(&["root"]), Some(CONTENT), &signature, None);
    let took = began.elapsed();
    assert!(took < Duration::from_secs(5), "{took:?}");
    assert_eq!(reason.map_err(|reason| reason.word()), Err("broken-chain"));
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
