//! What can be asked over HTTP, and by whom.

use std::{path::PathBuf, sync::Arc, time::Duration};

use http_body_util::{BodyExt, Limited};
use hyper::{Method, Request as HttpRequest, Response, StatusCode, body::Incoming};
use serde::Deserialize;
use tokio::{
    sync::{Semaphore, mpsc},
    time::timeout,
};

use super::{
    VERSION,
    refusals::Refusals,
    reply::{Reply, answered, refused},
    upload::{self, Rejected},
};
use crate::{
    catalog::parcel::MAX_PARCEL,
    control::{
        Request,
        caller::{Caller, Role},
        server::{self, Command},
    },
    event::AccessRefused,
    policy::{bundle::MAX_BUNDLE, manifest::is_name},
};

/// Bytes of a body that is no bundle.
const MAX_SMALL: usize = 4 << 10;

/// How long such a body may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// What the agent is asked, when somebody asks here.
pub struct Routes {
    /// Where bundles lie on their way.
    folder: PathBuf,
    commands: mpsc::Sender<Command>,
    refusals: Arc<Refusals<AccessRefused>>,
    /// One bundle at a time.
    pushing: Arc<Semaphore>,
    /// One catalog at a time, beside it.
    taking: Arc<Semaphore>,
}

/// What can be sent one at a time.
struct Lane<'a> {
    places: &'a Arc<Semaphore>,
    what: &'static str,
    /// The exit code where another one is on its way.
    busy: u8,
    /// Bytes that it may have.
    limit: u64,
}

/// Why somebody wants to go back.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Why {
    because: Option<String>,
}

fn bad(message: impl Into<String>) -> Rejected {
    (StatusCode::BAD_REQUEST, 2, message.into())
}

impl Routes {
    /// Sends what is asked there.
    pub fn new(
        folder: PathBuf,
        commands: mpsc::Sender<Command>,
        refusals: Arc<Refusals<AccessRefused>>,
    ) -> Self {
        let one = || Arc::new(Semaphore::new(1));
        Self { folder, commands, refusals, pushing: one(), taking: one() }
    }

    /// Answers a request.
    pub async fn answer(&self, by: &Caller, http: HttpRequest<Incoming>) -> Response<Reply> {
        let (head, body) = http.into_parts();
        let asked = asked(&head.method, head.uri.path(), head.uri.query().unwrap_or_default());
        let asked = asked.and_then(|request| {
            self.check_role(by, &request)?;
            Ok(request)
        });
        let done = match asked {
            Ok(Request::Push { confirm_within, .. }) => {
                let request = |path| Request::Push { path, confirm_within };
                let lane =
                    Lane { places: &self.pushing, what: "bundle", busy: 1, limit: MAX_BUNDLE };
                self.upload(by, body, lane, request).await
            }
            Ok(Request::TakeCatalog { .. }) => {
                let request = |path| Request::TakeCatalog { path };
                let lane =
                    Lane { places: &self.taking, what: "catalog", busy: 3, limit: MAX_PARCEL };
                self.upload(by, body, lane, request).await
            }
            Ok(Request::Rollback { .. }) => match because(body).await {
                Ok(cause) => self.ask(by, Request::Rollback { cause }).await,
                Err(rejected) => Err(rejected),
            },
            Ok(request) => {
                upload::throw_away(body);
                self.ask(by, request).await
            }
            Err(rejected) => {
                upload::throw_away(body);
                Err(rejected)
            }
        };
        done.unwrap_or_else(|(status, code, message)| refused(status, code, message))
    }

    fn check_role(&self, by: &Caller, request: &Request) -> Result<(), Rejected> {
        let is_fleets =
            matches!(request, Request::TakeCatalog { .. } | Request::TakeCatalogAway { .. });
        let needed = Role::needed(request);
        // Only the device's own link to its fleet brings catalogs, and takes them away.
        let needed = needed.filter(|_| !is_fleets || matches!(by, Caller::Fleet { .. }));
        let role = by.role();
        if needed.is_some_and(|needed| role >= Some(needed)) {
            return Ok(());
        }
        let (reason, message) = match (role, needed) {
            (Some(role), Some(needed)) => {
                ("role", format!("this certificate is {role}'s, and this needs {needed}"))
            }
            (Some(_), None) => ("role", "nobody may do that over the network".to_owned()),
            (None, _) => (
                "unknown-certificate",
                "this certificate has no role here; name it with [[api.client]] on the device"
                    .into(),
            ),
        };
        if let Caller::Network(peer) = by {
            self.refusals.add(AccessRefused {
                reason,
                message: message.clone(),
                count: 1,
                address: peer.address,
                by: Some(by.clone()),
            });
        }
        Err((StatusCode::FORBIDDEN, 3, message))
    }

    async fn ask(&self, by: &Caller, request: Request) -> Result<Response<Reply>, Rejected> {
        match server::ask(&self.commands, request, by.clone()).await {
            Ok(answer) => Ok(answered(answer)),
            Err(_) => Err((StatusCode::SERVICE_UNAVAILABLE, 3, "the agent is ending".into())),
        }
    }

    /// Takes what is sent, if there is a place for it, and has the agent do what is asked of that file.
    async fn upload(
        &self,
        by: &Caller,
        body: Incoming,
        Lane { places, what, busy, limit }: Lane<'_>,
        request: impl FnOnce(String) -> Request,
    ) -> Result<Response<Reply>, Rejected> {
        let place = Arc::clone(places).try_acquire_owned();
        let Ok(place) = place else {
            upload::throw_away(body);
            let message = format!("another {what} is on its way here; try again when that is done");
            return Err((StatusCode::TOO_MANY_REQUESTS, busy, message));
        };
        let length = match upload::check_length(&self.folder, &body, limit) {
            Ok(length) => length,
            Err(rejected) => {
                upload::throw_away(body);
                return Err(rejected);
            }
        };
        let file = upload::receive(&self.folder, body, length).await?;
        let (commands, by, request) = (self.commands.clone(), by.clone(), request(file.path()));
        // The agent reads the file for as long as it needs, whatever becomes of who asks.
        let asking = tokio::spawn(async move {
            let answer = server::ask(&commands, request, by).await;
            drop((file, place));
            answer
        });
        match asking.await {
            Ok(Ok(answer)) => Ok(answered(answer)),
            _ => Err((StatusCode::SERVICE_UNAVAILABLE, 3, "the agent is ending".into())),
        }
    }
}

/// What is asked for, without its body.
///
/// # Errors
/// What the answer is then: the status, the exit code that a command should have, and a line for people.
pub fn asked(method: &Method, path: &str, query: &str) -> Result<Request, Rejected> {
    let name = path.strip_prefix('/').and_then(|path| path.strip_prefix(VERSION));
    let name = name.and_then(|name| name.strip_prefix('/'));
    let mut query = Query::of(query)?;
    let (needed, request) = match name {
        Some("status") => (Method::GET, Request::Status),
        Some("events") => {
            let follow = query.either("follow", ["false", "true"])?;
            let json = !query.either("format", ["json", "text"])?;
            (Method::GET, Request::Events { follow, json })
        }
        Some("push") => {
            let seconds = query.take("confirm_within").map(str::parse::<u64>);
            let confirm_within = seconds
                .transpose()
                .map_err(|_| bad("confirm_within is a number of seconds, for example 300"))?;
            (Method::POST, Request::Push { path: String::new(), confirm_within })
        }
        Some("catalog") if *method == Method::DELETE => {
            let name = query.take("name").filter(|name| is_name(name));
            let name = name.ok_or_else(|| bad("name it: catalog?name=pump"))?.to_owned();
            (Method::DELETE, Request::TakeCatalogAway { name })
        }
        Some("catalog") => (Method::POST, Request::TakeCatalog { path: String::new() }),
        Some("confirm") => (Method::POST, Request::Confirm),
        Some("rollback") => (Method::POST, Request::Rollback { cause: String::new() }),
        _ => {
            let message = "there is only /v1/status, events, push, confirm and rollback";
            return Err((StatusCode::NOT_FOUND, 2, message.into()));
        }
    };
    if *method != needed {
        return Err((StatusCode::METHOD_NOT_ALLOWED, 2, format!("ask with {needed}")));
    }
    query.end()?;
    Ok(request)
}

/// The same as it is written: by whom, where, and with which question. None for what cannot be asked so.
pub fn written(request: &Request) -> Option<(Method, String)> {
    let (method, name) = match request {
        Request::Status => (Method::GET, "status".to_owned()),
        Request::Events { follow, json } => {
            let format = if *json { "json" } else { "text" };
            (Method::GET, format!("events?follow={follow}&format={format}"))
        }
        Request::Push { confirm_within: None, .. } => (Method::POST, "push".to_owned()),
        Request::Push { confirm_within: Some(seconds), .. } => {
            (Method::POST, format!("push?confirm_within={seconds}"))
        }
        Request::TakeCatalog { .. } => (Method::POST, "catalog".to_owned()),
        Request::TakeCatalogAway { name } => (Method::DELETE, format!("catalog?name={name}")),
        Request::Confirm => (Method::POST, "confirm".to_owned()),
        Request::Rollback { .. } => (Method::POST, "rollback".to_owned()),
        _ => return None,
    };
    Some((method, format!("/{VERSION}/{name}")))
}

/// What stands behind the question mark.
struct Query<'a>(Vec<(&'a str, &'a str)>);

impl<'a> Query<'a> {
    fn of(text: &'a str) -> Result<Self, Rejected> {
        let words = text.split('&').filter(|word| !word.is_empty());
        let pairs: Option<_> = words.map(|word| word.split_once('=')).collect();
        pairs.map(Self).ok_or_else(|| bad("write a question as NAME=VALUE"))
    }

    /// The value of a word, which is taken out.
    fn take(&mut self, word: &str) -> Option<&'a str> {
        let place = self.0.iter().position(|(known, _)| *known == word)?;
        Some(self.0.swap_remove(place).1)
    }

    /// One of two values, the first of them if the word is not there.
    fn either(&mut self, word: &str, values: [&str; 2]) -> Result<bool, Rejected> {
        match self.take(word) {
            None => Ok(false),
            Some(value) if value == values[0] => Ok(false),
            Some(value) if value == values[1] => Ok(true),
            Some(_) => Err(bad(format!("{word} is {} or {}", values[0], values[1]))),
        }
    }

    fn end(&self) -> Result<(), Rejected> {
        if self.0.is_empty() {
            return Ok(());
        }
        Err(bad(
            "unknown words behind the question mark; there is follow=true and format=text for events, \
                 and confirm_within=SECONDS for push",
        ))
    }
}

/// Why somebody wants to go back, as the body of their request says.
///
/// # Errors
/// If it cannot be understood, or does not come.
pub async fn because(body: Incoming) -> Result<String, Rejected> {
    let collected = timeout(PATIENCE, Limited::new(body, MAX_SMALL).collect()).await;
    let bytes = match collected {
        Ok(Ok(collected)) => collected.to_bytes(),
        Ok(Err(_)) => return Err(bad("the body is too long, or did not come wholly")),
        Err(_) => {
            return Err((StatusCode::REQUEST_TIMEOUT, 3, "it comes too slowly".into()));
        }
    };
    let Why { because } = if bytes.is_empty() {
        Why::default()
    } else {
        serde_json::from_slice(&bytes)
            .map_err(|error| bad(format!("not as {{\"because\":\"…\"}}: {error}")))?
    };
    Ok(because.unwrap_or_else(|| "policy rollback".into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_few_things_can_be_asked() {
        let ask = |method: Method, path, query| asked(&method, path, query).map_err(|no| no.0);
        let push = |within| Request::Push { path: String::new(), confirm_within: within };
        assert_eq!(ask(Method::GET, "/v1/status", ""), Ok(Request::Status));
        assert_eq!(ask(Method::POST, "/v1/push", ""), Ok(push(None)));
        assert_eq!(ask(Method::POST, "/v1/push", "confirm_within=300"), Ok(push(Some(300))));
        let events = |follow, json| Ok(Request::Events { follow, json });
        assert_eq!(ask(Method::GET, "/v1/events", ""), events(false, true));
        assert_eq!(ask(Method::GET, "/v1/events", "follow=true"), events(true, true));
        assert_eq!(ask(Method::GET, "/v1/events", "format=text&follow=true"), events(true, false));
        assert_eq!(ask(Method::GET, "/v1/events", "format=text"), events(false, false));
        let take = Request::TakeCatalog { path: String::new() };
        assert_eq!(ask(Method::POST, "/v1/catalog", ""), Ok(take));
        let away = Request::TakeCatalogAway { name: "pump".into() };
        assert_eq!(ask(Method::DELETE, "/v1/catalog", "name=pump"), Ok(away));
        // What is written anew says the same.
        for asked_for in [
            Request::Status,
            push(None),
            push(Some(7)),
            Request::Events { follow: true, json: false },
            Request::Events { follow: false, json: true },
            Request::Confirm,
            Request::TakeCatalog { path: String::new() },
            Request::TakeCatalogAway { name: "pump".into() },
            Request::Rollback { cause: String::new() },
        ] {
            let (method, text) = written(&asked_for).expect("it can be asked");
            let (path, query) = text.split_once('?').unwrap_or((&text, ""));
            assert_eq!(asked(&method, path, query), Ok(asked_for));
        }
        assert_eq!(written(&Request::Stop { token: None }), None);
        let no = [
            (Method::GET, "/v1/stop", "", StatusCode::NOT_FOUND),
            (Method::POST, "/v1/mode", "", StatusCode::NOT_FOUND),
            (Method::POST, "/v1/break-glass", "", StatusCode::NOT_FOUND),
            (Method::POST, "/v1/reload", "", StatusCode::NOT_FOUND),
            (Method::GET, "/v1/rule", "", StatusCode::NOT_FOUND),
            (Method::GET, "/v2/status", "", StatusCode::NOT_FOUND),
            (Method::GET, "/v1/status/", "", StatusCode::NOT_FOUND),
            (Method::GET, "/status", "", StatusCode::NOT_FOUND),
            (Method::GET, "/v1/push", "", StatusCode::METHOD_NOT_ALLOWED),
            (Method::PUT, "/v1/confirm", "", StatusCode::METHOD_NOT_ALLOWED),
            (Method::GET, "/v1/catalog", "", StatusCode::METHOD_NOT_ALLOWED),
            (Method::DELETE, "/v1/push", "", StatusCode::METHOD_NOT_ALLOWED),
            (Method::DELETE, "/v1/catalog", "", StatusCode::BAD_REQUEST),
            (Method::DELETE, "/v1/catalog", "name=a/b", StatusCode::BAD_REQUEST),
            (Method::POST, "/v1/catalog", "name=pump", StatusCode::BAD_REQUEST),
            (Method::POST, "/v1/push", "confirm_within=-1", StatusCode::BAD_REQUEST),
            (
                Method::POST,
                "/v1/push",
                "confirm_within=300&skip_preflight=true",
                StatusCode::BAD_REQUEST,
            ),
            (Method::GET, "/v1/status", "x", StatusCode::BAD_REQUEST),
            (Method::GET, "/v1/status", "follow=true", StatusCode::BAD_REQUEST),
            (Method::GET, "/v1/events", "follow=yes", StatusCode::BAD_REQUEST),
            (Method::GET, "/v1/events", "follow=true&follow=true", StatusCode::BAD_REQUEST),
        ];
        for (method, path, query, status) in no {
            assert_eq!(ask(method, path, query), Err(status), "{path}?{query}");
        }
    }

    #[test]
    fn nothing_over_the_network_lifts_enforcement() {
        let lifting = [
            Request::Mode { mode: "audit".into(), skip_preflight: true },
            Request::Mode { mode: "enforce".into(), skip_preflight: false },
            Request::Stop { token: None },
            Request::Reload { skip_preflight: true },
            Request::BreakGlass { token: String::new() },
        ];
        for request in lifting {
            assert_eq!(Role::needed(&request), None, "{request:?}");
        }
    }
}
