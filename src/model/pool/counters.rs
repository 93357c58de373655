//! Counters: what a GPU has, and what of it a device takes.

use std::collections::BTreeMap;

use k8s_openapi::{api::resource::v1, apimachinery::pkg::api::resource::Quantity};

use crate::model::{
    device::Part,
    gpu::{Capacity, Gpu, Mig, Placement},
};

/// Names of what a [`Capacity`] has, as capacities; the last is in bytes.
const CAPACITIES: [&str; 7] = [
    "multiprocessors",
    "copyEngines",
    "decoders",
    "encoders",
    "jpegEngines",
    "ofaEngines",
    "memory",
];

/// The same as counters, which must be DNS labels.
const COUNTERS: [&str; 7] = [
    "multiprocessors",
    "copy-engines",
    "decoders",
    "encoders",
    "jpeg-engines",
    "ofa-engines",
    "memory",
];

/// An amount of each counter of one GPU: those of [`COUNTERS`], then one for each memory slice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Amounts(Vec<u64>);

impl Amounts {
    /// What a whole GPU has: of each dimension as much as its best profile, and every memory slice.
    pub(super) fn whole(mig: &Mig) -> Self {
        let mut amounts = best(mig).to_vec();
        amounts.extend((0..mig.memory_slices()).map(|_| 1));
        Self(amounts)
    }

    /// What a MIG device takes of its GPU.
    pub(super) fn mig(mig: &Mig, capacity: Capacity, placement: Placement) -> Self {
        let mut amounts = values(capacity).to_vec();
        let taken = |slice| u64::from((placement.start..placement.end()).contains(&slice));
        amounts.extend((0..mig.memory_slices()).map(taken));
        Self(amounts)
    }

    /// Nothing of what `other` has some of.
    pub(super) fn none_of(other: &Self) -> Self {
        Self(vec![0; other.0.len()])
    }

    /// This and that.
    pub(super) fn plus(&self, other: &Self) -> Self {
        self.combine(other, u64::saturating_add)
    }

    /// This without that; nothing is below zero.
    pub(super) fn minus(&self, other: &Self) -> Self {
        self.combine(other, u64::saturating_sub)
    }

    /// The greater of each counter.
    pub(super) fn at_least(&self, other: &Self) -> Self {
        self.combine(other, u64::max)
    }

    /// Whether there is enough in `other` for all of this.
    pub(super) fn fits(&self, other: &Self) -> bool {
        self.0.iter().zip(&other.0).all(|(need, have)| need <= have)
    }

    /// How many counters there are.
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// How many counters a device that takes this lists: memory slices only where it takes them.
    pub(super) fn listed(&self) -> usize {
        self.named().filter(|&(index, _)| self.is_listed(index)).count()
    }

    fn combine(&self, other: &Self, with: impl Fn(u64, u64) -> u64) -> Self {
        Self(self.0.iter().zip(&other.0).map(|(&a, &b)| with(a, b)).collect())
    }

    fn named(&self) -> impl Iterator<Item = (usize, u64)> {
        self.0.iter().copied().enumerate()
    }

    fn is_listed(&self, index: usize) -> bool {
        index < COUNTERS.len() || self.0[index] > 0
    }
}

/// The name of a GPU's counter set.
pub(super) fn set_name(gpu: &Gpu) -> String {
    format!("gpu-{}-counter-set", gpu.number)
}

/// A GPU's counter set.
pub(super) fn set(gpu: &Gpu, amounts: &Amounts) -> v1::CounterSet {
    let counters = amounts.named().map(|(index, amount)| counter(index, amount)).collect();
    v1::CounterSet { name: set_name(gpu), counters }
}

/// What a device takes of its GPU's counter set.
pub(super) fn consumption(gpu: &Gpu, amounts: &Amounts) -> v1::DeviceCounterConsumption {
    let listed = amounts.named().filter(|&(index, _)| amounts.is_listed(index));
    let counters = listed.map(|(index, amount)| counter(index, amount)).collect();
    v1::DeviceCounterConsumption {
        counter_set: set_name(gpu),
        counters,
        ..v1::DeviceCounterConsumption::default()
    }
}

/// The capacity of a part of a GPU that can be cut into MIG devices.
pub(super) fn capacity(mig: &Mig, part: Part) -> BTreeMap<String, v1::DeviceCapacity> {
    let values = match part {
        Part::Whole => best(mig),
        Part::Mig(profile, _) => values(profile.capacity),
    };
    let named = CAPACITIES.iter().zip(values).enumerate();
    named.map(|(index, (name, value))| (name.to_string(), quantified(index, value))).collect()
}

/// The memory slices of an instance that exists, which NVIDIA's driver lists as capacities too.
pub(super) fn memory_slices(placement: Placement) -> BTreeMap<String, v1::DeviceCapacity> {
    let slices = placement.start..placement.end();
    slices.map(|slice| (format!("memorySlice{slice}"), quantified(0, 1))).collect()
}

/// The capacity of a GPU that is only ever given out as a whole: its memory in bytes.
pub(super) fn memory_only(memory: u64) -> BTreeMap<String, v1::DeviceCapacity> {
    let index = CAPACITIES.len() - 1;
    BTreeMap::from([(CAPACITIES[index].to_owned(), quantified(index, memory))])
}

fn best(mig: &Mig) -> [u64; 7] {
    let none = values(Capacity::default());
    mig.profiles.iter().fold(none, |best, profile| {
        let these = values(profile.capacity);
        std::array::from_fn(|index| best[index].max(these[index]))
    })
}

fn values(capacity: Capacity) -> [u64; 7] {
    [
        capacity.multiprocessors.into(),
        capacity.copy_engines.into(),
        capacity.decoders.into(),
        capacity.encoders.into(),
        capacity.jpeg_engines.into(),
        capacity.ofa_engines.into(),
        capacity.memory,
    ]
}

fn counter(index: usize, amount: u64) -> (String, v1::Counter) {
    let name = COUNTERS.get(index).map_or_else(
        || format!("memory-slice-{}", index - COUNTERS.len()),
        |&name| name.to_owned(),
    );
    (name, v1::Counter { value: quantity(index, amount) })
}

fn quantified(index: usize, value: u64) -> v1::DeviceCapacity {
    v1::DeviceCapacity { value: quantity(index, value), ..v1::DeviceCapacity::default() }
}

/// Bytes with the largest binary unit that leaves them whole, as the API server writes them; all
/// else as a plain number.
fn quantity(index: usize, value: u64) -> Quantity {
    const UNITS: [&str; 6] = ["", "Ki", "Mi", "Gi", "Ti", "Pi"];
    if CAPACITIES.get(index) != Some(&"memory") {
        return Quantity(value.to_string());
    }
    let (mut value, mut unit) = (value, 0);
    while value != 0 && value % 1024 == 0 && unit + 1 < UNITS.len() {
        value /= 1024;
        unit += 1;
    }
    Quantity(format!("{value}{}", UNITS[unit]))
}
