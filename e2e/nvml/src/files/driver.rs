//! The driver's root: libraries, programs, firmware and sockets, as an installer leaves them.

use std::{fs, io, os::unix::fs::symlink, path::Path};

use super::put;
use crate::{elf, machine::built_library};

/// Where libraries lie.
pub(crate) const LIBRARIES: &str = "usr/lib/x86_64-linux-gnu";

/// Libraries whose file ends with the driver's version, and the SONAME's ending; `ml` is the simulation.
const STUBS: [(&str, &str); 18] = [
    ("libcuda", "1"),
    ("libcudadebugger", "1"),
    ("libnvcuvid", "1"),
    ("libnvidia-allocator", "1"),
    ("libnvidia-cfg", "1"),
    ("libnvidia-encode", "1"),
    ("libnvidia-fbc", "1"),
    ("libnvidia-gpucomp", ""),
    ("libnvidia-nvvm", "4"),
    ("libnvidia-opencl", "1"),
    ("libnvidia-opticalflow", "1"),
    ("libnvidia-ptxjitcompiler", "1"),
    ("libnvidia-rtcore", ""),
    ("libnvidia-tls", ""),
    ("libnvoptix", "1"),
    ("libEGL_nvidia", "0"),
    ("libGLX_nvidia", "0"),
    ("vdpau/libvdpau_nvidia", "1"),
];

/// Libraries that are also there under the bare name that programs are linked with.
const DEVELOPMENT: [&str; 3] = ["libcuda", "libnvidia-ml", "libnvidia-opticalflow"];

const PROGRAMS: [&str; 5] = [
    "nvidia-smi",
    "nvidia-debugdump",
    "nvidia-persistenced",
    "nvidia-cuda-mps-control",
    "nvidia-cuda-mps-server",
];

/// Everything below the root but `dev`.
pub(super) fn lay_out(root: &Path, version: &str) -> io::Result<()> {
    libraries(&root.join(LIBRARIES), version)?;
    for program in PROGRAMS {
        put(&root.join("usr/bin").join(program), 0o755, "#!/bin/sh\nexit 0\n")?;
    }
    for firmware in ["gsp_ga10x.bin", "gsp_tu10x.bin"] {
        put(&root.join("lib/firmware/nvidia").join(version).join(firmware), 0o444, "")?;
    }
    for socket in ["nvidia-persistenced", "nvidia-fabricmanager"] {
        put(&root.join("run").join(socket).join("socket"), 0o666, "")?;
    }
    let icd = "libnvidia-opencl.so.1\n";
    put(&root.join("etc/OpenCL/vendors/nvidia.icd"), 0o644, icd)
}

fn libraries(dir: &Path, version: &str) -> io::Result<()> {
    fs::create_dir_all(dir.join("vdpau"))?;
    let simulation = format!("libnvidia-ml.so.{version}");
    fs::copy(built_library()?, dir.join(&simulation))?;
    symlink(&simulation, dir.join("libnvidia-ml.so.1"))?;
    for (name, abi) in STUBS {
        stub(dir, name, abi, version)?;
    }
    DEVELOPMENT
        .iter()
        .try_for_each(|name| symlink(format!("{name}.so.1"), dir.join(format!("{name}.so"))))
}

fn stub(dir: &Path, name: &str, abi: &str, version: &str) -> io::Result<()> {
    let file = format!("{name}.so.{version}");
    let (_, base) = file.rsplit_once('/').unwrap_or(("", &file));
    let soname = match abi {
        "" => base.to_owned(),
        abi => base.replace(version, abi),
    };
    put(&dir.join(&file), 0o755, elf::library(&soname))?;
    match abi {
        "" => Ok(()),
        abi => symlink(base, dir.join(format!("{name}.so.{abi}"))),
    }
}
