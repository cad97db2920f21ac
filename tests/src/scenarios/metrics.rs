//! The agent's numbers, the alerts and the dashboard, as Prometheus' own tool reads them.

use std::{
    collections::BTreeSet,
    fs,
    io::Write,
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

const PROMTOOL: &str = "/opt/receivers/usr/bin/promtool";
const FOLDER: &str = "/root/prometheus";
const ALERTS: &str = include_str!("../../../packaging/metrics/portcullis-alerts.yml");
const ALERTS_TEST: &str = include_str!("../../../packaging/metrics/portcullis-alerts-test.yml");
const DASHBOARD: &str = include_str!("../../../packaging/metrics/portcullis-dashboard.json");
const DOCUMENTED: &str = include_str!("../../../docs/metrics.md");

/// Only there on a device whose policy has rules for USB.
const SOMETIMES: &str = "portcullis_usb_devices";

/// The page is what Prometheus reads, without what its tool warns of; alerts and dashboard ask for what is on
/// it; and each alert fires when it must.
pub fn understood(page: &Path) -> Result<()> {
    let page = fs::read_to_string(page).with_context(|| format!("reading {}", page.display()))?;
    promtool(&["check", "metrics"], &page)?;
    let told = families(&page);
    let documented = names(DOCUMENTED);
    for (what, asked) in
        [("alerts", names(ALERTS)), ("dashboard", names(DASHBOARD)), ("docs", documented.clone())]
    {
        let missing: Vec<_> =
            asked.iter().filter(|name| !told.contains(*name) && *name != SOMETIMES).collect();
        ensure!(missing.is_empty(), "{what}: the agent has no {missing:?}");
    }
    let untold: Vec<_> = told.difference(&documented).collect();
    ensure!(untold.is_empty(), "docs/metrics.md does not tell of {untold:?}");
    println!("  {} kinds of numbers are read by promtool, and documented", told.len());

    fs::create_dir_all(FOLDER)?;
    let path = |name: &str| format!("{FOLDER}/{name}");
    fs::write(path("portcullis-alerts.yml"), ALERTS)?;
    fs::write(path("portcullis-alerts-test.yml"), ALERTS_TEST)?;
    fs::write(path("dashboard.yml"), queries()?)?;
    promtool(&["check", "rules", &path("portcullis-alerts.yml"), &path("dashboard.yml")], "")?;
    promtool(&["test", "rules", &path("portcullis-alerts-test.yml")], "")?;
    // Every alert has its case.
    for alert in ALERTS.lines().filter_map(|line| line.split_once("- alert: ")) {
        ensure!(
            ALERTS_TEST.contains(&format!("alertname: {}\n", alert.1)),
            "no case of {}",
            alert.1
        );
    }
    println!("  each alert fires when it must, and the dashboard's queries parse");
    Ok(())
}

/// Runs it, and fails if it does or has anything to say against it.
fn promtool(arguments: &[&str], input: &str) -> Result<()> {
    let mut child = Command::new(PROMTOOL)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("starting promtool")?;
    child.stdin.take().context("its input")?.write_all(input.as_bytes())?;
    let output = child.wait_with_output()?;
    let said = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    ensure!(
        output.status.success(),
        "promtool {arguments:?} ended with {}:\n{}{}\n{input}",
        output.status,
        said(&output.stdout),
        said(&output.stderr)
    );
    Ok(())
}

/// What the page has, whether or not there are values of it.
fn families(page: &str) -> BTreeSet<String> {
    let types = page.lines().filter_map(|line| line.strip_prefix("# TYPE "));
    types.filter_map(|line| Some(line.split_once(' ')?.0.to_owned())).collect()
}

/// Names of numbers in a text.
fn names(text: &str) -> BTreeSet<String> {
    let is_part = |character: char| character.is_ascii_alphanumeric() || character == '_';
    let words = text.split(|character| !is_part(character));
    words.filter(|word| word.starts_with("portcullis_")).map(str::to_owned).collect()
}

/// The dashboard's queries as rules, which is what promtool reads. What Grafana fills in is filled in.
fn queries() -> Result<String> {
    let dashboard: Value = serde_json::from_str(DASHBOARD).context("the dashboard")?;
    let panels = dashboard["panels"].as_array().context("no panels")?;
    let mut rules = vec![];
    for target in panels.iter().filter_map(|panel| panel["targets"].as_array()).flatten() {
        let query = target["expr"].as_str().with_context(|| format!("no query in {target}"))?;
        let filled = query.replace("$instance", ".*").replace("$__rate_interval", "1m");
        ensure!(!filled.contains('$'), "what is filled into {query}?");
        rules.push(json!({ "record": format!("query:{}", rules.len()), "expr": filled }));
    }
    ensure!(!rules.is_empty(), "no queries");
    Ok(json!({ "groups": [{ "name": "dashboard", "rules": rules }] }).to_string())
}
