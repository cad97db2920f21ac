//! Folders as they can be found on a device.

use std::{fs, os::unix::ffi::OsStrExt};

use tempfile::TempDir;

use super::*;
use crate::trust::{
    key,
    sign::{self, PrivateKey},
};

/// A folder of catalogs, and a policy that trusts `acme` and `plant`.
pub(in crate::catalog) struct Lab {
    pub folder: TempDir,
    pub shelf: TempDir,
    pub acme: PrivateKey,
    pub plant: PrivateKey,
    /// Of `ops`, who signs policies and nothing else.
    pub ops: PrivateKey,
    pub trust: PolicyTrust,
    pub versions: Versions,
}

pub(in crate::catalog) fn key_pair(folder: &Path, name: &str) -> PrivateKey {
    let made = key::generate_ed25519().expect("random numbers");
    fs::write(folder.join(format!("{name}.pub")), &made.public).expect("written");
    PrivateKey::read(made.private.as_bytes()).expect("a key")
}

impl Lab {
    pub fn new() -> Self {
        Self::with("")
    }

    /// With more in the policy.
    pub fn with(rest: &str) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let place = tempfile::tempdir().expect("a folder");
        let (acme, plant) = (key_pair(place.path(), "acme"), key_pair(place.path(), "plant"));
        let ops = key_pair(place.path(), "ops");
        let signer = |name: &str| {
            format!(
                "[[signer]]\nname = \"{name}\"\nslot = \"maker\"\nkey = \"{name}.pub\"\n\
                 kinds = [\"executable\"]\n"
            )
        };
        let text = format!(
            "name = \"p\"\nversion = 1\nmode = \"audit\"\n{}{}[[signer]]\nname = \"ops\"\nslot = \
             \"operator\"\nkey = \"ops.pub\"\nsigns = [\"policy\"]\n{rest}",
            signer("acme"),
            signer("plant")
        );
        let file = place.path().join("p.toml");
        fs::write(&file, text).expect("written");
        let policy = crate::policy::Policy::load(&file, &indicatif::ProgressBar::hidden());
        let trust = policy.expect("a good policy").trust;
        let versions = Versions::none(&folder.path().join("nothing"));
        let shelf = tempfile::tempdir().expect("a folder");
        Self { folder, shelf, acme, plant, ops, trust, versions }
    }

    pub fn write(&self, name: &str, content: impl AsRef<[u8]>) {
        fs::write(self.folder.path().join(name), content).expect("written");
    }

    /// A document with a bare signature.
    pub fn signed(&self, name: &str, text: &str, by: &PrivateKey) {
        self.write(name, text);
        self.write(&format!("{name}.sig"), sign::raw(by, text.as_bytes()).expect("Ed25519"));
    }

    pub fn read(&self) -> Reading {
        let shelf = Shelf::new(self.shelf.path());
        read_folder(
            self.folder.path(),
            &shelf,
            &mut self.trust.clone(),
            &self.versions,
            (&Unchecked, None),
        )
    }

    /// What is in force, and what is not, as `FILE: REASON`.
    pub fn seen(&self) -> (Vec<String>, Vec<String>) {
        let reading = self.read();
        let name = |path: &Path| {
            let name = path.file_name().unwrap_or_default();
            String::from_utf8_lossy(name.as_bytes()).into_owned()
        };
        let refused =
            reading.refused.iter().map(|one| format!("{}: {}", name(&one.path), one.reason));
        (reading.catalogs.iter().map(|one| name(&one.path)).collect(), refused.collect())
    }

    pub fn check(&self, in_force: &[&str], refused: &[&str]) {
        let (found_in_force, found_refused) = self.seen();
        assert_eq!(found_in_force, in_force, "refused: {found_refused:?}");
        assert_eq!(found_refused, refused);
    }
}

pub(in crate::catalog) fn catalog(name: &str, version: u64, byte: u8) -> String {
    format!(
        "# portcullis manifest 1\n# catalog: {name}\n# version: {version}\n# kinds: executable\n\
         {}  /bin/{name}\n# end: 1 entries\n",
        hex::encode([byte; 32])
    )
}

#[test]
fn a_signed_catalog_counts_whatever_lies_beside_it() {
    let lab = Lab::new();
    lab.signed("good.catalog", &catalog("good", 1, 1), &lab.acme);
    lab.write("unsigned.catalog", catalog("unsigned", 1, 2));
    lab.write("no-document.catalog.sig", [0; 64]);
    lab.signed("malformed.catalog", "# portcullis manifest 1\n# catalog: a b\n", &lab.acme);
    lab.signed("no-name.catalog", "# portcullis manifest 1\n# end: 0 entries\n", &lab.acme);
    lab.signed("empty.catalog", "", &lab.acme);
    lab.signed(
        "nothing.catalog",
        "# portcullis manifest 1\n# catalog: n\n# version: 1\n# end: 0\n",
        &lab.acme,
    );
    lab.write("none.catalog", "");
    lab.write("notes.txt", "hello");
    lab.signed("short.catalog", &catalog("short", 1, 3), &lab.acme);
    lab.write("short.catalog.sig", [0; 63]);
    lab.signed("changed.catalog", &catalog("changed", 1, 4), &lab.acme);
    lab.write("changed.catalog", catalog("changed", 1, 5));
    let stranger = key_pair(tempfile::tempdir().expect("a folder").path(), "stranger");
    lab.signed("stranger.catalog", &catalog("stranger", 1, 6), &stranger);
    lab.write(".being-written.catalog", "half");
    lab.check(
        &["good.catalog", "nothing.catalog"],
        &[
            "notes.txt: unknown-file",
            "changed.catalog: bad-signature",
            "empty.catalog: malformed",
            "malformed.catalog: malformed",
            "no-document.catalog: unreadable",
            "no-name.catalog: no-catalog",
            "none.catalog: unsigned",
            "short.catalog: signature-length",
            "stranger.catalog: bad-signature",
            "unsigned.catalog: unsigned",
        ],
    );
    let reading = lab.read();
    let good = &reading.catalogs[0];
    assert_eq!((good.name.as_str(), good.version, good.entries.len()), ("good", 1, 1));
    assert_eq!((good.by[0].signer.as_str(), good.kinds().0 != 0), ("acme", true));
    let malformed = reading
        .refused
        .iter()
        .find(|one| one.reason == "malformed" && one.path.ends_with("malformed.catalog"));
    let message = &malformed.expect("refused").message;
    assert!(
        message.contains("malformed.catalog:2:11: the catalog's name is not usable"),
        "{message}"
    );
}

#[test]
fn what_is_no_file_is_refused_and_hangs_nobody() {
    let lab = Lab::new();
    let path = |name: &str| lab.folder.path().join(name);
    let fifo = |name: &str| {
        let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
        rustix::fs::mknodat(rustix::fs::CWD, path(name), rustix::fs::FileType::Fifo, mode, 0)
            .expect("a FIFO");
    };
    fifo("fifo.catalog");
    fifo("beside.catalog.sig");
    lab.write("beside.catalog", catalog("beside", 1, 1));
    fs::create_dir(path("folder.catalog")).expect("a folder");
    lab.write("folder.catalog.sig", [0; 64]);
    std::os::unix::fs::symlink("nowhere", path("link.catalog")).expect("a link");
    std::os::unix::fs::symlink("loop.catalog", path("loop.catalog")).expect("a link");
    lab.check(
        &[],
        &[
            "beside.catalog: unreadable",
            "fifo.catalog: unreadable",
            "folder.catalog: unreadable",
            "link.catalog: unreadable",
            "loop.catalog: unreadable",
        ],
    );
}

#[test]
fn of_several_signatures_every_one_must_be_good() {
    let lab = Lab::new();
    let pki = &crate::trust::tests::pki::PKI;
    let text = catalog("both", 1, 1);
    let root = PolicyTrust::rotation("acme", &String::from_utf8_lossy(&pki.read("root.crt")));
    lab.signed("acme.rotation", &root, &lab.acme);
    let by_leaf = |text: &str| {
        fs::write(pki.path("catalog-text"), text).expect("written");
        pki.openssl(&[
            "cms",
            "-sign",
            "-binary",
            "-outform",
            "DER",
            "-in",
            "catalog-text",
            "-signer",
            "leaf.crt",
            "-inkey",
            "p256.key",
            "-certfile",
            "inter.crt",
        ])
    };
    lab.signed("both.catalog", &text, &lab.plant);
    lab.write("both.catalog.p7s", by_leaf(&text));
    lab.check(&["both.catalog"], &[]);
    let by: Vec<_> = lab.read().catalogs[0].by.iter().map(|by| by.signer.clone()).collect();
    assert_eq!(by, ["acme", "plant"]);

    // Bad alone, beside a good one, each in turn.
    lab.write("both.catalog.p7s", by_leaf("another text"));
    lab.check(&[], &["both.catalog: content-changed"]);
    lab.write("both.catalog.p7s", by_leaf(&text));
    lab.write("both.catalog.sig", [7; 64]);
    lab.check(&[], &["both.catalog: bad-signature"]);
    // An empty signature is not the same as none.
    lab.write("both.catalog.sig", "");
    lab.check(&[], &["both.catalog: signature-length"]);
}

#[test]
fn a_message_holds_its_catalog() {
    let lab = Lab::new();
    let pki = &crate::trust::tests::pki::PKI;
    let root = PolicyTrust::rotation("acme", &String::from_utf8_lossy(&pki.read("root.crt")));
    lab.signed("acme.rotation", &root, &lab.acme);
    let message = sign::cms(
        &pki.private_key("p256"),
        &pki.certificate("leaf"),
        &[pki.certificate("inter")],
        catalog("inside", 4, 1).as_bytes(),
        sign::Content::Attached,
    )
    .expect("signed");
    lab.write("inside.catalog.p7m", &message);
    lab.check(&["inside.catalog.p7m"], &[]);
    assert_eq!(lab.read().catalogs[0].version, 4);
    // A detached signature around nothing is not a message.
    let detached = sign::cms(
        &pki.private_key("p256"),
        &pki.certificate("leaf"),
        &[pki.certificate("inter")],
        b"x",
        sign::Content::Detached,
    );
    lab.write("inside.catalog.p7m", detached.expect("signed"));
    lab.check(&[], &["inside.catalog.p7m: no-content"]);
    // The text beside it would be another one than the text inside it: which one was meant?
    lab.write("inside.catalog.p7m", &message);
    lab.write("inside.catalog", catalog("beside", 9, 9));
    lab.check(&[], &["inside.catalog.p7m: content-differs"]);
    lab.write("inside.catalog", catalog("inside", 4, 1));
    lab.check(&["inside.catalog.p7m"], &[]);
}

#[test]
fn of_each_catalog_the_newest_is_in_force() {
    let mut lab = Lab::new();
    lab.signed("a.catalog", &catalog("pump", 1, 1), &lab.acme);
    lab.signed("b.catalog", &catalog("pump", 3, 2), &lab.acme);
    lab.signed("c.catalog", &catalog("pump", 2, 3), &lab.acme);
    // The same bytes under another name, and a catalog of this name by somebody else.
    lab.signed("d.catalog", &catalog("pump", 3, 2), &lab.acme);
    lab.signed("e.catalog", &catalog("pump", 1, 4), &lab.plant);
    // The same version with other content: refused, whichever is first.
    lab.signed("f.catalog", &catalog("pump", 3, 5), &lab.acme);
    lab.check(
        &["b.catalog", "e.catalog"],
        &[
            "a.catalog: superseded",
            "c.catalog: superseded",
            "d.catalog: superseded",
            "f.catalog: same-version",
        ],
    );

    // What was in force is remembered, and nothing older comes back.
    let mut versions = Versions::none(&lab.folder.path().join("nothing"));
    assert!(lab.read().remember(&mut versions));
    assert!(!lab.read().remember(&mut versions), "no news");
    lab.versions = versions;
    for name in ["b", "d"] {
        fs::remove_file(lab.folder.path().join(format!("{name}.catalog"))).expect("removed");
        fs::remove_file(lab.folder.path().join(format!("{name}.catalog.sig"))).expect("removed");
    }
    lab.check(
        &["e.catalog"],
        &["a.catalog: superseded", "c.catalog: superseded", "f.catalog: same-version"],
    );
    fs::remove_file(lab.folder.path().join("f.catalog")).expect("removed");
    fs::remove_file(lab.folder.path().join("f.catalog.sig")).expect("removed");
    lab.check(&["e.catalog"], &["a.catalog: superseded", "c.catalog: rollback"]);
    lab.signed("g.catalog", &catalog("pump", 4, 6), &lab.acme);
    lab.check(&["e.catalog", "g.catalog"], &["a.catalog: superseded", "c.catalog: superseded"]);
}

#[test]
fn the_policy_revokes_old_versions() {
    let lab = Lab::with("[[revoke]]\ncatalog = \"pump\"\nbelow = 3\n");
    lab.signed("a.catalog", &catalog("pump", 2, 1), &lab.acme);
    lab.signed("b.catalog", &catalog("pump", 3, 2), &lab.plant);
    lab.signed("c.catalog", &catalog("motor", 1, 3), &lab.acme);
    lab.check(&["b.catalog", "c.catalog"], &["a.catalog: revoked"]);
}

#[test]
fn changes_of_keys_come_first_in_whatever_order() {
    for names in [["a", "b"], ["b", "a"]] {
        let lab = Lab::new();
        let place = tempfile::tempdir().expect("a folder");
        let (new, newest) = (key_pair(place.path(), "new"), key_pair(place.path(), "newest"));
        let text = |name: &str| {
            let public = fs::read_to_string(place.path().join(format!("{name}.pub")));
            PolicyTrust::rotation("acme", &public.expect("written above"))
        };
        lab.signed(&format!("{}.rotation", names[0]), &text("new"), &lab.acme);
        lab.signed(&format!("{}.rotation", names[1]), &text("newest"), &new);
        lab.signed("x.catalog", &catalog("pump", 1, 1), &newest);
        lab.check(&["x.catalog"], &[]);
        // Somebody else's signer, nobody's, and a text that is none.
        lab.signed("c.rotation", &text("new"), &lab.plant);
        lab.write("d.rotation", text("new"));
        lab.signed("e.rotation", "hello", &lab.acme);
        lab.check(
            &["x.catalog"],
            &["c.rotation: untrusted-signer", "d.rotation: unsigned", "e.rotation: malformed"],
        );
    }
}

#[test]
fn no_more_than_a_folder_can_hold() {
    let lab = Lab::new();
    for number in 0..=folder::MAX_DOCUMENTS {
        lab.signed(
            &format!("{number:03}.catalog"),
            &catalog(&format!("c{number}"), 1, 1),
            &lab.acme,
        );
    }
    let (in_force, refused) = lab.seen();
    assert_eq!(in_force.len(), folder::MAX_DOCUMENTS);
    assert_eq!(refused, ["256.catalog: too-many"]);
}

#[test]
fn one_file_is_looked_at_as_a_device_would() {
    let lab = Lab::new();
    lab.signed("good.catalog", &catalog("good", 1, 1), &lab.acme);
    lab.write("unsigned.catalog", catalog("unsigned", 1, 2));
    let path = |name: &str| lab.folder.path().join(name);
    let (looked, by) = look_at(&path("good.catalog"), &lab.trust, None).expect("good");
    assert_eq!((looked.name.as_deref(), looked.digests, looked.withdrawn), (Some("good"), 1, 0));
    assert_eq!(by[0].signer, "acme");
    let why = |name: &str| look_at(&path(name), &lab.trust, None).map(|_| ()).map_err(|why| why.0);
    assert_eq!(why("unsigned.catalog"), Err("unsigned"));
    assert_eq!(why("none.catalog"), Err("unreadable"));
    assert_eq!(why("notes.txt"), Err("unknown-file"));
    // The signature's own name is as good.
    assert_eq!(why("good.catalog.sig"), Ok(()));
}
