//! A machine from outside: what an administrator, the world and a test do to it.

mod health;
mod processes;

use std::{
    env, io,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use crate::{
    code::Code,
    fault::{Fault, Faults},
    files::procfs,
    hardware::{Facts, Gpu, Hardware, new_boot_id},
    log, mig,
    node::NodeDescription,
    reading::Readings,
    state::{Driver, GpuState},
};

/// A simulated machine. Every process that loads its library sees what is done here.
pub struct Machine {
    hardware: Hardware,
}

/// All of a machine's state, for comparison as a whole.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineSnapshot {
    /// Whether the driver is loaded.
    pub driver_loaded: bool,
    /// The boot.
    pub boot_id: String,
    /// In the order of their index.
    pub gpus: Vec<GpuSnapshot>,
}

/// A GPU's state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GpuSnapshot {
    /// `GPU-…`.
    pub uuid: String,
    /// MIG mode now and after the next reset; absent where there is no MIG.
    pub mig: Option<(bool, bool)>,
    /// Whether it fell off the bus.
    pub lost: bool,
    /// In the order of their ids.
    pub instances: Vec<InstanceSnapshot>,
    /// Processes that run on it.
    pub pids: Vec<u32>,
    /// What it says of its health.
    pub readings: Readings,
}

/// A GPU instance.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InstanceSnapshot {
    /// NVML's id.
    pub id: u32,
    /// Profile id.
    pub profile: u32,
    /// First memory slice.
    pub start: u32,
    /// Number of memory slices.
    pub size: u32,
    /// In the order of their ids.
    pub compute: Vec<ComputeSnapshot>,
}

/// A compute instance.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ComputeSnapshot {
    /// NVML's id in its GPU instance.
    pub id: u32,
    /// Profile id.
    pub profile: u32,
    /// `MIG-…`, of the MIG device that it is.
    pub uuid: String,
}

impl Machine {
    /// Makes a machine below a directory, which it creates, with its driver loaded.
    ///
    /// # Errors
    /// Files that cannot be written; no built library beside this program; no GPU or more than 16.
    pub fn create(dir: &Path, node: &NodeDescription) -> io::Result<Self> {
        Ok(Self { hardware: Hardware::create(dir, node)? })
    }

    /// A machine that was made before, by any process.
    ///
    /// # Errors
    /// The directory holds no machine.
    pub fn open(dir: &Path) -> io::Result<Self> {
        Ok(Self { hardware: Hardware::open(&dir.canonicalize()?)? })
    }

    /// What it was made from.
    pub fn node(&self) -> &NodeDescription {
        &self.hardware.node
    }

    /// Its directory.
    pub fn dir(&self) -> &Path {
        &self.hardware.dir
    }

    /// The library to load: `libnvidia-ml.so.1` in the driver's root.
    pub fn library(&self) -> PathBuf {
        self.driver_root().join(crate::files::LIBRARIES).join("libnvidia-ml.so.1")
    }

    /// The root of the driver's files, with `dev` below it.
    pub fn driver_root(&self) -> PathBuf {
        self.dir().join("driver")
    }

    /// What stands in for `/proc`.
    pub fn proc_root(&self) -> PathBuf {
        self.dir().join("proc")
    }

    /// What stands in for `/sys`.
    pub fn sys_root(&self) -> PathBuf {
        self.dir().join("sys")
    }

    /// The root below which `dev` stands in for `/dev`; it has nodes only if root made it.
    pub fn dev_root(&self) -> PathBuf {
        self.driver_root()
    }

    /// Switches the machine off and on: what is cut and who ran is gone, with MIG mode on Hopper and
    /// later; there is a new boot id. Processes that have the library initialised speak to a driver
    /// that is gone.
    pub fn reboot(&self) -> io::Result<()> {
        let boot_id = new_boot_id()?;
        self.set_driver(|driver| {
            *driver = Driver::booted(driver.loads + 1, boot_id);
        })
    }

    /// Unloads the kernel driver, with force: the same without a new boot.
    pub fn unload_driver(&self) -> io::Result<()> {
        self.set_driver(|driver| driver.loaded = false)
    }

    /// Loads it again.
    pub fn load_driver(&self) -> io::Result<()> {
        self.set_driver(|driver| {
            driver.loads += u64::from(!driver.loaded);
            driver.loaded = true;
        })
    }

    fn set_driver(&self, change: impl FnOnce(&mut Driver)) -> io::Result<()> {
        let changed = |driver: &mut Driver| {
            let before = driver.clone();
            change(driver);
            Ok::<_, io::Error>(*driver != before)
        };
        let begin_log = |old: &Driver, new: &Driver| match old.boot_id == new.boot_id {
            true => Ok(()),
            false => log::begin(self.dir()),
        };
        if !self.hardware.driver.update(changed, begin_log)? {
            return Ok(());
        }
        for gpu in &self.hardware.gpus {
            let unload = |state: &mut GpuState| {
                state.unload(gpu.facts.spec);
                Ok::<_, io::Error>(())
            };
            gpu.state.update(unload, |_, _| Ok(()))?;
        }
        procfs::lay_out(&self.hardware)
    }

    /// Resets a GPU, as `nvidia-smi --gpu-reset` does: what is cut and who ran is gone, a MIG mode that
    /// waited becomes real, a lost GPU is back, no recovery action is asked for and volatile ECC counts
    /// begin anew.
    pub fn reset_gpu(&self, gpu: usize) -> io::Result<()> {
        self.change(gpu, |facts, state| {
            state.reset(facts.spec);
            Ok(())
        })
    }

    /// Takes a GPU off the bus: every call on it answers that it is lost. Nothing else says so: a driver
    /// would with event 0x4000 ([`Self::notice`]) and with XID 79, before R590 in the kernel's log only
    /// ([`Self::logged_xid`]).
    pub fn lose_gpu(&self, gpu: usize) -> io::Result<()> {
        self.change(gpu, |_, state| {
            state.lost = true;
            Ok(())
        })
    }

    /// Puts it back as it was.
    pub fn find_gpu(&self, gpu: usize) -> io::Result<()> {
        self.change(gpu, |_, state| {
            state.lost = false;
            Ok(())
        })
    }

    /// Cuts a GPU as an administrator would, with the compute instance that fills it or without.
    ///
    /// # Errors
    /// What NVML would answer, as the error's text.
    pub fn create_instance(
        &self,
        gpu: usize,
        profile_id: u32,
        start: u32,
        with_compute: bool,
    ) -> io::Result<InstanceSnapshot> {
        self.command(gpu, |facts, state| {
            let id = mig::create(facts, state, profile_id, Some(start))?;
            let serial = state.serials;
            if with_compute {
                let profile = facts.mig()?.by_id(profile_id).and_then(|profile| profile.filling());
                let filling = profile.ok_or(Code::INVALID_ARGUMENT)?;
                mig::create_compute(facts, state, serial, filling.id, None)?;
            }
            state.instance(id).map(InstanceSnapshot::of).ok_or(Code::UNKNOWN)
        })
    }

    /// Adds a compute instance of this many slices to the instance that begins at a memory slice.
    ///
    /// # Errors
    /// What NVML would answer, as the error's text: not found, or no room.
    pub fn create_compute(&self, gpu: usize, start: u32, slices: u32) -> io::Result<()> {
        self.command(gpu, |facts, state| {
            let found = state.instances.iter().find(|gi| gi.start == start);
            let found = found.ok_or(Code::NOT_FOUND)?;
            let kinds = facts.mig()?.by_id(found.profile).ok_or(Code::UNKNOWN)?.compute_profiles();
            let kind = kinds.iter().find(|kind| kind.slices == slices);
            let kind = kind.ok_or(Code::INVALID_ARGUMENT)?.id;
            mig::create_compute(facts, state, found.serial, kind, None).map(|_| ())
        })
    }

    /// Destroys the instance that begins at a memory slice, and what computes in it.
    ///
    /// # Errors
    /// What NVML would answer, as the error's text: not found, or in use by a process.
    pub fn destroy_instance(&self, gpu: usize, start: u32) -> io::Result<()> {
        self.command(gpu, |_, state| {
            let found = state.instances.iter().find(|gi| gi.start == start);
            let found = found.ok_or(Code::NOT_FOUND)?.clone();
            for compute in &found.compute {
                mig::destroy_compute(state, compute.serial)?;
            }
            mig::destroy(state, found.serial)
        })
    }

    /// Switches MIG mode, as `nvidia-smi -mig` does.
    ///
    /// # Errors
    /// What NVML would answer, as the error's text. Before Hopper, with processes on the GPU, the mode
    /// then waits for a reset.
    pub fn set_mig_mode(&self, gpu: usize, on: bool) -> io::Result<()> {
        Ok(self.command(gpu, |facts, state| mig::set_mode(facts, state, on))??)
    }

    /// Everything as it is now.
    pub fn snapshot(&self) -> io::Result<MachineSnapshot> {
        let driver = self.hardware.driver.read()?;
        let gpus = self.hardware.gpus.iter().map(GpuSnapshot::of);
        Ok(MachineSnapshot {
            driver_loaded: driver.loaded,
            boot_id: driver.boot_id.clone(),
            gpus: gpus.collect::<io::Result<_>>()?,
        })
    }

    /// Lets something go wrong at calls to come, beside what is to go wrong already, and counts them.
    pub fn inject(&self, fault: Fault) -> io::Result<()> {
        self.set_faults(|faults| faults.arm(fault))
    }

    /// Ends all faults, lets hanging calls go on, and stops counting; the count stays readable.
    pub fn clear_faults(&self) -> io::Result<()> {
        self.set_faults(Faults::clear)
    }

    /// Counts the calls of all processes from here. A call before `nvmlInit` is none.
    pub fn count_calls(&self) -> io::Result<()> {
        self.set_faults(Faults::count)
    }

    /// Calls since [`Self::count_calls`], or since the first fault.
    pub fn calls(&self) -> io::Result<u64> {
        Ok(self.hardware.faults.read()?.calls)
    }

    fn set_faults(&self, change: impl FnOnce(&mut Faults)) -> io::Result<()> {
        let change = |faults: &mut Faults| {
            change(faults);
            Ok(())
        };
        self.hardware.faults.update(change, |_, _| Ok(()))
    }

    /// A change that needs the driver and the GPU, whoever asks for it.
    fn command<R>(
        &self,
        gpu: usize,
        change: impl FnOnce(&Facts, &mut GpuState) -> Result<R, Code>,
    ) -> io::Result<R> {
        if !self.hardware.driver.read()?.loaded {
            return Err(Code::DRIVER_NOT_LOADED.into());
        }
        let present = |facts: &Facts, state: &mut GpuState| match state.lost {
            true => Err(Code::GPU_IS_LOST),
            false => change(facts, state),
        };
        self.change(gpu, present)
    }

    fn change<R>(
        &self,
        gpu: usize,
        change: impl FnOnce(&Facts, &mut GpuState) -> Result<R, Code>,
    ) -> io::Result<R> {
        Ok(self.hardware.change(self.hardware.gpu(gpu)?, change)?)
    }
}

impl GpuSnapshot {
    fn of(gpu: &Gpu) -> io::Result<Self> {
        let state = gpu.state.read()?;
        Ok(Self {
            uuid: gpu.facts.uuid.clone(),
            mig: gpu.facts.spec.mig.as_ref().map(|_| state.mig),
            lost: state.lost,
            instances: state.instances.iter().map(InstanceSnapshot::of).collect(),
            pids: state.processes.iter().map(|process| process.pid).collect(),
            readings: state.readings.clone(),
        })
    }
}

impl InstanceSnapshot {
    fn of(gi: &crate::state::Instance) -> Self {
        let compute = gi.compute.iter().map(|ci| ComputeSnapshot {
            id: ci.id,
            profile: ci.profile,
            uuid: ci.uuid.clone(),
        });
        Self {
            id: gi.id,
            profile: gi.profile,
            start: gi.start,
            size: gi.size,
            compute: compute.collect(),
        }
    }
}

/// The shared library that cargo built: `libkerf_nvml.so` in `deps` beside a program of this workspace,
/// be it a test, a bench, an example or a binary.
///
/// # Errors
/// It is not there, because nothing that depends on `kerf-nvml` was built.
pub fn built_library() -> io::Result<PathBuf> {
    let program = env::current_exe()?;
    let places = program.ancestors().skip(1).take(3);
    let mut candidates = places.flat_map(|dir| [dir.join("deps").join(LIBRARY), dir.join(LIBRARY)]);
    candidates.find(|path| path.is_file()).ok_or_else(|| {
        let near = program.display();
        io::Error::other(format!(
            "no `{LIBRARY}` near `{near}`: build with `cargo build -p kerf-nvml`"
        ))
    })
}

const LIBRARY: &str = "libkerf_nvml.so";
