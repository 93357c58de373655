//! Whether the node can give a device, and whose work it then is.

use std::collections::BTreeSet;

use super::{
    Origin, PlannedDevice,
    refusal::{Extent, Instance, Reason, label},
};
use crate::model::{
    device::{Device, Part, Target},
    gpu::{Gpu, Mig, Placement, Profile},
    record::Held,
};

/// How much of something an instance of a profile takes.
type Amount = fn(&Profile) -> u32;

/// What a GPU has a number of for all of its instances; its largest profile has all of it.
const SHARED_OUT: [(&str, Amount); 5] = [
    ("compute slices", |profile| profile.slices),
    ("decoders", |profile| profile.capacity.decoders),
    ("encoders", |profile| profile.capacity.encoders),
    ("JPEG engines", |profile| profile.capacity.jpeg_engines),
    ("OFA engines", |profile| profile.capacity.ofa_engines),
];

/// Whether a device can be had now, beside what `held` says others have. A share goes with other shares.
pub fn usable(device: &Device<'_>, held: &[Held<'_>], share: bool) -> Result<(), Reason> {
    Site { gpu: device.gpu, held, planned: Vec::new() }.origin(device, share).map(drop)
}

/// A GPU as a claim's next device finds it.
pub(super) struct Site<'a> {
    pub(super) gpu: &'a Gpu,
    /// What claims with records hold.
    pub(super) held: &'a [Held<'a>],
    /// What this claim is to get, without what it only looks at.
    pub(super) planned: Vec<&'a PlannedDevice>,
}

impl Site<'_> {
    /// Checks that the device can be held, and by what means.
    pub(super) fn origin(&self, device: &Device<'_>, share: bool) -> Result<Origin, Reason> {
        self.check_free(&device.target(), share)?;
        match (device.part, &self.gpu.mig) {
            (Part::Whole, None) => Ok(Origin::Found),
            (Part::Whole, Some(mig)) => self.whole(mig),
            (Part::Mig(profile, placement), Some(mig)) => self.mig(mig, profile, placement),
            (Part::Mig(..), None) => Err(Reason::NotOffered { gpu: self.gpu.index }),
        }
    }

    /// Nothing that another claim holds, or that this one is to get, is in the way.
    fn check_free(&self, target: &Target, share: bool) -> Result<(), Reason> {
        let apart = |held: &&Held<'_>| !(share && held.shared && held.target == target);
        let same = self.held.iter().filter(apart).find(|held| held.target == target);
        let mut leftovers = self.held.iter().filter(|held| held.leftover);
        if let Some(held) = leftovers.find(|held| held.target.overlaps(target)) {
            let (gpu, by) = (self.gpu.index, Box::new(held.by.clone()));
            return Err(Reason::Leftover { gpu, device: held.device.to_owned(), by });
        }
        if let Some(held) = same {
            return Err(Reason::Held { by: Box::new(held.by.clone()) });
        }
        let mut others = self.held.iter().filter(apart);
        if let Some(held) = others.find(|held| held.target.overlaps(target)) {
            return Err(Reason::occupied(self.gpu, held));
        }
        match self.planned.iter().find(|planned| planned.target.overlaps(target)) {
            Some(planned) => Err(Reason::Itself { device: planned.device.clone() }),
            None => Ok(()),
        }
    }

    fn whole(&self, mig: &Mig) -> Result<Origin, Reason> {
        let gpu = self.gpu.index;
        if let Some(reason) = foreign_on(self.gpu) {
            return Err(reason);
        }
        match (mig.enabled, mig.pending) {
            _ if mig.switches_without_reset => Ok(Origin::Found),
            (false, _) => Ok(Origin::Found),
            (true, false) => Err(Reason::Pending { gpu, pending: false }),
            (true, true) => Err(Reason::NeedsReset { gpu, needed: false }),
        }
    }

    fn mig(&self, mig: &Mig, profile: &Profile, placement: Placement) -> Result<Origin, Reason> {
        let gpu = self.gpu.index;
        if let Some(instance) = self.gpu.instance(profile.id, placement) {
            return match instance.device() {
                Some(_) => Ok(Origin::Found),
                None => Err(Reason::Unfilled { gpu, instance: Instance::of(self.gpu, instance) }),
            };
        }
        if let Some(reason) = foreign_at(self.gpu, placement) {
            return Err(reason);
        }
        match (mig.enabled, mig.pending) {
            _ if mig.switches_without_reset => {}
            (true, true) => {}
            (false, false) => return Err(Reason::NeedsReset { gpu, needed: true }),
            (_, pending) => return Err(Reason::Pending { gpu, pending }),
        }
        self.check_budget(mig, profile)?;
        Ok(Origin::Made)
    }

    /// What memory slices do not tell: how many instances of a profile the GPU takes, and how much it
    /// has of what instances share out.
    fn check_budget(&self, mig: &Mig, profile: &Profile) -> Result<(), Reason> {
        let gpu = self.gpu.index;
        let cut = self.cut(mig);
        let same: Vec<_> = cut.iter().filter(|(id, _)| *id == profile.id).collect();
        if u32::try_from(same.len()).is_ok_and(|count| count >= profile.max_instances) {
            let users: Vec<_> =
                same.iter().map(|(id, place)| label(self.gpu, *id, *place)).collect();
            let (most, profile) = (profile.max_instances, profile.name.clone());
            return Err(Reason::Instances { gpu, most, profile, users: users.join(", ") });
        }
        for (what, of) in SHARED_OUT {
            let total = mig.profiles.iter().map(of).max().unwrap_or(0);
            let used = cut.iter().filter_map(|(id, _)| mig.profile(*id)).map(of).sum();
            let (free, needs) = (total.saturating_sub(used), of(profile));
            if needs > free {
                return Err(Reason::Short { gpu, what, free, total, needs });
            }
        }
        Ok(())
    }

    /// All that is or is about to be carved, by profile and place.
    fn cut(&self, mig: &Mig) -> BTreeSet<(u32, Placement)> {
        let held = self.held.iter().map(|held| held.target);
        let planned = self.planned.iter().map(|planned| &planned.target);
        let claimed = held.chain(planned).filter(|target| *target.gpu() == self.gpu.uuid);
        let claimed = claimed.filter_map(|target| match target {
            Target::Mig { profile, placement, .. } => Some((*profile, *placement)),
            Target::Gpu { .. } => None,
        });
        mig.instances.iter().map(|is| (is.profile, is.placement)).chain(claimed).collect()
    }
}

/// Why a GPU cannot be had as a whole: the instances on it, which no claim holds.
pub fn foreign_on(gpu: &Gpu) -> Option<Reason> {
    let mig = gpu.mig.as_ref().filter(|mig| !mig.instances.is_empty())?;
    let places: BTreeSet<_> = mig.instances.iter().map(|i| (i.placement, i.profile)).collect();
    let labels: Vec<_> = places.into_iter().map(|(place, id)| label(gpu, id, place)).collect();
    Some(Reason::ForeignInstances { gpu: gpu.index, instances: labels.join(", ") })
}

/// Why nothing can be carved at a place: an instance there, which no claim holds.
pub fn foreign_at(gpu: &Gpu, placement: Placement) -> Option<Reason> {
    let mut instances = gpu.mig.iter().flat_map(|mig| &mig.instances);
    let other = instances.find(|other| other.placement.overlaps(placement))?;
    let what = Extent { gpu: gpu.index, slices: Some(other.placement) };
    Some(Reason::ForeignInstance { what, instance: Instance::of(gpu, other) })
}
