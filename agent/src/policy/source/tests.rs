use super::*;

const GOOD: &str = r#"
name = "plant-7"
version = 3
mode = "enforce"
anonymous_memory = "deny"
mounted_devices = "closed"
other_bpf = "deny"
include = ["base.manifest", { path = "vendor.sha256", kinds = ["library"] }]

[[allow]]
digest = "sha256:AAaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
kinds = ["executable", "library"]
path = "/opt/pump"

[[deny]]
digest = "bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb"
comment = "CVE-2026-1"

[[filesystem]]
type = "nfs"
comment = "served by the plant's own server"
"#;

fn mistakes(text: &str) -> Vec<String> {
    match Source::parse(Path::new("p.toml"), text) {
        Ok(source) => panic!("no mistake found: {source:?}"),
        Err(found) => found.as_slice().iter().map(ToString::to_string).collect(),
    }
}

#[test]
fn a_file_is_listed_by_one_digest_or_the_other() {
    let head = "name = \"p\"\nversion = 1\nmode = \"audit\"\n[[allow]]\n";
    let parse = |rest: &str| {
        Source::parse(Path::new("p.toml"), &format!("{head}{rest}\nkinds = [\"library\"]\n"))
            .map_err(|found| found.to_string())
    };
    let hash = "5a".repeat(32);
    let allow = parse(&format!("fsverity = \"sha256:{hash}\"")).expect("good").allow[0];
    assert_eq!((allow.digest, allow.fsverity), ([0x5a; 32], true));
    let found = parse(&format!("fsverity = \"{hash}\"\ndigest = \"{hash}\"")).expect_err("both");
    assert!(found.contains("write two"), "{found}");
    let found = parse("fsverity = \"sha512:00\"").expect_err("another algorithm");
    assert!(found.contains("fsverity digest"), "{found}");
}

#[test]
fn verified_filesystems_are_listed_by_root_hash() {
    let head = "name = \"p\"\nversion = 1\nmode = \"audit\"\n[[filesystem]]\n";
    let parse = |rest: &str| {
        Source::parse(Path::new("p.toml"), &format!("{head}{rest}\n"))
            .map_err(|found| found.to_string())
    };
    let root = "5a".repeat(32);
    let source = parse(&format!("verity = \"{root}\"")).expect("good");
    let listed = source.verified_filesystems[0];
    assert_eq!((listed.root, listed.line), ([0x5a; 32], 5));
    assert!(listed.kinds.intersects(Kinds::SCRIPT) && !listed.kinds.intersects(Kinds::FIRMWARE));
    let source = parse(&format!("verity = \"{root}\"\nkinds = [\"library\"]")).expect("good");
    assert_eq!(source.verified_filesystems[0].kinds, Kinds::LIBRARY);
    for (wrong, said) in [
        (format!("verity = \"{root}\"\ntype = \"nfs\""), "write two"),
        ("verity = \"abcd\"".into(), "veritysetup format"),
        (format!("verity = \"{root}\"\nkinds = [\"jit\"]"), "mark single programs"),
        ("type = \"nfs\"\nkinds = [\"library\"]".into(), "goes with `verity` only"),
        (String::new(), "verity = "),
    ] {
        let found = parse(&wrong).expect_err(&wrong);
        assert!(found.contains(said), "{found}");
    }
}

#[test]
fn reads_a_whole_policy() {
    let source = Source::parse(Path::new("p.toml"), GOOD).expect("good");
    assert_eq!((source.name.as_str(), source.version), ("plant-7", 3));
    assert_eq!(source.mode, Mode::Enforce);
    assert_eq!(source.include[1].kinds, Some(Kinds::LIBRARY));
    let kinds = Kinds::EXECUTABLE.union(Kinds::LIBRARY);
    assert_eq!(source.allow, [Allow { digest: [0xaa; 32], fsverity: false, kinds, line: 11 }]);
    assert_eq!(source.deny, [Deny { digest: [0xbb; 32], line: 16 }]);
    assert_eq!(source.trusted_filesystems, [0x6969]);
    let choices = Choices::MEMORY_DENIED.union(Choices::MOUNTED_DEVICES_CLOSED);
    assert_eq!(source.choices, choices.union(Choices::OTHER_BPF_DENIED));
}

#[test]
fn every_mistake_is_reported_with_place_and_mend() {
    let text = r#"
nmae = "plant-7"
version = "3"
mode = "enforced"
include = "base.manifest"

[[allow]]
digest = "abc"
kinds = "executable"

[[allow]]
digets = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
kinds = ["executble", "library"]

[[allow]]
digest = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
kinds = []

[[deny]]
digest = "zaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
kinds = ["library"]
"#;
    let expected = [
        "p.toml:1:1: `name` is missing; add a line such as name = \"plant-7\"",
        "p.toml:2:1: unknown key `nmae` in a policy; did you mean `name`?",
        "p.toml:3:11: `version` must be a whole number from 1, not this string; write it \
         without quotes and raise it with every change: version = 1",
        "p.toml:4:8: unknown mode \"enforced\"; did you mean \"enforce\"?",
        "p.toml:5:11: include must be a list, not this string; write include = [\"…\"]",
        "p.toml:8:10: a digest of 3 digits; SHA-256 has 64, as sha256sum prints them",
        "p.toml:9:9: `kinds` must be a list; write kinds = [\"executable\"]",
        "p.toml:11:1: `digest` is missing in [[allow]]; add the file's SHA-256, as sha256sum \
         prints it",
        "p.toml:12:1: unknown key `digets` in [[allow]]; did you mean `digest`?",
        "p.toml:13:10: unknown kind \"executble\"; did you mean \"executable\"?",
        "p.toml:17:9: `kinds` is empty, so nothing would be allowed; name at least one of `executable`, `library`, `script`, `module`, `firmware`, `kexec`, `jit`, \
             `interpreter`",
        "p.toml:20:10: `z` is not a hexadecimal digit; copy the digest as sha256sum prints it",
        "p.toml:21:1: unknown key `kinds` in [[deny]]; a denied digest is denied as every kind",
    ];
    assert_eq!(mistakes(text), expected);
}

#[test]
fn broken_toml_is_placed() {
    let found = mistakes("name = \"a\nversion = 1\nmode = \"audit\"\n");
    assert!(found[0].starts_with("p.toml:1:"), "{found:?}");
    assert!(found[0].contains("not valid TOML"), "{found:?}");
}

#[test]
fn choices_are_words_and_filesystems_are_known() {
    let text = r#"
name = "p"
version = 1
mode = "audit"
anonymous_memory = "dney"
mounted_devices = true

[[filesystem]]
type = "ext4"

[[filesystem]]
type = "nsf"

[[filesystem]]
comment = "which?"
"#;
    let expected = [
        "p.toml:5:20: unknown anonymous_memory \"dney\"; did you mean \"deny\"?",
        "p.toml:6:19: `mounted_devices` must be a string, not this boolean; put it in double quotes",
        "p.toml:9:8: filesystem \"ext4\" is judged by content and needs no trust; remove this \
         [[filesystem]]",
        "p.toml:12:8: unknown filesystem \"nsf\"; did you mean \"nfs\"?",
        "p.toml:14:1: `type` is missing in [[filesystem]]; add the kind that is to be trusted, such \
         as type = \"nfs\", or the root hash of an image, as veritysetup prints it: verity = \"…\"",
    ];
    assert_eq!(mistakes(text), expected);
}

#[test]
fn what_others_may_load_into_the_kernel_is_a_choice() {
    let text = |choice| format!("name = \"p\"\nversion = 1\nmode = \"audit\"\n{choice}\n");
    for (choice, expected) in [
        ("", Choices::NONE),
        ("other_bpf = \"report\"", Choices::NONE),
        ("other_bpf = \"allow\"", Choices::OTHER_BPF_ALLOWED),
        ("other_bpf = \"deny\"", Choices::OTHER_BPF_DENIED),
    ] {
        let source = Source::parse(Path::new("p.toml"), &text(choice)).expect("good");
        assert_eq!(source.choices, expected, "{choice}");
    }
    for (mistake, expected) in [
        ("other_bpf = \"dney\"", "4:13: unknown other_bpf \"dney\"; did you mean \"deny\"?"),
        (
            "other_bpf = \"no\"",
            "4:13: unknown other_bpf \"no\"; it can be `report`, `allow`, `deny`",
        ),
        (
            "other_bpf = false",
            "4:13: `other_bpf` must be a string, not this boolean; put it in double quotes",
        ),
        (
            "other_bfp = \"deny\"",
            "4:1: unknown key `other_bfp` in a policy; did you mean `other_bpf`?",
        ),
    ] {
        assert_eq!(mistakes(&text(mistake)), [format!("p.toml:{expected}")]);
    }
}

#[test]
fn folders_of_signed_files_are_absolute_and_have_a_signer() {
    let head = "name = \"p\"\nversion = 1\nmode = \"audit\"\n";
    let signer =
        "[[signer]]\nname = \"acme\"\nslot = \"maker\"\nkey = \"k\"\nkinds = [\"library\"]\n";
    let text = |folders: &str, more: &str| format!("{head}signed = {folders}\n{signer}{more}");
    let source = Source::parse(Path::new("p.toml"), &text("[\"/opt/app\"]", "")).expect("good");
    assert_eq!(source.signed, [Path::new("/opt/app")]);
    for folder in ["app", "/opt/../etc", "/"] {
        let found = mistakes(&text(&format!("[\"{folder}\"]"), ""));
        let expected = format!("p.toml:4:11: `signed` cannot be the folder \"{folder}\"; write an");
        assert!(found.len() == 1 && found[0].starts_with(&expected), "{found:?}");
    }
    assert_eq!(
        mistakes(&text("\"/opt/app\"", "")),
        ["p.toml:4:10: signed must be a list, not this string; write signed = [\"…\"]"]
    );
    let found = mistakes(&text("[\"/opt/app\"]", "signs = [\"catalog\"]\n"));
    assert!(found[0].contains("no signer signs files or modules; add a [[signer]]"), "{found:?}");
}
