//! MIG mode, MIG devices, and GPU instance profiles.

use std::ffi::c_uint;

use nvml_wrapper_sys::bindings::{
    nvmlGpuInstancePlacement_t, nvmlGpuInstanceProfileInfo_t, nvmlGpuInstanceProfileInfo_v2_t,
    nvmlGpuInstanceProfileInfo_v3_t,
};

use super::{
    export,
    wire::{Array, Opaque, Out, Versioned, field, give},
};
use crate::{
    code::Code,
    hardware::Facts,
    library::{Handle, Kind, Present, Session, on_device, on_gpu},
    mig,
    spec::{PROFILE_INDICES, Profile},
    state::{Compute, GpuState, Instance},
};

export! {
    fn nvmlDeviceGetMigMode(device: Opaque, current: Out<'_, c_uint>, pending: Out<'_, c_uint>) = |name| {
        on_gpu(name, device.handle(), |gpu| {
            gpu.gpu.facts.mig()?;
            give(current, u32::from(gpu.state.mig.0))?;
            give(pending, u32::from(gpu.state.mig.1))
        })
    };
    fn nvmlDeviceSetMigMode(device: Opaque, mode: c_uint, activation: Out<'_, c_uint>) = |name| {
        on_gpu(name, device.handle(), |gpu| {
            let activation = activation.ok_or(Code::INVALID_ARGUMENT)?;
            if mode > 1 {
                return Err(Code::INVALID_ARGUMENT);
            }
            let outcome = gpu.change(|facts, state| mig::set_mode(facts, state, mode == 1))?;
            activation.write(outcome.map_or_else(|code| code.0, |()| 0));
            Ok(())
        })
    };
    fn nvmlDeviceIsMigDeviceHandle(device: Opaque, is: Out<'_, c_uint>) = |name| {
        on_device(name, device.handle(), |device| give(is, u32::from(device.compute()?.is_some())))
    };
    fn nvmlDeviceGetGpuInstanceId(device: Opaque, id: Out<'_, c_uint>) = |name| {
        on_device(name, device.handle(), |device| give(id, device.mig()?.0.id))
    };
    fn nvmlDeviceGetComputeInstanceId(device: Opaque, id: Out<'_, c_uint>) = |name| {
        on_device(name, device.handle(), |device| give(id, device.mig()?.1.id))
    };
    fn nvmlDeviceGetMaxMigDeviceCount(device: Opaque, count: Out<'_, c_uint>) = |name| {
        on_gpu(name, device.handle(), |gpu| {
            let slices = gpu.gpu.facts.mig().map_or(0, |mig| mig.slices);
            give(count, if gpu.state.mig.0 { slices } else { 0 })
        })
    };
    fn nvmlDeviceGetMigDeviceHandleByIndex(
        device: Opaque, index: c_uint, mig: Out<'_, Opaque>,
    ) = |name| {
        on_gpu(name, device.handle(), |gpu| {
            let limit = gpu.gpu.facts.mig()?.slices;
            if !gpu.state.mig.0 {
                return Err(Code::NOT_SUPPORTED);
            }
            if index >= limit {
                return Err(Code::INVALID_ARGUMENT);
            }
            let (_, ci) = gpu.state.devices().nth(index as usize).ok_or(Code::NOT_FOUND)?;
            give(mig, gpu.opaque(Kind::Mig, ci.serial))
        })
    };
    fn nvmlDeviceGetDeviceHandleFromMigDeviceHandle(device: Opaque, parent: Out<'_, Opaque>) = |name| {
        on_device(name, device.handle(), |device| {
            device.mig()?;
            give(parent, device.present.opaque(Kind::Gpu, 0))
        })
    };

    fn nvmlDeviceGetGpuInstanceProfileInfo(
        device: Opaque, index: c_uint, info: Out<'_, nvmlGpuInstanceProfileInfo_t>,
    ) = |name| {
        on_gpu(name, device.handle(), |gpu| give(info, first_layout(by_index(&gpu.gpu.facts, index)?)))
    };
    fn nvmlDeviceGetGpuInstanceProfileInfoV(device: Opaque, index: c_uint, info: Versioned) = |name| {
        on_gpu(name, device.handle(), |gpu| named(&info, by_index(&gpu.gpu.facts, index)?))
    };
    fn nvmlDeviceGetGpuInstanceProfileInfoByIdV(device: Opaque, id: c_uint, info: Versioned) = |name| {
        on_gpu(name, device.handle(), |gpu| named(&info, by_id(&gpu.gpu.facts, id)?))
    };
    fn nvmlDeviceGetGpuInstancePossiblePlacements(
        device: Opaque, id: c_uint, array: Array<nvmlGpuInstancePlacement_t>, count: Option<&mut c_uint>,
    ) = |name| {
        on_gpu(name, device.handle(), |gpu| array.answer(count, &placements(&gpu.gpu.facts, id)?))
    };
    fn nvmlDeviceGetGpuInstancePossiblePlacements_v2(
        device: Opaque, id: c_uint, array: Array<nvmlGpuInstancePlacement_t>, count: Option<&mut c_uint>,
    ) = |name| {
        on_gpu(name, device.handle(), |gpu| array.answer(count, &placements(&gpu.gpu.facts, id)?))
    };
    fn nvmlDeviceGetGpuInstanceRemainingCapacity(
        device: Opaque, id: c_uint, count: Out<'_, c_uint>,
    ) = |name| {
        on_gpu(name, device.handle(), |gpu| {
            gpu.session.hardware.allowed()?;
            give(count, mig::remaining(&gpu.gpu.facts, &gpu.state, id)?)
        })
    };
}

impl Present<'_> {
    /// Changes this GPU.
    pub(super) fn change<R>(
        &self,
        change: impl FnOnce(&Facts, &mut GpuState) -> Result<R, Code>,
    ) -> Result<R, Code> {
        self.session.hardware.change(self.gpu, change)
    }
}

/// A MIG device by its UUID, or as drivers before R470 named it: `MIG-GPU-…/<gi>/<ci>`.
pub(super) fn by_uuid(session: &Session, uuid: &str) -> Result<Opaque, Code> {
    for gpu in session.hardware.seen() {
        let present = match session.present(gpu.facts.index as usize) {
            Err(Code::GPU_IS_LOST) if session.alive().is_ok() => continue,
            present => present?,
        };
        let gpu = &present.gpu.facts.uuid;
        let is = |(gi, ci): &(&Instance, &Compute)| {
            ci.uuid == uuid || format!("MIG-{gpu}/{}/{}", gi.id, ci.id) == uuid
        };
        if let Some((_, ci)) = present.state.devices().find(is) {
            let index = present.gpu.facts.index;
            return Ok(Opaque::new(Handle::new(session.number, Kind::Mig, index, ci.serial)));
        }
    }
    Err(Code::NOT_FOUND)
}

fn by_index(facts: &Facts, index: u32) -> Result<&'static Profile, Code> {
    if index >= PROFILE_INDICES {
        return Err(Code::INVALID_ARGUMENT);
    }
    facts.mig()?.by_index(index).ok_or(Code::NOT_SUPPORTED)
}

fn by_id(facts: &Facts, id: u32) -> Result<&'static Profile, Code> {
    facts.mig()?.by_id(id).ok_or(Code::INVALID_ARGUMENT)
}

fn placements(facts: &Facts, id: u32) -> Result<Vec<nvmlGpuInstancePlacement_t>, Code> {
    let profile = by_id(facts, id)?;
    let placement = |&start| nvmlGpuInstancePlacement_t { start, size: profile.size };
    Ok(profile.starts.iter().map(placement).collect())
}

fn first_layout(profile: &Profile) -> nvmlGpuInstanceProfileInfo_t {
    nvmlGpuInstanceProfileInfo_t {
        id: profile.id,
        isP2pSupported: 0,
        sliceCount: profile.slices,
        instanceCount: profile.instances,
        multiprocessorCount: profile.multiprocessors,
        copyEngineCount: profile.engines.copy,
        decoderCount: profile.engines.decoders,
        encoderCount: profile.engines.encoders,
        jpegCount: profile.engines.jpeg,
        ofaCount: profile.engines.ofa,
        memorySizeMB: profile.memory_mib,
    }
}

/// The later layouts, which have a name.
fn named(info: &Versioned, profile: &Profile) -> Result<(), Code> {
    let version = info.version()?;
    let name = field(&format!("MIG {}", profile.name));
    if version >> 24 == 2 {
        return info.give(2, second_layout(version, profile, name));
    }
    info.give(3, third_layout(version, profile, name))
}

fn second_layout(
    version: u32,
    profile: &Profile,
    name: [std::ffi::c_char; 96],
) -> nvmlGpuInstanceProfileInfo_v2_t {
    let first = first_layout(profile);
    nvmlGpuInstanceProfileInfo_v2_t {
        version,
        id: first.id,
        isP2pSupported: first.isP2pSupported,
        sliceCount: first.sliceCount,
        instanceCount: first.instanceCount,
        multiprocessorCount: first.multiprocessorCount,
        copyEngineCount: first.copyEngineCount,
        decoderCount: first.decoderCount,
        encoderCount: first.encoderCount,
        jpegCount: first.jpegCount,
        ofaCount: first.ofaCount,
        memorySizeMB: first.memorySizeMB,
        name,
    }
}

fn third_layout(
    version: u32,
    profile: &Profile,
    name: [std::ffi::c_char; 96],
) -> nvmlGpuInstanceProfileInfo_v3_t {
    let first = first_layout(profile);
    nvmlGpuInstanceProfileInfo_v3_t {
        version,
        id: first.id,
        sliceCount: first.sliceCount,
        instanceCount: first.instanceCount,
        multiprocessorCount: first.multiprocessorCount,
        copyEngineCount: first.copyEngineCount,
        decoderCount: first.decoderCount,
        encoderCount: first.encoderCount,
        jpegCount: first.jpegCount,
        ofaCount: first.ofaCount,
        memorySizeMB: first.memorySizeMB,
        name,
        capabilities: if profile.graphics() { 2 } else { 0 },
    }
}
