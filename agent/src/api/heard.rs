//! What the agent hears of the door to the network: how it is, and whom it has refused.

use std::{sync::Arc, time::Duration};

use http_body_util::BodyExt;
use hyper::{Response, StatusCode, body::Incoming};
use jiff::{SignedDuration, Timestamp};
use tokio::{
    sync::{Semaphore, mpsc, watch},
    time::{sleep, timeout},
};

use super::{
    Told, claim,
    claim::Clients,
    refusals::Refusals,
    reply::{Reply, refused},
    word::{KeptBy, MAX_WORD, TurnedAway, Word},
};
use crate::{
    control::caller::Caller,
    event::AccessRefused,
    kernel::check::{Check, State},
};

/// The check's word.
pub const ID: &str = "api";

/// What the check is about.
pub const TITLE: &str = "operators reach the agent over the network";

/// How long the door may be away before that is told: it is started after the agent, and again with it.
const GRACE: Duration = Duration::from_secs(10);

/// How long the door may say nothing. It says every minute how it is.
const SILENCE: Duration = Duration::from_secs(150);

/// How long the agent does not listen after a word: twenty of them in a second are enough.
const PAUSE: Duration = Duration::from_millis(50);

/// The same after a word about how the door is, which may change a state, and that is a record.
const PAUSE_OF_STATE: Duration = Duration::from_secs(5);

/// How long before its end the certificate is told of.
const SOON: SignedDuration = SignedDuration::from_hours(30 * 24);

/// Hears the door.
pub struct Heard {
    clients: Arc<Clients>,
    refusals: Arc<Refusals<AccessRefused>>,
    tell: mpsc::Sender<Told>,
    /// Whether the door is there.
    is_there: watch::Sender<bool>,
    /// There is one door.
    place: Semaphore,
}

/// The door is there until this is dropped.
struct There<'a>(&'a watch::Sender<bool>);

impl Drop for There<'_> {
    fn drop(&mut self) {
        self.0.send_replace(false);
    }
}

fn warning(found: String, mend: &str) -> Check {
    Check::bad(State::Warning, ID, TITLE, found, mend)
}

impl Heard {
    /// Nothing was heard yet.
    pub fn new(
        clients: Arc<Clients>,
        refusals: Arc<Refusals<AccessRefused>>,
        tell: mpsc::Sender<Told>,
    ) -> Self {
        let (is_there, _) = watch::channel(false);
        Self { clients, refusals, tell, is_there, place: Semaphore::new(1) }
    }

    async fn tell(&self, check: Check) {
        // The agent may be ending.
        let _ = self.tell.send(Told::Check(check)).await;
    }

    /// Tells if the door is not there, for ever.
    pub async fn watch(&self) {
        let mut is_there = self.is_there.subscribe();
        loop {
            if timeout(GRACE, is_there.wait_for(|is| *is)).await.is_err() {
                let found = "its door to the network, a process of its own, is not there";
                let mend = "systemctl enable --now portcullis-network; `journalctl -u \
                            portcullis-network` says why it is not";
                self.tell(warning(found.into(), mend)).await;
                // The sender is this very object's.
                let _ = is_there.wait_for(|is| *is).await;
            }
            let _ = is_there.wait_for(|is| !*is).await;
        }
    }

    /// Hears the door until it is gone, or says nothing any more.
    pub async fn listen(&self, mut body: Incoming) -> Response<Reply> {
        let Ok(_place) = self.place.try_acquire() else {
            return refused(StatusCode::CONFLICT, 1, "there is a door already");
        };
        self.is_there.send_replace(true);
        let _there = There(&self.is_there);
        let mut waiting = Vec::new();
        while let Ok(Some(Ok(frame))) = timeout(SILENCE, body.frame()).await {
            let Some(bytes) = frame.data_ref() else { continue };
            waiting.extend_from_slice(bytes);
            while let Some(end) = waiting.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = waiting.drain(..=end).collect();
                let word = Word::read(&line);
                let is_state = word.as_ref().is_some_and(|word| !matches!(word, Word::Refused(_)));
                match word {
                    Some(word) => self.take(word).await,
                    None => tracing::warn!("the door to the network says what it should not"),
                }
                sleep(if is_state { PAUSE_OF_STATE } else { PAUSE }).await;
            }
            if waiting.len() > MAX_WORD {
                return refused(StatusCode::BAD_REQUEST, 2, "a word is too long");
            }
        }
        refused(StatusCode::REQUEST_TIMEOUT, 3, "the door says nothing any more")
    }

    async fn take(&self, word: Word) {
        match word {
            Word::Listening { address, good_until } => {
                self.tell(self.listening(&address.to_string(), good_until)).await;
            }
            Word::CannotListen { kept_by, why } => {
                self.tell(self.not_listening(kept_by, &why)).await
            }
            Word::Refused(turned) => self.turned_away(&turned),
        }
    }

    fn listening(&self, address: &str, good_until: Option<Timestamp>) -> Check {
        let config = self.clients.config();
        let mend = "put a new one there; systemctl restart portcullis-network";
        match good_until {
            Some(end) if end <= Timestamp::now().saturating_add(SOON).unwrap_or(Timestamp::MAX) => {
                let file = config.certificate.display();
                warning(format!("{file}: is good until {end} only"), mend)
            }
            _ => {
                let clients = config.clients.len();
                Check::ok(ID, TITLE, format!("at {address}, {clients} entries for clients"))
            }
        }
    }

    fn not_listening(&self, kept_by: KeptBy, why: &str) -> Check {
        let user = &self.clients.config().user;
        let mend = match kept_by {
            KeptBy::Files => format!(
                "let the user {user} read the device's file, its certificate and key (`portcullis \
                 network-door --permit` does it for what lies in /etc/portcullis), and have them belong \
                 together; it is tried again"
            ),
            KeptBy::Address => {
                "have the address there, and nobody else at the port; it is tried again".into()
            }
        };
        warning(format!("the network's door says: {why}"), &mend)
    }

    fn turned_away(&self, turned: &TurnedAway) {
        use super::refusals::Refused as _;
        let chain = turned.certificates.as_deref().and_then(claim::read);
        let peer = chain.and_then(|chain| self.clients.peer(&chain, turned.address).ok());
        self.refusals.add(AccessRefused {
            reason: turned.reason(),
            message: turned.message.clone(),
            count: turned.count,
            address: turned.address,
            by: peer.map(|peer| Caller::Network(Box::new(peer))),
        });
    }
}
