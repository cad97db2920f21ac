//! Who asks, and what they may ask for.

use std::{fmt, net::SocketAddr};

use serde::{Deserialize, Serialize};

use super::Request;
use crate::event::human::Plain;

/// What somebody may do over the network. Each may do what those before it may.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// Look: status and events.
    Viewer,
    /// Also keep what is tried, and go back to what was.
    Operator,
    /// Also push signed policies.
    PolicyAdmin,
}

impl Role {
    /// Every role.
    pub const ALL: [Self; 3] = [Self::Viewer, Self::Operator, Self::PolicyAdmin];

    /// The word for it, as in configuration and events.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Viewer => "viewer",
            Self::Operator => "operator",
            Self::PolicyAdmin => "policy-admin",
        }
    }

    /// The least role that may ask for this over the network; none if nobody may.
    #[must_use]
    pub const fn needed(request: &Request) -> Option<Self> {
        match request {
            Request::Status | Request::Events { .. } => Some(Self::Viewer),
            Request::Confirm | Request::Rollback { .. } => Some(Self::Operator),
            Request::Push { .. }
            | Request::TakeCatalog { .. }
            | Request::TakeCatalogAway { .. } => Some(Self::PolicyAdmin),
            _ => None,
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

/// Who asks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "via", rename_all = "kebab-case")]
pub enum Caller {
    /// A process on the device, at the agent's socket.
    Local {
        /// Its user.
        uid: u32,
        /// Its id, if the kernel knows it.
        pid: Option<i32>,
    },
    /// Somebody with a certificate.
    Network(Box<Peer>),
    /// The device's link to its fleet's servers, at a socket of its own. Whoever may write there speaks
    /// through it.
    Fleet {
        /// Its user.
        uid: u32,
        /// Its id, if the kernel knows it.
        pid: Option<i32>,
    },
}

/// Somebody with a certificate.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Peer {
    /// The name by which the certificate is known here, or its own first name.
    pub name: String,
    /// SHA-256 of the certificate, in hexadecimal.
    pub fingerprint: String,
    /// What they may do; none if the certificate is not known here.
    pub role: Option<Role>,
    /// Where they come from.
    pub address: SocketAddr,
}

impl Caller {
    /// Whether they are somewhere else.
    #[must_use]
    pub const fn is_remote(&self) -> bool {
        matches!(self, Self::Network(_) | Self::Fleet { .. })
    }

    /// What they may do over the network; none if nothing.
    #[must_use]
    pub fn role(&self) -> Option<Role> {
        match self {
            Self::Local { .. } => None,
            Self::Network(peer) => peer.role,
            Self::Fleet { .. } => Some(Role::PolicyAdmin),
        }
    }
}

impl fmt::Display for Caller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Local { uid, pid } => {
                write!(f, "uid {uid}")?;
                pid.map_or(Ok(()), |pid| write!(f, " (pid {pid})"))
            }
            Self::Fleet { uid, pid } => {
                write!(f, "the fleet's link (uid {uid}")?;
                pid.map_or(Ok(()), |pid| write!(f, ", pid {pid}"))?;
                f.write_str(")")
            }
            Self::Network(peer) => {
                let Peer { name, fingerprint, role, address } = &**peer;
                let role = role.map_or("no role", Role::word);
                let start = fingerprint.get(..12).unwrap_or(fingerprint);
                write!(f, "{} ({role}, certificate {start}…, from {address})", Plain(name))
            }
        }
    }
}
