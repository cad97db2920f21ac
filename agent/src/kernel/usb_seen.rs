//! The programs that see USB devices come, go and change in the kernel itself, and where they find what
//! they tell.

use std::{fs, io, path::Path};

use aya::{
    Btf as AyaBtf, Ebpf,
    maps::{Array, MapData, RingBuf},
    programs::{FEntry, ProgramError, links::FdLink},
};
use portcullis_common::{UsbCounts, UsbLayout};

use crate::kernel::{
    btf::{Btf, BtfError},
    gates::{GatesError, Settings},
    gates_error::brief,
    layout::{LayoutError, VMLINUX},
    shield::Shield,
};

/// Each program with the kernel's function that it is called from.
pub const PROGRAMS: [(&str, &str); 2] =
    [("seen_device_add", "device_add"), ("seen_device_del", "device_del")];

/// The ring, which is made small where nobody asks.
pub const RING: &str = "PCULLIS_USB_SEEN";

/// Where the kernel gives the type information of usbcore, if that is a module and loaded.
const MODULE: &str = "/sys/kernel/btf/usbcore";

/// The programs, which are attached until this is dropped, and their maps.
pub struct UsbSeen {
    _links: Vec<FdLink>,
    /// What is told.
    pub ring: RingBuf<MapData>,
    counts: Array<MapData, UsbCounts>,
    layout: Array<MapData, UsbLayout>,
    is_known: bool,
}

/// What the kernel refused, in words.
pub type Refused = String;

/// Loads the programs if they are asked for. Returns why there are none, as the gates stand without them.
pub(super) fn load(
    ebpf: &mut Ebpf,
    btf: &AyaBtf,
    settings: &Settings,
    shield: &mut Shield,
) -> Result<Option<Refused>, GatesError> {
    if !settings.usb {
        return Ok(Some("the policy did not ask for it when the agent started".into()));
    }
    if !settings.may_read_kernel {
        return Ok(Some("the kernel's lockdown refuses it".into()));
    }
    for (name, function) in PROGRAMS {
        let program = program(ebpf, name)?;
        match program.load(function, btf).and_then(|()| program.info()) {
            Ok(info) => shield.guard_program(info.id())?,
            Err(error) => {
                return Ok(Some(format!("the kernel refused {name}: {}", brief(&error))));
            }
        }
    }
    Ok(None)
}

/// Attaches the programs. They tell nothing before the layout is known.
pub(super) fn attach(ebpf: &mut Ebpf) -> Result<UsbSeen, Refused> {
    let mut links = Vec::new();
    for (name, _) in PROGRAMS {
        let refused = |error: ProgramError| format!("the kernel refused {name}: {}", brief(&error));
        let program = program(ebpf, name).map_err(|error| error.to_string())?;
        let link = program.attach().map_err(refused)?;
        links.push(program.take_link(link).map_err(refused)?.into());
    }
    let mut take = |name: &'static str| ebpf.take_map(name).ok_or_else(|| format!("no {name}"));
    let failed = |error: aya::maps::MapError| error.to_string();
    let mut seen = UsbSeen {
        _links: links,
        ring: take(RING)?.try_into().map_err(failed)?,
        counts: take("PCULLIS_USB_COUNTS")?.try_into().map_err(failed)?,
        layout: take("PCULLIS_USB_LAYOUT")?.try_into().map_err(failed)?,
        is_known: false,
    };
    seen.find_layout().map_err(|error| error.to_string())?;
    Ok(seen)
}

impl UsbSeen {
    /// Looks where the kernel keeps its USB devices, if that is not known yet.
    ///
    /// # Errors
    /// If the type information is missing or lacks something; the error names it.
    pub fn find_layout(&mut self) -> Result<(), LayoutError> {
        if !self.is_known
            && let Some(layout) = layout(Path::new(MODULE), Path::new(VMLINUX))?
        {
            self.layout.set(0, layout, 0).map_err(io::Error::other)?;
            self.is_known = true;
        }
        Ok(())
    }

    /// Whether anything is told. Not before usbcore is loaded, where it is a module that nothing in the
    /// kernel's own type information tells of.
    #[must_use]
    pub fn is_known(&self) -> bool {
        self.is_known
    }

    /// What was counted since the programs were attached.
    ///
    /// # Errors
    /// If the map cannot be read.
    pub fn counts(&self) -> Result<UsbCounts, GatesError> {
        Ok(self.counts.get(&0, 0)?)
    }
}

/// The running kernel's; none while it has no USB.
fn layout(module: &Path, vmlinux: &Path) -> Result<Option<UsbLayout>, LayoutError> {
    let kernel = fs::read(vmlinux)?;
    let module = match fs::read(module) {
        Ok(module) => Some(module),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(error.into()),
    };
    let own = Btf::parse(&kernel)?;
    let of_module = module.as_ref().map(|module| Btf::parse_module(&kernel, module)).transpose()?;
    // What drivers that are built in use stands in the kernel's part only.
    let offset = |structure: &str, member: &str| match (own.offset(structure, member), &of_module) {
        (Err(BtfError::NoMember { .. }), Some(module)) => module.offset(structure, member),
        (found, _) => found,
    };
    if let Err(BtfError::NoMember { .. }) = offset("usb_device", "devnum") {
        return Ok(None);
    }
    let usb = |member| offset("usb_device", member);
    let authorized = match (own.bit("usb_device", "authorized"), &of_module) {
        (Err(BtfError::NoMember { .. }), Some(module)) => module.bit("usb_device", "authorized"),
        (found, _) => found,
    };
    // A bit of its own, or a byte's lowest where the kernel gives it a byte.
    let (authorized, authorized_bit) = match authorized {
        Err(BtfError::BitField { .. }) => (usb("authorized")?, 1),
        found => found?,
    };
    let configuration = |member| -> Result<u32, BtfError> {
        Ok(offset("usb_host_config", "desc")? + offset("usb_config_descriptor", member)?)
    };
    Ok(Some(UsbLayout {
        known: 1,
        name: offset("device", "kobj")? + offset("kobject", "name")?,
        parent: offset("device", "parent")?,
        kind: offset("device", "type")?,
        kind_name: offset("device_type", "name")?,
        device: usb("dev")?,
        descriptor: usb("descriptor")?,
        number: usb("devnum")?,
        speed: usb("speed")?,
        authorized,
        authorized_bit,
        product: usb("product")?,
        manufacturer: usb("manufacturer")?,
        serial: usb("serial")?,
        active: usb("actconfig")?,
        configurations: usb("config")?,
        descriptors: usb("rawdescriptors")?,
        total_length: configuration("wTotalLength")?,
        value: configuration("bConfigurationValue")?,
        reserved: 0,
    }))
}

fn program<'e>(ebpf: &'e mut Ebpf, name: &'static str) -> Result<&'e mut FEntry, GatesError> {
    let program = ebpf.program_mut(name).ok_or(GatesError::Missing(name))?;
    program.try_into().map_err(|source| GatesError::Program {
        program: name,
        hook: "a kernel function",
        source: Box::new(source),
    })
}
