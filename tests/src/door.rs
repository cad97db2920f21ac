//! The device's door to the network, as a process of its own, where no service manager starts it.

use std::{
    net::{SocketAddr, TcpStream},
    os::unix::process::CommandExt,
    process::{Child, Command, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::agent::{PATIENCE, portcullis};

/// Whom the package makes for it; the initramfs has them with this number.
pub const UID: u32 = 990;

/// A door that ends with this.
pub struct Door(Child);

impl Drop for Door {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Door {
    /// Starts it, as its user.
    pub fn start() -> Result<Self> {
        let log = std::fs::File::create("/run/door.log")?;
        let mut door = Command::new("portcullis");
        door.arg("network-door").uid(UID).gid(UID).stdin(Stdio::null()).stderr(log);
        Ok(Self(door.spawn().context("starting the door")?))
    }

    /// Starts it, and waits until somebody is let in at this address and the agent knows it.
    pub fn open(address: SocketAddr) -> Result<Self> {
        let door = Self::start()?;
        check("ok", &format!(":{}, ", address.port()))?;
        TcpStream::connect(address).context("it does not listen")?;
        Ok(door)
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.0.id()
    }
}

/// Waits until the agent says this of its API.
pub fn check(state: &str, found: &str) -> Result<Value> {
    let end = Instant::now() + PATIENCE;
    loop {
        // Which may be red.
        let status: Value = serde_json::from_slice(&portcullis(&["status", "--json"])?.stdout)?;
        let checks = status["checks"].as_array().context("checks")?;
        let check = checks.iter().find(|check| check["id"] == "api");
        if let Some(check) = check
            && check["state"] == state
            && check["found"].as_str().is_some_and(|text| text.contains(found))
        {
            return Ok(check.clone());
        }
        let log = || std::fs::read_to_string("/run/door.log").unwrap_or_default();
        ensure!(Instant::now() < end, "no {state} with {found}: {check:?}; {}", log());
        sleep(Duration::from_millis(100));
    }
}
