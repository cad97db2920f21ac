//! What guards the agent and its gates, while it runs; and who may take them down.

use portcullis_common::{Authority, Mode};

use super::{Agent, push::because};
use crate::{
    control::{Refusal, caller::Caller},
    policy::{break_glass::Purpose, trust::Why},
    run::{backend::Backend, handover::guard_marks},
};

impl Agent {
    /// Tells the gates by whose word the policy is in force. The next agent goes by it.
    pub(super) fn set_authority(&mut self, authority: Authority) {
        if let Backend::BpfLsm(gates) = &mut self.gates
            && let Err(error) = gates.shield().set_authority(authority)
        {
            tracing::error!("the next agent will not know by whose word the gates stand: {error}");
        }
    }

    /// Has the gates guard high-water marks that were made just now, and tells what went wrong with them.
    pub(super) fn marks_are_set(&mut self, troubles: &[String]) {
        if let Backend::BpfLsm(gates) = &mut self.gates
            && let Err(error) = guard_marks(gates.shield(), self.deployment.store().high_water())
        {
            tracing::error!("the high-water marks are not guarded: {error}");
        }
        if let Some(check) = self.deployment.store().check_marks(troubles) {
            self.take_checks(vec![check]);
        }
    }

    /// Looks anew at the mounts that the pins lie on.
    pub(super) fn guard_mounts(&mut self) {
        let Backend::BpfLsm(gates) = &mut self.gates else { return };
        match gates.shield().guard_mounts() {
            Ok(check) => self.take_checks(vec![check]),
            Err(error) => tracing::error!("the mounts below the gates are not guarded: {error}"),
        }
    }

    /// Whether the gates may be taken down: with a token, if what they enforce came signed.
    pub(super) fn may_stop(
        &mut self,
        token: Result<Option<String>, Why>,
        by: Option<&Caller>,
    ) -> Result<(), Refusal> {
        let enforces = self.mode() == Mode::Enforce || self.deployment.glass.is_some();
        if !enforces || self.deployment.store().in_force().is_none() {
            return Ok(());
        }
        let Some(read) = token.transpose() else {
            let message = "the policy came in a signed bundle, and what takes its gates down must be \
                           signed too: `portcullis break-glass make --stop` makes a token for it, and \
                           `portcullis stop --authorized TOKEN` uses it";
            return Err(Refusal { code: 1, message: message.into() });
        };
        match read.and_then(|text| self.take_token(&text, Purpose::Stop)) {
            Ok((_, signed)) => {
                self.tell_glass("stop", signed, None, None, by);
                Ok(())
            }
            Err(why) => {
                self.tell_glass("refused", Vec::new(), None, Some(why.1.clone()), by);
                Err(because(why))
            }
        }
    }
}
