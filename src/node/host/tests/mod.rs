//! A machine to look at, in a directory of its own; what is tested with it is in the files beside.

mod files;
mod kernel;
mod nodes;
mod runtime;

use std::{
    fs::{self, File},
    io::Write,
    os::unix::fs::symlink,
};

use rustix::fs::{CWD, FileType, Mode, makedev, mknodat};
use tempfile::TempDir;

use super::*;
use crate::model::{cdi::DeviceNode, fixtures::libraries::shared_library};

const VERSION: &str = "550.163.01";
const PCI: &str = "0000:1b:00.0";
const DEVICES: &str = "Character devices:
  1 mem
195 nvidia
195 nvidia-modeset
195 nvidiactl
234 nvidia-caps
510 nvidia-uvm

Block devices:
  7 nvidia-none
";

/// A machine in a directory: a driver root, procfs and sysfs.
struct Machine {
    directory: TempDir,
    host: Host,
}

impl Machine {
    /// A kernel that has the driver loaded, and nothing else.
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        let host = Host {
            driver_root: at("root"),
            host_driver_root: "/run/nvidia/driver".into(),
            dev_root: at("root"),
            proc_root: at("proc"),
            sys_root: at("sys"),
        };
        let machine = Self { directory, host };
        machine.write("proc/devices", DEVICES);
        machine
    }

    /// With the libraries that no container can do without.
    fn with_driver() -> Self {
        let machine = Self::new();
        machine.library("usr/lib64/libcuda.so.550.163.01", "libcuda.so.1");
        machine.link("libcuda.so.550.163.01", "usr/lib64/libcuda.so.1");
        machine
    }

    fn path(&self, path: &str) -> PathBuf {
        let path = self.directory.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        path
    }

    fn write(&self, path: &str, content: impl AsRef<[u8]>) {
        File::create(self.path(path)).unwrap().write_all(content.as_ref()).unwrap();
    }

    fn library(&self, path: &str, soname: &str) {
        self.write(&format!("root/{path}"), shared_library(soname));
    }

    fn link(&self, target: &str, path: &str) {
        symlink(target, self.path(&format!("root/{path}"))).unwrap();
    }

    /// Makes a device node; `false` for those who may not.
    fn character_device(&self, path: &str, mode: u32, number: (u32, u32)) -> bool {
        let path = self.path(path);
        let device = makedev(number.0, number.1);
        let made = mknodat(CWD, &path, FileType::CharacterDevice, Mode::empty(), device);
        made.and_then(|()| rustix::fs::chmod(&path, Mode::from_raw_mode(mode))).is_ok()
    }

    fn files(&self) -> HostFiles {
        self.host.files(VERSION).unwrap()
    }

    /// Mounts as `container path <- host path`.
    fn mounts(&self) -> Vec<String> {
        let files = self.files().files.into_iter();
        files.map(|file| format!("{} <- {}", file.container_path, file.host_path)).collect()
    }

    fn links(&self) -> Vec<String> {
        let links = self.files().library_links.into_iter();
        links.map(|link| format!("{} -> {}", link.path, link.target)).collect()
    }
}

fn node(path: &str, major: u32, minor: u32) -> DeviceNode {
    DeviceNode {
        path: path.to_owned(),
        host_path: Some(format!("/run/nvidia/driver{path}")),
        major,
        minor,
        mode: Some(0o666),
        ..DeviceNode::default()
    }
}
