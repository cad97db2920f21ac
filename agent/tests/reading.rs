//! The process that reads what comes from outside, as the agent starts it: the real binary.

use std::{fs, os::unix::ffi::OsStrExt, path::Path, time::Duration};

use portcullis::{
    policy::{
        bundle::{Bundle, Head, Options, build},
        files::Files as _,
    },
    reader::{Blocks, Pieces, Same, Start, Task, Trouble},
};
use sha2::{Digest as _, Sha256};

const DIGEST: &str = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";

fn start() -> Start {
    Start { program: env!("CARGO_BIN_EXE_portcullis").into(), ..Start::default() }
}

fn task(file: &Path) -> Task {
    Task::Policy { file: file.as_os_str().as_bytes().to_vec() }
}

/// A policy with a manifest.
fn policy(folder: &Path, rest: &str) -> std::path::PathBuf {
    let manifest =
        format!("# portcullis manifest 1\n# kinds: library\n{DIGEST}  /a\n# end: 1 entries\n");
    fs::write(folder.join("list"), manifest).expect("written");
    let file = folder.join("policy.toml");
    let text = format!("name = \"p\"\nversion = 1\nmode = \"audit\"\ninclude = [\"list\"]\n{rest}");
    fs::write(&file, text).expect("written");
    file
}

#[test]
fn a_policy_is_read_with_what_it_names_and_nothing_else_is_taken_afterwards() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = policy(folder.path(), "");
    let mut same = Same::default();
    assert_eq!(start().read(&task(&file), &mut same).expect("read to the end"), Ok(()));
    let list = folder.path().join("list");
    for read in [&file, &list] {
        assert_eq!(same.read(read).expect("as it was"), fs::read(read).expect("there"));
    }
    // What was not read then, and what is not the same any more.
    let other = folder.path().join("other");
    fs::copy(&list, &other).expect("copied");
    assert!(same.read(&other).expect_err("not read").message.contains("was changed"));
    fs::copy(&list, &file).expect("copied");
    assert!(same.read(&file).expect_err("changed").message.contains("was changed"));
}

#[test]
fn mistakes_come_back_in_the_same_words() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = policy(
        folder.path(),
        "includ = []\n[[signer]]\nname = \"a\"\nslot = \"maker\"\nkey = \"gone\"\n",
    );
    let (reason, message) = start()
        .read(&task(&file), &mut Same::default())
        .expect("read to the end")
        .expect_err("mistakes");
    let own = portcullis::policy::Policy::load(&file, &indicatif::ProgressBar::hidden());
    assert_eq!((reason, message), ("mistakes", own.expect_err("mistakes").to_string()));
}

#[test]
fn a_bundle_is_read_by_its_head_and_whole() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = policy(folder.path(), "");
    let hidden = indicatif::ProgressBar::hidden();
    let bytes = build(&file, &Options::default(), &hidden).expect("built");
    let path = folder.path().join("p.bundle");
    fs::write(&path, &bytes).expect("written");
    let opened = fs::File::open(&path).expect("there");
    let length = bytes.len() as u64;
    let mut blocks = Blocks::of(&opened, &[]);
    let head = Task::BundleHead { length };
    assert_eq!(start().read(&head, &mut blocks).expect("read to the end"), Ok(()));
    // Whatever becomes of the file, the agent reads what was read before.
    fs::write(&path, vec![b'x'; bytes.len()]).expect("written");
    let head = Head::parse(blocks.given(length), length).expect("a head");
    let bundle = Bundle::parse(bytes.clone()).expect("a bundle");
    assert_eq!(head.signed_bytes(), bundle.signed_bytes());
    let whole = |bytes: &[u8]| {
        start().read(&Task::Bundle, &mut Pieces(&[("bundle", bytes)], &[])).expect("to the end")
    };
    assert_eq!(whole(&bytes), Ok(()));
    assert_eq!(whole(&bytes[..bytes.len() - 1]).expect_err("cut").0, "truncated");
    assert_eq!(whole(b"manifest.json").expect_err("nothing").0, "malformed");
}

#[test]
fn what_would_fill_the_memory_ends_the_process_that_reads_it() {
    // Each line is two bytes, and an element of a table many times more.
    let mut text = b"name = \"p\"\nversion = 1\nmode = \"audit\"\nsigned = [\n".to_vec();
    text.extend(b"1,".repeat(60 << 20));
    text.extend(b"]\n");
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("policy.toml");
    fs::write(&file, &text).expect("written");
    drop(text);
    let trouble = start().read(&task(&file), &mut Same::default()).expect_err("too much");
    assert!(matches!(trouble, Trouble::Ended { .. }), "{trouble}");
    println!("{trouble}");
}

#[test]
fn what_is_nested_deeply_is_read_to_the_end() {
    let folder = tempfile::tempdir().expect("a folder");
    for rest in ["x = ".to_owned() + &"[".repeat(1 << 20), "a.".repeat(1 << 18) + "a = 1\n"] {
        let file = policy(folder.path(), &rest);
        let read = start().read(&task(&file), &mut Same::default());
        assert!(matches!(read, Ok(Err(("mistakes", _)))), "{:?}", read.map_err(|t| t.to_string()));
    }
}

#[test]
fn nobody_else_gets_anything_from_it() {
    // Started by hand it has no agent to ask.
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_portcullis"))
        .arg("read-policy")
        .stdin(std::process::Stdio::null())
        .output()
        .expect("started");
    assert_eq!(output.status.code(), Some(3), "{output:?}");
    assert_eq!(output.stdout, b"");
    let slow = Start { silence: Duration::from_secs(1), ..start() };
    let digest = hex::encode(Sha256::digest(b""));
    let token = [("token", digest.as_bytes())];
    let (reason, _) =
        slow.read(&Task::Token, &mut Pieces(&token, &[])).expect("read").expect_err("no token");
    assert_eq!(reason, "malformed");
}
