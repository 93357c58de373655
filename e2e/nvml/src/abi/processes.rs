//! Who runs on a device.

use std::ffi::c_uint;

use nvml_wrapper_sys::bindings::{nvmlProcessInfo_t, nvmlProcessInfo_v1_t};

use super::{
    export,
    wire::{Array, Opaque},
};
use crate::{
    code::Code,
    library::{Device, on_device},
    state::Process,
};

/// "None", for ids that are there only in MIG mode.
const NONE: u32 = u32::MAX;

type Now = Array<nvmlProcessInfo_t>;
type Then = Array<nvmlProcessInfo_v1_t>;
type Count<'a> = Option<&'a mut c_uint>;

export! {
    fn nvmlDeviceGetComputeRunningProcesses(device: Opaque, count: Count<'_>, list: Then) = |name| {
        on_device(name, device.handle(), |device| answer(count, &list, &running(device)?, then))
    };
    fn nvmlDeviceGetComputeRunningProcesses_v2(device: Opaque, count: Count<'_>, list: Now) = |name| {
        on_device(name, device.handle(), |device| answer(count, &list, &running(device)?, now))
    };
    fn nvmlDeviceGetComputeRunningProcesses_v3(device: Opaque, count: Count<'_>, list: Now) = |name| {
        on_device(name, device.handle(), |device| answer(count, &list, &running(device)?, now))
    };
    fn nvmlDeviceGetGraphicsRunningProcesses(device: Opaque, count: Count<'_>, list: Then) = |name| {
        on_device(name, device.handle(), |_| answer(count, &list, &[], then))
    };
    fn nvmlDeviceGetGraphicsRunningProcesses_v2(device: Opaque, count: Count<'_>, list: Now) = |name| {
        on_device(name, device.handle(), |_| answer(count, &list, &[], now))
    };
    fn nvmlDeviceGetGraphicsRunningProcesses_v3(device: Opaque, count: Count<'_>, list: Now) = |name| {
        on_device(name, device.handle(), |_| answer(count, &list, &[], now))
    };
    fn nvmlDeviceGetMPSComputeRunningProcesses(device: Opaque, count: Count<'_>, list: Then) = |name| {
        on_device(name, device.handle(), |_| answer(count, &list, &[], then))
    };
    fn nvmlDeviceGetMPSComputeRunningProcesses_v2(device: Opaque, count: Count<'_>, list: Now) = |name| {
        on_device(name, device.handle(), |_| answer(count, &list, &[], now))
    };
    fn nvmlDeviceGetMPSComputeRunningProcesses_v3(device: Opaque, count: Count<'_>, list: Now) = |name| {
        on_device(name, device.handle(), |_| answer(count, &list, &[], now))
    };
}

/// The processes of a GPU, or of one MIG device.
pub(super) fn running<'d>(device: &'d Device<'_>) -> Result<Vec<&'d Process>, Code> {
    let here = device.compute()?.map(|(gi, ci)| (gi.id, ci.id));
    let processes = device.present.state.processes.iter();
    Ok(processes.filter(|process| here.is_none() || process.instance == here).collect())
}

/// A list that does not fit is answered with its length, also where no list was given.
fn answer<T: Copy>(
    count: Count<'_>,
    list: &Array<T>,
    processes: &[&Process],
    layout: impl Fn(&Process) -> T,
) -> Result<(), Code> {
    let count = count.ok_or(Code::INVALID_ARGUMENT)?;
    let room = *count as usize;
    *count = c_uint::try_from(processes.len()).or(Err(Code::UNKNOWN))?;
    if processes.is_empty() {
        return Ok(());
    }
    if room < processes.len() || list.is_null() {
        return Err(Code::INSUFFICIENT_SIZE);
    }
    list.fill(&processes.iter().map(|process| layout(process)).collect::<Vec<_>>())
}

fn now(process: &Process) -> nvmlProcessInfo_t {
    let (gi, ci) = process.instance.unwrap_or((NONE, NONE));
    nvmlProcessInfo_t {
        pid: process.pid,
        usedGpuMemory: process.load.memory,
        gpuInstanceId: gi,
        computeInstanceId: ci,
    }
}

fn then(process: &Process) -> nvmlProcessInfo_v1_t {
    nvmlProcessInfo_v1_t { pid: process.pid, usedGpuMemory: process.load.memory }
}
