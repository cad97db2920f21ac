//! What a hostile server could bring, and take away.

use super::*;
use crate::{
    catalog::accept::tests::{Lab, catalog, key_pair},
    trust::sign::{self, PrivateKey},
};

fn withdrawing(name: &str, version: u64) -> String {
    format!(
        "# portcullis manifest 1\n# catalog: {name}\n# version: {version}\n# withdrawn: {}  \
         /bin/old\n# end: 0 entries\n",
        hex::encode([7; 32])
    )
}

/// A parcel with a bare signature, or none.
fn parcel(text: &str, by: Option<&PrivateKey>) -> Vec<u8> {
    let signature = by.map(|by| sign::raw(by, text.as_bytes()).expect("Ed25519").to_vec());
    let sig = signature.as_ref().map_or("", |_| ",\"sig\":64");
    let head = format!("{{\"parcel\":1,\"catalog\":{}{sig}}}\n", text.len());
    [head.as_bytes(), text.as_bytes(), &signature.unwrap_or_default()].concat()
}

impl Lab {
    fn shelf(&self) -> Shelf {
        Shelf::new(self.shelf.path())
    }

    fn signed_by(&self) -> Signed<'_> {
        Signed { trust: &self.trust, now: None, check: &Unchecked }
    }

    fn bring(&self, parcel: &[u8]) -> Result<bool, &'static str> {
        let file = tempfile::NamedTempFile::new().expect("a file");
        fs::write(file.path(), parcel).expect("written");
        let taken = self.shelf().take(file.path(), &self.signed_by(), &self.versions);
        taken.map(|taken| taken.is_new).map_err(|why| why.0)
    }

    fn take_away(&self, name: &str) -> Result<bool, &'static str> {
        let taken = self.shelf().take_away(name, &self.signed_by());
        taken.map(|taken| taken.is_some()).map_err(|why| why.0)
    }
}

#[test]
fn what_is_brought_is_judged_and_is_there_once() {
    let lab = Lab::new();
    let stranger = key_pair(tempfile::tempdir().expect("a folder").path(), "stranger");
    let second = catalog("pump", 2, 1);
    let good = parcel(&second, Some(&lab.acme));
    let mut changed = good.clone();
    let place = changed.len() - 100;
    changed[place] ^= 1;
    let refused = [
        (parcel(&second, None), "unsigned"),
        (parcel(&second, Some(&stranger)), "bad-signature"),
        (parcel(&second, Some(&lab.ops)), "not-for-this"),
        (changed, "bad-signature"),
        (parcel("# portcullis manifest 1\n# end: 0 entries\n", Some(&lab.acme)), "no-catalog"),
        (parcel("hello", Some(&lab.acme)), "malformed"),
        (good[..good.len() - 1].to_vec(), "malformed"),
        (b"garbage".to_vec(), "malformed"),
        (Vec::new(), "malformed"),
    ];
    for (bytes, reason) in refused {
        assert_eq!(lab.bring(&bytes), Err(reason));
    }
    assert_eq!(fs::read_dir(lab.shelf.path()).expect("a folder").count(), 0, "nothing is left");
    assert_eq!(lab.bring(&good), Ok(true));
    assert_eq!(lab.bring(&good), Ok(false), "it is here already");
    lab.check(&["catalog-pump.parcel"], &[]);
    let reading = lab.read();
    let sha256 = hex::encode(Sha256::digest(&good));
    assert_eq!(reading.kept, [Kept { name: "pump".into(), sha256 }]);
    assert_eq!((reading.catalogs[0].version, reading.catalogs[0].entries.len()), (2, 1));

    // An older one, another one of the same version, and somebody else's.
    assert_eq!(lab.bring(&parcel(&catalog("pump", 1, 1), Some(&lab.acme))), Err("rollback"));
    assert_eq!(lab.bring(&parcel(&catalog("pump", 2, 9), Some(&lab.acme))), Err("same-version"));
    assert_eq!(lab.bring(&parcel(&catalog("pump", 3, 1), Some(&lab.plant))), Err("other-signer"));
    lab.check(&["catalog-pump.parcel"], &[]);
    assert_eq!(lab.bring(&parcel(&catalog("pump", 3, 1), Some(&lab.acme))), Ok(true));
    assert_eq!(lab.read().catalogs[0].version, 3);
    // What lies in the operator's folder counts as well, and the newest of the two.
    lab.signed("mine.catalog", &catalog("pump", 4, 1), &lab.acme);
    lab.check(&["mine.catalog"], &["catalog-pump.parcel: superseded"]);
    assert_eq!(lab.take_away("pump"), Ok(true));
    assert_eq!(lab.take_away("pump"), Ok(false));
    assert_eq!(lab.take_away("../mine"), Err("no-catalog"));
    lab.check(&["mine.catalog"], &[]);
}

#[test]
fn a_version_that_was_in_force_does_not_come_back() {
    let mut lab = Lab::new();
    lab.bring(&parcel(&catalog("pump", 5, 1), Some(&lab.acme))).expect("taken");
    let reading = lab.read();
    reading.remember(&mut lab.versions);
    assert_eq!(lab.take_away("pump"), Ok(true));
    assert_eq!(lab.bring(&parcel(&catalog("pump", 4, 1), Some(&lab.acme))), Err("rollback"));
    assert_eq!(lab.bring(&parcel(&catalog("pump", 5, 2), Some(&lab.acme))), Err("same-version"));
    assert_eq!(lab.bring(&parcel(&catalog("pump", 5, 1), Some(&lab.acme))), Ok(true));
}

#[test]
fn what_takes_digests_back_cannot_be_taken_away() {
    let lab = Lab::new();
    lab.bring(&parcel(&withdrawing("revoked", 1), Some(&lab.acme))).expect("taken");
    assert_eq!(lab.read().catalogs[0].withdrawn.len(), 1);
    assert_eq!(lab.take_away("revoked"), Err("withdraws"));
    // Not by somebody else's word, and not under a policy that does not know its signer now.
    let others = parcel(&catalog("revoked", 2, 1), Some(&lab.plant));
    assert_eq!(lab.bring(&others), Err("other-signer"));
    let nobody = crate::policy::trust::PolicyTrust::default();
    let by_nobody = Signed { trust: &nobody, now: None, check: &Unchecked };
    let why = lab.shelf().take_away("revoked", &by_nobody).expect_err("it stays");
    assert_eq!(why.0, "withdraws");
    lab.check(&["catalog-revoked.parcel"], &[]);
    // Its own signer's next word.
    assert_eq!(lab.bring(&parcel(&catalog("revoked", 2, 1), Some(&lab.acme))), Ok(true));
    assert_eq!(lab.take_away("revoked"), Ok(true));
}

#[test]
fn no_more_is_kept_than_there_is_room_for() {
    let lab = Lab::new();
    for number in 0..MAX_KEPT {
        let text = catalog(&format!("c{number}"), 1, 1);
        assert_eq!(lab.bring(&parcel(&text, Some(&lab.acme))), Ok(true));
    }
    let more = parcel(&catalog("more", 1, 1), Some(&lab.acme));
    assert_eq!(lab.bring(&more), Err("too-many"));
    // The next version of one that is here needs no more room.
    assert_eq!(lab.bring(&parcel(&catalog("c0", 2, 1), Some(&lab.acme))), Ok(true));
    assert_eq!(lab.take_away("c0"), Ok(true));
    assert_eq!(lab.bring(&more), Ok(true));
    // Bytes: what is there is large, whatever it is.
    let large = File::create(lab.shelf().path("c1")).expect("made");
    large.set_len(MAX_BYTES).expect("a sparse file");
    assert_eq!(lab.bring(&parcel(&catalog("c2", 2, 1), Some(&lab.acme))), Err("too-large"));
    large.set_len(MAX_PARCEL + 1).expect("a sparse file");
    let (_, refused) = lab.seen();
    assert_eq!(refused, ["catalog-c1.parcel: unreadable"]);
    let file = tempfile::NamedTempFile::new().expect("a file");
    file.as_file().set_len(MAX_PARCEL + 1).expect("a sparse file");
    let taken = lab.shelf().take(file.path(), &lab.signed_by(), &lab.versions);
    assert_eq!(taken.map(|_| ()).map_err(|why| why.0), Err("unreadable"));
}
