//! GPU instances and compute instances: made, found, destroyed.

use std::ffi::c_uint;

use nvml_wrapper_sys::bindings::{
    nvmlComputeInstanceInfo_t, nvmlComputeInstancePlacement_t, nvmlComputeInstanceProfileInfo_t,
    nvmlComputeInstanceProfileInfo_v2_t, nvmlComputeInstanceProfileInfo_v3_t,
    nvmlGpuInstanceInfo_t, nvmlGpuInstancePlacement_t,
};

use super::{
    export,
    wire::{Array, Opaque, Out, Versioned, field, give},
};
use crate::{
    code::Code,
    library::{Kind, Present, on_compute, on_gpu, on_instance},
    mig,
    spec::{COMPUTE_PROFILE_INDICES, ComputeProfile, Profile},
    state::{Compute, Instance},
};

type GpuPlacement = nvmlGpuInstancePlacement_t;
type ComputePlacement = nvmlComputeInstancePlacement_t;

export! {
    fn nvmlDeviceCreateGpuInstance(device: Opaque, profile: c_uint, made: Out<'_, Opaque>) = |name| {
        on_gpu(name, device.handle(), |gpu| create(gpu, profile, None, made))
    };
    fn nvmlDeviceCreateGpuInstanceWithPlacement(
        device: Opaque, profile: c_uint, placement: Option<&GpuPlacement>, made: Out<'_, Opaque>,
    ) = |name| {
        on_gpu(name, device.handle(), |gpu| {
            let placement = placement.ok_or(Code::INVALID_ARGUMENT)?;
            create(gpu, profile, Some(placement), made)
        })
    };
    fn nvmlGpuInstanceDestroy(instance: Opaque) = |name| {
        on_instance(name, instance.handle(), |gpu, gi| {
            gpu.change(|_, state| mig::destroy(state, gi.serial))
        })
    };
    fn nvmlDeviceGetGpuInstances(
        device: Opaque, profile: c_uint, instances: Array<Opaque>, count: Out<'_, c_uint>,
    ) = |name| {
        on_gpu(name, device.handle(), |gpu| {
            let (_, profile) = mig::enabled(&gpu.gpu.facts, &gpu.state, profile)?;
            let these = gpu.state.instances.iter().filter(|gi| gi.profile == profile.id);
            let handles: Vec<_> = these.map(|gi| gpu.opaque(Kind::GpuInstance, gi.serial)).collect();
            list(&instances, count, &handles)
        })
    };
    fn nvmlDeviceGetGpuInstanceById(device: Opaque, id: c_uint, instance: Out<'_, Opaque>) = |name| {
        on_gpu(name, device.handle(), |gpu| {
            gpu.gpu.facts.mig()?;
            if !gpu.state.mig.0 {
                return Err(Code::NOT_SUPPORTED);
            }
            let found = gpu.state.instance(id).ok_or(Code::NOT_FOUND)?;
            give(instance, gpu.opaque(Kind::GpuInstance, found.serial))
        })
    };
    fn nvmlGpuInstanceGetInfo(instance: Opaque, info: Out<'_, nvmlGpuInstanceInfo_t>) = |name| {
        on_instance(name, instance.handle(), |gpu, gi| give(info, nvmlGpuInstanceInfo_t {
            device: gpu.opaque(Kind::Gpu, 0).cast(),
            id: gi.id,
            profileId: gi.profile,
            placement: GpuPlacement { start: gi.start, size: gi.size },
        }))
    };

    fn nvmlGpuInstanceGetComputeInstanceProfileInfo(
        instance: Opaque, index: c_uint, engine: c_uint, info: Out<'_, nvmlComputeInstanceProfileInfo_t>,
    ) = |name| {
        on_instance(name, instance.handle(), |gpu, gi| {
            let parent = parent(gpu, gi)?;
            give(info, first_layout(parent, by_index(parent, index, engine)?))
        })
    };
    fn nvmlGpuInstanceGetComputeInstanceProfileInfoV(
        instance: Opaque, index: c_uint, engine: c_uint, info: Versioned,
    ) = |name| {
        on_instance(name, instance.handle(), |gpu, gi| {
            let parent = parent(gpu, gi)?;
            named(&info, parent, by_index(parent, index, engine)?)
        })
    };
    fn nvmlGpuInstanceGetComputeInstancePossiblePlacements(
        instance: Opaque, profile: c_uint, array: Array<ComputePlacement>, count: Option<&mut c_uint>,
    ) = |name| {
        on_instance(name, instance.handle(), |gpu, gi| {
            let parent = parent(gpu, gi)?;
            let profile = parent.compute_by_id(profile).ok_or(Code::INVALID_ARGUMENT)?;
            let starts = parent.compute_starts(profile.slices);
            let placement = |start| ComputePlacement { start, size: profile.slices };
            array.answer(count, &starts.into_iter().map(placement).collect::<Vec<_>>())
        })
    };
    fn nvmlGpuInstanceGetComputeInstanceRemainingCapacity(
        instance: Opaque, profile: c_uint, count: Out<'_, c_uint>,
    ) = |name| {
        on_instance(name, instance.handle(), |gpu, gi| {
            gpu.session.hardware.allowed()?;
            give(count, mig::remaining_compute(&gpu.gpu.facts, &gpu.state, gi.serial, profile)?)
        })
    };
    fn nvmlGpuInstanceCreateComputeInstance(
        instance: Opaque, profile: c_uint, made: Out<'_, Opaque>,
    ) = |name| {
        on_instance(name, instance.handle(), |gpu, gi| create_compute(gpu, gi, profile, None, made))
    };
    fn nvmlGpuInstanceCreateComputeInstanceWithPlacement(
        instance: Opaque, profile: c_uint, placement: Option<&ComputePlacement>, made: Out<'_, Opaque>,
    ) = |name| {
        on_instance(name, instance.handle(), |gpu, gi| {
            let placement = placement.ok_or(Code::INVALID_ARGUMENT)?;
            create_compute(gpu, gi, profile, Some(placement), made)
        })
    };
    fn nvmlComputeInstanceDestroy(compute: Opaque) = |name| {
        on_compute(name, compute.handle(), |gpu, _, ci| {
            gpu.change(|_, state| mig::destroy_compute(state, ci.serial))
        })
    };
    fn nvmlGpuInstanceGetComputeInstances(
        instance: Opaque, profile: c_uint, instances: Array<Opaque>, count: Out<'_, c_uint>,
    ) = |name| {
        on_instance(name, instance.handle(), |gpu, gi| {
            parent(gpu, gi)?.compute_by_id(profile).ok_or(Code::INVALID_ARGUMENT)?;
            let these = gi.compute.iter().filter(|ci| ci.profile == profile);
            let handles: Vec<_> =
                these.map(|ci| gpu.opaque(Kind::ComputeInstance, ci.serial)).collect();
            list(&instances, count, &handles)
        })
    };
    fn nvmlGpuInstanceGetComputeInstanceById(
        instance: Opaque, id: c_uint, compute: Out<'_, Opaque>,
    ) = |name| {
        on_instance(name, instance.handle(), |gpu, gi| {
            let found = gi.compute.iter().find(|ci| ci.id == id).ok_or(Code::NOT_FOUND)?;
            give(compute, gpu.opaque(Kind::ComputeInstance, found.serial))
        })
    };
    fn nvmlComputeInstanceGetInfo(
        compute: Opaque, info: Out<'_, nvmlComputeInstanceInfo_t>,
    ) = |name| {
        on_compute(name, compute.handle(), |gpu, gi, ci| give(info, compute_info(gpu, gi, ci)))
    };
    fn nvmlComputeInstanceGetInfo_v2(
        compute: Opaque, info: Out<'_, nvmlComputeInstanceInfo_t>,
    ) = |name| {
        on_compute(name, compute.handle(), |gpu, gi, ci| give(info, compute_info(gpu, gi, ci)))
    };
}

/// Lists handles in an array that is large enough by contract.
fn list(array: &Array<Opaque>, count: Out<'_, c_uint>, handles: &[Opaque]) -> Result<(), Code> {
    array.fill(handles)?;
    give(count, c_uint::try_from(handles.len()).or(Err(Code::UNKNOWN))?)
}

fn create(
    gpu: &Present<'_>,
    profile: u32,
    placement: Option<&GpuPlacement>,
    made: Out<'_, Opaque>,
) -> Result<(), Code> {
    let made = made.ok_or(Code::INVALID_ARGUMENT)?;
    let serial = gpu.change(|facts, state| {
        let (_, known) = mig::enabled(facts, state, profile)?;
        if placement.is_some_and(|placement| placement.size != known.size) {
            return Err(Code::INVALID_ARGUMENT);
        }
        let id = mig::create(facts, state, profile, placement.map(|placement| placement.start))?;
        state.instance(id).map(|gi| gi.serial).ok_or(Code::UNKNOWN)
    })?;
    made.write(gpu.opaque(Kind::GpuInstance, serial));
    Ok(())
}

fn create_compute(
    gpu: &Present<'_>,
    gi: &Instance,
    profile: u32,
    placement: Option<&ComputePlacement>,
    made: Out<'_, Opaque>,
) -> Result<(), Code> {
    let made = made.ok_or(Code::INVALID_ARGUMENT)?;
    let known = parent(gpu, gi)?.compute_by_id(profile).ok_or(Code::INVALID_ARGUMENT)?;
    if placement.is_some_and(|placement| placement.size != known.slices) {
        return Err(Code::INVALID_ARGUMENT);
    }
    let start = placement.map(|placement| placement.start);
    let serial = gpu.change(|facts, state| {
        mig::create_compute(facts, state, gi.serial, profile, start)?;
        Ok(state.serials)
    })?;
    made.write(gpu.opaque(Kind::ComputeInstance, serial));
    Ok(())
}

fn compute_info(gpu: &Present<'_>, gi: &Instance, ci: &Compute) -> nvmlComputeInstanceInfo_t {
    nvmlComputeInstanceInfo_t {
        device: gpu.opaque(Kind::Mig, ci.serial).cast(),
        gpuInstance: gpu.opaque(Kind::GpuInstance, gi.serial).cast(),
        id: ci.id,
        profileId: ci.profile,
        placement: ComputePlacement { start: ci.start, size: ci.size },
    }
}

fn parent(gpu: &Present<'_>, gi: &Instance) -> Result<&'static Profile, Code> {
    gpu.gpu.facts.mig()?.by_id(gi.profile).ok_or(Code::UNKNOWN)
}

fn by_index(parent: &Profile, index: u32, engine: u32) -> Result<ComputeProfile, Code> {
    if index >= COMPUTE_PROFILE_INDICES || engine != 0 {
        return Err(Code::INVALID_ARGUMENT);
    }
    let mut profiles = parent.compute_profiles().into_iter();
    profiles.find(|profile| profile.index == index).ok_or(Code::NOT_SUPPORTED)
}

fn first_layout(parent: &Profile, profile: ComputeProfile) -> nvmlComputeInstanceProfileInfo_t {
    nvmlComputeInstanceProfileInfo_t {
        id: profile.id,
        sliceCount: profile.slices,
        instanceCount: parent.slices / profile.slices,
        multiprocessorCount: parent.compute_multiprocessors(profile.slices),
        sharedCopyEngineCount: parent.engines.copy,
        sharedDecoderCount: parent.engines.decoders,
        sharedEncoderCount: parent.engines.encoders,
        sharedJpegCount: parent.engines.jpeg,
        sharedOfaCount: parent.engines.ofa,
    }
}

/// The later layouts, which have a name.
fn named(info: &Versioned, parent: &Profile, profile: ComputeProfile) -> Result<(), Code> {
    let version = info.version()?;
    let first = first_layout(parent, profile);
    let name = field(&parent.device_name(profile.slices));
    let second = nvmlComputeInstanceProfileInfo_v2_t {
        version,
        id: first.id,
        sliceCount: first.sliceCount,
        instanceCount: first.instanceCount,
        multiprocessorCount: first.multiprocessorCount,
        sharedCopyEngineCount: first.sharedCopyEngineCount,
        sharedDecoderCount: first.sharedDecoderCount,
        sharedEncoderCount: first.sharedEncoderCount,
        sharedJpegCount: first.sharedJpegCount,
        sharedOfaCount: first.sharedOfaCount,
        name,
    };
    if version >> 24 == 2 {
        return info.give(2, second);
    }
    info.give(
        3,
        nvmlComputeInstanceProfileInfo_v3_t {
            version,
            id: second.id,
            sliceCount: second.sliceCount,
            instanceCount: second.instanceCount,
            multiprocessorCount: second.multiprocessorCount,
            sharedCopyEngineCount: second.sharedCopyEngineCount,
            sharedDecoderCount: second.sharedDecoderCount,
            sharedEncoderCount: second.sharedEncoderCount,
            sharedJpegCount: second.sharedJpegCount,
            sharedOfaCount: second.sharedOfaCount,
            name,
            capabilities: u32::from(parent.graphics()),
        },
    )
}
