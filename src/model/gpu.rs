//! What NVML says about a node, as values.

use std::{fmt, sync::Arc};

use serde::{Deserialize, Serialize};

/// A GPU's UUID as NVML and `nvidia-smi` print it: `GPU-…`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct GpuUuid(pub String);

impl fmt::Display for GpuUuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Everything that one look at the node's GPUs found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Inventory {
    /// The loaded driver.
    pub driver: DriverVersions,
    /// The GPUs that answered, in the order of their number.
    pub gpus: Vec<Gpu>,
    /// The GPUs that did not, which stops none of the others.
    pub unreadable: Vec<Unreadable>,
}

impl Inventory {
    /// The GPU with this UUID, if it answered.
    pub fn gpu(&self, uuid: &GpuUuid) -> Option<&Gpu> {
        self.gpus.iter().find(|gpu| gpu.uuid == *uuid)
    }

    /// The GPUs with those that have fallen silent, in the order of their number.
    pub fn known(&self) -> Vec<&Gpu> {
        let silent = self.unreadable.iter().filter_map(|gpu| gpu.known.as_deref());
        let mut known: Vec<_> = self.gpus.iter().chain(silent).collect();
        known.sort_by_key(|gpu| gpu.number);
        known
    }

    /// Why a GPU does not answer; absent for one that does.
    pub fn silence(&self, uuid: &GpuUuid) -> Option<&Unreadable> {
        self.unreadable.iter().find(|gpu| gpu.uuid.as_ref() == Some(uuid))
    }

    /// Replaces what it says of a GPU by what `known` says.
    pub fn keep(&mut self, known: &Self, uuid: &GpuUuid) {
        let silent = |gpu: &Unreadable| gpu.uuid.as_ref() == Some(uuid);
        self.gpus.retain(|gpu| gpu.uuid != *uuid);
        self.unreadable.retain(|gpu| !silent(gpu));
        self.gpus.extend(known.gpu(uuid).cloned());
        self.unreadable.extend(known.unreadable.iter().filter(|gpu| silent(gpu)).cloned());
        self.gpus.sort_by_key(|gpu| gpu.number);
        self.unreadable.sort_by_key(|gpu| gpu.index);
    }
}

/// Versions of the loaded driver.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct DriverVersions {
    /// As `nvmlSystemGetDriverVersion` says it, such as `580.95.05`.
    pub driver: String,
    /// Major and minor of the CUDA version that the driver supports.
    #[serde(serialize_with = "dotted::serialize")]
    pub cuda: (u32, u32),
}

/// Major and minor as people write them: `13.0`.
mod dotted {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(super) fn serialize<S: Serializer>(
        (major, minor): &(u32, u32),
        to: S,
    ) -> Result<S::Ok, S::Error> {
        to.collect_str(&format_args!("{major}.{minor}"))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<(u32, u32), D::Error> {
        let text = String::deserialize(from)?;
        let numbers = text
            .split_once('.')
            .and_then(|(major, minor)| Some((major.parse().ok()?, minor.parse().ok()?)));
        numbers.ok_or_else(|| D::Error::custom(format_args!("`{text}` is not as in `13.0`")))
    }
}

/// A GPU that could not be read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Unreadable {
    /// NVML's index, as `nvidia-smi` shows it.
    pub index: u32,
    /// Known when the GPU got that far, or was known before.
    pub uuid: Option<GpuUuid>,
    /// One line: the call and its answer.
    pub reason: String,
    /// Whether it fell off the bus: only a reset brings it back, and that ends all that was carved.
    pub lost: bool,
    /// The GPU as it was when it last answered; absent if it never did.
    #[serde(skip)]
    pub known: Option<Arc<Gpu>>,
}

impl Unreadable {
    /// A GPU that does not answer, for a reason in one line.
    pub fn silent(index: u32, uuid: Option<GpuUuid>, reason: String) -> Self {
        Self { index, uuid, reason, lost: false, known: None }
    }
}

/// One physical GPU.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Gpu {
    /// The N of `gpu-N`: the minor number at first sight, fixed for a boot.
    pub number: u32,
    /// NVML's index, as `nvidia-smi` shows it.
    pub index: u32,
    /// The N of `/dev/nvidiaN`; a switch of MIG mode may change it.
    pub minor: u32,
    /// `GPU-…`.
    pub uuid: GpuUuid,
    /// Such as `NVIDIA H100 80GB HBM3`.
    pub product: String,
    /// Such as `Nvidia` or `Tesla`, in the spelling of NVIDIA's driver.
    pub brand: String,
    /// Such as `Hopper`.
    pub architecture: String,
    /// Major and minor.
    #[serde(with = "dotted")]
    pub compute_capability: (u32, u32),
    /// Bytes; absent where NVML does not tell (unified memory).
    #[serde(rename = "memoryBytes")]
    pub memory: Option<u64>,
    /// PCI address in sysfs's spelling: `0000:1b:00.0`.
    pub pci: String,
    /// Such as `pci0000:1a`; absent when sysfs does not tell.
    pub pcie_root: Option<String>,
    /// PCI class in sysfs's spelling, such as `0x030200`; absent when sysfs does not tell.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pci_class: Option<String>,
    /// NUMA node; absent when there is none.
    pub numa_node: Option<u32>,
    /// `HMM`, `ATS` or `None`; absent when the driver does not tell.
    pub addressing_mode: Option<String>,
    /// Absent on a GPU that shares no NVLink fabric with other machines.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fabric: Option<Fabric>,
    /// Absent on a GPU that has no MIG.
    pub mig: Option<Mig>,
}

impl Gpu {
    /// The GPU without what work on it changes: what it was cut into, and a mode that switches for that.
    pub fn uncut(&self) -> Self {
        let mut gpu = self.clone();
        if let Some(mig) = &mut gpu.mig {
            mig.instances.clear();
            if mig.switches_without_reset {
                (mig.enabled, mig.pending) = (false, false);
            }
        }
        gpu
    }

    /// The instance of this profile at this place.
    pub fn instance(&self, profile: u32, placement: Placement) -> Option<&GpuInstance> {
        self.mig
            .as_ref()?
            .instances
            .iter()
            .find(|instance| instance.profile == profile && instance.placement == placement)
    }
}

/// Where a GPU is in an NVLink fabric of several machines.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Fabric {
    /// UUID of the cluster that the fabric connects.
    pub cluster: String,
    /// The part of it in which each GPU reaches each other.
    pub clique: u32,
}

/// The MIG side of a GPU that has one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Mig {
    /// MIG mode now.
    pub enabled: bool,
    /// MIG mode after the next reset; differs from `enabled` while a switch waits for one.
    pub pending: bool,
    /// Whether the mode switches without a reset (Hopper and later).
    pub switches_without_reset: bool,
    /// What can be carved, in the order of NVML's enumerators.
    pub profiles: Vec<Profile>,
    /// What is carved, whoever did it.
    pub instances: Vec<GpuInstance>,
}

impl Mig {
    /// The profile with this id.
    pub fn profile(&self, id: u32) -> Option<&Profile> {
        self.profiles.iter().find(|profile| profile.id == id)
    }

    /// How many memory slices the GPU has: the end of the furthest placement.
    pub fn memory_slices(&self) -> u32 {
        let placements = self.profiles.iter().flat_map(|profile| &profile.placements);
        placements.map(|placement| placement.end()).max().unwrap_or(0)
    }
}

/// A GPU instance profile whose instances are filled by one compute instance.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Profile {
    /// NVML's enumerator, which asks for the profile; never the id.
    pub index: u32,
    /// NVML's profile id, which creates: what `nvidia-smi mig -lgip` prints.
    pub id: u32,
    /// Such as `1g.10gb+me`, in the words of the driver.
    pub name: String,
    /// Compute slices.
    pub slices: u32,
    /// How many instances of it fit at most.
    pub max_instances: u32,
    /// What an instance of it has.
    pub capacity: Capacity,
    /// Where instances of it may lie.
    pub placements: Vec<Placement>,
}

/// What an instance of a profile has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Capacity {
    /// Streaming multiprocessors.
    pub multiprocessors: u32,
    /// Copy engines.
    pub copy_engines: u32,
    /// Video decoders.
    pub decoders: u32,
    /// Video encoders.
    pub encoders: u32,
    /// JPEG engines.
    pub jpeg_engines: u32,
    /// Optical flow engines.
    pub ofa_engines: u32,
    /// Bytes.
    #[serde(rename = "memoryBytes")]
    pub memory: u64,
}

/// A run of memory slices.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Placement {
    /// First memory slice.
    pub start: u32,
    /// Number of memory slices.
    pub size: u32,
}

impl Placement {
    /// The memory slice after the last.
    pub fn end(self) -> u32 {
        self.start.saturating_add(self.size)
    }

    /// Whether the two share a memory slice.
    pub fn overlaps(self, other: Self) -> bool {
        self.start < other.end() && other.start < self.end()
    }
}

/// A GPU instance that exists.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct GpuInstance {
    /// NVML's id, used again after the instance is gone.
    pub id: u32,
    /// Id of its profile.
    pub profile: u32,
    /// Where it lies.
    pub placement: Placement,
    /// What computes in it. Kerf makes exactly one, which fills the instance.
    pub compute: Vec<ComputeInstance>,
}

/// A compute instance that exists.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ComputeInstance {
    /// NVML's id within the GPU instance.
    pub id: u32,
    /// UUID of the MIG device: `MIG-…`.
    pub uuid: String,
    /// Whether it has all compute slices of its GPU instance.
    pub fills: bool,
}

impl GpuInstance {
    /// The one compute instance that fills this GPU instance; absent for any other shape, which a
    /// claim cannot be given.
    pub fn device(&self) -> Option<&ComputeInstance> {
        match self.compute.as_slice() {
            [only] if only.fills => Some(only),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests;
