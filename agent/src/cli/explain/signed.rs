//! What `explain` says of the signatures that a file carries itself.

use std::fmt::Write;

use crate::{
    control::{RuleFound, SignatureAnswer, SignatureRefused},
    event::human::Plain,
};

/// Adds to a policy's rule what signatures on the file say. Deny beats allow.
pub fn join(rule: &mut Option<RuleFound>, signature: &SignatureAnswer) {
    let Some(by) = signature.signed.first() else { return };
    match rule {
        Some(rule) if rule.denied => {}
        Some(rule) => {
            let more = signature.kinds.iter().filter(|kind| !rule.kinds.contains(kind));
            let more: Vec<_> = more.cloned().collect();
            rule.kinds.extend(more);
        }
        None => {
            *rule = Some(RuleFound {
                kinds: signature.kinds.clone(),
                denied: false,
                file: format!("signature by {}", by.signer),
                line: 0,
                signed: signature.signed.clone(),
            });
        }
    }
}

/// Who signed, and why a signature does not count.
pub fn show(text: &mut String, signature: &SignatureAnswer) {
    for by in &signature.signed {
        let kinds = signature.kinds.join(" and ");
        let _ = writeln!(
            text,
            "  signed  by {} ({}), {}, counts as {kinds}",
            by.signer, by.slot, by.algorithm
        );
        for certificate in &by.chain {
            let _ = writeln!(text, "          {}", Plain(certificate));
        }
        for warning in &by.warnings {
            let _ = writeln!(text, "          warning: {}", Plain(warning));
        }
    }
    for SignatureRefused { reason, message } in &signature.refused {
        let _ = writeln!(text, "  signature that does not count ({reason}): {}", Plain(message));
    }
}
