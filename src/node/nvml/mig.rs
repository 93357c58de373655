//! MIG: what is carved on a GPU, carving and destroying.

use std::sync::PoisonError;

use super::{
    Error, Nvml,
    raw::{ComputeInstanceHandle, GpuInstanceHandle, On},
};
use crate::model::gpu::{ComputeInstance, Gpu, GpuInstance, GpuUuid, Mig, Placement, Profile};

/// No GPU has more enumerators of compute instance profiles; each tells its own end.
const MOST_COMPUTE_PROFILES: u32 = 64;

/// A GPU instance that was just made.
pub struct NewInstance<'n> {
    on: On<'n>,
    handle: GpuInstanceHandle,
    gpu: GpuUuid,
}

/// A kind of compute instance that a GPU instance can hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ComputeProfile {
    id: u32,
    slices: u32,
}

impl Nvml {
    pub(super) fn on<'n>(&'n self, gpu: &Gpu) -> Result<On<'n>, Error> {
        let handles = || self.handles.lock().unwrap_or_else(PoisonError::into_inner);
        let known = handles().get(&gpu.uuid).copied();
        let handle = match known {
            Some(handle) => handle,
            None => self.look_up(gpu)?,
        };
        Ok(On { nvml: self, index: gpu.index, handle })
    }

    fn look_up(&self, gpu: &Gpu) -> Result<super::raw::DeviceHandle, Error> {
        let function = "nvmlDeviceGetHandleByUUID";
        let _underway = self.calls.enter(function, Some(gpu.index));
        let device = self.library.device_by_uuid(gpu.uuid.0.as_str());
        let device = device.map_err(|source| Error::new(function, Some(gpu.index), source))?;
        let handle = super::raw::DeviceHandle::of(&device);
        let mut handles = self.handles.lock().unwrap_or_else(PoisonError::into_inner);
        handles.insert(gpu.uuid.clone(), handle);
        Ok(handle)
    }

    /// Mode and instances as they are now; the profiles of a GPU do not change. `None` for a GPU
    /// without MIG.
    ///
    /// # Errors
    /// As NVML answers.
    pub fn mig_now(&self, gpu: &Gpu) -> Result<Option<Mig>, Error> {
        let Some(mig) = &gpu.mig else { return Ok(None) };
        let on = self.on(gpu)?;
        let (enabled, pending) = on.mig_mode()?;
        let instances = if enabled { on.instances(&gpu.uuid, &mig.profiles)? } else { Vec::new() };
        Ok(Some(Mig { enabled, pending, instances, ..mig.clone() }))
    }

    /// The minor number now; a switch of MIG mode may change it.
    ///
    /// # Errors
    /// As NVML answers.
    pub fn minor(&self, gpu: &Gpu) -> Result<u32, Error> {
        let on = self.on(gpu)?;
        let function = "nvmlDeviceGetMinorNumber";
        let _underway = self.calls.enter(function, Some(gpu.index));
        let minor = on.handle.device(self).minor_number();
        minor.map_err(|source| Error::new(function, Some(gpu.index), source))
    }

    /// Switches MIG mode. `false` if the GPU took it only as pending, until a reset or until nobody
    /// uses it (`nvmlDeviceSetMigMode`'s activation status).
    ///
    /// # Errors
    /// As NVML answers; also when something stands in the way.
    pub fn set_mig_mode(&self, gpu: &Gpu, enabled: bool) -> Result<bool, Error> {
        let on = self.on(gpu)?;
        self.forget_mig_devices(gpu);
        on.set_mig_mode(enabled)??;
        Ok(on.mig_mode()?.0 == enabled)
    }

    /// NVML's index of a MIG device among those of its GPU; `None` if it is gone.
    ///
    /// # Errors
    /// As NVML answers.
    pub fn mig_index(&self, gpu: &Gpu, uuid: &str) -> Result<Option<u32>, Error> {
        let on = self.on(gpu)?;
        let function = "nvmlDeviceGetMigDeviceHandleByIndex";
        let device = on.handle.device(self);
        for index in 0..MOST_COMPUTE_PROFILES {
            let _underway = self.calls.enter(function, Some(gpu.index));
            let found = device.mig_device_by_index(index).and_then(|device| device.uuid());
            match found {
                Ok(found) if found == uuid => return Ok(Some(index)),
                Ok(_) | Err(nvml_wrapper::error::NvmlError::NotFound) => {}
                Err(nvml_wrapper::error::NvmlError::InvalidArg) => return Ok(None),
                Err(source) => return Err(Error::new(function, Some(gpu.index), source)),
            }
        }
        Ok(None)
    }

    /// Process ids that compute on the GPU, as this process's namespace sees them.
    ///
    /// # Errors
    /// As NVML answers.
    pub fn processes(&self, gpu: &Gpu) -> Result<Vec<u32>, Error> {
        self.on(gpu)?.compute_processes()
    }

    /// Makes a GPU instance at this place, empty at first.
    ///
    /// # Errors
    /// As NVML answers; nothing was made then.
    pub fn create_instance<'n>(
        &'n self,
        gpu: &Gpu,
        profile: &Profile,
        placement: Placement,
    ) -> Result<NewInstance<'n>, Error> {
        let on = self.on(gpu)?;
        self.forget_mig_devices(gpu);
        let handle = on.create_gpu_instance(profile.id, placement.start, placement.size)?;
        Ok(NewInstance { on, handle, gpu: gpu.uuid.clone() })
    }

    /// The MIG device of a compute instance.
    pub(super) fn mig_device(
        &self,
        on: On<'_>,
        gpu: &Gpu,
        instance: &GpuInstance,
        compute: &ComputeInstance,
    ) -> Result<super::raw::DeviceHandle, Error> {
        let handles = || self.mig_handles.lock().unwrap_or_else(PoisonError::into_inner);
        let known = handles().get(&gpu.uuid).and_then(|of_gpu| of_gpu.get(&compute.uuid).copied());
        if let Some(known) = known {
            return Ok(known);
        }
        let within = on.gpu_instance(instance.id)?;
        let device = on.compute_instance_info(on.compute_instance(within, compute.id)?)?.device;
        handles().entry(gpu.uuid.clone()).or_default().insert(compute.uuid.clone(), device);
        Ok(device)
    }

    /// Their handles are given to others when a GPU is cut anew.
    pub(super) fn forget_mig_devices(&self, gpu: &Gpu) {
        self.mig_handles.lock().unwrap_or_else(PoisonError::into_inner).remove(&gpu.uuid);
    }

    /// Destroys a GPU instance and the compute instances in it. One that is gone is no error.
    ///
    /// # Errors
    /// As NVML answers; in use while a process runs in it.
    pub fn destroy(&self, gpu: &Gpu, instance: &GpuInstance) -> Result<(), Error> {
        let on = self.on(gpu)?;
        self.forget_mig_devices(gpu);
        let handle = match on.gpu_instance(instance.id) {
            Ok(handle) => handle,
            Err(error) if error.not_found() || error.not_supported() => return Ok(()),
            Err(error) => return Err(error),
        };
        let compute: Vec<u32> = instance.compute.iter().map(|compute| compute.id).collect();
        on.clear(handle, &compute)
    }
}

impl NewInstance<'_> {
    /// NVML's id.
    ///
    /// # Errors
    /// As NVML answers.
    pub fn id(&self) -> Result<u32, Error> {
        Ok(self.on.gpu_instance_info(self.handle)?.id)
    }

    /// Makes the compute instance that fills it, of the profile that it has: together a MIG device.
    ///
    /// # Errors
    /// As NVML answers; there may be a compute instance all the same.
    pub fn fill(&self, profile: &Profile) -> Result<ComputeInstance, Error> {
        let kinds = self.on.compute_profiles(&self.gpu, self.handle, profile.id)?;
        // The first that has all slices: a GPU's largest profile has a second one, for NVLink.
        let whole = kinds.iter().find(|kind| kind.slices == profile.slices);
        let whole = whole.ok_or_else(|| {
            let source = nvml_wrapper::error::NvmlError::NotSupported;
            Error::new("nvmlGpuInstanceGetComputeInstanceProfileInfo", Some(self.on.index), source)
        })?;
        let compute = self.on.create_compute_instance(self.handle, whole.id)?;
        self.on.compute_device(compute, |_| true)
    }
}

impl On<'_> {
    /// All instances of these profiles on the GPU with this UUID.
    pub(super) fn instances(
        &self,
        gpu: &GpuUuid,
        profiles: &[Profile],
    ) -> Result<Vec<GpuInstance>, Error> {
        let mut instances = Vec::new();
        for profile in profiles {
            for handle in self.gpu_instances(profile.id)? {
                instances.push(self.instance(gpu, handle, profile)?);
            }
        }
        instances.sort_by_key(|instance| instance.placement);
        Ok(instances)
    }

    fn instance(
        &self,
        gpu: &GpuUuid,
        handle: GpuInstanceHandle,
        profile: &Profile,
    ) -> Result<GpuInstance, Error> {
        let info = self.gpu_instance_info(handle)?;
        let kinds = self.compute_profiles(gpu, handle, profile.id)?;
        let whole = |kind: &&ComputeProfile| kind.slices == profile.slices;
        let fills = |id| kinds.iter().filter(whole).any(|kind| kind.id == id);
        let mut compute = Vec::new();
        // First those that leave no room for another: one call is then enough, of many that are slow.
        let parts = kinds.iter().filter(|kind| !whole(kind));
        for kind in kinds.iter().filter(whole).chain(parts) {
            for instance in self.compute_instances(handle, kind.id)? {
                compute.push(self.compute_device(instance, fills)?);
            }
            if compute.iter().any(|compute| compute.fills) {
                break;
            }
        }
        compute.sort_by_key(|compute| compute.id);
        Ok(GpuInstance {
            id: info.id,
            profile: info.profile,
            placement: Placement { start: info.start, size: info.size },
            compute,
        })
    }

    fn compute_device(
        &self,
        instance: ComputeInstanceHandle,
        fills: impl Fn(u32) -> bool,
    ) -> Result<ComputeInstance, Error> {
        let info = self.compute_instance_info(instance)?;
        let function = "nvmlDeviceGetUUID";
        let _underway = self.nvml.calls.enter(function, Some(self.index));
        let uuid = info.device.device(self.nvml).uuid();
        let uuid = uuid.map_err(|source| Error::new(function, Some(self.index), source))?;
        Ok(ComputeInstance { id: info.id, uuid, fills: fills(info.profile) })
    }

    fn compute_profiles(
        &self,
        gpu: &GpuUuid,
        instance: GpuInstanceHandle,
        profile: u32,
    ) -> Result<Vec<ComputeProfile>, Error> {
        let key = (gpu.clone(), profile);
        let cache = || self.nvml.compute_profiles.lock().unwrap_or_else(PoisonError::into_inner);
        let cached = cache().get(&key).cloned();
        if let Some(kinds) = cached {
            return Ok(kinds);
        }
        let kinds = self.read_compute_profiles(instance)?;
        cache().insert(key, kinds.clone());
        Ok(kinds)
    }

    fn read_compute_profiles(
        &self,
        instance: GpuInstanceHandle,
    ) -> Result<Vec<ComputeProfile>, Error> {
        let mut kinds: Vec<ComputeProfile> = Vec::new();
        for index in 0..MOST_COMPUTE_PROFILES {
            match self.compute_profile(instance, index) {
                Ok((id, slices)) if kinds.iter().all(|kind| kind.id != id) => {
                    kinds.push(ComputeProfile { id, slices });
                }
                Ok(_) => {}
                Err(error) if error.not_supported() => {}
                Err(error) if error.invalid_argument() => break,
                Err(error) => return Err(error),
            }
        }
        Ok(kinds)
    }

    /// Destroys the compute instances with these ids, then the GPU instance.
    fn clear(&self, instance: GpuInstanceHandle, compute: &[u32]) -> Result<(), Error> {
        for &id in compute {
            let found = match self.compute_instance(instance, id) {
                Ok(found) => found,
                Err(error) if error.not_found() => continue,
                Err(error) => return Err(error),
            };
            self.destroy_compute_instance(found)?;
        }
        self.destroy_gpu_instance(instance)
    }
}
