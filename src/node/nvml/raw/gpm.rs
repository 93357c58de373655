//! GPU performance monitoring: two samples, and what happened between them.

use std::collections::BTreeMap;

use nvml_wrapper::error::{nvml_sym, nvml_try};
use nvml_wrapper_sys::bindings as sys;

use super::{Error, Nvml, On};

/// `NVML_GPM_METRICS_GET_VERSION` and `NVML_GPM_SUPPORT_VERSION`: these two carry no size.
const VERSION: u32 = 1;

/// Room for a sample.
#[derive(Debug)]
pub(in crate::node::nvml) struct GpmBuffer(sys::nvmlGpmSample_t);

// SAFETY: NVML's handles are valid in all threads, and a sample is only used by who owns it.
unsafe impl Send for GpmBuffer {}

impl Nvml {
    pub(in crate::node::nvml) fn allocate_gpm_buffer(&self) -> Result<GpmBuffer, Error> {
        let mut sample = std::ptr::null_mut();
        call!(self, None, nvmlGpmSampleAlloc(&raw mut sample))?;
        Ok(GpmBuffer(sample))
    }

    pub(in crate::node::nvml) fn free_gpm_buffer(&self, buffer: &GpmBuffer) -> Result<(), Error> {
        call!(self, None, nvmlGpmSampleFree(buffer.0))
    }
}

impl On<'_> {
    pub(in crate::node::nvml) fn has_gpm(&self) -> Result<bool, Error> {
        let mut support = sys::nvmlGpmSupport_t { version: VERSION, isSupportedDevice: 0 };
        let handle = self.handle.0;
        call!(self.nvml, self.gpu(), nvmlGpmQueryDeviceSupport(handle, &raw mut support))?;
        Ok(support.isSupportedDevice != 0)
    }

    /// Takes a sample of the GPU, or of the GPU instance with this id.
    pub(in crate::node::nvml) fn take_gpm_sample(
        &self,
        instance: Option<u32>,
        buffer: &mut GpmBuffer,
    ) -> Result<(), Error> {
        let (handle, sample) = (self.handle.0, buffer.0);
        match instance {
            None => call!(self.nvml, self.gpu(), nvmlGpmSampleGet(handle, sample)),
            Some(id) => call!(self.nvml, self.gpu(), nvmlGpmMigSampleGet(handle, id, sample)),
        }
    }

    /// The metrics with these ids between two samples, by their ids, as far as they are told.
    pub(in crate::node::nvml) fn gpm_metrics(
        &self,
        before: &GpmBuffer,
        now: &GpmBuffer,
        ids: &[u32],
    ) -> Result<BTreeMap<u32, f64>, Error> {
        let mut asked: Box<sys::nvmlGpmMetricsGet_t> = Box::new(zeroed!());
        let metrics = asked.metrics.iter_mut().zip(ids);
        let count = metrics.map(|(metric, &id)| metric.metricId = id).count();
        asked.version = VERSION;
        asked.numMetrics = u32::try_from(count).unwrap_or_default();
        (asked.sample1, asked.sample2) = (before.0, now.0);
        call!(self.nvml, self.gpu(), nvmlGpmMetricsGet(&raw mut *asked))?;
        let told = asked.metrics[..count]
            .iter()
            .filter(|metric| nvml_try(metric.nvmlReturn).is_ok() && metric.value.is_finite());
        Ok(told.map(|metric| (metric.metricId, metric.value)).collect())
    }
}
