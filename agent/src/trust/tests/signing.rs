//! What we sign, `openssl` accepts, and so do we.

use std::fs;

use super::pki::{CONTENT, PKI, trusting, trusting_key};
use crate::trust::{
    cms, raw,
    sign::{self, Content, PrivateKey, SignError},
};

#[test]
fn openssl_accepts_what_we_sign() {
    for (name, key) in [("rsa2048", "rsa2048"), ("leaf", "p256"), ("p384", "p384")] {
        let key = PKI.private_key(key);
        let between = [PKI.certificate("inter")];
        for place in [Content::Detached, Content::Attached] {
            let signature = sign::cms(&key, &PKI.certificate(name), &between, CONTENT, place);
            let signature = signature.expect("signed");
            let content = (place == Content::Detached).then_some(CONTENT);
            let signed = cms::verify(&trusting(&["root"]), content, &signature, None);
            assert_eq!(signed.expect("right").signers[0].chain.len(), 3);
            let path = PKI.path(&format!("{name}.{place:?}"));
            fs::write(&path, &signature).expect("written");
            let mut arguments = vec!["-CAfile", "root.crt"];
            if place == Content::Detached {
                arguments.extend(["-content", "content"]);
            }
            assert!(PKI.accepts(&path, &arguments), "{name} {place:?}");
            fs::write(&path, [&signature[..signature.len() - 1], &[0]].concat()).expect("written");
            assert!(!PKI.accepts(&path, &arguments), "the control: {name} {place:?}");
        }
    }
}

/// openssl 3.0 cannot sign or verify these.
#[test]
fn ed25519() {
    let key = PKI.private_key("ed25519");
    let certificate = PKI.certificate("ed25519");
    let between = [PKI.certificate("inter")];
    let signature = sign::cms(&key, &certificate, &between, CONTENT, Content::Detached);
    let signed =
        cms::verify(&trusting(&["root"]), Some(CONTENT), &signature.expect("signed"), None);
    assert_eq!(signed.expect("right").signers[0].algorithm, "Ed25519");

    let bare = sign::raw(&key, CONTENT).expect("signed");
    raw::verify(&trusting_key("ed25519"), CONTENT, &bare, None).expect("right");
    fs::write(PKI.path("bare"), bare).expect("written");
    PKI.openssl(&[
        "pkeyutl",
        "-verify",
        "-rawin",
        "-pubin",
        "-inkey",
        "ed25519.pub",
        "-in",
        "content",
        "-sigfile",
        "bare",
    ]);
}

#[test]
fn says_what_is_wrong_with_a_key() {
    let encrypted = PKI.openssl(&["pkey", "-in", "p256.key", "-aes128", "-passout", "pass:x"]);
    let error = PrivateKey::read(&encrypted).err().expect("encrypted");
    assert_eq!(error, SignError::Encrypted);
    assert!(error.help().expect("help").contains("openssl cms -sign"));
    let old = PKI.openssl(&["pkey", "-in", "p256.key", "-traditional"]);
    let error = PrivateKey::read(&old).err().expect("another form");
    assert_eq!(error, SignError::OtherForm("EC PRIVATE KEY".into()));
    assert!(error.help().expect("help").contains("pkcs8"));
    let error = PrivateKey::read(&PKI.read("rsa1024.key")).err().expect("weak");
    assert!(error.to_string().contains("1024"), "{error}");
    let error = PrivateKey::read(&PKI.read("p521.key")).err().expect("unknown");
    assert!(error.to_string().contains("521"), "{error}");
    assert!(PrivateKey::read(b"nothing").is_err());

    let key = PKI.private_key("p256");
    let error = sign::raw(&key, CONTENT).expect_err("not Ed25519");
    assert!(error.to_string().contains("P-256"), "{error}");
    let other = PKI.certificate("p384");
    let error = sign::cms(&key, &other, &[], CONTENT, Content::Detached).expect_err("another's");
    assert!(error.to_string().contains("CN=Release"), "{error}");
}
