//! What a device may do at a server, and what it may not, however it asks.

use std::time::Duration;

use async_nats::{Client, HeaderMap, Message};
use bytes::Bytes;
use futures_util::StreamExt;
use tokio::time::{sleep, timeout};

use super::{LONG, cluster::Cluster, group, push, simulated};
use crate::{
    api::tests::lab::{Pki, bundle},
    fleet::{
        FleetError,
        chunks::{self, Kind},
        connect::{Files, Waiting, connect},
        direct,
        listing::Listed,
        names::{self, BUNDLES, CATALOGS, Target, WANTED_STREAM},
        plant::Plant,
    },
};

/// How long it waits for an answer that must not come.
const BRIEFLY: Duration = Duration::from_millis(500);

async fn device(cluster: &Cluster, name: &str) -> Client {
    let connected = connect(&cluster.servers(), &cluster.files(name), name, Waiting::Not).await;
    connected.expect("known to the server").client
}

/// What is answered, if anything is.
async fn ask(client: &Client, subject: &str) -> Option<Message> {
    let asked = client.request(subject.to_owned(), Bytes::new());
    timeout(BRIEFLY, asked).await.ok().and_then(Result::ok)
}

#[tokio::test]
async fn a_device_has_its_own_and_nothing_else() {
    let names = vec![
        ("pump-3".to_owned(), vec!["plant-7".to_owned()]),
        ("pump-4".to_owned(), vec!["plant-8".to_owned()]),
    ];
    let cluster = Cluster::start(1, &names);
    let plant = timeout(LONG, cluster.plant()).await.expect("a server");
    let other = Target::Group("plant-8".into());
    let own = Target::Device("pump-4".into());
    for target in [&group(), &other, &own] {
        let stored = plant.store(target, bundle(1000)).await.expect("stored");
        plant.want(target, &push(&stored, None)).await.expect("taken");
    }
    let client = device(&cluster, "pump-3").await;
    let wanted =
        |target: &Target| format!("$JS.API.DIRECT.GET.{WANTED_STREAM}.{}", target.wanted());
    assert!(ask(&client, &wanted(&group())).await.is_some(), "its group's");
    let chunk = format!("{}.x.0", group().bundles());
    let found = direct::last(&client, BUNDLES, &chunk).await.expect("answered");
    assert!(found.is_none(), "a chunk of its group that is not there");
    for target in [&group(), &other, &own] {
        let stored = plant.store_catalog(target, bundle(1000)).await.expect("stored");
        let (sha256, bytes) = (stored.sha256, stored.bytes);
        let listed =
            Listed { name: "pump".into(), version: 1, sha256, bytes, digests: 1, withdrawn: 0 };
        plant.list_catalogs(target, &[listed]).await.expect("listed");
    }
    let listed = |target: &Target| {
        format!("$JS.API.DIRECT.GET.{WANTED_STREAM}.{}", target.catalogs_wanted())
    };
    assert!(ask(&client, &listed(&group())).await.is_some(), "its group's");
    let chunk = format!("{}.x.0", group().catalogs());
    let found = direct::last(&client, CATALOGS, &chunk).await.expect("answered");
    assert!(found.is_none(), "a chunk of its group that is not there");

    // Reading what is another's, with every way of asking that the servers have.
    let any =
        |kind: &str| format!("$JS.API.DIRECT.GET.{WANTED_STREAM}.$KV.portcullis-wanted.{kind}");
    let forbidden = [
        wanted(&other),
        wanted(&own),
        any(">"),
        any("*.*"),
        any("device.*"),
        format!("$JS.API.DIRECT.GET.{WANTED_STREAM}"),
        format!("$JS.API.STREAM.MSG.GET.{WANTED_STREAM}"),
        format!("$JS.API.STREAM.INFO.{WANTED_STREAM}"),
        format!("$JS.API.STREAM.PURGE.{WANTED_STREAM}"),
        format!("$JS.API.STREAM.DELETE.{WANTED_STREAM}"),
        format!("$JS.API.CONSUMER.CREATE.{WANTED_STREAM}"),
        format!("$JS.API.CONSUMER.CREATE.{WANTED_STREAM}.x.{}", group().wanted()),
        "$JS.API.INFO".to_owned(),
        "$JS.API.STREAM.NAMES".to_owned(),
        format!("$JS.API.DIRECT.GET.{BUNDLES}.{}.>", other.bundles()),
        format!("$JS.API.DIRECT.GET.{BUNDLES}.portcullis.bundle.*.*.*.*"),
        format!("$JS.API.DIRECT.GET.{BUNDLES}.portcullis.bundle.>"),
        format!("$JS.API.DIRECT.GET.KV_{}.{}", names::STATUS, names::status("pump-3")),
        listed(&other),
        listed(&own),
        any("catalogs.>"),
        any("catalogs.*.*"),
        any("catalogs.group.*"),
        format!("$JS.API.DIRECT.GET.{CATALOGS}.{}.>", other.catalogs()),
        format!("$JS.API.DIRECT.GET.{CATALOGS}.{}.x.0", own.catalogs()),
        format!("$JS.API.DIRECT.GET.{CATALOGS}.portcullis.catalog.>"),
        format!("$JS.API.DIRECT.GET.{CATALOGS}"),
        format!("$JS.API.STREAM.MSG.GET.{CATALOGS}"),
        format!("$JS.API.STREAM.PURGE.{CATALOGS}"),
        // Where catalogs are, and by the name of the other stream.
        format!("$JS.API.DIRECT.GET.{BUNDLES}.{}.x.0", group().catalogs()),
        // Writing what is another's.
        wanted(&group()).replace("$JS.API.DIRECT.GET.KV_portcullis-wanted.", ""),
        own.wanted(),
        names::status("pump-4"),
        names::events("pump-4"),
        format!("{}.x.0", group().bundles()),
        format!("{}.x.0", group().catalogs()),
        format!("{}.x.0", own.catalogs()),
        group().catalogs_wanted(),
        own.catalogs_wanted(),
        Target::Device("pump-3".into()).catalogs_wanted(),
        group().changed(),
        group().catalogs_changed(),
        own.catalogs_changed(),
    ];
    for subject in &forbidden {
        let answer = ask(&client, subject).await;
        assert!(answer.is_none(), "{subject}: {answer:?}");
    }
    // Listening to what is another's.
    for subject in [
        ">",
        "$KV.>",
        "portcullis.>",
        "portcullis.changed.>",
        "portcullis.changed.catalogs.>",
        "_INBOX.>",
        "_INBOX.pump-4.>",
    ] {
        let mut heard = client.subscribe(subject).await.expect("said");
        client.flush().await.expect("said");
        plant.ask_for_reports(&[own.clone(), other.clone()]).await.expect("said");
        let message = timeout(Duration::from_millis(100), heard.next()).await;
        assert!(!matches!(message, Ok(Some(_))), "{subject}: {message:?}");
    }
    // Its own.
    assert!(ask(&client, &names::events("pump-3")).await.is_some(), "its own events");
    assert!(ask(&client, &names::status("pump-3")).await.is_some(), "its own status");
    // A header must not replace what all devices have said.
    let fourth = device(&cluster, "pump-4").await;
    assert!(ask(&fourth, &names::status("pump-4")).await.is_some(), "its own status");
    let mut headers = HeaderMap::new();
    headers.insert("Nats-Rollup", "all");
    let subject = names::status("pump-3");
    let answer =
        client.request_with_headers(subject, headers, Bytes::new()).await.expect("answered");
    let answer = String::from_utf8_lossy(&answer.payload).into_owned();
    assert!(answer.contains("rollup not permitted"), "{answer}");
    let statuses = plant.statuses().await.expect("heard");
    assert_eq!(statuses.known().keys().collect::<Vec<_>>(), ["pump-3", "pump-4"]);

    // Servers answer wherever who asks wants it. Nothing of that becomes what is wanted, or a report.
    let before = plant.wanted(&own).await.expect("read");
    let listed_before = plant.listing(&own).await.expect("read");
    let places = [
        own.wanted(),
        group().wanted(),
        own.catalogs_wanted(),
        group().catalogs_wanted(),
        names::status("pump-4"),
        own.bundles() + ".x.0",
        own.catalogs() + ".x.0",
    ];
    for place in places {
        let asked = client.publish_with_reply(wanted(&group()), place, Bytes::new()).await;
        asked.expect("said");
    }
    client.flush().await.expect("said");
    sleep(BRIEFLY).await;
    assert_eq!(plant.wanted(&own).await.expect("read"), before);
    assert_eq!(plant.listing(&own).await.expect("read"), listed_before);
    let statuses = plant.statuses().await.expect("heard");
    let fourth = statuses.known().get("pump-4").expect("known");
    assert!(fourth.report.is_err(), "{fourth:?}");
}

#[tokio::test]
async fn strangers_are_not_spoken_with() {
    let cluster = Cluster::start(1, &simulated::names(1));
    let plant = timeout(LONG, cluster.plant()).await.expect("a server");
    let servers = cluster.servers();
    let refused = async |files: &Files, what: &str| {
        let connected = connect(&servers, files, "pump-0", Waiting::Not).await;
        connected.map(drop).expect_err(what).to_string()
    };
    // A device of another plant, and a server of another plant.
    let other = Pki::new();
    other.add("pump-0");
    let (certificate, key) = (other.path("pump-0.pem"), other.path("pump-0.key"));
    let stranger = Files { certificate, key, ca: cluster.pki.path("ca.pem") };
    refused(&stranger, "a stranger is let in").await;
    let ours = Files { ca: other.path("ca.pem"), ..cluster.files("pump-0") };
    let error = refused(&ours, "a strange server is believed").await;
    assert!(error.contains("certificate"), "{error}");
    // One of this plant that no entry is for.
    refused(&cluster.files("viewer"), "a device without an entry is let in").await;
    let error = refused(&Files { key: "/nowhere".into(), ..ours }, "no key").await;
    assert!(error.contains("/nowhere"), "{error}");
    let known = connect(&servers, &cluster.files("pump-0"), "pump-0", Waiting::Not).await;

    // A bundle that is not what it is said to be does not reach the agent.
    let client = known.expect("a device of this plant").client;
    let folder = tempfile::tempdir().expect("a folder");
    let rest = chunks::CHUNK / 4;
    let stored = plant.store(&group(), bundle(chunks::CHUNK + rest)).await.expect("stored");
    chunks::fetch(&client, Kind::Bundle, &stored, folder.path()).await.expect("as it was stored");
    let operator = plant_client(&cluster).await;
    let chunk = format!("{}.{}.1", group().bundles(), stored.sha256);
    operator.request(chunk, bundle(rest).slice(1..)).await.expect("stored");
    let error =
        chunks::fetch(&client, Kind::Bundle, &stored, folder.path()).await.expect_err("shorter");
    assert!(matches!(error, FleetError::Broken(_)), "{error}");
    let chunk = format!("{}.{}.0", group().bundles(), stored.sha256);
    operator.request(chunk, Bytes::from(vec![7; chunks::CHUNK])).await.expect("stored");
    let error =
        chunks::fetch(&client, Kind::Bundle, &stored, folder.path()).await.expect_err("changed");
    assert!(matches!(error, FleetError::Broken(_)), "{error}");
    drop::<Plant>(plant);
}

async fn plant_client(cluster: &Cluster) -> Client {
    let files = cluster.files(super::cluster::OPERATOR);
    let connected = connect(&cluster.servers(), &files, "operator", Waiting::Not).await;
    connected.expect("let in").client
}
