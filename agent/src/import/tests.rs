//! Lists as they can be found, and lists that somebody has made up.

use std::{fs, os::unix::ffi::OsStrExt};

use super::*;

const SCRIPT: &[u8] = b"#!/bin/sh\necho pump\n";
const ZEROS: &str = "0000000000000000000000000000000000000000000000000000000000000000";

struct Lab(tempfile::TempDir);

impl Lab {
    fn new() -> Self {
        let lab = Self(tempfile::tempdir().expect("a folder"));
        for name in ["pump", "with blank", "new\nline"] {
            fs::write(lab.at(name), SCRIPT).expect("written");
        }
        fs::write(lab.at("text"), b"no program").expect("written");
        lab
    }

    fn at(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn digest(&self) -> String {
        use sha2::Digest as _;
        hex::encode(sha2::Sha256::digest(SCRIPT))
    }

    fn list(&self, form: Form, text: impl AsRef<[u8]>, kinds: Option<Kinds>) -> Imported {
        let file = self.at("list");
        fs::write(&file, text).expect("written");
        list(&file, form, kinds).expect("readable")
    }
}

fn names(imported: &Imported) -> Vec<String> {
    let name = |found: &Found| {
        let name = found.path.file_name().unwrap_or_default().as_bytes();
        String::from_utf8_lossy(name).into_owned()
    };
    imported.carried.iter().map(name).collect()
}

fn reasons(imported: &Imported) -> Vec<&str> {
    imported.left.iter().map(|left| left.why.as_str()).collect()
}

#[test]
fn all_forms_of_sha256sum() {
    let lab = Lab::new();
    let (digest, folder) = (lab.digest(), lab.0.path().display());
    let text = format!(
        "# by hand\r\n\n{digest}  {folder}/pump\r\n{digest} *{folder}/with blank\n\
         SHA256 ({folder}/with blank) = {digest}\n\\{digest}  {folder}/new\\nline\n{}  {folder}/pump\n",
        digest.to_uppercase(),
    );
    let imported = lab.list(Form::Sha256sum, text, None);
    assert_eq!(reasons(&imported), [""; 0]);
    assert_eq!(names(&imported), ["pump", "with blank", "with blank", "new\nline", "pump"]);
    assert!(imported.carried.iter().all(|found| found.kinds == Kinds::SCRIPT));
}

#[test]
fn what_cannot_be_carried_over_is_placed() {
    let lab = Lab::new();
    let folder = lab.0.path().display();
    let mut text = format!(
        "{ZEROS}  {folder}/pump\n{ZEROS}  {folder}/gone\n{ZEROS}  {folder}/text\n\
         d41d8cd98f00b204e9800998ecf8427e  {folder}/pump\n{}  {folder}/pump\nnonsense\n\
         SHA256 (half\n",
        "0".repeat(40),
    )
    .into_bytes();
    text.extend(b"\xff\x00\xfe\n");
    text.extend(vec![b'a'; MAX_LINE + 1]);
    let imported = lab.list(Form::Sha256sum, text, None);
    assert_eq!(names(&imported), [""; 0]);
    let expected = [
        "is another file here",
        "cannot be looked at",
        "is no program",
        "has a digest of MD5",
        "has a digest of SHA-1",
        "is not `digest  path`",
        "is not `SHA256 (path) = digest`",
        "is not `digest  path`",
        "a line of more than",
    ];
    let found = reasons(&imported);
    assert_eq!(found.len(), expected.len(), "{found:?}");
    for (number, (found, expected)) in (1..).zip(found.iter().zip(expected)) {
        assert!(found.starts_with(expected), "line {number}: {found}");
        assert!(imported.left[number - 1].place.ends_with(&format!("list:{number}")));
    }
    // Elsewhere installed files have to be named for what they are.
    let imported =
        lab.list(Form::Sha256sum, format!("{ZEROS}  /nowhere/x\n"), Some(Kinds::LIBRARY));
    assert_eq!((names(&imported), reasons(&imported)), (vec!["x".to_owned()], Vec::new()));
}

#[test]
fn nothing_that_is_listed_hangs_or_fills_the_memory() {
    let lab = Lab::new();
    rustix::fs::mknodat(
        rustix::fs::CWD,
        lab.at("fifo"),
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::RWXU,
        0,
    )
    .expect("made");
    let giant = fs::File::create(lab.at("giant")).expect("made");
    io::Write::write_all(&mut &giant, SCRIPT).expect("written");
    giant.set_len(100 << 30).expect("sparse");
    let folder = lab.0.path().display();
    let names = ["fifo", "giant", ""];
    let text: String = names.iter().map(|name| format!("{ZEROS}  {folder}/{name}\n")).collect();
    let imported = lab.list(Form::Sha256sum, text, Some(Kinds::EXECUTABLE));
    assert_eq!((imported.carried.len(), imported.left.len()), (0, 3), "{:?}", imported.left);
    assert!(list(&lab.at("fifo"), Form::Sha256sum, None).is_err());
    assert!(list(&lab.at("giant"), Form::Fapolicyd, None).is_err());
}

#[test]
fn trust_files_of_fapolicyd() {
    let lab = Lab::new();
    let (digest, folder, size) = (lab.digest(), lab.0.path().display(), SCRIPT.len());
    let plain = format!(
        "# a comment\n{folder}/pump {size} {digest}\n{folder}/pump 7 {digest}\n{folder}/with blank \
         {size} {digest}\npump {size} {digest}\n{folder}/pump many {digest}\n"
    );
    let imported = lab.list(Form::Fapolicyd, plain, None);
    assert_eq!(names(&imported), ["pump"]);
    let expected = ["has 20 bytes here", "is not `path size", "has a path", "has a size"];
    for (found, expected) in reasons(&imported).iter().zip(expected) {
        assert!(found.starts_with(expected), "{found}");
    }
    assert_eq!(imported.left.len(), expected.len());
    let escaped = format!(
        "# AUTOGENERATED FILE VERSION 2\n{folder}/with%20blank {size} {digest}\n\
         {folder}/new%0Aline {size} {digest}\n{folder}/pump%2 {size} {digest}\n\
         {folder}/pump%00 {size} {digest}\n"
    );
    let imported = lab.list(Form::Fapolicyd, escaped, None);
    assert_eq!(names(&imported), ["with blank", "new\nline"]);
    assert_eq!(imported.left.len(), 2);
}
