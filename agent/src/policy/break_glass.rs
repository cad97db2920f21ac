//! Tokens that lift enforcement on one device, once, for some minutes: for the technician who stands in
//! front of it and has no way to push a policy. Or that allow to take its gates down.

use std::time::Duration;

use jiff::Timestamp;
use portcullis_common::Digest;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::{
    bundle::{Device, Form, verify_signatures},
    manifest::is_name,
    trust::{PolicyTrust, Why},
};
use crate::{artifact::digest, catalog::SignedBy};

/// Version of the form.
const FORM: u32 = 1;

/// What comes before a claim where it is signed, so that a signature on something else is none on it.
const SIGNED_AS: &[u8] = b"portcullis break-glass 1\n";

/// Bytes of a token: three signatures with chains.
pub const MAX_TOKEN: usize = 48 << 10;

/// The longest that enforcement is lifted.
pub const LONGEST: Duration = Duration::from_secs(24 * 60 * 60);

/// What may be done with a token.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Purpose {
    /// Lift enforcement for some minutes.
    #[default]
    Lift,
    /// Take the gates down.
    Stop,
}

impl Purpose {
    /// What is left out where it is written, as tokens had none at first.
    fn is_lift(&self) -> bool {
        *self == Self::Lift
    }
}

fn too_long() -> String {
    "it lifts enforcement for one second to 24 hours".to_owned()
}

fn is_zero(count: &u32) -> bool {
    *count == 0
}

/// What a token is for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Claim {
    /// Version of this form.
    pub portcullis_break_glass: u32,
    /// The device's name.
    pub device: String,
    /// What may be done with it.
    #[serde(default, skip_serializing_if = "Purpose::is_lift")]
    pub purpose: Purpose,
    /// How long enforcement is lifted; 0 if it is not for that.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub minutes: u32,
    /// And so many seconds.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub seconds: u32,
    /// Until when it can be used.
    pub valid_until: Timestamp,
    /// What makes it another token than the last one.
    pub nonce: String,
}

/// A claim with signatures.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Token {
    /// What it is for.
    pub claim: Claim,
    signatures: Vec<Signature>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Signature {
    form: Form,
    #[serde(with = "hex::serde")]
    bytes: Vec<u8>,
}

impl Claim {
    /// A claim that nobody has made before.
    ///
    /// # Errors
    /// If the device or the time cannot be used, or the system gives no random numbers.
    pub fn new(
        purpose: Purpose,
        device: &str,
        lasts: Duration,
        valid_until: Timestamp,
    ) -> Result<Self, String> {
        let mut nonce = [0; 16];
        getrandom::fill(&mut nonce).map_err(|error| format!("no random numbers: {error}"))?;
        let parts = u32::try_from(lasts.as_secs()).map(|all| (all / 60, all % 60));
        let (minutes, seconds) = parts.map_err(|_| too_long())?;
        let claim = Self {
            portcullis_break_glass: FORM,
            device: device.to_owned(),
            purpose,
            minutes,
            seconds,
            valid_until,
            nonce: hex::encode(nonce),
        };
        claim.check().map(|()| claim)
    }

    fn check(&self) -> Result<(), String> {
        if self.portcullis_break_glass != FORM {
            let found = self.portcullis_break_glass;
            return Err(format!("it has form {found}, and this reads {FORM}"));
        }
        if !is_name(&self.device) {
            return Err(format!("\"{}\" is no device's name", self.device.escape_debug()));
        }
        match self.purpose {
            // One way to write each span.
            Purpose::Lift
                if self.lasts() > LONGEST || self.seconds >= 60 || self.lasts().is_zero() =>
            {
                Err(too_long())
            }
            Purpose::Stop if !self.lasts().is_zero() => {
                Err("it takes the gates down, which has no end".into())
            }
            _ => Ok(()),
        }
    }

    /// How long enforcement is lifted.
    #[must_use]
    pub fn lasts(&self) -> Duration {
        Duration::from_secs(u64::from(self.minutes) * 60 + u64::from(self.seconds))
    }

    /// Whether it is for this purpose.
    ///
    /// # Errors
    /// If it is for another one.
    pub fn check_purpose(&self, wanted: Purpose) -> Result<(), Why> {
        match self.purpose {
            purpose if purpose == wanted => Ok(()),
            Purpose::Lift => Err((
                "other-purpose",
                "it lifts enforcement, by `portcullis break-glass use`".into(),
            )),
            Purpose::Stop => {
                Err(("other-purpose", "it is for `portcullis stop --authorized`".into()))
            }
        }
    }

    /// What is signed.
    #[must_use]
    pub fn signed_bytes(&self) -> Vec<u8> {
        let mut bytes = SIGNED_AS.to_vec();
        // Serialising strings and numbers to memory does not fail.
        bytes.extend(serde_json::to_vec(self).unwrap_or_default());
        bytes
    }

    /// Its identity, whoever signs it.
    #[must_use]
    pub fn sha256(&self) -> String {
        let found: Digest = Sha256::digest(self.signed_bytes()).into();
        digest::format(&found)
    }
}

impl Token {
    /// A token that nobody has signed yet.
    #[must_use]
    pub fn unsigned(claim: Claim) -> Self {
        Self { claim, signatures: Vec::new() }
    }

    /// Reads a token.
    ///
    /// # Errors
    /// If it is none.
    pub fn parse(bytes: &[u8]) -> Result<Self, Why> {
        let malformed = |what: String| ("malformed", format!("it is no token: {what}"));
        if bytes.len() > MAX_TOKEN {
            return Err(malformed(format!("more than {MAX_TOKEN} bytes")));
        }
        let token: Self =
            serde_json::from_slice(bytes).map_err(|error| malformed(error.to_string()))?;
        token.claim.check().map_err(malformed)?;
        Ok(token)
    }

    /// Adds a signature over [`Claim::signed_bytes`].
    pub fn add(&mut self, form: Form, bytes: Vec<u8>) {
        let signature = Signature { form, bytes };
        if !self.signatures.contains(&signature) {
            self.signatures.push(signature);
        }
    }

    /// The signatures that it carries.
    pub fn each_signature(&self) -> impl Iterator<Item = (Form, &[u8])> {
        self.signatures.iter().map(|one| (one.form, one.bytes.as_slice()))
    }

    /// Who signed it, if that is enough and it is for this device and this time. Without a clock the time
    /// is not asked for: that it is used once is known all the same.
    ///
    /// # Errors
    /// If it does not count here.
    pub fn verify(
        &self,
        trust: &PolicyTrust,
        needed: usize,
        device: &Device,
        now: Option<Timestamp>,
    ) -> Result<Vec<SignedBy>, Why> {
        let Claim { device: meant, valid_until, .. } = &self.claim;
        let signatures: Vec<_> = self.each_signature().collect();
        let by = verify_signatures(trust, needed, &self.claim.signed_bytes(), &signatures, now)?;
        if device.name.as_ref() != Some(meant) {
            let message = format!("it is for device:{meant}, and this is {device}");
            return Err(("other-device", message));
        }
        if now.is_some_and(|now| now >= *valid_until) {
            return Err(("too-late", format!("it could be used until {valid_until}")));
        }
        Ok(by)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use indicatif::ProgressBar;

    use super::*;
    use crate::{
        policy::Policy,
        trust::{
            key,
            sign::{self, PrivateKey},
        },
    };

    const HALF_AN_HOUR: Duration = Duration::from_secs(30 * 60);

    fn at(text: &str) -> Timestamp {
        text.parse().expect("a time")
    }

    #[test]
    fn it_counts_on_its_device_in_its_time_from_whom_the_policy_names() {
        let folder = tempfile::tempdir().expect("a folder");
        let made = key::generate_ed25519().expect("random numbers");
        fs::write(folder.path().join("ann.pub"), &made.public).expect("written");
        let file = folder.path().join("p.toml");
        let text = "name = \"p\"\nversion = 1\nmode = \"audit\"\n[[signer]]\nname = \"ann\"\n\
                    slot = \"operator\"\nkey = \"ann.pub\"\nsigns = [\"policy\"]\n";
        fs::write(&file, text).expect("written");
        let trust = Policy::load(&file, &ProgressBar::hidden()).expect("a good policy").trust;
        let ann = PrivateKey::read(made.private.as_bytes()).expect("a key");
        let until = at("2026-12-01T00:00:00Z");
        let claim = Claim::new(Purpose::Lift, "pump-3", HALF_AN_HOUR, until).expect("good");
        let sign = |claim: &Claim| {
            let mut token = Token::unsigned(claim.clone());
            let made = sign::raw(&ann, &claim.signed_bytes()).expect("Ed25519");
            token.add(Form::Raw, made.into());
            token
        };
        let device = Device { name: Some("pump-3".into()), groups: Vec::new() };
        let reason = |token: &Token, needed, device: &Device, now| {
            token.verify(&trust, needed, device, now).err().map(|(reason, _)| reason)
        };
        let (good, early) = (sign(&claim), Some(at("2026-11-30T00:00:00Z")));
        let again = Token::parse(&serde_json::to_vec(&good).expect("text")).expect("a token");
        assert_eq!(again, good);
        assert_eq!(reason(&good, 1, &device, early), None);
        assert_eq!(reason(&good, 1, &device, None), None);
        assert_eq!(reason(&good, 2, &device, early), Some("too-few-signatures"));
        assert_eq!(reason(&good, 1, &device, Some(until)), Some("too-late"));
        assert_eq!(reason(&good, 1, &Device::default(), early), Some("other-device"));
        assert_eq!(reason(&Token::unsigned(claim.clone()), 1, &device, early), Some("unsigned"));
        // What it is for cannot be changed either.
        assert_eq!(good.claim.check_purpose(Purpose::Lift), Ok(()));
        assert_eq!(good.claim.check_purpose(Purpose::Stop).expect_err("lifts").0, "other-purpose");
        let stop = sign(&Claim::new(Purpose::Stop, "pump-3", Duration::ZERO, until).expect("good"));
        assert_eq!(reason(&stop, 1, &device, early), None);
        assert_eq!(stop.claim.check_purpose(Purpose::Lift).expect_err("stops").0, "other-purpose");
        let mut other = good.clone();
        (other.claim.purpose, other.claim.minutes) = (Purpose::Stop, 0);
        assert_eq!(reason(&other, 1, &device, early), Some("bad-signature"));
        // Nothing of the claim can be changed.
        let mut longer = good.clone();
        longer.claim.minutes = 31;
        assert_eq!(reason(&longer, 1, &device, early), Some("bad-signature"));
        // The same words without what comes before them are no token.
        let mut bare = Token::unsigned(claim.clone());
        let words = serde_json::to_vec(&claim).expect("text");
        bare.add(Form::Raw, sign::raw(&ann, &words).expect("Ed25519").into());
        assert_eq!(reason(&bare, 1, &device, early), Some("bad-signature"));
        assert_ne!(
            Claim::new(Purpose::Lift, "pump-3", HALF_AN_HOUR, until).expect("good").sha256(),
            claim.sha256()
        );
    }

    #[test]
    fn what_is_no_token_is_told() {
        let until = at("2026-12-01T00:00:00Z");
        let second = Duration::from_secs(1);
        for lasts in [Duration::ZERO, LONGEST + second, Duration::MAX] {
            assert!(Claim::new(Purpose::Lift, "pump-3", lasts, until).is_err(), "{lasts:?}");
        }
        assert!(Claim::new(Purpose::Lift, "a b", second, until).is_err());
        let mut claim = Claim::new(Purpose::Lift, "pump-3", 90 * second, until).expect("good");
        assert_eq!((claim.minutes, claim.seconds, claim.lasts()), (1, 30, 90 * second));
        (claim.minutes, claim.seconds) = (0, 90);
        assert!(claim.check().is_err());
        // Tokens of whole minutes are as they always were.
        let claim = Claim::new(Purpose::Lift, "pump-3", HALF_AN_HOUR, until).expect("good");
        assert!(!String::from_utf8_lossy(&claim.signed_bytes()).contains("seconds"));
        for text in ["", "{}", "[]", "{\"claim\":1,\"signatures\":[]}", "\u{0}"] {
            assert_eq!(Token::parse(text.as_bytes()).expect_err(text).0, "malformed");
        }
        assert!(Claim::new(Purpose::Stop, "pump-3", second, until).is_err());
        assert_eq!(Token::parse(&vec![b' '; MAX_TOKEN + 1]).expect_err("long").0, "malformed");
    }
}
