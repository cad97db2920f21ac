//! Reading keys and certificates, and their names.

use std::fs;

use super::pki::{PKI, signer, trusting};
use crate::trust::{
    Anchor, AnchorError, Certificate, HashAlgorithm, PublicKey,
    certificate::CertificateError,
    key::{KeyError, KeyKind, VerifyError, generate_ed25519},
};

#[test]
fn keys_are_read_and_named() {
    let kinds = [
        ("rsa3072", KeyKind::Rsa(3072), "RSA 3072"),
        ("p256", KeyKind::P256, "ECDSA P-256"),
        ("p384", KeyKind::P384, "ECDSA P-384"),
        ("ed25519", KeyKind::Ed25519, "Ed25519"),
    ];
    for (name, kind, shown) in kinds {
        let key = PKI.key(name);
        assert_eq!(key.kind(), kind);
        assert_eq!(key.kind().to_string(), shown);
        let der =
            PKI.openssl(&["pkey", "-in", &format!("{name}.key"), "-pubout", "-outform", "DER"]);
        assert_eq!(PublicKey::read(&der), Ok(key.clone()));
        assert_eq!(key.id().as_slice(), HashAlgorithm::Sha256.of(&der));
    }
    assert_eq!(PKI.certificate("leaf").key(), Ok(&PKI.key("p256")));
}

#[test]
fn one_key_has_one_id() {
    let path = PKI.path("compressed.der");
    let path = path.to_str().expect("text");
    PKI.openssl(&[
        "ec",
        "-in",
        "p256.key",
        "-pubout",
        "-conv_form",
        "compressed",
        "-outform",
        "DER",
        "-out",
        path,
    ]);
    let compressed = fs::read(path).expect("written");
    assert!(compressed.len() < 80, "a compressed point");
    assert_eq!(PublicKey::read(&compressed), Ok(PKI.key("p256")));
}

#[test]
fn keys_that_are_not_accepted() {
    let read = |name: &str| PublicKey::read(&PKI.read(name)).expect_err(name);
    assert_eq!(read("rsa1024.pub"), KeyError::Weak("RSA with 1024 bits".into()));
    let curve = read("p521.pub");
    assert!(matches!(&curve, KeyError::Algorithm(name) if name.contains("521")), "{curve}");
    assert_eq!(read("p256.key"), KeyError::Private);
    assert!(matches!(read("leaf.crt"), KeyError::Malformed(_)));
    assert!(matches!(read("content"), KeyError::Malformed(_)));
    let make = |arguments: &[&str]| {
        let private = PKI.openssl(&[&["genpkey", "-quiet", "-algorithm"], arguments].concat());
        fs::write(PKI.path("other.key"), private).expect("written");
        let public = PKI.openssl(&["pkey", "-in", "other.key", "-pubout"]);
        PublicKey::read(&public).expect_err("not accepted")
    };
    let small = ["RSA", "-pkeyopt", "rsa_keygen_bits:2048", "-pkeyopt", "rsa_keygen_pubexp:3"];
    assert_eq!(make(&small), KeyError::Weak("RSA with the exponent 3".into()));
    assert!(matches!(make(&["ED448"]), KeyError::Algorithm(name) if name.contains("448")));
    let pss = make(&["RSA-PSS", "-pkeyopt", "rsa_keygen_bits:2048"]);
    assert!(pss.help().expect("help").contains("plain RSA"), "{pss}");
    // The point of order 1, for which anybody can sign.
    let neutral = [&hex::decode("302a300506032b6570032100").expect("hex")[..], &[1], &[0; 31]];
    assert!(matches!(PublicKey::read(&neutral.concat()), Err(KeyError::Weak(_))));
}

/// As `evmctl` works it out: the last bytes of the SHA-1 of the key's bits, which openssl makes the
/// subjectKeyIdentifier of.
#[test]
fn ids_in_ima_signatures() {
    for name in ["leaf", "rsa2048"] {
        let certificate = PKI.certificate(name);
        let named = certificate.subject_key_identifier().expect("there");
        let key = certificate.key().expect("strong");
        assert_eq!(named, key.key_identifier());
        assert_eq!(certificate.ima_key_id(), Some(key.ima_key_id()));
        assert_eq!(key.ima_key_id(), named[16..]);
        assert_eq!(trusting(&[name]).signers[0].ima_key_ids(), [key.ima_key_id()]);
    }
    let key = PKI.key("p256");
    let ids = signer("key", Anchor::Key(key.clone())).ima_key_ids();
    assert_eq!(ids, [key.ima_key_id()]);
    // Without one.
    assert_eq!(PKI.certificate("email").ima_key_id(), Some(key.ima_key_id()));
}

#[test]
fn digests_from_elsewhere() {
    let digest = HashAlgorithm::Sha256.of(super::pki::CONTENT);
    for name in ["rsa2048", "p256", "p384"] {
        let key = format!("{name}.key");
        let signature = PKI.openssl(&["dgst", "-sha256", "-sign", &key, "content"]);
        let public = PKI.key(name);
        let verified = public.verify_prehashed(HashAlgorithm::Sha256, &digest, &signature);
        assert_eq!(verified, Ok(()), "{name}");
        let mut other = digest.clone();
        other[0] ^= 1;
        let verified = public.verify_prehashed(HashAlgorithm::Sha256, &other, &signature);
        assert_eq!(verified, Err(VerifyError::Wrong), "{name}");
        let verified = public.verify_prehashed(HashAlgorithm::Sha384, &digest, &signature);
        assert_eq!(verified, Err(VerifyError::DigestLength(32)), "{name}");
    }
    let verified = PKI.key("ed25519").verify_prehashed(HashAlgorithm::Sha256, &digest, &[0; 64]);
    assert_eq!(verified, Err(VerifyError::NeedsMessage));
}

#[test]
fn certificates_that_are_none() {
    let several = [PKI.read("leaf.crt"), PKI.read("inter.crt")].concat();
    assert_eq!(Certificate::read(&several).expect_err("two"), CertificateError::Several(2));
    let key = Certificate::read(&PKI.read("p256.pub")).expect_err("a key");
    assert!(key.help().expect("help").contains("CERTIFICATE"), "{key}");
    let weak = Anchor::certificate(PKI.certificate("weak")).expect_err("weak");
    assert!(weak.to_string().contains("CN=Release"), "{weak}");
    assert!(weak.to_string().contains("1024"), "{weak}");
}

#[test]
fn anchors_are_keys_or_certificates() {
    let der = PKI.openssl(&["pkey", "-in", "p256.key", "-pubout", "-outform", "DER"]);
    for bytes in [PKI.read("p256.pub"), der] {
        let anchor = Anchor::read(&bytes).expect("a key");
        assert!(matches!(&anchor, Anchor::Key(key) if *key == PKI.key("p256")));
    }
    for bytes in [PKI.read("leaf.crt"), PKI.certificate("leaf").der().to_vec()] {
        let anchor = Anchor::read(&bytes).expect("a certificate");
        assert!(matches!(&anchor, Anchor::Certificate(_)));
        assert_eq!(anchor.key(), Some(&PKI.key("p256")));
    }
    let refused = |bytes: &[u8]| {
        let error = Anchor::read(bytes).expect_err("refused");
        assert!(error.help().is_some(), "{error}");
        error
    };
    assert!(matches!(refused(PKI.certificate("weak").der()), AnchorError::Certificate(_)));
    let weak = ["pkey", "-in", "rsa1024.key", "-pubout", "-outform", "DER"];
    assert!(matches!(refused(&PKI.openssl(&weak)), AnchorError::Key(KeyError::Weak(_))));
    assert_eq!(refused(&PKI.read("p256.key")), AnchorError::Key(KeyError::Private));
    assert_eq!(refused(b"sha256:00"), AnchorError::Neither);
    assert_eq!(refused(b""), AnchorError::Neither);
}

#[test]
fn new_keys_are_openssls_too() {
    let generated = generate_ed25519().expect("random numbers");
    fs::write(PKI.path("new.key"), generated.private.as_bytes()).expect("written");
    let public = PKI.openssl(&["pkey", "-in", "new.key", "-pubout"]);
    assert_eq!(generated.public.as_bytes(), public);
    let again = generate_ed25519().expect("random numbers");
    assert_ne!(generated.public, again.public);
}
