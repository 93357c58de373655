//! Which devices and counter sets share a slice.
//!
//! Only what the GPUs are decides that, not what is taken of them: a slice whose order changes keeps
//! its devices, and can be written alone.

use std::collections::BTreeMap;

use crate::model::{
    gpu::DriverVersions,
    pool::{
        Features, SliceContent, attributes, counters,
        order::{Rank, Size},
        share::{Entry, MAX_DEVICES, Share},
    },
};

/// Counter sets that a slice may have.
const MAX_SETS: usize = 8;

/// A slice's devices before they are ordered, and the GPUs whose counter sets it has.
#[derive(Default)]
struct Plan<'p, 'g> {
    entries: Vec<&'p Entry<'g>>,
    sets: Vec<&'p Share<'g>>,
}

/// The slices in the order of their index.
pub(super) fn slices(
    shares: &[Share],
    features: Features,
    ranks: &BTreeMap<String, Rank>,
    driver: &DriverVersions,
) -> Vec<SliceContent> {
    let plans = match (features.counters, features.separate_counter_slices) {
        (true, true) => by_size(shares),
        (true, false) => by_gpu(shares),
        (false, _) => unsplit(shares),
    };
    plans.into_iter().map(|plan| plan.content(ranks, driver)).collect()
}

impl Plan<'_, '_> {
    fn content(mut self, ranks: &BTreeMap<String, Rank>, driver: &DriverVersions) -> SliceContent {
        self.entries.sort_by_key(|entry| &ranks[&entry.name]);
        let sets = self.sets.iter().filter_map(|share| {
            share.counters.as_ref().map(|amounts| counters::set(share.gpu, amounts))
        });
        SliceContent {
            devices: self.entries.iter().map(|entry| attributes::device(entry, driver)).collect(),
            shared_counters: sets.collect(),
        }
    }
}

/// Counter sets first: how many slices they need changes least. Then one size of all GPUs a slice.
fn by_size<'p, 'g>(shares: &'p [Share<'g>]) -> Vec<Plan<'p, 'g>> {
    let counted: Vec<_> = shares.iter().filter(|share| share.counters.is_some()).collect();
    let sets = counted.chunks(MAX_SETS).map(|sets| Plan { sets: sets.to_vec(), ..Plan::default() });

    let mut sizes: BTreeMap<Size, Vec<Vec<&Entry>>> = BTreeMap::new();
    for share in shares {
        let mut of_gpu: BTreeMap<Size, Vec<&Entry>> = BTreeMap::new();
        for entry in &share.entries {
            of_gpu.entry(Size::of(entry.device.part)).or_default().push(entry);
        }
        for (size, entries) in of_gpu {
            sizes.entry(size).or_default().push(entries);
        }
    }
    sets.chain(sizes.into_values().flat_map(packed)).collect()
}

/// One GPU a slice: where a slice may have counter sets and devices, a device's set must be in its own.
fn by_gpu<'p, 'g>(shares: &'p [Share<'g>]) -> Vec<Plan<'p, 'g>> {
    let some = shares.iter().filter(|share| !share.entries.is_empty());
    some.map(|share| Plan { entries: share.entries.iter().collect(), sets: vec![share] }).collect()
}

/// Devices without counters: as few slices as hold them.
fn unsplit<'p, 'g>(shares: &'p [Share<'g>]) -> Vec<Plan<'p, 'g>> {
    packed(shares.iter().map(|share| share.entries.iter().collect()).collect())
}

/// Slices that hold what is given GPU by GPU; the devices of one GPU stay together.
fn packed<'p, 'g>(gpus: Vec<Vec<&'p Entry<'g>>>) -> Vec<Plan<'p, 'g>> {
    let mut plans: Vec<Plan> = Vec::new();
    for entries in gpus {
        match plans.last_mut() {
            Some(plan) if plan.entries.len() + entries.len() <= MAX_DEVICES => {
                plan.entries.extend(entries);
            }
            _ => plans.push(Plan { entries, sets: Vec::new() }),
        }
    }
    plans
}
