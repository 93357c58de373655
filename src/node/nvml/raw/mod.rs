//! The NVML calls that nvml-wrapper lacks, as safe functions: each is one call, its buffers and its
//! error.
#![expect(unsafe_code, reason = "NVML is a C library")]

use std::ffi::{CStr, c_char, c_uint};

use nvml_wrapper::{
    Device,
    error::{nvml_sym, nvml_try, nvml_try_count},
};
use nvml_wrapper_sys::bindings as sys;

use super::{Error, Nvml};
use crate::model::gpu::Fabric;

/// A GPU's or MIG device's handle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct DeviceHandle(sys::nvmlDevice_t);

// SAFETY: NVML is documented to be thread-safe, and its handles are valid in all threads.
unsafe impl Send for DeviceHandle {}
// SAFETY: as above.
unsafe impl Sync for DeviceHandle {}

/// A GPU instance's handle, used at once and never kept: NVML uses them again.
#[derive(Clone, Copy)]
pub(super) struct GpuInstanceHandle(sys::nvmlGpuInstance_t);

/// A compute instance's handle, likewise.
#[derive(Clone, Copy)]
pub(super) struct ComputeInstanceHandle(sys::nvmlComputeInstance_t);

/// What `nvmlGpuInstanceGetInfo` says.
pub(super) struct GpuInstanceInfo {
    pub(super) id: u32,
    pub(super) profile: u32,
    pub(super) start: u32,
    pub(super) size: u32,
}

/// What `nvmlComputeInstanceGetInfo_v2` says.
pub(super) struct ComputeInstanceInfo {
    pub(super) device: DeviceHandle,
    pub(super) id: u32,
    pub(super) profile: u32,
}

/// Calls an NVML function by name, noted as under way, its failure named after it.
macro_rules! call {
    ($nvml:expr, $gpu:expr, $function:ident($($argument:expr),* $(,)?), $check:path) => {{
        let _underway = $nvml.calls.enter(stringify!($function), $gpu);
        answer!($nvml, $gpu, $function($($argument),*), $check)
    }};
    ($nvml:expr, $gpu:expr, $function:ident($($argument:expr),* $(,)?)) => {
        call!($nvml, $gpu, $function($($argument),*), nvml_try)
    };
}

/// The same, not noted.
macro_rules! answer {
    ($nvml:expr, $gpu:expr, $function:ident($($argument:expr),* $(,)?), $check:path) => {
        nvml_sym($nvml.library.lib().$function.as_ref())
            // SAFETY: the symbol has the type that nvml.h declares; the handles came from this
            // library, and every pointer is to a live value of the type that the call fills.
            .and_then(|function| $check(unsafe { function($($argument),*) }))
            .map_err(|source| Error::new(stringify!($function), $gpu, source))
    };
}

/// A value for NVML to fill.
macro_rules! zeroed {
    () => {
        // SAFETY: NVML's structs are plain integers, arrays and nullable pointers.
        unsafe { std::mem::zeroed() }
    };
}

mod events;
mod fields;
mod gpm;
mod health;
mod load;

pub(super) use events::{EventSetHandle, Told};
pub(super) use gpm::GpmBuffer;

/// A text that NVML has filled in.
fn text(chars: &[c_char]) -> String {
    let bytes: Vec<u8> = chars.iter().map(|c| c.to_ne_bytes()[0]).collect();
    match CStr::from_bytes_until_nul(&bytes) {
        Ok(text) => text.to_string_lossy().into_owned(),
        Err(_) => String::from_utf8_lossy(&bytes).into_owned(),
    }
}

/// A UUID as it is written.
fn uuid(number: u128) -> String {
    let digits = format!("{number:032x}");
    let parts = [0..8, 8..12, 12..16, 16..20, 20..32].map(|part| &digits[part]);
    parts.join("-")
}

impl DeviceHandle {
    pub(super) fn of(device: &Device<'_>) -> Self {
        // SAFETY: the handle is only used with the library that gave it.
        Self(unsafe { device.handle() })
    }

    pub(super) fn device<'n>(self, nvml: &'n Nvml) -> Device<'n> {
        // SAFETY: the handle came from this library.
        unsafe { Device::new(self.0, &nvml.library) }
    }
}

/// Which GPU a call is about.
#[derive(Clone, Copy)]
pub(super) struct On<'n> {
    pub(super) nvml: &'n Nvml,
    pub(super) index: u32,
    pub(super) handle: DeviceHandle,
}

impl On<'_> {
    fn gpu(&self) -> Option<u32> {
        Some(self.index)
    }

    pub(super) fn architecture(&self) -> Result<u32, Error> {
        let mut architecture = 0;
        let handle = self.handle.0;
        call!(self.nvml, self.gpu(), nvmlDeviceGetArchitecture(handle, &raw mut architecture))?;
        Ok(architecture)
    }

    pub(super) fn brand(&self) -> Result<u32, Error> {
        let mut brand = 0;
        call!(self.nvml, self.gpu(), nvmlDeviceGetBrand(self.handle.0, &raw mut brand))?;
        Ok(brand)
    }

    pub(super) fn addressing_mode(&self) -> Result<u32, Error> {
        let mut mode: sys::nvmlDeviceAddressingMode_t = zeroed!();
        mode.version = version_word::<sys::nvmlDeviceAddressingMode_t>(1);
        call!(self.nvml, self.gpu(), nvmlDeviceGetAddressingMode(self.handle.0, &raw mut mode))?;
        Ok(mode.value)
    }

    /// `None` as long as the GPU is in no fabric, and on a machine whose fabric ends with it.
    pub(super) fn fabric(&self) -> Result<Option<Fabric>, Error> {
        // The newest layout has room for the one asked for, which more drivers have.
        let mut info: sys::nvmlGpuFabricInfoV_t = zeroed!();
        info.version = version_word::<sys::nvmlGpuFabricInfo_v2_t>(2);
        call!(self.nvml, self.gpu(), nvmlDeviceGetGpuFabricInfoV(self.handle.0, &raw mut info))?;
        let joined = u32::from(info.state) == sys::NVML_GPU_FABRIC_STATE_COMPLETED;
        let cluster = u128::from_be_bytes(info.clusterUuid);
        let there = joined && info.status == 0 && cluster != 0;
        Ok(there.then(|| Fabric { cluster: uuid(cluster), clique: info.cliqueId }))
    }

    /// Bytes, by the call that every driver has.
    pub(super) fn memory(&self) -> Result<u64, Error> {
        let mut memory: sys::nvmlMemory_t = zeroed!();
        call!(self.nvml, self.gpu(), nvmlDeviceGetMemoryInfo(self.handle.0, &raw mut memory))?;
        Ok(memory.total)
    }

    /// Current and pending mode.
    pub(super) fn mig_mode(&self) -> Result<(bool, bool), Error> {
        let (mut current, mut pending) = (0, 0);
        let handle = self.handle.0;
        call!(
            self.nvml,
            self.gpu(),
            nvmlDeviceGetMigMode(handle, &raw mut current, &raw mut pending)
        )?;
        Ok((current == 1, pending == 1))
    }

    /// The activation status, which is an answer of its own: success of the call says only that the
    /// new mode is pending.
    pub(super) fn set_mig_mode(&self, on: bool) -> Result<Result<(), Error>, Error> {
        let mut activation = 0;
        let mode = c_uint::from(on);
        call!(
            self.nvml,
            self.gpu(),
            nvmlDeviceSetMigMode(self.handle.0, mode, &raw mut activation)
        )?;
        Ok(nvml_try(activation)
            .map_err(|source| Error::new("nvmlDeviceSetMigMode", self.gpu(), source)))
    }

    pub(super) fn profile(&self, index: u32) -> Result<sys::nvmlGpuInstanceProfileInfo_t, Error> {
        let mut info = zeroed!();
        call!(
            self.nvml,
            self.gpu(),
            nvmlDeviceGetGpuInstanceProfileInfo(self.handle.0, index, &raw mut info)
        )?;
        Ok(info)
    }

    pub(super) fn profile_name(&self, index: u32) -> Result<String, Error> {
        let mut info: sys::nvmlGpuInstanceProfileInfo_v2_t = zeroed!();
        info.version = version_word::<sys::nvmlGpuInstanceProfileInfo_v2_t>(2);
        call!(
            self.nvml,
            self.gpu(),
            nvmlDeviceGetGpuInstanceProfileInfoV(self.handle.0, index, &raw mut info)
        )?;
        Ok(text(&info.name))
    }

    /// Start and size of each.
    pub(super) fn placements(&self, profile: u32) -> Result<Vec<(u32, u32)>, Error> {
        let mut placements: [sys::nvmlGpuInstancePlacement_t; MOST] = zeroed!();
        let mut count = MOST_COUNT;
        call!(
            self.nvml,
            self.gpu(),
            nvmlDeviceGetGpuInstancePossiblePlacements_v2(
                self.handle.0,
                profile,
                placements.as_mut_ptr(),
                &raw mut count
            )
        )?;
        Ok(first(&placements, count).iter().map(|place| (place.start, place.size)).collect())
    }

    pub(super) fn gpu_instances(&self, profile: u32) -> Result<Vec<GpuInstanceHandle>, Error> {
        let mut instances: [sys::nvmlGpuInstance_t; MOST] = zeroed!();
        let mut count = MOST_COUNT;
        call!(
            self.nvml,
            self.gpu(),
            nvmlDeviceGetGpuInstances(
                self.handle.0,
                profile,
                instances.as_mut_ptr(),
                &raw mut count
            )
        )?;
        Ok(first(&instances, count).iter().map(|&handle| GpuInstanceHandle(handle)).collect())
    }

    pub(super) fn gpu_instance(&self, id: u32) -> Result<GpuInstanceHandle, Error> {
        let mut instance = std::ptr::null_mut();
        call!(
            self.nvml,
            self.gpu(),
            nvmlDeviceGetGpuInstanceById(self.handle.0, id, &raw mut instance)
        )?;
        Ok(GpuInstanceHandle(instance))
    }

    pub(super) fn gpu_instance_info(
        &self,
        instance: GpuInstanceHandle,
    ) -> Result<GpuInstanceInfo, Error> {
        let mut info: sys::nvmlGpuInstanceInfo_t = zeroed!();
        call!(self.nvml, self.gpu(), nvmlGpuInstanceGetInfo(instance.0, &raw mut info))?;
        Ok(GpuInstanceInfo {
            id: info.id,
            profile: info.profileId,
            start: info.placement.start,
            size: info.placement.size,
        })
    }

    pub(super) fn create_gpu_instance(
        &self,
        profile: u32,
        start: u32,
        size: u32,
    ) -> Result<GpuInstanceHandle, Error> {
        let placement = sys::nvmlGpuInstancePlacement_t { start, size };
        let mut instance = std::ptr::null_mut();
        call!(
            self.nvml,
            self.gpu(),
            nvmlDeviceCreateGpuInstanceWithPlacement(
                self.handle.0,
                profile,
                &raw const placement,
                &raw mut instance
            )
        )?;
        Ok(GpuInstanceHandle(instance))
    }

    pub(super) fn destroy_gpu_instance(&self, instance: GpuInstanceHandle) -> Result<(), Error> {
        call!(self.nvml, self.gpu(), nvmlGpuInstanceDestroy(instance.0))
    }

    /// Id and slices of the compute instance profile with this enumerator.
    pub(super) fn compute_profile(
        &self,
        instance: GpuInstanceHandle,
        index: u32,
    ) -> Result<(u32, u32), Error> {
        let mut info: sys::nvmlComputeInstanceProfileInfo_t = zeroed!();
        let shared_engines = 0;
        call!(
            self.nvml,
            self.gpu(),
            nvmlGpuInstanceGetComputeInstanceProfileInfo(
                instance.0,
                index,
                shared_engines,
                &raw mut info
            )
        )?;
        Ok((info.id, info.sliceCount))
    }

    pub(super) fn compute_instances(
        &self,
        instance: GpuInstanceHandle,
        profile: u32,
    ) -> Result<Vec<ComputeInstanceHandle>, Error> {
        let mut found: [sys::nvmlComputeInstance_t; MOST] = zeroed!();
        let mut count = MOST_COUNT;
        call!(
            self.nvml,
            self.gpu(),
            nvmlGpuInstanceGetComputeInstances(
                instance.0,
                profile,
                found.as_mut_ptr(),
                &raw mut count
            )
        )?;
        Ok(first(&found, count).iter().map(|&handle| ComputeInstanceHandle(handle)).collect())
    }

    pub(super) fn compute_instance(
        &self,
        instance: GpuInstanceHandle,
        id: u32,
    ) -> Result<ComputeInstanceHandle, Error> {
        let mut found = std::ptr::null_mut();
        call!(
            self.nvml,
            self.gpu(),
            nvmlGpuInstanceGetComputeInstanceById(instance.0, id, &raw mut found)
        )?;
        Ok(ComputeInstanceHandle(found))
    }

    pub(super) fn compute_instance_info(
        &self,
        instance: ComputeInstanceHandle,
    ) -> Result<ComputeInstanceInfo, Error> {
        let mut info: sys::nvmlComputeInstanceInfo_t = zeroed!();
        call!(self.nvml, self.gpu(), nvmlComputeInstanceGetInfo_v2(instance.0, &raw mut info))?;
        Ok(ComputeInstanceInfo {
            device: DeviceHandle(info.device),
            id: info.id,
            profile: info.profileId,
        })
    }

    pub(super) fn create_compute_instance(
        &self,
        instance: GpuInstanceHandle,
        profile: u32,
    ) -> Result<ComputeInstanceHandle, Error> {
        let mut made = std::ptr::null_mut();
        call!(
            self.nvml,
            self.gpu(),
            nvmlGpuInstanceCreateComputeInstance(instance.0, profile, &raw mut made)
        )?;
        Ok(ComputeInstanceHandle(made))
    }

    pub(super) fn destroy_compute_instance(
        &self,
        instance: ComputeInstanceHandle,
    ) -> Result<(), Error> {
        call!(self.nvml, self.gpu(), nvmlComputeInstanceDestroy(instance.0))
    }

    /// What the way over PCIe to another GPU has in common: `nvmlGpuTopologyLevel_t`.
    pub(super) fn common_ancestor(&self, other: DeviceHandle) -> Result<u32, Error> {
        let mut level = 0;
        call!(
            self.nvml,
            self.gpu(),
            nvmlDeviceGetTopologyCommonAncestor(self.handle.0, other.0, &raw mut level)
        )?;
        Ok(level)
    }

    pub(super) fn nvlink_is_up(&self, link: u32) -> Result<bool, Error> {
        let mut active = 0;
        let handle = self.handle.0;
        call!(self.nvml, self.gpu(), nvmlDeviceGetNvLinkState(handle, link, &raw mut active))?;
        Ok(active == 1)
    }

    /// Whether an NVLink leads to a GPU or to what else: `nvmlIntNvLinkDeviceType_t`.
    pub(super) fn nvlink_leads_to(&self, link: u32) -> Result<u32, Error> {
        let mut kind = 0;
        call!(
            self.nvml,
            self.gpu(),
            nvmlDeviceGetNvLinkRemoteDeviceType(self.handle.0, link, &raw mut kind)
        )?;
        Ok(kind)
    }

    /// PCI address of an NVLink's other end, in NVML's spelling.
    pub(super) fn nvlink_end(&self, link: u32) -> Result<String, Error> {
        let mut info: sys::nvmlPciInfo_t = zeroed!();
        call!(
            self.nvml,
            self.gpu(),
            nvmlDeviceGetNvLinkRemotePciInfo_v2(self.handle.0, link, &raw mut info)
        )?;
        Ok(text(&info.busId))
    }

    /// Process ids that compute on the GPU.
    pub(super) fn compute_processes(&self) -> Result<Vec<u32>, Error> {
        let mut processes: [sys::nvmlProcessInfo_t; MOST] = zeroed!();
        let mut count = MOST_COUNT;
        // More processes than room is an answer too: the count says how many.
        call!(
            self.nvml,
            self.gpu(),
            nvmlDeviceGetComputeRunningProcesses_v3(
                self.handle.0,
                &raw mut count,
                processes.as_mut_ptr()
            ),
            nvml_try_count
        )?;
        Ok(first(&processes, count).iter().map(|process| process.pid).collect())
    }
}

/// Room for any list that NVML fills: placements, instances, processes.
const MOST: usize = 64;
const MOST_COUNT: c_uint = 64;

/// The part of a buffer that NVML says it has filled.
fn first<T>(buffer: &[T], count: c_uint) -> &[T] {
    let count = usize::try_from(count).unwrap_or(usize::MAX);
    &buffer[..count.min(buffer.len())]
}

/// The first word of NVML's versioned structs: size and version.
fn version_word<T>(version: u32) -> u32 {
    u32::try_from(size_of::<T>()).unwrap_or_default() | version << 24
}
