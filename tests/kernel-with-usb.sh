#!/bin/sh
# Builds a kernel that has USB built in, as no stock kernel of Debian has: Debian's source and
# configuration, with what the USB scenarios need made part of the kernel and most drivers left out.
# Takes some forty minutes of a processor. docs/testing.md says what to do with it.
#
#   tests/kernel-with-usb.sh FOLDER
#
# Needs these packages: linux-source-6.12 linux-config-6.12 flex bison bc libelf-dev libssl-dev dwarves
set -eu

if [ $# -ne 1 ]; then
    echo "usage: $0 FOLDER" >&2
    exit 2
fi
mkdir -p "$1"
folder=$(cd "$1" && pwd)
cd "$folder"
tar --extract --skip-old-files --file /usr/src/linux-source-6.12.tar.xz
cd linux-source-6.12
xz --decompress --stdout /usr/src/linux-config-6.12/config.amd64_none_amd64.xz > .config

# What a virtual machine without network, graphics and sound does not have. Some of these have no
# drivers of ours below them, but select whole subsystems.
for option in \
    ACPI_APEI AMD_IOMMU ATA BT BTRFS_FS CAN CHROME_PLATFORMS COMEDI CRASH_DUMP CRYPTO_HW DAMON DRM ETHERNET FB \
    GPIOLIB HAMRADIO HIBERNATION HYPERV I2C IIO INFINIBAND INPUT_JOYSTICK INPUT_MISC INPUT_TABLET \
    INPUT_TOUCHSCREEN INTEL_IOMMU IPV6 IP_VS ISDN KEXEC_FILE KVM MD MEDIA_SUPPORT MEMORY_HOTPLUG MPTCP MTD \
    NETFILTER NET_SCHED NFS_FS NUMA PCI_IOV PINCTRL POWER_SUPPLY PSTORE RAS REGULATOR SECURITY_SELINUX \
    SECURITY_TOMOYO SOUND SPI SQUASHFS STAGING THERMAL TLS WATCHDOG WIRELESS WLAN X86_PLATFORM_DEVICES XEN \
    XFRM XFS_FS MODULE_SIG MODULE_SIG_ALL; do
    scripts/config --disable "$option"
done
# Debian's keys do not come with its source.
scripts/config --set-str SYSTEM_TRUSTED_KEYS "" --set-str SYSTEM_REVOCATION_KEYS "" \
    --set-str LOCALVERSION "-usb-built-in"

# These become part of the kernel, and hardly any other module is built.
{
    echo "Module Size Used by"
    for module in \
        virtio virtio_ring virtio_pci virtio_blk virtio_console virtio_rng crc16 crc32c_generic mbcache jbd2 ext4 \
        overlay loop fat vfat nls_cp437 nls_ascii usb_common usbcore xhci_hcd xhci_pci ehci_hcd scsi_common \
        scsi_mod sd_mod usb_storage uas hid usbhid hid_generic udc_core dummy_hcd configfs libcomposite \
        sha256_generic autofs4 binfmt_misc; do
        echo "$module 1 0"
    done
} > "$folder/modules-to-build-in"
yes "" | make LSMOD="$folder/modules-to-build-in" localyesconfig
scripts/config --enable CONFIGFS_FS --enable USB_CONFIGFS --enable USB_CONFIGFS_MASS_STORAGE \
    --enable USB_CONFIGFS_F_HID --enable USB_DUMMY_HCD
# One module stays one, as the tests prepare signed copies of it.
scripts/config --enable NETDEVICES --enable NET_CORE --module DUMMY
make olddefconfig
make -j"$(nproc)" bzImage modules
make modules_install INSTALL_MOD_PATH="$folder/installed"

version=$(make --silent kernelrelease)
echo "kernel:  $folder/linux-source-6.12/arch/x86/boot/bzImage"
echo "modules: $folder/installed/lib/modules/$version"
