//! The agent's numbers as Prometheus reads them (text format 0.0.4), in a file for node_exporter's textfile
//! collector. No label can have more values than the agent has gates, checks, chains and sinks.

use std::{
    fmt::{Display, Write as _},
    fs::Permissions,
    io::{self, Write as _},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    time::Duration,
};

use portcullis_common::{Counter, Gate, Mode};

use super::Agent;
use crate::{kernel::check::State, run::sink::SinkStatus, spool::chain::Chain};

/// How often the file is written.
pub(super) const EVERY: Duration = Duration::from_secs(15);

/// A number of each gate: its name, what it is, and its counters with verdict and mode.
type GateFamily = (&'static str, &'static str, &'static [(Counter, &'static str, &'static str)]);

/// A number of each sink: its name, its type, what it is, and how to get it.
type SinkFamily<'a> =
    (&'static str, &'static str, &'static str, &'a dyn Fn(&SinkStatus) -> Option<u64>);

/// A page of numbers.
#[derive(Default)]
struct Page(String);

impl Page {
    /// What a number is; its values follow.
    fn about(&mut self, name: &str, kind: &str, help: &str) -> &mut Self {
        // Writing to a string does not fail.
        let _ =
            writeln!(self.0, "# HELP portcullis_{name} {help}\n# TYPE portcullis_{name} {kind}");
        self
    }

    fn value(&mut self, name: &str, labels: &[(&str, &str)], value: impl Display) {
        let _ = write!(self.0, "portcullis_{name}");
        for (index, (label, text)) in labels.iter().enumerate() {
            let text = text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
            let _ = write!(self.0, "{}{label}=\"{text}\"", if index == 0 { '{' } else { ',' });
        }
        let end = if labels.is_empty() { "" } else { "}" };
        let _ = writeln!(self.0, "{end} {value}");
    }

    /// A number without labels.
    fn one(&mut self, name: &str, kind: &str, help: &str, value: impl Display) {
        self.about(name, kind, help).value(name, &[], value);
    }
}

/// Writes the file: whoever reads it finds the page before, or all of this one.
fn write(path: &Path, page: &str) -> io::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    let mut new = tempfile::NamedTempFile::new_in(folder)?;
    new.write_all(page.as_bytes())?;
    // The collector is not root.
    new.as_file().set_permissions(Permissions::from_mode(0o644))?;
    new.persist(path)?;
    Ok(())
}

impl Agent {
    /// Writes the agent's numbers in another thread.
    pub(super) fn write_metrics(&self, path: &Path) {
        let (path, page): (PathBuf, _) = (path.to_owned(), self.metrics());
        tokio::task::spawn_blocking(move || {
            if let Err(error) = write(&path, &page) {
                tracing::warn!("{} cannot be written: {error}", path.display());
            }
        });
    }

    fn metrics(&self) -> String {
        let mut page = Page::default();
        let mode = self.mode();
        page.about("info", "gauge", "What runs; always 1.").value(
            "info",
            &[
                ("version", env!("CARGO_PKG_VERSION")),
                ("backend", self.gates.word()),
                ("mode", mode.word()),
                ("policy", &self.view().id.name),
            ],
            1,
        );
        let start = self.since.as_second();
        page.one("start_time_seconds", "gauge", "When the agent started, in Unix time.", start);
        let enforces = u8::from(mode == Mode::Enforce);
        page.one(
            "enforcing",
            "gauge",
            "Whether what the policy does not allow is refused.",
            enforces,
        );
        page.one("policy_version", "gauge", "The policy in force.", self.view().id.version);
        page.one("policy_digests", "gauge", "Digests of the policy in force.", self.digests);
        self.gate_metrics(&mut page);
        self.record_metrics(&mut page);
        page.about(
            "health",
            "gauge",
            "How checks came out: 0 ok, 1 warning or not known, 2 failed.",
        );
        for check in self.health.checks() {
            let value = match check.state {
                State::Ok => 0,
                State::Warning | State::Unknown => 1,
                State::Failed => 2,
            };
            page.value("health", &[("check", check.id)], value);
        }
        if let Some(usb) = self.usb_status() {
            page.about("usb_devices", "gauge", "USB devices, by what became of them.");
            for (state, count) in
                [("allowed", usb.allowed), ("held", usb.held), ("would-hold", usb.would_hold)]
            {
                page.value("usb_devices", &[("state", state)], count);
            }
        }
        if let Some(kib) = crate::run::resident_kib() {
            page.one("resident_memory_bytes", "gauge", "Memory of the agent.", kib << 10);
        }
        page.0
    }

    fn gate_metrics(&self, page: &mut Page) {
        let gates: Vec<_> =
            Gate::ALL.iter().filter(|gate| self.gates.is_asked_for(**gate)).collect();
        page.about("gate_attached", "gauge", "Whether a program stands at the gate.");
        for gate in &gates {
            page.value(
                "gate_attached",
                &[("gate", gate.word())],
                u8::from(self.gates.stands(**gate)),
            );
        }
        let families: [GateFamily; 4] = [
            (
                "decisions_total",
                "Decisions, without those that found a verdict that allows on the file: those are the hot \
                 path, and not counted.",
                &[
                    (Counter::Allowed, "allow", ""),
                    (Counter::WouldDeny, "would-deny", "audit"),
                    (Counter::Denied, "deny", "enforce"),
                    (Counter::Reported, "report", ""),
                ],
            ),
            (
                "cannot_decide_total",
                "Of those that refused or would have, how many because the gate could not tell what the file is.",
                &[(Counter::CannotDecide, "", "")],
            ),
            ("hashed_total", "Files that were hashed.", &[(Counter::Hashed, "", "")]),
            ("hashed_bytes_total", "Bytes that were hashed.", &[(Counter::HashedBytes, "", "")]),
        ];
        for (name, help, counters) in families {
            page.about(name, "counter", help);
            for gate in &gates {
                for (counter, verdict, mode) in counters {
                    let Some(value) = self.counter(**gate, *counter) else { continue };
                    let labels = [("gate", gate.word()), ("verdict", verdict), ("mode", mode)];
                    let labels: Vec<_> =
                        labels.into_iter().filter(|(_, text)| !text.is_empty()).collect();
                    page.value(name, &labels, value);
                }
            }
        }
        page.about("events_lost_total", "counter", "Events that were lost, by where.");
        for gate in &gates {
            if let Some(lost) = self.counter(**gate, Counter::Lost) {
                page.value("events_lost_total", &[("stage", "ring"), ("gate", gate.word())], lost);
            }
        }
        let dropped = self.recorder.spool_status().dropped;
        for (chain, count) in Chain::ALL.iter().zip(dropped) {
            let labels = [("stage", "memory"), ("chain", chain.word())];
            page.value("events_lost_total", &labels, count);
        }
    }

    fn record_metrics(&self, page: &mut Page) {
        let spool = self.recorder.spool_status();
        page.one("records_total", "counter", "Records since the start.", self.recorder.latest());
        page.one("spool_bytes", "gauge", "Bytes of records on the disk.", spool.bytes);
        page.one("spool_waiting", "gauge", "Records that wait for the disk.", spool.waiting);
        let status = self.recorder.status();
        let families: [SinkFamily<'_>; 4] = [
            ("sink_written_total", "counter", "Records that were written or sent.", &|sink| {
                Some(sink.written)
            }),
            ("sink_lost_total", "counter", "Records that a sink without a spool lost.", &|sink| {
                sink.behind.is_none().then_some(sink.lost)
            }),
            ("sink_behind", "gauge", "Records that wait for the sink.", &|sink| sink.behind),
            ("sink_failing", "gauge", "Whether the last attempt failed.", &|sink| {
                Some(sink.failing.into())
            }),
        ];
        for (name, kind, help, value) in families {
            page.about(name, kind, help);
            for sink in &status {
                if let Some(value) = value(sink) {
                    page.value(name, &[("sink", &sink.name)], value);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_escaped_and_the_file_is_whole() {
        let mut page = Page::default();
        page.about("x_total", "counter", "Some.").value(
            "x_total",
            &[("a", "b\"\\\n"), ("c", "d")],
            3,
        );
        page.one("y", "gauge", "One.", 1);
        let expected = "# HELP portcullis_x_total Some.\n# TYPE portcullis_x_total counter\n\
                        portcullis_x_total{a=\"b\\\"\\\\\\n\",c=\"d\"} 3\n# HELP portcullis_y One.\n\
                        # TYPE portcullis_y gauge\nportcullis_y 1\n";
        assert_eq!(page.0, expected);
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("portcullis.prom");
        write(&file, &page.0).expect("written");
        assert_eq!(std::fs::read_to_string(&file).expect("read"), expected);
        let mode = file.metadata().expect("there").permissions().mode();
        assert_eq!(mode & 0o777, 0o644);
        assert!(write(Path::new("/nowhere/x.prom"), "").is_err());
    }
    /// Names in a text that are those of numbers.
    fn names(text: &str) -> impl Iterator<Item = &str> {
        let is_part = |character: char| character.is_ascii_alphanumeric() || character == '_';
        let words = text.split(move |character| !is_part(character));
        words.filter_map(|word| word.strip_prefix("portcullis_"))
    }

    #[test]
    fn what_is_asked_for_is_told() {
        let source = include_str!("metrics.rs").split("mod tests").next().unwrap_or_default();
        for (file, text) in [
            ("metrics.md", include_str!("../../../../docs/metrics.md")),
            ("alerts", include_str!("../../../../packaging/metrics/portcullis-alerts.yml")),
            (
                "alerts' test",
                include_str!("../../../../packaging/metrics/portcullis-alerts-test.yml"),
            ),
            ("dashboard", include_str!("../../../../packaging/metrics/portcullis-dashboard.json")),
        ] {
            let mut count = 0;
            for name in names(text) {
                let is_told = source.contains(&format!("\"{name}\""));
                assert!(is_told, "{file}: the agent has no portcullis_{name}");
                count += 1;
            }
            assert!(count > 8, "{file}: {count} names");
        }
    }

    #[test]
    fn the_dashboard_has_a_dashboards_shape() {
        let text = include_str!("../../../../packaging/metrics/portcullis-dashboard.json");
        let dashboard: serde_json::Value = serde_json::from_str(text).expect("JSON");
        assert!(dashboard["title"].is_string() && dashboard["uid"].is_string());
        assert!(dashboard["schemaVersion"].as_u64().is_some_and(|version| version >= 36));
        let variables = dashboard["templating"]["list"].as_array().expect("variables");
        let has = |name: &str| variables.iter().any(|variable| variable["name"] == *name);
        assert!(has("datasource") && has("instance"));
        let panels = dashboard["panels"].as_array().expect("panels");
        let mut ids = std::collections::BTreeSet::new();
        let mut taken = std::collections::BTreeSet::new();
        for panel in panels {
            assert!(ids.insert(panel["id"].as_u64().expect("an id")), "{panel}");
            assert!(panel["title"].is_string() && panel["type"].is_string(), "{panel}");
            assert_eq!(panel["datasource"]["uid"], "${datasource}");
            let place = |name: &str| panel["gridPos"][name].as_u64().expect("a number");
            assert!(place("x") + place("w") <= 24 && place("w") * place("h") > 0, "{panel}");
            for x in place("x")..place("x") + place("w") {
                for y in place("y")..place("y") + place("h") {
                    assert!(taken.insert((x, y)), "{panel} lies on another");
                }
            }
            let targets = panel["targets"].as_array().expect("targets");
            let mut letters = std::collections::BTreeSet::new();
            for target in targets {
                assert!(letters.insert(target["refId"].as_str().expect("a letter")), "{panel}");
                assert!(target["expr"].is_string(), "{panel}");
            }
            assert!(!targets.is_empty(), "{panel}");
        }
    }
}
