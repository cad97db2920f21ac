//! A device without gates: the real link, asking at a real socket, of an agent that only takes notes.

use std::{path::Path, sync::Arc, time::Duration};

use tempfile::TempDir;
use tokio::{
    sync::{broadcast, mpsc},
    task::JoinHandle,
};

use crate::{
    api::{
        local,
        refusals::Refusals,
        routes::Routes,
        tests::lab::{self, Asked, Behaviour},
    },
    catalog::shelf::Shelf,
    control::Request,
    fleet::{
        config::Config,
        link::{Link, Pace},
    },
    policy::trust::PolicyTrust,
    run::sink::Line,
    sync::lock,
};

/// Names of so many devices, with their groups.
pub fn names(count: usize) -> Vec<(String, Vec<String>)> {
    (0..count).map(|number| (format!("pump-{number}"), vec!["plant-7".to_owned()])).collect()
}

/// A device.
pub struct Simulated {
    pub name: String,
    pub behaviour: Arc<Behaviour>,
    pub events: broadcast::Sender<Line>,
    config: Config,
    folder: Option<TempDir>,
    tasks: Vec<JoinHandle<()>>,
}

impl Drop for Simulated {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

/// Faster than devices are.
pub const PACE: Pace = Pace {
    look: Duration::from_secs(60),
    retry: Duration::from_secs(1),
    poll: Duration::from_millis(500),
    heartbeat: Duration::from_secs(60),
};

impl Simulated {
    pub async fn start(config: Config) -> Self {
        Self::start_in(config, tempfile::tempdir().expect("a folder")).await
    }

    /// One of many.
    pub async fn start_with(config: Config, folder: TempDir, pace: Pace) -> Self {
        Self::start_at(config, folder, pace, None).await
    }

    /// With what a link before it has kept.
    pub async fn start_in(config: Config, folder: TempDir) -> Self {
        Self::start_at(config, folder, PACE, None).await
    }

    /// The same, with an agent that keeps catalogs in the folder, if they count by `trust`.
    pub async fn start_trusting(config: Config, folder: TempDir, trust: PolicyTrust) -> Self {
        Self::start_at(config, folder, PACE, Some(trust)).await
    }

    async fn start_at(
        config: Config,
        folder: TempDir,
        pace: Pace,
        trust: Option<PolicyTrust>,
    ) -> Self {
        let socket = folder.path().join("agent.sock");
        let (commands, receiver) = mpsc::channel(32);
        let (events, _) = broadcast::channel(64);
        let behaviour = Arc::<Behaviour>::default();
        *lock(&behaviour.health) = ("ok".into(), "ok".into());
        let shelf = Shelf::new(folder.path().join("shelf"));
        *lock(&behaviour.shelf) = trust.map(|trust| (shelf, trust));
        let agent = lab::agent(receiver, Arc::clone(&behaviour), events.clone());
        let link = Link::new(config.clone(), &socket, folder.path(), pace);
        let link = link.await.expect("good files");
        let tasks = vec![
            tokio::spawn(serve(&socket, folder.path(), commands)),
            tokio::spawn(agent),
            tokio::spawn(async move { link.run().await.expect("it goes on") }),
        ];
        let name = config.device.clone();
        Self { name, behaviour, events, config, folder: Some(folder), tasks }
    }

    /// Ends it, and leaves what it has kept.
    pub fn stop(mut self) -> (Config, TempDir) {
        (self.config.clone(), self.folder.take().expect("it is there"))
    }

    pub fn asked(&self) -> Vec<Asked> {
        lock(&self.behaviour.asked).clone()
    }

    pub fn pushes(&self) -> Vec<Asked> {
        let mut asked = self.asked();
        asked.retain(|one| matches!(one.request, Request::Push { .. }));
        asked
    }

    /// Digests of the catalogs that were brought to it, one by one.
    pub fn brought(&self) -> Vec<[u8; 32]> {
        let mut asked = self.asked();
        asked.retain(|one| matches!(one.request, Request::TakeCatalog { .. }));
        asked.into_iter().filter_map(|one| one.bundle).collect()
    }

    /// Something happens on it; nobody may be following.
    pub fn event(&self, json: &str) {
        let _ = self.events.send(Line { json: json.into(), human: "".into() });
    }
}

fn serve(
    socket: &Path,
    folder: &Path,
    commands: mpsc::Sender<crate::control::server::Command>,
) -> impl Future<Output = ()> + use<> {
    let (tell, _) = mpsc::channel(1);
    let routes = Routes::new(folder.to_owned(), commands, Arc::new(Refusals::of_agent(tell)));
    let listener = local::bind(socket).expect("a socket");
    local::serve(listener, rustix::process::getuid().as_raw(), Arc::new(routes))
}
