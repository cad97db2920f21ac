//! Who is trusted by whom, and who is not.

use super::pki::{CONTENT, PKI, signer, trusting, trusting_key};
use crate::trust::{Anchor, Rejected, Trust, certificate::other_form, cms};

fn judged(trust: &Trust, name: &str, arguments: &[&str]) -> Result<(), Rejected> {
    cms::verify(trust, Some(CONTENT), &PKI.sign(name, arguments), None).map(drop)
}

/// The word, and that the message and the help name what they should.
fn refused(trust: &Trust, name: &str, arguments: &[&str], word: &str, names: &str) {
    let reason = judged(trust, name, arguments).expect_err(name);
    let text = format!("{reason}; {}", reason.help().expect("help"));
    assert_eq!(reason.word(), word, "{name}: {text}");
    assert!(text.contains(names), "{name}: {text}");
}

#[test]
fn chains_that_are_right() {
    for name in ["leaf", "plain"] {
        judged(&trusting(&["root"]), name, &[]).expect(name);
    }
    judged(&trusting(&["root"]), "below-named", &[]).expect("inside its constraints");
    for name in ["below-pss", "below-rsa"] {
        judged(&trusting(&["rsa-root"]), name, &[]).expect(name);
    }
    // A root that is sent along changes nothing.
    let bundle = PKI.bundle(&["inter", "root"]);
    judged(&trusting(&["root"]), "leaf", &["-certfile", &bundle]).expect("right");
    // Nor does a false one of the same name.
    let bundle = PKI.bundle(&["false-inter", "false-root", "inter"]);
    judged(&trusting(&["false-root", "root"]), "leaf", &["-certfile", &bundle]).expect("right");
}

#[test]
fn chains_that_lead_nowhere() {
    let trust = trusting(&["root"]);
    refused(&trusting(&["rsa-root"]), "leaf", &[], "untrusted-signer", "CN=Release");
    refused(&trust, "leaf", &["-nocerts"], "untrusted-signer", "CN=inter");
    refused(&Trust::default(), "leaf", &[], "untrusted-signer", "CN=Release");
    // No certificate between, only the leaf's own.
    let bare = PKI.openssl(&[
        "cms", "-sign", "-binary", "-outform", "DER", "-in", "content", "-signer", "leaf.crt",
        "-inkey", "p256.key",
    ]);
    let reason = cms::verify(&trust, Some(CONTENT), &bare, None).expect_err("no way");
    assert_eq!(reason.word(), "untrusted-signer");
    cms::verify(&trusting(&["inter"]), Some(CONTENT), &bare, None).expect("a listed CA");
    // The right names, by somebody else's keys.
    refused(&trust, "false-leaf", &[], "broken-chain", "CN=root");
    let bundle = PKI.bundle(&["false-inter", "false-root"]);
    refused(&trust, "false-leaf", &["-certfile", &bundle], "broken-chain", "CN=root");
}

#[test]
fn certificates_of_version_1() {
    PKI.openssl(&["req", "-new", "-key", "p256.key", "-subj", "/CN=old", "-out", "old.csr"]);
    PKI.openssl(&[
        "x509",
        "-req",
        "-in",
        "old.csr",
        "-CA",
        "inter.crt",
        "-CAkey",
        "inter.key",
        "-days",
        "9",
        "-out",
        "old.crt",
    ]);
    let signature = PKI.openssl(&[
        "cms", "-sign", "-binary", "-outform", "DER", "-in", "content", "-signer", "old.crt",
        "-inkey", "p256.key",
    ]);
    let reason = cms::verify(&trusting(&["inter"]), Some(CONTENT), &signature, None);
    let reason = reason.expect_err("no extensions");
    assert_eq!(reason.word(), "broken-chain");
    assert!(reason.to_string().contains("version 3"), "{reason}");
    // What is listed itself may be of any.
    cms::verify(&trusting(&["old"]), Some(CONTENT), &signature, None).expect("listed");
}

#[test]
fn certificates_that_are_not_for_this() {
    let trust = trusting(&["root"]);
    refused(&trust, "email", &[], "wrong-usage", "extendedKeyUsage");
    refused(&trust, "encipher", &[], "wrong-usage", "keyUsage");
    refused(&trust, "signing-ca", &[], "wrong-usage", "CN=signing-ca");
    refused(&trust, "critical", &[], "critical-extension", "1.2.3.4");
    refused(&trust, "weak", &[], "weak-key", "1024");
    refused(&trust, "curve", &["-md", "sha512"], "unknown-algorithm", "521");
    refused(&trust, "sha1", &["-md", "sha256"], "weak-hash", "SHA-1");
    // Also when they are listed themselves.
    refused(&trusting(&["email"]), "email", &[], "wrong-usage", "codeSigning");
    refused(&trusting(&["encipher"]), "encipher", &[], "wrong-usage", "digitalSignature");
    refused(&trusting(&["signing-ca"]), "signing-ca", &[], "wrong-usage", "digitalSignature");
    refused(&trusting(&["critical"]), "critical", &[], "critical-extension", "1.2.3.4");
}

#[test]
fn issuers_that_may_not() {
    let trust = trusting(&["root"]);
    let bundle = PKI.bundle(&["deep", "inter"]);
    refused(&trust, "below-deep", &["-certfile", &bundle], "path-length", "CN=inter");
    refused(&trust, "below-no-ca", &[], "not-a-ca", "basicConstraints");
    refused(&trust, "below-no-cert-sign", &[], "not-a-ca", "keyUsage");
    refused(&trust, "outside-named", &[], "name-constraints", "CN=named");
    // The library refuses every one on directoryName, also where it is kept to.
    refused(&trust, "below-directory", &[], "name-constraints", "directoryName");
    refused(&trust, "below-critical-ca", &[], "critical-extension", "CN=critical-ca");
    refused(&trust, "below-weak-ca", &[], "weak-key", "CN=weak-ca");
    refused(&trust, "below-server-ca", &[], "wrong-usage", "CN=server-ca");
    refused(&trust, "never", &[], "never-valid", "CN=Release");
    // The anchor's own constraints count as well.
    refused(&trusting(&["inter"]), "below-deep", &[], "path-length", "CN=inter");
    refused(&trusting(&["no-ca"]), "below-no-ca", &[], "not-a-ca", "CN=no-ca");
    refused(&trusting(&["critical-ca"]), "below-critical-ca", &[], "critical-extension", "1.2.3.4");
    refused(&trusting(&["named"]), "outside-named", &[], "name-constraints", "CN=named");
    // A key is no CA, whoever signs with it.
    refused(&trusting_key("inter"), "leaf", &[], "untrusted-signer", "CN=Release");
}

#[test]
fn subjects_that_were_not_asked_for() {
    let mut trust = trusting(&["root"]);
    let wanted = &mut trust.signers[0].requirements;
    wanted.organization = Some("Acme".into());
    wanted.organizational_unit = Some("Firmware".into());
    wanted.common_name = Some("Release".into());
    judged(&trust, "leaf", &[]).expect("as asked");
    trust.signers[0].requirements.organizational_unit = Some("Firm".into());
    refused(&trust, "leaf", &[], "wrong-subject", "OU");
    // Another signer of the policy may ask for less.
    trust.signers.extend(trusting(&["inter"]).signers);
    judged(&trust, "leaf", &[]).expect("by the second");

    let mut trust = trusting(&["root"]);
    trust.signers[0].requirements.purpose = Some(const_oid::db::rfc5912::ID_KP_TIME_STAMPING);
    refused(&trust, "leaf", &[], "wrong-usage", "timeStamping");
    trust.signers[0].requirements.purpose = Some(const_oid::db::rfc5912::ID_KP_CODE_SIGNING);
    refused(&trust, "plain", &[], "wrong-usage", "codeSigning");
}

#[test]
fn revoked_anywhere_is_revoked() {
    for name in ["leaf", "inter", "root"] {
        let mut trust = trusting(&["root"]);
        let certificate = PKI.certificate(name);
        trust.revoked.certificates.insert(*certificate.fingerprint());
        refused(&trust, "leaf", &[], "revoked", &hex::encode(certificate.fingerprint()));
        let mut trust = trusting(&["root"]);
        trust.revoked.keys.insert(*certificate.key().expect("strong").id());
        refused(&trust, "leaf", &[], "revoked", "the key");
    }
    let mut trust = trusting(&["leaf"]);
    trust.revoked.certificates.insert(*PKI.certificate("leaf").fingerprint());
    refused(&trust, "leaf", &[], "revoked", "CN=Release");

    // A signer that is taken back, whoever else vouches.
    let mut trust = trusting(&["leaf", "root"]);
    trust.signers.push(signer("key", Anchor::Key(PKI.key("p256"))));
    for name in ["leaf", "root", "key"] {
        trust.revoked.signers = [name.to_owned()].into();
        refused(&trust, "leaf", &[], "revoked", name);
    }
    trust.revoked.signers = ["other".to_owned()].into();
    judged(&trust, "leaf", &[]).expect("nobody of these");
}

/// Anybody can give a certificate that ECDSA signed another fingerprint, and it stays valid.
#[test]
fn revoked_in_the_other_form_too() {
    let certificate = PKI.certificate("leaf");
    let other = PKI.path("other-form.der");
    std::fs::write(&other, other_form(certificate.der())).expect("written");
    PKI.openssl(&["x509", "-inform", "DER", "-in", "other-form.der", "-out", "other-form.crt"]);
    assert_ne!(PKI.certificate("other-form").fingerprint(), certificate.fingerprint());
    let signature = PKI.openssl(&[
        "cms",
        "-sign",
        "-binary",
        "-outform",
        "DER",
        "-in",
        "content",
        "-signer",
        "other-form.crt",
        "-inkey",
        "p256.key",
        "-certfile",
        "inter.crt",
    ]);
    let mut trust = trusting(&["root"]);
    cms::verify(&trust, Some(CONTENT), &signature, None).expect("the control");
    trust.revoked.certificates.insert(*certificate.fingerprint());
    let reason = cms::verify(&trust, Some(CONTENT), &signature, None).expect_err("revoked");
    assert_eq!(reason.word(), "revoked");
}

#[test]
fn one_bad_signer_among_several_is_enough() {
    let both = ["-signer", "email.crt", "-inkey", "p256.key"];
    refused(&trusting(&["root"]), "rsa2048", &both, "wrong-usage", "of 2");
    let both = ["-signer", "below-pss.crt", "-inkey", "p256.key"];
    refused(&trusting(&["root"]), "rsa2048", &both, "untrusted-signer", "of 2");
    judged(&trusting(&["root", "rsa-root"]), "rsa2048", &both).expect("both are trusted");
}
