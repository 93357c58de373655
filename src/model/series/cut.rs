//! How GPUs are cut, and what can still be carved of them.

use super::{Entity, Input, gauge};
use crate::model::{
    device::{Device, Part, Target},
    exposition::{Family, Labels},
    gpu::{Gpu, Mig, Placement, Profile},
    holder::{Container, Holder},
    plan::{self, Origin},
    record::{Held, Record},
};

/// A GPU that can be cut, with what is held of it.
struct Sheet<'i> {
    which: &'i Labels,
    gpu: &'i Gpu,
    mig: &'i Mig,
    held: Vec<Held<'i>>,
}

pub(super) fn families(input: &Input<'_>, entities: &[Entity<'_>]) -> [Family; 4] {
    let sheets: Vec<_> = entities.iter().filter_map(|entity| Sheet::of(input, entity)).collect();
    let mut profiles = Family::gauge(
        "kerf_gpu_profile_free",
        "How many more instances of the profile can be had now, if all are of it.",
    );
    let mut largest = Vec::new();
    for sheet in &sheets {
        let mut most = 0;
        for profile in &sheet.mig.profiles {
            let free = sheet.fitting(input, profile);
            profiles.add(sheet.which.with([("profile", &*profile.name)]), f64::from(free));
            most = if free > 0 { profile.capacity.memory.max(most) } else { most };
        }
        largest.push((sheet.which, most as f64));
    }
    let all = sheets.iter().map(|sheet| (sheet.which, f64::from(sheet.mig.memory_slices())));
    let free = sheets.iter().map(|sheet| (sheet.which, sheet.free() as f64));
    [
        gauge("kerf_gpu_slices", "Memory slices of the GPU.", all),
        gauge("kerf_gpu_free_slices", "Memory slices that are neither carved nor held.", free),
        profiles,
        gauge(
            "kerf_gpu_largest_free_profile_bytes",
            "Memory of the largest instance that can be had now; 0 if none can.",
            largest,
        ),
    ]
}

impl<'i> Sheet<'i> {
    fn of(input: &Input<'i>, entity: &'i Entity<'i>) -> Option<Self> {
        let gpu = entity.gpu?;
        let held = input.records.iter().flat_map(Record::held);
        let held = held.filter(|held| *held.target.gpu() == gpu.uuid).collect();
        Some(Self { which: &entity.which, gpu, mig: gpu.mig.as_ref()?, held })
    }

    /// Memory slices that are neither carved nor held.
    fn free(&self) -> usize {
        let whole = self.held.iter().any(|held| matches!(held.target, Target::Gpu { .. }));
        let carved = self.mig.instances.iter().map(|instance| instance.placement);
        let held = self.held.iter().filter_map(|held| match held.target {
            Target::Mig { placement, .. } => Some(*placement),
            Target::Gpu { .. } => None,
        });
        let taken: Vec<Placement> = carved.chain(held).collect();
        let slices = (0..self.mig.memory_slices()).map(|start| Placement { start, size: 1 });
        slices.filter(|slice| !whole && taken.iter().all(|place| !place.overlaps(*slice))).count()
    }

    /// How many instances of a profile can be had. Placements of a profile are of one size: the first that
    /// fits leaves the most for the others.
    fn fitting(&self, input: &Input<'_>, profile: &Profile) -> u32 {
        let new = Container { id: String::new(), resource: String::new(), name: None };
        let nobody = Holder::Container(new);
        let mut places = profile.placements.clone();
        places.sort_unstable();
        let mut chosen: Vec<Target> = Vec::new();
        for place in places {
            let device = Device { gpu: self.gpu, part: Part::Mig(profile, place) };
            let target = device.target();
            let new = chosen.iter().map(|target| Held {
                by: &nobody,
                device: "",
                target,
                origin: Origin::Made,
                shared: false,
                leftover: false,
            });
            let held: Vec<_> = self.held.iter().cloned().chain(new).collect();
            let fits = plan::usable(&device, &held, false).is_ok();
            if fits && input.findings.unhealthy(&target).is_none() {
                chosen.push(target);
            }
        }
        u32::try_from(chosen.len()).unwrap_or(u32::MAX)
    }
}
