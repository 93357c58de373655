//! How a GPU is cut, and what can still be cut from it.

use crate::model::{
    device::{Device, Part, Target},
    gpu::{Gpu, GpuInstance, Mig, Placement, Profile},
    record::Held,
};

/// A run of memory slices with one fate.
#[derive(Clone, Debug)]
pub(super) struct Cell<'a> {
    pub(super) placement: Placement,
    pub(super) content: Content<'a>,
}

/// What a run of memory slices is.
#[derive(Clone, Debug)]
pub(super) enum Content<'a> {
    /// A GPU instance, and the claim that holds it.
    Instance(&'a GpuInstance, Option<&'a Held<'a>>),
    /// Held, and not carved: not yet, or not since the machine was started.
    Reserved(&'a Held<'a>),
    /// Neither; whether a device still fits in there.
    Free(bool),
}

/// A GPU with what is held of it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cut<'a> {
    gpu: &'a Gpu,
    held: &'a [Held<'a>],
}

impl<'a> Cut<'a> {
    /// `held` may be of other GPUs too.
    pub(super) fn new(gpu: &'a Gpu, held: &'a [Held<'a>]) -> Self {
        Self { gpu, held }
    }

    /// The claim that holds all of the GPU.
    pub(super) fn whole(self) -> Option<&'a Held<'a>> {
        self.here().find(|held| matches!(held.target, Target::Gpu { .. }))
    }

    /// What exists, what is held without existing, and what is left, from the first memory slice to
    /// the last; nothing overlaps.
    pub(super) fn cells(self) -> Vec<Cell<'a>> {
        let Some(mig) = &self.gpu.mig else { return Vec::new() };
        let mut cells = self.taken(mig);
        cells.sort_by_key(|cell| cell.placement);
        let (mut all, mut next) = (Vec::new(), 0);
        for cell in cells {
            all.extend(self.gap(mig, next, cell.placement.start));
            next = cell.placement.end();
            all.push(cell);
        }
        all.extend(self.gap(mig, next, mig.memory_slices()));
        all
    }

    /// Parts that are held although something else lies there.
    pub(super) fn displaced(self) -> Vec<&'a Held<'a>> {
        let cells = self.cells();
        let shown = |held: &Held<'_>| {
            cells.iter().any(|cell| match &cell.content {
                Content::Instance(_, holder) => holder.is_some_and(|other| other == held),
                Content::Reserved(other) => *other == held,
                Content::Free(_) => false,
            })
        };
        let whole_is_cut = self.gpu.mig.as_ref().is_some_and(|mig| !mig.instances.is_empty());
        let here = self.here();
        here.filter(|held| match held.target {
            Target::Gpu { .. } => whole_is_cut,
            Target::Mig { .. } => !shown(held),
        })
        .collect()
    }

    /// How many devices of each profile can still be cut, if no others are; profiles that no longer
    /// fit are left out.
    pub(super) fn free(self) -> Vec<(u32, &'a Profile)> {
        let profiles = self.gpu.mig.iter().flat_map(|mig| &mig.profiles);
        let counted = profiles.map(|profile| (self.free_of(profile), profile));
        counted.filter(|(count, _)| *count > 0).collect()
    }

    /// Whether a device could be prepared for a new claim, as far as place goes.
    pub(super) fn fits(self, device: &Device<'_>) -> bool {
        match device.part {
            Part::Whole => self.here().next().is_none() && self.instances().next().is_none(),
            Part::Mig(profile, placement) => self.is_left(profile) && !self.is_taken(placement),
        }
    }

    /// The claim that holds exactly this device.
    pub(super) fn holder(self, device: &Device<'_>) -> Option<&'a Held<'a>> {
        let target = device.target();
        self.here().find(|held| *held.target == target)
    }

    fn here(self) -> impl Iterator<Item = &'a Held<'a>> {
        self.held.iter().filter(move |held| *held.target.gpu() == self.gpu.uuid)
    }

    fn instances(self) -> impl Iterator<Item = &'a GpuInstance> {
        self.gpu.mig.iter().flat_map(|mig| &mig.instances)
    }

    fn parts(self) -> impl Iterator<Item = (u32, Placement, &'a Held<'a>)> {
        self.here().filter_map(|held| match held.target {
            Target::Gpu { .. } => None,
            Target::Mig { profile, placement, .. } => Some((*profile, *placement, held)),
        })
    }

    fn taken(self, mig: &'a Mig) -> Vec<Cell<'a>> {
        let instances = self.instances().map(|instance| {
            let mut parts = self.parts();
            let holder = parts.find(|(profile, placement, _)| {
                (*profile, *placement) == (instance.profile, instance.placement)
            });
            let content = Content::Instance(instance, holder.map(|(_, _, held)| held));
            Cell { placement: instance.placement, content }
        });
        let mut cells: Vec<_> = instances.collect();
        for (_, placement, held) in self.parts() {
            let fits = placement.end() <= mig.memory_slices();
            if fits && !cells.iter().any(|cell| cell.placement.overlaps(placement)) {
                cells.push(Cell { placement, content: Content::Reserved(held) });
            }
        }
        cells
    }

    fn gap(self, mig: &'a Mig, start: u32, end: u32) -> Option<Cell<'a>> {
        let size = end.checked_sub(start).filter(|size| *size > 0)?;
        let placement = Placement { start, size };
        let placements = mig.profiles.iter().flat_map(|profile| &profile.placements);
        let useful = placements
            .filter(|inside| inside.start >= start && inside.end() <= end)
            .any(|inside| self.whole().is_none() && !self.is_taken(*inside));
        Some(Cell { placement, content: Content::Free(useful) })
    }

    fn is_taken(self, wanted: Placement) -> bool {
        self.whole().is_some()
            || self.instances().any(|instance| instance.placement.overlaps(wanted))
            || self.parts().any(|(_, placement, _)| placement.overlaps(wanted))
    }

    /// Whether the GPU can have one more device of a profile, wherever it may lie.
    fn is_left(self, profile: &Profile) -> bool {
        self.existing(profile) < profile.max_instances
    }

    fn existing(self, profile: &Profile) -> u32 {
        let carved = self.instances().filter(|instance| instance.profile == profile.id);
        let awaited = self.parts().filter(|(id, placement, _)| {
            *id == profile.id && self.gpu.instance(*id, *placement).is_none()
        });
        u32::try_from(carved.count() + awaited.count()).unwrap_or(u32::MAX)
    }

    fn free_of(self, profile: &Profile) -> u32 {
        let mut placements = profile.placements.clone();
        placements.sort();
        let (mut count, mut next) = (0, 0);
        for placement in placements {
            if placement.start >= next && !self.is_taken(placement) {
                count += 1;
                next = placement.end();
            }
        }
        count.min(profile.max_instances.saturating_sub(self.existing(profile)))
    }
}

#[cfg(test)]
mod tests;
