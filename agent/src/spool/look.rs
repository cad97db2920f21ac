//! What is found in a file of a chain, whatever has become of it.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read, Seek, SeekFrom},
    path::Path,
};

use super::{
    chain::{Head, Place, hash},
    segments::Segment,
};

/// What was found in a file.
pub(super) struct Looked {
    /// The file's place in its chain, and the chain's end in it; none if nothing whole is in it.
    pub(super) segment: Option<(Segment, Head)>,
    /// Bytes at its end that are no whole record.
    pub(super) torn: u64,
    /// Whether more is wrong than a record that was not written to its end.
    pub(super) is_spoilt: bool,
}

/// The places of every whole record in a file, with the offset after each; up to the first that is none.
fn whole(text: &[u8]) -> Vec<(Place, Head, usize)> {
    let (mut found, mut at) = (Vec::new(), 0);
    while let Some(length) = text[at..].iter().position(|byte| *byte == b'\n') {
        let line = &text[at..at + length];
        let Some(place) = std::str::from_utf8(line).ok().and_then(|line| Place::read(line).ok())
        else {
            break;
        };
        at += length + 1;
        found.push((place, Head { link: place.link, hash: hash(line) }, at));
    }
    found
}

/// Whether a record carries another hash of the one before it than that has.
fn is_changed(found: &[(Place, Head, usize)]) -> bool {
    found.windows(2).any(|pair| {
        let [(_, before, _), (place, ..)] = pair else { return false };
        place.link == before.link + 1 && place.prev != before.hash
    })
}

/// Looks at a file. Only the newest can have been cut short, and is read as a whole. One that is damaged is
/// copied aside before its end is cut off.
pub(super) fn look(path: &Path, is_newest: bool, aside: &Path) -> io::Result<Looked> {
    /// Longer than every record.
    const TAIL: u64 = 256 << 10;
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    let mut text = Vec::new();
    let (first, rest) = if is_newest || length <= 2 * TAIL {
        file.read_to_end(&mut text)?;
        let found = whole(&text);
        (found.first().copied(), found)
    } else {
        (&file).take(TAIL).read_to_end(&mut text)?;
        let first = whole(&text).first().copied();
        file.seek(SeekFrom::Start(length - TAIL))?;
        text.clear();
        file.read_to_end(&mut text)?;
        let skipped = text.iter().position(|byte| *byte == b'\n').map_or(text.len(), |at| at + 1);
        let mut found = whole(&text[skipped..]);
        let before = usize::try_from(length - TAIL).unwrap_or(usize::MAX) + skipped;
        found.iter_mut().for_each(|(_, _, end)| *end += before);
        (first, found)
    };
    let is_changed = is_changed(&rest);
    let (Some((first, ..)), Some((last, head, end))) = (first, rest.last().copied()) else {
        let is_spoilt = !is_newest || text.contains(&b'\n');
        return Ok(Looked { segment: None, torn: length, is_spoilt });
    };
    let left = usize::try_from(length).unwrap_or(usize::MAX).saturating_sub(end);
    let is_spoilt = text[text.len().saturating_sub(left)..].contains(&b'\n');
    let bytes = end as u64;
    if bytes < length {
        if is_spoilt {
            // Somebody may make something of the rest.
            let _ = fs::copy(path, aside);
        }
        // On a disk that cannot be written it stays, and is not read.
        let _ = OpenOptions::new().write(true).open(path).and_then(|file| file.set_len(bytes));
    }
    let segment = Segment {
        path: path.to_owned(),
        first_link: first.link,
        first_record: first.record,
        last_record: last.record,
        bytes,
    };
    let is_spoilt = is_spoilt || is_changed;
    Ok(Looked { segment: Some((segment, head)), torn: length - bytes, is_spoilt })
}
