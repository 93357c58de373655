//! A machine as seen from inside a container: read only, and no more of it than the container's device
//! nodes open.
//!
//! Container runtimes mount the files of a driver that are found by their names, each by itself. So a
//! machine for containers has its own files there too, named like firmware: second names of the same
//! files, which are only ever written in place, so that inside and outside read the same.

use std::{
    fs::{self, Permissions},
    io,
    os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::Arc,
};

use rustix::fs::makedev;

use crate::{
    code::Code,
    hardware::{Facts, Gpu, Hardware, MARKER, state_file},
    numbers,
    state::GpuState,
};

/// What a machine's description is called among its files.
pub(crate) const DESCRIPTION: &str = "machine";

/// Where firmware lies, from the driver's root and from that of a container.
pub(crate) fn firmware(version: &str) -> PathBuf {
    Path::new("lib/firmware/nvidia").join(version)
}

/// The name in a container of one of a machine's files.
pub(crate) fn shared_name(file: &str) -> String {
    format!("gsp_kerf_{file}.bin")
}

/// Gives a machine's files their names among the driver's.
pub(crate) fn share(hardware: &Hardware) -> io::Result<()> {
    let firmware = hardware.dir.join("driver").join(firmware(&hardware.node.driver));
    let gpus = (0..hardware.gpus.len()).map(|index| format!("gpu{index}"));
    let states = ["driver", "faults", "events"].map(str::to_owned).into_iter().chain(gpus);
    for state in states {
        share_file(&state_file(&hardware.dir, &state), &firmware.join(shared_name(&state)))?;
    }
    share_file(&hardware.dir.join(MARKER), &firmware.join(shared_name(DESCRIPTION)))
}

fn share_file(file: &Path, name: &Path) -> io::Result<()> {
    // Nobody knows as which user a container's processes run.
    fs::set_permissions(file, Permissions::from_mode(0o644))?;
    fs::hard_link(file, name)
}

/// The directory of a machine's files in the container that this library was mounted into.
pub(crate) fn around(library: &Path) -> Option<PathBuf> {
    let (_, version) = library.file_name()?.to_str()?.split_once(".so.")?;
    let dir = Path::new("/").join(firmware(version));
    dir.join(shared_name(DESCRIPTION)).is_file().then_some(dir)
}

impl Hardware {
    /// As NVML answers where the driver's control node is missing.
    pub(crate) fn reachable(&self) -> Result<(), Code> {
        let control = || opens("nvidiactl", (self.numbers.nvidia, numbers::CONTROL));
        if !self.guest || control() { Ok(()) } else { Err(Code::DRIVER_NOT_LOADED) }
    }

    /// What only an administrator of the whole machine may do.
    pub(crate) fn allowed(&self) -> Result<(), Code> {
        if self.guest { Err(Code::NO_PERMISSION) } else { Ok(()) }
    }

    /// The GPUs that there are for this process, in their order.
    pub(crate) fn seen(&self) -> impl Iterator<Item = &Gpu> {
        self.gpus.iter().filter(|gpu| self.sees(&gpu.facts))
    }

    /// Whether a GPU is there for this process.
    pub(crate) fn sees(&self, facts: &Facts) -> bool {
        let node = || opens(&format!("nvidia{}", facts.minor), (self.numbers.nvidia, facts.minor));
        !self.guest || node()
    }

    /// A GPU's state now, as far as it is there for this process.
    pub(crate) fn state(&self, gpu: &Gpu) -> io::Result<Arc<GpuState>> {
        let state = gpu.state.read()?;
        if !self.guest || !state.mig.0 {
            return Ok(state);
        }
        Ok(Arc::new(self.given(&gpu.facts, &state)))
    }

    /// What capabilities give of a GPU in MIG mode. A GPU instance is nothing to a program without one
    /// of its compute instances.
    fn given(&self, facts: &Facts, whole: &GpuState) -> GpuState {
        let capability = |one| {
            let minor = facts.minors.of(one);
            opens(&format!("nvidia-caps/nvidia-cap{minor}"), (self.numbers.caps, minor))
        };
        let mut given = whole.clone();
        for gi in &mut given.instances {
            let id = gi.id;
            let opened = capability((id, None));
            gi.compute.retain(|ci| opened && capability((id, Some(ci.id))));
        }
        given.instances.retain(|gi| !gi.compute.is_empty());
        let here: Vec<_> = given.devices().map(|(gi, ci)| Some((gi.id, ci.id))).collect();
        given.processes.retain(|process| here.contains(&process.instance));
        given
    }
}

/// Whether `/dev` has a node of this name with this number.
fn opens(name: &str, (major, minor): (u32, u32)) -> bool {
    let node = fs::metadata(Path::new("/dev").join(name));
    node.is_ok_and(|node| node.file_type().is_char_device() && node.rdev() == makedev(major, minor))
}
