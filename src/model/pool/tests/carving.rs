//! What a GPU lets one carve, and where the published counters are not as strict.

use std::collections::BTreeMap;

use crate::model::gpu::{Capacity, Mig, Placement, Profile};

/// A profile and where an instance of it lies.
pub(crate) type Cut<'g> = (&'g Profile, Placement);

/// Every cut of a GPU.
pub(crate) fn cuts(mig: &Mig) -> Vec<Cut<'_>> {
    let of = |profile: &'_ Profile| profile.placements.len();
    let mut all = Vec::with_capacity(mig.profiles.iter().map(of).sum());
    for profile in &mig.profiles {
        all.extend(profile.placements.iter().map(|&placement| (profile, placement)));
    }
    all
}

/// Every set of cuts that do not overlap, each as cuts in the order of [`cuts`].
pub(crate) fn sets(mig: &Mig) -> Vec<Vec<Cut<'_>>> {
    let mut sets: Vec<Vec<Cut>> = vec![Vec::new()];
    for cut in cuts(mig) {
        let with: Vec<_> = sets
            .iter()
            .filter(|set| set.iter().all(|other| !other.1.overlaps(cut.1)))
            .map(|set| set.iter().copied().chain([cut]).collect())
            .collect();
        sets.extend(with);
    }
    sets
}

/// Why a GPU refuses to have all of these at once, if it does.
pub(crate) fn refusal(mig: &Mig, set: &[Cut]) -> Option<Refusal> {
    let overlap = set
        .iter()
        .enumerate()
        .any(|(index, cut)| set[..index].iter().any(|other| other.1.overlaps(cut.1)));
    let mut instances: BTreeMap<u32, u32> = BTreeMap::new();
    set.iter().for_each(|(profile, _)| *instances.entry(profile.id).or_default() += 1);
    let crowded = set.iter().any(|(profile, _)| instances[&profile.id] > profile.max_instances);
    let most = mig.profiles.iter().map(|profile| profile.slices).max().unwrap_or(0);
    let slices: u32 = set.iter().map(|(profile, _)| profile.slices).sum();
    let has = |engine: fn(&Capacity) -> u32| {
        mig.profiles.iter().map(|profile| engine(&profile.capacity)).max().unwrap_or(0)
    };
    let takes = |engine: fn(&Capacity) -> u32| {
        set.iter().map(|(profile, _)| engine(&profile.capacity)).sum::<u32>()
    };
    let engines: [fn(&Capacity) -> u32; 4] = [
        |capacity| capacity.decoders,
        |capacity| capacity.encoders,
        |capacity| capacity.jpeg_engines,
        |capacity| capacity.ofa_engines,
    ];
    let media = engines.into_iter().any(|engine| takes(engine) > has(engine));
    let reasons = [
        (overlap, Refusal::Overlap),
        (slices > most, Refusal::ComputeSlices),
        (crowded, Refusal::MaxInstances),
        (media, Refusal::MediaEngines),
    ];
    reasons.into_iter().find_map(|(applies, refusal)| applies.then_some(refusal))
}

/// Why a GPU refuses a set of instances.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Refusal {
    Overlap,
    ComputeSlices,
    MaxInstances,
    MediaEngines,
}
