//! Who counts for what, changes of keys, and revocation, by policies as operators write them.

use std::{fs, path::PathBuf};

use tempfile::TempDir;

use super::*;
use crate::{
    policy::diagnostic::Diagnostics,
    trust::{
        key,
        sign::{self, PrivateKey},
        tests::pki::{CONTENT, PKI},
    },
};

/// A new Ed25519 key.
struct Key {
    private: PrivateKey,
    public: String,
}

impl Key {
    fn new() -> Self {
        let made = key::generate_ed25519().expect("random numbers");
        let private = PrivateKey::read(made.private.as_bytes()).expect("a key");
        Self { private, public: made.public }
    }

    fn sign(&self, text: &[u8]) -> Vec<u8> {
        sign::raw(&self.private, text).expect("Ed25519").to_vec()
    }

    fn id(&self) -> String {
        hex::encode(self.private.public().id())
    }
}

/// Where a policy and its keys lie.
struct Lab(TempDir);

impl Lab {
    fn new() -> Self {
        Self(tempfile::tempdir().expect("a folder"))
    }

    fn write(&self, name: &str, content: &[u8]) -> PathBuf {
        let path = self.0.path().join(name);
        fs::write(&path, content).expect("written");
        path
    }

    fn load(&self, rest: &str) -> Result<PolicyTrust, Diagnostics> {
        let text = format!("name = \"p\"\nversion = 1\nmode = \"audit\"\n{rest}");
        let file = self.write("p.toml", text.as_bytes());
        crate::policy::Policy::load(&file, &indicatif::ProgressBar::hidden())
            .map(|policy| policy.trust)
    }

    fn trust(&self, rest: &str) -> PolicyTrust {
        self.load(rest).expect("a good policy")
    }

    /// The mistakes of a policy, without the folder.
    fn mistakes(&self, rest: &str) -> String {
        let text = self.load(rest).expect_err(rest).to_string();
        text.replace(&format!("{}/", self.0.path().display()), "")
    }
}

fn signer(name: &str, what: &str, rest: &str) -> String {
    format!(
        "[[signer]]\nname = \"{name}\"\nslot = \"maker\"\n{what}\nkinds = [\"library\"]\n{rest}\n"
    )
}

/// The signer's name, or why not.
fn judge(trust: &PolicyTrust, key: &Key, with: Signs) -> Result<String, &'static str> {
    let signed = trust.verify_raw(CONTENT, &key.sign(CONTENT), with, None);
    signed.map(|by| by[0].signer.clone()).map_err(|(word, _)| word)
}

#[test]
fn files_that_cannot_be_read_have_a_place() {
    let lab = Lab::new();
    lab.write("a.pub", Key::new().public.as_bytes());
    lab.write("noise.pem", b"hello");
    lab.write("rsa.pub", &PKI.read("rsa1024.pub"));
    lab.write("private.pem", &PKI.read("p256.key"));
    lab.write("weak.pem", &PKI.read("weak.crt"));
    lab.write("two.pem", &[PKI.read("leaf.crt"), PKI.read("inter.crt")].concat());
    for (what, expected) in [
        ("key = \"none.pub\"", "p.toml:7:7: none.pub cannot be read: No such file"),
        ("key = \"none.pub\"", "; paths are relative to the policy file's folder"),
        ("key = \"..\"", "p.toml:7:7: .. is not a file"),
        ("key = [\"a.pub\", \"noise.pem\"]", "p.toml:7:17: noise.pem: no public key"),
        ("key = \"rsa.pub\"", "p.toml:7:7: rsa.pub: a weak key: RSA with 1024 bits"),
        ("key = \"private.pem\"", "p.toml:7:7: private.pem: a private key where a public key"),
        ("certificate = \"weak.pem\"", "weak.pem: the certificate of CN=Release,OU=Firmware"),
        ("certificate = \"two.pem\"", "two.pem: 2 certificates in one file; give each its own"),
        ("certificate = \"a.pub\"", "a.pub: no certificate: PEM of a `PUBLIC KEY`"),
    ] {
        let found = lab.mistakes(&signer("acme", what, ""));
        assert!(found.contains(expected), "{found:?} lacks {expected:?}");
    }
    let found = lab.mistakes("[[revoke]]\nsigner = \"acme\"\n");
    assert!(
        found.starts_with("p.toml:5:10: no signer of this policy is called \"acme\""),
        "{found}"
    );
}

#[test]
fn kinds_of_signature_are_kept_apart() {
    let (lab, files, all) = (Lab::new(), Key::new(), Key::new());
    lab.write("files.pub", files.public.as_bytes());
    lab.write("all.pub", all.public.as_bytes());
    let trust = lab.trust(
        &[
            signer("files", "key = \"files.pub\"", "signs = [\"file\"]"),
            signer("all", "key = \"all.pub\"", "").replace("library", "script"),
        ]
        .concat(),
    );
    assert_eq!(judge(&trust, &files, Signs::FILE), Ok("files".into()));
    assert_eq!(judge(&trust, &files, Signs::CATALOG), Err("not-for-this"));
    assert_eq!(judge(&trust, &files, Signs::MODULE), Err("not-for-this"));
    assert_eq!(judge(&trust, &all, Signs::CATALOG), Ok("all".into()));
    let signed = files.sign(CONTENT);
    let (_, message) = trust.verify_raw(CONTENT, &signed, Signs::CATALOG, None).expect_err("no");
    assert_eq!(message, "the policy lets signer files sign files, and not catalogs");
    assert_eq!(trust.kinds(Signs::CATALOG), Kinds::SCRIPT);
    assert_eq!(trust.kinds(Signs::FILE), Kinds::SCRIPT.union(Kinds::LIBRARY));
    let names: Vec<_> = trust.signers_of_files().into_iter().map(|by| by.signer).collect();
    assert_eq!(names, ["files", "all"]);
    assert!(!trust.is_empty() && lab.trust("").is_empty());
}

#[test]
fn every_key_of_a_signer_counts() {
    let (lab, old, new, other) = (Lab::new(), Key::new(), Key::new(), Key::new());
    lab.write("old.pub", old.public.as_bytes());
    lab.write("new.pub", new.public.as_bytes());
    let both = signer("acme", "key = [\"new.pub\", \"old.pub\"]", "signs = [\"catalog\"]");
    let trust = lab.trust(&both);
    for key in [&old, &new] {
        assert_eq!(judge(&trust, key, Signs::CATALOG), Ok("acme".into()));
        assert_eq!(judge(&trust, key, Signs::FILE), Err("not-for-this"));
    }
    assert_eq!(judge(&trust, &other, Signs::CATALOG), Err("bad-signature"));
    assert_eq!(describe(&trust.trust.signers), ["acme (maker): library"]);

    let revoke = format!("{both}[[revoke]]\nkey = \"{}\"\n", old.id());
    let trust = lab.trust(&revoke);
    assert_eq!(judge(&trust, &old, Signs::CATALOG), Err("revoked"));
    assert_eq!(judge(&trust, &new, Signs::CATALOG), Ok("acme".into()));
    let trust = lab.trust(&format!("{both}[[revoke]]\nsigner = \"acme\"\n"));
    assert_eq!(judge(&trust, &new, Signs::CATALOG), Err("revoked"));
}

#[test]
fn certificates_and_catalogs_are_revoked() {
    let lab = Lab::new();
    lab.write("root.pem", &PKI.read("root.crt"));
    let acme = signer("acme", "certificate = \"root.pem\"", "");
    let signature = PKI.sign("leaf", &[]);
    let judged = |rest: &str| {
        let trust = lab.trust(&format!("{acme}{rest}"));
        let signed = trust.verify_cms(CONTENT, &signature, Signs::CATALOG, None);
        signed.map(|by| by[0].clone()).map_err(|(word, _)| word)
    };
    let by = judged("").expect("the control");
    assert_eq!((by.signer.as_str(), by.chain.len(), by.prints.len()), ("acme", 3, 3));
    let still = |rest: &str| lab.trust(&format!("{acme}{rest}")).kinds_still(&by);
    assert_eq!(still(""), Some(Kinds::LIBRARY));
    for name in ["leaf", "inter", "root"] {
        let print = hex::encode(PKI.certificate(name).fingerprint());
        let revoked = format!("[[revoke]]\ncertificate = \"{print}\"\n");
        assert_eq!(judged(&revoked), Err("revoked"), "{name}");
        assert_eq!(still(&revoked), None, "{name}");
    }
    let key = hex::encode(PKI.key("p256").id());
    let revoked = format!("[[revoke]]\nkey = \"{key}\"\n");
    assert_eq!((judged(&revoked), still(&revoked)), (Err("revoked"), None));
    assert_eq!(still("[[revoke]]\nsigner = \"acme\"\n"), None);
    // The signer has another anchor now, or is called otherwise.
    lab.write("root.pem", &PKI.read("rsa-root.crt"));
    assert_eq!(still(""), None);
    lab.write("root.pem", &PKI.read("root.crt"));
    assert_eq!(lab.trust(&acme.replace("acme", "other")).kinds_still(&by), None);

    let twice =
        "[[revoke]]\ncatalog = \"pump\"\nbelow = 3\n[[revoke]]\ncatalog = \"pump\"\nbelow = 2\n";
    let trust = lab.trust(twice);
    assert_eq!(trust.catalog_revoked_below("pump"), Some(3));
    assert_eq!(trust.catalog_revoked_below("motor"), None);
}

/// A change of keys, signed with `by`.
fn rotation(trust: &mut PolicyTrust, text: &str, by: &Key) -> Result<(), Why> {
    let signed =
        trust.verify_raw(text.as_bytes(), &by.sign(text.as_bytes()), Signs::CATALOG, None)?;
    trust.rotate(text.as_bytes(), &signed)
}

#[test]
fn old_signs_new() {
    let (lab, [acme, plant, new, newest]) = (Lab::new(), [(); 4].map(|()| Key::new()));
    lab.write("acme.pub", acme.public.as_bytes());
    lab.write("plant.pub", plant.public.as_bytes());
    let mut trust = lab.trust(
        &[
            signer("acme", "key = \"acme.pub\"", "signs = [\"catalog\"]"),
            signer("plant", "key = \"plant.pub\"", ""),
        ]
        .concat(),
    );
    let to_new = PolicyTrust::rotation("acme", &new.public);
    let to_newest = PolicyTrust::rotation("acme", &newest.public);

    let (word, message) = rotation(&mut trust, &to_new, &plant).expect_err("not its key");
    assert_eq!(word, "untrusted-signer");
    assert!(message.contains("it changes the key of acme, and plant signed it"), "{message}");
    assert_eq!(rotation(&mut trust, &to_newest, &new).expect_err("too early").0, "bad-signature");
    assert_eq!(judge(&trust, &new, Signs::CATALOG), Err("bad-signature"));

    rotation(&mut trust, &to_new, &acme).expect("by its own key");
    rotation(&mut trust, &to_newest, &new).expect("by the key that was just taken in");
    for key in [&acme, &new, &newest] {
        assert_eq!(judge(&trust, key, Signs::CATALOG), Ok("acme".into()));
        // What the signer may sign goes over to the new key.
        assert_eq!(judge(&trust, key, Signs::FILE), Err("not-for-this"));
    }

    let wrong_name = to_new.replace("acme", "nobody");
    assert_eq!(rotation(&mut trust, &wrong_name, &acme).expect_err("no").0, "untrusted-signer");
    for (text, said) in [
        ("", "the first line is not `# portcullis rotation 1`"),
        ("# portcullis rotation 2\n# signer: acme\n", "the first line is not"),
        ("# portcullis rotation 1\nacme\n", "the second line is not `# signer: NAME`"),
        ("# portcullis rotation 1\n# signer: acme\n", "neither a public key nor a certificate"),
        ("# portcullis rotation 1\n# signer: acme\nhello\n", "neither a public key nor"),
    ] {
        let (word, message) = rotation(&mut trust, text, &acme).expect_err(text);
        assert_eq!(word, "malformed", "{text:?}");
        assert!(message.contains(said), "{message:?} lacks {said:?}");
    }
    let by = trust.verify_raw(CONTENT, &acme.sign(CONTENT), Signs::CATALOG, None).expect("good");
    let (word, message) = trust.rotate(b"\xff\xfe", &by).expect_err("no text");
    assert_eq!(word, "malformed");
    assert!(message.contains("not a text"), "{message}");
    // A private key must not be distributed; the mistake must not go unnoticed.
    let leaked = PolicyTrust::rotation("acme", &String::from_utf8_lossy(&PKI.read("p256.key")));
    let (word, message) = rotation(&mut trust, &leaked, &acme).expect_err("a private key");
    assert!(word == "malformed" && message.contains("a private key"), "{word}: {message}");
}

#[test]
fn a_revoked_key_does_not_name_its_successor() {
    let (lab, acme, new) = (Lab::new(), Key::new(), Key::new());
    lab.write("acme.pub", acme.public.as_bytes());
    let policy = signer("acme", "key = \"acme.pub\"", "");
    let mut trust = lab.trust(&format!("{policy}[[revoke]]\nkey = \"{}\"\n", acme.id()));
    let text = PolicyTrust::rotation("acme", &new.public);
    assert_eq!(rotation(&mut trust, &text, &acme).expect_err("revoked").0, "revoked");
    // The other way round: the new key is revoked, and the change is of no use.
    let mut trust = lab.trust(&format!("{policy}[[revoke]]\nkey = \"{}\"\n", new.id()));
    rotation(&mut trust, &text, &acme).expect("the old key is good");
    assert_eq!(judge(&trust, &new, Signs::CATALOG), Err("revoked"));
}

#[test]
fn a_certificate_succeeds_a_key() {
    let (lab, acme) = (Lab::new(), Key::new());
    lab.write("acme.pub", acme.public.as_bytes());
    let mut trust = lab.trust(&signer("acme", "key = \"acme.pub\"", ""));
    let signature = PKI.sign("leaf", &[]);
    let judged = |trust: &PolicyTrust| {
        trust.verify_cms(CONTENT, &signature, Signs::CATALOG, None).map_err(|(word, _)| word)
    };
    assert_eq!(judged(&trust), Err("untrusted-signer"));
    let root = String::from_utf8(PKI.read("root.crt")).expect("PEM");
    rotation(&mut trust, &PolicyTrust::rotation("acme", &root), &acme).expect("good");
    assert_eq!(judged(&trust).expect("trusted")[0].signer, "acme");
}
