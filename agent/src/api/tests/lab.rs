//! Certificates, and devices without gates: the real door, asking at a real socket, of an agent that only
//! takes notes.

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, atomic::AtomicU64},
    time::Duration,
};

use bytes::Bytes;
use jiff::Timestamp;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType,
};
use serde_json::json;
use sha2::{Digest as _, Sha256};
use tempfile::TempDir;
use tokio::{
    net::TcpListener,
    sync::{broadcast, mpsc},
    task::JoinHandle,
};

use crate::{
    api::{
        Told,
        client::{Client, Device},
        config::{self, Config},
        network::Network,
        socket,
    },
    catalog::{
        Signed, read_folder,
        shelf::{Kept, Shelf},
        versions::Versions,
    },
    control::{
        Refusal, Request, TakenAnswer,
        caller::{Caller, Role},
        server::{Answer, Command, Lines, json as answer},
    },
    door,
    event::AccessRefused,
    policy::trust::{PolicyTrust, Why},
    reader::Unchecked,
    run::sink::Line,
    sync::lock,
};

/// An authority.
pub struct Authority(Issuer<'static, KeyPair>);

/// Certificates in a folder.
pub struct Pki {
    pub folder: TempDir,
    ca: Authority,
}

impl Authority {
    fn new(name: &str) -> (Self, String) {
        let key = KeyPair::generate().expect("random numbers");
        let mut params = CertificateParams::new(Vec::new()).expect("no names");
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let pem = params.self_signed(&key).expect("signed").pem();
        (Self(Issuer::new(params, key)), pem)
    }
}

impl Pki {
    /// An authority with a certificate for a device and one for each role, and a stranger with the same
    /// names.
    pub fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let (ca, pem) = Authority::new("plant");
        fs::write(folder.path().join("ca.pem"), pem).expect("written");
        let pki = Self { folder, ca };
        pki.make("device", &pki.ca, |params| {
            params.subject_alt_names.push(SanType::IpAddress([127, 0, 0, 1].into()));
        });
        for name in ["viewer", "operator", "policy-admin", "nobody"] {
            pki.make(name, &pki.ca, |_| {});
        }
        pki.make("expired", &pki.ca, |params| {
            params.not_after = rcgen::date_time_ymd(2025, 1, 1);
        });
        let (stranger, _) = Authority::new("plant");
        pki.make("stranger", &stranger, |params| {
            params.distinguished_name.push(DnType::CommonName, "policy-admin");
        });
        pki
    }

    /// A certificate for this name, which is good for a server of this machine too.
    pub fn add(&self, name: &str) {
        self.make(name, &self.ca, |params| {
            let dns = name.try_into().expect("a name");
            params.subject_alt_names.push(SanType::DnsName(dns));
            params.subject_alt_names.push(SanType::IpAddress([127, 0, 0, 1].into()));
        });
    }

    fn make(&self, name: &str, ca: &Authority, change: impl FnOnce(&mut CertificateParams)) {
        let key = KeyPair::generate().expect("random numbers");
        let mut params = CertificateParams::new(Vec::new()).expect("no names");
        params.distinguished_name.push(DnType::CommonName, name);
        change(&mut params);
        let certificate = params.signed_by(&key, &ca.0).expect("signed");
        fs::write(self.path(&format!("{name}.pem")), certificate.pem()).expect("written");
        fs::write(self.path(&format!("{name}.key")), key.serialize_pem()).expect("written");
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn client(&self, name: &str) -> Client {
        let file = |end: &str| self.path(&format!("{name}.{end}"));
        let patience = Duration::from_secs(60);
        Client::new(&file("pem"), &file("key"), &self.path("ca.pem"), patience).expect("good")
    }

    pub fn config(&self, listen: SocketAddr) -> Config {
        let client =
            |role: Role| config::Client { name: Some(role.word().into()), fingerprint: None, role };
        Config {
            listen,
            certificate: self.path("device.pem"),
            key: self.path("device.key"),
            client_ca: self.path("ca.pem"),
            user: config::USER.into(),
            clients: Role::ALL.into_iter().map(client).collect(),
        }
    }
}

/// What a device without gates was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asked {
    pub request: Request,
    pub by: String,
    /// SHA-256 of the bundle.
    pub bundle: Option<[u8; 32]>,
}

/// What a device without gates does.
#[derive(Default)]
pub struct Behaviour {
    pub asked: Mutex<Vec<Asked>>,
    /// What it says to a bundle, if that is no.
    pub refuses: Mutex<Option<String>>,
    /// How it is, and how it is after a push.
    pub health: Mutex<(String, String)>,
    pub pushes: AtomicU64,
    /// Where it keeps catalogs, and whose count.
    pub shelf: Mutex<Option<(Shelf, PolicyTrust)>>,
}

impl Behaviour {
    fn shelf<T>(&self, work: impl FnOnce(&Shelf, &mut PolicyTrust) -> T) -> T {
        let mut shelf = lock(&self.shelf);
        let (shelf, trust) = shelf.as_mut().expect("a shelf");
        work(shelf, trust)
    }

    /// What it keeps.
    pub fn kept(&self) -> Vec<Kept> {
        if lock(&self.shelf).is_none() {
            return Vec::new();
        }
        let (nowhere, versions) = (Path::new("/nowhere"), Versions::none(Path::new("/nowhere")));
        self.shelf(|shelf, trust| {
            read_folder(nowhere, shelf, trust, &versions, (&Unchecked, None)).kept
        })
    }

    fn take(&self, path: &str) -> Result<Answer, Why> {
        let versions = Versions::none(Path::new("/nowhere"));
        let taken = self.shelf(|shelf, trust| {
            shelf.take(path.as_ref(), &Signed { trust, now: None, check: &Unchecked }, &versions)
        })?;
        Ok(answer(&TakenAnswer { kept: taken.kept, version: taken.version }))
    }

    fn take_away(&self, name: &str) -> Result<Answer, Why> {
        let signed = |shelf: &Shelf, trust: &mut PolicyTrust| {
            shelf.take_away(name, &Signed { trust, now: None, check: &Unchecked })
        };
        self.shelf(signed).map(|taken| answer(&json!({ "taken_away": taken.is_some() })))
    }
}

fn refused((reason, message): Why) -> Answer {
    Answer::Refused(Refusal { code: 1, message: format!("refused ({reason}): {message}") })
}

/// A device without gates.
pub struct Fake {
    pub device: Device,
    pub address: SocketAddr,
    pub behaviour: Arc<Behaviour>,
    pub events: broadcast::Sender<Line>,
    pub folder: TempDir,
    pub told: Mutex<mpsc::Receiver<Told>>,
    /// The agent, its API and the door with what it tells.
    tasks: Vec<JoinHandle<()>>,
    /// With the agent's socket.
    pub runtime: TempDir,
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

impl Fake {
    pub async fn start(pki: &Pki) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("a port");
        let (folder, runtime) = (tempfile::tempdir(), tempfile::tempdir());
        let (folder, runtime) = (folder.expect("a folder"), runtime.expect("a folder"));
        let (commands, receiver) = mpsc::channel(32);
        let (tell, told) = mpsc::channel(32);
        let config = pki.config(address);
        let (events, _) = broadcast::channel(64);
        let behaviour = Arc::<Behaviour>::default();
        *lock(&behaviour.health) = ("ok".into(), "ok".into());
        let network = Network::new(config.clone(), folder.path().to_owned(), commands, tell);
        let network = Arc::new(network.expect("good"));
        let socket = runtime.path().join("network.sock");
        let at_socket = socket::bind(&socket).expect("a socket");
        let (telling, ear) = door::telling(socket.clone());
        let server = door::Server::new(config, socket, telling).expect("good");
        let tasks = vec![
            tokio::spawn(agent(receiver, Arc::clone(&behaviour), events.clone())),
            tokio::spawn(network.serve(at_socket, rustix::process::getuid().as_raw())),
            tokio::spawn(Arc::new(server).serve(listener)),
            tokio::spawn(async move { ear.go_on().await }),
        ];
        let device = address.to_string().parse().expect("a device");
        Self { device, address, behaviour, events, folder, told: Mutex::new(told), tasks, runtime }
    }

    pub fn asked(&self) -> Vec<Asked> {
        lock(&self.behaviour.asked).clone()
    }

    /// Who was refused since the last time.
    pub fn refused(&self) -> Vec<AccessRefused> {
        let mut all = Vec::new();
        while let Ok(told) = lock(&self.told).try_recv() {
            if let Told::Refused(refused) = told {
                all.push(*refused);
            }
        }
        all
    }

    /// Waits until somebody was refused for this reason.
    pub async fn refused_for(&self, reason: &str) -> AccessRefused {
        loop {
            if let Some(found) = self.refused().into_iter().find(|one| one.reason == reason) {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

/// Answers as the agent's loop does.
pub async fn agent(
    mut commands: mpsc::Receiver<Command>,
    behaviour: Arc<Behaviour>,
    events: broadcast::Sender<Line>,
) {
    while let Some(Command { request, answer: reply, by, .. }) = commands.recv().await {
        let bundle = match &request {
            Request::Push { path, .. } | Request::TakeCatalog { path } => {
                Some(Sha256::digest(fs::read(path).expect("still there")).into())
            }
            _ => None,
        };
        let by = match by.expect("somebody asks") {
            Caller::Network(peer) => peer.name,
            Caller::Fleet { .. } => "fleet".into(),
            other => panic!("{other:?}"),
        };
        // Where the file was is of no interest.
        let shown = match &request {
            Request::Push { confirm_within, .. } => {
                Request::Push { path: String::new(), confirm_within: *confirm_within }
            }
            Request::TakeCatalog { .. } => Request::TakeCatalog { path: String::new() },
            other => other.clone(),
        };
        lock(&behaviour.asked).push(Asked { request: shown, by, bundle });
        let is_push = matches!(request, Request::Push { .. });
        let is_taken = is_push && lock(&behaviour.refuses).is_none();
        let before =
            behaviour.pushes.fetch_add(u64::from(is_taken), std::sync::atomic::Ordering::Relaxed);
        let pushed = before + u64::from(is_taken);
        let policy = json!({ "name": "plant", "version": pushed + 1, "generation": 1 });
        let said = match request {
            Request::Events { follow, json } => {
                let past = vec![line("past")];
                Answer::Lines(Lines::new(past, follow.then(|| events.subscribe()), json))
            }
            Request::Push { confirm_within, .. } => match lock(&behaviour.refuses).clone() {
                Some(message) => Answer::Refused(Refusal { code: 1, message }),
                None => {
                    let after = lock(&behaviour.health).1.clone();
                    lock(&behaviour.health).0 = after;
                    let until = confirm_within.map(|_| Timestamp::UNIX_EPOCH);
                    answer(&json!({ "policy": policy, "digests": 1, "mode": "audit",
                                    "until": until, "warnings": [] }))
                }
            },
            Request::Status => {
                let health = lock(&behaviour.health).0.clone();
                let check = json!({ "id": "c", "title": "t", "state": health, "found": "f" });
                answer(&json!({
                    "health": health, "mode": "audit", "policy": policy, "version": "0",
                    "digests": 1, "checks": [check], "kept": behaviour.kept(),
                }))
            }
            Request::TakeCatalog { path } => behaviour.take(&path).unwrap_or_else(refused),
            Request::TakeCatalogAway { name } => behaviour.take_away(&name).unwrap_or_else(refused),
            _ => answer(&json!({ "policy": policy, "mode": "audit" })),
        };
        // The asker may have gone.
        let _ = reply.send(said);
    }
}

/// A line of events.
pub fn line(text: &str) -> Line {
    Line { json: format!("{{\"n\":\"{text}\"}}").into(), human: text.into() }
}

/// Bytes that differ.
pub fn bundle(length: usize) -> Bytes {
    (0..length).map(|n| u8::try_from(n % 251).unwrap_or_default()).collect()
}

/// As many descriptors as the machine lets us have; how many that are.
pub fn many_descriptors() -> usize {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    // Root may have more than the maximum.
    let most = limit.maximum.map(|maximum| maximum.max(1 << 18));
    for most in [most, limit.maximum] {
        if setrlimit(Resource::Nofile, Rlimit { current: most, maximum: most }).is_ok() {
            break;
        }
    }
    let current = getrlimit(Resource::Nofile).current;
    current.map_or(usize::MAX, |current| usize::try_from(current).unwrap_or(usize::MAX))
}
