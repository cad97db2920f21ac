//! An operator's machine and a device, which have nothing in common but a network. The device makes the
//! certificates and the bundles, and hands them over on a connection of the test's own, at which the operator's
//! machine asks how the device is.

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::{TcpListener, TcpStream},
    path::Path,
    process::Command,
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::Signal;
use serde_json::Value;

use super::{
    bundles::{DEVICE, Operator},
    bundles_network::said,
    fresh, modprobe,
};
use crate::{
    agent::{Agent, PATIENCE},
    door::Door,
    pki::Pki,
};

const DEVICE_ADDRESS: &str = "10.1.0.1";
const OPERATOR_ADDRESS: &str = "10.1.0.2";
/// Where the device hands over and answers.
const TEST_PORT: u16 = 9999;
/// The folder of certificates, on both.
const PKI: &str = "/run/pki";
/// The folder of bundles, on the operator's machine.
const BUNDLES: &str = "/run/to-push";
/// Each bundle with its version, whether it lists the program, and whether it is signed.
const VERSIONS: [(u64, bool, bool); 5] =
    [(2, true, true), (3, false, true), (4, false, true), (5, true, true), (6, true, false)];

fn ip(words: &[&str]) -> Result<()> {
    let done = Command::new("/bin/busybox").arg("ip").args(words).status()?;
    ensure!(done.success(), "ip {}: {done}", words.join(" "));
    Ok(())
}

fn join_network(address: &str) -> Result<()> {
    modprobe("virtio_net")?;
    ip(&["link", "set", "lo", "up"])?;
    ip(&["addr", "add", &format!("{address}/24"), "dev", "eth0"])?;
    ip(&["link", "set", "eth0", "up"])
}

/// The device's side, until the operator's machine says that it is over.
pub fn device() -> Result<()> {
    join_network(DEVICE_ADDRESS)?;
    let operator = Operator::new()?;
    let pki = Pki::new(PKI)?;
    for name in ["pump-3", "ann", "bob"] {
        pki.make(name)?;
    }
    fs::create_dir_all("/etc/portcullis")?;
    let config = format!(
        "name = \"pump-3\"\n[api]\nlisten = \"0.0.0.0:7443\"\ncertificate = \"{PKI}/pump-3.pem\"\n\
         key = \"{PKI}/pump-3.key\"\nclient_ca = \"{PKI}/ca.pem\"\n[[api.client]]\nname = \"ann\"\n\
         role = \"policy-admin\"\n[[api.client]]\nname = \"bob\"\nrole = \"operator\"\n"
    );
    fs::write(DEVICE, config)?;
    let mut agent = operator.start()?;
    operator.holds(1, false, "the policy file")?;
    let _door = Door::open(([127, 0, 0, 1], 7443).into())?;
    let mut files = Vec::new();
    for (version, lists, is_signed) in VERSIONS {
        let make = if is_signed { Operator::bundle } else { Operator::unsigned };
        files.push(make(&operator, version, lists, &["--skip-preflight"])?);
    }
    for name in ["ca.pem", "ann.pem", "ann.key", "bob.pem", "bob.key"] {
        files.push(format!("{PKI}/{name}"));
    }
    let (stream, _) = TcpListener::bind((DEVICE_ADDRESS, TEST_PORT))?.accept()?;
    let (mut reader, mut writer) = (BufReader::new(stream.try_clone()?), stream);
    for file in &files {
        let content = fs::read(file)?;
        writeln!(writer, "{file} {}", content.len())?;
        writer.write_all(&content)?;
    }
    writeln!(writer)?;
    let mut line = String::new();
    while reader.read_line(&mut line)? > 0 {
        let words: Vec<_> = line.split_whitespace().collect();
        println!("  asked: {}", words.join(" "));
        match words[..] {
            ["holds", version, runs] => {
                until_holds(&operator, version.parse()?, runs.parse()?)?;
                writeln!(writer, "yes")?;
            }
            ["kill"] => {
                agent = killed(&operator, agent)?;
                writeln!(writer, "yes")?;
            }
            ["cut", seconds] => {
                ip(&["link", "set", "eth0", "down"])?;
                sleep(Duration::from_secs(seconds.parse()?));
                ip(&["link", "set", "eth0", "up"])?;
            }
            _ => bail!("nobody asks {line:?}"),
        }
        line.clear();
    }
    operator.stop(agent)
}

fn killed(operator: &Operator, agent: Agent) -> Result<Agent> {
    agent.signal(Signal::KILL)?;
    operator.start()
}

/// Waits until this version decides; an answer may be on its way before its policy is.
fn until_holds(operator: &Operator, version: u64, runs: bool) -> Result<()> {
    let end = Instant::now() + PATIENCE;
    loop {
        match operator.holds(version, runs, "as the operator's machine expects") {
            Err(error) if Instant::now() > end => return Err(error),
            Err(_) => sleep(Duration::from_millis(200)),
            Ok(()) => return Ok(()),
        }
    }
}

/// The device, as the test asks it.
struct Asked {
    reader: BufReader<TcpStream>,
    writer: TcpStream,
}

impl Asked {
    /// Waits for the device, which makes keys first, and takes what it hands over.
    fn connect() -> Result<Self> {
        let end = Instant::now() + PATIENCE;
        let writer = loop {
            match TcpStream::connect((DEVICE_ADDRESS, TEST_PORT)) {
                Ok(stream) => break stream,
                Err(error) if Instant::now() > end => return Err(error).context("the device"),
                Err(_) => sleep(Duration::from_millis(500)),
            }
        };
        let mut reader = BufReader::new(writer.try_clone()?);
        fresh(BUNDLES)?;
        fresh(PKI)?;
        loop {
            let mut line = String::new();
            reader.read_line(&mut line)?;
            let Some((file, length)) = line.trim_end().split_once(' ') else { break };
            let mut content = vec![0; length.parse()?];
            reader.read_exact(&mut content)?;
            let folder = if file.starts_with(PKI) { PKI } else { BUNDLES };
            fs::write(
                Path::new(folder).join(Path::new(file).file_name().context("a name")?),
                content,
            )?;
        }
        Ok(Self { reader, writer })
    }

    fn ask(&mut self, what: &str) -> Result<()> {
        writeln!(self.writer, "{what}")?;
        let mut answer = String::new();
        self.reader.read_line(&mut answer)?;
        ensure!(answer == "yes\n", "the device's side failed: {what}");
        Ok(())
    }
}

/// The operator's side.
pub fn operator() -> Result<()> {
    join_network(OPERATOR_ADDRESS)?;
    let mut device = Asked::connect()?;
    let bundle = |version: u64| format!("{BUNDLES}/v{version}.bundle");
    let ask = |code, name: &str, words: &[&str]| {
        Pki::ask_at(Path::new(PKI), &format!("pump-3={DEVICE_ADDRESS}"), code, name, words)
    };

    // A trial, confirmed by another person.
    ask(0, "ann", &["policy", "push", &bundle(2), "--confirm-within", "1h"])?;
    device.ask("holds 2 true")?;
    ask(0, "bob", &["policy", "confirm"])?;
    // A trial that nobody confirms.
    let tried = |version: u64| -> Result<()> {
        let words = ["policy", "push", &bundle(version), "--confirm-within", "10s", "--json"];
        let row: Value = serde_json::from_slice(&ask(0, "ann", &words)?.stdout)?;
        ensure!(row["result"] == "done" && row["policy"]["version"] == version, "{row}");
        Ok(())
    };
    tried(3)?;
    device.ask("holds 2 true")?;
    println!("  reverted by silence");

    // One that cannot be confirmed, as it was for the network.
    tried(4)?;
    writeln!(device.writer, "cut 20")?;
    // The network must be gone first, and the request with it.
    sleep(Duration::from_secs(2));
    let output = ask(3, "bob", &["policy", "confirm"])?;
    println!("  cut off: {}", said(&output).lines().last().unwrap_or_default());
    device.ask("holds 2 true")?;
    println!("  reverted without a network");

    // Killed, and asked again.
    ask(0, "ann", &["policy", "push", &bundle(5)])?;
    device.ask("holds 5 true")?;
    device.ask("kill")?;
    device.ask("holds 5 true")?;
    let output = ask(0, "bob", &["status", "--json"])?;
    let status: Value = serde_json::from_slice(&output.stdout)?;
    ensure!(status.to_string().contains("\"version\":5"), "{status}");

    // What was in force once, and what nobody has signed.
    let output = ask(1, "ann", &["policy", "push", &bundle(2)])?;
    ensure!(said(&output).contains("rollback"), "{}", said(&output));
    let output = ask(1, "ann", &["policy", "push", &bundle(6)])?;
    ensure!(said(&output).contains("unsigned"), "{}", said(&output));
    device.ask("holds 5 true")
}
