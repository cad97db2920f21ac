//! Tells the host that the machine lives, and what hangs if a scenario does not end.

use std::{
    fs,
    sync::mpsc::{RecvTimeoutError, Sender, channel},
    thread,
    time::{Duration, Instant},
};

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
    /// Starts watching. After the limit it shows every process with where it waits, and ends the run as
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
                    show_tasks();
                    println!("@@scenario {scenario} failed {seconds}.0");
                    std::process::exit(1);
                }
            }
        });
        Self { _ended: ended }
    }
}

/// Every thread of every process of user space: state, and where in the kernel it waits.
fn show_tasks() {
    let folders = |path: &str| fs::read_dir(path).into_iter().flatten().flatten();
    for process in folders("/proc") {
        let path = process.path();
        // Threads of the kernel have no command line.
        if fs::read(path.join("cmdline")).is_ok_and(|line| !line.is_empty()) {
            for task in folders(&path.join("task").to_string_lossy()) {
                let read = |name| fs::read_to_string(task.path().join(name)).unwrap_or_default();
                println!("{}", read("stat").trim_end());
                for line in read("stack").lines() {
                    println!("    {line}");
                }
            }
        }
    }
}
