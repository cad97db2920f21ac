//! What a server lets a device do: the entry for its configuration.

use super::names::{self, BUNDLES, CATALOGS, Target, WANTED_STREAM};

/// Subjects that a device may publish to, and those that it may subscribe to.
#[must_use]
pub fn subjects(device: &str, groups: &[String]) -> (Vec<String>, Vec<String>) {
    let own = Target::Device(device.to_owned());
    let groups = groups.iter().cloned().map(Target::Group);
    let targets: Vec<_> = [own].into_iter().chain(groups).collect();
    let mut publish = vec![names::status(device), names::events(device)];
    let mut subscribe = vec![format!("{}.>", names::inbox(device))];
    for target in &targets {
        publish.push(format!("$JS.API.DIRECT.GET.{WANTED_STREAM}.{}", target.wanted()));
        publish.push(format!("$JS.API.DIRECT.GET.{BUNDLES}.{}.>", target.bundles()));
        publish.push(format!("$JS.API.DIRECT.GET.{WANTED_STREAM}.{}", target.catalogs_wanted()));
        publish.push(format!("$JS.API.DIRECT.GET.{CATALOGS}.{}.>", target.catalogs()));
        subscribe.extend([target.changed(), target.catalogs_changed()]);
    }
    (publish, subscribe)
}

/// The device's entry among `users` of the account of devices. Its certificate has `user` as its name.
#[must_use]
pub fn user(user: &str, device: &str, groups: &[String]) -> String {
    let (publish, subscribe) = subjects(device, groups);
    let list = |subjects: &[String]| {
        let lines: Vec<_> = subjects.iter().map(|subject| format!("        {subject:?}")).collect();
        lines.join("\n")
    };
    format!(
        "{{\n  user: {user:?}\n  permissions: {{\n    publish: {{\n      allow: [\n{}\n      ]\n    }}\n    \
         subscribe: {{\n      allow: [\n{}\n      ]\n    }}\n  }}\n}}\n",
        list(&publish),
        list(&subscribe)
    )
}

/// The accounts of a server: that of operators with all streams, and that of devices, which reaches of it
/// only what devices need. Two, because a server sends an answer wherever who asks wants it: from the
/// account of devices nothing can be stored among what is wanted, however it is asked.
#[must_use]
pub fn accounts(operators: &[String], devices: &[String]) -> String {
    let services = [
        format!("$JS.API.DIRECT.GET.{WANTED_STREAM}.>"),
        format!("$JS.API.DIRECT.GET.{BUNDLES}.>"),
        format!("$JS.API.DIRECT.GET.{CATALOGS}.>"),
        format!("$KV.{}.*", names::STATUS),
        "portcullis.events.*".to_owned(),
    ];
    let changed = "portcullis.changed.>";
    let exports: String =
        services.iter().map(|subject| format!("      {{ service: {subject:?} }}\n")).collect();
    let imports: String = services
        .iter()
        .map(|subject| {
            format!("      {{ service: {{ account: PORTCULLIS, subject: {subject:?} }} }}\n")
        })
        .collect();
    let operators: Vec<_> = operators.iter().map(|user| format!("{{ user: {user:?} }}")).collect();
    let operators = operators.join(", ");
    let devices = devices.concat();
    format!(
        "accounts {{\n  PORTCULLIS {{\n    jetstream: enabled\n    users: [{operators}]\n    exports: [\n      \
         {{ stream: {changed:?} }}\n{exports}    ]\n  }}\n  DEVICES {{\n    imports: [\n      {{ stream: {{ \
         account: PORTCULLIS, subject: {changed:?} }} }}\n{imports}    ]\n    users: [\n{devices}    ]\n  \
         }}\n}}\n"
    )
}
