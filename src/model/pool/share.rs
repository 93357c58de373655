//! What one GPU adds to the pool: its devices and its counter set, together or not at all.

use k8s_openapi::api::resource::v1;

use crate::model::{
    device::{Device, Part, Target},
    gpu::{ComputeInstance, Gpu, GpuInstance, Mig},
    plan::Origin,
    pool::{PoolInput, counters::Amounts, taint},
    record::Held,
};

/// Counters that a set may have; a slice of servers before 1.35 has one set here and the same limit.
const MAX_COUNTERS: usize = 32;

/// Devices that consume counters and may be in one slice.
pub(super) const MAX_DEVICES: usize = 64;

/// Counters that the devices of a slice may consume together (servers before 1.35).
const MAX_CONSUMED: usize = 1024;

/// What one GPU adds to the pool.
#[derive(Debug)]
pub(super) struct Share<'g> {
    /// The GPU.
    pub(super) gpu: &'g Gpu,
    /// What its counter set has; absent for a GPU whose devices do not overlap.
    pub(super) counters: Option<Amounts>,
    /// Its devices.
    pub(super) entries: Vec<Entry<'g>>,
}

/// A device of a pool.
#[derive(Debug)]
pub(super) struct Entry<'g> {
    /// The device.
    pub(super) device: Device<'g>,
    /// Its published name.
    pub(super) name: String,
    /// The MIG device that is there already and that Kerf did not make.
    pub(super) existing: Option<&'g ComputeInstance>,
    /// Whether it has the capacities of a GPU that can be cut.
    pub(super) partitioned: bool,
    /// What it takes of the counter set.
    pub(super) consumes: Option<Amounts>,
    /// What keeps the scheduler away from it.
    pub(super) taints: Vec<v1::DeviceTaint>,
}

impl<'g> Entry<'g> {
    /// Whether it must not be given out.
    pub(super) fn is_blocked(&self) -> bool {
        taint::is_blocked(&self.taints)
    }

    fn new(device: Device<'g>) -> Self {
        let partitioned = device.part != Part::Whole;
        Self {
            device,
            name: device.name(),
            existing: None,
            partitioned,
            consumes: None,
            taints: Vec::new(),
        }
    }
}

/// The shares of all GPUs, those that have fallen silent included. Where the server drops taints, a GPU with
/// a device that must not be given out is not there, nor is its counter set.
pub(super) fn all<'g>(input: &PoolInput<'g>) -> Vec<Share<'g>> {
    let shares = input.inventory.known().into_iter().map(|gpu| Share::new(gpu, input));
    shares
        .filter(|share| input.features.taints || !share.entries.iter().any(Entry::is_blocked))
        .collect()
}

impl<'g> Share<'g> {
    fn new(gpu: &'g Gpu, input: &PoolInput<'g>) -> Self {
        let counted = input.features.counters.then(|| Self::counted(gpu, input.held)).flatten();
        let mut share = counted.filter(Self::is_within_limits).unwrap_or_else(|| Self::plain(gpu));
        for entry in &mut share.entries {
            let target = entry.device.target();
            entry.taints = taint::taints(&target, input);
        }
        share
    }

    /// The GPU cut in every way that it can be, with counters that say which ways go together.
    /// Absent for a GPU that cannot be cut now: switching its mode needs a reset.
    fn counted(gpu: &'g Gpu, held: &[Held]) -> Option<Self> {
        let mig = gpu.mig.as_ref().filter(|mig| !mig.profiles.is_empty())?;
        if !mig.enabled && !mig.switches_without_reset {
            return None;
        }
        let total = Amounts::whole(mig);
        let foreign = foreign(gpu, mig, held);
        let devices = Device::all(gpu);
        let entries: Vec<_> =
            devices.filter_map(|device| counted_entry(device, mig, &total, &foreign)).collect();

        // An instance without a published device still occupies what it occupies. What stands on a
        // device that a claim holds (its preparation was refused) does not take the counters below
        // what the scheduler has already counted: one counter below zero would stop the pool.
        let occupied = sum(&total, foreign.iter().map(|instance| occupied(mig, instance)));
        let consumed = entries.iter().filter(|entry| is_held(&entry.name, held));
        let consumed = sum(&total, consumed.filter_map(|entry| entry.consumes.clone()));
        let counters = Some(total.minus(&occupied).at_least(&consumed));
        Some(Self { gpu, counters, entries })
    }

    /// One set of devices that do not overlap: the instances that exist, whoever made them, else the
    /// whole GPU.
    fn plain(gpu: &'g Gpu) -> Self {
        let mig = gpu.mig.as_ref();
        let instances = mig.map(|mig| mig.instances.as_slice()).unwrap_or_default();
        let stuck = mig.is_some_and(|mig| mig.enabled && !mig.switches_without_reset);
        let entries = if !instances.is_empty() {
            let devices = Device::all(gpu).filter_map(|device| {
                let existing = instance_of(device, instances.iter())?.device()?;
                Some(Entry { existing: Some(existing), ..Entry::new(device) })
            });
            devices.collect()
        } else if stuck {
            Vec::new()
        } else {
            vec![Entry::new(Device { gpu, part: Part::Whole })]
        };
        Self { gpu, counters: None, entries }
    }

    fn is_within_limits(&self) -> bool {
        let counters = self.counters.as_ref().map_or(0, Amounts::len);
        let consumed = self.entries.iter().filter_map(|entry| entry.consumes.as_ref());
        counters <= MAX_COUNTERS
            && self.entries.len() <= MAX_DEVICES
            && consumed.map(Amounts::listed).sum::<usize>() <= MAX_CONSUMED
    }
}

fn counted_entry<'g>(
    device: Device<'g>,
    mig: &Mig,
    total: &Amounts,
    foreign: &[&'g GpuInstance],
) -> Option<Entry<'g>> {
    let entry = Entry { partitioned: true, ..Entry::new(device) };
    match device.part {
        Part::Whole if !mig.switches_without_reset => None,
        Part::Whole => Some(Entry { consumes: Some(total.clone()), ..entry }),
        Part::Mig(profile, placement) => {
            let Some(instance) = instance_of(device, foreign.iter().copied()) else {
                let consumes = Some(Amounts::mig(mig, profile.capacity, placement));
                return Some(Entry { consumes, ..entry });
            };
            // Of a shape that no claim can be given it is left out. A claim that held it as it was
            // consumed no counters, so none are set free by that.
            let existing = Some(instance.device()?);
            Some(Entry { existing, ..entry })
        }
    }
}

/// The instances that Kerf did not make. One that a claim was refused for is Kerf's here: its device
/// keeps consuming what the scheduler counted.
fn foreign<'g>(gpu: &Gpu, mig: &'g Mig, held: &[Held]) -> Vec<&'g GpuInstance> {
    let made = |instance: &GpuInstance| {
        held.iter().any(|held| {
            held.origin == Origin::Made
                && matches!(held.target, Target::Mig { gpu: on, profile, placement, .. }
                    if *on == gpu.uuid
                        && *profile == instance.profile
                        && *placement == instance.placement)
        })
    };
    mig.instances.iter().filter(|&instance| !made(instance)).collect()
}

fn instance_of<'g>(
    device: Device,
    mut instances: impl Iterator<Item = &'g GpuInstance>,
) -> Option<&'g GpuInstance> {
    let Part::Mig(profile, placement) = device.part else { return None };
    instances.find(|instance| instance.profile == profile.id && instance.placement == placement)
}

/// What an instance occupies: of an unknown profile, at least the memory slices.
fn occupied(mig: &Mig, instance: &GpuInstance) -> Amounts {
    let profile = mig.profile(instance.profile);
    let capacity = profile.map(|profile| profile.capacity).unwrap_or_default();
    Amounts::mig(mig, capacity, instance.placement)
}

/// Whether a claim has the device, as the scheduler sees it: by name.
pub(super) fn is_held(name: &str, held: &[Held]) -> bool {
    held.iter().any(|held| held.device == name)
}

/// All of `amounts` together, of the counters that `like` has.
pub(super) fn sum(like: &Amounts, amounts: impl Iterator<Item = Amounts>) -> Amounts {
    amounts.fold(Amounts::none_of(like), |sum, amounts| sum.plus(&amounts))
}
