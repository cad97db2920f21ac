//! Every mistake that `[[signer]]` and `[[revoke]]` can have, with its place and its mend.

use std::path::Path;

use super::{super::Source, *};

/// Four lines, so that what follows begins in the fifth.
const HEAD: &str = "name = \"p\"\nversion = 1\nmode = \"audit\"\n\n";

/// A signer without mistakes, in lines 5 to 9.
const GOOD: &str = "[[signer]]\nname = \"acme\"\nslot = \"maker\"\ncertificate = \"acme.pem\"\nkinds = [\"library\"]\n";

fn parse(text: &str) -> Result<Source, Vec<String>> {
    Source::parse(Path::new("p"), &format!("{HEAD}{text}"))
        .map_err(|found| found.as_slice().iter().map(ToString::to_string).collect())
}

/// Checks that a text has the mistakes that are listed, and no others.
fn mistakes(text: &str, expected: &[&str]) {
    let found = parse(text).expect_err(text);
    assert_eq!(found, expected, "{text}");
}

#[test]
fn reads_whole_signers() {
    let text = r#"[[signer]]
name = "acme"
slot = "maker"
certificate = ["new.pem", "/etc/old.pem"]
kinds = ["executable", "module"]
signs = ["catalog", "module"]
subject = { organization = "Acme", common_name = "Release" }
usage = "1.3.6.1.5.5.7.3.3"
valid_from = 2026-01-01T00:00:00Z
valid_until = 2027-01-01
comment = "who they are"

[[signer]]
name = "plant"
slot = "operator"
key = "plant.pub"
kinds = ["script"]
"#;
    let source = parse(text).expect("good");
    let [acme, plant] = &source.signers[..] else { panic!("{:?}", source.signers) };
    let paths: Vec<_> = acme.anchors.iter().map(|(anchor, _)| anchor.clone()).collect();
    let certificate = |path: &str| AnchorSource::Certificate(path.into());
    assert_eq!(paths, [certificate("new.pem"), certificate("/etc/old.pem")]);
    assert_eq!((acme.slot, acme.kinds), (Slot::Maker, Kinds::EXECUTABLE.union(Kinds::MODULE)));
    assert_eq!(acme.signs, Signs::CATALOG.union(Signs::MODULE));
    assert_eq!(acme.requirements.organization.as_deref(), Some("Acme"));
    assert_eq!(acme.requirements.organizational_unit, None);
    assert_eq!(acme.requirements.common_name.as_deref(), Some("Release"));
    assert!(acme.requirements.purpose.is_some());
    let times = [acme.valid.0, acme.valid.1].map(|time| time.map(|time| time.to_string()));
    let expected = ["2026-01-01T00:00:00Z", "2027-01-01T00:00:00Z"];
    assert_eq!(times, expected.map(|time| Some(time.to_owned())));
    assert_eq!((plant.slot, plant.signs, plant.valid), (Slot::Operator, Signs::ALL, (None, None)));
    assert_eq!(plant.anchors[0].0, AnchorSource::Key("plant.pub".into()));
    assert_eq!(plant.requirements, Requirements::default());
}

#[test]
fn what_a_signer_lacks() {
    mistakes(
        "[[signer]]\n",
        &[
            "p:5:1: `name` is missing; add what you call the signer: name = \"acme\"",
            "p:5:1: `slot` is missing; add whose it is: slot = \"maker\" or \"operator\"",
            "p:5:1: `kinds` is missing; add what it may vouch for: kinds = [\"executable\"]",
            "p:5:1: `certificate` is missing; add a PEM file, relative to this one: certificate = \
             \"acme.pem\", or key = \"…\" for a public key",
        ],
    );
    mistakes(
        "signer = \"acme\"\n",
        &["p:5:10: [[signer]] must be a list, not this string; write [[signer]] with double \
           brackets"],
    );
    mistakes(
        "signer = [1]\n",
        &["p:5:11: [[signer]] must be a table, not this integer; it has `name`, `slot`, \
           `certificate`, `key`, `kinds`, `signs`, `subject`, `usage`, `valid_from`, \
           `valid_until`, `comment`"],
    );
}

/// Each is a line that replaces the one of its key in [`GOOD`], or comes after it; and what is said.
#[test]
fn every_mistake_of_a_signer_has_its_place() {
    let cases: [(&str, &[&str]); 24] = [
        (
            "name = \"a b\"",
            &["p:6:8: `name` is not usable; use 1 to 64 of the characters A-Z a-z 0-9 . _ -"],
        ),
        (
            "name = 7",
            &["p:6:8: `name` must be a string, not this integer; put it in double quotes"],
        ),
        ("slot = \"makre\"", &["p:7:8: unknown slot \"makre\"; did you mean \"maker\"?"]),
        ("slot = \"both\"", &["p:7:8: unknown slot \"both\"; it can be `maker`, `operator`"]),
        ("certificate = \"\"", &["p:8:15: `certificate` has no usable path; name a file"]),
        ("certificate = \"a\\u0000b\"", &["p:8:15: `certificate` has no usable path; name a file"]),
        ("certificate = []", &["p:8:15: `certificate` names no file; name one"]),
        (
            "certificate = [\"\", 1, \"good.pem\"]",
            &[
                "p:8:16: `certificate` has no usable path; name a file",
                "p:8:20: `certificate` must be a string, not this integer; put it in double quotes",
            ],
        ),
        (
            "key = \"acme.pub\"",
            &["p:10:7: `certificate` and `key` in one [[signer]]; write two: each is trusted by \
               itself"],
        ),
        ("kinds = \"library\"", &["p:9:9: `kinds` must be a list; write kinds = [\"library\"]"]),
        (
            "kinds = []",
            &["p:9:9: `kinds` is empty, so nothing would be allowed; name at least one of \
               `executable`, `library`, `script`, `module`, `firmware`, `kexec`, `jit`, \
               `interpreter`"],
        ),
        ("kinds = [\"libary\"]", &["p:9:10: unknown kind \"libary\"; did you mean \"library\"?"]),
        (
            "signs = \"catalog\"",
            &["p:10:9: `signs` must be a list that is not empty; write signs = [\"catalog\"]"],
        ),
        (
            "signs = []",
            &["p:10:9: `signs` must be a list that is not empty; write signs = [\"catalog\"]"],
        ),
        (
            "signs = [\"catalogue\", \"modul\"]",
            &[
                "p:10:10: unknown signature \"catalogue\"; did you mean \"catalog\"?",
                "p:10:23: unknown signature \"modul\"; did you mean \"module\"?",
            ],
        ),
        (
            "subject = \"Acme\"",
            &["p:10:11: `subject` must be a table, not this string; it has `organization`, \
               `organizational_unit`, `common_name`"],
        ),
        (
            "subject = { organisation = \"Acme\" }",
            &["p:10:13: unknown key `organisation` in `subject`; did you mean `organization`?"],
        ),
        (
            "subject = { common_name = 1 }",
            &["p:10:27: `common_name` must be a string, not this integer; put it in double quotes"],
        ),
        (
            "usage = \"codeSigning\"",
            &["p:10:9: `usage` is not an object identifier; write an extended key usage in \
               figures, such as \"1.3.6.1.5.5.7.3.3\" (code signing)"],
        ),
        (
            "usage = 3",
            &["p:10:9: `usage` must be a string, not this integer; put it in double quotes"],
        ),
        (
            "valid_from = \"soon\"",
            &[
                "p:10:14: `valid_from` is not a point in time; write it with its offset: valid_from \
               = 2027-01-31T00:00:00Z",
            ],
        ),
        (
            "valid_until = 2027-01-31T00:00:00",
            &["p:10:15: `valid_until` is not a point in time; write it with its offset: \
               valid_until = 2027-01-31T00:00:00Z"],
        ),
        (
            "valid_until = 2026-01-01\nvalid_from = 2026-01-01",
            &["p:10:15: `valid_until` is not after `valid_from`; exchange them, or mend one"],
        ),
        (
            "comment = 1",
            &["p:10:11: `comment` must be a string, not this integer; put it in double quotes"],
        ),
    ];
    for (line, expected) in cases {
        let key = line.split(' ').next().unwrap_or_default();
        let mut lines: Vec<_> = GOOD.lines().collect();
        match lines.iter_mut().find(|good| good.starts_with(&format!("{key} = "))) {
            Some(good) => *good = line,
            None => lines.push(line),
        }
        mistakes(&lines.join("\n"), expected);
    }
    parse(GOOD).expect("the control");
}

#[test]
fn a_key_has_no_certificate_to_ask() {
    let text = GOOD.replace("certificate", "key");
    parse(&text).expect("the control");
    mistakes(
        &format!("{text}subject = {{ common_name = \"x\" }}\nusage = \"1.2.3\"\n"),
        &[
            "p:10:11: `subject` says what a certificate must say, and this signer is a key; remove \
             it, or name a certificate",
            "p:11:9: `usage` says what a certificate must say, and this signer is a key; remove it, \
             or name a certificate",
        ],
    );
}

#[test]
fn unknown_keys_and_namesakes() {
    mistakes(
        &format!("{GOOD}singns = [\"file\"]\n\n{GOOD}"),
        &[
            "p:10:1: unknown key `singns` in [[signer]]; did you mean `signs`?",
            "p:12:1: a second signer is called \"acme\"; give each a name of its own",
        ],
    );
}

#[test]
fn reads_every_revocation() {
    let (plain, upper) = ("5a".repeat(32), ["5A"; 32].join(":"));
    let text = format!(
        "[[revoke]]\ncertificate = \"{upper}\"\n[[revoke]]\ncertificate = \"sha256:{plain}\"\n\
         [[revoke]]\nkey = \"{plain}\"\n[[revoke]]\nsigner = \"acme\"\ncomment = \"stolen\"\n\
         [[revoke]]\ncatalog = \"pump\"\nbelow = 13\n"
    );
    let revoked = parse(&text).expect("good").revoked;
    let [certificate, prefixed, key, signer, catalog] = &revoked[..] else { panic!("{revoked:?}") };
    assert_eq!(*certificate, Revoked::Certificate([0x5a; 32]));
    assert_eq!(prefixed, certificate);
    assert_eq!(*key, Revoked::Key([0x5a; 32]));
    assert!(matches!(signer, Revoked::Signer { name, .. } if name == "acme"));
    assert_eq!(*catalog, Revoked::Catalog { name: "pump".into(), below: 13 });
}

#[test]
fn every_mistake_of_a_revocation_has_its_place() {
    const ONE: &str = "p:5:1: [[revoke]] must name one thing that is revoked; name one of \
                       `certificate`, `key`, `signer`, `catalog`";
    let cases: [(&str, &[&str]); 12] = [
        ("comment = \"all\"", &[ONE]),
        ("signer = \"a\"\ncatalog = \"b\"", &[ONE]),
        (
            "certificate = \"ab:cd\"",
            &["p:6:15: a digest of 4 digits; SHA-256 has 64, as sha256sum \
                                       prints them"],
        ),
        (
            "key = \"xy\"",
            &["p:6:7: `x` is not a hexadecimal digit; copy the digest as sha256sum \
                            prints it"],
        ),
        ("key = 1", &["p:6:7: `key` must be a string, not this integer; put it in double quotes"]),
        (
            "signer = \"a b\"",
            &["p:6:10: `signer` is not usable; use 1 to 64 of the characters A-Z \
                                a-z 0-9 . _ -"],
        ),
        ("signer = \"a\"\nbelow = 3", &["p:7:9: `below` goes with `catalog` only"]),
        (
            "catalog = \"a\"",
            &["p:5:1: `below` is missing; add the first version that is good: \
                               below = 13"],
        ),
        (
            "catalog = \"a\"\nbelow = \"3\"",
            &["p:7:9: `below` must be a whole number from 1; write \
                                              the first version that is good, without quotes: \
                                              below = 13"],
        ),
        (
            "catalog = \"a\"\nbelow = 0",
            &["p:7:9: `below` must be a whole number from 1; write the \
                                          first version that is good, without quotes: below = 13"],
        ),
        (
            "catalog = \"\"\nbelow = 2",
            &["p:6:11: `catalog` is not usable; use 1 to 64 of the \
                                         characters A-Z a-z 0-9 . _ -"],
        ),
        (
            "catalogue = \"a\"",
            &[
                ONE,
                "p:6:1: unknown key `catalogue` in [[revoke]]; did you mean \
                                      `catalog`?",
            ],
        ),
    ];
    for (lines, expected) in cases {
        mistakes(&format!("[[revoke]]\n{lines}\n"), expected);
    }
}
