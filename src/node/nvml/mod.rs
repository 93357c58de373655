//! NVML: what it says about the node, and the MIG devices that it makes and destroys.
//!
//! Every call is synchronous and may hang; callers keep them off the async threads, and [`Calls`]
//! names what hangs. Here `raw` alone is unsafe.

mod calls;
mod error;
mod events;
mod fields;
mod gpm;
mod inventory;
mod links;
mod mig;
mod raw;
mod readings;
mod sample;

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    sync::Mutex,
};

pub use calls::{Call, Calls};
pub use error::Error;
pub use events::{Event, EventSet, Registered, Reported};
pub use gpm::Gpm;
pub use mig::NewInstance;
use nvml_wrapper::{bitmasks::InitFlags, error::NvmlError};

use crate::model::gpu::{DriverVersions, GpuUuid};

/// A loaded and initialised NVML. Ends with `nvmlShutdown`.
pub struct Nvml {
    library: nvml_wrapper::Nvml,
    calls: Calls,
    /// A handle by UUID: looking one up takes seconds on a busy node.
    handles: Mutex<BTreeMap<GpuUuid, raw::DeviceHandle>>,
    /// Compute instance profiles of a GPU's instance profile: fixed, and many calls to read.
    compute_profiles: Mutex<BTreeMap<(GpuUuid, u32), Vec<mig::ComputeProfile>>>,
    /// A MIG device's handle by its UUID, of each GPU as long as nobody cuts it: NVML uses them again.
    mig_handles: Mutex<BTreeMap<GpuUuid, BTreeMap<String, raw::DeviceHandle>>>,
    /// Functions that a GPU does not have, in MIG mode or out of it.
    lacking: Mutex<BTreeSet<(GpuUuid, bool, &'static str)>>,
    /// Index of the GPU and enumerator of the profiles that were warned of.
    nameless: Mutex<BTreeSet<(u32, u32)>>,
}

impl std::fmt::Debug for Nvml {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Nvml").field("calls", &self.calls).finish_non_exhaustive()
    }
}

impl Nvml {
    /// Loads the library at `path`, or the one that the dynamic linker finds.
    ///
    /// # Errors
    /// No such library, or a driver that is not loaded.
    pub fn load(path: Option<&Path>, calls: Calls) -> Result<Self, Error> {
        let entered = calls.enter("nvmlInitWithFlags", None);
        let mut builder = nvml_wrapper::Nvml::builder();
        if let Some(path) = path {
            builder.lib_path(path.as_os_str());
        }
        // A node whose GPUs are all gone is still a node to report on.
        let loaded = builder.flags(InitFlags::NO_GPUS).init();
        let library = loaded.map_err(|source| Error::new("nvmlInitWithFlags", None, source))?;
        drop(entered);
        Ok(Self {
            library,
            calls,
            handles: Mutex::default(),
            compute_profiles: Mutex::default(),
            mig_handles: Mutex::default(),
            lacking: Mutex::default(),
            nameless: Mutex::default(),
        })
    }

    /// Versions of the driver.
    ///
    /// # Errors
    /// As NVML answers.
    pub fn versions(&self) -> Result<DriverVersions, Error> {
        let driver =
            self.node_call("nvmlSystemGetDriverVersion", nvml_wrapper::Nvml::sys_driver_version)?;
        let cuda = self.node_call(
            "nvmlSystemGetCudaDriverVersion_v2",
            nvml_wrapper::Nvml::sys_cuda_driver_version,
        )?;
        let cuda = u32::try_from(cuda).unwrap_or_default();
        Ok(DriverVersions { driver, cuda: (cuda / 1000, cuda % 1000 / 10) })
    }

    /// How many GPUs there are, those that do not answer included.
    ///
    /// # Errors
    /// As NVML answers.
    pub fn count(&self) -> Result<u32, Error> {
        self.node_call("nvmlDeviceGetCount_v2", nvml_wrapper::Nvml::device_count)
    }

    fn node_call<T>(
        &self,
        function: &'static str,
        call: impl FnOnce(&nvml_wrapper::Nvml) -> Result<T, NvmlError>,
    ) -> Result<T, Error> {
        let _underway = self.calls.enter(function, None);
        call(&self.library).map_err(|source| Error::new(function, None, source))
    }
}
