//! Sinks and receivers that are away, slow, or break off.

use std::{
    fs,
    io::{BufRead, BufReader, Read},
    net::TcpListener,
    sync::mpsc,
};

use super::*;
use crate::spool::{
    Bounds, Opened,
    chain::{Chain, record_of},
};

fn events(spool: &Spool, end: &mut crate::spool::chain::End, count: u64) {
    for n in 0..count {
        let event = format!("{{\"type\":\"test\",\"time\":\"2026-11-24T03:48:00Z\",\"n\":{n}}}");
        let (place, line) = end.link(Chain::Main, &event, "text \"quoted\"");
        spool.push(place, line.into());
    }
}

fn config(text: &str) -> Config {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("device.toml");
    fs::write(&file, text).expect("written");
    Config::read(&file).expect("understood")
}

/// Reads messages by their octet counts until the connection ends or `limit` came.
fn messages(connection: std::net::TcpStream, limit: usize) -> Vec<String> {
    let mut reader = BufReader::new(connection);
    let mut found = Vec::new();
    while found.len() < limit {
        let mut length = Vec::new();
        if reader.read_until(b' ', &mut length).unwrap_or(0) == 0 {
            break;
        }
        let length: usize =
            String::from_utf8_lossy(&length).trim().parse().expect("an octet count");
        let mut message = vec![0; length];
        if reader.read_exact(&mut message).is_err() {
            break;
        }
        found.push(String::from_utf8(message).expect("UTF-8"));
    }
    found
}

fn records(messages: &[String]) -> Vec<u64> {
    let record = |message: &String| {
        let json = &message[message.find('{').expect("JSON")..];
        record_of(json.as_bytes()).expect("a number")
    };
    messages.iter().map(record).collect()
}

#[test]
fn a_receiver_that_breaks_off_gets_the_rest_in_order_and_a_stuck_one_slows_nobody() {
    let folder = tempfile::tempdir().expect("a folder");
    let (good, stuck) = (
        TcpListener::bind("127.0.0.1:0").expect("a port"),
        TcpListener::bind("127.0.0.1:0").expect("a port"),
    );
    let address = |listener: &TcpListener| listener.local_addr().expect("an address").to_string();
    let log = folder.path().join("log.jsonl");
    let text = format!(
        "[[sink]]\nname = \"good\"\ntype = \"syslog\"\naddress = \"tcp:{}\"\n[[sink]]\nname = \"stuck\"\n\
         type = \"syslog\"\naddress = \"tcp:{}\"\n[[sink]]\nname = \"log\"\ntype = \"file\"\npath = \"{}\"\n",
        address(&good),
        address(&stuck),
        log.display()
    );
    let Opened { spool, mut end, .. } =
        Spool::open(&folder.path().join("spool"), Bounds::default());
    let mut sinks = Sinks::start(Ok(config(&text)), &spool);
    events(&spool, &mut end, 500);
    let (first, _) = good.accept().expect("a connection");
    let before = messages(first, 100);
    // Broken off by the end of `first`, with 400 unread.
    assert_eq!(records(&before), (1..=100).collect::<Vec<_>>());
    events(&spool, &mut end, 500);
    let (tell, told) = mpsc::channel();
    let reading = thread::spawn(move || {
        let mut all = Vec::new();
        while let Ok((connection, _)) = good.accept() {
            all = records(&messages(connection, 2000));
            if all.last() == Some(&1000) {
                break;
            }
        }
        tell.send(all)
    });
    let deadline = Instant::now() + Duration::from_secs(20);
    while fs::read_to_string(&log).unwrap_or_default().lines().count() < 1000 {
        assert!(Instant::now() < deadline, "{:?}", sinks.status(&spool));
        thread::sleep(Duration::from_millis(20));
    }
    let behind = |sinks: &Sinks, name: &str| {
        sinks.status(&spool).into_iter().find(|sink| sink.name == name).and_then(|sink| sink.behind)
    };
    while behind(&sinks, "good") != Some(0) {
        assert!(Instant::now() < deadline, "{:?}", sinks.status(&spool));
        thread::sleep(Duration::from_millis(20));
    }
    spool.finish();
    sinks.end();
    drop(spool);
    drop(sinks);
    let after = told.recv_timeout(Duration::from_secs(20)).expect("the rest");
    // Nothing is missing, and what comes twice comes in its order.
    assert!(after[0] <= 101, "records between were lost: {}", after[0]);
    assert_eq!(after, (after[0]..=1000).collect::<Vec<_>>());
    drop(reading);
    let lines = fs::read_to_string(&log).expect("read");
    let written: Vec<_> = lines.lines().filter_map(|line| record_of(line.as_bytes())).collect();
    assert_eq!(written, (1..=1000).collect::<Vec<_>>());
    let _ = stuck.accept().map(|(mut one, _)| one.read(&mut [0; 1]));
}

#[test]
fn files_are_rotated_and_none_is_written_twice() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("events.jsonl");
    let ready = |record: u64| Ready {
        record,
        event: Value::Null,
        body: format!("{{\"record\":{record},\"padding\":\"{}\"}}", "x".repeat(500)),
    };
    let mut file = file::RotatedFile::new(path.clone(), 10_000, 2);
    file.deliver(&(1..=100).map(ready).collect::<Vec<_>>()).expect("written");
    // As after a crash: what was acknowledged is older than what was written.
    let mut file = file::RotatedFile::new(path.clone(), 10_000, 2);
    fs::OpenOptions::new()
        .append(true)
        .open(&path)
        .and_then(|mut file| io::Write::write_all(&mut file, b"{\"record\":10"))
        .expect("torn");
    file.deliver(&(95..=110).map(ready).collect::<Vec<_>>()).expect("written");
    let mut found = Vec::new();
    for part in ["events.jsonl.2", "events.jsonl.1", "events.jsonl"] {
        let text = fs::read_to_string(folder.path().join(part)).expect(part);
        assert!(text.len() <= 11_000, "{part}");
        found.extend(text.lines().map(|line| record_of(line.as_bytes()).expect("whole")));
    }
    assert_eq!(found, (found[0]..=110).collect::<Vec<_>>());
    assert!(!folder.path().join("events.jsonl.3").exists());
}

#[test]
fn syslog_messages_are_well_formed() {
    let event = serde_json::json!({
        "record": 7, "type": "decision", "outcome": "deny", "time": "2026-11-24T03:48:00.724123456Z",
        "artifact": { "path": "/tmp/a\"]\\\n" }, "text": "denied",
    });
    let ready = Ready { record: 7, event, body: "{}".into() };
    let message = syslog::message(&ready, "pump 3\n");
    let pid = std::process::id();
    assert_eq!(
        message,
        format!(
            "<84>1 2026-11-24T03:48:00.724123Z pump3 portcullis {pid} decision-deny \
             [portcullis@32473 record=\"7\" type=\"decision\" outcome=\"deny\" \
             path=\"/tmp/a\\\"\\]\\\\\\\\u{{a}}\"] {{}}"
        )
    );
}

#[test]
fn mistakes_are_placed_and_mended() {
    let good =
        "name = \"pump-3\"\n[[sink]]\nname = \"a\"\ntype = \"syslog\"\naddress = \"tcp:h:1\"\n";
    let folder = tempfile::tempdir().expect("a folder");
    let read = |text: &str| {
        let file = folder.path().join("device.toml");
        fs::write(&file, text).expect("written");
        Config::read(&file)
    };
    assert_eq!(read(good).expect("good").sinks.len(), 1);
    assert!(read("name = \"pump-3\"\n").expect("good").sinks.is_empty());
    for (word, other, line, expected) in [
        ("tcp:h:1", "h:1", 2, "is no address; write address"),
        ("tcp:h:1", "tcp:h:0", 2, "is no address"),
        ("tcp:h:1", "tls:h:1", 2, "name the authority"),
        ("tcp:h:1\"", "tcp:h:1\"\nca = \"/x\"", 2, "are for tls: addresses"),
        ("tcp:h:1\"", "tcp:h:1\"\nkeep = 3", 2, "keep means nothing for a sink of type"),
        ("\"syslog\"", "\"mail\"", 2, "address means nothing"),
        ("\"a\"", "\"a b\"", 3, "is no name"),
        ("address", "adress", 5, "unknown field `adress`"),
        ("type = \"syslog\"\naddress = \"tcp:h:1\"", "type = \"file\"", 2, "whole path"),
    ] {
        let error = read(&good.replace(word, other)).expect_err(expected);
        assert!(
            error.contains(&format!("device.toml:{line}: ")) && error.contains(expected),
            "{error}"
        );
    }
    let twice = format!("{good}[[sink]]\nname = \"a\"\ntype = \"audit\"\n");
    assert!(read(&twice).expect_err("twice").contains("device.toml:7: there is a sink"));
}
