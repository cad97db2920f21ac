//! Signatures that no honest tool makes, taken apart and put together again.

use cms::{content_info::CmsVersion, signed_data::SignerInfo};
use const_oid::{
    ObjectIdentifier,
    db::{rfc5911, rfc5912},
};
use der::{
    Any, AnyRef, Decode, Encode, Tag,
    asn1::{OctetString, SetOfVec},
};
use spki::AlgorithmIdentifierOwned;
use x509_cert::attr::Attribute;

use super::pki::{CONTENT, PKI, trusting};
use crate::trust::{
    self, HashAlgorithm, Rejected,
    cms::signed_data::{ContentInfo, SignedData},
};

fn judged(content: Option<&[u8]>, signature: &[u8]) -> Result<(), Rejected> {
    trust::cms::verify(&trusting(&["root"]), content, signature, None).map(drop)
}

fn refused(signature: &[u8], word: &str, names: &str) {
    refused_over(Some(CONTENT), signature, word, names);
}

fn refused_over(content: Option<&[u8]>, signature: &[u8], word: &str, names: &str) {
    let reason = judged(content, signature).expect_err(word);
    assert_eq!(reason.word(), word, "{reason}");
    assert!(reason.to_string().contains(names), "{reason}");
    assert!(reason.help().is_some(), "{reason}");
}

fn parts(signature: &[u8]) -> SignedData<'_> {
    let outer = ContentInfo::from_der(signature).expect("CMS");
    outer.content.decode_as().expect("signed data")
}

fn whole(data: &SignedData<'_>) -> Vec<u8> {
    let data = data.to_der().expect("DER");
    let content = AnyRef::from_der(&data).expect("DER");
    let content_type = rfc5911::ID_SIGNED_DATA;
    ContentInfo { content_type, content }.to_der().expect("DER")
}

/// A good signature with the outside changed.
fn changed(arguments: &[&str], change: impl FnOnce(&mut SignedData<'_>)) -> Vec<u8> {
    let signature = PKI.sign("leaf", arguments);
    let mut data = parts(&signature);
    change(&mut data);
    whole(&data)
}

/// A good signature with the signer changed.
fn signer_changed(arguments: &[&str], change: impl FnOnce(&mut SignerInfo)) -> Vec<u8> {
    changed(arguments, |data| {
        let mut signer = first(data);
        change(&mut signer);
        data.signer_infos = signers([signer]);
    })
}

fn first(data: &SignedData<'_>) -> SignerInfo {
    data.signer_infos.as_slice()[0].decode_as().expect("a signer")
}

/// Lives as long as the test.
fn signers(all: impl IntoIterator<Item = SignerInfo>) -> SetOfVec<AnyRef<'static>> {
    let leaked = |signer: SignerInfo| -> &'static [u8] { signer.to_der().expect("DER").leak() };
    let all = all.into_iter().map(|signer| AnyRef::from_der(leaked(signer)).expect("DER"));
    SetOfVec::try_from(Vec::from_iter(all)).expect("DER")
}

/// A signature over these signed attributes.
fn with_attributes(change: impl FnOnce(&mut Vec<Attribute>)) -> Vec<u8> {
    signer_changed(&[], |signer| {
        let mut attributes = signer.signed_attrs.clone().expect("there").into_vec();
        change(&mut attributes);
        let attributes = SetOfVec::try_from(attributes).expect("DER");
        let bytes = attributes.to_der().expect("DER");
        let (algorithm, signature) = PKI.private_key("p256").sign(&bytes).expect("signed");
        signer.signed_attrs = Some(attributes);
        signer.signature_algorithm = algorithm;
        signer.signature = OctetString::new(signature).expect("DER");
    })
}

fn algorithm(oid: ObjectIdentifier) -> AlgorithmIdentifierOwned {
    AlgorithmIdentifierOwned { oid, parameters: None }
}

#[test]
fn the_form_is_wrong() {
    let good = PKI.sign("leaf", &[]);
    judged(Some(CONTENT), &good).expect("the control");
    refused(&[], "truncated", "empty");
    refused(b"MIME-Version: 1.0", "not-der", "begin");
    refused(&good[..good.len() - 1], "truncated", "1 bytes");
    refused(&[&good[..], b"\n"].concat(), "trailing-data", "1 bytes");
    refused(&[&good[..], &good].concat(), "trailing-data", "after the end");
    refused(&PKI.sign("leaf", &["-stream", "-nodetach"]), "not-der", "BER");
    let large = vec![0x30; trust::cms::MAX_ATTACHED_BYTES + 1];
    refused(&large, "too-large", "at most");
    let certificate = PKI.certificate("leaf");
    refused(certificate.der(), "not-der", "CMS");
    let enveloped =
        ["cms", "-encrypt", "-binary", "-in", "content", "-outform", "DER", "rsa2048.crt"];
    refused(&PKI.openssl(&enveloped), "not-signed-data", "nvelopedData");
    let digested = ["cms", "-digest_create", "-binary", "-in", "content", "-outform", "DER"];
    refused(&PKI.openssl(&digested), "not-signed-data", "igestedData");
    for version in [CmsVersion::V0, CmsVersion::V3, CmsVersion::V4] {
        let version = changed(&[], |data| data.version = version);
        refused(&version, "not-der", "version");
    }
    let version = changed(&["-keyid"], |data| data.version = CmsVersion::V1);
    refused(&version, "not-der", "version 1");
    let version = signer_changed(&[], |signer| {
        signer.version = CmsVersion::V3;
    });
    refused(&version, "not-der", "version");
}

#[test]
fn sets_out_of_order_are_not_der() {
    let good = PKI.sign("leaf", &[]);
    let attributes = first(&parts(&good)).signed_attrs;
    let inside: Vec<_> = attributes.expect("there").iter().map(|one| one.to_der()).collect();
    let inside: Vec<_> = inside.into_iter().map(|der| der.expect("DER")).collect();
    let ordered = inside.concat();
    let mixed = inside.iter().rev().cloned().collect::<Vec<_>>().concat();
    assert_ne!(ordered, mixed);
    let at = good.windows(ordered.len()).position(|window| window == ordered).expect("there");
    let mut bad = good.clone();
    bad[at..at + mixed.len()].copy_from_slice(&mixed);
    refused(&bad, "not-der", "canonical");
}

#[test]
fn the_content_is_wrong() {
    let detached = PKI.sign("leaf", &[]);
    let attached = PKI.sign("leaf", &["-nodetach"]);
    refused_over(None, &detached, "no-content", "none was given");
    refused_over(Some(b"other"), &detached, "content-changed", "SHA-256");
    refused_over(Some(b"other"), &attached, "content-differs", "given");
    judged(Some(CONTENT), &attached).expect("the same twice");
    let bare = PKI.sign("leaf", &["-noattr"]);
    judged(Some(CONTENT), &bare).expect("the control");
    refused_over(Some(b"other"), &bare, "bad-signature", "CN=Release");
    let typed = PKI.sign("leaf", &["-econtent_type", "1.2.3.4"]);
    refused(&typed, "wrong-content-type", "1.2.3.4");
    let string = changed(&["-nodetach"], |data| {
        let other = AnyRef::new(Tag::Utf8String, CONTENT).expect("DER");
        data.encapsulated.content = Some(other);
    });
    refused(&string, "wrong-content-type", "UTF8String");
    let padding = vec![b' '; trust::cms::MAX_BYTES];
    let long = signer_changed(&[], |signer| {
        signer.signature = OctetString::new(padding).expect("DER");
    });
    refused(&long, "too-large", "at most");
}

#[test]
fn too_few_and_too_many() {
    let nobody = changed(&[], |data| data.signer_infos = SetOfVec::default());
    refused(&nobody, "no-signer", "nobody");
    let crowd = changed(&[], |data| {
        let one = first(data);
        let copies = (0..=trust::cms::MAX_SIGNERS).map(|count| {
            let signature = u8::try_from(count).expect("few");
            SignerInfo { signature: OctetString::new([signature]).expect("DER"), ..one.clone() }
        });
        data.signer_infos = signers(copies);
    });
    refused(&crowd, "too-many", "signers");
    let heap = changed(&[], |data| {
        let one = data.certificates.as_ref().expect("there").as_slice()[0];
        let copies = vec![one; trust::cms::MAX_CERTIFICATES + 1];
        data.certificates = Some(SetOfVec::try_from(copies).expect("DER"));
    });
    refused(&heap, "too-many", "certificates");
}

#[test]
fn the_attributes_are_wrong() {
    let digest = rfc5911::ID_MESSAGE_DIGEST;
    let kind = rfc5911::ID_CONTENT_TYPE;
    judged(Some(CONTENT), &with_attributes(|_| {})).expect("the control");
    let missing = with_attributes(|all| all.retain(|one| one.oid != digest));
    refused(&missing, "bad-attributes", "messageDigest is missing");
    let missing = with_attributes(|all| all.retain(|one| one.oid != kind));
    refused(&missing, "bad-attributes", "contentType is missing");
    let value = |bytes: &[u8]| Any::new(Tag::OctetString, bytes).expect("DER");
    let of = |bytes: &[u8]| value(&HashAlgorithm::Sha256.of(bytes));
    let twice = with_attributes(|all| {
        let values = SetOfVec::try_from(vec![of(b"other")]).expect("DER");
        all.push(Attribute { oid: digest, values });
    });
    refused(&twice, "bad-attributes", "twice");
    let set = |values: Vec<Any>| {
        with_attributes(|all| {
            let one = all.iter_mut().find(|one| one.oid == digest).expect("there");
            one.values = SetOfVec::try_from(values).expect("DER");
        })
    };
    refused(&set(vec![of(CONTENT), of(b"other")]), "bad-attributes", "several");
    refused(&set(vec![]), "bad-attributes", "no value");
    refused(&set(vec![Any::null()]), "bad-attributes", "no digest");
    refused(&set(vec![of(b"other")]), "content-changed", "SHA-256");
    refused(&set(vec![value(&[])]), "content-changed", "SHA-256");
    let other = with_attributes(|all| {
        let one = all.iter_mut().find(|one| one.oid == kind).expect("there");
        let value = Any::encode_from(&rfc5911::ID_SIGNED_DATA).expect("DER");
        one.values = SetOfVec::try_from(vec![value]).expect("DER");
    });
    refused(&other, "bad-attributes", "contentType");
    // Not signed, so that only the signature shows it.
    let swapped = signer_changed(&[], |signer| {
        let attributes = signer.signed_attrs.clone().expect("there").into_vec();
        let rest = attributes.into_iter().filter(|one| one.oid == digest || one.oid == kind);
        signer.signed_attrs = Some(SetOfVec::try_from(Vec::from_iter(rest)).expect("DER"));
    });
    refused(&swapped, "bad-signature", "CN=Release");
}

/// The signature over signed attributes is also one over a file with just these bytes.
#[test]
fn attributes_are_no_content() {
    let signature = PKI.sign("leaf", &[]);
    let mut data = parts(&signature);
    let mut signer = first(&data);
    let attributes = signer.signed_attrs.take().expect("there");
    let content = attributes.to_der().expect("DER");
    data.signer_infos = signers([signer]);
    refused_over(Some(&content), &whole(&data), "attributes-as-content", "another signature");
    let attached = AnyRef::new(Tag::OctetString, &content).expect("DER");
    data.encapsulated.content = Some(attached);
    refused_over(None, &whole(&data), "attributes-as-content", "another signature");
}

/// And a CMS signature by an Ed25519 key has in it a bare one.
#[test]
fn attributes_are_no_content_of_bare_signatures() {
    let (key, certificate) = (PKI.private_key("ed25519"), PKI.certificate("ed25519"));
    let place = trust::sign::Content::Detached;
    let signature = trust::sign::cms(&key, &certificate, &[], CONTENT, place).expect("signed");
    let signer = first(&parts(&signature));
    let content = signer.signed_attrs.expect("there").to_der().expect("DER");
    let bare = signer.signature.as_bytes();
    let made_it = PKI.key("ed25519").verify(&content, trust::Scheme::Ed25519, bare);
    made_it.expect("the attack");
    let reason = trust::raw::verify(&trusting(&["ed25519"]), &content, bare, None);
    assert_eq!(reason.map_err(|reason| reason.word()), Err("attributes-as-content"));
}

/// What Ed25519 signs must be at hand, and content may not be.
#[test]
fn ed25519_needs_attributes() {
    let signature = signer_changed(&[], |signer| {
        let certificate = PKI.certificate("ed25519");
        signer.sid = cms::signed_data::SignerIdentifier::IssuerAndSerialNumber(
            cms::cert::IssuerAndSerialNumber {
                issuer: certificate.issuer().clone(),
                serial_number: certificate.serial().clone(),
            },
        );
        let (id, bytes) = PKI.private_key("ed25519").sign(CONTENT).expect("signed");
        signer.digest_alg = algorithm(rfc5912::ID_SHA_512);
        signer.signed_attrs = None;
        signer.signature_algorithm = id;
        signer.signature = OctetString::new(bytes).expect("DER");
    });
    let mut data = parts(&signature);
    data.digest_algorithms = SetOfVec::try_from(vec![algorithm(rfc5912::ID_SHA_512)]).expect("DER");
    let trust = trusting(&["ed25519"]);
    let reason = trust::cms::verify(&trust, Some(CONTENT), &whole(&data), None).expect_err("bare");
    assert_eq!(reason.word(), "bad-attributes", "{reason}");
}

#[test]
fn the_algorithms_are_wrong() {
    refused(&PKI.sign("leaf", &["-md", "sha1"]), "weak-hash", "SHA-1");
    refused(&PKI.sign("rsa2048", &["-md", "md5"]), "weak-hash", "MD5");
    refused(&PKI.sign("rsa2048", &["-md", "sha224"]), "weak-hash", "SHA-224");
    refused(&PKI.sign("rsa2048", &["-md", "sha3-256"]), "unknown-algorithm", "3-256");
    let unlisted = changed(&[], |data| {
        data.digest_algorithms =
            SetOfVec::try_from(vec![algorithm(rfc5912::ID_SHA_512)]).expect("DER");
    });
    refused(&unlisted, "algorithm-mismatch", "digestAlgorithms");
    let weak_too = changed(&[], |data| {
        let sha1 = ObjectIdentifier::new_unwrap("1.3.14.3.2.26");
        data.digest_algorithms.insert(algorithm(sha1)).expect("DER");
    });
    refused(&weak_too, "weak-hash", "digestAlgorithms");
    let other = signer_changed(&[], |signer| {
        signer.signature_algorithm = algorithm(rfc5912::ECDSA_WITH_SHA_512);
    });
    refused(&other, "algorithm-mismatch", "SHA-512");
    let other = signer_changed(&[], |signer| {
        signer.signature_algorithm = algorithm(rfc5912::SHA_256_WITH_RSA_ENCRYPTION);
    });
    refused(&other, "algorithm-mismatch", "ECDSA P-256");
    let other = signer_changed(&[], |signer| {
        signer.signature_algorithm = algorithm(ObjectIdentifier::new_unwrap("1.2.3.4"));
    });
    refused(&other, "unknown-algorithm", "1.2.3.4");
    let other = signer_changed(&[], |signer| {
        signer.signature_algorithm = algorithm(const_oid::db::rfc8410::ID_ED_25519);
    });
    refused(&other, "algorithm-mismatch", "Ed25519");
    let other = signer_changed(&[], |signer| {
        signer.digest_alg.parameters = Some(Any::encode_from(&1u8).expect("DER"));
    });
    refused(&other, "algorithm-mismatch", "parameters");
}

#[test]
fn the_parameters_of_pss_are_wrong() {
    let pss = ["-keyopt", "rsa_padding_mode:pss", "-keyopt", "rsa_pss_saltlen:digest"];
    let md1 = [&pss[..], &["-keyopt", "rsa_mgf1_md:sha1"]].concat();
    refused(&PKI.sign("rsa2048", &md1), "algorithm-mismatch", "mask");
    let changed = |change: &dyn Fn(&mut AlgorithmIdentifierOwned)| {
        let signature = PKI.sign("rsa2048", &pss);
        let mut data = parts(&signature);
        let mut signer = first(&data);
        change(&mut signer.signature_algorithm);
        data.signer_infos = signers([signer]);
        whole(&data)
    };
    refused(&changed(&|id| id.parameters = None), "algorithm-mismatch", "RSA-PSS");
    refused(&changed(&|id| id.parameters = Some(Any::null())), "algorithm-mismatch", "RSA-PSS");
    // The defaults are SHA-1's.
    let empty = Any::new(Tag::Sequence, []).expect("DER");
    refused(&changed(&|id| id.parameters = Some(empty.clone())), "weak-hash", "SHA-1");
    let plain = changed(&|id| *id = algorithm(rfc5912::RSA_ENCRYPTION));
    refused(&plain, "bad-signature", "CN=Release");
}
