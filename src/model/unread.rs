//! Records that cannot be read. What they say somebody holds is held all the same: as far as other
//! sources tell which GPUs that is, those are withheld, else all are.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use crate::model::{
    cdi::{self, Spec},
    device::{self, Device, Target},
    gpu::{Gpu, GpuUuid, Inventory},
    holder::Holder,
    plan::Origin,
    plugin::id::DeviceId,
    record::Held,
};

/// A record that is there and cannot be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unread {
    /// Whose it is, as far as the file's name says.
    pub holder: Holder,
    /// Where it is.
    pub file: String,
    /// What is wrong with it, in one line.
    pub reason: String,
    /// What another source says of its devices; absent where none does.
    pub told: Option<Told>,
}

/// What a source other than its record says of a claim's devices.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Told {
    /// Their names, as published.
    pub names: BTreeSet<String>,
    /// The N of each `/dev/nvidiaN`.
    pub minors: BTreeSet<u32>,
}

impl Told {
    /// What a claim's CDI file says; absent for a file that is not as Kerf writes it.
    pub fn by_spec(uid: &str, spec: &Spec) -> Option<Self> {
        let mut told = Self::default();
        for device in &spec.devices {
            told.names.insert(cdi::device_of_local_name(uid, &device.name)?.to_owned());
            let nodes = device.container_edits.device_nodes.iter();
            told.minors.extend(nodes.filter_map(|node| minor(&node.path)));
        }
        (!told.names.is_empty()).then_some(told)
    }

    /// What the qualified CDI names say that the kubelet lists; absent if it lists none of the claim.
    pub fn by_kubelet(uid: &str, listed: &BTreeSet<String>) -> Option<Self> {
        let names = listed.iter().filter_map(|name| cdi::device_of_name(uid, name));
        let names: BTreeSet<_> = names.map(str::to_owned).collect();
        (!names.is_empty()).then(|| Self { names, ..Self::default() })
    }
}

/// The N of `/dev/nvidiaN`.
fn minor(path: &str) -> Option<u32> {
    path.strip_prefix("/dev/nvidia")?.parse().ok()
}

/// What is withheld because of one record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Withheld {
    holder: Holder,
    file: String,
    reason: String,
    /// Nothing new on these; absent for all GPUs.
    gpus: Option<BTreeSet<GpuUuid>>,
    /// The devices that it is about, by name, as far as they are on this node.
    devices: Vec<(String, Target)>,
}

impl Unread {
    /// What is withheld on a node with these GPUs, of which `numbers` are the N of `gpu-N`.
    pub fn withheld(&self, inventory: &Inventory, numbers: &BTreeMap<GpuUuid, u32>) -> Withheld {
        let known = inventory.known();
        let (gpus, devices) = match &self.holder {
            Holder::Container(container) => of_id(&container.id, &known),
            Holder::Claim(_) => match &self.told {
                Some(told) => (told.gpus(&known, numbers), told.devices(&known)),
                None => (None, Vec::new()),
            },
        };
        let (holder, file, reason) = (self.holder.clone(), self.file.clone(), self.reason.clone());
        Withheld { holder, file, reason, gpus, devices }
    }
}

impl Told {
    /// `None` if one of the devices is on a GPU that is not known.
    fn gpus(&self, known: &[&Gpu], numbers: &BTreeMap<GpuUuid, u32>) -> Option<BTreeSet<GpuUuid>> {
        let mut gpus = BTreeSet::new();
        for name in &self.names {
            let numbered = numbers.iter().map(|(uuid, number)| (uuid, *number));
            let mut all = numbered.chain(known.iter().map(|gpu| (&gpu.uuid, gpu.number)));
            gpus.insert(all.find(|(_, number)| device::is_of(name, *number))?.0.clone());
        }
        // Numbers may have been given anew since; too much is held rather than too little.
        let minors = known.iter().filter(|gpu| self.minors.contains(&gpu.minor));
        gpus.extend(minors.map(|gpu| gpu.uuid.clone()));
        Some(gpus)
    }

    fn devices(&self, known: &[&Gpu]) -> Vec<(String, Target)> {
        let devices = known.iter().flat_map(|gpu| Device::all(gpu));
        let named = devices.map(|device| (device.name(), device.target()));
        named.filter(|(name, _)| self.names.contains(name)).collect()
    }
}

/// What a device ID says by itself.
fn of_id(id: &str, known: &[&Gpu]) -> (Option<BTreeSet<GpuUuid>>, Vec<(String, Target)>) {
    let Some(id) = DeviceId::parse(id) else { return (None, Vec::new()) };
    let device = known.iter().flat_map(|gpu| Device::all(gpu)).find(|device| id.is(device));
    let gpu = device.map(|device| &device.gpu.uuid).or(id.gpu_uuid()).cloned();
    let devices = device.map(|device| (device.name(), device.target()));
    (gpu.map(|gpu| BTreeSet::from([gpu])), devices.into_iter().collect())
}

impl Withheld {
    /// Whether nothing new may be begun on a GPU because of it.
    pub fn concerns(&self, gpu: &GpuUuid) -> bool {
        self.gpus.as_ref().is_none_or(|gpus| gpus.contains(gpu))
    }

    /// Who would be the holder, could the record be read.
    pub fn holder(&self) -> &Holder {
        &self.holder
    }

    /// The devices that it is about. Whether Kerf made a MIG device is not known; it is no administrator's
    /// to be offered.
    pub fn held(&self) -> impl Iterator<Item = Held<'_>> {
        self.devices.iter().map(|(name, target)| Held {
            by: &self.holder,
            device: name,
            target,
            origin: match target {
                Target::Mig { .. } => Origin::Made,
                Target::Gpu { .. } => Origin::Found,
            },
            shared: false,
            leftover: false,
        })
    }
}

/// In one line: which file, what is wrong with it, what follows, what to do.
impl fmt::Display for Withheld {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { file, reason, gpus, .. } = self;
        let then = match gpus {
            Some(_) => "nothing new is given out of its GPUs",
            None => {
                "nothing new is given out of any GPU, since neither a CDI file nor the kubelet says which it is about"
            }
        };
        write!(f, "record `{file}` cannot be read ({reason}): {then}; {REMEDY}")
    }
}

/// What makes an end of it.
const REMEDY: &str = "upgrade the agent if a newer one wrote it, or drain and reboot the node, or end its pod and remove the file";

#[cfg(test)]
mod tests;
