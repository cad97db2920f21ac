//! The spool on a real disk: restarts, full disks, slow sinks, and what tampering leaves.

use std::{fs, io::Write as _, os::unix::fs::PermissionsExt, time::Duration};

use super::{key::DeviceKey, reader::Reader, seal::Seal, verify::Report, *};

mod broken_disk;

const SOON: Duration = Duration::from_secs(10);

/// A device that records.
struct Device {
    state: tempfile::TempDir,
    bounds: Bounds,
    spool: Option<Spool>,
    end: End,
}

impl Device {
    fn new(bounds: Bounds) -> Self {
        let state = tempfile::tempdir().expect("a folder");
        let mut device = Self { state, bounds, spool: None, end: End::default() };
        device.start();
        device
    }

    fn folder(&self) -> PathBuf {
        self.state.path().join("spool")
    }

    fn start(&mut self) {
        let opened = Spool::open(&self.folder(), self.bounds);
        (self.spool, self.end) = (Some(opened.spool), opened.end);
    }

    fn restart(&mut self) {
        self.spool = None;
        self.start();
    }

    fn spool(&self) -> &Spool {
        self.spool.as_ref().expect("a spool")
    }

    fn record(&mut self, chain: Chain, event: &str) {
        let (place, line) = self.end.link(chain, event, "");
        self.spool().push(place, line.into());
    }

    fn event(&mut self, chain: Chain, number: u64) {
        let padding = "x".repeat(400);
        self.record(
            chain,
            &format!("{{\"type\":\"test\",\"n\":{number},\"padding\":\"{padding}\"}}"),
        );
    }

    /// Tells what had to make room, as the recorder does.
    fn tell(&mut self) -> Vec<Dropped> {
        let dropped = self.spool().take_dropped();
        for one in &dropped {
            let mut event = serde_json::to_value(one).expect("JSON");
            event["type"] = "dropped".into();
            self.record(Chain::Main, &event.to_string());
        }
        dropped
    }

    fn seal(&mut self) {
        let key = DeviceKey::open(self.state.path()).expect("a key");
        let mut event =
            serde_json::to_value(Seal::sign(&self.end, &key).expect("a seal")).expect("JSON");
        event["type"] = "checkpoint".into();
        self.record(Chain::Main, &event.to_string());
    }

    fn files(&self) -> Vec<PathBuf> {
        let entries = fs::read_dir(self.folder()).expect("read").flatten();
        entries.map(|entry| entry.path()).filter(|path| path.extension().is_some()).collect()
    }

    fn verify(&self, files: &[PathBuf]) -> Report {
        let key = DeviceKey::open(self.state.path()).expect("a key");
        verify::verify(files, &[key.public().clone()]).expect("read")
    }
}

/// Everything that a sink gets, until nothing comes.
fn drain(reader: &mut Reader) -> Vec<u64> {
    let mut records = Vec::new();
    loop {
        let after = records.last().copied().unwrap_or(reader.acknowledged());
        let more = reader.next(after, 4096, Duration::from_millis(1500)).expect("read");
        if more.is_empty() {
            return records;
        }
        records.extend(more.iter().map(|record| record.record));
    }
}

#[test]
fn a_sink_gets_everything_in_order_over_restarts() {
    let mut device = Device::new(Bounds::default());
    let chain = |n: u64| if n.is_multiple_of(3) { Chain::Allowed } else { Chain::Main };
    (1..=500).for_each(|n| device.event(chain(n), n));
    let mut reader = device.spool().reader("plant");
    assert_eq!(drain(&mut reader), (1..=500).collect::<Vec<_>>());
    reader.acknowledge(200);
    reader.keep();
    drop(reader);
    device.restart();
    assert_eq!(device.end.record, 500);
    (501..=600).for_each(|n| device.event(chain(n), n));
    let mut reader = device.spool().reader("plant");
    assert_eq!(drain(&mut reader), (201..=600).collect::<Vec<_>>());
    // One that was never there before gets what there is.
    assert_eq!(drain(&mut device.spool().reader("other")).len(), 600);
}

#[test]
fn what_a_power_cut_tears_is_cut_off() {
    let mut device = Device::new(Bounds::default());
    (1..=20).for_each(|n| device.event(Chain::Main, n));
    device.spool = None;
    let file = device.files().pop().expect("a file");
    let text = fs::read(&file).expect("read");
    // Half a record, and then what never reached the disk.
    let cut = text.len() - 100;
    fs::write(&file, [&text[..cut], &[0; 60][..]].concat()).expect("written");
    let opened = Spool::open(&device.folder(), device.bounds);
    assert!(opened.trouble.expect("told").contains("no whole record"));
    assert_eq!((opened.end.record, opened.end.heads.main.link), (19, 19));
    (device.spool, device.end) = (Some(opened.spool), opened.end);
    (20..=30).for_each(|n| device.event(Chain::Main, n));
    device.seal();
    device.restart();
    let report = device.verify(&device.files());
    assert_eq!((report.findings, report.records), (Vec::new(), 31));
}

#[test]
fn what_was_allowed_makes_room_first_and_is_counted() {
    let mut device = Device::new(Bounds { disk: 256 << 10, ..Bounds::default() });
    let mut slow = device.spool().reader("slow");
    let mut told = Vec::new();
    for n in 1..=1000 {
        device.event(Chain::Main, n);
        device.event(Chain::Allowed, n);
        if n % 100 == 0 {
            // Until everything is on the disk.
            let end = Instant::now() + SOON;
            while device.spool().status().waiting > 0 && Instant::now() < end {
                thread::sleep(Duration::from_millis(5));
            }
            told.extend(device.tell());
        }
    }
    device.seal();
    thread::sleep(Duration::from_millis(1500));
    told.extend(device.spool().take_dropped());
    let got = drain(&mut slow);
    drop(slow);
    let mut reader = device.spool().reader("slow");
    assert!(got.len() < 2000);
    let mut lines = Vec::new();
    while let batch = reader
        .next(lines.last().map_or(0, |one: &reader::Record| one.record), 1 << 20, Duration::ZERO)
        .expect("read")
        && !batch.is_empty()
    {
        lines.extend(batch);
    }
    let places: Vec<_> = lines.iter().map(|one| Place::read(&one.line).expect("a place")).collect();
    let count = |chain| places.iter().filter(|place| place.chain == chain).count() as u64;
    let dropped =
        |chain| -> u64 { told.iter().filter(|one| one.chain == chain).map(|one| one.count).sum() };
    // Every single one is there or told.
    assert_eq!(count(Chain::Allowed) + dropped(Chain::Allowed), 1000);
    assert_eq!(count(Chain::Main) + dropped(Chain::Main), device.end.heads.main.link);
    assert!(dropped(Chain::Allowed) > dropped(Chain::Main), "{told:?}");
    assert!(told.iter().all(|one| one.stage == "spool" && one.sink.as_deref() == Some("slow")));
    let bytes: u64 = device.files().iter().map(|path| path.metadata().expect("a file").len()).sum();
    assert!(bytes <= 300 << 10, "{bytes}");
}

#[test]
fn what_the_device_has_dropped_is_no_tampering() {
    let mut device = Device::new(Bounds { disk: 64 << 10, ..Bounds::default() });
    let mut reader = device.spool().reader("away");
    let archive = device.state.path().join("archive.jsonl");
    let mut kept = String::new();
    let mut keep = |records: Vec<reader::Record>| {
        records.iter().for_each(|record| kept.push_str(&format!("{}\n", record.line)));
        records.last().map_or(0, |record| record.record)
    };
    (1..=20).for_each(|n| device.event(Chain::Main, n));
    let latest = keep(reader.next(0, 1 << 20, SOON).expect("read"));
    reader.acknowledge(latest);
    for n in 1..=400 {
        device.event(if n % 2 == 0 { Chain::Main } else { Chain::Allowed }, n);
        thread::sleep(Duration::from_millis(1));
    }
    thread::sleep(Duration::from_millis(1500));
    assert!(!device.tell().is_empty());
    device.seal();
    let mut after = latest;
    loop {
        let batch = reader.next(after, 1 << 20, Duration::from_millis(1500)).expect("read");
        if batch.is_empty() {
            break;
        }
        after = keep(batch);
    }
    fs::write(&archive, &kept).expect("written");
    let report = device.verify(std::slice::from_ref(&archive));
    assert_eq!(report.findings, []);
    assert!(report.told.iter().any(|told| told.contains("dropped")), "{report:?}");
    assert_eq!((report.checkpoints, report.unsealed), (1, 0));
    // The same hole without a word about it.
    let silent: Vec<_> = kept.lines().filter(|line| !line.contains("\"dropped\"")).collect();
    fs::write(&archive, silent.join("\n") + "\n").expect("written");
    assert!(!device.verify(&[archive]).findings.is_empty());
}

#[test]
fn a_disk_that_takes_nothing_leaves_memory_bounded() {
    let state = tempfile::tempdir().expect("a folder");
    // Something else stands where the folder should be.
    let folder = state.path().join("spool");
    fs::write(&folder, "").expect("written");
    let bounds = Bounds { memory: 64 << 10, ..Bounds::default() };
    let Opened { spool, mut end, trouble, .. } = Spool::open(&folder, bounds);
    assert!(trouble.is_some());
    let mut reader = spool.reader("near");
    let line = |end: &mut End, chain| end.link(chain, "{\"type\":\"test\"}", &"x".repeat(500));
    for n in 0..1000 {
        let (place, text) = line(&mut end, if n % 2 == 0 { Chain::Allowed } else { Chain::Main });
        spool.push(place, text.into());
    }
    // A checkpoint, as the recorder makes one at its end.
    let heads = serde_json::to_string(&end.heads).expect("JSON");
    let event = format!("{{\"type\":\"checkpoint\",\"heads\":{heads}}}");
    let (place, text) = end.link(Chain::Main, &event, "");
    spool.push(place, text.into());
    let status = spool.status();
    assert!(status.trouble.is_some() && status.waiting <= 120, "{status:?}");
    let kept = reader.next(0, 1 << 20, SOON).expect("read");
    assert!(!kept.is_empty(), "sinks get what is in memory");
    assert!(kept.iter().all(|one| one.line.contains("\"main\"")), "what was allowed goes first");
    let dropped = spool.take_dropped();
    assert_eq!(dropped.iter().map(|one| one.count).sum::<u64>(), 1001 - status.waiting as u64);
    // The disk is there again.
    fs::remove_file(&folder).expect("removed");
    let end_of_waiting = Instant::now() + SOON;
    while spool.status().trouble.is_some() && Instant::now() < end_of_waiting {
        thread::sleep(Duration::from_millis(20));
    }
    drop(spool);
    let Opened { spool, end: found, trouble, .. } = Spool::open(&folder, bounds);
    assert_eq!((trouble, found), (None, end));
    assert_eq!(spool.reader("far").next(0, 1 << 20, SOON).expect("read").len(), status.waiting);
    assert_eq!(fs::metadata(&folder).expect("there").permissions().mode() & 0o777, 0o700);
}

#[test]
fn tampering_is_found() {
    let mut device = Device::new(Bounds { disk: 2 << 20, ..Bounds::default() });
    for n in 1..=600 {
        device.event(if n % 4 == 0 { Chain::Allowed } else { Chain::Main }, n);
    }
    device.seal();
    device.event(Chain::Main, 601);
    device.restart();
    let files = device.files();
    assert!(files.len() > 2, "no rotation was tried");
    let good = device.verify(&files);
    assert_eq!(
        (good.findings.len(), good.records, good.checkpoints, good.unsealed),
        (0, 602, 1, 1)
    );
    // As one log, as a file sink writes it.
    let mut lines: Vec<String> = files
        .iter()
        .flat_map(|file| {
            fs::read_to_string(file).expect("read").lines().map(str::to_owned).collect::<Vec<_>>()
        })
        .collect();
    lines.sort_by_key(|line| chain::record_of(line.as_bytes()));
    let log = device.state.path().join("log.jsonl");
    let tried = |change: &dyn Fn(&mut Vec<String>)| {
        let mut lines = lines.clone();
        change(&mut lines);
        fs::write(&log, lines.join("\n") + "\n").expect("written");
        let report = device.verify(std::slice::from_ref(&log));
        report.findings.iter().map(|one| (one.at.line, one.what.clone())).collect::<Vec<_>>()
    };
    assert_eq!(tried(&|_| {}), []);
    let removed = tried(&|lines| drop(lines.remove(300)));
    assert_eq!(removed.len(), 1, "{removed:?}");
    assert!(removed[0].0 >= 299 && removed[0].1.contains("1 records are missing"), "{removed:?}");
    let changed = tried(&|lines| lines[300] = lines[300].replace("\"n\":301", "\"n\":999"));
    assert!(changed[0].0 == 301 && changed[0].1.contains("was changed"), "{changed:?}");
    let swapped = tried(&|lines| lines.swap(300, 301));
    assert!(swapped.iter().any(|one| one.1.contains("order was changed")), "{swapped:?}");
    // The last of the other chain before the checkpoint.
    let end = lines.iter().rposition(|line| line.contains("\"allowed\",\"link\"")).expect("one");
    let removed = tried(&|lines| drop(lines.remove(end)));
    assert!(removed.len() == 1 && removed[0].1.contains("missing"), "{removed:?}");
    // A forger who makes all hashes right has no key.
    let forged = tried(&|lines| {
        let mut end = End::default();
        for line in lines.iter_mut() {
            let place = Place::read(line).expect("a place");
            let event = line
                .split_once("\",")
                .and_then(|(_, rest)| rest.split_once("\",\"type"))
                .expect("an event")
                .1;
            let event = event.rsplit_once(",\"text\"").expect("a text").0;
            let event = format!("{{\"type{}}}", event.replace("\"n\":301", "\"n\":999"));
            *line = end.link(place.chain, &event, "").1;
        }
    });
    assert!(!forged.is_empty(), "a forged log was taken for good");
    // What a receiver got twice is the same.
    let twice = |lines: &mut Vec<String>| {
        let again = lines[100..200].to_vec();
        lines.splice(200..200, again);
    };
    assert_eq!(tried(&twice), []);
    assert!(!tried(&|lines| lines[5] = "{}".into()).is_empty());
    // Half a record at the end is one that is being written; one that others follow is missing.
    let half = |from: usize| {
        let mut text = lines[..from].join("\n") + "\n";
        text.push_str(&lines[from][..lines[from].len() / 2]);
        fs::write(&log, text).expect("written");
    };
    half(lines.len() - 1);
    let report = device.verify(std::slice::from_ref(&log));
    assert_eq!((report.findings.len(), report.records), (0, 601));
    assert!(report.told.iter().any(|told| told.contains("log.jsonl:602: ends in the middle")));
    half(300);
    let rest = device.state.path().join("rest.jsonl");
    fs::write(&rest, lines[301..].join("\n") + "\n").expect("written");
    let report = device.verify(&[log.clone(), rest]);
    assert!(report.findings.iter().any(|one| one.what.contains("1 records are missing")));
}

#[test]
fn what_is_lost_on_the_disk_is_told() {
    let bounds = Bounds { disk: 2 << 20, ..Bounds::default() };
    let mut device = Device::new(bounds);
    for part in 0..8 {
        (1..=200).for_each(|n| device.event(Chain::Main, part * 200 + n));
        // Everything is on the disk then.
        device.restart();
    }
    let mut files = device.files();
    files.sort();
    assert!(files.len() > 3, "no rotation was tried");
    let folder = device.folder();
    drop(device.spool.take());
    let told = || {
        let opened = Spool::open(&folder, bounds);
        (opened.has_lost, opened.trouble.unwrap_or_default())
    };
    assert_eq!(told(), (false, String::new()));
    // A word in the middle of a record, which is a record all the same.
    let first = fs::read_to_string(&files[0]).expect("read");
    fs::write(&files[0], first.replacen("\"n\":3,", "\"n\":4,", 1)).expect("written");
    let (has_lost, why) = told();
    assert!(has_lost && why.contains("damaged: "), "{why}");
    fs::write(&files[0], first).expect("written");
    // The end of the last line.
    let newest = files.last().expect("one");
    let text = fs::read(newest).expect("read");
    fs::write(newest, &text[..text.len() - 9]).expect("written");
    let (has_lost, why) = told();
    assert!(!has_lost && why.contains("cut off its end"), "{why}");
    // A whole line.
    let mut text = fs::read(newest).expect("read");
    text[2] ^= 1;
    fs::write(newest, &text).expect("written");
    let (has_lost, why) = told();
    assert!(has_lost && why.contains("damaged: "), "{why}");
    assert_eq!(fs::read(folder.join("main.damaged")).expect("kept"), text);
    // A file in the middle.
    fs::remove_file(&files[1]).expect("removed");
    let (has_lost, why) = told();
    assert!(has_lost && why.contains("records are missing: main "), "{why}");
}

#[test]
fn nothing_is_written_behind_half_a_line() {
    let mut device = Device::new(Bounds { disk: 2 << 20, ..Bounds::default() });
    (1..=10).for_each(|n| device.event(Chain::Main, n));
    device.restart();
    // What a disk has taken of a line before it became read-only, of which nobody could take it back.
    let files = device.files();
    let half = b"{\"record\":11,\"chain\":\"ma";
    let add = |file: &PathBuf| {
        let opened = fs::OpenOptions::new().append(true).create(true).open(file);
        opened.and_then(|mut file| file.write_all(half)).expect("written");
    };
    // The agent is not started again in between, which would mend the file too.
    device.event(Chain::Main, 11);
    thread::sleep(Duration::from_millis(200));
    add(&files[0]);
    device.event(Chain::Main, 12);
    thread::sleep(Duration::from_millis(200));
    let text = fs::read_to_string(&files[0]).expect("read");
    let places = text.lines().map(|line| Place::read(line).map(|place| place.record));
    assert_eq!(places.collect::<Result<Vec<_>, _>>().ok(), Some((1..=12).collect::<Vec<_>>()));
}
