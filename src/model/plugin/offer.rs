//! What the device plugin offers: resources, their devices, and which of them can be had now.

use std::collections::{BTreeMap, BTreeSet};

use crate::model::{
    device::{Device, Part, Target},
    gpu::{Gpu, GpuInstance, Inventory},
    health::{Finding, Findings},
    plan::{self, Origin},
    plugin::{
        config::{Config, DeviceRef, MigStrategy, Replicated, SharedDevices},
        id::DeviceId,
        names,
    },
    record::Held,
    unread::Withheld,
};

/// What decides what is offered.
#[derive(Clone, Copy, Debug)]
pub struct OfferInput<'a> {
    /// The GPUs.
    pub inventory: &'a Inventory,
    /// The configuration.
    pub config: &'a Config,
    /// What claims and containers hold.
    pub held: &'a [Held<'a>],
    /// What nothing new is to be begun on, because a record cannot be read.
    pub withheld: &'a [Withheld],
    /// What is wrong with the GPUs.
    pub findings: &'a Findings,
    /// Whether MIG devices that do not exist are offered too, and carved when they are allocated.
    pub on_demand: bool,
    /// The GPUs that are for the device plugin; all if absent.
    pub split: Option<&'a [DeviceRef]>,
}

/// All that is offered.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Offer {
    /// Devices by full resource name, in the order of their GPUs.
    pub resources: BTreeMap<String, Vec<Offered>>,
    /// What somebody should see to, one line each.
    pub warnings: Vec<String>,
}

/// A device that is offered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Offered {
    /// Device ID.
    pub id: DeviceId,
    /// What it is in hardware.
    pub target: Target,
    /// NUMA node of its GPU.
    pub numa_node: Option<u32>,
    /// Why it cannot be had now; absent for a healthy one.
    pub unhealthy: Option<String>,
    /// Whether a container has it.
    pub taken: bool,
}

impl Offer {
    /// A device by resource and ID.
    pub fn device(&self, resource: &str, id: &str) -> Option<&Offered> {
        self.resources.get(resource)?.iter().find(|device| device.id.to_string() == id)
    }
}

/// What to offer. GPUs that have fallen silent stay, unhealthy.
pub fn offer(input: &OfferInput<'_>) -> Offer {
    let mut offer = Offer::default();
    offer.warnings.extend(input.config.sharing.by_mps.iter().map(|resource| {
        format!(
            "`{resource}` is not offered: `sharing.mps` shares it, and Kerf does not serve MPS; move it to \
             `sharing.timeSlicing`"
        )
    }));
    let gpus = input.inventory.known().into_iter().filter(|gpu| input.has(gpu));
    let gpus: Vec<&Gpu> = gpus.collect();
    match (input.on_demand, input.config.mig_strategy) {
        (true, _) => gpus.iter().for_each(|gpu| on_demand(&mut offer, input, gpu)),
        (false, MigStrategy::None) => gpus.iter().for_each(|gpu| whole(&mut offer, input, gpu)),
        (false, MigStrategy::Single) => single(&mut offer, input, &gpus),
        (false, MigStrategy::Mixed) => gpus.iter().for_each(|gpu| mixed(&mut offer, input, gpu)),
    }
    offer
}

impl OfferInput<'_> {
    /// Whether a GPU is for the device plugin.
    fn has(&self, gpu: &Gpu) -> bool {
        is_in_split(self.split, gpu)
    }
}

/// Whether a GPU is among those of the device plugin.
pub fn is_in_split(split: Option<&[DeviceRef]>, gpu: &Gpu) -> bool {
    split.is_none_or(|listed| {
        listed.iter().any(|device| match device {
            DeviceRef::Gpu(index) => gpu.index == *index,
            DeviceRef::Uuid(uuid) => gpu.uuid.0 == *uuid,
            DeviceRef::Mig(..) => false,
        })
    })
}

fn whole(offer: &mut Offer, input: &OfferInput<'_>, gpu: &Gpu) {
    let device = Device { gpu, part: Part::Whole };
    add(offer, input, &gpu_resource(input.config, gpu), DeviceId::gpu(&gpu.uuid), &device);
}

/// The GPU if it is not cut, else its MIG devices, each profile as a resource of its own.
fn mixed(offer: &mut Offer, input: &OfferInput<'_>, gpu: &Gpu) {
    if !is_cut(gpu, input.held) {
        return whole(offer, input, gpu);
    }
    for (device, instance) in foreign(gpu, input.held) {
        if let (Part::Mig(profile, _), Some(made)) = (device.part, instance.device()) {
            let resource = mig_resource(input.config, &profile.name);
            add(offer, input, &resource, DeviceId::mig(&made.uuid), &device);
        }
    }
}

/// All MIG devices as `gpu`, if they are of one profile and every GPU has some.
fn single(offer: &mut Offer, input: &OfferInput<'_>, gpus: &[&Gpu]) {
    let cut: Vec<&&Gpu> = gpus.iter().filter(|gpu| is_cut(gpu, input.held)).collect();
    if cut.is_empty() {
        return gpus.iter().for_each(|gpu| whole(offer, input, gpu));
    }
    if let Some(fault) = single_fault(gpus, cut.len(), input.held) {
        offer.warnings.push(format!(
            "MIG strategy `single`: {fault}; no GPU is offered until all are cut alike, or the strategy is \
             `mixed`"
        ));
        return;
    }
    for gpu in gpus {
        for (device, instance) in foreign(gpu, input.held) {
            if let Some(made) = instance.device() {
                let resource = gpu_resource(input.config, gpu);
                add(offer, input, &resource, DeviceId::mig(&made.uuid), &device);
            }
        }
    }
}

/// Why the node cannot be offered as of one kind.
fn single_fault(gpus: &[&Gpu], cut: usize, held: &[Held<'_>]) -> Option<String> {
    if cut < gpus.len() {
        return Some("some GPUs have MIG mode on and some have not".to_owned());
    }
    if let Some(empty) = gpus.iter().find(|gpu| foreign(gpu, held).next().is_none()) {
        return Some(format!("GPU {} has MIG mode on and no MIG devices", empty.index));
    }
    let devices = gpus.iter().flat_map(|gpu| foreign(gpu, held));
    let profiles: BTreeSet<&str> = devices
        .filter_map(|(device, _)| match device.part {
            Part::Mig(profile, _) => Some(profile.name.as_str()),
            Part::Whole => None,
        })
        .collect();
    let named: Vec<_> = profiles.iter().copied().collect();
    (profiles.len() > 1).then(|| format!("MIG devices of several profiles ({})", named.join(", ")))
}

/// The whole GPU and every placement: what exists and Kerf did not make goes by its UUID, all else is
/// carved when it is allocated.
fn on_demand(offer: &mut Offer, input: &OfferInput<'_>, gpu: &Gpu) {
    whole(offer, input, gpu);
    for device in Device::all(gpu) {
        let Part::Mig(profile, placement) = device.part else { continue };
        let instance = gpu.instance(profile.id, placement);
        let foreign = instance.filter(|_| !is_made(&device, input.held));
        let id = match foreign {
            None => DeviceId::placement(&gpu.uuid, profile.id, placement.start),
            Some(instance) => match instance.device() {
                Some(made) => DeviceId::mig(&made.uuid),
                None => continue,
            },
        };
        add(offer, input, &mig_resource(input.config, &profile.name), id, &device);
    }
}

/// Whether a GPU is offered in parts: an administrator cut it, or only a reset makes it whole. One that
/// Kerf cut for claims is whole again when they end.
fn is_cut(gpu: &Gpu, held: &[Held<'_>]) -> bool {
    let Some(mig) = gpu.mig.as_ref().filter(|mig| mig.enabled) else { return false };
    foreign(gpu, held).next().is_some() || !mig.switches_without_reset
}

/// Whether Kerf made what lies where the device is.
fn is_made(device: &Device<'_>, held: &[Held<'_>]) -> bool {
    let target = device.target();
    held.iter().any(|held| held.origin == Origin::Made && *held.target == target)
}

/// The instances on a GPU that Kerf did not make, filled by one compute instance or not.
fn foreign<'g>(
    gpu: &'g Gpu,
    held: &[Held<'_>],
) -> impl Iterator<Item = (Device<'g>, &'g GpuInstance)> {
    Device::all(gpu).filter_map(|device| match device.part {
        Part::Whole => None,
        Part::Mig(profile, placement) => {
            let instance = device.gpu.instance(profile.id, placement)?;
            (!is_made(&device, held)).then_some((device, instance))
        }
    })
}

/// Offers a device, or its shares, unless they need MPS.
fn add(
    offer: &mut Offer,
    input: &OfferInput<'_>,
    resource: &str,
    id: DeviceId,
    device: &Device<'_>,
) {
    if input.config.sharing.by_mps.contains(resource) {
        return;
    }
    let mut sharing =
        input.config.sharing.resources.iter().filter(|shared| shared.name == resource);
    let shared = sharing.find(|shared| !id.is_placement() && shared.has(device, &id, offer));
    let Some(shared) = shared else {
        let offered = offered(input, id, device);
        return offer.resources.entry(resource.to_owned()).or_default().push(offered);
    };
    let shares = (0..shared.replicas).map(|number| offered(input, id.share(number), device));
    offer.resources.entry(shared.rename.clone()).or_default().extend(shares);
}

fn offered(input: &OfferInput<'_>, id: DeviceId, device: &Device<'_>) -> Offered {
    let key = id.to_string();
    let others = input.held.iter().filter(|held| held.leftover || held.by.key() != key);
    let others: Vec<Held<'_>> = others.cloned().collect();
    let taken = others.len() < input.held.len();
    let target = device.target();
    let sick = sickness(input, &target);
    // A lock on what a container has would keep the container from starting again.
    let usable = match taken {
        true => Ok(()),
        false => plan::usable(device, &others, id.share_number().is_some()),
    };
    let withheld = || {
        let why = input.withheld.iter().find(|withheld| withheld.concerns(target.gpu()));
        why.filter(|_| !taken).map(ToString::to_string)
    };
    Offered {
        numa_node: device.gpu.numa_node,
        unhealthy: sick.or_else(withheld).or_else(|| usable.err().map(|reason| reason.to_string())),
        target,
        taken,
        id,
    }
}

/// What is wrong with a device.
fn sickness(input: &OfferInput<'_>, target: &Target) -> Option<String> {
    let found = input.findings.unhealthy(target).map(Finding::line);
    let silence = || input.inventory.silence(target.gpu());
    found.or_else(|| Some(format!("the GPU does not answer: {}", silence()?.reason)))
}

impl Replicated {
    /// Whether a device is shared that comes after those of `offer`.
    fn has(&self, device: &Device<'_>, id: &DeviceId, offer: &Offer) -> bool {
        match &self.devices {
            SharedDevices::All => true,
            SharedDevices::Count(count) => {
                usize::try_from(*count).is_ok_and(|count| self.offered(offer) < count)
            }
            SharedDevices::Listed(listed) => {
                listed.iter().any(|wanted| is_named(wanted, device, id))
            }
        }
    }

    /// How many devices of the resource are offered, shared or not.
    fn offered(&self, offer: &Offer) -> usize {
        let names = BTreeSet::from([&self.name, &self.rename]);
        let offered = names.into_iter().filter_map(|name| offer.resources.get(name)).flatten();
        offered.map(|device| device.id.device_name()).collect::<BTreeSet<_>>().len()
    }
}

fn is_named(wanted: &DeviceRef, device: &Device<'_>, id: &DeviceId) -> bool {
    match wanted {
        DeviceRef::Uuid(uuid) => id.device_name() == *uuid,
        DeviceRef::Gpu(index) => device.part == Part::Whole && device.gpu.index == *index,
        DeviceRef::Mig(gpu, mig) => {
            let turn = device.gpu.mig.iter().flat_map(|mig| &mig.instances).position(|instance| {
                instance.device().is_some_and(|made| made.uuid == id.device_name())
            });
            device.gpu.index == *gpu && turn.is_some_and(|turn| u32::try_from(turn) == Ok(*mig))
        }
    }
}

/// The full name of the resource of a whole GPU.
fn gpu_resource(config: &Config, gpu: &Gpu) -> String {
    let pattern = config.names.gpus.iter().find(|one| matches(&one.pattern, &gpu.product));
    pattern.map_or_else(|| "nvidia.com/gpu".to_owned(), |one| one.name.clone())
}

/// The full name of the resource of a MIG profile.
fn mig_resource(config: &Config, profile: &str) -> String {
    let pattern = config.names.mig.iter().find(|one| matches(&one.pattern, profile));
    pattern.map_or_else(
        || format!("nvidia.com/{}", names::mig_resource(profile)),
        |one| one.name.clone(),
    )
}

/// Whether a text is as a pattern says, in which `*` stands for any characters.
fn matches(pattern: &str, text: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == text,
        Some((before, after)) => text.strip_prefix(before).is_some_and(|rest| {
            let ends = (0..=rest.len()).filter(|&at| rest.is_char_boundary(at));
            ends.into_iter().any(|at| matches(after, &rest[at..]))
        }),
    }
}

#[cfg(test)]
mod tests;
