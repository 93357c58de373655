//! File systems in which the kernel itself shows and takes things: a link of an image that leads there would have
//! the host's root read what others may not, or make what is more than a file.

use std::{os::fd::AsFd, path::Path};

use anyhow::{Context, bail};
use rustix::fs::fstatfs;

/// Magic numbers (`linux/magic.h`, and the sources of file systems that are not in it) and names.
const FILE_SYSTEMS: [(u32, &str); 22] = [
    (0x0000_9fa0, "proc"),
    (0x6265_6572, "sysfs"),
    (0x6462_6720, "debugfs"),
    (0x7472_6163, "tracefs"),
    (0x7363_6673, "securityfs"),
    (0x0027_e0eb, "cgroup"),
    (0x6367_7270, "cgroup2"),
    (0xcafe_4a11, "bpf"),
    (0x6165_676c, "pstore"),
    (0xde5e_81e4, "efivarfs"),
    (0x6265_6570, "configfs"),
    (0xf97c_ff8c, "selinuxfs"),
    (0x4341_5d53, "smackfs"),
    (0x5a3c_69f0, "apparmorfs"),
    (0x6e73_6673, "nsfs"),
    (0x0000_1cd1, "devpts"),
    (0x1980_0202, "mqueue"),
    (0x4249_4e4d, "binfmt_misc"),
    (0x6573_5543, "fusectl"),
    (0x6759_6969, "rpc_pipefs"),
    (0x6e66_7364, "nfsd"),
    (0x0765_5821, "resctrl"),
];

/// Refuses what is on a file system of the kernel's own.
///
/// # Errors
/// It is, or it cannot be told.
pub(crate) fn refuse(found: impl AsFd, path: &Path) -> anyhow::Result<()> {
    let path = path.display();
    let of = fstatfs(found).with_context(|| format!("cannot look at `{path}` in the container"))?;
    // The type is signed on some architectures, and wider than the number.
    let number = of.f_type as u64 & u64::from(u32::MAX);
    match FILE_SYSTEMS.iter().find(|(magic, _)| u64::from(*magic) == number) {
        Some((_, name)) => {
            bail!("`{path}` in the container leads into `{name}`, which is the kernel's")
        }
        None => Ok(()),
    }
}
