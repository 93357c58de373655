//! What is published of a node's GPUs: one pool, as ResourceSlices without their metadata.
//!
//! Names, attributes, capacities and counters are those of NVIDIA's driver, so that manifests written
//! for it work unchanged. The scheduler takes the first device that fits, in slice and list order, so
//! the order of the devices is the packing policy.

mod attributes;
mod counters;
mod layout;
mod order;
mod share;
mod taint;

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::resource::v1;

use crate::model::{
    gpu::Inventory,
    health::{Evicted, Findings},
    pool::{order::Rank, share::Share},
    record::Held,
    unread::Withheld,
};

/// What the API server keeps of a slice, found by a dry run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Features {
    /// Counter sets, and what devices consume of them.
    pub counters: bool,
    /// Taints of devices.
    pub taints: bool,
    /// Whether a slice must not have both counter sets and devices (servers from 1.35 on).
    pub separate_counter_slices: bool,
}

impl Features {
    /// All that Kerf makes use of.
    pub const ALL: Self = Self { counters: true, taints: true, separate_counter_slices: true };

    /// Whether taints may be there for people alone: effect `None` came with the separate slices.
    fn informative_taints(self) -> bool {
        self.taints && self.separate_counter_slices
    }
}

/// What decides what is published.
#[derive(Clone, Copy, Debug)]
pub struct PoolInput<'a> {
    /// Name of the node, which is the pool's too.
    pub node: &'a str,
    /// The GPUs.
    pub inventory: &'a Inventory,
    /// What all claims that the node knows of hold, those included whose preparation was refused.
    pub held: &'a [Held<'a>],
    /// What containers hold through the device plugin, of which the scheduler does not know.
    pub taken: &'a [Held<'a>],
    /// What nothing new is to be begun on, because a record cannot be read.
    pub withheld: &'a [Withheld],
    /// What is wrong with the GPUs.
    pub findings: &'a Findings,
    /// From what of that pods are moved.
    pub evicted: &'a Evicted,
    /// What the API server keeps.
    pub features: Features,
}

static NOTHING: Findings = Findings::NONE;
static NOBODY: Evicted = Evicted(BTreeSet::new());

impl<'a> PoolInput<'a> {
    /// A pool of healthy GPUs of which nobody holds anything.
    pub fn of(node: &'a str, inventory: &'a Inventory, features: Features) -> Self {
        let (findings, evicted) = (&NOTHING, &NOBODY);
        let (held, taken, withheld) = (&[], &[], &[]);
        Self { node, inventory, held, taken, withheld, findings, evicted, features }
    }
}

/// What a slice holds.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SliceContent {
    /// Devices in the order in which the scheduler is to take them.
    pub devices: Vec<v1::Device>,
    /// Counter sets.
    pub shared_counters: Vec<v1::CounterSet>,
}

/// The slices to publish, in the order of their index and with the best order of devices; at least
/// one, because a pool without devices says that the driver is there.
pub fn slices(input: &PoolInput) -> Vec<SliceContent> {
    let shares = share::all(input);
    slices_of(&shares, &order::ranks(&shares, input.held), input)
}

/// The slices to publish after `current`, which is what was last wanted or published: the order of a
/// slice with the same devices as before is changed only where [`needs_reorder`] says so, because each
/// change is a write.
pub fn slices_after(current: &[SliceContent], input: &PoolInput) -> Vec<SliceContent> {
    let shares = share::all(input);
    let ranks = order::ranks(&shares, input.held);
    let mut slices = slices_of(&shares, &ranks, input);
    for (slice, current) in slices.iter_mut().zip(current) {
        let turns = turns(current);
        if turns.len() == slice.devices.len()
            && slice.devices.iter().all(|device| turns.contains_key(device.name.as_str()))
            && !order::next_is_not_best(current, &ranks)
        {
            slice.devices.sort_by_key(|device| turns.get(device.name.as_str()));
        }
    }
    slices
}

/// The devices that can be taken now, by name: smallest first, and of one size the one whose loss leaves the
/// most first.
pub fn best_fit(input: &PoolInput) -> Vec<String> {
    let ranks = order::ranks(&share::all(input), input.held);
    let mut free: Vec<_> = ranks.into_iter().filter(|(_, rank)| rank.is_now()).collect();
    free.sort_by(|(_, a), (_, b)| a.cmp(b));
    free.into_iter().map(|(name, _)| name).collect()
}

/// Whether the order of a slice costs something: for some size, the device that the scheduler would
/// take next is not a best one.
pub fn needs_reorder(current: &[SliceContent], input: &PoolInput) -> bool {
    let ranks = order::ranks(&share::all(input), input.held);
    current.iter().any(|slice| order::next_is_not_best(slice, &ranks))
}

fn slices_of(
    shares: &[Share],
    ranks: &BTreeMap<String, Rank>,
    input: &PoolInput,
) -> Vec<SliceContent> {
    let mut slices = layout::slices(shares, input.features, ranks, &input.inventory.driver);
    if slices.is_empty() {
        slices.push(SliceContent::default());
    }
    slices
}

/// The place of each device in its slice, by name.
fn turns(slice: &SliceContent) -> BTreeMap<&str, usize> {
    let named = slice.devices.iter().enumerate();
    named.map(|(turn, device)| (device.name.as_str(), turn)).collect()
}

#[cfg(test)]
mod tests;
