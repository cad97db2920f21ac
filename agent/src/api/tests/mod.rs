//! Many devices without gates, those who may ask them, and those who may not.

pub mod lab;
mod taken_over;

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use sha2::{Digest as _, Sha256};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
    sync::mpsc,
    task::JoinSet,
    time::{sleep, timeout},
};

use super::{
    client::{Ask, AskError},
    config::Config,
    network::{Network, start},
    socket::bind,
    tls,
};
use crate::{
    control::{Request, caller::Role},
    kernel::check::State,
};
use lab::{Fake, Pki, bundle, line};

/// Longer than anything takes.
const LONG: Duration = Duration::from_secs(60);

fn push(bundle: Bytes) -> Ask {
    Ask::Push { bundle: bundle.into(), confirm_within: Some(300) }
}

#[tokio::test]
async fn everybody_does_what_their_role_lets_them() {
    let pki = Pki::new();
    let fake = Fake::start(&pki).await;
    let asks = [
        (Ask::Status, Role::Viewer),
        (Ask::Events { follow: false, json: true }, Role::Viewer),
        (Ask::Confirm, Role::Operator),
        (Ask::Rollback { because: "a test".into() }, Role::Operator),
        (push(bundle(3 << 20)), Role::PolicyAdmin),
    ];
    for name in ["nobody", "viewer", "operator", "policy-admin"] {
        let role = Role::ALL.into_iter().find(|role| role.word() == name);
        for (ask, needed) in &asks {
            let before = fake.asked().len();
            let answer = pki.client(name).ask_text(&fake.device, ask).await;
            if role >= Some(*needed) {
                answer.expect("allowed");
                assert_eq!(fake.asked().last().expect("asked").by, name);
            } else {
                let error = answer.expect_err("not allowed");
                assert!(matches!(error, AskError::NotPermitted(_)), "{name}: {error}");
                assert_eq!(error.exit_code(), 3);
                assert_eq!(fake.asked().len(), before, "{name} reached the agent");
            }
        }
    }
    let last = fake.asked().pop().expect("the push");
    let expected: [u8; 32] = Sha256::digest(bundle(3 << 20)).into();
    assert_eq!(last.bundle, Some(expected), "every byte has come");
    assert_eq!(last.request, Request::Push { path: String::new(), confirm_within: Some(300) });
    let refused = fake.refused();
    let reasons: Vec<_> = refused.iter().map(|one| (one.reason, one.by.is_some())).collect();
    assert_eq!(reasons, [("unknown-certificate", true), ("role", true)]);
    assert_eq!(fs::read_dir(fake.folder.path()).expect("a folder").count(), 0, "nothing is left");
}

#[tokio::test]
async fn nobody_brings_or_takes_away_catalogs_over_the_network() {
    let pki = Pki::new();
    let fake = Fake::start(&pki).await;
    let parcel = bundle(1000).into();
    for ask in [Ask::TakeCatalog { parcel }, Ask::TakeCatalogAway { name: "pump".into() }] {
        let answer = pki.client("policy-admin").ask_text(&fake.device, &ask).await;
        let error = answer.expect_err("refused");
        assert!(matches!(error, AskError::NotPermitted(_)), "{error}");
    }
    assert_eq!(fake.asked(), [], "nothing of it has reached the agent");
    assert!(fake.refused_for("role").await.by.is_some(), "who it was is told");
}

#[tokio::test]
async fn a_no_is_told_with_its_reason() {
    let pki = Pki::new();
    let fake = Fake::start(&pki).await;
    *crate::sync::lock(&fake.behaviour.refuses) = Some("refused (rollback): too old".into());
    let answer = pki.client("policy-admin").ask_text(&fake.device, &push(bundle(9))).await;
    let error = answer.expect_err("refused");
    assert_eq!((error.exit_code(), error.to_string().as_str()), (1, "refused (rollback): too old"));
}

#[tokio::test]
async fn strangers_are_refused_before_they_say_anything() {
    let pki = Pki::new();
    let fake = Fake::start(&pki).await;
    for (name, reason) in [("stranger", "wrong-certificate"), ("expired", "expired-certificate")] {
        let answer = pki.client(name).ask_text(&fake.device, &Ask::Status).await;
        let error = answer.expect_err(name);
        assert!(matches!(error, AskError::NotPermitted(_)), "{name}: {error}");
        assert!(error.to_string().contains("does not take this certificate"), "{error}");
        let told = fake.refused_for(reason).await;
        assert_eq!((told.by, told.address.ip()), (None, fake.address.ip()), "{name}");
    }
    // Without any certificate.
    let mut roots = rustls::RootCertStore::empty();
    roots.add(tls::certificates(&pki.path("ca.pem")).expect("good").remove(0)).expect("good");
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("there is TLS 1.3")
        .with_root_certificates(roots)
        .with_no_client_auth();
    let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
    let stream = TcpStream::connect(fake.address).await.expect("a connection");
    let name = "127.0.0.1".try_into().expect("a name");
    let mut stream = connector.connect(name, stream).await.expect("the device's own end is good");
    let _ = stream.write_all(b"GET /v1/status HTTP/1.1\r\nhost: x\r\n\r\n").await;
    assert!(stream.read_to_end(&mut Vec::new()).await.is_err(), "it was answered");
    fake.refused_for("no-certificate").await;
    // Nothing that is TLS at all.
    for garbage in [&b"GET /v1/status HTTP/1.1\r\n\r\n"[..], &[0xff; 4096], &[22, 3, 1, 255, 255]] {
        let mut stream = TcpStream::connect(fake.address).await.expect("a connection");
        stream.write_all(garbage).await.expect("sent");
        let mut answer = Vec::new();
        let _ = timeout(LONG, stream.read_to_end(&mut answer)).await.expect("closed in time");
        assert!(!answer.starts_with(b"HTTP"), "{answer:?}");
    }
    fake.refused_for("no-tls").await;
    assert_eq!(fake.asked(), [], "nobody of them reached the agent");
    // A device that is not who it should be is not told anything either.
    let other = Pki::new();
    let answer = other.client("policy-admin").ask_text(&fake.device, &Ask::Status).await;
    let error = answer.expect_err("another plant");
    assert!(error.to_string().contains("the device's own certificate does not count"), "{error}");
}

/// A connection as the policy admin, for what the client would not say.
async fn raw(pki: &Pki, fake: &Fake) -> tokio_rustls::client::TlsStream<TcpStream> {
    let (certificate, key) = (pki.path("policy-admin.pem"), pki.path("policy-admin.key"));
    let config = tls::client(&certificate, &key, &pki.path("ca.pem")).expect("good");
    let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
    let stream = TcpStream::connect(fake.address).await.expect("a connection");
    connector.connect("127.0.0.1".try_into().expect("a name"), stream).await.expect("let in")
}

async fn say(pki: &Pki, fake: &Fake, text: &[u8]) -> String {
    let mut stream = raw(pki, fake).await;
    // It may be closed while this is still being said.
    let _ = stream.write_all(text).await;
    let mut answer = Vec::new();
    let _ = timeout(LONG, stream.read_to_end(&mut answer)).await.expect("closed in time");
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test]
async fn what_is_too_much_is_refused() {
    let pki = Pki::new();
    let fake = Fake::start(&pki).await;
    let head = |more: &str| format!("POST /v1/push HTTP/1.1\r\nhost: x\r\n{more}\r\n");
    let long = format!("x: {}\r\n", "y".repeat(1 << 20));
    let many = "x: y\r\n".repeat(1000);
    let cases = [
        ("a long head", head(&long), "431"),
        ("a head of many lines", head(&many), "431"),
        ("no length", head("transfer-encoding: chunked\r\n") + "1\r\nx\r\n0\r\n\r\n", "411"),
        ("a large bundle", head("content-length: 268435457\r\n"), "413"),
        ("no HTTP", "\0\0\0\0\r\n\r\n".to_owned(), "400"),
    ];
    for (what, text, status) in cases {
        let answer = say(&pki, &fake, text.as_bytes()).await;
        // A connection that is closed under a head of a megabyte takes the answer with it.
        let is_refused = answer.starts_with(&format!("HTTP/1.1 {status}"));
        assert!(is_refused || (status == "431" && answer.is_empty()), "{what}: {answer}");
    }
    assert_eq!(fake.asked(), []);
    let reason = format!("{{\"because\":\"{}\"}}", "x".repeat(5000));
    let length = reason.len();
    let text = format!(
        "POST /v1/rollback HTTP/1.1\r\nhost: x\r\ncontent-length: {length}\r\n\r\n{reason}"
    );
    assert!(say(&pki, &fake, text.as_bytes()).await.starts_with("HTTP/1.1 400"));
    assert_eq!(fake.asked(), []);
    // Well-formed, to know that the way of asking is right.
    let answer = say(&pki, &fake, b"GET /v1/status HTTP/1.1\r\nhost: x\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 200 OK"), "{answer}");
}

#[tokio::test]
async fn one_bundle_at_a_time_and_none_that_is_not_whole() {
    let pki = Pki::new();
    let fake = Fake::start(&pki).await;
    let head = b"POST /v1/push HTTP/1.1\r\nhost: x\r\ncontent-length: 1000000\r\n\r\n";
    let mut slow = raw(&pki, &fake).await;
    slow.write_all(head).await.expect("sent");
    slow.write_all(&[7; 100_000]).await.expect("sent");
    let client = pki.client("policy-admin");
    let refused = loop {
        match client.ask_text(&fake.device, &push(bundle(1000))).await {
            Err(error) => break error,
            // The slow one has not begun yet.
            Ok(_) => sleep(Duration::from_millis(10)).await,
        }
    };
    assert!(refused.to_string().contains("another bundle is on its way"), "{refused}");
    let before = fake.asked().len();
    // It goes away in the middle, and its place is free again.
    drop(slow);
    let done = async {
        while client.ask_text(&fake.device, &push(bundle(1000))).await.is_err() {
            sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(LONG, done).await.expect("free again");
    assert_eq!(fake.asked().len(), before + 1, "half a bundle reached the agent");
    assert_eq!(fs::read_dir(fake.folder.path()).expect("a folder").count(), 0);
}

#[tokio::test]
async fn followers_see_what_happens_and_leave_nothing() {
    let pki = Pki::new();
    let fake = Fake::start(&pki).await;
    let (client, device, events) = (pki.client("viewer"), fake.device.clone(), fake.events.clone());
    let (sender, mut seen) = mpsc::unbounded_channel();
    let following = tokio::spawn(async move {
        let ask = Ask::Events { follow: true, json: true };
        client
            .lines(&device, &ask, |line| {
                let _ = sender.send(line.to_owned());
                Ok(())
            })
            .await
    });
    assert_eq!(seen.recv().await.as_deref(), Some("{\"n\":\"past\"}"));
    events.send(line("new")).expect("somebody follows");
    assert_eq!(seen.recv().await.as_deref(), Some("{\"n\":\"new\"}"));
    following.abort();
    let gone = async {
        // Although nothing happens any more.
        while events.receiver_count() > 0 {
            sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(LONG, gone).await.expect("the follower's place is free");
}

#[tokio::test]
async fn a_thousand_devices_at_once() {
    lab::many_descriptors();
    let pki = Arc::new(Pki::new());
    let mut fakes = Vec::new();
    for _ in 0..1000 {
        fakes.push(Fake::start(&pki).await);
    }
    let (client, content) = (pki.client("policy-admin"), bundle(100_000));
    let places = Arc::new(tokio::sync::Semaphore::new(64));
    let mut pushes = JoinSet::new();
    for fake in &fakes {
        let (client, device, places) = (client.clone(), fake.device.clone(), Arc::clone(&places));
        let ask = push(content.clone());
        pushes.spawn(async move {
            let _place = places.acquire_owned().await;
            client.ask_text(&device, &ask).await
        });
    }
    for answer in pushes.join_all().await {
        answer.expect("pushed");
    }
    let expected: [u8; 32] = Sha256::digest(&content).into();
    for fake in &fakes {
        let asked = fake.asked();
        assert_eq!(asked.len(), 1);
        assert_eq!((asked[0].bundle, asked[0].by.as_str()), (Some(expected), "policy-admin"));
    }
}

#[tokio::test]
async fn ten_thousand_connections_take_no_ones_place() {
    lab::many_descriptors();
    let pki = Pki::new();
    let fake = Fake::start(&pki).await;
    let connect = async |from: [u8; 4]| {
        let socket = TcpSocket::new_v4().expect("a socket");
        socket.bind((from, 0).into()).expect("an address of loopback");
        socket.connect(fake.address).await
    };
    let mut held = Vec::new();
    let client = pki.client("viewer");
    for number in 0..10_000 {
        // They say nothing, and stay for as long as they are let.
        if let Ok(stream) = connect([127, 0, 0, 2]).await {
            held.push(stream);
        }
        if held.len() > 500 {
            held.drain(..250);
        }
        if number % 1000 == 999 {
            let answer = client.ask_text(&fake.device, &Ask::Status).await;
            answer.expect("others are served meanwhile");
        }
    }
    let told = fake.refused_for("too-many").await;
    assert_eq!(told.address.ip().to_string(), "127.0.0.2");
    // Those who were let in and say nothing are sent away after a while.
    held.clear();
    let mut slow = connect([127, 0, 0, 3]).await.expect("a connection");
    slow.write_all(&[22, 3, 1]).await.expect("sent");
    let read = timeout(LONG, slow.read(&mut [0; 16])).await.expect("closed in time");
    assert!(read.is_err() || read.is_ok_and(|length| length == 0), "it was answered");
    fake.refused_for("too-slow").await;
    assert!(fake.asked().iter().all(|asked| asked.request == Request::Status));
}

/// The device's file, with this address and key.
fn device_file(pki: &Pki, listen: &str, key: &str) -> PathBuf {
    let file = pki.path("device.toml");
    let path = |name: &str| pki.path(name).display().to_string();
    let text = format!(
        "name = \"pump-3\"\n[api]\nlisten = \"{listen}\"\ncertificate = \"{}\"\nkey = \"{}\"\n\
         client_ca = \"{}\"\nuser = \"root\"\n[[api.client]]\nname = \"ann\"\nrole = \"viewer\"\n",
        path("device.pem"),
        path(key),
        path("ca.pem"),
    );
    fs::write(&file, text).expect("written");
    file
}

#[test]
fn a_wrong_configuration_is_a_state_and_no_end() {
    let pki = Pki::new();
    let socket = pki.path("network.sock");
    let begin = |file: &Path| {
        let ((commands, _), (tell, told)) = (mpsc::channel(1), mpsc::channel(8));
        let (running, check) = start(file, &socket, pki.path("bundles"), commands, tell);
        (running, check, told)
    };
    let (running, check, _) = begin(&device_file(&pki, "0.0.0.0", "device.key"));
    let check = check.expect("a check");
    assert!(running.is_none() && check.state == State::Warning && !socket.exists());
    assert!(check.found.contains("device.toml:3: \"0.0.0.0\" is no address"), "{}", check.found);
    // Without a word there is no socket either.
    let (running, check, _) = begin(Path::new("/nowhere/device.toml"));
    assert!(running.is_none() && check.is_none() && !socket.exists());
    // It ends when it is let go of.
    let (running, check, _) = begin(&device_file(&pki, "127.0.0.1:0", "device.key"));
    assert!(running.is_some() && check.is_none() && socket.exists());
    drop(running);
    let refused = std::os::unix::net::UnixStream::connect(&socket).expect_err("nobody there");
    assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
}

/// What the door says is a state of the agent, until it is mended. Where a test runs as another user than
/// root, it is not let in, as it should not be.
#[tokio::test]
async fn what_keeps_the_door_shut_is_told_until_it_is_mended() {
    let pki = Pki::new();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = taken.local_addr().expect("a port").to_string();
    let file = device_file(&pki, &address, "viewer.key");
    let config = Config::read(&file).expect("good").expect("asked for");
    let ((commands, _commands), (tell, mut told)) = (mpsc::channel(1), mpsc::channel(8));
    let network = Network::new(config, pki.path("bundles"), commands, tell).expect("good");
    let socket = pki.path("network.sock");
    let listener = bind(&socket).expect("a socket");
    let uid = rustix::process::getuid().as_raw();
    let agent = tokio::spawn(Arc::new(network).serve(listener, uid));
    let door = tokio::spawn({
        let (file, socket) = (file.clone(), socket.clone());
        async move { crate::door::run(&file, &socket, |_| {}).await }
    });
    let mut check = async || loop {
        match timeout(LONG, told.recv()).await.expect("told in time") {
            Some(super::Told::Check(check)) => break check,
            other => assert!(other.is_some(), "the agent has ended"),
        }
    };
    let first = check().await;
    assert_eq!(first.state, State::Warning);
    assert!(first.found.contains("viewer.key: is not the key of"), "{}", first.found);
    assert!(first.mend.as_deref().is_some_and(|mend| mend.contains("--permit")), "{first:?}");
    device_file(&pki, &address, "device.key");
    let second = loop {
        let check = check().await;
        if !check.found.contains("viewer.key") {
            break check;
        }
    };
    assert!(second.found.contains("cannot be listened at"), "{}", second.found);
    drop(taken);
    let last = loop {
        let check = check().await;
        if check.state == State::Ok {
            break check;
        }
    };
    assert!(last.found.contains(&address), "{}", last.found);
    door.abort();
    let gone = check().await;
    assert!(gone.state == State::Warning && gone.found.contains("is not there"), "{gone:?}");
    agent.abort();
    // A device without one is left alone.
    fs::write(&file, "name = \"pump-3\"\n").expect("written");
    timeout(LONG, crate::door::run(&file, &socket, |_| {})).await.expect("nothing to do");
}

#[test]
fn files_that_are_of_no_use_are_named() {
    let pki = Pki::new();
    let found = |key: &str| {
        let config = Config::read(&device_file(&pki, "127.0.0.1:0", key));
        let (telling, _) = crate::door::telling(pki.path("network.sock"));
        let config = config.expect("good").expect("asked for");
        crate::door::Server::new(config, pki.path("network.sock"), telling)
            .err()
            .expect("of no use")
    };
    let text = found("gone.key");
    assert!(text.contains("gone.key cannot be read"), "{text}");
    let text = found("device.pem");
    assert!(text.contains("device.pem: ") && text.contains("private key in PEM"), "{text}");
}
