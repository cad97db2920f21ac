//! What the door tells the agent: how it is, and whom it has refused. It goes through one request, which
//! lasts for as long as both are there.

use std::{io, path::PathBuf, sync::Arc, time::Duration};

use bytes::Bytes;
use hyper::{Method, Request, header::HOST};
use tokio::{
    pin,
    sync::{Mutex, mpsc, watch},
    time::{interval, sleep},
};

use super::forward::connect;
use crate::api::{
    refusals::Refusals,
    reply::Reply,
    word::{self, TurnedAway, Word},
};

/// How often the agent is told how the door is although nothing has changed.
const BEAT: Duration = Duration::from_secs(60);

/// How long after the agent has gone it is looked for again.
const AGAIN: Duration = Duration::from_secs(1);

/// Those refused that wait to be told of.
const QUEUE: usize = 32;

/// Takes what is to be told.
#[derive(Clone)]
pub struct Telling {
    state: watch::Sender<Option<Word>>,
    refusals: Arc<Refusals<TurnedAway>>,
}

/// Brings it to the agent.
pub struct Ear {
    socket: PathBuf,
    state: watch::Receiver<Option<Word>>,
    refused: Mutex<mpsc::Receiver<TurnedAway>>,
    refusals: Arc<Refusals<TurnedAway>>,
}

/// What takes it, and what brings it to the agent at this socket.
pub fn telling(socket: PathBuf) -> (Telling, Ear) {
    let (sender, refused) = mpsc::channel(QUEUE);
    let refusals = Refusals::new(Box::new(move |turned| {
        sender.try_send(turned).map_err(mpsc::error::TrySendError::into_inner)
    }));
    let refusals = Arc::new(refusals);
    let (say, state) = watch::channel(None);
    let ear = Ear { socket, state, refused: Mutex::new(refused), refusals: Arc::clone(&refusals) };
    (Telling { state: say, refusals }, ear)
}

impl Telling {
    /// How the door is now.
    pub fn say(&self, word: Word) {
        self.state.send_replace(Some(word));
    }

    /// Somebody was refused.
    pub fn refused(&self, turned: TurnedAway) {
        self.refusals.add(turned);
    }
}

impl Ear {
    /// Tells the agent for ever, and looks for it when it is away.
    pub async fn go_on(&self) {
        tokio::join!(self.refusals.go_on(), async {
            loop {
                if let Err(error) = self.tell().await {
                    tracing::debug!("the agent does not hear: {error}");
                }
                sleep(AGAIN).await;
            }
        });
    }

    /// Tells it until it is gone.
    async fn tell(&self) -> io::Result<()> {
        let mut agent = connect(&self.socket).await?;
        let (say, body) = mpsc::channel::<Bytes>(1);
        let request = Request::builder()
            .method(Method::POST)
            .uri(word::PATH)
            .header(HOST, "agent")
            .body(Reply::Lines(body))
            .map_err(io::Error::other)?;
        let answer = agent.sender.send_request(request);
        pin!(answer);
        let mut state = self.state.clone();
        state.mark_changed();
        let mut beat = interval(BEAT);
        // The one before, if it was just when the agent went, is told again by `state`.
        let mut refused = self.refused.lock().await;
        loop {
            let word = tokio::select! {
                answer = &mut answer => {
                    let answer = answer.map_err(io::Error::other)?;
                    return Err(io::Error::other(format!("it answers {}", answer.status())));
                }
                Some(turned) = refused.recv() => Some(Word::Refused(turned)),
                changed = state.changed() => {
                    changed.map_err(io::Error::other)?;
                    state.borrow_and_update().clone()
                }
                _ = beat.tick() => state.borrow().clone(),
            };
            let Some(line) = word.and_then(|word| word.line()) else { continue };
            say.send(line.into()).await.map_err(|_| io::ErrorKind::BrokenPipe)?;
        }
    }
}
