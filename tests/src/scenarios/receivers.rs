//! The receivers of events that plants have, as Debian has them.

use std::{
    fs,
    path::Path,
    process::{Child, Command, Stdio},
};

use anyhow::{Context, Result};

/// Where the image has the receivers that would stand in each other's way if they were installed.
pub(super) const RECEIVERS: &str = "/opt/receivers";
/// Where they have their configurations, keys, and what they receive.
pub(super) const FOLDER: &str = "/root/received";
/// The state of the agent that sends to them.
pub(super) const STATE: &str = "/root/received/state";

/// The agent's sinks to the two that listen at ports, with the certificate of `siem`.
pub(super) const ACROSS_THE_NETWORK: &str = r#"
[[sink]]
name = "plain"
type = "syslog"
address = "tcp:127.0.0.1:5140"

[[sink]]
name = "secret"
type = "syslog"
address = "tls:127.0.0.1:6514"
ca = "/root/received/ca.pem"
server_name = "siem"
"#;

/// A receiver that ends with the scenario.
pub(super) struct Receiver(Child);

impl Drop for Receiver {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Starts one, by its name below [`RECEIVERS`].
pub(super) fn receiver(program: &str, arguments: &[&str]) -> Result<Receiver> {
    let log = fs::File::create(Path::new(FOLDER).join("receivers.log"))?;
    let child = Command::new(format!("{RECEIVERS}/{program}"))
        .args(arguments)
        .env("LD_LIBRARY_PATH", format!("{RECEIVERS}/usr/lib/syslog-ng"))
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn();
    Ok(Receiver(child.with_context(|| format!("starting {program}"))?))
}

pub(super) fn rsyslog() -> Result<Receiver> {
    let modules = format!("{RECEIVERS}/usr/lib/x86_64-linux-gnu/rsyslog");
    receiver(
        "usr/sbin/rsyslogd",
        &["-n", "-i", "NONE", "-M", &modules, "-f", "/root/received/rsyslog.conf"],
    )
}

pub(super) fn syslog_ng() -> Result<Receiver> {
    let modules = format!("--module-path={RECEIVERS}/usr/lib/syslog-ng/3.38");
    receiver(
        "usr/sbin/syslog-ng",
        &[
            "-F",
            "--no-caps",
            &modules,
            "--cfgfile=/root/received/syslog-ng.conf",
            "--persist-file=/root/received/persist",
            "--pidfile=/root/received/syslog-ng.pid",
            "--control=/root/received/syslog-ng.ctl",
        ],
    )
}
