//! Many programs that are refused at the same time: who is listed goes on, and the agent stays as small as
//! it was.

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    path::Path,
    process::{Child, Command, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::{base_policy, fresh};
use crate::{
    agent::{Agent, PATIENCE, json},
    attack::{Attempt, evil, exec_path, install},
    events,
};

const LAB: &str = "/tmp/bomb";
const SPOOL: &str = "/var/lib/portcullis/spool";
/// Processes that start what is refused.
const BOMBS: u32 = 4;
/// What the records may take on the disk: their bound, and a file that is being written.
const SPOOL_KIB: u64 = 9 << 10;
/// What the agent may have more of afterwards. Its queues are longer or shorter at times.
const AGENT_KIB: u64 = 6 << 10;
const DESCRIPTORS: usize = 8;

/// What an agent uses.
#[derive(Clone, Copy, Debug)]
struct Used {
    kib: u64,
    descriptors: usize,
    spool_kib: u64,
    denied: u64,
    lost: u64,
}

/// An agent of its own, and a bomb for so many seconds.
pub fn by_hand(seconds: u64) -> Result<()> {
    let agent = Agent::start(&base_policy(&[])?, "enforce", &["--skip-preflight"])?;
    bomb(&agent, Duration::from_secs(seconds))?;
    agent.stop()
}

/// Lets several processes start what is refused for so long, beside a service that has to answer.
pub(super) fn bomb(agent: &Agent, time: Duration) -> Result<()> {
    let lab = fresh(LAB)?;
    let program = lab.join("evil");
    install(&program, &evil("bomb")?)?;
    let mark = events::mark()?;
    let before = used(agent)?;
    let mut service = Service::start()?;
    let seconds = time.as_secs().to_string();
    let start = || {
        let words = ["start-refused", LAB, &seconds];
        Command::new("portcullis-guest").args(words).stdout(Stdio::piped()).spawn()
    };
    let mut bombs = (0..BOMBS).map(|_| start()).collect::<Result<Vec<_>, _>>()?;
    let (mut answers, mut longest) = (0_u64, Duration::ZERO);
    let mut peak = before;
    while bombs.iter_mut().any(|bomb| matches!(bomb.try_wait(), Ok(None))) {
        let asked = Instant::now();
        service.answers(answers)?;
        longest = longest.max(asked.elapsed());
        answers += 1;
        if answers.is_multiple_of(20) {
            peak.kib = peak.kib.max(agent.resident_kib()?);
            peak.spool_kib = peak.spool_kib.max(spool_kib()?);
        }
    }
    let mut attempts = 0;
    for bomb in bombs {
        let output = bomb.wait_with_output()?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
        attempts += String::from_utf8(output.stdout)?.trim().parse::<u64>()?;
    }
    service.end()?;
    let after = used(agent)?;
    let denied = after.denied - before.denied;
    ensure!(denied == attempts, "{attempts} starts, and {denied} were refused");
    let lost = after.lost - before.lost;
    let told = || -> Result<u64> {
        let records = events::since(mark)?;
        let told = records.iter().filter(|event| is_of_bomb(event));
        Ok(told.map(|event| event["count"].as_u64().unwrap_or(1)).sum())
    };
    // One record for many comes when no more of them do.
    let end = Instant::now() + PATIENCE;
    while told()? + lost < attempts && Instant::now() < end {
        sleep(Duration::from_millis(200));
    }
    let told = told()?;
    ensure!(told + lost == attempts, "{told} told and {lost} lost of {attempts}");
    println!(
        "  {attempts} refused in {} s, of which {lost} are only counted; {answers} answers, the longest took \
         {} ms; the agent: {before:?}, then {after:?}, at most {} KiB and {} KiB of records",
        time.as_secs(),
        longest.as_millis(),
        peak.kib,
        peak.spool_kib
    );
    ensure!(answers > time.as_secs(), "only {answers} answers");
    ensure!(peak.kib.max(after.kib) < before.kib + AGENT_KIB, "the agent grew to {peak:?}");
    ensure!(after.descriptors <= before.descriptors + DESCRIPTORS, "it holds {after:?}");
    ensure!(peak.spool_kib.max(after.spool_kib) <= SPOOL_KIB, "its records: {peak:?}, {after:?}");
    Ok(())
}

fn is_of_bomb(event: &Value) -> bool {
    let path = event["artifact"]["path"].as_str();
    event["outcome"] == "deny" && path.is_some_and(|path| Path::new(path).starts_with(LAB))
}

fn used(agent: &Agent) -> Result<Used> {
    let status = json(&["status", "--json"])?;
    let gates = status["gates"].as_array().context("gates")?;
    let gate = gates.iter().find(|gate| gate["gate"] == "exec").context("the gate at exec")?;
    let number = |what: &str| gate[what].as_u64().with_context(|| format!("no {what}"));
    Ok(Used {
        kib: agent.resident_kib()?,
        descriptors: fs::read_dir(format!("/proc/{}/fd", agent.pid()))?.count(),
        spool_kib: spool_kib()?,
        denied: number("denied")?,
        lost: number("lost")?,
    })
}

fn spool_kib() -> Result<u64> {
    let sizes = fs::read_dir(SPOOL)?.map(|entry| Ok(entry?.metadata()?.len()));
    Ok(sizes.collect::<Result<Vec<u64>>>()?.iter().sum::<u64>() >> 10)
}

/// A listed program that starts another listed one for every answer.
struct Service {
    child: Child,
    answers: BufReader<std::process::ChildStdout>,
}

impl Service {
    fn start() -> Result<Self> {
        let mut child = Command::new("portcullis-guest")
            .arg("answer")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let answers = BufReader::new(child.stdout.take().context("its output")?);
        Ok(Self { child, answers })
    }

    fn answers(&mut self, number: u64) -> Result<()> {
        writeln!(self.child.stdin.as_mut().context("its input")?, "{number}")?;
        let mut answer = String::new();
        self.answers.read_line(&mut answer)?;
        ensure!(answer.trim() == number.to_string(), "asked for {number}: {answer:?}");
        Ok(())
    }

    fn end(mut self) -> Result<()> {
        drop(self.child.stdin.take());
        let status = self.child.wait()?;
        ensure!(status.success(), "the service ended with {status}");
        Ok(())
    }
}

/// What the service does: answers each line, once another program has run.
pub fn answer() -> Result<()> {
    for line in std::io::stdin().lines() {
        let status = Command::new("/usr/bin/true").status()?;
        ensure!(status.success(), "a listed program ended with {status}");
        println!("{}", line?);
    }
    Ok(())
}

/// What a bomb does: starts what is refused, by ever other names, and says how often.
pub fn start_refused(folder: &Path, seconds: u64) -> Result<()> {
    const NAMES: u64 = 50;
    let end = Instant::now() + Duration::from_secs(seconds);
    let (own, mut count) = (std::process::id(), 0_u64);
    while Instant::now() < end {
        let name = folder.join(format!("{own}-{}", count % NAMES));
        if count < NAMES {
            fs::hard_link(folder.join("evil"), &name)?;
        }
        ensure!(exec_path(&name)? == Attempt::Refused, "start {count} was not refused");
        count += 1;
    }
    println!("{count}");
    Ok(())
}
