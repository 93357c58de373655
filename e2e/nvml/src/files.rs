//! The files of a machine that a driver and a kernel would show, below one directory: `driver` (the
//! driver's root, with `dev`), `proc` and `sys`.

pub(crate) mod capabilities;
mod dev;
mod driver;
pub(crate) mod procfs;
mod sysfs;

use std::{
    fs::{self, OpenOptions},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::Path,
};

pub(crate) use driver::LIBRARIES;

use crate::hardware::Hardware;

/// Lays out everything.
pub(crate) fn lay_out(hardware: &Hardware) -> io::Result<()> {
    driver::lay_out(&hardware.dir.join("driver"), &hardware.node.driver)?;
    dev::lay_out(&hardware.dir.join("driver/dev"), hardware)?;
    sysfs::lay_out(&hardware.dir.join("sys"), hardware)?;
    procfs::lay_out(hardware)
}

/// Writes a file with this mode, and the directories above it.
fn put(path: &Path, mode: u32, content: impl AsRef<[u8]>) -> io::Result<()> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    write(path, mode, content)
}

/// Writes a file with this mode in a directory that exists.
fn write(path: &Path, mode: u32, content: impl AsRef<[u8]>) -> io::Result<()> {
    let mut file =
        OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(path)?;
    file.write_all(content.as_ref())
}

/// Does something to a path that may be there already, or no more.
fn unless(kind: io::ErrorKind, result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == kind => Ok(()),
        other => other,
    }
}
