//! Audit mode is invisible to what a whole distribution does.

use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context, Result, ensure};

use super::fresh;
use crate::{
    agent::{Agent, Policy, json},
    attack::is_old_kernel,
};

/// What is done, and in which command lines. Each works in a folder of its own.
const WORK: &[(&str, &str)] = &[
    (
        "a package is built, installed, used and removed",
        r#"mkdir -p soak/DEBIAN soak/opt/soak
        printf '%s\n' 'Package: soak' 'Version: 1' 'Architecture: all' 'Maintainer: nobody' \
            'Description: nothing' > soak/DEBIAN/control
        printf '%s\n' '#!/bin/sh' 'echo configured "$1"' > soak/DEBIAN/postinst
        chmod 755 soak/DEBIAN/postinst
        cp /usr/bin/id soak/opt/soak/id && printf changed >> soak/opt/soak/id
        dpkg-deb --build soak soak.deb && dpkg --install soak.deb && /opt/soak/id -u
        dpkg --status soak | head -2
        dpkg --remove soak && test ! -e /opt/soak"#,
    ),
    (
        "a program is compiled, linked with a library of its own, and run",
        r#"echo 'int answer(void) { return 42; }' > answer.c
        printf '%s\n' '#include <stdio.h>' 'int answer(void);' \
            'int main(void) { printf("%d\n", answer()); return 7; }' > main.c
        tcc -shared -o libanswer.so answer.c && tcc -o main main.c -L. -lanswer
        LD_LIBRARY_PATH=. ./main || echo "exit $?"
        tcc -run main.c answer.c || echo "exit $?""#,
    ),
    (
        "Python runs programs, of its own making too",
        r#"cat > work.py << 'END'
import os, subprocess, sys
print(sys.version_info[:2], subprocess.run(['/bin/echo', 'from Python'], capture_output=True).stdout)
with open('script', 'w') as file:
    file.write('#!/usr/bin/python3\nprint("of its own")\n')
os.chmod('script', 0o755)
print(subprocess.run(['./script'], capture_output=True).stdout)
child = os.fork()
if child == 0: os.execv('/bin/sh', ['sh', '-c', 'exit 9'])
print(os.waitpid(child, 0)[1])
END
        python3 work.py"#,
    ),
    (
        "just-in-time compilers make code",
        r#"luajit -jon -e 'local s = 0 for i = 1, 1e6 do s = (s + i * i) % 65521 end print(s)'
        luajit -e 'print(require("jit").status())'
        seq 20000 | grep -cP '^(?=.*7)(?!.*3)\d+$'"#,
    ),
    (
        "a container on an overlay",
        r#"mkdir -p lower upper work merged
        cp /usr/bin/id lower/tool && printf changed >> lower/tool
        unshare --mount --pid --fork sh -c '
            mount -t overlay overlay -o lowerdir=lower,upperdir=upper,workdir=work merged
            merged/tool -g
            printf again >> merged/tool && merged/tool -u
            mkdir -p merged/usr merged/proc && mount --bind /usr merged/usr
            for link in bin lib lib64; do ln -s usr/$link merged/$link; done
            chroot merged /bin/sh -c "/tool -u; echo inside"'
        bwrap --ro-bind /usr /usr --symlink usr/bin /bin --symlink usr/lib /lib \
            --symlink usr/lib64 /lib64 --proc /proc --dev /dev --tmpfs /tmp --unshare-all \
            sh -c 'cp /usr/bin/id /tmp/id && /tmp/id -u && exec echo contained'"#,
    ),
    ("a service starts and ends", r#"systemd-run --quiet --wait --pipe /bin/sh -c 'echo served'"#),
];

/// What a package manager, a compiler, an interpreter, just-in-time compilers and containers do
/// comes out as without us, although the policy lists nothing of it.
pub fn audit() -> Result<()> {
    let policy = Policy::of(fresh("/root/policy")?, &["/usr/bin/portcullis"])?;
    let without = outcomes()?;
    let agent = Agent::start(&policy, "audit", &[])?;
    let with = outcomes()?;
    for (((name, _), without), with) in WORK.iter().zip(&without).zip(&with) {
        ensure!(without == with, "{name}: without us\n{without}\nin audit mode\n{with}");
        println!("  the same: {name}, {} lines", with.lines().count());
    }
    let status = json(&["status", "--json"])?;
    for gate in status["gates"].as_array().context("gates")? {
        ensure!(gate["denied"] == 0, "{gate}");
        println!("  {}: {} would have been refused", gate["gate"], gate["would_deny"]);
    }
    // Where the agent hashes, that is a warning by itself.
    let expected = if is_old_kernel() { "warning" } else { "ok" };
    ensure!(status["health"] == expected, "{status}");
    agent.stop()
}

/// What each work said, with its exit code.
fn outcomes() -> Result<Vec<String>> {
    WORK.iter()
        .map(|(name, lines)| {
            let folder = fresh("/root/soak")?;
            let outcome = outcome(folder, lines).with_context(|| (*name).to_owned())?;
            // It must have worked, or the comparison says little.
            ensure!(outcome.ends_with("exit 0"), "{name}:\n{outcome}");
            Ok(outcome)
        })
        .collect()
}

fn outcome(folder: &Path, lines: &str) -> Result<String> {
    let script = folder.join("work.sh");
    fs::write(&script, format!("set -e\nexec 2>&1\n{lines}\n"))?;
    let output = Command::new("/bin/sh")
        .arg(script)
        .current_dir(folder)
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .output()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    Ok(format!("{text}exit {}", output.status.code().unwrap_or(-1)))
}
