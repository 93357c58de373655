//! Device nodes. They are made only by who may make them: all that needs them can be tested as root.

use std::{io, path::Path};

use rustix::{
    fs::{CWD, FileType, Mode, chmod, makedev, mknodat},
    io::Errno,
};

use crate::{
    hardware::{Facts, Hardware},
    numbers::{CONTROL, Numbers},
};

/// The name below `dev`, the number, and the mode.
type Node = (String, (u32, u32), u32);

/// The nodes that `nvidia-modprobe` makes, but for those of instances.
pub(super) fn lay_out(dev: &Path, hardware: &Hardware) -> io::Result<()> {
    std::fs::create_dir_all(dev.join("nvidia-caps"))?;
    let mut nodes = of_driver(&hardware.numbers);
    for gpu in &hardware.gpus {
        let minor = gpu.facts.minor;
        nodes.push((format!("nvidia{minor}"), (hardware.numbers.nvidia, minor), 0o666));
    }
    if !hardware.node.for_containers {
        std::fs::create_dir_all(dev.join("dri"))?;
        let modeset = (hardware.numbers.nvidia, 254);
        nodes.push(("nvidia-modeset".to_owned(), modeset, 0o666));
        nodes.extend(hardware.gpus.iter().flat_map(|gpu| of_display(&gpu.facts)));
    }
    nodes.into_iter().try_for_each(|(name, number, mode)| node(&dev.join(name), number, mode))
}

fn of_driver(numbers: &Numbers) -> Vec<Node> {
    let Numbers { nvidia, uvm, caps, config, monitor, .. } = *numbers;
    vec![
        ("nvidiactl".to_owned(), (nvidia, CONTROL), 0o666),
        ("nvidia-uvm".to_owned(), (uvm, 0), 0o666),
        ("nvidia-uvm-tools".to_owned(), (uvm, 1), 0o666),
        (format!("nvidia-caps/nvidia-cap{config}"), (caps, config), 0o400),
        (format!("nvidia-caps/nvidia-cap{monitor}"), (caps, monitor), 0o444),
    ]
}

/// DRM counts GPUs by themselves, and there is another one on the board.
fn of_display(facts: &Facts) -> [Node; 2] {
    let index = facts.index;
    [
        (format!("dri/card{}", index + 1), (226, index + 1), 0o660),
        (format!("dri/renderD{}", 128 + index), (226, 128 + index), 0o666),
    ]
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
