//! How GPUs are joined: over PCIe as they are plugged in, and by NVLinks.

use std::ffi::c_uint;

use nvml_wrapper_sys::bindings::{
    nvmlGpuLevel_enum_NVML_TOPOLOGY_HOSTBRIDGE as HOSTBRIDGE,
    nvmlGpuLevel_enum_NVML_TOPOLOGY_INTERNAL as INTERNAL,
    nvmlGpuLevel_enum_NVML_TOPOLOGY_NODE as NODE, nvmlGpuLevel_enum_NVML_TOPOLOGY_SYSTEM as SYSTEM,
    nvmlIntNvLinkDeviceType_enum_NVML_NVLINK_DEVICE_TYPE_GPU as TO_GPU,
    nvmlIntNvLinkDeviceType_enum_NVML_NVLINK_DEVICE_TYPE_SWITCH as TO_SWITCH, nvmlPciInfo_t,
};

use super::{
    device::{pci, pci_info},
    export,
    wire::{Opaque, Out, give},
};
use crate::{
    code::Code,
    hardware::Facts,
    library::{Present, on_gpu},
    spec::NvLinks,
};

export! {
    fn nvmlDeviceGetTopologyCommonAncestor(
        device: Opaque, other: Opaque, level: Out<'_, c_uint>,
    ) = |name| {
        on_gpu(name, device.handle(), |gpu| {
            give(level, ancestor(&gpu.gpu.facts, &gpu.other(other.handle())?.gpu.facts))
        })
    };
    fn nvmlDeviceGetNvLinkState(device: Opaque, link: c_uint, active: Out<'_, c_uint>) = |name| {
        on_gpu(name, device.handle(), |gpu| give(active, c_uint::from(end(gpu, link)?.is_some())))
    };
    fn nvmlDeviceGetNvLinkRemoteDeviceType(
        device: Opaque, link: c_uint, kind: Out<'_, c_uint>,
    ) = |name| {
        on_gpu(name, device.handle(), |gpu| {
            give(kind, end(gpu, link)?.ok_or(Code::NOT_SUPPORTED)?.0)
        })
    };
    fn nvmlDeviceGetNvLinkRemotePciInfo(
        device: Opaque, link: c_uint, info: Out<'_, nvmlPciInfo_t>,
    ) = |name| {
        on_gpu(name, device.handle(), |gpu| {
            give(info, end(gpu, link)?.ok_or(Code::NOT_SUPPORTED)?.1)
        })
    };
    fn nvmlDeviceGetNvLinkRemotePciInfo_v2(
        device: Opaque, link: c_uint, info: Out<'_, nvmlPciInfo_t>,
    ) = |name| {
        on_gpu(name, device.handle(), |gpu| {
            give(info, end(gpu, link)?.ok_or(Code::NOT_SUPPORTED)?.1)
        })
    };
}

/// Where the way from one GPU to another over PCIe turns. No two share a PCIe switch.
fn ancestor(gpu: &Facts, other: &Facts) -> c_uint {
    let same_root = gpu.pcie_root.is_some() && gpu.pcie_root == other.pcie_root;
    match () {
        () if gpu.index == other.index => INTERNAL,
        () if same_root => HOSTBRIDGE,
        () if gpu.numa == other.numa => NODE,
        () => SYSTEM,
    }
}

/// What an NVLink leads to, and its address; nothing if the link is down.
fn end(gpu: &Present<'_>, link: c_uint) -> Result<Option<(c_uint, nvmlPciInfo_t)>, Code> {
    let facts = &gpu.gpu.facts;
    match facts.spec.nvlinks {
        NvLinks::None => Err(Code::NOT_SUPPORTED),
        NvLinks::Bridged(links) | NvLinks::Switched(links) if link >= links => {
            Err(Code::INVALID_ARGUMENT)
        }
        NvLinks::Bridged(_) => Ok(beside(gpu).map(|other| (TO_GPU, pci(other)))),
        // A board has several switches, which take turns.
        NvLinks::Switched(_) => Ok(Some((TO_SWITCH, pci_info(0xf0 + link % 4, 0x22a3, 0)))),
    }
}

/// The other card under the same bridge: the first and the second have one, the third and the fourth, …
fn beside<'s>(gpu: &Present<'s>) -> Option<&'s Facts> {
    let facts = &gpu.gpu.facts;
    let mut all = gpu.session.hardware.gpus.iter().map(|gpu| &gpu.facts);
    all.find(|other| other.index == facts.index ^ 1 && std::ptr::eq(other.spec, facts.spec))
}
