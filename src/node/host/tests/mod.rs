//! A machine to look at, in a directory of its own; what is tested with it is in the files beside.

mod files;
mod kernel;
mod nodes;

use std::{
    fs::{self, File},
    io::Write,
    os::unix::fs::symlink,
};

use rustix::fs::{CWD, FileType, Mode, makedev, mknodat};
use tempfile::TempDir;

use super::*;
use crate::model::cdi::DeviceNode;

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

/// The least of an ELF file that has a SONAME: mapped elsewhere than it lies, as real ones are.
fn shared_library(soname: &str) -> Vec<u8> {
    const ADDRESS: u64 = 0x1_0000;
    let (dynamic, strings) = (64 + 2 * 56, 64 + 2 * 56 + 3 * 16);
    let size = strings + 1 + soname.len() as u64 + 1;
    let header = [&64u64.to_le_bytes()[..], &[0; 14], &56u16.to_le_bytes(), &2u16.to_le_bytes()];
    let segment = |kind: u32, offset: u64, size: u64| {
        let numbers = [offset, ADDRESS + offset, 0, size, size, 8];
        let kind = [kind.to_le_bytes(), [0; 4]].concat();
        [kind, numbers.iter().flat_map(|number| number.to_le_bytes()).collect()].concat()
    };
    let entries = [(5, ADDRESS + strings), (14, 1), (0u64, 0u64)];
    let entries = entries.iter().flat_map(|(tag, value)| [tag.to_le_bytes(), value.to_le_bytes()]);
    [
        b"\x7fELF\x02\x01\x01".to_vec(),
        vec![0; 25],
        header.concat(),
        vec![0; 6],
        segment(1, 0, size),
        segment(2, dynamic, 48),
        entries.flatten().collect(),
        [b"\0", soname.as_bytes(), b"\0"].concat(),
    ]
    .concat()
}
