//! What every task of user space does in the kernel, for whoever looks for the cause of a hang.

use std::{
    collections::BTreeMap,
    fs::{self, OpenOptions},
    io::{Read, Seek, SeekFrom},
    os::unix::fs::OpenOptionsExt,
};

/// Prints a line for each thread: its state, its processor time in ticks and the functions that it is in,
/// the innermost first. Processes that have all but ended are among them; of the kernel's own threads only
/// those that wait for something.
pub fn show() {
    let told = told_by_kernel();
    let stacks = stacks(&told);
    for task in all() {
        let stack = stacks.get(&task.id).map(|stack| stack.join(" < ")).unwrap_or_default();
        let Task { id, name, state, parent, ticks, .. } = &task;
        if !task.is_of_kernel || state == "D" {
            println!(
                "{id} {name} {state}, child of {parent}, {} + {} ticks: {stack}",
                ticks.0, ticks.1
            );
        }
    }
    for line in told.iter().filter(|line| line.starts_with(">R") || line.starts_with(" R")) {
        println!("to run: {line}");
    }
}

struct Task {
    id: u32,
    name: String,
    state: String,
    parent: String,
    /// In user space and in the kernel.
    ticks: (String, String),
    is_of_kernel: bool,
}

impl Task {
    /// Reads proc_pid_stat(5).
    fn read(stat: &str) -> Option<Self> {
        /// A thread of the kernel (linux/sched.h).
        const PF_KTHREAD: u32 = 0x0020_0000;
        let (id, rest) = stat.split_once(" (")?;
        // The name may have anything in it.
        let (name, rest) = rest.rsplit_once(") ")?;
        let words: Vec<_> = rest.split(' ').collect();
        let word = |number: usize| words.get(number - 3).map(|word| (*word).to_owned());
        Some(Self {
            id: id.parse().ok()?,
            name: name.to_owned(),
            state: word(3)?,
            parent: word(4)?,
            ticks: (word(14)?, word(15)?),
            is_of_kernel: word(9)?.parse::<u32>().ok()? & PF_KTHREAD != 0,
        })
    }
}

fn all() -> Vec<Task> {
    let folders = |path: &str| fs::read_dir(path).into_iter().flatten().flatten();
    let is_number = |name: &std::ffi::OsStr| name.as_encoded_bytes().iter().all(u8::is_ascii_digit);
    folders("/proc")
        .filter(|process| is_number(&process.file_name()))
        .flat_map(|process| folders(&process.path().join("task").to_string_lossy()))
        .filter_map(|task| Task::read(&fs::read_to_string(task.path().join("stat")).ok()?))
        .collect()
}

/// Has the kernel tell of its tasks: unlike `/proc/PID/stack`, no gate keeps that to itself, and no agent
/// has anything to report.
fn told_by_kernel() -> Vec<String> {
    let mut told = Vec::new();
    let mut log = OpenOptions::new();
    let Ok(mut log) = log.read(true).custom_flags(libc::O_NONBLOCK).open("/dev/kmsg") else {
        return told;
    };
    // A thousand lines on the console would take a minute.
    let _ = fs::write("/proc/sys/kernel/printk", "1");
    let _ = log.seek(SeekFrom::End(0));
    let _ = fs::write("/proc/sysrq-trigger", "t");
    let mut record = [0; 8192];
    loop {
        match log.read(&mut record) {
            Ok(length) if length > 0 => {
                let text = String::from_utf8_lossy(&record[..length]);
                let line = text.split_once(';').map_or("", |(_, line)| line);
                told.push(line.lines().next().unwrap_or_default().to_owned());
            }
            // Some were overwritten.
            Err(error) if error.raw_os_error() == Some(libc::EPIPE) => {}
            _ => return told,
        }
    }
}

/// The functions that each task is in, by its id.
fn stacks(told: &[String]) -> BTreeMap<u32, Vec<&str>> {
    let mut stacks = BTreeMap::<u32, Vec<&str>>::new();
    let mut id = None;
    for line in told {
        if line.starts_with("task:") {
            let word = line.split_once("pid:").and_then(|(_, rest)| rest.split_whitespace().next());
            id = word.and_then(|word| word.parse().ok());
        } else if line.starts_with("Sched Debug") {
            id = None;
        } else if let (Some(id), Some((function, _))) = (id, line.split_once('+'))
            // A question mark stands before what may be left over from an earlier call.
            && let Some(function) = function.strip_prefix(' ').filter(|name| !name.contains(' '))
        {
            stacks.entry(id).or_default().push(function);
        }
    }
    stacks
}
