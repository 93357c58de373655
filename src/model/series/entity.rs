//! The GPUs and GPU instances that have series, and their labels.

use std::collections::BTreeSet;

use super::{Holders, Input, holders};
use crate::model::{
    exposition::Labels,
    gpu::{Gpu, GpuInstance, GpuUuid, Placement, Unreadable},
};

/// A GPU, whether it answers or not.
pub(super) struct Entity<'i> {
    /// Absent on one that did not get that far.
    pub(super) uuid: Option<&'i GpuUuid>,
    /// Absent on one that does not answer.
    pub(super) gpu: Option<&'i Gpu>,
    /// All labels of dcgm-exporter, with who holds it.
    pub(super) labels: Labels,
    /// Which it is: what series are joined by.
    pub(super) which: Labels,
    /// What is carved of it.
    pub(super) instances: Vec<Instance>,
}

/// A GPU instance.
pub(super) struct Instance {
    /// NVML's id.
    pub(super) id: u32,
    /// Id of its profile.
    pub(super) profile: u32,
    /// Where it lies.
    pub(super) placement: Placement,
    /// As for a GPU.
    pub(super) labels: Labels,
    /// As for a GPU.
    pub(super) which: Labels,
}

impl<'i> Entity<'i> {
    /// The GPUs that answer, those that do not, and those that are known by findings or events alone.
    pub(super) fn all(input: &Input<'i>, holders: &Holders) -> Vec<Self> {
        let inventory = input.inventory;
        let mut all: Vec<_> =
            inventory.gpus.iter().map(|gpu| Self::of_gpu(input, holders, gpu)).collect();
        all.extend(inventory.unreadable.iter().map(|gpu| Self::of_unreadable(input, holders, gpu)));
        let known: BTreeSet<_> = all.iter().filter_map(|entity| entity.uuid).collect();
        let told: BTreeSet<_> = input.findings.0.keys().chain(input.events.keys()).collect();
        let gone =
            told.difference(&known).map(|uuid| Self::silent(input, holders, None, Some(uuid)));
        let gone: Vec<_> = gone.collect();
        all.extend(gone);
        all
    }

    fn of_gpu(input: &Input<'i>, holders: &Holders, gpu: &'i Gpu) -> Self {
        let (index, device) = (gpu.index.to_string(), format!("nvidia{}", gpu.minor));
        let pci = bus_id(&gpu.pci);
        let name = [("gpu", &*index), ("UUID", &*gpu.uuid.0)];
        let place = [("pci_bus_id", &*pci), ("device", &*device), ("modelName", &*gpu.product)];
        let (host, driver) = (hostname(input), driver(input));
        let which = Labels::new(name).with([("device", &*device)]);
        let full = Labels::new(name).with(place);
        let labels = |full: &Labels, held| {
            let labels = full.with([host, driver]);
            labels.with(holders::agreed(holders.of_device(&gpu.uuid, held)))
        };
        let instance = |instance: &GpuInstance| {
            let profile = gpu.mig.as_ref().and_then(|mig| mig.profile(instance.profile));
            let profile = profile.map(|profile| &*profile.name).unwrap_or_default();
            let id = instance.id.to_string();
            let part = [("GPU_I_PROFILE", profile), ("GPU_I_ID", &*id)];
            let held = Some((instance.profile, instance.placement));
            Instance {
                id: instance.id,
                profile: instance.profile,
                placement: instance.placement,
                labels: labels(&full.with(part), held),
                which: which.with(part).with([host]),
            }
        };
        Self {
            uuid: Some(&gpu.uuid),
            gpu: Some(gpu),
            labels: labels(&full, None),
            which: which.with([host]),
            instances: gpu.mig.iter().flat_map(|mig| &mig.instances).map(instance).collect(),
        }
    }

    fn of_unreadable(input: &Input<'i>, holders: &Holders, gpu: &'i Unreadable) -> Self {
        Self::silent(input, holders, Some(gpu.index), gpu.uuid.as_ref())
    }

    /// A GPU of which no more is known than what it was called.
    fn silent(
        input: &Input<'i>,
        holders: &Holders,
        index: Option<u32>,
        uuid: Option<&'i GpuUuid>,
    ) -> Self {
        let index = index.map(|index| index.to_string()).unwrap_or_default();
        let name = [("gpu", &*index), ("UUID", uuid.map(|uuid| &*uuid.0).unwrap_or_default())];
        let which = Labels::new(name).with([hostname(input)]);
        let held = uuid.map(|uuid| holders.of_device(uuid, None)).unwrap_or_default();
        let labels = which.with([driver(input)]).with(holders::agreed(held));
        Self { uuid, gpu: None, labels, which, instances: Vec::new() }
    }

    /// The instance of this profile at this place.
    pub(super) fn instance(&self, profile: u32, placement: Placement) -> Option<&Instance> {
        let is = |is: &&Instance| is.profile == profile && is.placement == placement;
        self.instances.iter().find(is)
    }
}

fn hostname<'i>(input: &Input<'i>) -> (&'static str, &'i str) {
    (input.options.hostname_label.name(), &input.options.hostname)
}

fn driver<'i>(input: &Input<'i>) -> (&'static str, &'i str) {
    ("DCGM_FI_DRIVER_VERSION", &input.inventory.driver.driver)
}

/// A PCI address as NVML and DCGM write it, with a domain of eight digits: `00000000:1B:00.0`.
fn bus_id(sysfs: &str) -> String {
    match sysfs.split_once(':') {
        Some((domain, rest)) => format!("{domain:0>8}:{rest}").to_ascii_uppercase(),
        None => sysfs.to_owned(),
    }
}
