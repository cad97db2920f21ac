//! Comparing short names of files.

/// A name to compare with what [`crate::layout::short_name`] gives.
pub struct Name {
    words: [u64; 4],
    /// Which bytes count: those of the name and the zero after it.
    masks: [u64; 4],
}

/// A name of fewer than 32 bytes.
pub const fn name(text: &[u8]) -> Name {
    let (mut words, mut masks) = ([0; 4], [0; 4]);
    let mut at = 0;
    while at <= text.len() {
        let byte = if at < text.len() { text[at] } else { 0 };
        words[at / 8] |= (byte as u64) << (at % 8 * 8);
        masks[at / 8] |= 0xff << (at % 8 * 8);
        at += 1;
    }
    Name { words, masks }
}

impl Name {
    /// Whether it is this one.
    #[inline(always)]
    pub const fn is(&self, found: &[u64; 4]) -> bool {
        found[0] & self.masks[0] == self.words[0]
            && found[1] & self.masks[1] == self.words[1]
            && found[2] & self.masks[2] == self.words[2]
            && found[3] & self.masks[3] == self.words[3]
    }
}
