//! Reading: one GPU at a time, so that one that answers with errors or hangs stops no other.

use std::sync::PoisonError;

use nvml_wrapper::error::NvmlError;

use super::{
    Error, Nvml,
    raw::{DeviceHandle, On},
};
use crate::model::gpu::{Capacity, Gpu, GpuUuid, Mig, Placement, Profile, Unreadable};

/// No driver has more enumerators of profiles; each tells its own end.
const MOST_PROFILES: u32 = 64;

/// Architectures from this number on switch MIG mode without a reset.
const HOPPER: u32 = 9;

impl Nvml {
    /// Reads the GPU with this index. What sysfs knows (`numa_node`, `pci_class`, `pcie_root`) is
    /// left out, and `number` is the minor number.
    ///
    /// # Errors
    /// The GPU with the first call that failed.
    pub fn gpu(&self, index: u32) -> Result<Gpu, Unreadable> {
        let mut uuid = None;
        self.read(index, &mut uuid).map_err(|error| Unreadable {
            index,
            uuid,
            reason: error.with_remedy(),
            lost: error.lost(),
            known: None,
        })
    }

    fn read(&self, index: u32, known: &mut Option<GpuUuid>) -> Result<Gpu, Error> {
        let function = "nvmlDeviceGetHandleByIndex_v2";
        let device = self.on_gpu(index, function, || self.library.device_by_index(index))?;
        let uuid = GpuUuid(self.on_gpu(index, "nvmlDeviceGetUUID", || device.uuid())?);
        *known = Some(uuid.clone());
        let handle = DeviceHandle::of(&device);
        self.handles.lock().unwrap_or_else(PoisonError::into_inner).insert(uuid.clone(), handle);
        let on = On { nvml: self, index, handle };

        let minor = self.on_gpu(index, "nvmlDeviceGetMinorNumber", || device.minor_number())?;
        let pci = self.on_gpu(index, "nvmlDeviceGetPciInfo_v3", || device.pci_info())?;
        let capability = self.on_gpu(index, "nvmlDeviceGetCudaComputeCapability", || {
            device.cuda_compute_capability()
        })?;
        let architecture = on.architecture()?;
        let memory = optional(on.memory())?;
        let mig = self.mig(on, &uuid, memory, architecture >= HOPPER)?;
        Ok(Gpu {
            number: minor,
            index,
            minor,
            uuid,
            product: self.on_gpu(index, "nvmlDeviceGetName", || device.name())?,
            brand: brand_name(on.brand()?).to_owned(),
            architecture: architecture_name(architecture).to_owned(),
            compute_capability: (unsigned(capability.major), unsigned(capability.minor)),
            memory,
            pci: sysfs_address(&pci.bus_id),
            pcie_root: None,
            pci_class: None,
            numa_node: None,
            addressing_mode: optional(on.addressing_mode())?.and_then(addressing_mode_name),
            // Only labels tell it: a driver that cannot say it has a GPU all the same.
            fabric: on.fabric().ok().flatten(),
            mig,
        })
    }

    fn mig(
        &self,
        on: On<'_>,
        gpu: &GpuUuid,
        memory: Option<u64>,
        resetless: bool,
    ) -> Result<Option<Mig>, Error> {
        let Some((enabled, pending)) = optional(on.mig_mode())? else { return Ok(None) };
        let profiles = self.profiles(on, memory)?;
        let instances = if enabled { on.instances(gpu, &profiles)? } else { Vec::new() };
        let switches_without_reset = resetless;
        Ok(Some(Mig { enabled, pending, switches_without_reset, profiles, instances }))
    }

    fn profiles(&self, on: On<'_>, memory: Option<u64>) -> Result<Vec<Profile>, Error> {
        let mut profiles = Vec::new();
        for index in 0..MOST_PROFILES {
            let info = match on.profile(index) {
                Ok(info) => info,
                Err(error) if error.not_supported() => continue,
                Err(error) if error.invalid_argument() => break,
                Err(error) => return Err(error),
            };
            let slices = info.sliceCount;
            let capacity = Capacity {
                multiprocessors: info.multiprocessorCount,
                copy_engines: info.copyEngineCount,
                decoders: info.decoderCount,
                encoders: info.encoderCount,
                jpeg_engines: info.jpegCount,
                ofa_engines: info.ofaCount,
                memory: info.memorySizeMB.saturating_mul(1 << 20),
            };
            let Some(name) = profile_name(on, index, slices, capacity.memory, memory) else {
                self.warn_once(on.index, index);
                continue;
            };
            let placements = on.placements(info.id)?;
            let placements = placements.into_iter().map(|(start, size)| Placement { start, size });
            profiles.push(Profile {
                index,
                id: info.id,
                name,
                slices,
                max_instances: info.instanceCount,
                capacity,
                placements: placements.collect(),
            });
        }
        Ok(profiles)
    }

    /// A GPU is read again and again, and its profiles stay as they are.
    fn warn_once(&self, gpu: u32, profile: u32) {
        let mut warned = self.nameless.lock().unwrap_or_else(PoisonError::into_inner);
        if warned.insert((gpu, profile)) {
            tracing::warn!(gpu, profile, "a MIG profile without a name is left out");
        }
    }

    pub(super) fn on_gpu<T>(
        &self,
        index: u32,
        function: &'static str,
        call: impl FnOnce() -> Result<T, NvmlError>,
    ) -> Result<T, Error> {
        let _underway = self.calls.enter(function, Some(index));
        call().map_err(|source| Error::new(function, Some(index), source))
    }
}

/// `None` for what the GPU or an older driver does not tell.
fn optional<T>(answer: Result<T, Error>) -> Result<Option<T>, Error> {
    match answer {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.lacking() => Ok(None),
        Err(error) => Err(error),
    }
}

/// The driver's name for a profile without its `MIG ` prefix, or, from a driver that has none, the
/// computed one.
fn profile_name(
    on: On<'_>,
    index: u32,
    slices: u32,
    bytes: u64,
    total: Option<u64>,
) -> Option<String> {
    match on.profile_name(index) {
        Ok(name) if !name.is_empty() => Some(name.strip_prefix("MIG ").unwrap_or(&name).to_owned()),
        _ => computed_name(index, slices, bytes, total?),
    }
}

/// `<slices>g.<GB>gb` with the suffix of the enumerator, as NVIDIA's go-nvlib computes it; `None` for
/// an enumerator that it is not known for.
fn computed_name(index: u32, slices: u32, bytes: u64, total: u64) -> Option<String> {
    let suffix = match index {
        0..=6 | 9 => "",
        7 | 8 => "+me",
        10..=12 | 17 => "+gfx",
        13 | 14 => "-me",
        15 | 16 => "+me.all",
        _ => return None,
    };
    let eighths = bytes.saturating_mul(8).div_ceil(total.max(1));
    let gigabytes = total.div_ceil(1 << 30).saturating_mul(eighths).saturating_add(4) / 8;
    Some(format!("{slices}g.{gigabytes}gb{suffix}"))
}

/// NVML's `00000000:1B:00.0` as sysfs writes it: `0000:1b:00.0`.
pub(super) fn sysfs_address(bus_id: &str) -> String {
    let address = bus_id.to_ascii_lowercase();
    match address.strip_prefix("0000") {
        Some(short) if short.find(':') == Some(4) => short.to_owned(),
        _ => address,
    }
}

fn unsigned(number: i32) -> u32 {
    u32::try_from(number).unwrap_or_default()
}

/// Names as NVIDIA's driver publishes them; numbers of `nvmlBrandType_t`.
fn brand_name(brand: u32) -> &'static str {
    match brand {
        1 => "Quadro",
        2 => "Tesla",
        3 => "NVS",
        4 => "Grid",
        5 => "GeForce",
        6 => "Titan",
        7 => "NvidiaVApps",
        8 => "NvidiaVPC",
        9 => "NvidiaVCS",
        10 => "NvidiaVWS",
        11 => "NvidiaCloudGaming",
        12 => "QuadroRTX",
        13 => "NvidiaRTX",
        14 => "Nvidia",
        15 => "GeForceRTX",
        16 => "TitanRTX",
        _ => "Unknown",
    }
}

/// Names as NVIDIA's driver publishes them; numbers of `nvmlDeviceArchitecture_t`.
fn architecture_name(architecture: u32) -> &'static str {
    match architecture {
        2 => "Kepler",
        3 => "Maxwell",
        4 => "Pascal",
        5 => "Volta",
        6 => "Turing",
        7 => "Ampere",
        8 => "Ada Lovelace",
        9 => "Hopper",
        10 => "Blackwell",
        _ => "Unknown",
    }
}

/// Numbers of `nvmlDeviceAddressingModeType_t`.
fn addressing_mode_name(mode: u32) -> Option<String> {
    let name = match mode {
        0 => "None",
        1 => "HMM",
        2 => "ATS",
        _ => return None,
    };
    Some(name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pci_address_is_written_as_sysfs_does() {
        assert_eq!(sysfs_address("00000000:1B:00.0"), "0000:1b:00.0");
        assert_eq!(sysfs_address("00010000:1B:00.0"), "00010000:1b:00.0");
        assert_eq!(sysfs_address("0000:1B:00.0"), "0000:1b:00.0");
    }

    #[test]
    fn a_computed_profile_name_is_the_usual_one() {
        let gib = 1 << 30;
        let mib = 1 << 20;
        let names = [(0, 1, 9856), (7, 1, 9856), (9, 1, 19968), (2, 3, 40192), (4, 7, 80384)]
            .map(|(index, slices, size)| computed_name(index, slices, size * mib, 80 * gib));
        assert_eq!(
            names.map(Option::unwrap),
            ["1g.10gb", "1g.10gb+me", "1g.20gb", "3g.40gb", "7g.80gb"]
        );
        assert_eq!(computed_name(40, 1, 9856 * mib, 80 * gib), None);
    }
}
