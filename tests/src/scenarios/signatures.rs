//! Signatures that files carry themselves: what a signer vouches for runs, and nothing else.

use std::{
    fs::{self, File},
    os::{fd::AsRawFd, unix::fs::PermissionsExt},
    path::{Path, PathBuf},
    process::Command,
    sync::atomic::{AtomicBool, Ordering},
};

use anyhow::{Context, Result, ensure};
use rustix::fs::XattrFlags;
use serde_json::Value;

use super::{base_policy, fresh, sha256};
use crate::{
    agent::{Agent, Policy, expect, json, text},
    attack::{Attempt, evil, exec_path, install, map_as_code},
    events,
};

/// What the host has made.
pub const SIGNED: &str = "/files/signatures";
const IMA: &str = "security.ima";

/// A signer of a policy, by its public key.
fn signer(name: &str, key: &str, kinds: &str) -> String {
    format!(
        "\n[[signer]]\nname = \"{name}\"\nslot = \"maker\"\nkey = \"{SIGNED}/{key}.pub.pem\"\n\
         kinds = {kinds}\nsigns = [\"file\"]\n"
    )
}

/// A policy that trusts two signers for programs and libraries, and a third for libraries.
pub fn policy(more: &str) -> Result<Policy> {
    let policy = base_policy(&[])?;
    // Keys of the policy itself come before its tables.
    let written = fs::read_to_string(&policy.file)?;
    let folders = "signed = [\"/tmp/signatures/watched\"]\n";
    fs::write(&policy.file, format!("{folders}{written}"))?;
    let both = "[\"executable\", \"library\"]";
    for (name, key, kinds) in
        [("acme", "rsa", both), ("plant", "ec", both), ("limited", "libraries", "[\"library\"]")]
    {
        policy.append(&signer(name, key, kinds))?;
    }
    policy.append(more)?;
    Ok(policy)
}

/// A folder for what is tried.
fn lab() -> Result<&'static Path> {
    // The kernel takes no signature over a hash that it does not know; some have it built in.
    let _ = Command::new("/sbin/modprobe").args(["-q", "sha512_generic"]).status();
    fresh("/tmp/signatures")
}

fn original(name: &str) -> PathBuf {
    Path::new(SIGNED).join(name)
}

/// The file as the maker made it, without its signature.
fn copy(name: &str, to: &Path) -> Result<()> {
    let _ = fs::remove_file(to);
    fs::copy(original(name), to).with_context(|| name.to_owned())?;
    Ok(fs::set_permissions(to, fs::Permissions::from_mode(0o755))?)
}

fn signature(name: &str) -> Result<Vec<u8>> {
    fs::read(original(&format!("{name}.sig"))).with_context(|| name.to_owned())
}

pub fn sign(file: &Path, attribute: &[u8]) -> Result<()> {
    rustix::fs::setxattr(file, IMA, attribute, XattrFlags::empty()).context("setting security.ima")
}

/// The file with its signature.
fn signed_copy(name: &str, to: &Path) -> Result<()> {
    copy(name, to)?;
    sign(to, &signature(name)?)
}

fn attempt(path: &Path, expected: Attempt, when: &str) -> Result<()> {
    let found = exec_path(path)?;
    ensure!(found == expected, "{when}: {} {found:?}", path.display());
    Ok(())
}

fn maps(path: &Path, expected: Attempt, when: &str) -> Result<()> {
    let found = map_as_code(path)?;
    ensure!(found == expected, "{when}: {} {found:?}", path.display());
    Ok(())
}

pub fn wait_for_rejection(mark: events::Mark, path: &Path, reason: &str) -> Result<Value> {
    events::wait_for(mark, &format!("{} rejected as {reason}", path.display()), |event| {
        event["type"] == "signature"
            && event["reason"] == reason
            && event["path"].as_str().is_some_and(|seen| Path::new(seen) == path)
    })
}

/// Tries until the agent has looked at a file that was refused.
fn eventually(what: &str, mut attempt: impl FnMut() -> Result<Attempt>) -> Result<()> {
    for _ in 0..200 {
        if attempt()? == Attempt::Ran {
            return Ok(());
        }
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    anyhow::bail!("{what}: still refused")
}

/// What is signed when it is seen first runs at once, programs everywhere and libraries in the
/// folders that the policy names.
pub fn first_sight() -> Result<()> {
    let lab = lab()?;
    fs::create_dir_all(lab.join("watched/inner"))?;
    for (name, place) in [
        ("by-rsa", "by-rsa"),
        ("by-ec", "by-ec"),
        ("by-sha384", "by-sha384"),
        ("by-sha512", "by-sha512"),
        ("before.so", "watched/before.so"),
    ] {
        signed_copy(name, &lab.join(place))?;
    }
    let agent = Agent::start(&policy("")?, "enforce", &[])?;
    for name in ["by-rsa", "by-ec", "by-sha384", "by-sha512"] {
        let program = lab.join(name);
        let mark = events::mark()?;
        attempt(&program, Attempt::Ran, "signed when it is seen first")?;
        let event = events::wait_for(mark, "what a signature allows", |event| {
            events::is_decision(event, "allow", &program)
        })?;
        let who = if matches!(name, "by-rsa" | "by-sha384") { "acme" } else { "plant" };
        ensure!(event["rule"]["signers"][0] == who, "{event}");
        attempt(&program, Attempt::Ran, "once more")?;
    }
    let explained = json(&["explain", "--json", text(&lab.join("by-rsa"))?])?;
    ensure!(
        explained[0]["signature"]["signed"][0]["algorithm"] == "RSA 3072 SHA-256",
        "{explained}"
    );
    ensure!(explained[0]["rule"]["file"] == "signature by acme", "{explained}");

    // A copy without the signature has the same content, and identity is content.
    copy("by-rsa", &lab.join("unsigned"))?;
    attempt(&lab.join("unsigned"), Attempt::Ran, "the same content")?;

    maps(&lab.join("watched/before.so"), Attempt::Ran, "a library from before the agent")?;
    let inside = lab.join("watched/inner/inside.so");
    signed_copy("inside.so", &inside)?;
    maps(&inside, Attempt::Ran, "a library in a folder that is named")?;
    // Elsewhere the first attempt is refused.
    let elsewhere = lab.join("elsewhere.so");
    signed_copy("elsewhere.so", &elsewhere)?;
    maps(&elsewhere, Attempt::Refused, "a library elsewhere")?;
    eventually("a library elsewhere", || map_as_code(&elsewhere))?;

    // Signed after a first try.
    let late = lab.join("late");
    copy("late", &late)?;
    attempt(&late, Attempt::Refused, "not signed yet")?;
    sign(&late, &signature("late")?)?;
    attempt(&late, Attempt::Ran, "signed after a first try")?;

    // What it says of the content is over with the content.
    fs::write(&late, evil("after signing")?)?;
    attempt(&late, Attempt::Refused, "changed after it was signed")?;
    let status = json(&["status", "--json"])?;
    let checks = status["checks"].as_array().context("checks")?;
    ensure!(
        checks.iter().any(|check| check["id"] == "signatures" && check["state"] == "ok"),
        "{status}"
    );
    agent.stop()
}

/// A signature over the digest that the kernel verifies the file against.
pub fn verity() -> Result<()> {
    super::fsverity::with_filesystem(|at| {
        let program = at.join("program");
        signed_copy("verity", &program)?;
        let plain = at.join("plain");
        signed_copy("verity", &plain)?;
        super::fsverity::enable(&program)?;
        let agent = Agent::start(&policy("")?, "enforce", &[])?;
        let mark = events::mark()?;
        attempt(&plain, Attempt::Refused, "signed by a digest that nobody verifies")?;
        wait_for_rejection(mark, &plain, "no-fs-verity")?;
        attempt(&program, Attempt::Ran, "signed by its fs-verity digest")?;
        agent.stop()
    })
}

/// Signatures that do not count, each with its reason.
pub fn rejected() -> Result<()> {
    let lab = lab()?;
    let good = signature("by-rsa")?;
    let mut cases: Vec<(&str, &str, Vec<u8>, &str)> = vec![
        ("of another file", "by-ec", good.clone(), "bad-signature"),
        ("by a stranger", "by-stranger", signature("by-stranger")?, "untrusted-signer"),
        ("by a key of 1024 bits", "by-small", signature("by-small")?, "untrusted-signer"),
        ("over SHA-1", "by-sha1", signature("by-sha1")?, "weak-hash"),
        ("for libraries", "by-libraries", signature("by-libraries")?, "wrong-kind"),
        ("cut short", "by-sha384", signature("by-sha384")?, "truncated"),
        ("with more after it", "by-sha512", signature("by-sha512")?, "trailing-data"),
        ("of the other form", "verity", signature("verity")?, "no-fs-verity"),
    ];
    cases[5].2.pop();
    cases[6].2.push(0);
    let files: Vec<_> =
        cases.iter().enumerate().map(|(n, _)| lab.join(format!("case{n}"))).collect();
    for ((_, name, attribute, _), file) in cases.iter().zip(&files) {
        copy(name, file)?;
        sign(file, attribute)?;
        attempt(file, Attempt::Ran, "before there is an agent")?;
    }
    let agent = Agent::start(&policy("")?, "audit", &[])?;
    for ((what, _, _, reason), file) in cases.iter().zip(&files) {
        let mark = events::mark()?;
        attempt(file, Attempt::Ran, what).context("in audit mode")?;
        events::wait_for(mark, what, |event| events::is_decision(event, "would-deny", file))?;
        wait_for_rejection(mark, file, reason)?;
    }
    // What has just run without the policy's leave stands in the way otherwise.
    expect(0, &["mode", "enforce", "--skip-preflight"])?;
    let mark = events::mark()?;
    for ((what, ..), file) in cases.iter().zip(&files) {
        attempt(file, Attempt::Refused, what)?;
        println!("  refused: a signature {what}");
    }
    events::wait_for(mark, "the last", |event| {
        files.last().is_some_and(|last| events::is_decision(event, "deny", last))
    })?;
    // Each is told of once.
    let told = events::all()?.iter().filter(|event| event["type"] == "signature").count();
    ensure!(told == cases.len(), "{told} rejections told of, and {} made", cases.len());
    let explained = crate::agent::portcullis(&["explain", "--json", text(&files[3])?])?;
    ensure!(explained.status.code() == Some(1), "explain: {}", explained.status);
    let explained: Value = serde_json::from_slice(&explained.stdout)?;
    ensure!(explained[0]["signature"]["refused"][0]["reason"] == "weak-hash", "{explained}");

    // Whoever exchanges the signature between question and start changes nothing: the content
    // decides, and its digest was never vouched for.
    let raced = lab.join("raced");
    install(&raced, &evil("raced")?)?;
    let goes_on = AtomicBool::new(true);
    std::thread::scope(|scope| -> Result<()> {
        let exchanges = scope.spawn(|| -> Result<()> {
            while goes_on.load(Ordering::Relaxed) {
                for attribute in [&good, &cases[1].2] {
                    sign(&raced, attribute)?;
                }
            }
            Ok(())
        });
        let tried = (0..30)
            .try_for_each(|_| attempt(&raced, Attempt::Refused, "a signature that is exchanged"));
        goes_on.store(false, Ordering::Relaxed);
        let exchanged = exchanges.join().map_err(|_| anyhow::anyhow!("the other thread failed"))?;
        tried.and(exchanged)
    })?;
    agent.stop()?;

    let weak = policy(&signer("weak", "small", "[\"executable\"]"))?;
    let output = expect(2, &["policy", "check", text(&weak.file)?])?;
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(error.contains("RSA with 1024 bits"), "{error}");
    Ok(())
}

/// What the policy revokes is refused from then on, also after a restart; deny beats allow; and what
/// goes on being trusted goes on running.
pub fn revoked() -> Result<()> {
    let lab = fresh("/tmp/signatures")?;
    let (program, other) = (lab.join("by-rsa"), lab.join("by-ec"));
    signed_copy("by-rsa", &program)?;
    signed_copy("by-ec", &other)?;
    let _ = fs::remove_dir_all(CATALOGS);
    let agent = Agent::start(&policy("")?, "enforce", &[])?;
    for file in [&program, &other] {
        attempt(file, Attempt::Ran, "trusted")?;
    }
    let shown = json(&["key", "show", "--json", &format!("{SIGNED}/rsa.pub.pem")])?;
    let key = shown["key"].as_str().or(shown["id"].as_str()).context("no id of the key")?;
    let by_key = format!("[[revoke]]\nkey = \"{key}\"\n");
    for revoked in [by_key.as_str(), "[[revoke]]\nsigner = \"acme\"\n"] {
        policy(revoked)?;
        reload()?;
        let mark = events::mark()?;
        attempt(&program, Attempt::Refused, revoked)?;
        wait_for_rejection(mark, &program, "revoked")?;
        attempt(&other, Attempt::Ran, "by another signer")?;
        policy("")?;
        reload()?;
        eventually("trusted again", || exec_path(&program))?;
    }
    policy(&format!("[[deny]]\ndigest = \"{}\"\n", sha256(&program)?))?;
    reload()?;
    attempt(&program, Attempt::Refused, "signed, and denied")?;

    // Another policy keeps what is vouched for.
    policy(
        "[[signer]]\nname = \"lists\"\nslot = \"operator\"\nkey = \
         \"/files/signed/operator.pub.pem\"\nkinds = [\"executable\"]\nsigns = [\"catalog\"]\n",
    )?;
    reload()?;
    eventually("denied no more", || exec_path(&program))?;
    let mark = events::mark()?;
    for entry in fs::read_dir("/files/signed/tools")? {
        let entry = entry?;
        fs::copy(entry.path(), Path::new(CATALOGS).join(entry.file_name()))?;
    }
    events::wait_for(mark, "the switch", |event| event["type"] == "policy-changed")?;
    // Its digest is in the new rules, wherever that came from.
    for file in [&program, &other] {
        rustix::fs::removexattr(file, IMA)?;
        attempt(file, Attempt::Ran, "after the switch")?;
    }
    agent.stop()?;
    let _ = fs::remove_dir_all(CATALOGS);
    super::catalogs::forget_versions();

    sign(&program, &signature("by-rsa")?)?;
    let agent = Agent::start(&policy(&by_key)?, "enforce", &[])?;
    attempt(&program, Attempt::Refused, "revoked before the start")?;
    agent.stop()
}

const CATALOGS: &str = "/var/lib/portcullis/catalogs";

fn reload() -> Result<()> {
    // What is revoked has run a moment ago, which is asked about.
    expect(0, &["policy", "reload", "--skip-preflight"]).map(drop)
}

/// Kernel modules by the signature at their end, compressed ones too.
pub fn modules() -> Result<()> {
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    let lab = fresh("/tmp/signatures")?;
    // Before there is anything to be scanned that is not to be listed.
    let policy = base_policy(&[])?;
    let folder = PathBuf::from(format!("/lib/modules/{release}/signed"));
    fs::create_dir_all(&folder)?;
    let folder = folder.canonicalize()?;
    let made = |name: &str, at: &Path| -> Result<PathBuf> {
        let to = at.join(name);
        fs::copy(original(name), &to).with_context(|| name.to_owned())?;
        Ok(to)
    };
    let plain = made(&format!("dummy-{release}.ko"), &folder)?;
    let packed = made(&format!("dummy-{release}.ko.xz"), &folder)?;
    let other = made(&format!("dummy-{release}-other.ko"), &folder)?;
    let changed = folder.join("changed.ko");
    let mut content = fs::read(&plain)?;
    let place = content.len() / 2;
    content[place] ^= 1;
    fs::write(&changed, &content)?;
    let program = made("program-with-module-signature", lab)?;
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755))?;

    policy.append(&format!(
        "\n[[signer]]\nname = \"kernel\"\nslot = \"operator\"\ncertificate = \
         \"{SIGNED}/module.crt\"\nkinds = [\"module\", \"executable\"]\nsigns = [\"module\"]\n"
    ))?;
    let agent = Agent::start(&policy, "enforce", &[])?;
    let mark = events::mark()?;
    for (file, reason) in [(&other, "untrusted-signer"), (&changed, "bad-signature")] {
        load(file, 0, Attempt::Refused)?;
        wait_for_rejection(mark, file, reason)?;
    }
    load(&plain, 0, Attempt::Ran)?;
    // Opening one has it looked at, in a thread with little room.
    for suffix in ["gz", "zst"] {
        let packed = made(&format!("dummy-{release}.ko.{suffix}"), &folder)?;
        File::open(&packed)?;
        let explained = json(&["explain", "--json", text(&packed)?])?;
        ensure!(explained[0]["rule"]["file"] == "signature by kernel", "{explained}");
    }
    // Linux 6.1 of Debian cannot unpack modules.
    if release.starts_with("6.1.") || release.starts_with("5.") {
        expect(0, &["explain", text(&packed)?])?;
    } else {
        load(&packed, COMPRESSED, Attempt::Ran)?;
    }
    attempt(&program, Attempt::Refused, "a module's signature on a program")?;
    wait_for_rejection(mark, &program, "not-a-module")?;
    let explained = json(&["explain", "--json", text(&plain)?])?;
    let chain = explained[0]["signature"]["signed"][0]["chain"].as_array();
    ensure!(chain.is_some_and(|chain| chain.len() == 1), "{explained}");
    // Elsewhere the first attempt is refused.
    let elsewhere = made(&format!("dummy-{release}-late.ko"), lab)?;
    load(&elsewhere, 0, Attempt::Refused)?;
    eventually("a module elsewhere", || loads(&elsewhere, 0))?;
    agent.stop()?;
    fs::remove_dir_all(&folder)?;
    Ok(())
}

/// `MODULE_INIT_COMPRESSED_FILE` (linux/module.h).
const COMPRESSED: i32 = 4;

fn load(file: &Path, flags: i32, expected: Attempt) -> Result<()> {
    let found = loads(file, flags)?;
    ensure!(found == expected, "loading {}: {found:?}", file.display());
    Ok(())
}

fn loads(file: &Path, flags: i32) -> Result<Attempt> {
    let opened = File::open(file)?;
    // SAFETY: the descriptor is open, and the string is valid.
    let done =
        unsafe { libc::syscall(libc::SYS_finit_module, opened.as_raw_fd(), c"".as_ptr(), flags) };
    if done != 0 {
        let error = std::io::Error::last_os_error();
        ensure!(error.raw_os_error() == Some(libc::EPERM), "loading {}: {error}", file.display());
        return Ok(Attempt::Refused);
    }
    // SAFETY: the string is valid.
    let removed = unsafe { libc::syscall(libc::SYS_delete_module, c"dummy".as_ptr(), 0) };
    ensure!(removed == 0, "dummy cannot be removed: {}", std::io::Error::last_os_error());
    Ok(Attempt::Ran)
}
