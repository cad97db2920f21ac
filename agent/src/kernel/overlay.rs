//! The layout of the overlay filesystem's own structures, which the gates look into.

use std::{fs, io, path::Path};

use portcullis_common::OverlayLayout;

use crate::kernel::{
    btf::{Btf, BtfError},
    layout::{LayoutError, VMLINUX},
};

/// Where the kernel gives the module's type information.
const MODULE: &str = "/sys/kernel/btf/overlay";

/// The running kernel's; none while the module is not loaded.
///
/// # Errors
/// If there is no type information, or a field in it is missing; the error names it.
pub fn layout() -> Result<Option<OverlayLayout>, LayoutError> {
    match fs::read(MODULE) {
        Ok(module) => {
            // Names that both have stand in the kernel's part only.
            let kernel = fs::read(VMLINUX)?;
            Ok(Some(read(&Btf::parse_module(&kernel, &module)?)?))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound && is_module() => Ok(None),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let kernel = fs::read(VMLINUX)?;
            match read(&Btf::parse(&kernel)?) {
                // Not built in either.
                Err(BtfError::NoMember { .. }) => Ok(None),
                layout => Ok(Some(layout?)),
            }
        }
        Err(error) => Err(error.into()),
    }
}

/// Whether the filesystem is not built into the kernel, so that the kernel's large type information
/// need not be searched for it.
fn is_module() -> bool {
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    let list = Path::new("/lib/modules").join(release).join("modules.builtin");
    fs::read_to_string(list).is_ok_and(|list| !list.contains("/overlay.ko"))
}

fn read(btf: &Btf<'_>) -> Result<OverlayLayout, BtfError> {
    Ok(OverlayLayout {
        known: 1,
        vfs_inode: btf.offset("ovl_inode", "vfs_inode")?,
        upper_dentry: btf.offset("ovl_inode", "__upperdentry")?,
        opened_file: match btf.offset("ovl_file", "realfile") {
            Err(BtfError::NoMember { .. }) => OverlayLayout::NONE,
            offset => offset?,
        },
    })
}
