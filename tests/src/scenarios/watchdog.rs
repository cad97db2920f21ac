//! Tells the host that the machine lives, and what hangs if a scenario does not end.

use std::{
    sync::mpsc::{RecvTimeoutError, Sender, channel},
    thread,
    time::{Duration, Instant},
};

use crate::tasks;

/// How often the host hears of a scenario that runs; it takes a machine that says nothing for several
/// times this for frozen.
const HEARTBEAT: Duration = Duration::from_secs(15);

/// Several times what the longest scenario takes in software emulation on a busy host.
const LIMIT: Duration = Duration::from_secs(400);

/// Watches one scenario until it is dropped.
pub struct Watchdog {
    _ended: Sender<()>,
}

impl Watchdog {
    /// Starts watching. After the limit it shows what every process does, and ends the run as
    /// failed: what hangs can be neither joined nor trusted.
    pub fn start(scenario: &str) -> Self {
        let (ended, end) = channel::<()>();
        let scenario = scenario.to_owned();
        thread::spawn(move || {
            let start = Instant::now();
            while end.recv_timeout(HEARTBEAT) == Err(RecvTimeoutError::Timeout) {
                let seconds = start.elapsed().as_secs();
                println!("@@alive {scenario} {seconds}");
                if start.elapsed() > LIMIT {
                    println!("{scenario} hangs; what runs:");
                    tasks::show();
                    super::tell_refusals();
                    println!("@@scenario {scenario} failed {seconds}.0");
                    std::process::exit(1);
                }
            }
        });
        Self { _ended: ended }
    }
}
