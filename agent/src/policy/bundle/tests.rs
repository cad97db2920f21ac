//! Bundles that are good, and many that are not.

use std::fs;

use indicatif::ProgressBar;
use tempfile::TempDir;

use super::*;
use crate::{
    policy::Policy,
    trust::{
        key,
        sign::{self, PrivateKey},
    },
};

const LISTED: &str =
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa  /opt/pump\n";

/// A policy that lets `ann` and `bob` sign the next one, and `eve` sign catalogs only.
struct Lab {
    folder: TempDir,
    keys: Vec<PrivateKey>,
    policy: Policy,
}

impl Lab {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let mut text = "name = \"plant-7\"\nversion = 3\nmode = \"audit\"\ninclude = [{ path = \
                        \"lists/app\", kinds = [\"executable\"] }]\n"
            .to_owned();
        let mut keys = Vec::new();
        for (name, signs) in [("ann", "policy"), ("bob", "policy"), ("eve", "catalog")] {
            let made = key::generate_ed25519().expect("random numbers");
            fs::write(folder.path().join(format!("{name}.pub")), &made.public).expect("written");
            keys.push(PrivateKey::read(made.private.as_bytes()).expect("a key"));
            text.push_str(&format!(
                "[[signer]]\nname = \"{name}\"\nslot = \"operator\"\nkey = \"{name}.pub\"\n\
                 kinds = [\"executable\"]\nsigns = [\"{signs}\"]\n"
            ));
        }
        fs::create_dir(folder.path().join("lists")).expect("made");
        fs::write(folder.path().join("lists/app"), LISTED).expect("written");
        let file = folder.path().join("plant.toml");
        fs::write(&file, text).expect("written");
        let policy = Policy::load(&file, &ProgressBar::hidden()).expect("a good policy");
        Self { folder, keys, policy }
    }

    fn file(&self) -> PathBuf {
        self.folder.path().join("plant.toml")
    }

    fn build(&self, options: &Options) -> Bundle {
        let made = build(&self.file(), options, &ProgressBar::hidden()).expect("built");
        Bundle::parse(made).expect("good")
    }

    fn signed(&self, bundle: &Bundle, by: &[usize]) -> Bundle {
        by.iter().fold(Bundle::parse(bundle.bytes.clone()).expect("good"), |bundle, by| {
            let signature = sign::raw(&self.keys[*by], bundle.signed_bytes()).expect("Ed25519");
            let bytes = bundle.with_signature(Form::Raw, &signature).expect("room");
            Bundle::parse(bytes).expect("good")
        })
    }

    fn verdict(&self, bundle: &Bundle, needed: usize) -> Result<usize, &'static str> {
        let verified = bundle.verify(&self.policy.trust, needed, None);
        verified.map(|by| by.len()).map_err(|(reason, _)| reason)
    }
}

#[test]
fn the_same_input_gives_the_same_bytes() {
    let lab = Lab::new();
    let (one, two) = (lab.build(&Options::default()), lab.build(&Options::default()));
    assert_eq!(one.bytes, two.bytes);
    // In whatever order it is signed.
    let (ann_bob, bob_ann) = (lab.signed(&one, &[0, 1]), lab.signed(&two, &[1, 0]));
    assert_eq!(ann_bob.bytes, bob_ann.bytes);
    assert_eq!(ann_bob.digest(), one.digest(), "a signature changes no identity");
    assert_eq!(lab.signed(&ann_bob, &[0]).signatures(), 2, "the same signature twice is one");
}

#[test]
fn what_is_unpacked_is_the_policy() {
    let lab = Lab::new();
    let folder = tempfile::tempdir().expect("a folder");
    let bundle = lab.build(&Options::default());
    let file = bundle.unpack(folder.path()).expect("unpacked");
    let policy = Policy::load(&file, &ProgressBar::hidden()).expect("a good policy");
    assert_eq!((policy.name.as_str(), policy.version, policy.rules.len()), ("plant-7", 3, 1));
    assert!(policy.trust.signs_policies());
    // What is there already is not written through.
    assert!(bundle.unpack(folder.path()).is_err());
}

#[test]
fn as_many_signers_as_are_asked_for() {
    let lab = Lab::new();
    let bundle = lab.build(&Options::default());
    let cases: [(&[usize], usize, Result<usize, &str>); 7] = [
        (&[], 1, Err("unsigned")),
        (&[0], 1, Ok(1)),
        (&[0], 2, Err("too-few-signatures")),
        (&[0, 1], 2, Ok(2)),
        (&[2], 1, Err("not-for-this")),
        (&[0, 2], 2, Err("too-few-signatures")),
        // A signature that does not count does no harm beside one that does.
        (&[2, 0], 1, Ok(1)),
    ];
    for (by, needed, expected) in cases {
        let signed = lab.signed(&bundle, by);
        assert_eq!(lab.verdict(&signed, needed), expected, "{by:?} of {needed}");
    }
    let stranger = Lab::new();
    assert!(lab.verdict(&stranger.signed(&bundle, &[0]), 1).is_err(), "somebody else's key");
}

#[test]
fn one_key_under_two_names_is_one_signer() {
    let lab = Lab::new();
    let text = fs::read_to_string(lab.file()).expect("readable");
    // Ann's key as a certificate's would be: the same key, another name, another form of signature.
    fs::write(lab.file(), text.replace("key = \"bob.pub\"", "key = [\"bob.pub\", \"ann.pub\"]"))
        .expect("written");
    let policy = Policy::load(&lab.file(), &ProgressBar::hidden()).expect("a good policy");
    let bundle = lab.signed(&lab.build(&Options::default()), &[0]);
    let reason = |bundle: &Bundle| {
        bundle.verify(&policy.trust, 2, None).map(drop).map_err(|(reason, _)| reason)
    };
    assert_eq!(reason(&bundle), Err("too-few-signatures"));
    assert_eq!(reason(&lab.signed(&bundle, &[1])), Ok(()));
}

#[test]
fn no_byte_can_be_changed() {
    let lab = Lab::new();
    let good = lab.signed(&lab.build(&Options::default()), &[0]);
    assert_eq!(lab.verdict(&good, 1), Ok(1));
    for position in 0..good.bytes.len() {
        let mut bytes = good.bytes.clone();
        bytes[position] ^= 1;
        let accepted = Bundle::parse(bytes).is_ok_and(|bundle| lab.verdict(&bundle, 1).is_ok());
        assert!(!accepted, "a change at {position} is not noticed");
    }
}

#[test]
fn a_part_of_a_file_is_none() {
    let lab = Lab::new();
    let good = lab.signed(&lab.build(&Options::default()), &[0]);
    for length in 0..good.bytes.len() {
        let read = Bundle::parse(good.bytes[..length].to_vec());
        let (reason, _) = read.expect_err("cut");
        assert!(["truncated", "malformed"].contains(&reason), "{length}: {reason}");
    }
    for more in [&b"x"[..], &[0; 512], &[0; 1 << 20]] {
        let read = Bundle::parse([good.bytes.as_slice(), more].concat());
        assert_eq!(read.expect_err("longer").0, "malformed");
    }
    assert_eq!(Bundle::parse(vec![0; 16 << 20]).expect_err("zeros").0, "malformed");
}

/// An archive with these entries, and a manifest that fits the parts among them.
fn archive_of(entries: &[(&str, &[u8])], change: impl Fn(&mut Manifest)) -> Vec<u8> {
    let parts = entries.iter().filter_map(|(name, content)| {
        let sha256: Digest = Sha256::digest(content).into();
        let path = name.strip_prefix(PARTS)?.to_owned();
        Some(Part { path, size: content.len() as u64, sha256: digest::format(&sha256) })
    });
    let mut manifest = Manifest {
        portcullis_bundle: 1,
        policy: "p".into(),
        version: 1,
        epoch: 0,
        targets: vec![Target::All],
        not_before: None,
        expires: None,
        skip_preflight: false,
        parts: parts.collect(),
    };
    change(&mut manifest);
    let mut writer = archive::Writer::new();
    writer.add(MANIFEST, &manifest.text()).expect("short");
    for (name, content) in entries {
        writer.add(name, content).expect("short");
    }
    writer.finish()
}

#[test]
fn signatures_are_judged_without_the_parts() {
    let lab = Lab::new();
    let verdict = |bytes: &[u8]| {
        let head = Head::of(bytes)?;
        head.verify(&lab.policy.trust, 1, None).map(|by| by.len())
    };
    let unsigned = lab.build(&Options::default());
    assert_eq!(verdict(&unsigned.bytes).expect_err("unsigned").0, "unsigned");
    let good = lab.signed(&unsigned, &[0]);
    assert_eq!(verdict(&good.bytes), Ok(1));
    let manifest = BLOCK..BLOCK + good.signed_bytes().len();
    let parts = good.parts.iter().map(|(_, range)| range.clone()).collect::<Vec<_>>();
    for position in 0..good.bytes.len() {
        let mut bytes = good.bytes.clone();
        bytes[position] ^= 1;
        // What is no header and not signed either is for the whole to find.
        let is_signed = manifest.contains(&position) || good.signatures[0].1.contains(&position);
        let accepted = verdict(&bytes).is_ok();
        assert!(!accepted || !is_signed, "a change at {position} is not noticed");
        if parts.iter().any(|part| part.contains(&position)) {
            assert!(accepted, "a part was looked at, at {position}");
        }
    }
    // A part that is not as long as was signed is not passed over.
    let policy = lab.folder.path().join("longer");
    fs::write(&policy, &good.bytes[..parts[0].end - 1]).expect("written");
    let (file, length) = open(&policy).expect("it begins as one");
    assert!(Head::parse(file, length).is_err());
}

const BLOCK: usize = 512;

#[test]
fn only_what_belongs_there_is_read() {
    let policy: (&str, &[u8]) = ("parts/policy.toml", b"x");
    let read = |entries: &[(&str, &[u8])], change: &dyn Fn(&mut Manifest)| {
        Bundle::parse(archive_of(entries, change)).map(drop).map_err(|(reason, _)| reason)
    };
    assert_eq!(read(&[policy], &|_| {}), Ok(()));
    type Entries<'a> = &'a [(&'a str, &'a [u8])];
    type Case<'a> = (&'a str, Entries<'a>, &'a dyn Fn(&mut Manifest));
    let cases: [Case<'_>; 12] = [
        ("no policy", &[("parts/other", b"x")], &|_| {}),
        ("a part too many", &[policy, ("parts/z", b"x")], &|m| drop(m.parts.pop())),
        ("a part too few", &[policy], &|m| {
            m.parts.push(Part { path: "z".into(), size: 0, sha256: String::new() });
        }),
        ("something else", &[policy, ("notes", b"x")], &|_| {}),
        ("twice", &[policy, policy], &|_| {}),
        ("in another order", &[("parts/z", b"x"), policy], &|m| m.parts.reverse()),
        ("a signature of another name", &[policy, ("signatures/a.sig", b"x")], &|_| {}),
        ("no device", &[policy], &|m| m.targets.clear()),
        ("version 0", &[policy], &|m| m.version = 0),
        ("another form", &[policy], &|m| m.portcullis_bundle = 2),
        ("a name with a newline", &[policy], &|m| m.policy = "a\nb".into()),
        ("another size", &[policy], &|m| m.parts[0].size = 9),
    ];
    for (what, entries, change) in cases {
        assert!(read(entries, change).is_err(), "{what}");
    }
}

#[test]
fn paths_stay_within_the_folder() {
    for path in ["policy.toml", "lists/app", "..a", "a b"] {
        assert!(manifest::is_inside(path), "{path}");
    }
    for path in ["", ".", "..", "/etc/passwd", "../a", "a/../b", "a//b", "a/", "./a", "a\0", "a\nb"]
    {
        assert!(!manifest::is_inside(path), "{path:?}");
    }
}

#[test]
fn a_bundle_is_for_its_devices_and_its_time() {
    let lab = Lab::new();
    let at = |text: &str| text.parse::<Timestamp>().expect("a time");
    let bundle = lab.build(&Options {
        targets: vec![Target::Device("pump-3".into()), Target::Group("north".into())],
        not_before: Some(at("2026-06-01T00:00:00Z")),
        expires: Some(at("2027-06-01T00:00:00Z")),
        ..Options::default()
    });
    let device = |name: Option<&str>, groups: &[&str]| Device {
        name: name.map(str::to_owned),
        groups: groups.iter().map(|group| (*group).to_owned()).collect(),
    };
    let ask = |device: &Device, now: Option<&str>| {
        let answer = bundle.check_device(device, now.map(at));
        answer.map(|warnings| warnings.len()).map_err(|(reason, _)| reason)
    };
    let (good, summer) = (device(Some("pump-3"), &[]), Some("2026-07-01T00:00:00Z"));
    assert_eq!(ask(&good, summer), Ok(0));
    assert_eq!(ask(&device(None, &["south", "north"]), summer), Ok(0));
    assert_eq!(ask(&device(Some("north"), &["pump-3"]), summer), Err("other-device"));
    assert_eq!(ask(&Device::default(), summer), Err("other-device"));
    assert_eq!(ask(&good, Some("2026-05-01T00:00:00Z")), Err("not-yet"));
    assert_eq!(ask(&good, Some("2028-01-01T00:00:00Z")), Ok(1), "expiry warns");
    assert_eq!(ask(&good, None), Ok(1), "a clock that is not set warns");
}

#[test]
fn mistakes_in_the_device_file_are_placed() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("device.toml");
    let read = |text: &str| {
        fs::write(&file, text).expect("written");
        Device::read(&file)
    };
    let device = read("name = \"pump-3\"\ngroups = [\"north\"]\n").expect("good");
    assert_eq!(device.to_string(), "device:pump-3 group:north");
    assert!(read("name = \"p\"\ngroup = 1\n").expect_err("unknown").contains("device.toml:2: "));
    assert!(read("name = \"a b\"").expect_err("no name").contains("is no name"));
    assert_eq!(Device::read(&folder.path().join("gone")), Ok(Device::default()));
}

#[test]
fn what_lies_elsewhere_is_not_taken_along() {
    let lab = Lab::new();
    let text = fs::read_to_string(lab.file()).expect("readable");
    let list = tempfile::NamedTempFile::new().expect("a file");
    fs::write(list.path(), LISTED).expect("written");
    let elsewhere = list.path().display().to_string();
    fs::write(lab.file(), text.replace("lists/app", &elsewhere)).expect("written");
    let error =
        build(&lab.file(), &Options::default(), &ProgressBar::hidden()).expect_err("elsewhere");
    let error = error.to_string();
    assert!(error.contains("plant.toml: names ") && error.contains("copy it there"), "{error}");
}
