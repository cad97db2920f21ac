//! Which devices would a policy take away? Asked before it is enforced.

use std::{collections::BTreeMap, path::Path};

use super::{
    device::{Device, Folder, present},
    hold::Places,
    rules::{Action, Rules, Verdict, decide, rule_for},
};
use crate::event::human::Plain;

/// Every device that is there, judged in the order of ports.
#[must_use]
pub fn judged(devices: &Path, rules: &Rules) -> Vec<(Device, Verdict)> {
    let mut used = BTreeMap::<usize, usize>::new();
    let mut found = Vec::new();
    for port in present(devices).ports {
        let Ok(device) = Folder::open(devices, &port).and_then(|folder| folder.read()) else {
            continue;
        };
        let verdict = decide(&device, rules, |rule| used.get(&rule).copied().unwrap_or_default());
        if let (Action::Allow, Some(rule)) = (verdict.action, verdict.rule) {
            *used.entry(rule).or_default() += 1;
        }
        found.push((device, verdict));
    }
    found
}

/// The devices that drivers have now, and would not have any more.
#[must_use]
pub fn lost(devices: &Path, rules: &Rules) -> Vec<Device> {
    let judged = judged(devices, rules).into_iter();
    let lost =
        judged.filter(|(device, verdict)| device.authorized && verdict.action != Action::Allow);
    let mut lost: Vec<_> = lost.map(|(device, _)| device).collect();
    // What locks people out comes first.
    lost.sort_by_key(|device| !device.may_be_keyboard());
    lost
}

/// Why these rules would take devices away that are in use here, if they would.
#[must_use]
pub fn refusal_by(rules: &Rules) -> Option<String> {
    let lost = lost(&Places::default().devices, rules);
    (!lost.is_empty()).then(|| refusal(&lost))
}

/// The devices, with the rules that would let them in.
#[must_use]
pub fn refusal(lost: &[Device]) -> String {
    let mut text = format!("the policy would hold {} USB devices that are in use now:", lost.len());
    for device in lost {
        let warning = if device.may_be_keyboard() { " THIS MAY BE YOUR KEYBOARD" } else { "" };
        text.push_str(&format!(
            "\n  {}: {} {} ({}){warning}",
            device.port,
            device.id(),
            Plain(&device.name),
            device.kinds(),
        ));
    }
    text.push_str("\nto let them in, add to the policy:\n");
    for rule in lost.iter().filter_map(rule_for) {
        text.push_str(&format!("\n{rule}"));
    }
    text.push_str("\nor enforce all the same with --skip-preflight");
    text
}
