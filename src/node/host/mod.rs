//! What the kernel and the driver's installation say about this machine, outside NVML.

mod document;
mod elf;
mod files;
mod nodes;
mod proc;
mod root;
mod runtime;
mod sys;
mod vgpu;

use std::{
    io,
    path::{Path, PathBuf},
};

pub use self::runtime::bypasses;
use thiserror::Error;

use crate::model::cdi::{Access, HostFiles};

/// Where to look. All are absolute paths; on a machine whose driver is installed plainly, and to a
/// process that is in no container, they are `/`, `/`, `/`, `/proc` and `/sys`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Host {
    /// The root below which the driver is installed, as this process sees it.
    pub driver_root: PathBuf,
    /// The same as the host sees it, such as `/run/nvidia/driver`.
    pub host_driver_root: PathBuf,
    /// The directory whose `dev` has the driver's nodes, as this process sees it.
    pub dev_root: PathBuf,
    /// Procfs, of the host.
    pub proc_root: PathBuf,
    /// Sysfs.
    pub sys_root: PathBuf,
}

/// Why the machine cannot be read, or lacks what a container needs.
#[derive(Debug, Error)]
pub enum Error {
    /// A file that is there cannot be read, or one that must be there is not.
    #[error("cannot read `{}`", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// A file does not say what it should.
    #[error("`{}` does not say {what}", path.display())]
    Silent {
        /// Which.
        path: PathBuf,
        /// What was looked for.
        what: String,
    },
    /// A path that a CDI file cannot hold.
    #[error("`{}` is not UTF-8: name the driver root by a path that is", path.display())]
    NotUtf8 {
        /// Which.
        path: PathBuf,
    },
    /// The driver's libraries are not below the driver root.
    #[error(
        "no `libcuda.so.{version}` below `{}`: install the driver's libraries in the version of its \
         kernel module, or set `--driver-root` to where they are",
        root.display()
    )]
    NoLibraries {
        /// Version of the driver that is loaded.
        version: String,
        /// Where was searched.
        root: PathBuf,
    },
    /// A device that containers need is known neither as a node nor to the kernel.
    #[error(
        "no `{node}`, and no `{module}` in `{}`: load the kernel module with `modprobe {module}`",
        devices.display()
    )]
    NoNode {
        /// The node.
        node: String,
        /// The kernel module that owns it.
        module: &'static str,
        /// The list of the kernel.
        devices: PathBuf,
    },
    /// A MIG instance that the kernel does not list, gone since it was looked up.
    #[error("the driver lists no capability for `{capability}` below `{}`", directory.display())]
    NoCapability {
        /// In the driver's words, such as `gpu0/gi1/ci0/access`.
        capability: String,
        /// The driver's directory in procfs.
        directory: PathBuf,
    },
}

impl Error {
    fn read(path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Read { path, source }
    }
}

impl Host {
    /// NVML's library below the driver root, as this process sees it.
    pub fn library(&self) -> Option<PathBuf> {
        files::nvml(&self.root().ok()?).ok().flatten()
    }

    /// What containers need besides the nodes of their GPUs. The files stay the same until the driver
    /// is loaded anew, take some milliseconds to find, and so are worth keeping.
    pub fn files(&self, driver_version: &str) -> Result<HostFiles, Error> {
        let installed = files::discover(&self.root()?, &self.firmware_dirs()?, driver_version)?;
        self.refreshed(&installed)
    }

    /// The same files with what comes and goes while a driver is loaded, looked up now: control nodes,
    /// and the sockets of services. To mount a socket that is gone would stop every container.
    pub fn refreshed(&self, known: &HostFiles) -> Result<HostFiles, Error> {
        let mut now = HostFiles { nodes: self.control_nodes()?, ..known.clone() };
        now.files.retain(|file| file.access != Access::Socket);
        now.files.extend(files::sockets(&self.root()?)?);
        files::sort(&mut now.files);
        Ok(now)
    }

    fn root(&self) -> Result<root::Root<'_>, Error> {
        root::Root::new(&self.driver_root, &self.host_driver_root)
    }
}

/// A path as text, which is what JSON can hold.
fn utf8(path: &Path) -> Result<&str, Error> {
    path.to_str().ok_or_else(|| Error::NotUtf8 { path: path.to_owned() })
}

/// `None` where there is no such file.
fn if_there<T>(answer: io::Result<T>) -> io::Result<Option<T>> {
    match answer {
        Ok(found) => Ok(Some(found)),
        Err(error) => match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => Ok(None),
            _ => Err(error),
        },
    }
}

#[cfg(test)]
mod tests;
