//! Pools: which slices count, which devices they have, and what is left of their counters.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::resource::v1::{Counter, Device, ResourceSlice};

use crate::{quantity::Amount, scheduler::Allocated};

/// Amounts by counter set and counter, in billionths.
pub(super) type Counters<'a> = BTreeMap<(&'a str, &'a str), i128>;

/// One driver's pool as far as it concerns a node.
pub(super) struct Pool<'a> {
    /// Its driver.
    pub(super) driver: &'a str,
    /// Its name.
    pub(super) name: &'a str,
    /// Whether devices may be taken from it.
    pub(super) state: State,
    /// Devices of the node, in slice-name and list order, and whether they are of this node alone.
    pub(super) devices: Vec<(&'a Device, bool)>,
    /// Counters less what allocated devices consume; may be below zero.
    pub(super) left: Counters<'a>,
}

/// Whether devices may be taken from a pool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// Yes.
    Usable,
    /// No: not all slices of the newest generation are there.
    Incomplete,
    /// No: its slices contradict each other, and how.
    Invalid(String),
}

/// The pools that have devices for the node, by driver and name.
pub(super) fn gather<'a>(
    slices: &'a [ResourceSlice],
    node: &str,
    allocated: &[Allocated],
) -> Vec<Pool<'a>> {
    let mut pools: BTreeMap<(&str, &str), Vec<&ResourceSlice>> = BTreeMap::new();
    for slice in slices {
        pools.entry((&slice.spec.driver, &slice.spec.pool.name)).or_default().push(slice);
    }
    pools.into_values().filter_map(|slices| Pool::new(slices, node, allocated)).collect()
}

impl<'a> Pool<'a> {
    /// Of all slices of one pool, those of older generations included.
    fn new(
        mut slices: Vec<&'a ResourceSlice>,
        node: &str,
        allocated: &[Allocated],
    ) -> Option<Self> {
        let newest = slices.iter().map(|slice| slice.spec.pool.generation).max()?;
        slices.retain(|slice| slice.spec.pool.generation == newest);
        slices.sort_by_key(|slice| &slice.metadata.name);
        let spec = &slices.first()?.spec;
        let here: Vec<_> = slices.iter().filter(|slice| is_for(slice, node)).collect();
        if here.is_empty() {
            return None;
        }
        let devices = here.iter().flat_map(|slice| {
            let local = slice.spec.node_name.is_some();
            slice.spec.devices.iter().flatten().map(move |device| (device, local))
        });
        Some(Self {
            driver: &spec.driver,
            name: &spec.pool.name,
            state: state(&slices),
            devices: devices.collect(),
            left: left(&slices, allocated),
        })
    }
}

/// Slices select a node by name or are for all; Kerf publishes no other kind.
fn is_for(slice: &ResourceSlice, node: &str) -> bool {
    slice.spec.all_nodes == Some(true) || slice.spec.node_name.as_deref() == Some(node)
}

fn state(slices: &[&ResourceSlice]) -> State {
    let wanted = slices.first().map_or(0, |slice| slice.spec.pool.resource_slice_count);
    if i64::try_from(slices.len()).is_ok_and(|there| there != wanted) {
        return State::Incomplete;
    }
    contradiction(slices).map_or(State::Usable, State::Invalid)
}

fn contradiction(slices: &[&ResourceSlice]) -> Option<String> {
    let sets = || slices.iter().flat_map(|slice| slice.spec.shared_counters.iter().flatten());
    let mut names = BTreeSet::new();
    if let Some(twice) = sets().find(|set| !names.insert(&set.name)) {
        return Some(format!("it has counter set `{}` twice", twice.name));
    }
    let mut names = BTreeSet::new();
    if let Some(twice) = devices(slices).find(|device| !names.insert(&device.name)) {
        return Some(format!("it has device `{}` twice", twice.name));
    }
    let known: BTreeSet<_> = sets()
        .flat_map(|set| set.counters.keys().map(|name| (set.name.as_str(), name.as_str())))
        .collect();
    devices(slices).find_map(|device| {
        let (set, counter) =
            consumption(device).map(|(key, _)| key).find(|key| !known.contains(key))?;
        Some(format!(
            "device `{}` consumes `{counter}` of `{set}`, which is not there",
            device.name
        ))
    })
}

/// Counted over published devices, as the real scheduler does: what a device consumed that is no
/// longer in a slice is forgotten.
fn left<'a>(slices: &[&'a ResourceSlice], allocated: &[Allocated]) -> Counters<'a> {
    let sets = slices.iter().flat_map(|slice| slice.spec.shared_counters.iter().flatten());
    let mut left: Counters = sets
        .flat_map(|set| {
            amounts(&set.counters).map(|(name, amount)| ((set.name.as_str(), name), amount))
        })
        .collect();
    for slice in slices {
        let held = |device: &&Device| {
            allocated.iter().any(|held| {
                !held.admin && held.is(&slice.spec.driver, &slice.spec.pool.name, &device.name)
            })
        };
        for (key, amount) in slice.spec.devices.iter().flatten().filter(held).flat_map(consumption)
        {
            if let Some(left) = left.get_mut(&key) {
                *left -= amount;
            }
        }
    }
    left
}

fn devices<'a>(slices: &[&'a ResourceSlice]) -> impl Iterator<Item = &'a Device> {
    slices.iter().flat_map(|slice| slice.spec.devices.iter().flatten())
}

/// What a device takes, by counter set and counter.
pub(super) fn consumption(device: &Device) -> impl Iterator<Item = ((&str, &str), i128)> {
    device.consumes_counters.iter().flatten().flat_map(|consumed| {
        let set = consumed.counter_set.as_str();
        amounts(&consumed.counters).map(move |(name, amount)| ((set, name), amount))
    })
}

fn amounts(counters: &BTreeMap<String, Counter>) -> impl Iterator<Item = (&str, i128)> {
    counters.iter().map(|(name, counter)| (name.as_str(), Amount::of(&counter.value).nanos()))
}
