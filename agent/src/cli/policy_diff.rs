//! `portcullis policy diff`: what would newly run, and what not any more.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write,
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context, anyhow};
use portcullis_common::{Choices, Digest, Kinds, Rule};
use serde::Serialize;

use super::{BAD_INPUT, Failure, OrExit, Outcome, UNAVAILABLE, catalog::Lines, output};
use crate::{
    artifact::digest,
    control::{Request, client},
    event::human::Plain,
    policy::{Policy, bundle::Bundle, manifest::kinds_words, trust::describe},
    usb::{
        device::DEVICES,
        preflight,
        rules::{self, Order, Rules},
        written::line_of,
    },
};

#[derive(clap::Args)]
pub struct Args {
    /// The policy or bundle before (default: what is in force on this device), and the one after
    #[arg(required = true, num_args = 1..=2, value_names = ["OLD", "NEW"])]
    policies: Vec<PathBuf>,
    /// As JSON
    #[arg(long)]
    json: bool,
}

/// A digest, and where the policy has it from.
#[derive(Serialize)]
struct Line {
    digest: String,
    /// What changes; all kinds if the digest is denied.
    kinds: String,
    /// The path that it is listed under, if the list says.
    path: String,
    file: String,
    line: u32,
}

/// What differs.
#[derive(Serialize)]
struct Difference {
    old: String,
    new: String,
    /// Runs newly.
    allowed: Vec<Line>,
    /// Does not run any more, because nobody lists it.
    unlisted: Vec<Line>,
    /// Does not run any more, or could not be listed any more, because it is denied.
    denied: Vec<Line>,
    /// What the policy chooses besides digests.
    settings_added: Vec<String>,
    settings_removed: Vec<String>,
    /// Rules about USB devices.
    usb_added: Vec<UsbLine>,
    usb_removed: Vec<UsbLine>,
    /// Whether rules about USB that stay stand in another order, where the first decides.
    usb_reordered: bool,
    /// Devices that are plugged in here and become something else; only against what is in force.
    usb_devices: Vec<UsbDevice>,
}

/// A rule about USB devices, and where it stands.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct UsbLine {
    rule: String,
    line: u32,
}

/// What becomes of a device that is plugged in.
#[derive(Debug, Serialize)]
struct UsbDevice {
    port: String,
    id: String,
    name: String,
    serial: Option<String>,
    kinds: String,
    /// `allow`, `hold` or `reject`.
    before: &'static str,
    after: &'static str,
}

/// A policy with the texts that its lines are in.
pub(super) struct Side {
    pub(super) policy: Policy,
    texts: BTreeMap<u16, Vec<u8>>,
    /// The folder that the files are named relative to.
    folder: PathBuf,
}

impl Side {
    pub(super) fn read(path: &Path) -> Result<Self, Failure> {
        let is_policy = path.extension().is_some_and(|extension| extension == "toml");
        if is_policy {
            return Self::load(path);
        }
        let bundle = Bundle::read(path).map_err(|(_, why)| {
            anyhow!("{}: {why}; a policy's name ends in .toml", path.display())
        });
        let bundle = bundle.or_exit(BAD_INPUT)?;
        let folder = tempfile::tempdir().context("a temporary folder").or_exit(UNAVAILABLE)?;
        let file = bundle.unpack(folder.path()).context("unpacking").or_exit(UNAVAILABLE)?;
        Self::load(&file)
    }

    pub(super) fn load(file: &Path) -> Result<Self, Failure> {
        let bar = output::progress(0, "reading");
        let policy = Policy::load(file, &bar);
        bar.finish_and_clear();
        let policy = policy.or_exit(BAD_INPUT)?;
        let mut texts = BTreeMap::new();
        for (number, source) in (0..).zip(&policy.sources) {
            // Signers of files stand among the sources, and are none.
            if let Ok(text) = fs::read(source) {
                texts.insert(number, text);
            }
        }
        let folder = file.parent().unwrap_or(Path::new("")).to_owned();
        Ok(Self { policy, texts, folder })
    }

    pub(super) fn name(&self) -> String {
        format!("{} v{}", self.policy.name, self.policy.version)
    }

    fn allowed(&self, digest: &Digest) -> Kinds {
        let rule = self.policy.rule(digest).filter(|rule| rule.denied == 0);
        rule.map_or(Kinds::NONE, |rule| rule.kinds)
    }

    /// What the policy chooses besides digests, a line each.
    fn settings(&self) -> BTreeSet<String> {
        let Policy { mode, choices, policy_signatures, .. } = &self.policy;
        let mut lines = BTreeSet::from([
            format!("mode {}", mode.word()),
            format!("policy_signatures {policy_signatures}"),
        ]);
        let chosen = [
            (Choices::MEMORY_ALLOWED, "anonymous_memory allow"),
            (Choices::MEMORY_DENIED, "anonymous_memory deny"),
            (Choices::MOUNTED_DEVICES_CLOSED, "mounted_devices closed"),
            (Choices::OTHER_BPF_ALLOWED, "other_bpf allow"),
            (Choices::OTHER_BPF_DENIED, "other_bpf deny"),
        ];
        for (choice, line) in chosen {
            if choices.contains(choice) {
                lines.insert(line.into());
            }
        }
        let signers = describe(&self.policy.trust.trust.signers);
        lines.extend(signers.into_iter().map(|signer| format!("signer {signer}")));
        for magic in &self.policy.trusted_filesystems {
            lines.insert(format!("filesystem of type {magic:#x}"));
        }
        for verified in &self.policy.verified_filesystems {
            let kinds = kinds_words(verified.kinds);
            lines.insert(format!(
                "filesystem verified by {}: {kinds}",
                digest::format(&verified.root)
            ));
        }
        for folder in &self.policy.signed_folders {
            lines.insert(format!("signed files in {}", folder.display()));
        }
        if let Some(usb) = &self.policy.usb {
            lines.insert(format!("usb default {}, order {}", usb.default.word(), usb.order.word()));
        }
        lines
    }

    /// What it says about USB, line by line.
    fn usb(&self) -> Vec<UsbLine> {
        let rules = self.policy.usb.iter().flat_map(|usb| &usb.rules);
        rules.map(|rule| UsbLine { rule: line_of(rule), line: rule.line }).collect()
    }
}

/// Finds the paths of many lines without splitting a text anew for each.
struct Places<'a> {
    side: &'a Side,
    lines: BTreeMap<u16, Lines<'a>>,
}

impl<'a> Places<'a> {
    fn of(side: &'a Side) -> Self {
        let lines = side.texts.iter().map(|(source, text)| (*source, Lines::of(text))).collect();
        Self { side, lines }
    }

    fn line(&self, digest: &Digest, rule: &Rule, kinds: Kinds) -> Line {
        // The policy file itself is no list.
        let list = self.lines.get(&rule.source).filter(|_| rule.source > 0);
        let path = list.map(|lines| lines.path(rule.line)).unwrap_or_default();
        let file = self.side.policy.sources.get(usize::from(rule.source));
        let file = file.map(|file| file.strip_prefix(&self.side.folder).unwrap_or(file));
        Line {
            digest: digest::format(digest),
            kinds: kinds_words(kinds),
            path,
            file: file.unwrap_or(Path::new("")).display().to_string(),
            line: rule.line,
        }
    }
}

/// The rules about USB that one policy has and the other has not; a rule that stands twice counts once.
fn only_in(these: &Side, other: &Side) -> Vec<UsbLine> {
    let others: BTreeSet<_> = other.usb().into_iter().map(|line| line.rule).collect();
    these.usb().into_iter().filter(|line| !others.contains(&line.rule)).collect()
}

/// Whether the rules that both have stand in another order, and that matters.
fn is_reordered(old: &Side, new: &Side) -> bool {
    let in_both = |these: &Side, other: &Side| -> Vec<String> {
        let others: BTreeSet<_> = other.usb().into_iter().map(|line| line.rule).collect();
        let lines = these.usb().into_iter().map(|line| line.rule);
        lines.filter(|rule| others.contains(rule)).collect()
    };
    let is_first =
        |side: &Side| side.policy.usb.as_ref().is_some_and(|usb| usb.order == Order::First);
    is_first(old) && is_first(new) && in_both(old, new) != in_both(new, old)
}

/// The devices that are plugged in here and become something else.
fn usb_devices(devices: &Path, old: &Side, new: &Side) -> Vec<UsbDevice> {
    let left_alone =
        Rules { default: rules::Action::Allow, order: Order::First, rules: Vec::new() };
    let judged =
        |side: &Side| preflight::judged(devices, side.policy.usb.as_deref().unwrap_or(&left_alone));
    let changed = judged(old).into_iter().zip(judged(new));
    let changed = changed.filter(|((before, was), (after, is))| {
        // One may have come or gone between the two looks.
        before.port == after.port && was.action != is.action
    });
    changed
        .map(|((_, was), (device, is))| UsbDevice {
            id: device.id(),
            kinds: device.kinds(),
            port: device.port,
            name: device.name,
            serial: device.serial,
            before: was.action.word(),
            after: is.action.word(),
        })
        .collect()
}

/// The policy file that is in force on this device, of which catalogs are no part.
pub(super) fn in_force() -> Result<PathBuf, Failure> {
    #[derive(serde::Deserialize)]
    struct Status {
        sources: Vec<PathBuf>,
    }
    let Status { sources } = client::ask_json(&Request::Status)?;
    let first = sources.into_iter().next();
    first.context("the agent does not say which policy file is in force").or_exit(UNAVAILABLE)
}

fn difference(old: &Side, new: &Side) -> Difference {
    let (before, after) = (Places::of(old), Places::of(new));
    let (mut allowed, mut denied, mut unlisted) = (Vec::new(), Vec::new(), Vec::new());
    for (digest, rule) in &new.policy.rules {
        if rule.denied == 1 {
            let is_news = old.policy.rule(digest).is_none_or(|rule| rule.denied == 0);
            if is_news {
                denied.push(after.line(digest, rule, old.allowed(digest)));
            }
        } else {
            let more = rule.kinds.without(old.allowed(digest));
            if !more.is_empty() {
                allowed.push(after.line(digest, rule, more));
            }
        }
    }
    for (digest, rule) in &old.policy.rules {
        let is_denied = new.policy.rule(digest).is_some_and(|rule| rule.denied == 1);
        let less = old.allowed(digest).without(new.allowed(digest));
        if !is_denied && !less.is_empty() {
            unlisted.push(before.line(digest, rule, less));
        }
    }
    let (settings_old, settings_new) = (old.settings(), new.settings());
    Difference {
        old: old.name(),
        new: new.name(),
        allowed,
        unlisted,
        denied,
        settings_added: settings_new.difference(&settings_old).cloned().collect(),
        settings_removed: settings_old.difference(&settings_new).cloned().collect(),
        usb_added: only_in(new, old),
        usb_removed: only_in(old, new),
        usb_reordered: is_reordered(old, new),
        usb_devices: Vec::new(),
    }
}

pub fn diff(args: &Args) -> Outcome {
    let (old, new, is_here) = match &args.policies[..] {
        [old, new] => (Side::read(old)?, Side::read(new)?, false),
        [new] => (Side::load(&in_force()?)?, Side::read(new)?, true),
        _ => return Err(anyhow!("one or two policies")).or_exit(BAD_INPUT),
    };
    let mut difference = difference(&old, &new);
    if is_here {
        difference.usb_devices = usb_devices(Path::new(DEVICES), &old, &new);
    }
    let text = if args.json {
        serde_json::to_string_pretty(&difference).or_exit(UNAVAILABLE)? + "\n"
    } else {
        show(&difference)
    };
    output::print(&text)?;
    Ok(ExitCode::SUCCESS)
}

fn show(difference: &Difference) -> String {
    let mut text = format!("{} to {}\n", difference.old, difference.new);
    // Writing to a string does not fail.
    for (mark, lines) in
        [("+", &difference.allowed), ("-", &difference.unlisted), ("!", &difference.denied)]
    {
        for Line { digest, kinds, path, file, line } in lines {
            let _ = writeln!(
                text,
                "{mark} {digest}  {kinds}  {}  ({}:{line})",
                Plain(path),
                Plain(file)
            );
        }
    }
    for (mark, lines) in [("+", &difference.settings_added), ("-", &difference.settings_removed)] {
        for line in lines {
            let _ = writeln!(text, "{mark} {line}");
        }
    }
    for (mark, lines) in [("+", &difference.usb_added), ("-", &difference.usb_removed)] {
        for UsbLine { rule, line } in lines {
            let _ = writeln!(text, "{mark} {}  (line {line})", Plain(rule));
        }
    }
    if difference.usb_reordered {
        let _ = writeln!(text, "! rules about USB stand in another order, and the first decides");
    }
    for UsbDevice { port, id, name, kinds, before, after, .. } in &difference.usb_devices {
        let name = Plain(name);
        let _ = writeln!(
            text,
            "! usb {port} {id} {name} ({kinds}), plugged in here: {before}, then {after}"
        );
    }
    let _ = writeln!(
        text,
        "{} newly allowed, {} not listed any more, {} newly denied, {} other changes",
        difference.allowed.len(),
        difference.unlisted.len(),
        difference.denied.len(),
        difference.settings_added.len().max(difference.settings_removed.len())
            + difference.usb_added.len()
            + difference.usb_removed.len()
            + usize::from(difference.usb_reordered),
    );
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_about_usb_are_told_and_what_they_do_here() {
        let folder = tempfile::tempdir().expect("a folder");
        let side = |name: &str, usb: &str| {
            let file = folder.path().join(name);
            let text = format!("name = \"p\"\nversion = 1\nmode = \"audit\"\n{usb}");
            fs::write(&file, text).expect("written");
            Side::read(&file).ok().expect("good")
        };
        let stick = "[[usb.allow]]\nid = \"0781:5581\"\ninterfaces = [\"08:06:50\"]\n";
        let keys = "[[usb.reject]]\ninterfaces = { one_of = [\"03:*:*\"] }\n";
        let old = side("old.toml", &format!("[usb]\norder = \"first\"\n{stick}{keys}"));
        let new =
            side("new.toml", &format!("[usb]\ndefault = \"reject\"\norder = \"first\"\n{keys}"));
        let mut found = difference(&old, &new);
        let rule = "usb allow id = \"0781:5581\", interfaces = { equals = [\"08:06:50\"] }";
        assert_eq!(found.usb_removed, [UsbLine { rule: rule.into(), line: 6 }]);
        assert!(found.usb_added.is_empty() && !found.usb_reordered);
        assert_eq!(found.settings_added, ["usb default reject, order first"]);

        let devices = folder.path().join("devices");
        fs::create_dir_all(devices.join("1-1")).expect("made");
        let descriptors = crate::usb::descriptors::tests::made(0x0781, 0x5581, &[[8, 6, 0x50]]);
        for (name, text) in [
            ("busnum", &b"1"[..]),
            ("devnum", b"2"),
            ("authorized", b"1"),
            ("product", b"Ultra\x1b\n"),
            ("descriptors", &descriptors),
        ] {
            fs::write(devices.join("1-1").join(name), text).expect("written");
        }
        found.usb_devices = usb_devices(&devices, &old, &new);
        let text = show(&found);
        let told = "plugged in here: allow, then reject\n";
        assert!(text.contains(told) && !text.contains('\x1b'), "{text}");
        assert!(text.contains("- usb allow id = ") && text.contains("2 other changes"), "{text}");
        assert!(usb_devices(&devices, &old, &old).is_empty());

        let turned = side("turned.toml", &format!("[usb]\norder = \"first\"\n{keys}{stick}"));
        assert!(difference(&old, &turned).usb_reordered);
    }

    #[test]
    fn what_changes_is_told_with_its_place() {
        let folder = tempfile::tempdir().expect("a folder");
        let write = |name: &str, text: String| {
            let file = folder.path().join(name);
            fs::write(&file, text).expect("written");
            file
        };
        let digest = |digit: &str| digit.repeat(64);
        let list = format!("{}  /opt/stays\n{}  /opt/goes\n", digest("a"), digest("b"));
        write("old.list", list);
        write("new.list", format!("{}  /opt/stays\n{}  /opt/comes\n", digest("a"), digest("c")));
        let policy = |version: u32, list: &str, kinds: &str, rest: &str| {
            format!(
                "name = \"p\"\nversion = {version}\nmode = \"audit\"\n\
                 include = [{{ path = \"{list}\", kinds = [{kinds}] }}]\n{rest}"
            )
        };
        let allow = format!("[[allow]]\ndigest = \"{}\"\nkinds = [\"script\"]\n", digest("d"));
        let deny = format!("[[deny]]\ndigest = \"{}\"\n", digest("d"));
        let old = write("old.toml", policy(1, "old.list", "\"executable\"", &allow));
        let kinds = "\"executable\", \"library\"";
        let new = policy(2, "new.list", kinds, &deny).replace("\"audit\"", "\"enforce\"");
        let new = write("new.toml", new);
        let side = |file: &Path| Side::read(file).ok().expect("good");
        let found = difference(&side(&old), &side(&new));
        let shown = |lines: &[Line]| -> Vec<String> {
            let show = |line: &Line| {
                let Line { digest, kinds, path, file, line } = line;
                format!("{} {kinds} {path} {file}:{line}", &digest[..1])
            };
            lines.iter().map(show).collect()
        };
        let expected =
            ["a library /opt/stays new.list:1", "c executable library /opt/comes new.list:2"];
        assert_eq!(shown(&found.allowed), expected);
        assert_eq!(shown(&found.unlisted), ["b executable /opt/goes old.list:2"]);
        assert_eq!(shown(&found.denied), ["d script  new.toml:6"]);
        assert_eq!(found.settings_added, ["mode enforce"]);
        assert_eq!(found.settings_removed, ["mode audit"]);
        let same = difference(&side(&old), &side(&old));
        assert!(show(&same).ends_with(
            "0 newly allowed, 0 not listed any more, 0 newly denied, 0 other changes\n"
        ));
    }
}
