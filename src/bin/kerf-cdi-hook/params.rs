//! `disable-device-node-modification`: keeps the driver's programs in the container from making and
//! changing device nodes, by which they would show GPUs that the container was not given.
//!
//! They do as `ModifyDeviceFiles` of the driver's parameters says. A copy that says no is mounted over
//! the container's view of the file, from a file system that nobody else sees and that is read-only.

use std::{
    fs::File,
    io::Write,
    os::fd::{AsFd, AsRawFd, OwnedFd},
    path::Path,
};

use anyhow::{Context, bail};
use rustix::{
    fs::{Mode, OFlags, openat},
    io::Errno,
    mount::{
        FsMountFlags, FsOpenFlags, FsPickFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags,
        UnmountFlags, fsconfig_create, fsconfig_reconfigure, fsconfig_set_flag,
        fsconfig_set_string, fsmount, fsopen, fspick, move_mount, open_tree, unmount,
    },
};

use crate::{arguments::Arguments, root::Root};

const DIRECTORY: &str = "/proc/driver/nvidia";
const NAME: &str = "params";
/// The driver writes less than a tenth.
const LARGEST: usize = 1 << 16;
const ALLOWED: &str = "ModifyDeviceFiles: 1";
const FORBIDDEN: &str = "ModifyDeviceFiles: 0";

/// Covers the driver's parameters, if they allow it.
///
/// # Errors
/// They cannot be read or covered.
pub(crate) fn disable_modification(root: &Root, arguments: &Arguments) -> anyhow::Result<()> {
    arguments.only(&[]);
    let path = Path::new(DIRECTORY).join(NAME);
    let Some(parameters) = root.read_procfs(&path, LARGEST)? else { return Ok(()) };
    let parameters = String::from_utf8_lossy(&parameters);
    if !parameters.lines().any(|line| line == ALLOWED) {
        return Ok(());
    }
    let lines = parameters.lines().map(|line| if line == ALLOWED { FORBIDDEN } else { line });
    let content = lines.map(|line| format!("{line}\n")).collect::<String>();
    let (directory, target) = (root.directory(Path::new(DIRECTORY))?, root.found(&path)?);
    let (Some(directory), Some(target)) = (directory, target) else {
        bail!("`{}` in the container has gone meanwhile", path.display());
    };
    let covered = file_on_its_own(&content, &directory).and_then(|file| attach(&file, &target));
    covered.with_context(|| format!("cannot cover `{}` in the container", path.display()))
}

/// A mount of nothing but a file that says this, attached nowhere. On the way its file system has to
/// be somewhere: over `place`, for a moment.
fn file_on_its_own(content: &str, place: &impl AsFd) -> Result<OwnedFd, Errno> {
    let system = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_set_string(&system, "mode", "0555")?;
    fsconfig_set_string(&system, "size", "64k")?;
    fsconfig_create(&system)?;
    let flags = MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    let mount = fsmount(&system, FsMountFlags::FSMOUNT_CLOEXEC, flags)?;
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    let file = openat(&mount, NAME, flags, Mode::from_raw_mode(0o444))?;
    let written = File::from(file).write_all(content.as_bytes());
    written.map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
    let picked = fspick(&mount, "", FsPickFlags::FSPICK_EMPTY_PATH | FsPickFlags::FSPICK_CLOEXEC)?;
    fsconfig_set_flag(&picked, "ro")?;
    fsconfig_reconfigure(&picked)?;
    attach(&mount, place)?;
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let alone = open_tree(&mount, NAME, flags);
    unmount(format!("/proc/self/fd/{}", mount.as_raw_fd()), UnmountFlags::DETACH)?;
    alone
}

fn attach(mount: &impl AsFd, place: &impl AsFd) -> Result<(), Errno> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    move_mount(mount, "", place, "", flags)
}
