//! What is driven with bytes from anybody, and what must hold whatever they are. Used by libFuzzer
//! (`cargo xtask fuzz`) and by the unit tests, which replay the seeds and change them a little.

#[path = "events.rs"]
mod events;
#[path = "fleet.rs"]
mod fleet;
#[path = "requests.rs"]
mod requests;
#[path = "usbguard.rs"]
mod usbguard;

use std::{path::Path, sync::LazyLock};

use portcullis::{
    artifact::signature::{ima, module},
    catalog::SignedBy,
    policy::{
        bundle::{Bundle, Form},
        manifest::{self, Found},
        source::Source,
        trust::PolicyTrust,
    },
    trust::{
        Anchor, Certificate, PublicKey, Requirements, Revocations, Signer, Slot, Trust, cms, raw,
        sign::PrivateKey,
    },
    usb::{
        descriptors,
        device::Device,
        rules::{Interfaces, Pattern, rule_for},
    },
};
use portcullis_common::Kinds;

/// A parser of input from outside.
pub struct Target {
    /// Its name, which is the name of its folder of seeds.
    pub name: &'static str,
    /// Panics if something does not hold.
    pub drive: fn(&[u8]),
}

/// Everything that is driven.
pub const TARGETS: [Target; 15] = [
    Target { name: "policy", drive: policy },
    Target { name: "manifest", drive: manifest },
    Target { name: "cms", drive: cms },
    Target { name: "raw", drive: raw },
    Target { name: "certificate", drive: certificate },
    Target { name: "key", drive: key },
    Target { name: "rotation", drive: rotation },
    Target { name: "ima", drive: ima_attribute },
    Target { name: "module", drive: module_end },
    Target { name: "bundle", drive: bundle },
    Target { name: "usb", drive: usb_descriptors },
    Target { name: "usbguard", drive: usbguard::drive },
    Target { name: "event", drive: events::drive },
    Target { name: "request", drive: requests::drive },
    Target { name: "fleet", drive: fleet::drive },
];

/// A policy's text. Every mistake has a place that is in the text.
fn policy(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Err(found) = Source::parse(Path::new("p.toml"), text) {
        assert!(!found.as_slice().is_empty());
        let lines = text.split('\n').count();
        for mistake in found.as_slice() {
            assert!((1..=lines).contains(&(mistake.line as usize)), "{mistake}");
            assert!(mistake.column >= 1, "{mistake}");
        }
    }
}

/// What a USB device says of itself: whatever is read, a rule for exactly that lets it in, and one for less
/// does not.
fn usb_descriptors(data: &[u8]) {
    let Ok(read) = descriptors::parse(data) else { return };
    let listed: Vec<_> = read.interfaces.iter().map(|class| Pattern(class.0.map(Some))).collect();
    let equals = |listed: &[Pattern]| {
        let wanted = Interfaces { equals: Some(listed.to_vec()), ..Interfaces::default() };
        wanted.matches(&read.interfaces, read.interface_count)
    };
    if let Some((_, less)) = listed.split_last() {
        assert!(equals(&listed) && !equals(less));
    }
    let device = Device { interfaces: read.interfaces.clone(), ..Device::default() };
    assert_eq!(rule_for(&device).is_some(), !listed.is_empty());
}

/// A bundle: what is read is written back as the same, with and without one more signature.
fn bundle(data: &[u8]) {
    let Ok(read) = Bundle::parse(data.to_vec()) else { return };
    assert_eq!(read.bytes(), data);
    let Ok(signed) = read.with_signature(Form::Raw, &[7; 64]) else { return };
    let again = Bundle::parse(signed).expect("what is written is read");
    assert_eq!(again.digest(), read.digest());
    assert_eq!(again.manifest(), read.manifest());
    assert!(again.signatures() <= read.signatures() + 1);
}

/// The attribute `security.ima`: what is read of a signature makes the same attribute.
fn ima_attribute(data: &[u8]) {
    let Ok(Some(read)) = ima::parse(data) else { return };
    let (kind, version) = match read.over {
        ima::Over::Content => (3, 2),
        ima::Over::Verity => (6, 3),
    };
    let length = u16::try_from(read.bytes.len()).expect("as long as is said").to_be_bytes();
    let header = [&[kind, version, data[2]][..], &read.key_id, &length].concat();
    assert_eq!([&header[..], &read.bytes].concat(), data);
    assert_eq!(read.signed_digest(&vec![0; read.hash.len()]).len(), read.hash.len());
}

/// The end of a module: what was signed, the signature and what follows are the whole.
fn module_end(data: &[u8]) {
    let size = data.len() as u64;
    let Ok(Some(read)) = module::parse(data, size) else { return };
    let rest = read.signature.len() + 12 + module::MARKER.len();
    assert_eq!(read.content + rest as u64, size);
    assert!(read.content > 0);
}

/// A manifest or a catalog: what it says can be written, and read back as the same.
fn manifest(data: &[u8]) {
    let file = Path::new("m");
    let _ = manifest::parse(file, data, Some(Kinds::LIBRARY));
    let Ok(read) = manifest::parse(file, data, None) else { return };
    let lines: Vec<_> = data.split(|byte| *byte == b'\n').collect();
    let path_of = |line: u32| {
        let line = lines[line as usize - 1];
        manifest::path_in(line.strip_suffix(b"\r").unwrap_or(line))
    };
    let artifacts: Option<Vec<_>> = read
        .entries
        .iter()
        .map(|entry| {
            Some(Found { kinds: entry.kinds, path: path_of(entry.line)?, digest: entry.digest })
        })
        .collect();
    let Some(mut artifacts) = artifacts else { return };
    artifacts.sort();
    artifacts.dedup();
    let catalog = read.catalog.clone().zip(read.version).map(|(name, version)| {
        let withdrawn = read.withdrawn.iter().map(|(digest, _)| (*digest, "old".into()));
        manifest::Catalog { name, version, withdrawn: withdrawn.collect() }
    });
    let mut written = Vec::new();
    manifest::write(&mut written, artifacts.clone(), catalog.as_ref()).expect("memory");
    let again = manifest::parse(file, &written, None).expect("what was written is good");
    assert_eq!((&again.catalog, again.version), (&read.catalog, read.version));
    let digests = |read: &manifest::Manifest| {
        let mut all: Vec<_> = read.withdrawn.iter().map(|(digest, _)| *digest).collect();
        all.sort_unstable();
        all.dedup();
        all
    };
    if catalog.is_some() {
        assert_eq!(digests(&again), digests(&read));
    }
    let again: Vec<_> = again.entries.iter().map(|entry| (entry.digest, entry.kinds)).collect();
    let expected: Vec<_> = artifacts.iter().map(|one| (one.digest, one.kinds)).collect();
    assert_eq!(again, expected);
}

/// What the seeds' signers have signed, which is all that may ever be verified.
const CONTENT: &[u8] = include_bytes!("../seeds/trust/content");
/// What they have not.
const OTHER: &[u8] = b"what nobody has signed\n";

/// Trusts the seeds' authority and their bare key.
static TRUST: LazyLock<Trust> = LazyLock::new(|| {
    let certificate = Certificate::read(include_bytes!("../seeds/trust/root.der")).expect("one");
    let key = PublicKey::read(include_bytes!("../seeds/trust/ed25519.pub")).expect("one");
    let signer = |name: &str, anchor| Signer {
        name: name.into(),
        slot: Slot::Maker,
        kinds: Kinds::EXECUTABLE,
        anchor,
        valid_from: None,
        valid_until: None,
        requirements: Requirements::default(),
    };
    let authority = Anchor::certificate(certificate).expect("a strong key");
    Trust {
        signers: vec![signer("acme", authority), signer("plant", Anchor::Key(key))],
        revoked: Revocations::default(),
    }
});

/// A CMS signature: verifies what was signed, and nothing else.
fn cms(data: &[u8]) {
    if let Ok(signed) = cms::verify(&TRUST, Some(CONTENT), data, None) {
        assert!(!signed.signers.is_empty());
    }
    if let Ok(signed) = cms::verify(&TRUST, None, data, None) {
        assert_eq!(signed.content.as_deref(), Some(CONTENT));
    }
    assert!(cms::verify(&TRUST, Some(OTHER), data, None).is_err());
    // Half of it as the content, which finds what takes one thing for another.
    let (content, signature) = data.split_at(data.len() / 2);
    assert!(content == CONTENT || cms::verify(&TRUST, Some(content), signature, None).is_err());
}

/// A bare signature: one only is right.
fn raw(data: &[u8]) {
    const RIGHT: &[u8] = include_bytes!("../seeds/raw/good");
    assert_eq!(raw::verify(&TRUST, CONTENT, data, None).is_ok(), data == RIGHT);
    assert!(raw::verify(&TRUST, OTHER, data, None).is_err());
}

/// A certificate: what is read is what was given.
fn certificate(data: &[u8]) {
    let Ok(read) = Certificate::read(data) else { return };
    let again = Certificate::from_der(read.der()).expect("its own bytes");
    assert_eq!(again.fingerprint(), read.fingerprint());
    let _ = (read.key().is_ok(), read.is_ca(), read.ima_key_id(), read.info());
    assert!(!read.subject().chars().any(char::is_control), "{}", read.subject());
}

/// A public or a private key.
fn key(data: &[u8]) {
    if let Ok(read) = PublicKey::read(data) {
        assert!(!read.kind().to_string().is_empty());
        // Any anchor can be what it is, in whatever form it is written.
        assert_eq!(Anchor::read(data).ok().and_then(|anchor| anchor.key().cloned()), Some(read));
    }
    let _ = PrivateKey::read(data);
    // Changing base64 finds little; so what is in it is changed.
    let mut pem = String::from("-----BEGIN PRIVATE KEY-----\n");
    for line in base64(data).as_bytes().chunks(64) {
        pem.extend(line.iter().map(|byte| char::from(*byte)));
        pem.push('\n');
    }
    pem.push_str("-----END PRIVATE KEY-----\n");
    if let Ok(read) = PrivateKey::read(pem.as_bytes()) {
        let _ = read.public().id();
    }
}

fn base64(data: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(data.len() * 4 / 3 + 4);
    for three in data.chunks(3) {
        let bits = three.iter().fold(0, |bits: u32, byte| bits << 8 | u32::from(*byte))
            << (8 * (3 - three.len()));
        for place in 0..4 {
            let digit = DIGITS[(bits >> (18 - 6 * place)) as usize & 63];
            text.push(if place <= three.len() { char::from(digit) } else { '=' });
        }
    }
    text
}

/// The change of a key, whose text is signed: it adds one key for the signer that signed it.
fn rotation(data: &[u8]) {
    const KEY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../fuzz/seeds/trust/ed25519.pub");
    static POLICY: LazyLock<PolicyTrust> =
        LazyLock::new(|| PolicyTrust::in_key(Path::new(KEY)).expect("a key"));
    let mut trust = POLICY.clone();
    let signer = trust.trust.signers[0].name.clone();
    let by = SignedBy { signer: signer.clone(), ..SignedBy::default() };
    match trust.rotate(data, &[by]) {
        Ok(()) => {
            let names: Vec<_> = trust.trust.signers.iter().map(|one| &one.name).collect();
            assert_eq!(names, [&signer, &signer]);
        }
        Err((word, _)) => {
            assert!(matches!(word, "malformed" | "untrusted-signer"), "{word}");
            assert_eq!(trust.trust.signers.len(), 1);
        }
    }
}
