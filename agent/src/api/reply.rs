//! What is answered over HTTP: one JSON object, or lines.

use std::{
    convert::Infallible,
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use hyper::{
    Response, StatusCode,
    body::{Body, Frame},
    header::{CONTENT_TYPE, HeaderValue},
};
use tokio::sync::mpsc;

use crate::control::{
    Refusal,
    server::{Answer, Lines},
};

/// Lines that wait for a reader.
const QUEUE: usize = 16;

/// The body of an answer.
pub enum Reply {
    /// All of it.
    Whole(Option<Bytes>),
    /// Lines, as they come.
    Lines(mpsc::Receiver<Bytes>),
}

impl Body for Reply {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let next = match &mut *self {
            Self::Whole(bytes) => Poll::Ready(bytes.take()),
            Self::Lines(lines) => lines.poll_recv(context),
        };
        next.map(|bytes| bytes.map(|bytes| Ok(Frame::data(bytes))))
    }
}

fn response(status: StatusCode, kind: &'static str, body: Reply) -> Response<Reply> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}

fn object(status: StatusCode, mut text: String) -> Response<Reply> {
    text.push('\n');
    response(status, "application/json", Reply::Whole(Some(text.into())))
}

/// A refusal, as at the local socket.
pub fn refused(status: StatusCode, code: u8, message: impl Into<String>) -> Response<Reply> {
    let refusal = Refusal { code, message: message.into() };
    object(status, serde_json::json!({ "refused": refusal }).to_string())
}

/// What the agent has answered.
pub fn answered(answer: Answer) -> Response<Reply> {
    match answer {
        Answer::Json(text) => object(StatusCode::OK, text),
        Answer::Refused(Refusal { code, message }) => {
            let status = match code {
                1 => StatusCode::CONFLICT,
                2 => StatusCode::BAD_REQUEST,
                _ => StatusCode::SERVICE_UNAVAILABLE,
            };
            refused(status, code, message)
        }
        Answer::Lines(lines) => {
            let kind = if lines.are_json() { "application/x-ndjson" } else { "text/plain" };
            response(StatusCode::OK, kind, send(lines))
        }
    }
}

/// Sends lines one by one, until nobody reads any more.
fn send(mut lines: Lines) -> Reply {
    let (sender, receiver) = mpsc::channel(QUEUE);
    tokio::spawn(async move {
        loop {
            let line = tokio::select! {
                // Not only when the next one comes.
                () = sender.closed() => return,
                line = lines.next() => line,
            };
            let Some(line) = line else { return };
            let mut bytes = Vec::with_capacity(line.len() + 1);
            bytes.extend_from_slice(line.as_bytes());
            bytes.push(b'\n');
            if sender.send(bytes.into()).await.is_err() {
                return;
            }
        }
    });
    Reply::Lines(receiver)
}
