//! Labels of what the device plugin offers: whole GPUs, and MIG devices by their profile.

use std::collections::BTreeMap;

use super::{Labels, sanitised};
use crate::model::{
    gpu::{Gpu, Profile},
    plugin::{
        config::{Replicated, Sharing},
        names::mig_resource,
    },
};

/// The resource that whole GPUs are, and with the strategy `single` MIG devices.
const GPU: &str = "gpu";

const MIB: u64 = 1 << 20;

/// A MIG device and the GPU that it is a part of.
#[derive(Clone, Copy)]
struct Device<'g> {
    gpu: &'g Gpu,
    profile: &'g Profile,
}

impl Labels {
    /// Whole GPUs. Labels speak of one product: that of most GPUs, and of those that are as many the one
    /// that comes first.
    pub(super) fn gpus(&mut self, gpus: &[Gpu], sharing: &Sharing) {
        let Some(product) = most(gpus.iter().map(|gpu| gpu.product.as_str())) else { return };
        let same: Vec<&Gpu> = gpus.iter().filter(|gpu| gpu.product == product).collect();
        let whole = same.iter().find(|gpu| !in_mig_mode(gpu));
        let name = sanitised(product);
        match whole {
            Some(_) => self.resource(GPU, &name, same.len(), share(sharing, GPU)),
            None => {
                self.resource(GPU, &name, same.len(), None);
                // In MIG mode none of them is a device itself.
                self.set("gpu.replicas", 0);
            }
        }
        let Some(gpu) = whole.or(same.first()) else { return };
        if let Some(memory) = gpu.memory {
            self.set("gpu.memory", memory / MIB);
        }
        let (major, minor) = gpu.compute_capability;
        self.set("gpu.family", family(major, minor));
        self.set("gpu.compute.major", major);
        self.set("gpu.compute.minor", minor);
    }

    /// MIG devices as GPUs, if all GPUs are cut and all devices are of one profile. Without a GPU in MIG
    /// mode nothing is added.
    pub(super) fn single(&mut self, gpus: &[Gpu], sharing: &Sharing) {
        let cut: Vec<&Gpu> = gpus.iter().filter(|gpu| in_mig_mode(gpu)).collect();
        let Some(product) = most(cut.iter().map(|gpu| gpu.product.as_str())) else { return };
        let devices = devices(gpus);
        let uncut = |gpu: &Gpu| !devices.iter().any(|device| device.gpu.uuid == gpu.uuid);
        let profile = devices.first().map(|device| &device.profile.name);
        let other = |device: &Device<'_>| Some(&device.profile.name) != profile;
        if gpus.iter().any(|gpu| uncut(gpu) || is_split(gpu)) || devices.iter().any(other) {
            self.invalid(product);
        } else {
            self.mig(GPU, &devices, sharing);
        }
    }

    /// What no resource is made of.
    fn invalid(&mut self, product: &str) {
        self.set("gpu.product", format!("{}-MIG-INVALID", sanitised(product)));
        self.set("gpu.sharing-strategy", "");
        for name in ["gpu.count", "gpu.replicas", "gpu.memory"] {
            self.set(name, 0);
        }
    }

    /// MIG devices as a resource for each profile.
    pub(super) fn mixed(&mut self, gpus: &[Gpu], sharing: &Sharing) {
        let mut resources: BTreeMap<String, Vec<Device>> = BTreeMap::new();
        for device in devices(gpus) {
            resources.entry(mig_resource(&device.profile.name)).or_default().push(device);
        }
        for (name, devices) in &resources {
            self.mig(name, devices, sharing);
        }
    }

    /// MIG devices of one profile. Where GPUs of several products have it, labels speak of the one that
    /// has most of the devices.
    fn mig(&mut self, name: &str, devices: &[Device<'_>], sharing: &Sharing) {
        let product = most(devices.iter().map(|device| device.gpu.product.as_str()));
        let of_product = devices.iter().find(|device| Some(&*device.gpu.product) == product);
        let Some(Device { gpu, profile }) = of_product else { return };
        let product = format!("{}-MIG-{}", sanitised(&gpu.product), sanitised(&profile.name));
        self.resource(name, &product, devices.len(), share(sharing, name));
        let capacity = profile.capacity;
        let slices = u64::from(profile.slices);
        for (attribute, value) in [
            ("memory", capacity.memory / MIB),
            ("multiprocessors", capacity.multiprocessors.into()),
            ("slices.gi", slices),
            // One compute instance fills the device.
            ("slices.ci", slices),
            ("engines.copy", capacity.copy_engines.into()),
            ("engines.decoder", capacity.decoders.into()),
            ("engines.encoder", capacity.encoders.into()),
            ("engines.jpeg", capacity.jpeg_engines.into()),
            ("engines.ofa", capacity.ofa_engines.into()),
        ] {
            self.set(&format!("{name}.{attribute}"), value);
        }
    }

    /// What each resource has.
    fn resource(&mut self, name: &str, product: &str, count: usize, share: Option<&Replicated>) {
        let renamed = share.is_some_and(|share| share.rename != share.name);
        let shared = if share.is_some() && !renamed { "-SHARED" } else { "" };
        let strategy = if share.is_some() { "time-slicing" } else { "none" };
        self.set(&format!("{name}.product"), format!("{product}{shared}"));
        self.set(&format!("{name}.count"), count);
        self.set(&format!("{name}.replicas"), share.map_or(1, |share| share.replicas));
        self.set(&format!("{name}.sharing-strategy"), strategy);
    }
}

/// How a resource is shared, if it is.
fn share<'c>(sharing: &'c Sharing, name: &str) -> Option<&'c Replicated> {
    let name = format!("nvidia.com/{name}");
    sharing.resources.iter().find(|shared| shared.name == name)
}

fn in_mig_mode(gpu: &Gpu) -> bool {
    gpu.mig.as_ref().is_some_and(|mig| mig.enabled)
}

/// The MIG devices that a container can be given.
fn devices(gpus: &[Gpu]) -> Vec<Device<'_>> {
    let mut devices = Vec::new();
    for gpu in gpus {
        let Some(mig) = &gpu.mig else { continue };
        let filled = mig.instances.iter().filter(|instance| instance.device().is_some());
        let profiles = filled.filter_map(|instance| mig.profile(instance.profile));
        devices.extend(profiles.map(|profile| Device { gpu, profile }));
    }
    devices
}

/// Whether a compute instance has a part of its GPU instance only, which is a profile of its own.
fn is_split(gpu: &Gpu) -> bool {
    let mut instances = gpu.mig.iter().flat_map(|mig| &mig.instances);
    instances.any(|instance| !instance.compute.is_empty() && instance.device().is_none())
}

/// The name that is there most often; of those that are equally often the first.
fn most<'n>(names: impl Iterator<Item = &'n str>) -> Option<&'n str> {
    let names: Vec<&str> = names.collect();
    let count = |name: &&str| names.iter().filter(|other| *other == name).count();
    names.iter().rev().copied().max_by_key(count)
}

/// The architecture that GPUs of a compute capability are of.
pub(super) fn family(major: u32, minor: u32) -> &'static str {
    match (major, minor) {
        (3, _) => "kepler",
        (5, _) => "maxwell",
        (6, _) => "pascal",
        (7, 0..5) => "volta",
        (7, _) => "turing",
        (8, 0..9) => "ampere",
        (8, _) => "ada-lovelace",
        (9, _) => "hopper",
        (10 | 12, _) => "blackwell",
        (13, _) => "rubin",
        _ => "undefined",
    }
}
