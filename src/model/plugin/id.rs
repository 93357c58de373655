//! Device IDs: what the kubelet knows a device by.

use std::fmt;

use crate::model::{
    device::{Device, Part},
    gpu::{GpuUuid, Inventory},
};

/// A device ID: `GPU-…`, `MIG-…`, or for a MIG device that is carved on demand `GPU-…-mig-19-4` with profile
/// id and first memory slice, since its UUID does not exist yet; each with `::N` for a share.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct DeviceId {
    device: Named,
    share: Option<u32>,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Named {
    Gpu(GpuUuid),
    Mig(String),
    Placement { gpu: GpuUuid, profile: u32, start: u32 },
}

impl DeviceId {
    /// A whole GPU.
    pub fn gpu(gpu: &GpuUuid) -> Self {
        Self { device: Named::Gpu(gpu.clone()), share: None }
    }

    /// A MIG device that exists.
    pub fn mig(uuid: &str) -> Self {
        Self { device: Named::Mig(uuid.to_owned()), share: None }
    }

    /// A MIG device that is carved when it is allocated.
    pub fn placement(gpu: &GpuUuid, profile: u32, start: u32) -> Self {
        Self { device: Named::Placement { gpu: gpu.clone(), profile, start }, share: None }
    }

    /// A share of the device.
    pub fn share(&self, number: u32) -> Self {
        Self { share: Some(number), ..self.clone() }
    }

    /// Which share it is, of a shared device.
    pub fn share_number(&self) -> Option<u32> {
        self.share
    }

    /// Whether the device is carved when it is allocated.
    pub fn is_placement(&self) -> bool {
        matches!(self.device, Named::Placement { .. })
    }

    /// The ID without the share.
    pub fn device_name(&self) -> String {
        Self { share: None, ..self.clone() }.to_string()
    }

    /// Reads an ID. `None` for what is none of ours.
    pub fn parse(text: &str) -> Option<Self> {
        let (name, share) = match text.split_once("::") {
            Some((name, share)) => (name, Some(share.parse().ok()?)),
            None => (text, None),
        };
        if name.starts_with("MIG-") {
            return Some(Self { device: Named::Mig(name.to_owned()), share });
        }
        let device = match name.rsplit_once("-mig-") {
            None => Named::Gpu(GpuUuid(name.to_owned())),
            Some((gpu, place)) => {
                let (profile, start) = place.split_once('-')?;
                let (profile, start) = (profile.parse().ok()?, start.parse().ok()?);
                Named::Placement { gpu: GpuUuid(gpu.to_owned()), profile, start }
            }
        };
        name.starts_with("GPU-").then_some(Self { device, share })
    }

    /// The GPU that it names.
    pub fn gpu_uuid(&self) -> Option<&GpuUuid> {
        match &self.device {
            Named::Gpu(gpu) | Named::Placement { gpu, .. } => Some(gpu),
            Named::Mig(_) => None,
        }
    }

    /// The device of this node; `None` if there is none.
    pub fn resolve<'i>(&self, inventory: &'i Inventory) -> Option<Device<'i>> {
        let mut devices = inventory.gpus.iter().flat_map(Device::all);
        devices.find(|device| self.is(device))
    }

    /// Whether it is the ID of this device.
    pub fn is(&self, device: &Device<'_>) -> bool {
        match (&self.device, device.part) {
            (Named::Gpu(uuid), Part::Whole) => device.gpu.uuid == *uuid,
            (Named::Mig(uuid), Part::Mig(profile, placement)) => {
                let instance = device.gpu.instance(profile.id, placement);
                instance.and_then(|instance| instance.device()).is_some_and(|d| d.uuid == *uuid)
            }
            (Named::Placement { gpu, profile, start }, Part::Mig(other, placement)) => {
                device.gpu.uuid == *gpu && other.id == *profile && placement.start == *start
            }
            _ => false,
        }
    }
}

impl fmt::Display for DeviceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.device {
            Named::Gpu(uuid) => write!(f, "{uuid}")?,
            Named::Mig(uuid) => write!(f, "{uuid}")?,
            Named::Placement { gpu, profile, start } => write!(f, "{gpu}-mig-{profile}-{start}")?,
        }
        match self.share {
            Some(share) => write!(f, "::{share}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_read_as_it_is_written() {
        let gpu = GpuUuid("GPU-8f1c9d6e-0000-4000-8000-123456789abc".to_owned());
        let placement = DeviceId::placement(&gpu, 19, 4);
        for (id, text) in [
            (DeviceId::gpu(&gpu), "GPU-8f1c9d6e-0000-4000-8000-123456789abc"),
            (DeviceId::gpu(&gpu).share(3), "GPU-8f1c9d6e-0000-4000-8000-123456789abc::3"),
            (DeviceId::mig("MIG-1"), "MIG-1"),
            (placement.clone(), "GPU-8f1c9d6e-0000-4000-8000-123456789abc-mig-19-4"),
        ] {
            assert_eq!(id.to_string(), text);
            assert_eq!(DeviceId::parse(text), Some(id));
        }
        // The device plugin's API allows no more.
        assert!(placement.share(99).to_string().len() <= 63);
    }

    #[test]
    fn what_is_no_id_of_ours_is_none() {
        for text in ["", "nvidia0/vgpu1", "GPU-1::x", "GPU-1-mig-19", "GPU-1-mig-x-0", "all"] {
            assert_eq!(DeviceId::parse(text), None, "{text}");
        }
    }
}
