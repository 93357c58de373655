//! What a GPU says of its health besides field values.

use nvml_wrapper::error::{nvml_sym, nvml_try};
use nvml_wrapper_sys::bindings as sys;

use super::{Error, On, version_word};
use crate::model::health::FabricHealth;

impl On<'_> {
    /// Whether uncorrected errors of SRAM have passed the threshold of NVIDIA.
    pub(in crate::node::nvml) fn sram_threshold_exceeded(&self) -> Result<bool, Error> {
        let mut status: sys::nvmlEccSramErrorStatus_t = zeroed!();
        status.version = version_word::<sys::nvmlEccSramErrorStatus_t>(1);
        let handle = self.handle.0;
        call!(self.nvml, self.gpu(), nvmlDeviceGetSramEccErrorStatus(handle, &raw mut status))?;
        Ok(status.bThresholdExceeded != 0)
    }

    /// Whether a repair of a memory channel or a TPC waits for a reset.
    pub(in crate::node::nvml) fn repair_pending(&self) -> Result<bool, Error> {
        let mut status: sys::nvmlRepairStatus_t = zeroed!();
        status.version = version_word::<sys::nvmlRepairStatus_t>(1);
        call!(self.nvml, self.gpu(), nvmlDeviceGetRepairStatus(self.handle.0, &raw mut status))?;
        Ok(status.bChannelRepairPending != 0 || status.bTpcRepairPending != 0)
    }

    /// State, mask and, from version 3 on, summary of the NVLink fabric.
    pub(in crate::node::nvml) fn fabric_health(&self, version: u32) -> Result<FabricHealth, Error> {
        // The newest layout has room for those before.
        let mut info: sys::nvmlGpuFabricInfo_v3_t = zeroed!();
        info.version = match version {
            2 => version_word::<sys::nvmlGpuFabricInfo_v2_t>(2),
            _ => version_word::<sys::nvmlGpuFabricInfo_v3_t>(3),
        };
        call!(self.nvml, self.gpu(), nvmlDeviceGetGpuFabricInfoV(self.handle.0, &raw mut info))?;
        Ok(FabricHealth {
            state: info.state.into(),
            summary: (version > 2).then(|| info.healthSummary.into()),
            mask: info.healthMask,
        })
    }
}
