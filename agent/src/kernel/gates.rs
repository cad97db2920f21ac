//! The kernel programs: loading, attaching, and the maps behind them.

use std::collections::BTreeSet;

use aya::{
    Btf, Ebpf, EbpfLoader, Endianness,
    maps::{Array, ArrayOfMaps, HashMap, Map, MapData, MapError, RingBuf},
    programs::{
        Lsm, ProgramError,
        links::{FdLink, PinnedLink},
    },
};
use aya_log::EbpfLogger;
use portcullis_common::{
    Active, Arguments, Counter, Digest, FILESYSTEM_IS_SERVED, Gate, Mode, OverlayLayout, Process,
    Rule, SLOTS,
};

pub use crate::kernel::gates_error::GatesError;
use crate::{
    kernel::{
        active::ActiveWord,
        allowlist::Allowlist,
        calls,
        devices::Devices,
        filesystems,
        gates_error::brief,
        hooks::{EARLY_INTERPRETER_GATE, Hook, hooks_for},
        inherited::{self, Inherited},
        layout::{Hashing, Layout},
        pins::Pins,
        process,
        records::Records,
        shield::{self, Shield},
        usb_seen::{self, UsbSeen},
        vouched::{Vouch, Vouched},
    },
    policy::Policy,
};

/// The compiled kernel programs, as built with this binary.
static OBJECT: &[u8] = aya::include_bytes_aligned!(env!("PORTCULLIS_EBPF_OBJECT"));

/// What is fixed when the programs are loaded.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Files above this many bytes are not hashed.
    pub max_hashed_bytes: u64,
    /// Device number of memfds in the kernel's encoding.
    pub memfd_device: u32,
    /// Whether the policy trusts verified filesystems, so that devices have to be watched.
    pub watch_devices: bool,
    /// Whether the kernel lets programs read its memory.
    pub may_read_kernel: bool,
    /// Whether the policy marks programs as interpreters.
    pub interpreters: bool,
    /// Whether the policy says which USB devices come alive.
    pub usb: bool,
    /// Device numbers of the filesystems with the agent's runtime folder, its state and its high-water
    /// marks, in the kernel's encoding; 0 for none.
    pub state_devices: [u32; 5],
    /// The most detailed level of the programs' own log, as aya-log numbers them; 0 is off.
    pub log_level: u8,
}

/// A program that is attached: until it is pinned, by our own descriptor only.
enum Attached {
    Held(FdLink),
    Pinned(PinnedLink),
}

/// The kernel programs with their maps. Dropping it detaches what is not pinned.
pub struct Gates {
    ebpf: Ebpf,
    attached: Vec<(Hook, Attached)>,
    hooks: Vec<Hook>,
    /// Why the USB gate is not there, although the policy asks for it.
    usb_refused: Option<String>,
    /// Why USB devices are not seen in the kernel itself, if they are not.
    usb_unseen: Option<String>,
    active: ActiveWord,
    /// For each kind of filesystem that is served by somebody else: the slots whose policy trusts
    /// it, as bits.
    filesystems: HashMap<MapData, u64, u64>,
    mounted_devices: HashMap<MapData, u32, u8>,
    overlay_layout: Array<MapData, OverlayLayout>,
    interpreters: HashMap<MapData, u32, Arguments>,
    policies: ArrayOfMaps<MapData, HashMap<MapData, Digest, Rule>>,
    /// The maps in the slots, and the one that was replaced last. A program that looked a map up
    /// before it was replaced may still be using it.
    rules: [Option<Allowlist>; SLOTS as usize],
    retired: Option<Allowlist>,
    vouched: Vouched,
    hashing: Hashing,
    /// The verdicts on inodes.
    records: Records,
    counters: Array<MapData, u64>,
    /// What guards all this.
    pub(super) shield: Shield,
    /// What watches the devices of verified filesystems, if the policy trusts any.
    pub(super) devices: Option<Devices>,
}

impl Gates {
    /// Loads the programs; nothing is attached and no policy is in force.
    ///
    /// # Errors
    /// If the kernel refuses anything.
    pub fn load(layout: &Layout, settings: &Settings) -> Result<Self, GatesError> {
        let mut loader = EbpfLoader::new();
        let may_read_kernel = u32::from(settings.may_read_kernel);
        // The programs have no relocations. Lets go of the kernel's types, 15 MB when parsed, which
        // the new loader has read.
        loader.btf(None);
        for (name, value) in layout.globals() {
            loader.override_global(name, value, true);
        }
        loader
            .override_global("MAX_HASHED_BYTES", &settings.max_hashed_bytes, true)
            .override_global("STATE_DEVICES", &settings.state_devices, true)
            .override_global("MEMFD_DEVICE", &settings.memfd_device, true)
            .override_global("MAY_READ_KERNEL", &may_read_kernel, true)
            .override_global(aya_log::LEVEL, &settings.log_level, true);
        let inherited = Inherited::find();
        if !settings.usb {
            loader.map_max_entries(usb_seen::RING, 4096);
        }
        for (name, path) in inherited.maps() {
            loader.map_pin_path(name, path);
        }
        let mut ebpf = loader.load(&calls::with(OBJECT, layout.functions))?;
        inherited.complete(&mut ebpf)?;
        let btf = Btf::parse(&layout.attachable, Endianness::default())?;
        let mut hooks = hooks_for(layout, settings);
        let mut usb_refused = None;
        let mut shield = Shield::take(&mut ebpf)?;
        for hook in hooks.clone() {
            let refused = |source| program_error(hook, source);
            match program(&mut ebpf, hook)?.load(hook.hook, &btf).map_err(refused) {
                // The others hold without it, and the status page says so.
                Err(error) if hook.gate == Some(Gate::Usb) => {
                    hooks.retain(|hook| hook.gate != Some(Gate::Usb));
                    usb_refused = Some(error.to_string());
                }
                Err(error) if hook.gate == Some(Gate::Shield) => {
                    hooks.retain(|other| *other != hook);
                    shield.note_refused(&error);
                }
                loaded => {
                    loaded?;
                    let info = program(&mut ebpf, hook)?.info().map_err(refused)?;
                    shield.guard_program(info.id())?;
                }
            }
        }
        let usb_unseen = usb_seen::load(&mut ebpf, &btf, settings, &mut shield)?;
        let mut agent: Array<_, Process> = take(&mut ebpf, "PCULLIS_USB_AGENT")?;
        agent.set(0, process::own().map_err(GatesError::Process)?, 0)?;
        let devices = if !settings.watch_devices {
            None
        } else if layout.can_watch_devices {
            Some(Devices::load(&mut ebpf, &btf)?)
        } else {
            return Err(GatesError::NoWatch);
        };
        drop(btf);
        let Some(Map::Array(active)) = ebpf.map("PCULLIS_ACTIVE") else {
            return Err(GatesError::Missing("PCULLIS_ACTIVE"));
        };
        let active = ActiveWord::map(active)?;
        let Some(Map::InodeStorage(verdicts)) = ebpf.map("PCULLIS_VERDICTS") else {
            return Err(GatesError::Missing("PCULLIS_VERDICTS"));
        };
        let Some(Map::Array(overlay_writes)) = ebpf.map(inherited::OVERLAY_WRITES) else {
            return Err(GatesError::Missing(inherited::OVERLAY_WRITES));
        };
        let records = Records::of(verdicts, overlay_writes).map_err(GatesError::Records)?;
        let mut filesystems: HashMap<_, u64, u64> = take(&mut ebpf, "PCULLIS_FILESYSTEMS")?;
        for filesystem in filesystems::UNTRUSTED {
            filesystems.insert(filesystem.magic, FILESYSTEM_IS_SERVED, 0)?;
        }
        filesystems.insert(filesystems::OVERLAY.magic, 0, 0)?;
        Ok(Self {
            hashing: layout.hashing,
            records,
            active,
            filesystems,
            overlay_layout: take(&mut ebpf, "PCULLIS_OVERLAY_LAYOUT")?,
            mounted_devices: take(&mut ebpf, "PCULLIS_MOUNTED_DEVICES")?,
            interpreters: take(&mut ebpf, "PCULLIS_INTERPRETERS")?,
            policies: take(&mut ebpf, "PCULLIS_POLICIES")?,
            counters: take(&mut ebpf, "PCULLIS_COUNTERS")?,
            rules: [None, None],
            retired: None,
            vouched: Vouched::default(),
            attached: Vec::new(),
            devices,
            hooks,
            usb_refused,
            usb_unseen,
            shield,
            ebpf,
        })
    }

    /// The ring of events. Can be taken once.
    ///
    /// # Errors
    /// If it has been taken already.
    pub fn take_events(&mut self) -> Result<RingBuf<MapData>, GatesError> {
        take(&mut self.ebpf, "PCULLIS_EVENTS")
    }

    /// The programs' own log, which goes to the `log` crate's logger. Can be taken once.
    ///
    /// # Errors
    /// If it has been taken already.
    pub fn take_log(&mut self) -> Result<EbpfLogger<&'static dyn log::Log>, GatesError> {
        EbpfLogger::init(&mut self.ebpf).map_err(|error| GatesError::Log(error.to_string()))
    }

    /// Puts a policy in force with its rules, which are complete in the kernel. The switch is a
    /// single store; if anything fails, what was in force stays.
    ///
    /// # Errors
    /// If a map cannot be written.
    pub fn switch(
        &mut self,
        policy: &Policy,
        rules: Allowlist,
        mode: Mode,
    ) -> Result<Active, GatesError> {
        let vouched = self.vouched.clone();
        let still = |vouch: &Vouch| policy.still_vouched(vouch);
        vouched
            .switch(rules, still, &policy.withheld, |rules| self.put_in_force(policy, rules, mode))
    }

    fn put_in_force(
        &mut self,
        policy: &Policy,
        rules: Allowlist,
        mode: Mode,
    ) -> Result<Active, GatesError> {
        let generation = self.active.load().generation() + 1;
        let slot = Active::slot(generation);
        for filesystem in filesystems::trustable() {
            let magic = filesystem.magic;
            let others = self.filesystems.get(&magic, 0)? & !(1 << slot);
            let own = u64::from(policy.trusted_filesystems.contains(&magic)) << slot;
            self.filesystems.insert(magic, others | own, 0)?;
        }
        let stand = !self.attached.is_empty();
        if let Some(devices) = &mut self.devices {
            devices.prepare(generation, &policy.verified_filesystems)?;
            // What runs from a verified filesystem goes on running through the switch.
            if stand {
                devices.refresh(generation)?;
            }
        }
        self.shield.trust_programs(&policy.agent_binaries)?;
        self.policies.set(slot, rules.map(), 0)?;
        self.retired = self.rules[slot as usize].replace(rules);
        let active = Active::new(generation, mode, policy.choices);
        self.active.store(active);
        Ok(active)
    }

    /// Changes the mode of the policy in force.
    pub fn set_mode(&self, mode: Mode) -> Active {
        let active = self.active.load().in_mode(mode);
        self.active.store(active);
        active
    }

    /// Tells which block devices are to be closed for writing, if the policy in force wants that, in
    /// the kernel's encoding.
    ///
    /// # Errors
    /// If the map cannot be written; what it held before is then partly there.
    pub fn set_mounted_devices(&mut self, devices: &BTreeSet<u32>) -> Result<(), GatesError> {
        let known = self.mounted_devices.keys().collect::<Result<BTreeSet<_>, _>>()?;
        for device in devices.difference(&known) {
            self.mounted_devices.insert(device, 1, 0)?;
        }
        for device in known.difference(devices) {
            self.mounted_devices.remove(device)?;
        }
        Ok(())
    }

    /// Tells how the overlay filesystem lays out its structures. Until then its files cannot be
    /// identified.
    ///
    /// # Errors
    /// If the map cannot be written.
    pub fn set_overlay_layout(&mut self, layout: OverlayLayout) -> Result<(), GatesError> {
        Ok(self.overlay_layout.set(0, layout, 0)?)
    }

    /// Whether files of overlay filesystems can be identified.
    #[must_use]
    pub fn knows_overlay(&self) -> bool {
        self.overlay_layout.get(&0, 0).is_ok_and(|layout| layout.known == 1)
    }

    /// What is in force.
    #[must_use]
    pub fn active(&self) -> Active {
        self.active.load()
    }

    /// Attaches every program; if one fails, none stays attached.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn attach(&mut self) -> Result<(), GatesError> {
        let mut attached = Vec::new();
        if let Some(devices) = &mut self.devices {
            devices.attach(&mut self.ebpf)?;
        }
        for hook in self.hooks.clone() {
            let refused = |source| program_error(hook, source);
            let program = program(&mut self.ebpf, hook)?;
            let link = program.attach().map_err(refused)?;
            let link = program.take_link(link).map_err(refused)?;
            let link = FdLink::from(link);
            let info = link.info().map_err(|error| GatesError::Link(brief(&error)))?;
            self.shield.guard_link(info.id())?;
            attached.push((hook, Attached::Held(link)));
        }
        self.attached = attached;
        Ok(())
    }

    /// Pins the links, so that they and the maps behind them outlive this process.
    ///
    /// # Errors
    /// If the bpffs refuses; then the programs are attached without pins.
    pub fn pin(&mut self, pins: &Pins) -> Result<(), GatesError> {
        let mut pinned = Vec::new();
        for (hook, link) in std::mem::take(&mut self.attached) {
            let path = pins.of(hook.program);
            let link = match link {
                Attached::Held(link) => link.pin(&path),
                Attached::Pinned(link) => Ok(link),
            };
            match link {
                Ok(link) => pinned.push((hook, Attached::Pinned(link))),
                Err(error) => {
                    // The failed attempt has closed the link, so attach anew.
                    self.attach()?;
                    return Err(GatesError::Pin { path, why: brief(&error) });
                }
            }
        }
        self.attached = pinned;
        if let Some(devices) = &mut self.devices {
            devices.pin(pins)?;
        }
        self.shield.pin(pins)?;
        for name in inherited::MAPS.into_iter().chain([shield::ACTIVE]) {
            let path = pins.of(name);
            let map = self.ebpf.map(name).ok_or(GatesError::Missing(name))?;
            map.pin(&path).map_err(|error| GatesError::Pin { path, why: brief(&error) })?;
        }
        Ok(())
    }

    /// Has the interpreter gate take every file for a script that this process opens, or stops that.
    ///
    /// # Errors
    /// If the map cannot be written.
    pub fn watch_own_opens(&mut self, watch: bool) -> Result<(), GatesError> {
        let process = std::process::id();
        if watch {
            self.interpreters.insert(process, Arguments::anything(), 0)?;
        } else {
            self.interpreters.remove(&process)?;
        }
        Ok(())
    }

    /// Whether the interpreter gate can hash a script when it is opened. Where it cannot, the file
    /// must have been judged before.
    #[must_use]
    pub fn scripts_need_appraisal(&self) -> bool {
        self.hooks.iter().any(|hook| hook.program == EARLY_INTERPRETER_GATE)
    }

    /// Whether a gate has programs, which those that the policy does not need have not.
    #[must_use]
    pub fn is_asked_for(&self, gate: Gate) -> bool {
        self.hooks.iter().any(|hook| hook.gate == Some(gate))
    }

    /// Whether every program of a gate is attached.
    #[must_use]
    pub fn stands(&self, gate: Gate) -> bool {
        let mut programs = self.hooks.iter().filter(|hook| hook.gate == Some(gate));
        self.is_asked_for(gate)
            && programs.all(|program| self.attached.iter().any(|(hook, _)| hook == program))
    }

    /// Why there is no USB gate, although the policy asked for one when the programs were loaded.
    #[must_use]
    pub fn usb_refused(&self) -> Option<&str> {
        self.usb_refused.as_deref()
    }

    /// Has USB devices seen in the kernel from now on. Can be asked once.
    ///
    /// # Errors
    /// Why they are not.
    pub fn see_usb(&mut self) -> Result<UsbSeen, usb_seen::Refused> {
        match &self.usb_unseen {
            Some(why) => Err(why.clone()),
            None => usb_seen::attach(&mut self.ebpf),
        }
    }

    /// Whether the devices of verified filesystems are watched.
    #[must_use]
    pub fn watches_devices(&self) -> bool {
        self.devices.is_some()
    }

    /// Whether every link is pinned.
    #[must_use]
    pub fn is_pinned(&self) -> bool {
        self.attached.iter().all(|(_, link)| matches!(link, Attached::Pinned(_)))
    }

    /// One of a gate's numbers, since the programs were loaded.
    ///
    /// # Errors
    /// If the map cannot be read.
    pub fn counter(&self, gate: Gate, counter: Counter) -> Result<u64, GatesError> {
        Ok(self.counters.get(&counter_index(gate, counter), 0)?)
    }

    /// The rule of the policy in force for a digest.
    ///
    /// # Errors
    /// If the map cannot be read.
    pub fn rule(&self, digest: &Digest) -> Result<Option<Rule>, GatesError> {
        let slot = Active::slot(self.active.load().generation());
        let Some(rules) = &self.rules[slot as usize] else { return Ok(None) };
        Ok(rules.get(digest)?)
    }

    /// Where files' own signatures are told.
    #[must_use]
    pub fn vouched(&self) -> Vouched {
        self.vouched.clone()
    }

    /// What guards the gates and the agent.
    pub fn shield(&mut self) -> &mut Shield {
        &mut self.shield
    }

    /// Who works out digests for these gates.
    #[must_use]
    pub fn hashing(&self) -> Hashing {
        self.hashing
    }

    /// A handle on the inodes' records, for another thread.
    ///
    /// # Errors
    /// If the process has no more descriptors.
    pub fn records(&self) -> Result<Records, GatesError> {
        self.records.try_clone().map_err(GatesError::Records)
    }
}

#[expect(clippy::cast_possible_truncation, reason = "two small enums")]
fn counter_index(gate: Gate, counter: Counter) -> u32 {
    gate as u32 * Counter::ALL.len() as u32 + counter as u32
}

fn program(ebpf: &mut Ebpf, hook: Hook) -> Result<&mut Lsm, GatesError> {
    let program = ebpf.program_mut(hook.program).ok_or(GatesError::Missing(hook.program))?;
    program.try_into().map_err(|source| program_error(hook, source))
}

fn program_error(hook: Hook, source: ProgramError) -> GatesError {
    // Pages of it, of which the error has the end.
    tracing::debug!("{} was refused: {source}", hook.program);
    GatesError::Program { program: hook.program, hook: hook.hook, source: Box::new(source) }
}

fn take<M: TryFrom<Map, Error = MapError>>(
    ebpf: &mut Ebpf,
    name: &'static str,
) -> Result<M, GatesError> {
    Ok(ebpf.take_map(name).ok_or(GatesError::Missing(name))?.try_into()?)
}
