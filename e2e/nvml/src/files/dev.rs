//! Device nodes. They are made only by who may make them: all that needs them can be tested as root.

use std::{io, path::Path};

use rustix::{
    fs::{CWD, FileType, Mode, chmod, makedev, mknodat},
    io::Errno,
};

use super::procfs::{NVIDIA, NVIDIA_CAPS, NVIDIA_UVM};
use crate::hardware::Hardware;

/// The nodes that `nvidia-modprobe` makes, but for those of instances.
pub(super) fn lay_out(dev: &Path, hardware: &Hardware) -> io::Result<()> {
    std::fs::create_dir_all(dev.join("nvidia-caps"))?;
    std::fs::create_dir_all(dev.join("dri"))?;
    let mut nodes = vec![
        ("nvidiactl".to_owned(), (NVIDIA, 255), 0o666),
        ("nvidia-modeset".to_owned(), (NVIDIA, 254), 0o666),
        ("nvidia-uvm".to_owned(), (NVIDIA_UVM, 0), 0o666),
        ("nvidia-uvm-tools".to_owned(), (NVIDIA_UVM, 1), 0o666),
        ("nvidia-caps/nvidia-cap1".to_owned(), (NVIDIA_CAPS, 1), 0o400),
        ("nvidia-caps/nvidia-cap2".to_owned(), (NVIDIA_CAPS, 2), 0o444),
    ];
    for gpu in &hardware.gpus {
        let (minor, index) = (gpu.facts.minor, gpu.facts.index);
        nodes.push((format!("nvidia{minor}"), (NVIDIA, minor), 0o666));
        nodes.push((format!("dri/card{}", index + 1), (226, index + 1), 0o660));
        nodes.push((format!("dri/renderD{}", 128 + index), (226, 128 + index), 0o666));
    }
    nodes.into_iter().try_for_each(|(name, number, mode)| node(&dev.join(name), number, mode))
}

fn node(path: &Path, (major, minor): (u32, u32), mode: u32) -> io::Result<()> {
    let mode = Mode::from_raw_mode(mode);
    match mknodat(CWD, path, FileType::CharacterDevice, mode, makedev(major, minor)) {
        // Once more, as the umask has taken from it.
        Ok(()) => Ok(chmod(path, mode)?),
        Err(Errno::PERM | Errno::ACCESS) => Ok(()),
        Err(error) => Err(error.into()),
    }
}
