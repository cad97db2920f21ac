//! A cluster of real servers on this machine.

use std::{
    fs::{self, File},
    net::TcpListener,
    path::PathBuf,
    process::{Child, Command},
    time::Duration,
};

use async_nats::ServerAddr;
use serde::{Deserialize, Serialize};
use tokio::time::sleep;

use crate::{
    api::tests::lab::Pki,
    fleet::{
        config::{self, Config},
        connect::Files,
        permissions,
        plant::{Plant, Room},
    },
};

/// The operator's certificate.
pub const OPERATOR: &str = "ann";

/// Servers that know each other and all certificates.
pub struct Cluster {
    pub pki: Pki,
    nodes: Vec<Node>,
}

/// How servers are reached: their certificates and ports.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Way {
    folder: PathBuf,
    ports: Vec<u16>,
}

impl Way {
    fn servers(&self) -> Vec<ServerAddr> {
        let address = |port: &u16| config::server(&format!("tls://127.0.0.1:{port}"));
        self.ports.iter().map(|port| address(port).expect("an address")).collect()
    }

    fn files(&self, name: &str) -> Files {
        Files {
            certificate: self.folder.join(format!("{name}.pem")),
            key: self.folder.join(format!("{name}.key")),
            ca: self.folder.join("ca.pem"),
        }
    }

    /// What a device has in its file.
    pub fn config(&self, device: &str, groups: &[String]) -> Config {
        Config {
            device: device.to_owned(),
            groups: groups.to_vec(),
            servers: self.servers(),
            files: self.files(device),
            user: String::new(),
            events: true,
        }
    }
}

struct Node {
    /// None while it is down.
    server: Option<Child>,
    config: PathBuf,
    port: u16,
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Some(mut server) = self.server.take() {
            let _ = server.kill();
            let _ = server.wait();
        }
    }
}

fn port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    listener.local_addr().expect("a port").port()
}

impl Cluster {
    /// So many servers, for these devices with their groups.
    pub fn start(size: usize, devices: &[(String, Vec<String>)]) -> Self {
        let pki = Pki::new();
        for name in ["server", OPERATOR] {
            pki.add(name);
        }
        for (device, _) in devices {
            pki.add(device);
        }
        let users: Vec<_> =
            devices.iter().map(|(name, groups)| permissions::user(name, name, groups)).collect();
        let accounts = permissions::accounts(&[OPERATOR.to_owned()], &users);
        let file = |name: &str| pki.path(name).display().to_string();
        let tls = format!(
            "cert_file: {:?}, key_file: {:?}, ca_file: {:?}, timeout: 30",
            file("server.pem"),
            file("server.key"),
            file("ca.pem")
        );
        let routes: Vec<_> = (0..size).map(|_| port()).collect();
        let all: Vec<_> =
            routes.iter().map(|port| format!("\"nats-route://127.0.0.1:{port}\"")).collect();
        let all = all.join(", ");
        let mut nodes = Vec::new();
        for (number, route) in routes.iter().enumerate() {
            let (port, store) = (port(), file(&format!("store-{number}")));
            let cluster = format!(
                "cluster {{ name: plant, listen: \"127.0.0.1:{route}\", routes: [{all}], tls {{ {tls}, \
                 verify: true }} }}\n"
            );
            let text = format!(
                "server_name: node-{number}\nlisten: \"127.0.0.1:{port}\"\njetstream {{ store_dir: {store:?} \
                 }}\ntls {{ {tls}, verify_and_map: true }}\n{}{accounts}",
                if size > 1 { &cluster } else { "" }
            );
            let config = pki.path(&format!("node-{number}.conf"));
            fs::write(&config, text).expect("written");
            nodes.push(Node { server: None, config, port });
        }
        let mut cluster = Self { pki, nodes };
        for number in 0..size {
            cluster.start_node(number);
        }
        cluster
    }

    pub fn start_node(&mut self, number: usize) {
        let node = &mut self.nodes[number];
        let log = File::create(node.config.with_extension("log")).expect("a log");
        let mut server = Command::new("nats-server");
        server.arg("--config").arg(&node.config).stderr(log);
        node.server = Some(server.spawn().expect("nats-server is installed: cargo xtask setup"));
    }

    /// As a power cut would.
    pub fn kill_node(&mut self, number: usize) {
        let mut server = self.nodes[number].server.take().expect("it runs");
        server.kill().expect("killed");
        server.wait().expect("gone");
    }

    /// How to reach it, also from another process.
    pub fn way(&self) -> Way {
        let folder = self.pki.folder.path().to_owned();
        Way { folder, ports: self.nodes.iter().map(|node| node.port).collect() }
    }

    pub fn servers(&self) -> Vec<ServerAddr> {
        self.way().servers()
    }

    pub fn files(&self, name: &str) -> Files {
        self.way().files(name)
    }

    /// What a device of the cluster has in its file.
    pub fn config(&self, device: &str, groups: &[String]) -> Config {
        self.way().config(device, groups)
    }

    /// The operator's connection, once the servers have found each other and everything is made.
    pub async fn plant(&self) -> Plant {
        let room = Room {
            replicas: self.nodes.len(),
            bundles: 1 << 30,
            catalogs: 1 << 28,
            events: 1 << 28,
        };
        loop {
            if let Ok(plant) = Plant::connect(&self.servers(), &self.files(OPERATOR)).await {
                match plant.prepare(room).await {
                    Ok(()) => return plant,
                    Err(error) => eprintln!("not ready yet: {error}"),
                }
            }
            sleep(Duration::from_millis(300)).await;
        }
    }
}
