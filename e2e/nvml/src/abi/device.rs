//! What a device is: names, numbers, memory, modes.

use std::ffi::{c_char, c_int, c_uint};

use nvml_wrapper_sys::bindings::{
    nvmlDeviceAddressingMode_v1_t, nvmlDeviceAttributes_t, nvmlGpuFabricInfo_t,
    nvmlGpuFabricInfo_v2_t, nvmlGpuFabricInfo_v3_t, nvmlMemory_t, nvmlMemory_v2_t, nvmlPciInfo_t,
};

use super::{
    export,
    processes::running,
    wire::{self, Array, Opaque, Out, Versioned, field, give},
};
use crate::{
    code::Code,
    hardware::Facts,
    library::{Device, Present, on_device, on_gpu},
    reading::FabricHealth,
    spec::{Architecture, NvLinks, Profile},
};

const MIB: u64 = 1 << 20;
/// What the driver keeps of a GPU's memory.
const RESERVED: u64 = 600 * MIB;
/// `nvmlGpuFabricState_t`: the GPU has joined.
const COMPLETED: u8 = 3;
/// `nvmlDeviceAddressingModeType_t`: heterogeneous memory management.
const HMM: u32 = 1;

export! {
    fn nvmlDeviceGetName(device: Opaque, text: Array<c_char>, length: c_uint) = |name| {
        on_device(name, device.handle(), |device| text.text(length, &device.name()?))
    };
    fn nvmlDeviceGetUUID(device: Opaque, text: Array<c_char>, length: c_uint) = |name| {
        on_device(name, device.handle(), |device| {
            let compute = device.compute()?;
            let uuid = compute.map_or(&device.facts().uuid, |(_, compute)| &compute.uuid);
            text.text(length, uuid)
        })
    };
    fn nvmlDeviceGetSerial(device: Opaque, text: Array<c_char>, length: c_uint) = |name| {
        on_gpu(name, device.handle(), |gpu| text.text(length, &gpu.gpu.facts.serial))
    };
    fn nvmlDeviceGetIndex(device: Opaque, index: Out<'_, c_uint>) = |name| {
        on_device(name, device.handle(), |device| give(index, device.index()?))
    };
    fn nvmlDeviceGetMinorNumber(device: Opaque, minor: Out<'_, c_uint>) = |name| {
        on_gpu(name, device.handle(), |gpu| give(minor, gpu.gpu.facts.minor))
    };
    fn nvmlDeviceGetModuleId(device: Opaque, id: Out<'_, c_uint>) = |name| {
        on_gpu(name, device.handle(), |gpu| give(id, gpu.gpu.facts.index + 1))
    };
    fn nvmlDeviceGetBrand(device: Opaque, brand: Out<'_, c_uint>) = |name| {
        on_device(name, device.handle(), |device| give(brand, device.facts().spec.brand))
    };
    fn nvmlDeviceGetArchitecture(device: Opaque, architecture: Out<'_, c_uint>) = |name| {
        on_device(name, device.handle(), |device| {
            give(architecture, device.facts().spec.architecture as c_uint)
        })
    };
    fn nvmlDeviceGetCudaComputeCapability(
        device: Opaque, major: Out<'_, c_int>, minor: Out<'_, c_int>,
    ) = |name| {
        on_device(name, device.handle(), |device| {
            let capability = device.facts().spec.compute_capability;
            give(major, capability.0)?;
            give(minor, capability.1)
        })
    };
    fn nvmlDeviceGetPciInfo(device: Opaque, info: Out<'_, nvmlPciInfo_t>) = |name| {
        on_gpu(name, device.handle(), |gpu| give(info, pci(&gpu.gpu.facts)))
    };
    fn nvmlDeviceGetPciInfo_v2(device: Opaque, info: Out<'_, nvmlPciInfo_t>) = |name| {
        on_gpu(name, device.handle(), |gpu| give(info, pci(&gpu.gpu.facts)))
    };
    fn nvmlDeviceGetPciInfo_v3(device: Opaque, info: Out<'_, nvmlPciInfo_t>) = |name| {
        on_gpu(name, device.handle(), |gpu| give(info, pci(&gpu.gpu.facts)))
    };
    fn nvmlDeviceGetMemoryInfo(device: Opaque, info: Out<'_, nvmlMemory_t>) = |name| {
        on_device(name, device.handle(), |device| {
            let (total, reserved, used) = device.memory()?;
            let used = reserved + used;
            give(info, nvmlMemory_t { total, free: total - used, used })
        })
    };
    fn nvmlDeviceGetMemoryInfo_v2(device: Opaque, info: Versioned) = |name| {
        on_device(name, device.handle(), |device| {
            let (total, reserved, used) = device.memory()?;
            let (version, free) = (info.version()?, total - reserved - used);
            info.give(2, nvmlMemory_v2_t { version, total, reserved, free, used })
        })
    };
    fn nvmlDeviceGetAddressingMode(device: Opaque, mode: Versioned) = |name| {
        on_gpu(name, device.handle(), |_| {
            mode.give(1, nvmlDeviceAddressingMode_v1_t { version: mode.version()?, value: HMM })
        })
    };
    fn nvmlDeviceGetVirtualizationMode(device: Opaque, mode: Out<'_, c_uint>) = |name| {
        on_gpu(name, device.handle(), |_| give(mode, 0))
    };
    fn nvmlDeviceGetPersistenceMode(device: Opaque, mode: Out<'_, c_uint>) = |name| {
        on_gpu(name, device.handle(), |gpu| give(mode, u32::from(gpu.state.persistence)))
    };
    fn nvmlDeviceSetPersistenceMode(device: Opaque, mode: c_uint) = |name| {
        on_gpu(name, device.handle(), |gpu| {
            let on = switch(mode)?;
            gpu.change(|_, state| {
                state.persistence = on;
                Ok(())
            })
        })
    };
    fn nvmlDeviceGetComputeMode(device: Opaque, mode: Out<'_, c_uint>) = |name| {
        on_gpu(name, device.handle(), |gpu| give(mode, gpu.state.compute_mode))
    };
    fn nvmlDeviceSetComputeMode(device: Opaque, mode: c_uint) = |name| {
        on_gpu(name, device.handle(), |gpu| {
            if mode > 3 {
                return Err(Code::INVALID_ARGUMENT);
            }
            gpu.change(|_, state| {
                state.compute_mode = mode;
                Ok(())
            })
        })
    };
    fn nvmlDeviceGetGpuFabricInfo(device: Opaque, info: Out<'_, nvmlGpuFabricInfo_t>) = |name| {
        on_gpu(name, device.handle(), |gpu| give(info, fabric(gpu)?))
    };
    fn nvmlDeviceGetGpuFabricInfoV(device: Opaque, info: Versioned) = |name| {
        on_gpu(name, device.handle(), |gpu| give_fabric(&info, fabric(gpu)?, gpu.state.readings.fabric))
    };
    fn nvmlDeviceGetAttributes(device: Opaque, attributes: Out<'_, nvmlDeviceAttributes_t>) = |name| {
        on_device(name, device.handle(), |device| give(attributes, device.attributes()?))
    };
    fn nvmlDeviceGetAttributes_v2(
        device: Opaque, attributes: Out<'_, nvmlDeviceAttributes_t>,
    ) = |name| {
        on_device(name, device.handle(), |device| give(attributes, device.attributes()?))
    };
}

/// `nvmlEnableState_t`.
fn switch(mode: c_uint) -> Result<bool, Code> {
    match mode {
        0 => Ok(false),
        1 => Ok(true),
        _ => Err(Code::INVALID_ARGUMENT),
    }
}

/// Where the GPU is in the machine's fabric, if it joins one.
fn fabric(gpu: &Present<'_>) -> Result<nvmlGpuFabricInfo_t, Code> {
    let joins = matches!(gpu.gpu.facts.spec.nvlinks, NvLinks::Switched(_))
        && gpu.gpu.facts.spec.architecture >= Architecture::Hopper;
    let fabric = gpu.session.hardware.node.fabric.as_ref().filter(|_| joins);
    let fabric = fabric.ok_or(Code::NOT_SUPPORTED)?;
    let cluster = fabric.cluster.as_deref().unwrap_or("0").replace('-', "");
    let cluster = u128::from_str_radix(&cluster, 16).or(Err(Code::UNKNOWN))?;
    Ok(nvmlGpuFabricInfo_t {
        clusterUuid: cluster.to_be_bytes(),
        status: 0,
        cliqueId: fabric.clique,
        state: COMPLETED,
    })
}

/// In the layout that the caller has.
fn give_fabric(
    to: &Versioned,
    info: nvmlGpuFabricInfo_t,
    health: FabricHealth,
) -> Result<(), Code> {
    let version = to.version()?;
    let nvmlGpuFabricInfo_t { clusterUuid, status, cliqueId, state } = info;
    let FabricHealth { mask: healthMask, summary: healthSummary } = health;
    if version == wire::version::<nvmlGpuFabricInfo_v2_t>(2) {
        let info =
            nvmlGpuFabricInfo_v2_t { version, clusterUuid, status, cliqueId, state, healthMask };
        return to.give(2, info);
    }
    to.give(
        3,
        nvmlGpuFabricInfo_v3_t {
            version,
            clusterUuid,
            status,
            cliqueId,
            state,
            healthMask,
            healthSummary,
        },
    )
}

pub(super) fn pci(facts: &Facts) -> nvmlPciInfo_t {
    pci_info(facts.bus, facts.spec.pci_device, 0x16c1_10de)
}

pub(super) fn pci_info(bus: u32, device: u32, subsystem: u32) -> nvmlPciInfo_t {
    nvmlPciInfo_t {
        busIdLegacy: field(&format!("0000:{bus:02X}:00.0")),
        domain: 0,
        bus,
        device: 0,
        pciDeviceId: device << 16 | 0x10de,
        pciSubSystemId: subsystem,
        busId: field(&format!("00000000:{bus:02X}:00.0")),
    }
}

impl Device<'_> {
    fn facts(&self) -> &Facts {
        &self.present.gpu.facts
    }

    fn name(&self) -> Result<String, Code> {
        let product = self.facts().spec.name;
        let Some((gi, ci)) = self.compute()? else { return Ok(product.to_owned()) };
        let profile = self.profile(gi.profile)?;
        Ok(format!("{product} {}", profile.device_name(ci.size)))
    }

    fn profile(&self, id: u32) -> Result<&'static Profile, Code> {
        self.facts().mig()?.by_id(id).ok_or(Code::UNKNOWN)
    }

    /// Among all GPUs, or among the MIG devices of one.
    fn index(&self) -> Result<u32, Code> {
        let before = match self.compute()? {
            Some((_, ci)) => {
                let devices = self.present.state.devices();
                devices.take_while(|(_, other)| other.serial != ci.serial).count()
            }
            None => {
                let gpus = self.present.session.hardware.seen();
                gpus.take_while(|gpu| gpu.facts.index < self.facts().index).count()
            }
        };
        u32::try_from(before).or(Err(Code::UNKNOWN))
    }

    /// Bytes in all, kept by the driver, and used by processes.
    fn memory(&self) -> Result<(u64, u64, u64), Code> {
        let mib = match self.compute()? {
            None => self.facts().spec.memory_mib,
            Some((gi, _)) => self.profile(gi.profile)?.memory_mib,
        };
        let (total, reserved) = (mib * MIB, RESERVED.min(mib * MIB / 16));
        let used: u64 = running(self)?.iter().map(|process| process.load.memory).sum();
        Ok((total, reserved, used.min(total - reserved)))
    }

    fn attributes(&self) -> Result<nvmlDeviceAttributes_t, Code> {
        let (gi, ci) = self.mig()?;
        let profile = self.profile(gi.profile)?;
        let engines = profile.engines;
        Ok(nvmlDeviceAttributes_t {
            multiprocessorCount: profile.compute_multiprocessors(ci.size),
            sharedCopyEngineCount: engines.copy,
            sharedDecoderCount: engines.decoders,
            sharedEncoderCount: engines.encoders,
            sharedJpegCount: engines.jpeg,
            sharedOfaCount: engines.ofa,
            gpuInstanceSliceCount: profile.slices,
            computeInstanceSliceCount: ci.size,
            memorySizeMB: profile.memory_mib,
        })
    }
}
