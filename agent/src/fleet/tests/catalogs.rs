//! Catalogs through a cluster of servers, some of whose words are hostile.

use std::{collections::BTreeMap, fs, path::Path};

use bytes::Bytes;
use sha2::{Digest as _, Sha256};
use tempfile::TempDir;
use tokio::time::timeout;

use super::{LONG, Simulated, cluster::Cluster, group, push, simulated, until};
use crate::{
    api::tests::lab::bundle,
    catalog::parcel,
    fleet::{
        chunks::{CHUNK, Kind},
        connect::{Waiting, connect},
        listing::{Listed, OfCatalog, State},
        names::Target,
        plant::{Plant, Seen},
    },
    policy::trust::PolicyTrust,
    sync::lock,
    trust::{
        key,
        sign::{self, PrivateKey},
    },
};

/// Who signs catalogs.
struct Maker {
    folder: TempDir,
    key: PrivateKey,
}

impl Maker {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let made = key::generate_ed25519().expect("random numbers");
        fs::write(folder.path().join("key.pub"), &made.public).expect("written");
        Self { folder, key: PrivateKey::read(made.private.as_bytes()).expect("a key") }
    }

    fn trust(&self) -> PolicyTrust {
        PolicyTrust::in_key(&self.folder.path().join("key.pub")).expect("a key")
    }

    /// A catalog with so many entries, or that takes a digest back, as an operator packs it.
    fn catalog(&self, name: &str, version: u64, entries: usize) -> (Listed, Bytes) {
        let mut text = format!(
            "# portcullis manifest 1\n# catalog: {name}\n# version: {version}\n# kinds: executable\n"
        );
        if entries == 0 {
            text.push_str(&format!("# withdrawn: {}  /bin/old\n", hex::encode([7; 32])));
        }
        for number in 0..entries {
            let digest = Sha256::digest(format!("{name}{number}"));
            text.push_str(&format!("{}  /bin/{number}\n", hex::encode(digest)));
        }
        text.push_str(&format!("# end: {entries} entries\n"));
        let file = self.folder.path().join("x.catalog");
        fs::write(&file, &text).expect("written");
        let signature = sign::raw(&self.key, text.as_bytes()).expect("Ed25519");
        fs::write(self.folder.path().join("x.catalog.sig"), signature).expect("written");
        let packed = parcel::pack(Path::new(&file)).expect("a catalog");
        assert_eq!((packed.name.as_str(), packed.version), (name, version));
        let listed = listed(name, version, &packed.bytes);
        (listed, packed.bytes.into())
    }
}

fn listed(name: &str, version: u64, parcel: &[u8]) -> Listed {
    let (sha256, bytes) = (hex::encode(Sha256::digest(parcel)), parcel.len() as u64);
    Listed { name: name.into(), version, sha256, bytes, digests: 0, withdrawn: 0 }
}

async fn wanted(plant: &Plant, catalogs: &[(Listed, Bytes)]) {
    for (_, parcel) in catalogs {
        plant.store_catalog(&group(), parcel.clone()).await.expect("stored");
    }
    let listed: Vec<_> = catalogs.iter().map(|(listed, _)| listed.clone()).collect();
    plant.list_catalogs(&group(), &listed).await.expect("listed");
}

/// What a device says of a catalog.
fn said<'a>(
    known: &'a BTreeMap<String, Seen>,
    device: &str,
    listed: &Listed,
) -> Option<&'a OfCatalog> {
    let catalogs = &known.get(device)?.report.as_ref().ok()?.catalogs;
    catalogs.iter().find(|one| one.name == listed.name && one.sha256 == listed.sha256)
}

fn all(known: &BTreeMap<String, Seen>, devices: &[Simulated], what: &Listed, state: State) -> bool {
    devices
        .iter()
        .all(|device| said(known, &device.name, what).is_some_and(|said| said.state == state))
}

fn why<'a>(known: &'a BTreeMap<String, Seen>, device: &Simulated, listed: &Listed) -> &'a str {
    let said = said(known, &device.name, listed).and_then(|said| said.message.as_deref());
    said.unwrap_or_default()
}

#[tokio::test]
async fn devices_have_the_catalogs_that_they_shall_have_and_each_is_judged_once() {
    let names = simulated::names(4);
    let mut cluster = Cluster::start(3, &names);
    let plant = timeout(LONG, cluster.plant()).await.expect("a cluster");
    let (maker, stranger) = (Maker::new(), Maker::new());
    let mut devices = Vec::new();
    for (name, groups) in &names {
        let folder = tempfile::tempdir().expect("a folder");
        let config = cluster.config(name, groups);
        devices.push(Simulated::start_trusting(config, folder, maker.trust()).await);
    }
    let mut statuses = plant.statuses().await.expect("heard");
    until(&mut statuses, "all are there", |known| known.len() == names.len()).await;

    // One of several chunks, one that takes a digest back, one that nobody here trusts, and nonsense.
    let first = maker.catalog("pump", 1, 12_000);
    assert!(first.1.len() > CHUNK, "several chunks");
    let revoked = maker.catalog("revoked", 1, 0);
    let strange = stranger.catalog("strange", 1, 1);
    let nonsense = (listed("nonsense", 1, &bundle(5000)), bundle(5000));
    let round = [first.clone(), revoked.clone(), strange.clone(), nonsense.clone()];
    wanted(&plant, &round).await;
    let is_over = |known: &BTreeMap<String, Seen>, devices: &[Simulated]| {
        [&first.0, &revoked.0].iter().all(|one| all(known, devices, one, State::Here))
            && [&strange.0, &nonsense.0].iter().all(|one| all(known, devices, one, State::Refused))
    };
    until(&mut statuses, "all are judged", |known| is_over(known, &devices)).await;
    let known = statuses.known();
    let reason = why(known, &devices[0], &strange.0);
    assert!(reason.starts_with("refused (bad-signature)"), "{reason}");
    assert!(why(known, &devices[0], &nonsense.0).starts_with("refused (malformed)"));
    for device in &devices {
        assert_eq!(device.brought().len(), round.len(), "each was brought once");
        assert_eq!(device.behaviour.kept().len(), 2);
        assert!(device.asked().iter().all(|one| one.by == "fleet"));
    }

    // One device is away, and a server goes. The list has a newer version, not what was refused, and not
    // what takes a digest back.
    let (config, folder) = devices.pop().expect("a device").stop();
    cluster.kill_node(0);
    let second = maker.catalog("pump", 2, 10);
    wanted(&plant, std::slice::from_ref(&second)).await;
    let gone = [&revoked.0, &strange.0, &nonsense.0].map(|one| one.name.clone());
    plant.unlist_catalogs(&group(), &gone).await.expect("listed by two of three");
    let is_over = |known: &BTreeMap<String, Seen>, devices: &[Simulated]| {
        all(known, devices, &second.0, State::Here) && all(known, devices, &revoked.0, State::Stays)
    };
    until(&mut statuses, "all have the second", |known| is_over(known, &devices)).await;
    assert!(why(statuses.known(), &devices[0], &revoked.0).starts_with("refused (withdraws)"));
    assert!(said(statuses.known(), &devices[0].name, &strange.0).is_none());

    // Who was away catches up, and does nothing twice after a restart.
    let back = [Simulated::start_trusting(config, folder, maker.trust()).await];
    until(&mut statuses, "who was away has it", |known| is_over(known, &back)).await;
    let [back] = back;
    let digest: [u8; 32] = Sha256::digest(&second.1).into();
    assert_eq!(back.brought(), [digest], "only what is missing");
    let (config, folder) = back.stop();
    devices.push(Simulated::start_trusting(config, folder, maker.trust()).await);

    // An older version, and one that a server has changed.
    cluster.start_node(0);
    let older = maker.catalog("pump", 1, 9);
    let changed = maker.catalog("changed", 1, 12_000);
    for (_, parcel) in [&older, &changed] {
        plant.store_catalog(&group(), parcel.clone()).await.expect("stored");
    }
    let files = cluster.files(super::cluster::OPERATOR);
    let operator = connect(&cluster.servers(), &files, "operator", Waiting::Not).await;
    let operator = operator.expect("let in").client;
    let chunk = format!("{}.0", Kind::Catalog.prefix(&group(), &changed.0.sha256));
    let other = Bytes::from(vec![b'x'; CHUNK]);
    operator.request(chunk.clone(), other).await.expect("stored");
    plant.list_catalogs(&group(), &[older.0.clone(), changed.0.clone()]).await.expect("listed");
    let is_over = |known: &BTreeMap<String, Seen>| {
        all(known, &devices, &older.0, State::Refused)
            && all(known, &devices, &changed.0, State::Waiting)
    };
    until(&mut statuses, "neither is taken", is_over).await;
    let known = statuses.known();
    assert!(why(known, &devices[0], &older.0).starts_with("refused (rollback)"));
    assert_eq!(why(known, &devices[0], &changed.0), "the catalog is not the one that was meant");
    let digest: [u8; 32] = Sha256::digest(&older.1).into();
    let last = devices.last().expect("a device");
    assert_eq!(last.brought(), [digest], "after its restart, nothing else reaches the agent");
    operator.request(chunk, changed.1.slice(..CHUNK)).await.expect("stored");
    let is_here = |known: &BTreeMap<String, Seen>| all(known, &devices, &changed.0, State::Here);
    until(&mut statuses, "as it was meant, it is taken", is_here).await;
}

#[tokio::test]
async fn what_is_refused_is_tried_again_under_another_policy() {
    let names = simulated::names(1);
    let cluster = Cluster::start(1, &names);
    let plant = timeout(LONG, cluster.plant()).await.expect("a server");
    let (maker, next) = (Maker::new(), Maker::new());
    let (name, groups) = &names[0];
    let folder = tempfile::tempdir().expect("a folder");
    let config = cluster.config(name, groups);
    let device = [Simulated::start_trusting(config, folder, maker.trust()).await];
    let mut statuses = plant.statuses().await.expect("heard");
    let catalog = next.catalog("pump", 1, 1);
    wanted(&plant, std::slice::from_ref(&catalog)).await;
    let is = |state| {
        let (device, listed) = (&device, &catalog.0);
        move |known: &BTreeMap<String, Seen>| all(known, device, listed, state)
    };
    until(&mut statuses, "nobody trusts it", is(State::Refused)).await;

    // The policy that does comes after it.
    if let Some((_, trust)) = &mut *lock(&device[0].behaviour.shelf) {
        *trust = next.trust();
    }
    let stored = plant.store(&group(), bundle(100)).await.expect("stored");
    plant.want(&group(), &push(&stored, None)).await.expect("taken");
    until(&mut statuses, "it counts now", is(State::Here)).await;
    assert_eq!(device[0].brought().len(), 2);

    // The device's own list adds to that of its group; and one that is too long is not taken.
    let own = Target::Device(name.clone());
    let more = next.catalog("more", 1, 1);
    plant.store_catalog(&own, more.1.clone()).await.expect("stored");
    plant.list_catalogs(&own, std::slice::from_ref(&more.0)).await.expect("listed");
    let both = |known: &BTreeMap<String, Seen>| {
        is(State::Here)(known) && all(known, &device, &more.0, State::Here)
    };
    until(&mut statuses, "both are here", both).await;
    let many: Vec<_> = (0..40).map(|number| listed(&format!("c{number}"), 1, b"x")).collect();
    assert!(plant.list_catalogs(&own, &many).await.is_err());
    plant.unlist_catalogs(&group(), &["pump".into()]).await.expect("listed");
    let gone = |known: &BTreeMap<String, Seen>| {
        said(known, name, &catalog.0).is_none() && all(known, &device, &more.0, State::Here)
    };
    until(&mut statuses, "one is gone", gone).await;
    assert_eq!(device[0].behaviour.kept().len(), 1);
}
