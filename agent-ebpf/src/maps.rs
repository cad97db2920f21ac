//! Every map, and the settings that the agent fixes when it loads the programs.

use aya_ebpf::{
    Global,
    bindings::{BPF_F_MMAPABLE, BPF_F_NO_PREALLOC, bpf_map_type::BPF_MAP_TYPE_HASH},
    btf_maps::{Array, ArrayOfMaps, HashMap, InodeStorage, LruHashMap, RingBuf},
    helpers::generated::bpf_map_lookup_elem,
    macros::btf_map,
};
use portcullis_common::{
    Active, Arguments, Counter, DIGEST_LEN, Digest, Event, FILESYSTEM_IS_SERVED, Gate,
    OverlayLayout, PATH_SHORT, Process, ProgramKey, Rule, SLOTS, Verdict,
};

use crate::instructions;

const COUNTERS_LEN: usize = Gate::ALL.len() * Counter::ALL.len();

/// [`Active`]. The agent maps it into its memory, to switch with one store.
#[btf_map(name = "PCULLIS_ACTIVE")]
static ACTIVE: Array<Active, 1, { BPF_F_MMAPABLE as usize }> = Array::new();

/// The rules of one policy: [`Rule`] by [`DIGEST_LEN`] bytes of digest. The agent creates each map
/// with the number of entries that its policy needs; the number here is that of the template,
/// which the kernel does not compare for hash maps.
///
/// Declared by sizes and not by types, because up to 6.1 the kernel takes maps with and without
/// types for different ones (`bpf_map_meta_equal` compares `timer_off`), and maps that the agent
/// creates have none.
#[repr(C)]
struct Rules {
    r#type: *const [i32; BPF_MAP_TYPE_HASH as usize],
    key_size: *const [i32; DIGEST_LEN],
    value_size: *const [i32; size_of::<Rule>()],
    max_entries: *const [i32; 1],
    map_flags: *const [i32; BPF_F_NO_PREALLOC as usize],
}

/// The policy in force and the one being filled, by [`Active::slot`].
#[btf_map(name = "PCULLIS_POLICIES")]
static POLICIES: ArrayOfMaps<Rules, { SLOTS as usize }> = ArrayOfMaps::new();

/// The verdict on each inode.
#[btf_map(name = "PCULLIS_VERDICTS")]
pub static VERDICTS: InodeStorage<Verdict> = InodeStorage::new();

/// Set on files that are or were mapped shared by somebody who may write. Dies with the inode, like
/// the pages that the mapping showed.
#[btf_map(name = "PCULLIS_WAS_MAPPED")]
pub static WAS_MAPPED: InodeStorage<u64> = InodeStorage::new();

/// What is kept of each process (by its id in the initial namespace) whose program is marked as an
/// interpreter. Entries take memory only while they are there.
#[btf_map(name = "PCULLIS_INTERPRETERS")]
pub static INTERPRETERS: HashMap<u32, Arguments, 65536, { BPF_F_NO_PREALLOC as usize }> =
    HashMap::new();

/// One record of zeros, as a program's stack is too small for it.
#[btf_map(name = "PCULLIS_NO_ARGUMENTS")]
pub static NO_ARGUMENTS: Array<Arguments, 1> = Array::new();

/// Set on files that an overlay filesystem has opened as a layer's.
#[btf_map(name = "PCULLIS_LAYERED")]
pub static LAYERED: InodeStorage<u64> = InodeStorage::new();

/// Addresses of the inodes that got [`LAYERED`] last. A verdict is made soon after its file was
/// opened, so that there need not be room for all.
#[btf_map(name = "PCULLIS_OPENED_LAYERS")]
static OPENED_LAYERS: LruHashMap<u64, u8, 4096> = LruHashMap::new();

/// 0 before there is a file with [`LAYERED`]; raised by the first, and each time that such a file is
/// opened for writing by others than an overlay.
#[btf_map(name = "PCULLIS_OVERLAY_WRITES")]
pub static OVERLAY_WRITES: Array<u64, 1> = Array::new();

/// The layout of the overlay filesystem's structures, once the agent knows it.
#[btf_map(name = "PCULLIS_OVERLAY_LAYOUT")]
pub static OVERLAY_LAYOUT: Array<OverlayLayout, 1> = Array::new();

/// By magic number of those filesystems that a policy can trust: bit by bit the slots whose policy
/// does, and [`FILESYSTEM_IS_SERVED`].
#[btf_map(name = "PCULLIS_FILESYSTEMS")]
static FILESYSTEMS: HashMap<u64, u64, 64> = HashMap::new();

/// Digests of programs with [`Kinds::JIT`] that were started, for hooks that cannot ask the inode.
#[btf_map(name = "PCULLIS_JIT_PROGRAMS")]
static JIT_PROGRAMS: LruHashMap<ProgramKey, Digest, 1024> = LruHashMap::new();

/// Programs of which it was told that they make memory executable, with the generation of the
/// policy under which it was.
#[btf_map(name = "PCULLIS_TOLD")]
static TOLD: LruHashMap<ProgramKey, u64, 1024> = LruHashMap::new();

/// Device numbers of block devices that carry a mounted filesystem, in the kernel's encoding, with
/// those below them (the disk of a partition, the parts of a volume).
#[btf_map(name = "PCULLIS_MOUNTED_DEVICES")]
static MOUNTED_DEVICES: HashMap<u32, u8, 4096> = HashMap::new();

/// The agent, which alone may change which USB devices come alive. Nobody, when it has died.
#[btf_map(name = "PCULLIS_USB_AGENT")]
static USB_AGENT: Array<Process, 1> = Array::new();

/// One number for each gate and [`Counter`].
#[btf_map(name = "PCULLIS_COUNTERS")]
static COUNTERS: Array<u64, COUNTERS_LEN> = Array::new();

/// Events for the agent. 1 MiB holds about 2,000.
#[btf_map(name = "PCULLIS_EVENTS")]
pub static EVENTS: RingBuf<Event<PATH_SHORT>, { 1 << 20 }> = RingBuf::new();

/// Files above this many bytes are not hashed: hashing cannot be interrupted, so an unprivileged
/// user could otherwise keep a processor busy with a sparse file.
#[unsafe(no_mangle)]
pub static MAX_HASHED_BYTES: Global<u64> = Global::new(0);

/// Device number of the kernel's internal tmpfs, where memfds and shared memory live.
#[unsafe(no_mangle)]
pub static MEMFD_DEVICE: Global<u32> = Global::new(0);

/// The policy in force.
#[inline(always)]
pub fn active() -> Active {
    // SAFETY: points to a map value. Volatile, so that the word is read once and whole.
    ACTIVE.get_ptr(0).map_or(Active::NONE, |word| unsafe { word.read_volatile() })
}

/// What the policy of `generation` says about a digest.
#[inline(always)]
pub fn rule(generation: u64, digest: &[u8; DIGEST_LEN]) -> Option<Rule> {
    let rules = POLICIES.get(Active::slot(generation))?;
    // SAFETY: the verifier knows the pointer as that of a map with keys of this size. The map is
    // not preallocated, so an element that goes away is freed only after this program has ended,
    // and rules are never changed in place.
    unsafe {
        let rule = bpf_map_lookup_elem(
            core::ptr::from_ref(rules).cast_mut().cast(),
            digest.as_ptr().cast(),
        );
        rule.cast::<Rule>().as_ref().copied()
    }
}

/// Whether the content of files on this filesystem may change between hash and use, and the policy
/// of `generation` does not trust it.
#[inline(always)]
pub fn is_untrusted_filesystem(magic: u64, generation: u64) -> bool {
    filesystem(magic).is_some_and(|known| {
        known & FILESYSTEM_IS_SERVED != 0 && known >> Active::slot(generation) & 1 == 0
    })
}

/// Whether the policy of `generation` trusts this filesystem although its files cannot be
/// identified as others can.
#[inline(always)]
pub fn is_trusted_filesystem(magic: u64, generation: u64) -> bool {
    filesystem(magic).is_some_and(|known| known >> Active::slot(generation) & 1 == 1)
}

#[inline(always)]
fn filesystem(magic: u64) -> Option<u64> {
    // SAFETY: points to a map value.
    FILESYSTEMS.get_ptr(&magic).map(|known| unsafe { known.read_volatile() })
}

/// Remembers that an inode has [`LAYERED`].
#[inline(always)]
pub fn remember_layer(address: u64) {
    if !was_opened_as_layer(address) {
        // Without memory for it, the file is refused.
        let _ = OPENED_LAYERS.insert(&address, &1, 0);
    }
}

/// Whether the inode at this address got [`LAYERED`], if that was not too long ago.
#[inline(always)]
pub fn was_opened_as_layer(address: u64) -> bool {
    OPENED_LAYERS.get_ptr(&address).is_some()
}

/// Remembers a program that may make memory executable, as it is being started.
#[inline(always)]
pub fn remember_jit_program(program: &ProgramKey, digest: &Digest) {
    // That there is no memory costs the program its mark, and nothing else.
    let _ = JIT_PROGRAMS.insert(program, digest, 0);
}

/// Forgets a program that has other content now.
#[inline(always)]
pub fn forget_jit_program(program: &ProgramKey) {
    // Most programs were never there.
    let _ = JIT_PROGRAMS.remove(program);
}

/// The digest of a program that might be allowed to make memory executable.
#[inline(always)]
pub fn digest_of_jit_program(program: &ProgramKey) -> Option<Digest> {
    // SAFETY: points to a map value. If the element is given to another program meanwhile, that one
    // has the mark too.
    JIT_PROGRAMS.get_ptr(program).map(|digest| unsafe { digest.read() })
}

/// Whether it was told of this program under the policy of `generation`; it is from now on.
#[inline(always)]
pub fn tell_once(program: &ProgramKey, generation: u64) -> bool {
    // SAFETY: points to a map value.
    let told = TOLD.get_ptr(program).is_some_and(|told| unsafe { *told } == generation);
    if !told {
        // Without memory for it, it is told again.
        let _ = TOLD.insert(program, &generation, 0);
    }
    told
}

/// Whether a block device carries a mounted filesystem.
#[inline(always)]
pub fn is_mounted_device(device: u32) -> bool {
    MOUNTED_DEVICES.get_ptr(&device).is_some()
}

/// Whether this process is the agent that these programs belong to.
#[inline(always)]
pub fn is_usb_agent(process: Process) -> bool {
    // SAFETY: points to a map value, which is written once, before the programs are attached.
    USB_AGENT.get_ptr(0).is_some_and(|agent| unsafe {
        (*agent).pid == process.pid && (*agent).started == process.started
    })
}

/// Adds to one of the gate's numbers.
#[inline(always)]
pub fn count(gate: Gate, counter: Counter, amount: u64) {
    let index = gate as u32 * Counter::ALL.len() as u32 + counter as u32;
    if let Some(number) = COUNTERS.get(index) {
        // SAFETY: points to a map value.
        unsafe { instructions::add(number, amount) };
    }
}
