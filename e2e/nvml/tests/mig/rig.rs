//! A program's side of the C interface: the shared library of a machine of its own, loaded by path.
//! Each answer other than success is its number.

#![allow(unsafe_code, reason = "NVML is a C interface")]

use std::{
    ffi::{CStr, CString, c_char},
    mem::{MaybeUninit, size_of},
    path::Path,
    ptr,
};

use kerf_nvml::{Machine, Model, NodeDescription};
use nvml_wrapper_sys::bindings::*;
use tempfile::TempDir;

pub(crate) type Answer<T> = Result<T, u32>;

pub(crate) const UNINITIALIZED: u32 = 1;
pub(crate) const INVALID_ARGUMENT: u32 = 2;
pub(crate) const NOT_SUPPORTED: u32 = 3;
pub(crate) const NO_PERMISSION: u32 = 4;
pub(crate) const NOT_FOUND: u32 = 6;
pub(crate) const INSUFFICIENT_SIZE: u32 = 7;
pub(crate) const DRIVER_NOT_LOADED: u32 = 9;
pub(crate) const TIMEOUT: u32 = 10;
pub(crate) const GPU_IS_LOST: u32 = 15;
pub(crate) const IN_USE: u32 = 19;
pub(crate) const INSUFFICIENT_RESOURCES: u32 = 23;
pub(crate) const ARGUMENT_VERSION_MISMATCH: u32 = 25;

/// A handle that may cross threads, as NVML's may.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Handle(pub(crate) usize);

impl Handle {
    fn c<T>(self) -> *mut T {
        ptr::without_provenance_mut(self.0)
    }

    fn of<T>(pointer: *mut T) -> Self {
        Self(pointer.addr())
    }
}

/// The library.
pub(crate) struct Library(NvmlLib);

/// A machine and its library, initialised.
pub(crate) struct Rig {
    pub(crate) machine: Machine,
    pub(crate) nvml: Library,
    _dir: TempDir,
}

impl std::ops::Deref for Rig {
    type Target = Library;

    fn deref(&self) -> &Library {
        &self.nvml
    }
}

impl Rig {
    /// GPUs of these models, MIG mode off.
    pub(crate) fn new(models: &[Model]) -> Self {
        Self::of(&NodeDescription::mixed(models))
    }

    /// GPUs of these models, MIG mode on.
    pub(crate) fn cut(models: &[Model]) -> Self {
        Self::of(&NodeDescription::mixed(models).with_mig_enabled())
    }

    pub(crate) fn of(node: &NodeDescription) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let machine = Machine::create(dir.path(), node).unwrap();
        let nvml = Library::load(&machine.library());
        nvml.init().unwrap();
        Self { machine, nvml, _dir: dir }
    }
}

/// Calls a function of the library.
macro_rules! call {
    ($library:expr, $function:ident($($argument:expr),* $(,)?)) => {{
        let function = $library.0.$function.as_ref().unwrap();
        // SAFETY: the arguments are what NVML documents for the function, and outlive the call.
        match unsafe { function($($argument),*) } {
            0 => Ok(()),
            code => Err(code),
        }
    }};
}

/// Calls a function that answers a value through its last argument.
macro_rules! get {
    ($library:expr, $function:ident($($argument:expr),* $(,)?)) => {{
        let mut value = MaybeUninit::uninit();
        call!($library, $function($($argument,)* value.as_mut_ptr()))
            // SAFETY: the function succeeded, so it has written its answer.
            .map(|()| unsafe { value.assume_init() })
    }};
}

/// Calls a function that answers a string.
macro_rules! text {
    ($library:expr, $function:ident($($argument:expr),* $(,)?)) => {{
        let mut buffer = [0; 96];
        call!($library, $function($($argument,)* buffer.as_mut_ptr(), 96)).map(|()| string(&buffer))
    }};
}

mod readings;

pub(crate) fn string(buffer: &[c_char]) -> String {
    let bytes: Vec<u8> = buffer.iter().map(|byte| byte.to_le_bytes()[0]).collect();
    CStr::from_bytes_until_nul(&bytes).unwrap().to_str().unwrap().to_owned()
}

fn version<T>(layout: u32) -> u32 {
    u32::try_from(size_of::<T>()).unwrap() | layout << 24
}

impl Library {
    pub(crate) fn load(path: &Path) -> Self {
        // SAFETY: the library's initialisers are those of Rust's standard library.
        Self(unsafe { NvmlLib::new(path) }.unwrap())
    }

    pub(crate) fn init(&self) -> Answer<()> {
        call!(self, nvmlInit_v2())
    }

    pub(crate) fn shutdown(&self) -> Answer<()> {
        call!(self, nvmlShutdown())
    }

    /// A function without arguments that is there by this name.
    pub(crate) fn by_name(&self, name: &str) -> u32 {
        type Function = unsafe extern "C" fn() -> u32;
        // SAFETY: every function that is looked for answers a number and looks at no argument.
        let function = unsafe { self.0.__library.get::<Function>(name.as_bytes()) }.unwrap();
        // SAFETY: as above.
        unsafe { function() }
    }

    pub(crate) fn driver_version(&self) -> Answer<String> {
        text!(self, nvmlSystemGetDriverVersion())
    }

    pub(crate) fn error_string(&self, code: u32) -> String {
        let function = self.0.nvmlErrorString.as_ref().unwrap();
        // SAFETY: it takes any number.
        let text = unsafe { function(code) };
        // SAFETY: it answers a string that lives as long as the library.
        unsafe { CStr::from_ptr(text) }.to_str().unwrap().to_owned()
    }

    pub(crate) fn count(&self) -> Answer<u32> {
        get!(self, nvmlDeviceGetCount_v2())
    }

    pub(crate) fn gpu(&self, index: u32) -> Answer<Handle> {
        get!(self, nvmlDeviceGetHandleByIndex_v2(index)).map(Handle::of)
    }

    pub(crate) fn by_uuid(&self, uuid: &str) -> Answer<Handle> {
        let uuid = CString::new(uuid).unwrap();
        get!(self, nvmlDeviceGetHandleByUUID(uuid.as_ptr())).map(Handle::of)
    }

    pub(crate) fn by_address(&self, address: &str) -> Answer<Handle> {
        let address = CString::new(address).unwrap();
        get!(self, nvmlDeviceGetHandleByPciBusId_v2(address.as_ptr())).map(Handle::of)
    }

    pub(crate) fn uuid(&self, device: Handle) -> Answer<String> {
        text!(self, nvmlDeviceGetUUID(device.c()))
    }

    pub(crate) fn name(&self, device: Handle) -> Answer<String> {
        text!(self, nvmlDeviceGetName(device.c()))
    }

    pub(crate) fn index(&self, device: Handle) -> Answer<u32> {
        get!(self, nvmlDeviceGetIndex(device.c()))
    }

    pub(crate) fn minor(&self, device: Handle) -> Answer<u32> {
        get!(self, nvmlDeviceGetMinorNumber(device.c()))
    }

    /// Bytes in all.
    pub(crate) fn memory(&self, device: Handle) -> Answer<u64> {
        get!(self, nvmlDeviceGetMemoryInfo(device.c())).map(|memory| memory.total)
    }

    pub(crate) fn utilization(&self, device: Handle) -> Answer<u32> {
        get!(self, nvmlDeviceGetUtilizationRates(device.c())).map(|rates| rates.gpu)
    }

    pub(crate) fn attributes(&self, device: Handle) -> Answer<nvmlDeviceAttributes_t> {
        get!(self, nvmlDeviceGetAttributes_v2(device.c()))
    }

    /// Current and pending.
    pub(crate) fn mig_mode(&self, device: Handle) -> Answer<(u32, u32)> {
        let mut current = 0;
        get!(self, nvmlDeviceGetMigMode(device.c(), &raw mut current))
            .map(|pending| (current, pending))
    }

    /// The activation status.
    pub(crate) fn set_mig_mode(&self, device: Handle, mode: u32) -> Answer<u32> {
        get!(self, nvmlDeviceSetMigMode(device.c(), mode))
    }

    pub(crate) fn profile(
        &self,
        device: Handle,
        index: u32,
    ) -> Answer<nvmlGpuInstanceProfileInfo_t> {
        get!(self, nvmlDeviceGetGpuInstanceProfileInfo(device.c(), index))
    }

    /// The profile's name, by its second layout.
    pub(crate) fn profile_name(&self, device: Handle, index: u32) -> Answer<String> {
        self.profile_of_version(device, index, version::<nvmlGpuInstanceProfileInfo_v2_t>(2))
    }

    pub(crate) fn profile_of_version(
        &self,
        device: Handle,
        index: u32,
        word: u32,
    ) -> Answer<String> {
        let mut info = nvmlGpuInstanceProfileInfo_v2_t {
            version: word,
            id: 0,
            isP2pSupported: 0,
            sliceCount: 0,
            instanceCount: 0,
            multiprocessorCount: 0,
            copyEngineCount: 0,
            decoderCount: 0,
            encoderCount: 0,
            jpegCount: 0,
            ofaCount: 0,
            memorySizeMB: 0,
            name: [0; 96],
        };
        call!(self, nvmlDeviceGetGpuInstanceProfileInfoV(device.c(), index, &raw mut info))?;
        Ok(string(&info.name))
    }

    /// Starts and size, by the two calls that NVML wants.
    pub(crate) fn placements(&self, device: Handle, profile: u32) -> Answer<Vec<(u32, u32)>> {
        let mut count = 0;
        let counted = ptr::null_mut();
        call!(
            self,
            nvmlDeviceGetGpuInstancePossiblePlacements_v2(
                device.c(),
                profile,
                counted,
                &raw mut count
            )
        )?;
        let mut list = vec![nvmlGpuInstancePlacement_t { start: 0, size: 0 }; count as usize];
        call!(
            self,
            nvmlDeviceGetGpuInstancePossiblePlacements_v2(
                device.c(),
                profile,
                list.as_mut_ptr(),
                &raw mut count
            )
        )?;
        Ok(list.into_iter().map(|placement| (placement.start, placement.size)).collect())
    }

    pub(crate) fn remaining(&self, device: Handle, profile: u32) -> Answer<u32> {
        get!(self, nvmlDeviceGetGpuInstanceRemainingCapacity(device.c(), profile))
    }

    pub(crate) fn create(
        &self,
        device: Handle,
        profile: u32,
        start: u32,
        size: u32,
    ) -> Answer<Handle> {
        let place = nvmlGpuInstancePlacement_t { start, size };
        let place = &raw const place;
        get!(self, nvmlDeviceCreateGpuInstanceWithPlacement(device.c(), profile, place))
            .map(Handle::of)
    }

    pub(crate) fn create_anywhere(&self, device: Handle, profile: u32) -> Answer<Handle> {
        get!(self, nvmlDeviceCreateGpuInstance(device.c(), profile)).map(Handle::of)
    }

    pub(crate) fn destroy(&self, instance: Handle) -> Answer<()> {
        call!(self, nvmlGpuInstanceDestroy(instance.c()))
    }

    /// Id, profile, start and size.
    pub(crate) fn info(&self, instance: Handle) -> Answer<(u32, u32, u32, u32)> {
        let info = get!(self, nvmlGpuInstanceGetInfo(instance.c()))?;
        Ok((info.id, info.profileId, info.placement.start, info.placement.size))
    }

    pub(crate) fn instance(&self, device: Handle, id: u32) -> Answer<Handle> {
        get!(self, nvmlDeviceGetGpuInstanceById(device.c(), id)).map(Handle::of)
    }

    pub(crate) fn instances(&self, device: Handle, profile: u32) -> Answer<Vec<Handle>> {
        let mut list = [ptr::null_mut(); 8];
        let count = get!(self, nvmlDeviceGetGpuInstances(device.c(), profile, list.as_mut_ptr()))?;
        Ok(list[..count as usize].iter().map(|&handle| Handle::of(handle)).collect())
    }

    pub(crate) fn compute_profile(
        &self,
        instance: Handle,
        index: u32,
    ) -> Answer<nvmlComputeInstanceProfileInfo_t> {
        get!(self, nvmlGpuInstanceGetComputeInstanceProfileInfo(instance.c(), index, 0))
    }

    pub(crate) fn create_compute(&self, instance: Handle, profile: u32) -> Answer<Handle> {
        get!(self, nvmlGpuInstanceCreateComputeInstance(instance.c(), profile)).map(Handle::of)
    }

    pub(crate) fn destroy_compute(&self, compute: Handle) -> Answer<()> {
        call!(self, nvmlComputeInstanceDestroy(compute.c()))
    }

    pub(crate) fn compute(&self, instance: Handle, id: u32) -> Answer<Handle> {
        get!(self, nvmlGpuInstanceGetComputeInstanceById(instance.c(), id)).map(Handle::of)
    }

    /// The MIG device of a compute instance.
    pub(crate) fn device_of(&self, compute: Handle) -> Answer<Handle> {
        get!(self, nvmlComputeInstanceGetInfo_v2(compute.c())).map(|info| Handle::of(info.device))
    }

    pub(crate) fn max_mig_devices(&self, device: Handle) -> Answer<u32> {
        get!(self, nvmlDeviceGetMaxMigDeviceCount(device.c()))
    }

    pub(crate) fn mig_device(&self, device: Handle, index: u32) -> Answer<Handle> {
        get!(self, nvmlDeviceGetMigDeviceHandleByIndex(device.c(), index)).map(Handle::of)
    }

    pub(crate) fn parent(&self, device: Handle) -> Answer<Handle> {
        get!(self, nvmlDeviceGetDeviceHandleFromMigDeviceHandle(device.c())).map(Handle::of)
    }

    pub(crate) fn is_mig_device(&self, device: Handle) -> Answer<u32> {
        get!(self, nvmlDeviceIsMigDeviceHandle(device.c()))
    }

    pub(crate) fn instance_id(&self, device: Handle) -> Answer<u32> {
        get!(self, nvmlDeviceGetGpuInstanceId(device.c()))
    }

    /// Process, GPU instance and compute instance.
    pub(crate) fn processes(&self, device: Handle, room: u32) -> Answer<Vec<(u32, u32, u32)>> {
        let none =
            nvmlProcessInfo_t { pid: 0, usedGpuMemory: 0, gpuInstanceId: 0, computeInstanceId: 0 };
        let (mut list, mut count) = (vec![none; room as usize], room);
        call!(
            self,
            nvmlDeviceGetComputeRunningProcesses_v3(device.c(), &raw mut count, list.as_mut_ptr())
        )?;
        list.truncate(count as usize);
        Ok(list.iter().map(|one| (one.pid, one.gpuInstanceId, one.computeInstanceId)).collect())
    }

    pub(crate) fn process_name(&self, pid: u32) -> Answer<String> {
        text!(self, nvmlSystemGetProcessName(pid))
    }

    /// `nvmlGpuTopologyLevel_t`.
    pub(crate) fn ancestor(&self, device: Handle, other: Handle) -> Answer<u32> {
        get!(self, nvmlDeviceGetTopologyCommonAncestor(device.c(), other.c()))
    }

    pub(crate) fn link_state(&self, device: Handle, link: u32) -> Answer<u32> {
        get!(self, nvmlDeviceGetNvLinkState(device.c(), link))
    }

    /// `nvmlIntNvLinkDeviceType_t` and the address of what a link leads to.
    pub(crate) fn link_end(&self, device: Handle, link: u32) -> Answer<(u32, String)> {
        let kind = get!(self, nvmlDeviceGetNvLinkRemoteDeviceType(device.c(), link))?;
        let pci = get!(self, nvmlDeviceGetNvLinkRemotePciInfo_v2(device.c(), link))?;
        Ok((kind, string(&pci.busId)))
    }

    pub(crate) fn event_set(&self) -> Answer<Handle> {
        get!(self, nvmlEventSetCreate()).map(Handle::of)
    }

    pub(crate) fn register(&self, device: Handle, types: u64, set: Handle) -> Answer<()> {
        call!(self, nvmlDeviceRegisterEvents(device.c(), types, set.c()))
    }

    /// Device, type, data, GPU instance and compute instance of the next event.
    pub(crate) fn wait(&self, set: Handle, timeout: u32) -> Answer<(Handle, u64, u64, u32, u32)> {
        let mut event = nvmlEventData_t {
            device: ptr::null_mut(),
            eventType: 0,
            eventData: 0,
            gpuInstanceId: 0,
            computeInstanceId: 0,
        };
        call!(self, nvmlEventSetWait_v2(set.c(), &raw mut event, timeout))?;
        let device = Handle::of(event.device);
        let ids = (event.gpuInstanceId, event.computeInstanceId);
        Ok((device, event.eventType, event.eventData, ids.0, ids.1))
    }
}
