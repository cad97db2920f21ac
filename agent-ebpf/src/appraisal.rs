//! Working out what a file is, and what the policy says of it.

use aya_ebpf::helpers::generated::{bpf_ima_file_hash, bpf_ktime_get_ns};
use aya_log_ebpf::debug;
use core::mem::transmute;
use portcullis_common::{
    Active, Choices, Counter, DIGEST_LEN, Digest, Gate, Kinds, Reason, Rule, Verdict, VerdictWord,
};

use crate::{
    devices::verified,
    fsverity::by_fsverity,
    inode_storage::get_or_make,
    instructions,
    judge::Hook,
    layout::{
        FILE_TYPE, File, HASH_ALGO_SHA256, Inode, inode_filesystem, inode_filesystem_flags,
        inode_mode, inode_size, inode_writers, sealed_against_writing,
    },
    maps::{
        MAX_HASHED_BYTES, MEMFD_DEVICE, VERDICTS, WAS_MAPPED, active, count,
        is_untrusted_filesystem, rule,
    },
    overlay,
};

/// `S_IFREG` (linux/stat.h).
const REGULAR_FILE: u16 = 0o100_000;

/// What is known of a file when its judgement ends.
pub struct Appraisal {
    /// The policy that decided.
    pub active: Active,
    /// Why the file could not be identified, if so.
    pub reason: Option<Reason>,
    /// The verdict; meaningful without a `reason`.
    pub word: VerdictWord,
    /// The rule; empty if the policy has none.
    pub rule: Rule,
    /// The digest; zero if there is none.
    pub digest: Digest,
    /// What the hash helper returned; 0 if it was not called.
    pub hash_status: i32,
    /// Whether the verdict was already on the inode.
    pub cached: bool,
}

impl Appraisal {
    /// Nothing is known yet.
    #[inline(always)]
    pub fn new(active: Active) -> Self {
        Self {
            active,
            reason: None,
            word: VerdictWord::default(),
            rule: Rule::default(),
            digest: [0; DIGEST_LEN],
            hash_status: 0,
            cached: false,
        }
    }

    /// Has the verifier forget what it knows of the numbers: it would follow each way here on to the
    /// end of the program, each reason and each layout of the stack, and loading would take three
    /// times as long. `zero` is [`instructions::any`] of zero.
    #[inline(always)]
    pub fn forget(&mut self, zero: u64) {
        // SAFETY: each is exclusive-or zero, so that nothing changes.
        unsafe {
            let same = |byte: u8| byte ^ zero as u8;
            self.active = transmute::<u64, Active>(transmute::<Active, u64>(self.active) ^ zero);
            self.reason =
                transmute::<u8, Option<Reason>>(same(transmute::<Option<Reason>, u8>(self.reason)));
            self.cached = transmute::<u8, bool>(same(self.cached as u8));
            let rule = transmute::<Rule, [u32; 2]>(self.rule);
            self.rule = transmute::<[u32; 2], Rule>([rule[0] ^ zero as u32, rule[1] ^ zero as u32]);
            let digest = transmute::<Digest, [u64; 4]>(self.digest);
            self.digest = transmute::<[u64; 4], Digest>(digest.map(|word| word ^ zero));
        }
        self.word.0 ^= zero;
        self.hash_status ^= zero as i32;
    }
}

/// Identifies the file and asks the policy about it.
///
/// The order of steps closes the race with a writer. Writers raise `i_writecount` before
/// `file_open` is called, and `file_open` deletes the record (see `invalidation`). So a record
/// that has existed since before the hash, with the same stamp, and no writer afterwards, means
/// that nobody wrote in between.
///
/// # Safety
/// As for [`crate::judge::judge`]; `inode` is the file's.
#[inline(always)]
pub unsafe fn appraise(
    hook: Hook,
    file: *const File,
    inode: *mut Inode,
    wanted: Kinds,
) -> Appraisal {
    let mut appraisal = Appraisal::new(active());
    // SAFETY: the contract of this function.
    unsafe {
        appraisal.reason =
            why_not_identifiable(hook.gate, file, inode, appraisal.active.generation());
        if appraisal.reason.is_some() {
            return appraisal;
        }

        if !hook.hashes {
            look_up(&mut appraisal, file, inode, wanted);
            return appraisal;
        }

        let record = get_or_make(&VERDICTS, inode);
        if record.is_null() {
            appraisal.reason = Some(Reason::NoMemory);
            return appraisal;
        }
        let stamp = claim(record);
        let layer_writes = if overlay::is_merged(inode) { overlay::writes() } else { 0 };
        let known = load_word(record);
        if inode_writers(inode) > 0 {
            appraisal.reason = Some(Reason::BeingWritten);
            return appraisal;
        }
        // After the writers: whoever maps is a writer, so without one the mark is there by now.
        if !WAS_MAPPED.get_ptr_mut(inode).is_null() {
            appraisal.reason = Some(Reason::WasMapped);
            return appraisal;
        }

        let trusted = {
            let generation = appraisal.active.generation();
            let single = by_fsverity(file, inode, generation, true);
            single.is_some_and(|rule| rule.kinds.intersects(wanted))
                || verified(inode, generation, wanted).is_some()
        };
        let mut has_digest = true;
        if known.is_known() && (*record).layer_writes == layer_writes {
            appraisal.digest = (*record).digest;
            appraisal.cached = known.is_of(appraisal.active.generation());
        } else if trusted && !appraisal.active.choices().contains(Choices::CONTENT_COUNTS) {
            has_digest = false;
            appraisal.cached = known.is_of(appraisal.active.generation());
        } else {
            let gate = hook.gate;
            let status = bpf_ima_file_hash(
                file.cast_mut().cast(),
                (&raw mut appraisal.digest).cast(),
                DIGEST_LEN as u32,
            );
            appraisal.hash_status = status as i32;
            count(gate, Counter::Hashed, 1);
            count(gate, Counter::HashedBytes, inode_size(inode));
            if status < 0 {
                debug!(file, "cannot hash: {}", status);
                appraisal.reason = Some(Reason::HashFailed);
                return appraisal;
            }
            // The helper returns the algorithm, which the boot option ima_hash= can change.
            if status != i64::from(HASH_ALGO_SHA256.load()) {
                appraisal.reason = Some(Reason::WrongAlgorithm);
                return appraisal;
            }
        }

        // Hashing may have slept for seconds, so the policy is asked for only now.
        let zero = instructions::any(0);
        has_digest = u64::from(has_digest) ^ zero != 0;
        appraisal.forget(zero);
        appraisal.active = active();
        let generation = appraisal.active.generation();
        let rule = if has_digest { rule(generation, &appraisal.digest) } else { None };
        if is_untrusted_filesystem(inode_filesystem(inode).magic, generation) {
            appraisal.reason = Some(Reason::Filesystem);
            return appraisal;
        }
        // A slot is filled again only after two switches.
        if active().generation() > generation + 1 {
            appraisal.reason = Some(Reason::PolicyChanged);
            return appraisal;
        }
        appraisal.word = VerdictWord::new(generation, rule);
        appraisal.rule = rule.unwrap_or_default();
        let decides = appraisal.rule.denied == 1 || appraisal.rule.kinds.intersects(wanted);
        if decides {
            // The content's own rule comes first.
        } else if let Some(single) = by_fsverity(file, inode, generation, true)
            && single.kinds.intersects(wanted)
        {
            let kinds = appraisal.rule.kinds.union(single.kinds);
            appraisal.rule = Rule { kinds, ..single };
            appraisal.word = if has_digest {
                VerdictWord::new(generation, Some(appraisal.rule))
            } else {
                VerdictWord::without_digest(generation, kinds)
            };
        } else if let Some(filesystem) = verified(inode, generation, wanted) {
            let kinds = appraisal.rule.kinds.union(filesystem.kinds);
            appraisal.word = VerdictWord::verified(generation, kinds, has_digest);
            appraisal.rule = Rule { kinds, ..filesystem };
        } else if !has_digest {
            // The trust has ended since it was asked for, and nothing else is known.
            appraisal.reason = Some(Reason::PolicyChanged);
            return appraisal;
        }

        appraisal.forget(instructions::any(0));
        // Looked up anew: a writer that came by has deleted the record.
        let record = VERDICTS.get_ptr_mut(inode);
        if record.is_null() || (*record).stamp != stamp {
            appraisal.reason = Some(Reason::Unstable);
            return appraisal;
        }
        if inode_writers(inode) > 0 {
            appraisal.reason = Some(Reason::BeingWritten);
            return appraisal;
        }
        if overlay::is_merged(inode) {
            if overlay::writes() != layer_writes {
                appraisal.reason = Some(Reason::Unstable);
                return appraisal;
            }
            if let Err(reason) = overlay::check_layers(file, inode, generation) {
                appraisal.reason = Some(reason);
                return appraisal;
            }
            appraisal.word = appraisal.word.of_merged_file();
        }
        (*record).layer_writes = layer_writes;
        (*record).digest = appraisal.digest;
        (*record).rule = appraisal.rule;
        store_word(record, appraisal.word);
    }
    appraisal
}

/// Asks the policy about the digest that is on the inode, if there is one.
///
/// # Safety
/// As for [`crate::judge::judge`]; `inode` is the file's.
#[inline(always)]
unsafe fn look_up(appraisal: &mut Appraisal, file: *const File, inode: *mut Inode, wanted: Kinds) {
    let generation = appraisal.active.generation();
    // SAFETY: the contract of this function.
    unsafe {
        if inode_writers(inode) > 0 {
            appraisal.reason = Some(Reason::BeingWritten);
            return;
        }
        // After the writers: whoever maps is a writer, so without one the mark is there by now.
        if !WAS_MAPPED.get_ptr_mut(inode).is_null() {
            appraisal.reason = Some(Reason::WasMapped);
            return;
        }
        let record = VERDICTS.get_ptr_mut(inode);
        // The agent has counted the writes behind merged files before it hashed.
        let mut is_known = !record.is_null()
            && load_word(record).is_known()
            && (!overlay::is_merged(inode) || (*record).layer_writes == overlay::writes());
        if is_known {
            appraisal.digest = (*record).digest;
            appraisal.cached = load_word(record).is_of(generation);
            let rule = rule(generation, &appraisal.digest);
            appraisal.word = VerdictWord::new(generation, rule);
            appraisal.rule = rule.unwrap_or_default();
        }
        let zero = instructions::any(0);
        is_known = u64::from(is_known) ^ zero != 0;
        appraisal.forget(zero);
        let decides = appraisal.rule.denied == 1 || appraisal.rule.kinds.intersects(wanted);
        let may_trust =
            !decides && (is_known || !appraisal.active.choices().contains(Choices::CONTENT_COUNTS));
        if may_trust
            && let Some(single) = by_fsverity(file, inode, generation, false)
            && single.kinds.intersects(wanted)
        {
            let kinds = appraisal.rule.kinds.union(single.kinds);
            appraisal.rule = Rule { kinds, ..single };
            appraisal.word = if is_known {
                VerdictWord::new(generation, Some(appraisal.rule))
            } else {
                VerdictWord::without_digest(generation, kinds)
            };
        } else if may_trust && let Some(filesystem) = verified(inode, generation, wanted) {
            let kinds = appraisal.rule.kinds.union(filesystem.kinds);
            appraisal.word = VerdictWord::verified(generation, kinds, is_known);
            appraisal.rule = Rule { kinds, ..filesystem };
        } else if !is_known {
            appraisal.reason = Some(Reason::NotAppraised);
            return;
        }
        appraisal.forget(instructions::any(0));
        if overlay::is_merged(inode) {
            appraisal.word = appraisal.word.of_merged_file();
        }
        if !record.is_null() {
            // Every gate that comes by writes the same, so that the order does not matter: the
            // word is whole, and the digest never changes in a record.
            (*record).rule = appraisal.rule;
            (&raw mut (*record).word).write_volatile(appraisal.word);
        }
    }
}

/// What makes it pointless to hash a file, if anything.
///
/// # Safety
/// As for [`crate::judge::judge`]; `inode` is the file's.
#[inline(always)]
unsafe fn why_not_identifiable(
    gate: Gate,
    file: *const File,
    inode: *const Inode,
    generation: u64,
) -> Option<Reason> {
    // SAFETY: the contract of this function.
    unsafe {
        if !is_regular(inode) {
            Some(Reason::NotAFile)
        } else if gate as u8 == Gate::Interpreter as u8 && is_made_up(inode) {
            Some(Reason::NotAFile)
        } else if is_untrusted_filesystem(inode_filesystem(inode).magic, generation) {
            Some(Reason::Filesystem)
        } else if inode_size(inode) > MAX_HASHED_BYTES.load() {
            Some(Reason::TooLarge)
        } else if overlay::is_merged(inode) {
            overlay::check_layers_first(file, inode, generation).err()
        } else if inode_filesystem(inode).device == MEMFD_DEVICE.load()
            && !sealed_against_writing(file)
        {
            Some(Reason::Unsealed)
        } else {
            None
        }
    }
}

/// Whether this is a regular file, as opposed to a device, for example.
///
/// # Safety
/// `inode` is a kernel pointer that the verifier tracks.
#[inline(always)]
pub unsafe fn is_regular(inode: *const Inode) -> bool {
    // SAFETY: by the contract.
    unsafe { inode_mode(inode) & FILE_TYPE == REGULAR_FILE }
}

/// Whether a file has no content of its own: the kernel makes it up when it is read, as in procfs,
/// where it also has no size. The exec and mapping gates never see such a file.
///
/// # Safety
/// `inode` is a kernel pointer that the verifier tracks.
#[inline(always)]
unsafe fn is_made_up(inode: *const Inode) -> bool {
    /// `SB_I_NOEXEC` (include/linux/fs.h, 5.10 to 7.2): no file of the filesystem is ever run.
    const NEVER_RUN: u64 = 1 << 1;
    // SAFETY: by the contract.
    unsafe { inode_size(inode) == 0 || inode_filesystem_flags(inode) & NEVER_RUN != 0 }
}

/// The record's stamp, which is given now if the record is new.
///
/// # Safety
/// `record` points into the inode's storage.
#[inline(always)]
unsafe fn claim(record: *mut Verdict) -> u64 {
    // SAFETY: the helper has no precondition.
    let fresh = unsafe { bpf_ktime_get_ns() };
    // SAFETY: by the contract.
    match unsafe { instructions::set_if_zero(&raw mut (*record).stamp, fresh) } {
        0 => fresh,
        given => given,
    }
}

/// # Safety
/// `record` points into the inode's storage.
#[inline(always)]
pub unsafe fn load_word(record: *const Verdict) -> VerdictWord {
    // SAFETY: by the contract. Volatile, so that the word is read once and whole.
    unsafe { (&raw const (*record).word).read_volatile() }
}

/// Publishes the verdict after what belongs to it.
///
/// # Safety
/// `record` points into the inode's storage.
#[inline(always)]
unsafe fn store_word(record: *mut Verdict, word: VerdictWord) {
    // SAFETY: by the contract.
    unsafe { instructions::publish((&raw mut (*record).word).cast(), word.0) };
}
