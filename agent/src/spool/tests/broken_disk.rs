//! A disk that fails while it is written or read.

use super::*;

#[test]
fn what_the_disk_could_not_keep_is_written_again() {
    let state = tempfile::tempdir().expect("a folder");
    let mut lane = Lane::open(state.path(), Chain::Main, 1000).expect("read").lane;
    let mut end = End::default();
    let event = "{\"type\":\"test\"}";
    let lines: Vec<_> = (0..40).map(|_| end.link(Chain::Main, event, "")).collect();
    let append = |lane: &mut Lane, range: std::ops::Range<usize>| {
        let new = lines[range].iter();
        let lines: Vec<_> =
            new.map(|(place, text)| segments::NewLine { place: *place, text }).collect();
        lane.append(&lines).expect("written");
    };
    // Before anything is kept; in the middle of a file; and in a file that was made since.
    append(&mut lane, 0..3);
    lane.roll_back();
    assert_eq!((lane.synced(), lane.segments().len()), (0, 0));
    append(&mut lane, 0..3);
    lane.sync().expect("kept");
    append(&mut lane, 3..6);
    lane.roll_back();
    assert_eq!(lane.synced(), 3);
    (3..20).for_each(|at| append(&mut lane, at..at + 1));
    lane.roll_back();
    let kept = usize::try_from(lane.synced()).expect("a number");
    assert!((4..20).contains(&kept), "no rotation was tried: {kept}");
    append(&mut lane, kept..40);
    lane.sync().expect("kept");
    let found = Lane::open(state.path(), Chain::Main, 1000).expect("read");
    assert_eq!((found.end, found.damage.told()), ((end.heads.main, 40), None));
    assert_eq!(found.lane.segments(), lane.segments());
}

#[test]
fn what_cannot_be_read_comes_from_memory_or_not_at_all() {
    for (memory, is_enough) in [(64 << 10, true), (4 << 10, false)] {
        let mut device = Device::new(Bounds { memory, ..Bounds::default() });
        (1..=20).for_each(|n| {
            device.event(Chain::Main, n);
            device.event(Chain::Allowed, n);
            let end = Instant::now() + SOON;
            while device.spool().status().waiting > 0 && Instant::now() < end {
                thread::sleep(Duration::from_millis(1));
            }
        });
        assert_eq!(drain(&mut device.spool().reader("near")).len(), 40);
        for file in device.files() {
            fs::remove_file(&file).expect("removed");
            // It can be opened, and reading it fails.
            fs::create_dir(&file).expect("made");
        }
        let got = device.spool().reader("late").next(1, 1 << 20, Duration::ZERO);
        let got = got.map(|records| records.iter().map(|one| one.record).collect::<Vec<_>>());
        if is_enough {
            assert_eq!(got.expect("from memory"), (2..=40).collect::<Vec<_>>());
        } else {
            assert!(got.is_err(), "what cannot be read was passed over: {got:?}");
        }
    }
}
