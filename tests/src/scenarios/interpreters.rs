//! A11: scripts that are given by name to a listed interpreter, which the policy marks as one.

use std::{
    fs::{self, File},
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::{fs::symlink, process::CommandExt},
    },
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context, Result, ensure};
use rustix::fs::{CWD, FileType, Mode, mknodat};

use super::{base_policy, fresh, list};
use crate::{
    agent::{Agent, Policy, json},
    attack::{self, Attack, Attempt, EVIL, GOOD, exec},
};

/// The interpreter that is marked.
const SHELL: &str = "/usr/bin/bash";

/// Another shell, which is not.
const OTHER_SHELL: &str = "/bin/busybox";

/// «unlisted»; where the kernel cannot hash while a file is opened, the first attempt is refused
/// because nobody has judged the file yet.
const REASONS: &[&str] = &["unlisted", "not-appraised"];

fn shell() -> Command {
    Command::new(SHELL)
}

fn script(code: u8, salt: &str) -> String {
    format!("# {salt}\nexit {code}\n")
}

/// A policy that marks the shell and lists these scripts.
fn policy(scripts: &[&Path]) -> Result<Policy> {
    let policy = base_policy(&[])?;
    list(&policy, Path::new(SHELL), &["executable", "interpreter"])?;
    for script in scripts {
        list(&policy, script, &["script"])?;
    }
    Ok(policy)
}

/// Every way to name an unlisted script.
pub fn by_name() -> Result<()> {
    let lab = fresh("/data/interpreters")?;
    let (listed, start_up, evil) =
        (lab.join("listed.sh"), lab.join("start-up.sh"), lab.join("evil.sh"));
    fs::write(&listed, script(1, "listed"))?;
    fs::write(&start_up, "# start-up\ntrue\n")?;
    let fresh_evil = || -> Result<()> {
        let _ = fs::remove_file(&evil);
        Ok(fs::write(&evil, script(EVIL, "evil"))?)
    };
    fresh_evil()?;
    symlink(&evil, lab.join("link"))?;
    symlink(lab, lab.join("folder"))?;
    fs::hard_link(&evil, lab.join("hard.sh"))?;
    mknodat(CWD, lab.join("fifo"), FileType::Fifo, Mode::RWXU, 0)?;
    let policy = policy(&[&listed, &start_up])?;
    if attack::is_old_kernel() {
        return mark_does_nothing(&policy, &evil);
    }

    let given = |arguments: &[&str]| exec(shell().current_dir(lab).args(arguments));
    let path = evil.display().to_string();
    let by_path = || given(&[&path]);
    let relative = || given(&["evil.sh"]);
    let dotted = || given(&["./folder//./folder/../interpreters/evil.sh"]);
    let by_search = || exec(shell().env("PATH", lab).arg("evil.sh"));
    let after_options = || given(&["-e", "-o", "posix", "--", "evil.sh"]);
    let many_options = || given(&[&["-e"; 80][..], &["evil.sh"]].concat());
    let after_listed = || given(&["--rcfile", "start-up.sh", "-i", "evil.sh"]);
    let as_rc_file = || given(&["--rcfile", "evil.sh", "-i", "listed.sh"]);
    let by_link = || given(&["link"]);
    let by_hard_link = || given(&["hard.sh"]);
    let by_folder = || given(&["/proc/self/cwd/folder/evil.sh"]);
    let through_env = || exec(Command::new("/usr/bin/env").arg(SHELL).arg(&evil));
    let long_name = || given(&[&format!("{}{path}", "/.".repeat(1500))]);
    let as_user = || exec(shell().arg(&evil).uid(65534).gid(65534));
    let by_descriptor = || {
        let file = File::open(&evil)?;
        let inherited: OwnedFd = rustix::io::dup(&file)?;
        exec(shell().arg(format!("/proc/self/fd/{}", inherited.as_raw_fd())))
    };
    let by_input = || {
        let status = shell().arg("/proc/self/fd/0").stdin(File::open(&evil)?).status()?;
        attack::verdict(status)
    };
    let changed = || {
        let changed = lab.join("changed.sh");
        fs::copy(&start_up, &changed)?;
        ensure!(shell().arg(&changed).status()?.code().is_some());
        let text = fs::read_to_string(&start_up)? + &script(EVIL, "appended");
        fs::write(&changed, text)?;
        exec(shell().arg(&changed))
    };
    let named_pipe = || {
        let pipe = lab.join("fifo");
        let mut child = shell().arg(&pipe).stderr(Stdio::null()).spawn()?;
        // Without waiting for a reader that is refused.
        let end = std::time::Instant::now() + crate::agent::PATIENCE;
        loop {
            use std::{io::Write, os::unix::fs::OpenOptionsExt};
            let writer =
                fs::OpenOptions::new().write(true).custom_flags(libc::O_NONBLOCK).open(&pipe);
            if let Ok(mut writer) = writer {
                // The reader may have gone.
                let _ = writer.write_all(script(EVIL, "fifo").as_bytes());
                drop(writer);
                return attack::verdict(child.wait()?);
            }
            if let Some(status) = child.try_wait()? {
                return attack::verdict(status);
            }
            ensure!(std::time::Instant::now() < end, "nobody opened the pipe");
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
    };
    let made_up = || {
        let content = format!("x\nexit {EVIL}\n");
        exec(shell().env_clear().env("A", content).arg("/proc/self/environ"))
    };
    let not_a_file: &[&str] = &["not-a-file"];
    attack::run(
        &policy,
        &[
            named("by its path", &by_path),
            named("by its name in the current folder", &relative),
            named("by a path with dots and links to folders", &dotted),
            named("found along PATH", &by_search),
            named("after options", &after_options),
            named("after more options than are looked at", &many_options),
            named("after an option with a listed script", &after_listed),
            named("as a start-up file", &as_rc_file),
            named("by a symbolic link", &by_link),
            named("by a hard link", &by_hard_link),
            named("through /proc/self/cwd", &by_folder),
            named("by a very long name", &long_name),
            named("through env", &through_env),
            named("as a user", &as_user),
            named("by a descriptor", &by_descriptor),
            named("as what stands at standard input", &by_input),
            named("changed after it was judged", &changed),
            Attack {
                name: "script from a named pipe".into(),
                attempt: &named_pipe,
                reasons: not_a_file,
            },
            Attack {
                name: "script from /proc/self/environ".into(),
                attempt: &made_up,
                reasons: not_a_file,
            },
        ],
    )
}

/// Linux 5.10 has nothing to judge scripts with that are given by name; `status` says so. What is
/// started by exec is judged all the same.
fn mark_does_nothing(policy: &Policy, evil: &Path) -> Result<()> {
    attack::note("interpreter-scripts", "the mark does nothing on this kernel");
    let agent = Agent::start(policy, "enforce", &["--skip-preflight"])?;
    let status = json(&["status", "--json"])?;
    let checks = status["checks"].as_array().context("checks")?;
    let check = checks.iter().find(|check| check["id"] == "interpreters").context("no check")?;
    ensure!(check["state"] == "warning" && check["mend"].is_string(), "{check}");
    let by_name = exec(shell().arg(evil))?;
    ensure!(by_name == Attempt::Ran, "it is refused: take it out of docs/limits.md");
    attack::install(evil, format!("#!{SHELL}\n{}", script(EVIL, "by exec")).as_bytes())?;
    ensure!(attack::exec_path(evil)? == Attempt::Refused, "a script that was started by exec");
    agent.stop()
}

fn named<'a>(how: &str, attempt: &'a dyn Fn() -> Result<Attempt>) -> Attack<'a> {
    Attack { name: format!("script given {how}"), attempt, reasons: REASONS }
}

/// What goes on as before in enforce mode.
pub fn ordinary_use() -> Result<()> {
    let lab = fresh("/data/interpreters")?;
    let listed = lab.join("listed.sh");
    let reader = lab.join("reader");
    let started = lab.join("started.sh");
    let data = lab.join("reader.data");
    fs::write(&listed, script(GOOD, "listed"))?;
    fs::write(&reader, "read code < \"$1\"\nread same < \"$0.data\"\nexit $code\n")?;
    attack::install(&started, b"#!/usr/bin/bash -e\nread code < \"$1\"\nexit $code\n")?;
    fs::write(&data, format!("{GOOD}\n"))?;
    let policy = policy(&[&listed, &reader, &started])?;
    let agent = Agent::start(&policy, "enforce", &["--skip-preflight"])?;
    let path = |path: &Path| path.display().to_string();
    let good = |what: &str, command: &mut Command| -> Result<()> {
        let status = command.status().with_context(|| what.to_owned())?;
        ensure!(status.code() == Some(i32::from(GOOD)), "{what}: ended with {status}");
        Ok(())
    };
    let result = (|| {
        good("a listed script", shell().arg(&listed))?;
        good("the same after options", shell().args(["-e", "--", &path(&listed)]))?;
        good("the same in its folder", shell().current_dir(lab).arg("listed.sh"))?;
        good("a script that is given data", shell().args([path(&reader), path(&data)]))?;
        good("a script started by exec", Command::new(&started).arg(&data))?;
        let inline = format!("read code < {}; exit $code", path(&data));
        good("code in an argument", shell().args(["-c", &inline]))?;
        let words = ["-c", "read code < \"$1\"; exit $code", "_"];
        good("code and data in arguments", shell().args(words).arg(&data))?;
        let here = format!("read code <<END\n{GOOD}\nEND\nexit $code\n");
        good("a here-document", shell().args(["-c", &here]))?;
        let unmarked = lab.join("unmarked.sh");
        fs::write(&unmarked, script(GOOD, "unmarked"))?;
        good("an unmarked shell", Command::new(OTHER_SHELL).arg("sh").arg(&unmarked))?;
        // A shell that becomes another program is none any more.
        let other = format!("exec {OTHER_SHELL} sh {}", path(&unmarked));
        good("an unmarked shell in the place of a marked one", shell().args(["-c", &other]))?;
        // L16: what is not seen. If one of these is, docs/limits.md has to be changed.
        good("standard input", shell().stdin(File::open(&unmarked)?))?;
        let sourced = format!(". {}", path(&unmarked));
        good("a sourced file", shell().args(["-c", &sourced]))?;
        good("a file in the environment", shell().env("BASH_ENV", &unmarked).arg(&reader))
    })();
    agent.stop()?;
    result
}
