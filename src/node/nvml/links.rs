//! What joins a GPU to others.

use nvml_wrapper_sys::bindings as sys;

use super::{Error, Nvml, inventory::sysfs_address, raw::On};
use crate::model::{
    gpu::{Gpu, GpuUuid},
    topology::{NvLink, PcieLevel, Surroundings},
};

impl Nvml {
    /// The NVLinks of a GPU and its way to each of `others`. What cannot be read is not there: that only
    /// makes a choice of GPUs a worse one.
    pub fn surroundings(&self, gpu: &Gpu, others: &[Gpu]) -> Surroundings {
        let (uuid, pci) = (gpu.uuid.clone(), gpu.pci.clone());
        let (mut pcie, mut nvlinks) = Default::default();
        if let Some(on) = told(self.on(gpu)) {
            pcie = others.iter().filter_map(|other| self.way(on, other)).collect();
            nvlinks = (0..sys::NVML_NVLINK_MAX_LINKS).filter_map(|link| on.nvlink(link)).collect();
        }
        Surroundings { uuid, pci, pcie, nvlinks }
    }

    fn way(&self, on: On<'_>, other: &Gpu) -> Option<(GpuUuid, PcieLevel)> {
        let level = told(on.common_ancestor(told(self.on(other))?.handle))?;
        Some((other.uuid.clone(), pcie_level(level)?))
    }
}

impl On<'_> {
    /// Where an NVLink leads that is up.
    fn nvlink(&self, link: u32) -> Option<NvLink> {
        if !told(self.nvlink_is_up(link))? {
            return None;
        }
        match told(self.nvlink_leads_to(link))? {
            sys::nvmlIntNvLinkDeviceType_enum_NVML_NVLINK_DEVICE_TYPE_GPU => {
                Some(NvLink::Gpu(sysfs_address(&told(self.nvlink_end(link))?)))
            }
            sys::nvmlIntNvLinkDeviceType_enum_NVML_NVLINK_DEVICE_TYPE_SWITCH => {
                Some(NvLink::Switch)
            }
            _ => None,
        }
    }
}

fn told<T>(answer: Result<T, Error>) -> Option<T> {
    let said = |error: &Error| {
        // A GPU without such a link says so of each.
        if !error.not_supported() && !error.invalid_argument() {
            tracing::debug!(%error, "what joins GPUs is not known");
        }
    };
    answer.inspect_err(said).ok()
}

fn pcie_level(level: u32) -> Option<PcieLevel> {
    match level {
        sys::nvmlGpuLevel_enum_NVML_TOPOLOGY_INTERNAL => Some(PcieLevel::Internal),
        sys::nvmlGpuLevel_enum_NVML_TOPOLOGY_SINGLE => Some(PcieLevel::Single),
        sys::nvmlGpuLevel_enum_NVML_TOPOLOGY_MULTIPLE => Some(PcieLevel::Multiple),
        sys::nvmlGpuLevel_enum_NVML_TOPOLOGY_HOSTBRIDGE => Some(PcieLevel::HostBridge),
        sys::nvmlGpuLevel_enum_NVML_TOPOLOGY_NODE => Some(PcieLevel::Node),
        sys::nvmlGpuLevel_enum_NVML_TOPOLOGY_SYSTEM => Some(PcieLevel::System),
        _ => None,
    }
}
