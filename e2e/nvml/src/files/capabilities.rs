//! `driver/nvidia/capabilities` and `driver/nvidia-caps/mig-minors` in procfs: which device node gives
//! access to which MIG instance.

use std::{
    fmt::Write as _,
    fs, io,
    io::ErrorKind::NotFound,
    path::{Path, PathBuf},
};

use super::{put, unless};
use crate::{
    hardware::{Facts, Hardware},
    numbers::{Capability, Numbers},
    state::{GpuState, Instance},
};

fn text(minor: u32, mode: u32) -> String {
    format!("DeviceFileMinor: {minor}\nDeviceFileMode: {mode}\nDeviceFileModify: 1\n")
}

fn mig_dir(dir: &Path, facts: &Facts) -> PathBuf {
    dir.join(format!("proc/driver/nvidia/capabilities/gpu{}/mig", facts.minor))
}

/// All capabilities of a driver that was just loaded.
pub(super) fn lay_out(hardware: &Hardware) -> io::Result<()> {
    let root = hardware.dir.join("proc/driver/nvidia/capabilities");
    put(&root.join("mig/config"), 0o400, text(hardware.numbers.config, 0o400))?;
    put(&root.join("mig/monitor"), 0o444, text(hardware.numbers.monitor, 0o444))?;
    for gpu in hardware.gpus.iter().filter(|gpu| gpu.facts.spec.mig.is_some()) {
        let shown = Shown::of(&hardware.dir, &gpu.facts);
        fs::create_dir_all(shown.mig)?;
        fs::create_dir_all(shown.shelf)?;
    }
    put(
        &hardware.dir.join("proc/driver/nvidia-caps/mig-minors"),
        0o444,
        minors(&hardware.numbers),
    )?;
    for gpu in &hardware.gpus {
        repair(&hardware.dir, &gpu.facts, &*gpu.state.read()?)?;
    }
    Ok(())
}

/// Every minor that there can be, whether it exists or not.
fn minors(numbers: &Numbers) -> String {
    let mut text = format!("config {}\nmonitor {}\n", numbers.config, numbers.monitor);
    for (gpu, (gi, ci), minor) in numbers.all() {
        let compute = ci.map_or(String::new(), |ci| format!("/ci{ci}"));
        // Writing to a String does not fail.
        let _ = writeln!(text, "gpu{gpu}/gi{gi}{compute}/access {minor}");
    }
    text
}

/// A GPU's instances in procfs. What is gone lies on a shelf beside the state, because a rename takes
/// microseconds where removing a directory may take the file system milliseconds.
struct Shown<'f> {
    mig: PathBuf,
    shelf: PathBuf,
    facts: &'f Facts,
}

/// Follows a change of a GPU's instances.
pub(crate) fn update(dir: &Path, facts: &Facts, old: &GpuState, new: &GpuState) -> io::Result<()> {
    if old.instances == new.instances {
        return Ok(());
    }
    let shown = Shown::of(dir, facts);
    let (before, after) = (capabilities(old), capabilities(new));
    // Backwards, so that what is within an instance goes before the instance.
    for gone in before.iter().rev().filter(|one| !after.contains(one)) {
        shown.hide(*gone)?;
    }
    after.iter().filter(|one| !before.contains(one)).try_for_each(|new| shown.show(*new))
}

/// Makes the files agree with a state, whatever a process that was killed has left.
pub(crate) fn repair(dir: &Path, facts: &Facts, state: &GpuState) -> io::Result<()> {
    let shown = Shown::of(dir, facts);
    let wanted = capabilities(state);
    let kept: Vec<_> = wanted.iter().map(|one| shown.path(*one)).collect();
    sweep(&shown.mig, &kept)?;
    for (gi, _) in wanted.iter().filter(|(_, ci)| ci.is_none()) {
        sweep(&shown.path((*gi, None)), &kept)?;
    }
    wanted
        .into_iter()
        .filter(|one| !shown.path(*one).join("access").is_file())
        .try_for_each(|one| shown.make(one))
}

/// Removes the directories of a directory, but for those to be kept.
fn sweep(dir: &Path, kept: &[PathBuf]) -> io::Result<()> {
    let Ok(entries) = fs::read_dir(dir) else { return Ok(()) };
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_dir() && !kept.contains(&entry.path()) {
            unless(NotFound, fs::remove_dir_all(entry.path()))?;
        }
    }
    Ok(())
}

/// Those of a state, each GPU instance before its compute instances.
fn capabilities(state: &GpuState) -> Vec<Capability> {
    let of = |gi: &Instance| {
        let within = gi.compute.iter().map(|ci| (gi.id, Some(ci.id)));
        [(gi.id, None)].into_iter().chain(within).collect::<Vec<_>>()
    };
    state.instances.iter().flat_map(of).collect()
}

impl<'f> Shown<'f> {
    fn of(dir: &Path, facts: &'f Facts) -> Self {
        let shelf = dir.join(format!("state/shelf/gpu{}", facts.minor));
        Self { mig: mig_dir(dir, facts), shelf, facts }
    }

    fn path(&self, (gi, ci): Capability) -> PathBuf {
        let instance = self.mig.join(format!("gi{gi}"));
        ci.map_or(instance.clone(), |ci| instance.join(format!("ci{ci}")))
    }

    fn shelved(&self, (gi, ci): Capability) -> PathBuf {
        self.shelf.join(ci.map_or(format!("gi{gi}"), |ci| format!("gi{gi}-ci{ci}")))
    }

    fn show(&self, one: Capability) -> io::Result<()> {
        let path = self.path(one);
        match fs::rename(self.shelved(one), &path) {
            Err(error) if error.kind() == NotFound => self.make(one),
            other => other,
        }
    }

    fn make(&self, one: Capability) -> io::Result<()> {
        put(&self.path(one).join("access"), 0o444, text(self.facts.minors.of(one), 0o444))
    }

    fn hide(&self, one: Capability) -> io::Result<()> {
        let path = self.path(one);
        match fs::rename(&path, self.shelved(one)) {
            Err(error) if error.kind() == NotFound && !path.exists() => Ok(()),
            Err(_) => unless(NotFound, fs::remove_dir_all(path)),
            Ok(()) => Ok(()),
        }
    }
}
