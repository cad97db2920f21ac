//! What `openssl` signs is accepted, whatever the algorithm and the form.

use std::{cell::RefCell, io};

use jiff::Timestamp;

use super::pki::{CONTENT, PKI, trusting, trusting_key};
use crate::trust::{HashAlgorithm, Verified, Warning, cms, raw};

fn only(signed: cms::Signed) -> Verified {
    let [verified] = <[_; 1]>::try_from(signed.signers).expect("one signer");
    verified
}

const PSS: [&str; 4] = ["-keyopt", "rsa_padding_mode:pss", "-keyopt", "rsa_pss_saltlen:digest"];

#[test]
fn every_algorithm_by_chain_and_directly() {
    let cases: &[(&str, &[&str], &str)] = &[
        ("rsa2048", &["-md", "sha256"], "RSA 2048 SHA-256"),
        ("rsa3072", &["-md", "sha512"], "RSA 3072 SHA-512"),
        ("rsa3072", &[&["-md", "sha256"], &PSS[..]].concat(), "RSA-PSS 3072 SHA-256"),
        ("rsa2048", &[&["-md", "sha384"], &PSS[..]].concat(), "RSA-PSS 2048 SHA-384"),
        // The most salt that there is room for, as openssl makes it if nobody says anything.
        ("rsa2048", &["-md", "sha256", "-keyopt", "rsa_padding_mode:pss"], "RSA-PSS 2048 SHA-256"),
        ("leaf", &["-md", "sha256"], "ECDSA P-256 SHA-256"),
        ("leaf", &["-md", "sha512"], "ECDSA P-256 SHA-512"),
        ("p384", &["-md", "sha256"], "ECDSA P-384 SHA-256"),
        ("p384", &["-md", "sha384"], "ECDSA P-384 SHA-384"),
    ];
    for (name, arguments, algorithm) in cases {
        for attached in [false, true] {
            let mut arguments = arguments.to_vec();
            arguments.extend(attached.then_some("-nodetach"));
            let signature = PKI.sign(name, &arguments);
            for trust in [trusting(&["root"]), trusting(&["inter"]), trusting(&[*name])] {
                let content = (!attached).then_some(CONTENT);
                let signed = cms::verify(&trust, content, &signature, None);
                let signed = signed.unwrap_or_else(|reason| panic!("{arguments:?}: {reason}"));
                assert_eq!(signed.content.as_deref(), attached.then_some(CONTENT));
                let verified = only(signed);
                assert_eq!(verified.algorithm, *algorithm);
                assert_eq!(verified.name, trust.signers[0].name);
                assert_eq!(verified.warnings, []);
            }
        }
    }
}

#[test]
fn says_how_it_knows() {
    let trust = trusting(&["root"]);
    let signed = cms::verify(&trust, Some(CONTENT), &PKI.sign("leaf", &[]), None);
    let verified = only(signed.expect("right"));
    let subjects: Vec<_> = verified.chain.iter().map(|one| one.subject.as_str()).collect();
    let expected = ["CN=Release,OU=Firmware,O=Acme", "CN=inter,O=Acme", "CN=root,O=Acme"];
    assert_eq!(subjects, expected);
    assert_eq!(verified.key_id, *PKI.key("p256").id());
    let json = serde_json::to_value(&verified).expect("JSON");
    assert_eq!(json["signer"], "root");
    assert_eq!(json["slot"], "maker");
    assert_eq!(json["kinds"], serde_json::json!(["executable"]));
    assert_eq!(json["chain"][0]["not_after"], "2040-01-01T00:00:00Z");
    let printed = PKI.openssl(&["x509", "-in", "leaf.crt", "-noout", "-fingerprint", "-sha256"]);
    let printed = String::from_utf8(printed).expect("text").replace(':', "").to_lowercase();
    assert!(printed.trim_end().ends_with(&verified.chain[0].fingerprint), "{printed}");
}

#[test]
fn a_listed_key_needs_no_certificate_to_be_trusted() {
    let signed = cms::verify(&trusting_key("p256"), Some(CONTENT), &PKI.sign("leaf", &[]), None);
    assert_eq!(only(signed.expect("right")).chain, []);
    // Not even in the signature, if that names the key.
    let bare = PKI.sign("leaf", &["-nocerts", "-keyid"]);
    let signed = cms::verify(&trusting_key("p256"), Some(CONTENT), &bare, None);
    only(signed.expect("right"));
}

#[test]
fn as_the_kernel_signs_modules() {
    for arguments in [&["-nocerts", "-noattr"][..], &["-nocerts", "-noattr", "-keyid"]] {
        for name in ["rsa2048", "leaf"] {
            let signature = PKI.sign(name, arguments);
            let trust = trusting(&["p384", name]);
            let verified =
                only(cms::verify(&trust, Some(CONTENT), &signature, None).expect("right"));
            assert_eq!(verified.signer, 1);
            assert_eq!(verified.chain.len(), 1);
        }
    }
    // PKCS#7 as older tools write it.
    let signature = PKI.openssl(&[
        "smime",
        "-sign",
        "-binary",
        "-noattr",
        "-nocerts",
        "-md",
        "sha256",
        "-in",
        "content",
        "-signer",
        "rsa2048.crt",
        "-inkey",
        "rsa2048.key",
        "-outform",
        "DER",
    ]);
    only(cms::verify(&trusting(&["rsa2048"]), Some(CONTENT), &signature, None).expect("right"));
}

#[test]
fn pem_is_read_as_well() {
    for label in ["CMS", "PKCS7"] {
        let pem = PKI.sign("leaf", &["-outform", "PEM"]);
        let pem = String::from_utf8(pem).expect("text").replace("CMS", label);
        let signed = cms::verify(&trusting(&["root"]), Some(CONTENT), pem.as_bytes(), None);
        only(signed.expect("right"));
        for wrong in
            [format!("{pem}x"), pem.replace(label, "CERTIFICATE"), pem.replacen('M', "!", 5)]
        {
            let reason = cms::verify(&trusting(&["root"]), Some(CONTENT), wrong.as_bytes(), None);
            assert_eq!(reason.map_err(|reason| reason.word()), Err("bad-pem"), "{wrong}");
        }
    }
}

#[test]
fn large_content_is_hashed_by_others_and_once() {
    let asked = RefCell::new(Vec::new());
    let hasher = |hash: HashAlgorithm| {
        asked.borrow_mut().push(hash);
        Ok(hash.of(CONTENT))
    };
    let both = PKI.sign("leaf", &["-signer", "rsa2048.crt", "-inkey", "rsa2048.key"]);
    let signed = cms::verify_hashed(&trusting(&["root"]), &hasher, &both, None).expect("right");
    assert_eq!(signed.signers.len(), 2);
    assert_eq!(*asked.borrow(), [HashAlgorithm::Sha256]);

    let attached = PKI.sign("leaf", &["-nodetach", "-md", "sha512"]);
    cms::verify_hashed(&trusting(&["root"]), &hasher, &attached, None).expect("right");
    let other = |hash: HashAlgorithm| Ok(hash.of(b"other"));
    let reason = cms::verify_hashed(&trusting(&["root"]), &other, &attached, None);
    assert_eq!(reason.map_err(|reason| reason.word()), Err("content-differs"));
    let fails = |_| Err(io::Error::other("disk"));
    let reason = cms::verify_hashed(&trusting(&["root"]), &fails, &both, None);
    assert_eq!(reason.map_err(|reason| reason.word()), Err("unreadable"));
}

#[test]
fn bare_ed25519() {
    let pkeyutl = ["pkeyutl", "-sign", "-rawin", "-inkey", "ed25519.key", "-in", "content"];
    let signature = PKI.openssl(&pkeyutl);
    for trust in [trusting_key("ed25519"), trusting(&["p384", "ed25519"])] {
        let verified = raw::verify(&trust, CONTENT, &signature, None).expect("right");
        assert_eq!(verified.algorithm, "Ed25519");
    }
    let word = |trust, content, signature: &[u8]| {
        raw::verify(&trust, content, signature, None).map_err(|reason| reason.word())
    };
    assert_eq!(word(trusting_key("ed25519"), b"other", &signature), Err("bad-signature"));
    assert_eq!(word(trusting_key("ed25519"), CONTENT, &signature[1..]), Err("signature-length"));
    assert_eq!(word(trusting_key("p256"), CONTENT, &signature), Err("untrusted-signer"));
    let mut revoked = trusting_key("ed25519");
    revoked.revoked.keys.insert(*PKI.key("ed25519").id());
    assert_eq!(word(revoked, CONTENT, &signature), Err("revoked"));
}

#[test]
fn expiry_warns_and_no_more() {
    let now: Timestamp = "2030-06-01T00:00:00Z".parse().expect("a time");
    let warned = |name: &str, now| {
        let signature = PKI.sign(name, &[]);
        let signed = cms::verify(&trusting(&["root"]), Some(CONTENT), &signature, now);
        only(signed.expect("right")).warnings
    };
    assert_eq!(warned("expired", None), []);
    assert_eq!(warned("leaf", Some(now)), []);
    let what = "the certificate of CN=Release,OU=Firmware,O=Acme".to_owned();
    let since = "2022-01-01T00:00:00Z".parse().expect("a time");
    let expired = Warning::Expired { what: what.clone(), since };
    let shown = expired.to_string();
    assert!(shown.ends_with("Acme expired at 2022-01-01T00:00:00Z"), "{shown}");
    assert_eq!(warned("expired", Some(now)), [expired]);
    let until = "2038-01-01T00:00:00Z".parse().expect("a time");
    assert_eq!(warned("future", Some(now)), [Warning::NotYetValid { what, until }]);

    let mut trust = trusting_key("p256");
    trust.signers[0].valid_until = Some(since);
    let signed = cms::verify(&trust, Some(CONTENT), &PKI.sign("leaf", &[]), Some(now));
    let expected = Warning::Expired { what: "the signer p256".into(), since };
    assert_eq!(only(signed.expect("right")).warnings, [expected]);
}
