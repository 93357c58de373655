//! Which device the scheduler should take next: best fit.
//!
//! Of the devices of one size, the best is the one whose loss leaves the most of what can be taken
//! now. What fits is decided by the counters, as the scheduler does.

use std::collections::{BTreeMap, BTreeSet};

use crate::model::{
    device::Part,
    pool::{
        SliceContent,
        counters::Amounts,
        share::{Entry, Share, is_held, sum},
    },
    record::Held,
};

/// What the devices of a slice have in common, smallest first: a request by memory then takes the
/// smallest that suffices.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Size {
    /// A MIG profile.
    Mig {
        /// Compute slices.
        slices: u32,
        /// Bytes.
        memory: u64,
        /// Profile id.
        id: u32,
        /// Profile name: GPUs of two models may use an id for different things.
        name: String,
    },
    /// A whole GPU.
    Whole,
}

impl Size {
    /// The size of a device.
    pub(super) fn of(part: Part) -> Self {
        match part {
            Part::Whole => Self::Whole,
            Part::Mig(profile, _) => Self::Mig {
                slices: profile.slices,
                memory: profile.capacity.memory,
                id: profile.id,
                name: profile.name.clone(),
            },
        }
    }
}

/// A device's place among all: less is taken first.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Rank {
    size: Size,
    turn: Turn,
    gpu: u32,
    start: u32,
}

impl Rank {
    /// Whether the device can be taken.
    pub(super) fn is_now(&self) -> bool {
        matches!(self.turn, Turn::Now { .. })
    }
}

/// When a device should be taken, among those of its size.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Turn {
    /// It can be taken now.
    Now {
        /// Worth of what can no longer be taken then.
        loss: u64,
        /// Whether nothing of its GPU is taken: the ones that are cut already go first.
        untouched: bool,
    },
    /// It is held, or does not fit.
    Later,
}

/// The rank of each device of a pool, by name.
pub(super) fn ranks(shares: &[Share], held: &[Held]) -> BTreeMap<String, Rank> {
    shares.iter().flat_map(|share| of_share(share, held)).collect()
}

/// Whether, for some size, the first device of a slice that can be taken is not a best one.
pub(super) fn next_is_not_best(slice: &SliceContent, ranks: &BTreeMap<String, Rank>) -> bool {
    let mut first: BTreeMap<&Size, u64> = BTreeMap::new();
    let known = slice.devices.iter().filter_map(|device| ranks.get(&device.name));
    known
        .filter_map(|rank| match rank.turn {
            Turn::Now { loss, .. } => Some((&rank.size, loss)),
            Turn::Later => None,
        })
        .any(|(size, loss)| loss < *first.entry(size).or_insert(loss))
}

fn of_share(share: &Share, held: &[Held]) -> Vec<(String, Rank)> {
    let taken: BTreeSet<&str> = share
        .entries
        .iter()
        .map(|entry| entry.name.as_str())
        .filter(|name| is_held(name, held))
        .collect();
    let left = left(share, &taken);
    let fits = |entry: &&Entry| {
        !entry.is_blocked() && !taken.contains(entry.name.as_str()) && fits(entry, left.as_ref())
    };
    let free: Vec<&Entry> = share.entries.iter().filter(fits).collect();
    let mig = share.gpu.mig.as_ref();
    let untouched = taken.is_empty() && mig.is_none_or(|mig| mig.instances.is_empty());
    let turn = |entry: &Entry| match free.iter().any(|free| free.name == entry.name) {
        true => Turn::Now { loss: loss(entry, &free, left.as_ref()), untouched },
        false => Turn::Later,
    };
    let rank = |entry: &Entry| Rank {
        size: Size::of(entry.device.part),
        turn: turn(entry),
        gpu: share.gpu.number,
        start: start(entry),
    };
    share.entries.iter().map(|entry| (entry.name.clone(), rank(entry))).collect()
}

/// What of the counters nobody holds.
fn left(share: &Share, taken: &BTreeSet<&str>) -> Option<Amounts> {
    let counters = share.counters.as_ref()?;
    let held = share.entries.iter().filter(|entry| taken.contains(entry.name.as_str()));
    Some(counters.minus(&sum(counters, held.filter_map(|entry| entry.consumes.clone()))))
}

fn fits(entry: &Entry, left: Option<&Amounts>) -> bool {
    match (&entry.consumes, left) {
        (Some(consumes), Some(left)) => consumes.fits(left),
        _ => true,
    }
}

/// What can no longer be taken once `entry` is, each device worth its compute slices: room for a large
/// one is dearer than room for a small one.
fn loss(entry: &Entry, free: &[&Entry], left: Option<&Amounts>) -> u64 {
    let Some(consumes) = &entry.consumes else { return 0 };
    let left = left.map(|left| left.minus(consumes));
    let lost = free.iter().filter(|other| !fits(other, left.as_ref()));
    lost.map(|other| worth(other)).sum()
}

fn worth(entry: &Entry) -> u64 {
    match entry.device.part {
        Part::Whole => 0,
        Part::Mig(profile, _) => profile.slices.into(),
    }
}

fn start(entry: &Entry) -> u32 {
    match entry.device.part {
        Part::Whole => 0,
        Part::Mig(_, placement) => placement.start,
    }
}
