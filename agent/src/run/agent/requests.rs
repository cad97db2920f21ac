//! What the agent answers to requests at its socket.

use std::path::Path;

use portcullis_common::{Counter, Gate, Mode};

use super::Agent;
use crate::{
    artifact::digest,
    control::{
        GateStatus, ModeAnswer, PROTOCOL, Refusal, Request, RuleAnswer, RuleFound, SignatureAnswer,
        Status,
        caller::Caller,
        mode_named, preflight_refusal,
        server::{self, Answer, Asker, Command, FoundOut, Lines},
    },
    event::{Body, human},
    policy::manifest,
    run::{preflight, signatures::Signatures},
};

impl Agent {
    /// Does what a request asks. Returns the cause if it ends the agent.
    pub(super) fn command(&mut self, command: Command) -> Option<&'static str> {
        let Command { request, answer, found_out, by } = command;
        let asker = Asker { answer, by };
        let reply = match request {
            Request::Status => server::json(&self.status()),
            Request::Events { follow, json } => {
                let (past, to_come) = self.recorder.follow();
                Answer::Lines(Lines::new(past, follow.then_some(to_come), json))
            }
            Request::Rule { digest } => self.rule(&digest),
            Request::Signature { path } => {
                self.look_at_signature(path, asker);
                return None;
            }
            Request::Verified { device } => server::json(&self.gates.verified_kinds(device).0),
            Request::Mode { mode, skip_preflight } => match mode_named(&mode) {
                None => {
                    let message = format!("unknown mode \"{mode}\"; it can be audit or enforce");
                    Answer::Refused(Refusal { code: 2, message })
                }
                Some(Mode::Enforce) if !skip_preflight && found_out.is_none() => {
                    self.look_what_runs(Request::Mode { mode, skip_preflight }, asker);
                    return None;
                }
                Some(Mode::Audit) => match self.may_lift() {
                    Ok(()) => self.set_mode(Mode::Audit, Vec::new(), asker.by.as_ref()),
                    Err(refusal) => Answer::Refused(refusal),
                },
                Some(Mode::Enforce) => match found_out {
                    Some(FoundOut::InUse(in_use)) => {
                        self.set_mode(Mode::Enforce, in_use, asker.by.as_ref())
                    }
                    _ => self.set_mode(Mode::Enforce, Vec::new(), asker.by.as_ref()),
                },
            },
            Request::Reload { skip_preflight } => match found_out {
                Some(FoundOut::Policy(read)) => self.reload(read, asker.by.as_ref()),
                _ => {
                    self.read_policy(skip_preflight, asker);
                    return None;
                }
            },
            Request::Push { path, confirm_within } => match found_out {
                Some(FoundOut::Policy(read)) => self.push(read, confirm_within, asker.by.as_ref()),
                _ => {
                    self.read_bundle(path, confirm_within, asker);
                    return None;
                }
            },
            Request::TakeCatalog { path } => match found_out {
                Some(FoundOut::Taken(taken)) => self.took_catalog(taken, asker.by.as_ref()),
                _ => {
                    self.take_catalog(path, asker);
                    return None;
                }
            },
            Request::TakeCatalogAway { name } => match found_out {
                Some(FoundOut::TakenAway(taken)) => {
                    self.took_catalog_away(&name, taken, asker.by.as_ref())
                }
                _ => {
                    self.take_catalog_away(name, asker);
                    return None;
                }
            },
            Request::Usb => self.usb_devices(),
            Request::UsbAllowOnce { port } => self.allow_usb_once(&port),
            Request::History => self.write_history(),
            Request::ExpectDenied { path } => self.expect_denied(&path),
            Request::BreakGlass { token } => match found_out {
                Some(FoundOut::Token(read)) => {
                    self.break_glass(read.map(|()| token.as_str()), asker.by.as_ref())
                }
                _ => {
                    self.read_token(token.clone(), Request::BreakGlass { token }, asker);
                    return None;
                }
            },
            Request::Confirm => self.confirm(asker.by.as_ref()),
            Request::Rollback { cause } => match found_out {
                Some(FoundOut::Policy(read)) => self.roll_back(read, cause, asker.by.as_ref()),
                _ => {
                    self.read_before(cause, asker);
                    return None;
                }
            },
            Request::Stop { token } => {
                let read = match (token, found_out) {
                    (None, _) => Ok(None),
                    (Some(token), Some(FoundOut::Token(read))) => read.map(|()| Some(token)),
                    (Some(token), _) => {
                        self.read_token(token.clone(), Request::Stop { token: Some(token) }, asker);
                        return None;
                    }
                };
                match self.may_stop(read, asker.by.as_ref()) {
                    Ok(()) => {
                        self.take_down = true;
                        asker.tell(server::json(&serde_json::json!({ "stopped": true })));
                        return Some("portcullis stop");
                    }
                    Err(refusal) => Answer::Refused(refusal),
                }
            }
        };
        asker.tell(reply);
        None
    }

    /// Looks at a file's own signatures in another thread: its filesystem may keep us waiting.
    fn look_at_signature(&self, path: String, asker: Asker) {
        let Some(looking) = self.signatures.as_ref().map(Signatures::looking) else {
            asker.tell(server::json(&SignatureAnswer::default()));
            return;
        };
        tokio::task::spawn_blocking(move || {
            let reply = match looking.explain(Path::new(&path)) {
                Ok(found) => server::json(&found),
                Err(error) => {
                    let message = format!("{}: {error}", path.escape_debug());
                    Answer::Refused(Refusal { code: 2, message })
                }
            };
            asker.tell(reply);
        });
    }

    /// Hashes everything that runs, and what has run and would be refused, in another thread, and sends
    /// the request again with what was found.
    fn look_what_runs(&self, request: Request, asker: Asker) {
        let Some(commands) = self.commands.clone() else { return };
        let looking = self.signatures.as_ref().map(Signatures::looking);
        // A token lifts enforcement to repair something; what was done under it must not keep it lifted.
        let suspects = match &self.deployment.glass {
            Some(_) => Vec::new(),
            None => self.history.suspects(|digest| self.gates.rule(digest).ok().flatten()),
        };
        tokio::spawn(async move {
            let look = move || {
                let mut in_use = preflight::in_use();
                preflight::add_suspects(&mut in_use, suspects);
                if let Some(looking) = looking {
                    looking.at_what_runs(&in_use);
                }
                in_use
            };
            let in_use = tokio::task::spawn_blocking(look).await.unwrap_or_default();
            // The agent may be ending.
            let _ = commands.send(asker.again(request, FoundOut::InUse(in_use))).await;
        });
    }

    fn set_mode(
        &mut self,
        mode: Mode,
        in_use: Vec<preflight::InUse>,
        by: Option<&Caller>,
    ) -> Answer {
        let refuse = |message: String| Answer::Refused(Refusal { code: 1, message });
        if mode == Mode::Enforce {
            if self.digests == 0 && !self.trusts_more {
                return refuse(
                    "the policy lists no digest, so enforcing it would stop everything".into(),
                );
            }
            // None was looked at if the asker wants it whatever it stops.
            if let Some(refusal) = self.usb_refusal().filter(|_| !in_use.is_empty()) {
                return refuse(refusal);
            }
            let refused = preflight::refused(
                in_use,
                |digest| self.gates.rule(digest).ok().flatten(),
                |device| self.gates.verified_kinds(device),
            );
            if !refused.is_empty() {
                return Answer::Refused(preflight_refusal(&refused));
            }
        }
        self.change_mode(mode, by);
        server::json(&ModeAnswer { mode: mode.word() })
    }

    /// Changes the mode, and tells so, if it is another one.
    pub(super) fn change_mode(&mut self, mode: Mode, by: Option<&Caller>) {
        if mode != self.mode() {
            self.gates.set_mode(mode);
            let policy = self.view().id.clone();
            self.recorder.record(Body::ModeChanged { mode: mode.word(), policy, by: by.cloned() });
            self.look_at_usb();
        }
        if mode == Mode::Enforce {
            self.glass_is_whole(by);
            self.enforcement_begins();
        } else if self.deployment.glass.is_none() {
            self.enforcement_ends();
        }
    }

    fn rule(&self, written: &str) -> Answer {
        let digest = match digest::parse(written) {
            Ok(digest) => digest,
            Err(error) => {
                return Answer::Refused(Refusal {
                    code: 2,
                    message: format!("{error}; {}", error.help()),
                });
            }
        };
        match self.gates.rule(&digest) {
            Ok(rule) => server::json(&RuleAnswer {
                mode: self.mode().word().into(),
                policy: human::Named(&self.view().id).to_string(),
                rule: rule.map(|rule| RuleFound {
                    kinds: manifest::kinds_words(rule.kinds)
                        .split(' ')
                        .map(str::to_owned)
                        .collect(),
                    denied: rule.denied == 1,
                    file: self
                        .view()
                        .sources
                        .get(usize::from(rule.source))
                        .cloned()
                        .unwrap_or_default(),
                    line: rule.line,
                    signed: self.view().signed.get(&rule.source).cloned().unwrap_or_default(),
                }),
            }),
            Err(error) => Answer::Refused(Refusal { code: 3, message: error.to_string() }),
        }
    }

    fn status(&self) -> Status {
        let asked_for = Gate::ALL.iter().filter(|gate| self.gates.is_asked_for(**gate));
        let gates = asked_for.map(|gate| GateStatus {
            gate: gate.word(),
            attached: self.gates.stands(*gate),
            pinned: self.gates.is_pinned(),
            counters: Counter::ALL
                .iter()
                .filter_map(|counter| Some((counter.word(), self.counter(*gate, *counter)?)))
                .collect(),
        });
        Status {
            schema: PROTOCOL,
            pid: std::process::id(),
            version: env!("CARGO_PKG_VERSION"),
            started: self.since,
            backend: self.gates.word(),
            degraded: self.gates.is_degraded(),
            mode: self.mode().word(),
            policy: self.view().id.clone(),
            digests: self.digests,
            sources: self.view().sources.clone(),
            bundle: self.deployment.status(),
            signers: self.signers.clone(),
            catalogs: self.catalogs_status(),
            refused: self.found.refused.clone(),
            kept: self.found.kept.clone(),
            health: self.health.worst().word(),
            checks: self.health.checks().to_vec(),
            gates: gates.collect(),
            sinks: self.recorder.status(),
            usb: self.usb_status(),
            events: self.recorder.latest(),
            resident_kib: crate::run::resident_kib(),
            reappraisal: self.findings.latest.clone(),
        }
    }
}
