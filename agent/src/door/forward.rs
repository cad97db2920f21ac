//! Requests of strangers, made anew for the agent: of what they have written, only what was understood goes
//! on, and the bytes of a bundle.

use std::{
    io,
    path::Path,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use hyper::{
    Request, Response, StatusCode,
    body::{Body, Frame, Incoming, SizeHint},
    client::conn::http1::{self, SendRequest},
    header::{CONTENT_TYPE, HOST, HeaderValue},
};
use hyper_util::rt::TokioIo;
use tokio::{net::UnixStream, task::JoinHandle, time::timeout};

use crate::{
    api::{
        asked,
        claim::{ADDRESS, CERTIFICATES},
        reply::{Reply, refused},
        routes::because,
        upload::{Rejected, said_length, throw_away},
        written,
    },
    control::Request as Asked,
    policy::bundle::MAX_BUNDLE,
};

/// How long the agent may take to let the door in.
const CONNECT: Duration = Duration::from_secs(10);

/// For whom the door asks, as it stands in a head.
#[derive(Clone)]
pub struct Claim {
    /// Their certificates.
    pub certificates: HeaderValue,
    /// Where they come from.
    pub address: HeaderValue,
}

/// A connection to the agent, which ends when this is dropped.
pub struct Agent<B> {
    /// Takes the request.
    pub sender: SendRequest<B>,
    connection: Connection,
}

struct Connection(Option<JoinHandle<()>>);

impl Drop for Connection {
    fn drop(&mut self) {
        if let Some(task) = &self.0 {
            task.abort();
        }
    }
}

/// Connects to the agent at this socket.
///
/// # Errors
/// If it is not there.
pub async fn connect<B>(socket: &Path) -> io::Result<Agent<B>>
where
    B: Body + Unpin + Send + 'static,
    B::Data: Send,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let stream = timeout(CONNECT, UnixStream::connect(socket)).await??;
    let (sender, connection) =
        http1::handshake(TokioIo::new(stream)).await.map_err(io::Error::other)?;
    let task = tokio::spawn(async {
        // What went wrong is told to whoever waits for the answer.
        let _ = connection.await;
    });
    Ok(Agent { sender, connection: Connection(Some(task)) })
}

/// What goes to the agent.
pub enum Sent {
    /// The door's own words, if there are any.
    Own(Option<Bytes>),
    /// A bundle, as it comes.
    Bundle(Incoming),
}

impl Body for Sent {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        match &mut *self {
            Self::Own(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Self::Bundle(body) => {
                let next = std::task::ready!(Pin::new(body).poll_frame(context));
                // What is no part of the bundle is the stranger's own HTTP.
                Poll::Ready(next.filter(|frame| frame.as_ref().map_or(true, Frame::is_data)))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Own(bytes) => bytes.is_none(),
            Self::Bundle(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Own(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, |b| b.len() as u64)),
            Self::Bundle(body) => body.size_hint(),
        }
    }
}

/// What is answered.
pub enum Answer {
    /// By the door itself.
    Own(Reply),
    /// By the agent.
    Agents(Agents),
}

/// An answer of the agent, as it comes.
pub struct Agents {
    body: Incoming,
    connection: Connection,
}

impl Drop for Agents {
    fn drop(&mut self) {
        if self.body.is_end_stream() {
            // An answer may come before the bundle was sent. The agent reads on for a while then, so that
            // the answer can be read, and ends it itself.
            drop(self.connection.0.take());
        }
    }
}

impl Body for Answer {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        match &mut *self {
            Self::Own(reply) => Pin::new(reply).poll_frame(context).map_err(|never| match never {}),
            Self::Agents(answer) => Pin::new(&mut answer.body).poll_frame(context),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Own(reply) => reply.is_end_stream(),
            Self::Agents(answer) => answer.body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Own(reply) => reply.size_hint(),
            Self::Agents(answer) => answer.body.size_hint(),
        }
    }
}

/// Answers a request, which somebody has made who is let in.
pub async fn answer(socket: &Path, claim: &Claim, request: Request<Incoming>) -> Response<Answer> {
    let (head, body) = request.into_parts();
    let uri = head.uri;
    let done = match asked(&head.method, uri.path(), uri.query().unwrap_or_default()) {
        Ok(asked) => ask(socket, claim, asked, body).await,
        Err(rejected) => {
            throw_away(body);
            Err(rejected)
        }
    };
    done.unwrap_or_else(|(status, code, message)| refused(status, code, message).map(Answer::Own))
}

async fn ask(
    socket: &Path,
    claim: &Claim,
    mut asked: Asked,
    body: Incoming,
) -> Result<Response<Answer>, Rejected> {
    let sent = match &mut asked {
        Asked::Push { .. } => {
            if let Err(rejected) = said_length(&body, MAX_BUNDLE) {
                throw_away(body);
                return Err(rejected);
            }
            Sent::Bundle(body)
        }
        Asked::Rollback { cause } => {
            *cause = because(body).await?;
            Sent::Own(Some(serde_json::json!({ "because": cause }).to_string().into()))
        }
        _ => {
            throw_away(body);
            Sent::Own(None)
        }
    };
    let unavailable = |message: String| (StatusCode::SERVICE_UNAVAILABLE, 3, message);
    let Some((method, uri)) = written(&asked) else {
        return Err((StatusCode::NOT_FOUND, 2, "that cannot be asked over the network".into()));
    };
    let request = Request::builder()
        .method(method)
        .uri(uri)
        .header(HOST, "agent")
        .header(CERTIFICATES, claim.certificates.clone())
        .header(ADDRESS, claim.address.clone())
        .body(sent)
        .map_err(|error| unavailable(error.to_string()))?;
    let mut agent = match connect(socket).await {
        Ok(agent) => agent,
        Err(error) => {
            tracing::debug!("{}: {error}", socket.display());
            if let Sent::Bundle(body) = request.into_body() {
                throw_away(body);
            }
            return Err(unavailable("the agent is not there; try again in a moment".into()));
        }
    };
    let answer = agent.sender.send_request(request).await;
    let (head, body) = answer
        .map_err(|error| unavailable(format!("the agent has not answered: {error}")))?
        .into_parts();
    let mut response = Response::new(Answer::Agents(Agents { body, connection: agent.connection }));
    *response.status_mut() = head.status;
    if let Some(kind) = head.headers.get(CONTENT_TYPE) {
        response.headers_mut().insert(CONTENT_TYPE, kind.clone());
    }
    Ok(response)
}
