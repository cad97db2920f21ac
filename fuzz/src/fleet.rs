//! What the servers of a fleet say to a device, and devices to operators: whatever it is, it is bounded, and
//! what is read is written as the same.

use std::path::Path;

use portcullis::{
    catalog::{Signed, parcel},
    fleet::{
        listing::{Listing, MAX_LIST},
        words::{Report, Wanted},
    },
    policy::trust::PolicyTrust,
    reader::Unchecked,
};

/// What is written may be longer than what was read, by what is not said there.
const SHORT: usize = MAX_LIST / 2;

/// Drives the reading of a catalog on its way, of what is wanted, and of a report.
pub fn drive(data: &[u8]) {
    if let Ok(parts) = parcel::split(data) {
        let after: usize = parts.signatures.iter().map(|(_, bytes)| bytes.len()).sum();
        let start = data.len() - after - parts.text.len();
        assert_eq!(data[start - 1], b'\n');
        let signatures: Vec<_> = parts.signatures.iter().flat_map(|(_, bytes)| *bytes).collect();
        let all = parts.text.iter().chain(signatures);
        assert!(all.eq(&data[start..]), "every byte is in one part");
        let (trust, now) = (PolicyTrust::default(), None);
        let signed = Signed { trust: &trust, now, check: &Unchecked };
        let opened = parcel::open(Path::new("p"), data, &signed);
        assert!(opened.is_err(), "nobody is trusted");
    }
    if data.len() > SHORT {
        return;
    }
    if let Ok(listing) = Listing::read(data) {
        let written = listing.written().expect("it fits");
        assert_eq!(Listing::read(&written), Ok(listing));
    }
    if let Ok(wanted) = Wanted::read(data) {
        let written = serde_json::to_vec(&wanted).expect("JSON");
        assert_eq!(Wanted::read(&written), Ok(wanted));
    }
    if let Ok(report) = Report::read("pump-3", data) {
        let written = report.written().expect("it fits");
        Report::read("pump-3", &written).expect("what is written is read");
    }
}
