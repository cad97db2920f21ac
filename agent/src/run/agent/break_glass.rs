//! Lifts enforcement for some minutes, for whoever holds a signed token.

use std::path::Path;

use jiff::Timestamp;
use portcullis_common::Mode;
use tokio::time::Instant;

use super::{
    Agent,
    push::{Glass, because},
};
use crate::{
    catalog::SignedBy,
    control::{
        Refusal, Request,
        caller::Caller,
        server::{Answer, Asker, FoundOut, json},
    },
    event::{Body, GlassChange},
    kernel::check::Check,
    policy::{
        break_glass::{Claim, Purpose, Token},
        bundle::{DEVICE_FILE, Device},
        trust::Why,
    },
    reader,
    run::catalogs,
};

const ID: &str = "break-glass";
const TITLE: &str = "nobody has lifted enforcement";

impl Agent {
    /// Has a token read by a process of its own, and sends the request again.
    pub(super) fn read_token(&self, text: String, request: Request, asker: Asker) {
        let Some(commands) = self.commands.clone() else { return };
        let trust = self.deployment.operators().0.trust.clone();
        tokio::spawn(async move {
            let reading = tokio::task::spawn_blocking(move || reader::token(&text, &trust));
            let read = reading.await.unwrap_or_else(|error| Err(("state", error.to_string())));
            // The agent may be ending.
            let _ = commands.send(asker.again(request, FoundOut::Token(read))).await;
        });
    }

    /// Does what a token says, or says why not.
    pub(super) fn break_glass(&mut self, read: Result<&str, Why>, by: Option<&Caller>) -> Answer {
        match read.and_then(|text| self.lift(text, by)) {
            Ok(until) => json(&serde_json::json!({ "mode": "audit", "until": until })),
            Err(why) => {
                self.tell_glass("refused", Vec::new(), None, Some(why.1.clone()), by);
                Answer::Refused(because(why))
            }
        }
    }

    /// Takes a token for this purpose: whole, or not at all. Who signed it is returned with it.
    pub(super) fn take_token(
        &mut self,
        text: &str,
        purpose: Purpose,
    ) -> Result<(Claim, Vec<SignedBy>), Why> {
        let token = Token::parse(text.as_bytes())?;
        let device = Device::read(Path::new(DEVICE_FILE)).map_err(|error| ("device", error))?;
        let now = catalogs::now();
        let (trust, needed) = self.deployment.operators();
        let by = token.verify(trust, *needed, &device, now)?;
        token.claim.check_purpose(purpose)?;
        if purpose == Purpose::Lift && self.mode() != Mode::Enforce {
            return Err((
                "not-enforcing",
                "enforcement is not in force, so there is nothing to lift".into(),
            ));
        }
        // On the disk before it counts, so that it counts once.
        let next = self.deployment.store().with_used(token.claim.sha256())?;
        next.write().map_err(|error| ("state", error.to_string()))?;
        let troubles = next.set_marks();
        self.deployment.set_store(next);
        self.marks_are_set(&troubles);
        Ok((token.claim, by))
    }

    fn lift(&mut self, text: &str, asked: Option<&Caller>) -> Result<Timestamp, Why> {
        let (claim, by) = self.take_token(text, Purpose::Lift)?;
        let until = Timestamp::now().checked_add(claim.lasts()).unwrap_or(Timestamp::MAX);
        let ends = Instant::now() + claim.lasts();
        self.deployment.glass = Some(Glass { until: ends, then: Mode::Enforce });
        self.change_mode(Mode::Audit, asked);
        let signers: Vec<_> = by.iter().map(|by| by.signer.as_str()).collect();
        let found = format!(
            "lifted until {until:.0} by a token that {} signed: nothing is refused",
            signers.join(" and ")
        );
        let mend = "portcullis mode enforce ends it now";
        self.take_checks(vec![Check::failed(ID, TITLE, found, mend)]);
        self.tell_glass("lifted", by, Some(until), None, asked);
        Ok(until)
    }

    /// The time is over.
    pub(super) fn mend_glass(&mut self) {
        let then = self.deployment.glass.as_ref().map_or(Mode::Enforce, |glass| glass.then);
        self.change_mode(then, None);
        self.glass_is_whole(None);
    }

    /// The policy decides again, because the time is over or somebody has ended it.
    pub(super) fn glass_is_whole(&mut self, by: Option<&Caller>) {
        if self.deployment.glass.take().is_some() {
            self.take_checks(vec![Check::ok(ID, TITLE, "the policy decides again")]);
            self.tell_glass("over", Vec::new(), None, None, by);
        }
    }

    pub(super) fn tell_glass(
        &mut self,
        state: &'static str,
        signed: Vec<SignedBy>,
        until: Option<Timestamp>,
        message: Option<String>,
        by: Option<&Caller>,
    ) {
        let change = GlassChange { state, signed, until, message, by: by.cloned() };
        self.recorder.record(Body::BreakGlass(Box::new(change)));
    }

    /// What came signed is not lifted by whoever is root.
    pub(super) fn may_lift(&self) -> Result<(), Refusal> {
        if self.mode() == Mode::Enforce && self.deployment.store().in_force().is_some() {
            let message = "the policy came in a signed bundle, and what lifts it must be signed too: push \
                           a policy with mode = \"audit\", or use a token (`portcullis break-glass`)";
            return Err(Refusal { code: 1, message: message.into() });
        }
        Ok(())
    }
}
