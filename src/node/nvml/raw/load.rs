//! What a GPU says of its load, where nvml-wrapper leaves something out.

use nvml_wrapper::error::{nvml_sym, nvml_try};
use nvml_wrapper_sys::bindings as sys;

use super::{Error, On, first};

impl On<'_> {
    /// All bits, also those that are newer than the crate's.
    pub(in crate::node::nvml) fn clocks_event_reasons(&self) -> Result<u64, Error> {
        let mut reasons = 0;
        let handle = self.handle.0;
        call!(
            self.nvml,
            self.gpu(),
            nvmlDeviceGetCurrentClocksEventReasons(handle, &raw mut reasons)
        )?;
        Ok(reasons)
    }

    /// The same by the name that drivers before 535 have.
    pub(in crate::node::nvml) fn clocks_throttle_reasons(&self) -> Result<u64, Error> {
        let mut reasons = 0;
        let handle = self.handle.0;
        call!(
            self.nvml,
            self.gpu(),
            nvmlDeviceGetCurrentClocksThrottleReasons(handle, &raw mut reasons)
        )?;
        Ok(reasons)
    }

    /// Whether any vGPU licence is held; `None` where none is needed.
    pub(in crate::node::nvml) fn vgpu_licensed(&self) -> Result<Option<bool>, Error> {
        let mut features: sys::nvmlGridLicensableFeatures_t = zeroed!();
        let handle = self.handle.0;
        call!(
            self.nvml,
            self.gpu(),
            nvmlDeviceGetGridLicensableFeatures_v4(handle, &raw mut features)
        )?;
        let listed = first(&features.gridLicensableFeatures, features.licensableFeaturesCount);
        let licensed = listed.iter().any(|feature| feature.featureState != 0);
        Ok((features.isGridLicenseSupported != 0).then_some(licensed))
    }
}
