//! Event sets.

use nvml_wrapper::error::{nvml_sym, nvml_try};
use nvml_wrapper_sys::bindings as sys;

use super::{DeviceHandle, Error, Nvml, On};

/// An event set's handle.
#[derive(Debug)]
pub(in crate::node::nvml) struct EventSetHandle(sys::nvmlEventSet_t);

// SAFETY: NVML is documented to be thread-safe, and its handles are valid in all threads.
unsafe impl Send for EventSetHandle {}
// SAFETY: as above.
unsafe impl Sync for EventSetHandle {}

/// `nvmlEventData_t`.
#[derive(Clone, Copy, Debug)]
pub(in crate::node::nvml) struct Told {
    pub(in crate::node::nvml) device: DeviceHandle,
    /// One bit of `nvmlEventType…`.
    pub(in crate::node::nvml) kind: u64,
    pub(in crate::node::nvml) data: u64,
    /// All ones for none.
    pub(in crate::node::nvml) gpu_instance: u32,
    /// All ones for none.
    pub(in crate::node::nvml) compute_instance: u32,
}

impl Nvml {
    pub(in crate::node::nvml) fn create_event_set(&self) -> Result<EventSetHandle, Error> {
        let mut set = std::ptr::null_mut();
        call!(self, None, nvmlEventSetCreate(&raw mut set))?;
        Ok(EventSetHandle(set))
    }

    pub(in crate::node::nvml) fn free_event_set(&self, set: &EventSetHandle) -> Result<(), Error> {
        call!(self, None, nvmlEventSetFree(set.0))
    }

    /// Not noted as under way: it hangs because nothing happens.
    pub(in crate::node::nvml) fn wait_for_event(
        &self,
        set: &EventSetHandle,
        milliseconds: u32,
    ) -> Result<Told, Error> {
        let mut data: sys::nvmlEventData_t = zeroed!();
        answer!(self, None, nvmlEventSetWait_v2(set.0, &raw mut data, milliseconds), nvml_try)?;
        Ok(Told {
            device: DeviceHandle(data.device),
            kind: data.eventType,
            data: data.eventData,
            gpu_instance: data.gpuInstanceId,
            compute_instance: data.computeInstanceId,
        })
    }
}

impl On<'_> {
    /// Bits of `nvmlEventType…`.
    pub(in crate::node::nvml) fn supported_events(&self) -> Result<u64, Error> {
        let mut types = 0;
        let handle = self.handle.0;
        call!(self.nvml, self.gpu(), nvmlDeviceGetSupportedEventTypes(handle, &raw mut types))?;
        Ok(types)
    }

    pub(in crate::node::nvml) fn register_events(
        &self,
        types: u64,
        set: &EventSetHandle,
    ) -> Result<(), Error> {
        call!(self.nvml, self.gpu(), nvmlDeviceRegisterEvents(self.handle.0, types, set.0))
    }
}
